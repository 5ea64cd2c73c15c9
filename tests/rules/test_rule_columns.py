"""A column rule on real statements: through *, aliases, subqueries and common table expressions."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.rules.compile import RuleSet
from gateway.rules.load import load_rules
from gateway.rules.setting import Setting

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "rules"

TOUCHING = """\
SELECT balance FROM accounts
SELECT a.balance FROM accounts a
SELECT * FROM accounts
SELECT a.* FROM accounts a JOIN orders o ON o.id = a.id
SELECT id FROM accounts WHERE balance > 3
SELECT id FROM accounts ORDER BY balance
SELECT x FROM (SELECT balance AS x FROM accounts) t
WITH c AS (SELECT * FROM accounts) SELECT id FROM c
SELECT id FROM orders WHERE EXISTS (SELECT 1 FROM accounts WHERE balance = orders.x)
SELECT SUM(balance) FROM accounts
SELECT id FROM orders JOIN accounts USING (balance)
SELECT `Balance` FROM `Accounts`
SELECT shop.accounts.balance FROM shop.accounts
SELECT id FROM orders UNION SELECT balance FROM accounts
TABLE accounts
EXPLAIN SELECT balance FROM accounts
SELECT BALANCE FROM ACCOUNTS
SELECT _rowid FROM accounts
SELECT a._ROWID FROM accounts AS a
HANDLER accounts READ FIRST
CREATE TABLE x AS SELECT balance FROM accounts
CREATE TABLE x (id INT) AS (SELECT balance AS id FROM accounts)
CREATE TABLE x AS WITH c AS (SELECT * FROM accounts) SELECT id FROM c
CREATE TABLE x IGNORE SELECT id FROM orders JOIN accounts USING (balance)
CREATE TABLE x AS TABLE accounts
CREATE TEMPORARY TABLE x SELECT SUM(balance) FROM accounts
CREATE VIEW v AS SELECT a.balance FROM accounts a WITH LOCAL CHECK OPTION
CREATE VIEW v (x) AS (SELECT * FROM accounts) WITH CHECK OPTION
INSERT INTO x SELECT balance FROM accounts
INSERT INTO x WITH c AS (SELECT balance FROM accounts) SELECT * FROM c
UPDATE orders SET x = (SELECT balance FROM accounts LIMIT 1)
UPDATE accounts SET balance = 1
DELETE FROM accounts
ALTER TABLE accounts DROP COLUMN id
DO (SELECT balance FROM accounts)
SET @a = (SELECT balance FROM accounts LIMIT 1)
CALL p()
SELECT evil()
SELECT balance INTO @a FROM accounts
(SELECT balance FROM accounts)
SELECT 1; SELECT balance FROM accounts
SELECT 1 FROM accounts GROUP BY balance HAVING COUNT(*) > 1
SELECT ROW_NUMBER() OVER (PARTITION BY balance) FROM accounts
SELECT id FROM accounts NATURAL JOIN orders
CHECKSUM TABLE accounts"""

OTHERS = """\
SELECT id FROM accounts
SELECT o.* FROM accounts a JOIN orders o ON o.id = a.id
WITH c AS (SELECT id FROM accounts) SELECT id FROM c
SELECT balance FROM orders
SELECT 1
CREATE TABLE x (balance INT)
CREATE TABLE x LIKE accounts
CREATE TABLE x (id INT AS (balance + 1), balance INT)
CREATE TABLE x AS SELECT id FROM accounts
CREATE VIEW v AS SELECT id FROM accounts WITH CASCADED CHECK OPTION
INSERT INTO x SELECT id FROM accounts
DROP TABLE x
SELECT COUNT(*) FROM accounts
UPDATE accounts SET id = 1 WHERE id = 2
HELP 'balance'
SHOW COLUMNS FROM accounts"""


def decided(statement: str) -> str | None:
    setting = Setting(RuleSet(load_rules(EXAMPLES)))
    explainer = setting.explainer("mysql", listener=None, user="web", client="127.0.0.1", database=None)
    return explainer.explain(statement.encode()).rule


@pytest.mark.parametrize("statement", TOUCHING.splitlines())
def test_a_statement_that_touches_the_column_is_found(statement: str) -> None:
    assert decided(statement) == "balances are always exact"


@pytest.mark.parametrize("statement", OTHERS.splitlines())
def test_a_statement_that_does_not_is_left_alone(statement: str) -> None:
    assert decided(statement) is None


def test_a_table_is_found_that_a_new_table_or_view_is_made_from(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nname = "r"\nmatch = {tables = ["accounts"]}\nblock = "no"\n')
    explainer = Setting(RuleSet(load_rules(tmp_path))).explainer(
        "mysql", listener=None, user="", client="127.0.0.1", database=None
    )
    for statement in ("CREATE TABLE x SELECT 1 FROM accounts", "CREATE VIEW v AS (SELECT id FROM shop.accounts a)"):
        assert explainer.explain(statement.encode()).rule == "r", statement
    assert explainer.explain(b"CREATE TABLE x AS SELECT 1 AS accounts FROM orders").rule is None


def test_a_name_that_a_server_takes_for_the_columns_is_found(tmp_path: Path) -> None:
    """To MySQL the capital I with a dot is an i (tried on 9.7)."""
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nname = "r"\nmatch = {columns = ["accounts.iban"]}\nroute = {to = "primary"}\n')
    explainer = Setting(RuleSet(load_rules(tmp_path))).explainer(
        "mysql", listener=None, user="", client="127.0.0.1", database=None
    )
    for name in ("iban", "IBAN", "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}BAN"):
        assert explainer.explain(f"SELECT {name} FROM accounts".encode()).rule == "r", name
