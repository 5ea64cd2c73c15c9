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
EXPLAIN SELECT balance FROM accounts"""

OTHERS = """\
SELECT id FROM accounts
SELECT o.* FROM accounts a JOIN orders o ON o.id = a.id
WITH c AS (SELECT id FROM accounts) SELECT id FROM c
SELECT balance FROM orders
SELECT 1"""


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
