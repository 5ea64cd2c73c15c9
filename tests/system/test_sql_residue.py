"""What a statement leaves behind is told as a direct connection tells it, also when its connection went to another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pymysql
import pytest
from gateways import Connection, SqlGateway, busy, rows, value

from gateway.demo.mysql_servers import APP

pytestmark = pytest.mark.servers


@pytest.fixture
def sides(small: SqlGateway) -> Iterator[tuple[Connection, Connection]]:
    """A connection through the gateway and a direct one, each to a table t of its own."""
    primary = small.group.primary
    for database in ("shop", "sbtest"):
        primary.query(f"DROP TABLE IF EXISTS {database}.t")
        primary.query(f"CREATE TABLE {database}.t (a INT PRIMARY KEY AUTO_INCREMENT, b VARCHAR(5))")
    with small.connect(charset="utf8mb4") as through, primary.connect(APP, "sbtest") as direct:
        for side in (through, direct):
            rows(side, "SET NAMES utf8mb4")
        yield through, direct
    primary.query("DROP TABLE sbtest.t")


def seen(connection: Any, question: str) -> tuple[Any, ...]:
    """All that a client sees of an answer, but for lengths for display and character sets, which servers differ in."""
    connection.query(question)
    result = connection._result
    return (
        result.rows,
        [(field.name, field.type_code, field.flags) for field in result.fields],
        result.warning_count,
    )


STATEMENTS = (
    "INSERT IGNORE INTO t VALUES (1, 'a'), (1, 'b'), (2, 'c')",
    "INSERT INTO t (b) VALUES ('a'), ('b')",
    "UPDATE IGNORE t SET b = CONCAT(b, 'too long')",
    "DELETE FROM t",
    "DROP TABLE IF EXISTS shop.nowhere",
    "/* gateway: primary */ SELECT 1 + 'x' FROM t",
    "SELECT SQL_CALC_FOUND_ROWS a FROM t LIMIT 1",
)
QUESTIONS = (
    "SHOW WARNINGS",
    "show warnings limit 1",
    "SHOW ERRORS",
    "SHOW COUNT(*) WARNINGS",
    "SHOW COUNT(*) ERRORS",
    "SELECT @@warning_count",
    "SELECT @@session.error_count AS errors",
    "SELECT ROW_COUNT()",
    "SELECT LAST_INSERT_ID(), @@identity",
)


@pytest.mark.parametrize("question", QUESTIONS)
def test_it_is_told_after_the_connection_was_lent(
    small: SqlGateway, sides: tuple[Connection, Connection], question: str
) -> None:
    lent = 0
    for statement in STATEMENTS:
        for side in sides:
            rows(side, statement)
        before = small.member(small.group.primary)["connections"]["resets"]
        busy(small)
        lent += small.member(small.group.primary)["connections"]["resets"] - before
        mine, theirs = (seen(side, question) for side in sides)
        assert mine == theirs, statement
        if "LAST_INSERT_ID" not in question:  # runs elsewhere, and MariaDB goes on telling of the statement before it
            assert seen(sides[0], "SHOW WARNINGS")[0] == seen(sides[1], "SHOW WARNINGS")[0], statement
    assert lent > 0, "nothing was lent: the test proves nothing"


def test_found_rows_are_told_after_the_connection_was_lent(
    small: SqlGateway, sides: tuple[Connection, Connection]
) -> None:
    for side in sides:
        rows(side, "INSERT INTO t (b) VALUES ('a'), ('b'), ('c')")
    for side in sides:
        rows(side, "/* gateway: primary */ SELECT SQL_CALC_FOUND_ROWS a FROM t LIMIT 1")
    busy(small)
    mine, theirs = (seen(side, "SELECT FOUND_ROWS()") for side in sides)
    assert mine == theirs
    assert mine[0] == ((3,),)
    assert seen(sides[0], "SHOW WARNINGS")[0] == seen(sides[1], "SHOW WARNINGS")[0]


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("SELECT a FROM t", 3),
        ("SELECT a FROM t LIMIT 2", 2),
        ("SELECT a FROM t WHERE a > 9", 0),
        ("SELECT a FROM t UNION SELECT 7", 4),
        ("SELECT a FROM t LIMIT 1 OFFSET 1", None),
        ("SELECT a FROM t LIMIT 1, 1", None),
        ("SELECT COUNT(*) FROM t", 1),
    ],
)
def test_found_rows_of_a_plain_query(
    small: SqlGateway, sides: tuple[Connection, Connection], statement: str, found: int | None
) -> None:
    through, direct = sides
    for side in sides:
        rows(side, "INSERT INTO t (b) VALUES ('a'), ('b'), ('c')")
    small.group.wait_caught_up()
    with small.connect() as other:
        for lent in (False, True):
            for side in sides:
                rows(side, statement)
            if lent:
                for _ in range(4):
                    value(other, "SELECT 1 FROM shop.t LIMIT 1")
            wanted = value(direct, "SELECT FOUND_ROWS()")
            assert found is None or wanted == found
            try:
                told = value(through, "SELECT FOUND_ROWS()")
            except pymysql.MySQLError as refused:
                assert found is None, refused  # noqa: PT017 - a refusal is allowed, a wrong value is not
            else:
                assert told == wanted


DIAGNOSED = (
    ("GET DIAGNOSTICS @n = NUMBER, @r = ROW_COUNT", "SELECT @n, @r"),
    (
        "GET CURRENT DIAGNOSTICS CONDITION 1 @s = RETURNED_SQLSTATE, @e = MYSQL_ERRNO, @m = MESSAGE_TEXT",
        "SELECT @s, @e, @m",
    ),
)


@pytest.mark.parametrize(
    ("statement", "warns"),
    [
        ("DROP TABLE IF EXISTS sbtest.nowhere", True),
        ("INSERT IGNORE INTO t VALUES (1, 'a'), (1, 'b')", True),
        ("SELECT 1 + 'x' FROM t LIMIT 1", True),
        ("/* gateway: primary */ SELECT 1 + 'x' FROM t LIMIT 1", True),
        ("SELECT a FROM t", False),
        ("INSERT INTO t (b) VALUES ('c'), ('d')", False),
    ],
)
@pytest.mark.parametrize("lent", [False, True])
def test_diagnostics_are_the_statement_befores(
    small: SqlGateway, sides: tuple[Connection, Connection], statement: str, warns: bool, lent: bool
) -> None:
    for side in sides:
        rows(side, "INSERT INTO t VALUES (1, 'x'), (2, 'y')")
    small.group.wait_caught_up()
    with small.connect() as other:
        for side in sides:
            rows(side, statement)
        if lent:
            busy(small)
            for _ in range(4):
                value(other, "SELECT 1 FROM shop.t LIMIT 1")
        found: list[list[object]] = []
        for side in sides:
            told: list[object] = []
            diagnosed = DIAGNOSED[: 2 if warns else 1]
            for get, _ in diagnosed:
                rows(side, get)
            told += [rows(side, asked) for _, asked in diagnosed]
            found.append(told)
        assert found[0] == found[1]


def test_diagnostics_of_a_refusal_of_the_gateway(small: SqlGateway) -> None:
    with small.connect() as one:
        with pytest.raises(pymysql.MySQLError):
            rows(one, "SHOW GATEWAY NONSENSE")
        rows(one, "GET DIAGNOSTICS CONDITION 1 @s = RETURNED_SQLSTATE, @e = MYSQL_ERRNO")
        rows(one, "GET DIAGNOSTICS @n = NUMBER")
        assert rows(one, "SELECT @s, @e, @n") == [("42000", 1235, 1)]
        assert rows(one, "SHOW GATEWAY PINS") == []


@pytest.mark.parametrize("state", ["idle", "in a transaction"])
def test_an_error_of_the_gateways_own_leaves_what_a_servers_would(small: SqlGateway, state: str) -> None:
    with small.connect() as one:
        if state != "idle":
            one.begin()
            rows(one, "SELECT 1 + 'x'")
        with pytest.raises(pymysql.MySQLError) as refused:
            rows(one, "SHOW GATEWAY NONSENSE")
        code, text = refused.value.args
        for _ in range(2):
            assert rows(one, "SHOW WARNINGS") == [("Error", code, text)]
        assert rows(one, "SHOW ERRORS LIMIT 1") == [("Error", code, text)]
        assert rows(one, "SHOW COUNT(*) ERRORS") == [(1,)]
        assert rows(one, "SELECT @@error_count, @@warning_count, ROW_COUNT()") == [(1, 1, -1)]
        with pytest.raises(pymysql.MySQLError, match="gateway:"):
            rows(one, "SHOW GATEWAY NONSENSE")
        with pytest.raises(pymysql.MySQLError, match="the statement before was refused by the gateway"):
            rows(one, "SELECT ROW_COUNT() + 1")
        assert value(one, "SELECT 1") == 1
        assert (code, text) not in [row[1:] for row in rows(one, "SHOW WARNINGS")]


def test_a_stranger_never_answers(small: SqlGateway) -> None:
    with small.connect() as one, small.connect() as another:
        rows(one, "CREATE TABLE t (a INT PRIMARY KEY AUTO_INCREMENT, b INT)")
        rows(another, "SELECT 1")
        rows(one, "INSERT INTO t (b) VALUES (1), (2)")
        busy(small)
        assert rows(another, "SHOW WARNINGS") == []
        assert value(another, "SELECT LAST_INSERT_ID()") == 0
        assert value(one, "SELECT ROW_COUNT()") == 2
        assert value(one, "SELECT LAST_INSERT_ID()") == 1
