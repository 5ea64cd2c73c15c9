"""What pins a session, what ends the pin, and what is read back so that there is none."""

from __future__ import annotations

import contextlib
from typing import Any

import pymysql
import pytest
from gateways import Connection, SqlGateway, busy, rows, value

from gateway.demo.mysql_servers import APP

pytestmark = pytest.mark.servers


def pins(connection: Connection) -> list[str]:
    return [row[0] for row in rows(connection, "SHOW GATEWAY PINS")]


READ_BACK = (
    # Rails, Django, Laravel
    "SET @@SESSION.sql_mode = CONCAT(CONCAT(@@sql_mode, ',STRICT_ALL_TABLES'), ',NO_AUTO_VALUE_ON_ZERO'), "
    "@@SESSION.sql_auto_is_null = 0, @@SESSION.wait_timeout = 2147483",
    "SET SESSION sql_mode = REPLACE(@@sql_mode, 'ONLY_FULL_GROUP_BY', '')",
    "SET sql_mode = DEFAULT, time_zone = DEFAULT",
    "SET lock_wait_timeout = @@lock_wait_timeout + 1",
    "SET SESSION long_query_time = 1.5 * 2",
    "SET CHARACTER SET latin1",
    "SET NAMES DEFAULT",
    "SET NAMES latin1",
    "SET character_set_results = NULL",
    "SET collation_connection = @@collation_database",
    "SET SESSION transaction_isolation = DEFAULT",
    "SET @a = 5, @b = @a + 1, @c = 'x', @d = CONCAT('it''s ', UUID(), '\\\\')",
    "SET @b = @a + 1",
    "SET @c = CONCAT(@c, _utf8mb4 'ä'), @d = 1/3, @e = 1.5e0 / 7, @f = NOW(), @g = X'00FF', @h = NULLIF(1, 1), @i = ''",
    "SET @i = UPPER(@i), @j = CAST(18446744073709551615 AS UNSIGNED), @k = -2.50 * 1",
    "SET @l = _latin1 'abc' COLLATE latin1_german1_ci, @m = JSON_OBJECT('a', 1)",
)
ASKED = (
    "SELECT @@sql_mode, @@time_zone, @@lock_wait_timeout, @@long_query_time, @@character_set_client, "
    "@@character_set_results, @@collation_connection, @@sql_auto_is_null, @@wait_timeout",
    *(
        f"SELECT @{name}, HEX(@{name}), CHARSET(@{name}), COLLATION(@{name}), COERCIBILITY(@{name}), @{name} + 0"
        for name in "abcghijkl"
    ),
    "SELECT @d, @e, @m, CHARSET(@m), COLLATION(@m), LENGTH(@f)",
)


def test_what_was_set_by_an_expression_is_read_back_and_follows_the_session(small: SqlGateway) -> None:
    with small.connect() as through, small.group.primary.connect(APP, "shop") as direct:
        for statement in READ_BACK:
            if "tx_isolation" not in statement and small.group.primary.flavor == "mariadb":
                statement = statement.replace("transaction_isolation", "tx_isolation")
            before = _unstable(through)
            rows(through, statement)
            rows(direct, statement)
            assert pins(through) == [], statement
            mine, theirs = _seen(through), _seen(direct)
            assert mine[0] == theirs[0], statement
            busy(small)
            assert _seen(through) == mine, statement
            through.begin()
            assert _seen(through) == mine, statement
            through.rollback()
            assert _unstable(through) == before or "UUID" in statement or "NOW" in statement
        assert [kinds for _, kinds in _seen(through)[1:]] == [kinds for _, kinds in _seen(direct)[1:]]


def _unstable(connection: Connection) -> list[tuple[Any, ...]]:
    """What is different each time that it is evaluated, and so must not be evaluated again."""
    return rows(connection, "SELECT @d, @f")


def _seen(connection: Connection) -> list[tuple[list[tuple[Any, ...]], list[int]]]:
    found = []
    for question in ASKED:
        with connection.cursor() as cursor:
            cursor.execute(question)
            found.append((list(cursor.fetchall()), [column[1] for column in cursor.description or ()]))
    return found


def test_a_set_that_failed_or_runs_what_is_not_known_is_not_read_back(small: SqlGateway) -> None:
    with small.connect() as one:
        with pytest.raises(pymysql.MySQLError):
            rows(one, "SET sql_mode = CONCAT('NO', 'NSENSE')")
        assert pins(one) == []
        rows(one, "SET @a = (SELECT COUNT(*) FROM information_schema.tables WHERE 1 = 0)")
        assert len(pins(one)) == 1
        rows(one, "SET @b = UUID()")
        assert value(one, "SELECT @a") == 0


def test_the_warnings_of_what_is_read_back_are_shown(small: SqlGateway) -> None:
    with small.connect() as through, small.group.primary.connect(APP, "shop") as direct:
        for side in (through, direct):
            rows(side, "SET @a = 1 + 'x'")
        warnings = rows(direct, "SHOW WARNINGS")
        assert warnings
        assert rows(through, "SHOW WARNINGS") == warnings
        assert rows(through, "SHOW WARNINGS") == warnings


@pytest.mark.parametrize(
    ("begin", "between", "end"),
    [
        (["CREATE TEMPORARY TABLE tmp (a INT)"], "INSERT INTO tmp VALUES (1)", ["DROP TEMPORARY TABLE tmp"]),
        (
            ["CREATE TEMPORARY TABLE tmp (a INT)", "CREATE TEMPORARY TABLE shop.other LIKE tmp"],
            "DROP TABLE tmp",
            ["DROP TABLE other"],
        ),
        (
            ["CREATE TEMPORARY TABLE tmp (a INT)", "CREATE TEMPORARY TABLE other (a INT)"],
            "SELECT COUNT(*) FROM tmp",
            ["DROP TEMPORARY TABLE IF EXISTS tmp, other"],
        ),
        (["LOCK TABLES t WRITE"], "INSERT INTO t VALUES (1)", ["UNLOCK TABLES"]),
        (["SELECT GET_LOCK('one', 0)"], "SELECT IS_USED_LOCK('one')", ["SELECT RELEASE_LOCK('one')"]),
        (
            ["SELECT GET_LOCK('one', 0)", "SELECT GET_LOCK('two', 0)"],
            "SELECT RELEASE_LOCK('two')",
            ["DO RELEASE_LOCK('one')"],
        ),
        (
            ["SELECT GET_LOCK('one', 0)", "SELECT GET_LOCK('one', 0)"],
            "SELECT RELEASE_LOCK('one')",
            ["SELECT RELEASE_LOCK('one')"],
        ),
        (["SELECT GET_LOCK(CONCAT('o', 'ne'), 0)"], "SELECT RELEASE_LOCK('one')", ["SELECT RELEASE_ALL_LOCKS()"]),
        (["HANDLER t OPEN"], "HANDLER t READ FIRST", ["HANDLER t CLOSE"]),
        (["HANDLER t OPEN AS a", "HANDLER t OPEN AS b"], "HANDLER a CLOSE", ["HANDLER b CLOSE"]),
        (["SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"], "BEGIN", ["COMMIT"]),
        (["PREPARE s FROM 'SELECT * FROM t'"], "EXECUTE s", ["DEALLOCATE PREPARE S"]),
        (["PREPARE s FROM 'INSERT INTO t VALUES (?)'"], "EXECUTE s USING @a", ["DROP PREPARE s"]),
        (
            ["PREPARE s FROM 'DELETE FROM t'", "PREPARE `q` FROM 'UPDATE t SET a = ?'"],
            "DEALLOCATE PREPARE s",
            ["EXECUTE q USING @a", "DEALLOCATE PREPARE q"],
        ),
    ],
)
def test_a_pin_ends_with_the_last_of_what_it_is_about(
    small: SqlGateway, begin: list[str], between: str, end: list[str]
) -> None:
    with small.connect() as one:
        rows(one, "CREATE TABLE t (a INT)")
        for statement in begin:
            rows(one, statement)
        found = rows(one, "SHOW GATEWAY PINS")
        assert len(found) == 1
        cause, text, since, avoid = found[0]
        assert text == begin[0]
        assert float(since) >= 0
        assert cause
        assert avoid
        if "TEMPORARY" in begin[0]:
            assert "shop.tmp" in cause
        rows(one, between)
        assert len(pins(one)) == 1
        for statement in end:
            rows(one, statement)
        assert pins(one) == []
        assert int(small.figures["in_transaction_or_pinned"]) == 0


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TEMPORARY TABLE tmp (a INT)", "CREATE TEMPORARY TABLE two (a INT)", "DROP TEMPORARY TABLE two"],
        ["CREATE TEMPORARY TABLE tmp (a INT)", "ALTER TABLE tmp RENAME TO new", "DROP TABLE IF EXISTS tmp"],
        ["CREATE TEMPORARY TABLE tmp (a INT)", "DROP TABLE sbtest.tmp2"],
        ["SELECT GET_LOCK('one', 0)", "SELECT GET_LOCK('two', 0)", "SELECT RELEASE_LOCK('two')"],
        ["PREPARE s FROM 'SELECT @a := 5'", "EXECUTE s", "DEALLOCATE PREPARE s"],
        ["PREPARE s FROM 'CREATE TEMPORARY TABLE tmp (a INT)'", "EXECUTE s", "DEALLOCATE PREPARE s"],
        ["PREPARE s FROM 'SELECT 1'", "PREPARE q FROM 'SELECT 2'", "DEALLOCATE PREPARE s"],
        ["PREPARE s FROM 'SELECT 1'", "DEALLOCATE PREPARE nobody"],
        ["PREPARE \u00e4 FROM 'SELECT 1'", "DEALLOCATE PREPARE \u00e4"],
        ["SELECT 'SET @b = 1' INTO @a", "PREPARE s FROM @a", "EXECUTE s", "DEALLOCATE PREPARE s"],
    ],
)
def test_a_pin_stays_while_anything_is_left(small: SqlGateway, statements: list[str]) -> None:
    with small.connect() as one:
        for statement in statements:
            with contextlib.suppress(pymysql.MySQLError):
                rows(one, statement)
        assert pins(one) != []


def test_others_see_and_are_seen_only_with_a_right(small: SqlGateway) -> None:
    with small.connect() as one, small.connect() as another:
        rows(one, "CREATE TEMPORARY TABLE tmp (a INT)")
        assert pins(another) == []
        assert [row[1] for row in rows(another, "SHOW GATEWAY PINS ALL")] == [APP.user]


def test_what_is_executed_is_followed_as_its_text_would_be(small: SqlGateway) -> None:
    with small.connect() as one:
        rows(one, "CREATE TABLE t (a INT)")
        rows(one, "SET @sql = CONCAT('INSERT INTO ', 't VALUES (1), (', '2)')")
        for statements in (
            ["PREPARE s FROM @sql", "EXECUTE s"],
            ["PREPARE s FROM 'SET @b = \\'it\\'\\'s\\', @c = 7'", "EXECUTE s"],
            ["PREPARE s FROM 'CREATE TEMPORARY TABLE tmp (a INT)'", "EXECUTE s", "DROP TEMPORARY TABLE tmp"],
            ["PREPARE s FROM 'SELECT a INTO @x FROM t LIMIT 1'"],  # and is never executed
        ):
            for statement in statements:
                rows(one, statement)
                assert pins(one) != []
            rows(one, "DEALLOCATE PREPARE s")
            assert pins(one) == [], statements
            busy(small)
        assert rows(one, "SELECT @b, @c") == [("it's", 7)]
        assert value(one, "SELECT COUNT(*) FROM t") == 2
        with pytest.raises(pymysql.MySQLError) as unknown:
            rows(one, "EXECUTE s")
        assert unknown.value.args[0] == 1243
        assert pins(one) == []


def test_a_prepare_that_fails_leaves_nothing(small: SqlGateway) -> None:
    with small.connect() as one:
        rows(one, "PREPARE s FROM 'SELECT 1'")
        with pytest.raises(pymysql.MySQLError):
            rows(one, "PREPARE s FROM 'SELECT nonsense FROM nowhere'")
        with pytest.raises(pymysql.MySQLError) as unknown:
            rows(one, "DEALLOCATE PREPARE s")
        assert unknown.value.args[0] == 1243
        assert value(one, "SELECT 1") == 1
        assert pins(one) == []
        rows(one, "PREPARE s FROM 'SELECT 2'")
        reset(one)
        assert pins(one) == []
        with pytest.raises(pymysql.MySQLError):
            rows(one, "EXECUTE s")


def reset(connection: Any) -> None:
    """COM_RESET_CONNECTION."""
    connection._execute_command(0x1F, b"")
    connection._read_ok_packet()


def test_names_that_mean_something_else_after_use_are_not_taken_for_known(small: SqlGateway) -> None:
    with small.connect() as one:
        rows(one, "CREATE TEMPORARY TABLE tmp (a INT)")
        rows(one, "PREPARE s FROM 'CREATE TEMPORARY TABLE other (a INT)'")
        rows(one, "PREPARE q FROM 'DROP TABLE tmp'")
        rows(one, "USE sbtest")
        rows(one, "CREATE TEMPORARY TABLE tmp (a INT)")
        rows(one, "EXECUTE s")
        rows(one, "EXECUTE q")
        rows(one, "DROP TEMPORARY TABLE tmp")
        for name in ("s", "q"):
            rows(one, f"DEALLOCATE PREPARE {name}")
        assert len(pins(one)) > 0  # shop.other is still there
        assert value(one, "SELECT COUNT(*) FROM shop.other") == 0
