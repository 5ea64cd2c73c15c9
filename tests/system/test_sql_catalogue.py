"""Views, stored functions, triggers and foreign keys through a running gateway: what is proven goes to a replica, what
is not to the primary, and no statement is judged by a schema that DDL through the gateway has changed."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from typing import Any

import pymysql
import pytest
from catalogue_corpus import CATALOGUE_CORPUS, captured, schema
from gateways import Connection, GatewayMaker, SqlGateway, rows, value
from sql_corpus import load

from gateway.demo.mysql_servers import APP, MONITOR, MysqlGroup
from gateway.routing.operation import Kind
from gateway.topology.catalogue import KINDS

pytestmark = pytest.mark.servers

SCHEMA = """
CREATE TABLE t (id INT PRIMARY KEY, a INT, b VARCHAR(20))
CREATE TABLE log (a INT)
INSERT INTO t VALUES (1, 10, 'x'), (2, 20, 'y')
CREATE FUNCTION lookup(x INT) RETURNS INT READS SQL DATA BEGIN DECLARE r INT; \
SELECT MAX(a) INTO r FROM t WHERE id = x; RETURN r; END
CREATE FUNCTION claims(x INT) RETURNS INT NO SQL DETERMINISTIC BEGIN INSERT INTO log VALUES (x); RETURN x; END
CREATE VIEW plain AS SELECT id, a FROM t WHERE b LIKE 'x%'
CREATE VIEW on_view AS SELECT p.id, p.a AS amount FROM plain p
CREATE VIEW on_function AS SELECT id, lookup(id) AS r FROM t
CREATE VIEW writing AS SELECT id, claims(id) AS c FROM t
CREATE VIEW on_writing AS SELECT c FROM writing
""".strip().splitlines()

REPLICA = """
SELECT * FROM t
SELECT id FROM plain
SELECT amount FROM on_view
SELECT r FROM on_function
SELECT lookup(1)
SELECT shop.lookup(id) FROM t
SELECT x.id FROM plain AS x JOIN t ON t.id = x.id
WITH c AS (SELECT * FROM on_view) SELECT * FROM c
SELECT COUNT(*) FROM plain
SHOW COLUMNS FROM on_view
DESCRIBE plain
""".strip().splitlines()

PRIMARY = """
SELECT claims(1)
SELECT shop.claims(1)
SELECT * FROM on_writing
SELECT id FROM writing
SHOW COLUMNS FROM writing
DESCRIBE on_writing
SELECT 1 FROM t WHERE EXISTS (SELECT * FROM writing)
WITH c AS (SELECT * FROM on_writing) SELECT * FROM c
""".strip().splitlines()


def make(gateway: SqlGateway) -> None:
    """The schema, made through the gateway."""
    for server in gateway.group.servers:
        server.query("SET GLOBAL log_bin_trust_function_creators = ON")
    with gateway.connect() as one:
        for statement in SCHEMA:
            rows(one, statement)
    wait_known(gateway, "SELECT id FROM t")  # a column that no rule of these tests sends to the primary


def role_of(gateway: SqlGateway, connection: Connection, sql: str) -> str:
    """Which side served a statement."""
    rows(connection, sql)
    route = dict(rows(connection, "SHOW GATEWAY LAST ROUTE"))
    return "primary" if route["member"] == gateway.group.primary.address else "replica"


def wait_known(gateway: SqlGateway, sql: str) -> None:
    """Waits until a read that names what DDL has just changed is known for one: until then it goes to the primary."""

    def known() -> bool:
        with gateway.connect() as fresh:  # the session would be pinned by what nobody knows
            return role_of(gateway, fresh, sql) == "replica"

    gateway.group.wait_caught_up()
    gateway.wait_until(known, f"{sql} is known for a read")


def reads(gateway: SqlGateway) -> int:
    return int(gateway.figures["reads_refused_as_writes"])


def test_views_and_functions_are_reads_if_their_definitions_prove_it(sql_gateway: SqlGateway) -> None:
    make(sql_gateway)
    refused = reads(sql_gateway)
    with sql_gateway.connect() as one:
        for sql in REPLICA:
            assert role_of(sql_gateway, one, sql) == "replica", (sql, rows(one, "SHOW GATEWAY LAST ROUTE"))
        assert not rows(one, "SHOW GATEWAY PINS")
    for sql in PRIMARY:
        with sql_gateway.connect() as one:
            before = value(one, "SELECT /* gateway: primary */ COUNT(*) FROM log")
            assert role_of(sql_gateway, one, sql) == "primary", sql
            assert value(one, "SELECT /* gateway: primary */ COUNT(*) FROM log") >= before
    assert reads(sql_gateway) == refused  # not by the second fence
    catalogue = sql_gateway.orders["catalogue"]
    assert catalogue["complete"], catalogue


def test_a_view_is_never_judged_by_what_it_was_before_ddl(sql_gateway: SqlGateway) -> None:
    make(sql_gateway)
    refused = reads(sql_gateway)
    with sql_gateway.connect() as maker, sql_gateway.connect() as other:
        for _ in range(5):
            wait_known(sql_gateway, "SELECT * FROM plain")
            assert role_of(sql_gateway, other, "SELECT * FROM plain") == "replica"
            rows(maker, "CREATE OR REPLACE VIEW plain AS SELECT id, claims(a) AS a FROM t")
            assert not reads(sql_gateway) - refused
            with sql_gateway.connect() as third:
                assert role_of(sql_gateway, third, "SELECT * FROM plain") == "primary"
            rows(maker, "ALTER VIEW plain AS SELECT id, a FROM t")
            wait_known(sql_gateway, "SELECT * FROM plain")
            assert role_of(sql_gateway, maker, "SELECT * FROM plain") == "replica"
        rows(maker, "DROP FUNCTION lookup")
        rows(maker, "CREATE FUNCTION lookup(x INT) RETURNS INT READS SQL DATA BEGIN SET @seen = x; RETURN x; END")
        assert role_of(sql_gateway, maker, "SELECT r FROM on_function") == "primary"
        assert value(maker, "SELECT @seen") in (1, 2)
    assert reads(sql_gateway) == refused


def test_names_are_looked_up_in_the_session_s_database_and_with_their_case(sql_gateway: SqlGateway) -> None:
    make(sql_gateway)
    root = sql_gateway.group.primary.query
    root("CREATE DATABASE IF NOT EXISTS sbtest")
    for name in ("plain", "T"):
        root(f"DROP VIEW IF EXISTS sbtest.{name}")
    with sql_gateway.connect("sbtest") as one:
        rows(one, "CREATE VIEW plain AS SELECT shop.claims(1) AS a")
        rows(one, "CREATE VIEW T AS SELECT shop.lookup(1) AS a, shop.claims(2) AS b")
        wait_known(sql_gateway, "SELECT * FROM shop.plain")
        assert role_of(sql_gateway, one, "SELECT * FROM shop.plain") == "replica"
        assert role_of(sql_gateway, one, "SELECT shop.lookup(1)") == "replica"
    for sql in ("SELECT * FROM plain", "SELECT a FROM sbtest.T", "SELECT * FROM T"):
        with sql_gateway.connect("sbtest") as one:
            assert role_of(sql_gateway, one, sql) == "primary", sql
    with sql_gateway.connect("shop") as one:
        assert role_of(sql_gateway, one, "SELECT * FROM t") == "replica"
        assert role_of(sql_gateway, one, "SELECT * FROM plain") == "replica"
        rows(one, "USE sbtest")
        assert role_of(sql_gateway, one, "SELECT * FROM plain") == "primary"
    for name in ("plain", "T"):
        root(f"DROP VIEW sbtest.{name}")


GRANTED = {
    "mariadb": "SLAVE MONITOR, BINLOG MONITOR",
    "mysql": "REPLICATION CLIENT",
}


@pytest.fixture
def poor_monitor(sql_group: MysqlGroup) -> Any:
    """The monitor without the rights that show the catalogue."""
    account = f"'{MONITOR.user}'@'%'"
    sql_group.primary.query(f"REVOKE SELECT, SHOW VIEW, TRIGGER ON *.* FROM {account}")
    sql_group.wait_caught_up()
    yield sql_group
    sql_group.primary.query(f"GRANT SELECT, SHOW VIEW, TRIGGER ON *.* TO {account}")
    sql_group.wait_caught_up()


def test_without_rights_tables_are_known_by_the_users_and_views_prove_nothing(
    poor_monitor: MysqlGroup, gateways: GatewayMaker
) -> None:
    gateway = gateways(poor_monitor)
    missing = f"GRANT SELECT, SHOW VIEW, TRIGGER ON *.* TO '{MONITOR.user}'@'%'"
    assert missing in gateway.log.read_text()
    make(gateway)
    assert not gateway.orders["catalogue"]["complete"]
    asked = subprocess.run(
        [sys.executable, "-m", "gateway", "check", "-c", str(gateway.config_file)],
        capture_output=True,
        text=True,
        timeout=60.0,
    )
    assert asked.returncode == 0, asked.stderr
    assert missing in asked.stderr
    with gateway.connect() as one:
        assert role_of(gateway, one, "SELECT * FROM t") == "replica"
        assert role_of(gateway, one, "SELECT * FROM plain") == "primary"
        assert "may not see" in dict(rows(one, "SHOW GATEWAY LAST ROUTE"))["reason"]
        assert role_of(gateway, one, "SELECT lookup(1)") == "primary"
    poor_monitor.primary.query(f"GRANT SELECT, SHOW VIEW, TRIGGER ON *.* TO '{MONITOR.user}'@'%'")
    with gateway.connect() as one:
        rows(one, "CREATE VIEW newest AS SELECT 1 AS one")  # makes it look again
        wait_known(gateway, "SELECT * FROM plain")
        assert role_of(gateway, one, "SELECT * FROM plain") == "replica"
    assert gateway.orders["catalogue"]["complete"]


EXPLAINED = [*REPLICA, *PRIMARY, *"""
INSERT INTO t (id, a) VALUES (9, 1)
SELECT a FROM t FOR UPDATE
SELECT * FROM plain WHERE a > (SELECT MIN(amount) FROM on_view)
SET @x = 5
DELETE FROM log WHERE a = 77
SELECT NOW()
SELECT UUID_SHORT()
SELECT id FROM t WHERE a = 1 /* gateway: primary */
""".strip().splitlines()]  # fmt: skip


def test_explain_says_what_the_running_gateway_does(sql_group: MysqlGroup, gateways: GatewayMaker) -> None:
    rules = (
        '[[rule]]\nname = "amounts"\nmatch = {protocol = "mysql", kind = "read", columns = ["t.a"]}\n'
        'route = {to = "primary"}\n'
        '[[rule]]\nname = "logs"\nmatch = {protocol = "mysql", tables = ["log"]}\nroute = {consistency = "eventual"}\n'
    )
    gateway = gateways(sql_group, rules=rules)
    make(gateway)
    asked = subprocess.run(
        [
            sys.executable,
            "-m",
            "gateway",
            "explain",
            "--json",
            "-c",
            str(gateway.config_file),
            *["-u", "app", "-d", "shop", "-"],
        ],
        input="\n".join(EXPLAINED),
        capture_output=True,
        text=True,
        timeout=60.0,
    )
    assert asked.returncode == 0, asked.stderr
    verdicts = [json.loads(line) for line in asked.stdout.splitlines()]
    assert [verdict["statement"] for verdict in verdicts] == EXPLAINED
    for verdict in verdicts:
        with gateway.connect() as one:
            side = role_of(gateway, one, verdict["statement"])
            route = dict(rows(one, "SHOW GATEWAY LAST ROUTE"))
        found = (verdict["target"], verdict["kind"], verdict["rule"])
        assert found == (side, route["kind"], route["rule"]), verdict
        assert route["reason"].startswith(verdict["reason"])
    by_statement = {verdict["statement"]: verdict for verdict in verdicts}
    assert by_statement["SELECT amount FROM on_view"]["rule"] == "amounts"
    assert by_statement["SELECT id FROM plain"]["rule"] is None


def test_the_catalogue_of_the_corpus_is_what_the_servers_tell(sql_group: MysqlGroup) -> None:
    """And what it proves to be a read changes nothing there."""
    primary = sql_group.primary
    for server in sql_group.servers:
        server.query("SET GLOBAL log_bin_trust_function_creators = ON")
    primary.query("CREATE DATABASE other")
    try:
        with primary.admin() as connection, connection.cursor() as cursor:
            cursor.execute("USE shop")
            for statement in schema():
                cursor.execute(statement)
            for kind, rows_of_kind in captured(primary.flavor).items():
                cursor.execute(KINDS[kind].select())
                told = sorted(
                    [value.decode() if isinstance(value, bytes) else str(value) for value in row]
                    for row in cursor.fetchall()
                    if row[0] in ("shop", "other")
                )
                assert told == rows_of_kind, kind
        sql_group.wait_caught_up()
        before, worked = primary.position(), 0
        with primary.connect(APP, "shop") as connection, connection.cursor() as cursor:
            for entry in load(CATALOGUE_CORPUS):
                mariadb = primary.flavor == "mariadb"
                if entry.kind is not Kind.READ or all(reading.mariadb != mariadb for reading in entry.readings):
                    continue
                cursor.execute("SET SESSION TRANSACTION READ ONLY")
                with contextlib.suppress(pymysql.MySQLError):  # not there, or not the application's
                    cursor.execute(entry.sql)
                    worked += 1
        assert primary.position() == before
        assert worked > 30
    finally:
        primary.query("DROP DATABASE other")


COLUMN_RULES = """
[[rule]]
name = "exact"
match = {columns = ["accounts.balance", "orders.pri*"]}
route = {to = "primary"}
"""


def test_rules_on_columns_know_what_an_asterisk_stands_for(gateways: GatewayMaker, sql_group: MysqlGroup) -> None:
    for statement in (
        "CREATE TABLE shop.accounts (id INT PRIMARY KEY, balance INT)",
        "CREATE TABLE shop.orders (id INT PRIMARY KEY, total INT)",
        "CREATE TABLE shop.plain (id INT PRIMARY KEY, balance INT)",
        "CREATE VIEW shop.on_accounts AS SELECT a.*, o.total FROM shop.accounts a JOIN shop.orders o USING (id)",
        "CREATE VIEW shop.harmless AS SELECT id AS balance FROM shop.accounts",
    ):
        sql_group.primary.query(statement)
    sql_group.wait_caught_up()
    gateway = gateways(sql_group, rules=COLUMN_RULES)

    def rule_of(connection: Connection, sql: str) -> str | None:
        rows(connection, sql)
        found: str | None = dict(rows(connection, "SHOW GATEWAY LAST ROUTE"))["rule"]
        return found

    with gateway.connect() as one, gateway.connect() as other:
        for sql in (
            "SELECT * FROM accounts",
            "SELECT accounts.* FROM accounts JOIN orders USING (id)",
            "SELECT * FROM on_accounts",
            "SELECT balance FROM on_accounts",
            "SELECT * FROM (SELECT * FROM accounts) AS x",
            "WITH c AS (SELECT * FROM accounts) SELECT id FROM c",
            "SELECT balance FROM accounts JOIN orders USING (id)",
        ):
            assert rule_of(one, sql) == "exact", sql
        for sql in (
            "SELECT * FROM orders",  # which has no such column
            "SELECT * FROM plain",
            "SELECT orders.* FROM accounts JOIN orders USING (id)",
            "SELECT balance FROM plain JOIN orders USING (id)",
            "SELECT total FROM on_accounts",
            "SELECT balance FROM harmless",
        ):
            assert rule_of(one, sql) is None, sql
        # A column that comes by DDL through the gateway is known to every session at once.
        rows(one, "ALTER TABLE orders ADD COLUMN price INT")
        assert rule_of(other, "SELECT * FROM orders") == "exact"
        rows(one, "ALTER TABLE orders DROP COLUMN price")
        assert rule_of(other, "SELECT * FROM orders") is None
        rows(one, "DROP TABLE orders")
        rows(one, "CREATE TABLE orders (id INT PRIMARY KEY, priority INT)")
        assert rule_of(other, "SELECT * FROM orders") == "exact"
        # So are those of which other rules speak.
        gateway.rule_file.write_text(COLUMN_RULES.replace("accounts.balance", "shop.pl?in.balance"))
        assert gateway.process is not None
        gateway.process.signal(signal.SIGHUP)
        gateway.wait_until(lambda: "rules reloaded" in gateway.log.read_text(), "the rules are in force")
        assert rule_of(other, "SELECT * FROM plain") == "exact"
        assert rule_of(other, "SELECT * FROM accounts") is None


PROCEDURES = """
CREATE PROCEDURE adds(x INT) BEGIN DECLARE n INT DEFAULT 0; INSERT INTO log VALUES (x); \
SELECT COUNT(*) INTO n FROM log; SELECT n; END
CREATE PROCEDURE through(x INT) CALL adds(x + 1)
CREATE PROCEDURE tells(IN x INT, OUT y INT, INOUT z VARCHAR(20)) BEGIN SET y = x * 2; SET z = CONCAT(z, '!'); END
CREATE PROCEDURE sets() SET @left = 5
CREATE PROCEDURE locks() SELECT GET_LOCK('left', 0)
CREATE PROCEDURE makes() CREATE TEMPORARY TABLE tmp (a INT)
CREATE PROCEDURE mode() SET SESSION sql_mode = ''
CREATE PROCEDURE runs() BEGIN PREPARE s FROM 'SELECT 1'; EXECUTE s; END
CREATE PROCEDURE begins() BEGIN START TRANSACTION; INSERT INTO log VALUES (9); END
CREATE PROCEDURE nested() BEGIN INSERT INTO log VALUES (1); CALL sets(); END
""".strip().splitlines()


def test_a_procedure_that_leaves_nothing_does_not_pin(sql_gateway: SqlGateway) -> None:
    with sql_gateway.connect() as one:
        rows(one, "CREATE TABLE log (a INT)")
        for statement in PROCEDURES:
            rows(one, statement)
        for call in ("CALL adds(1)", "CALL shop.through(2)", "CALL adds(LENGTH('abc'))"):
            assert rows(one, call)
            assert rows(one, "SHOW GATEWAY PINS") == [], call
        rows(one, "SET @z = 'it'")
        rows(one, "CALL tells(21, @y, @z)")
        assert rows(one, "SHOW GATEWAY PINS") == []
        assert rows(one, "SELECT @y, @z") == [(42, "it!")]
        one.begin()
        rows(one, "CALL adds(5)")
        one.rollback()
        assert value(one, "SELECT COUNT(*) FROM log") == 3
        assert rows(one, "SHOW GATEWAY PINS") == []
    for name in ("sets", "locks", "makes", "mode", "runs", "begins", "nested"):
        with sql_gateway.connect() as one:
            rows(one, f"CALL {name}()")
            assert len(rows(one, "SHOW GATEWAY PINS")) == 1, name
    with sql_gateway.connect() as one, sql_gateway.connect() as other:
        rows(other, "DROP PROCEDURE adds")
        rows(other, "CREATE PROCEDURE adds(x INT) SET @left = x")
        rows(one, "CALL adds(7)")
        assert value(one, "SELECT @left") == 7
        assert len(rows(one, "SHOW GATEWAY PINS")) == 1
