"""The classifier as a whole: caches, limits, hints, and what an operation says beside its class."""

from __future__ import annotations

import logging
import time
import tracemalloc

import pytest

from gateway.routing.fingerprint import Reading
from gateway.routing.operation import Assignment, Column, Hint, Kind, PinCause, Scope, Table
from gateway.routing.sql import Classifier, classify_text
from gateway.routing.sql_cache import Cache

T, U, V = Table("t"), Table("u"), Table("v", "db")
MARIADB = Reading(mariadb=True)


def test_one_operation_is_shared_by_all_texts_of_one_fold() -> None:
    classifier = Classifier()
    first = classifier.classify(b"SELECT a FROM t WHERE id = 1")
    assert classifier.classify(b"SELECT a FROM t WHERE id = 1") is first
    assert classifier.classify(b"SELECT a FROM t WHERE id = 2 -- x") is not None
    assert classifier.classify(b"SELECT a FROM t WHERE id = 'y'") is first
    assert classifier.statistics().parses == 2


def test_the_same_text_is_read_anew_under_another_reading() -> None:
    classifier = Classifier()
    sql = b"SELECT BIN_TO_UUID(a) FROM t"
    assert classifier.classify(sql, Reading()).kind is Kind.READ
    assert classifier.classify(sql, MARIADB).kind is Kind.UNKNOWN
    assert classifier.classify(sql, Reading()).kind is Kind.READ


def test_the_version_decides_what_is_a_built_in() -> None:
    sql = b"SELECT NATURAL_SORT_KEY(a) FROM t"
    assert classify_text(sql, Reading(mariadb=True, version=(10, 6)))[0].kind is Kind.UNKNOWN
    assert classify_text(sql, Reading(mariadb=True, version=(10, 11)))[0].kind is Kind.READ


def test_a_value_of_set_is_never_taken_from_another_text() -> None:
    classifier = Classifier()
    for value in ("0", "1", "'a'", "0"):
        operation = classifier.classify(f"SET autocommit = {value}".encode())
        assert operation.assignments == (Assignment(Scope.SESSION, "autocommit", value),)


def test_a_hint_is_never_taken_from_another_text() -> None:
    classifier = Classifier()
    hints = [
        ("primary", Hint(to="primary")),
        ("replica", Hint(to="replica")),
        ("replica, max_lag=5s", Hint(to="replica", max_lag=5.0)),
        ("replica, max_lag=250ms, consistency=eventual", Hint("replica", "eventual", 0.25)),
        ("max_lag=2m, freshness_wait=1s", Hint(max_lag=120.0, freshness_wait=1.0)),
        ("nonsense", Hint(problem="hint not understood: 'nonsense'")),
        ("max_lag=5", Hint(problem="hint not understood: 'max_lag=5'")),
        ("primary, replica", Hint(problem="hint asks for both primary and replica")),
    ]
    for text, hint in hints * 2:
        for sql in (f"/* gateway: {text} */ SELECT a FROM t WHERE id = 1", f"SELECT 1 /*gateway:{text}*/"):
            assert classifier.classify(sql.encode()).hint == hint
    assert classifier.classify(b"SELECT a FROM t WHERE id = 1").hint == Hint()
    assert classifier.classify(b"SELECT '/* gateway: primary */'").hint == Hint()


@pytest.mark.parametrize(
    ("sql", "assignments"),
    [
        ("SET NAMES utf8mb4", [(Scope.NAMES, "names", "utf8mb4")]),
        ("SET NAMES 'utf8mb4' COLLATE utf8mb4_bin", [(Scope.NAMES, "names", "'utf8mb4' COLLATE utf8mb4_bin")]),
        ("SET @A = 'x', @b := -2", [(Scope.USER, "a", "'x'"), (Scope.USER, "b", "-2")]),
        ("SET SESSION SQL_MODE = 'ANSI'", [(Scope.SESSION, "sql_mode", "'ANSI'")]),
        ("SET @@session.time_zone = '+01:00'", [(Scope.SESSION, "time_zone", "'+01:00'")]),
        ("SET AUTOCOMMIT=OFF", [(Scope.SESSION, "autocommit", "OFF")]),
        (
            "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
            [(Scope.SESSION, "transaction_isolation", "'READ-COMMITTED'")],
        ),
        ("SET tx_isolation = 'SERIALIZABLE'", [(Scope.SESSION, "transaction_isolation", "'SERIALIZABLE'")]),
        ("SET character_set_results = NULL", [(Scope.SESSION, "character_set_results", "NULL")]),
        ("SET GLOBAL a = 1, @x = 5", [(Scope.USER, "x", "5")]),
    ],
)
def test_literals_of_set_can_be_replayed(sql: str, assignments: list[tuple[Scope, str, str]]) -> None:
    assert classify_text(sql.encode(), MARIADB)[0].assignments == tuple(Assignment(*values) for values in assignments)


def test_bytes_of_any_character_set_survive_in_names_and_values() -> None:
    operation = classify_text(b"SET @a = '\xe4\xff'", Reading(utf8=False))[0]
    assert operation.assignments[0].value.encode("utf-8", "surrogateescape") == b"'\xe4\xff'"
    table = classify_text(b"SELECT a FROM `t\xe4`", Reading(utf8=False))[0].reads[0]
    assert table.name.encode("utf-8", "surrogateescape") == b"t\xe4"


@pytest.mark.parametrize(
    ("sql", "reads", "writes", "columns"),
    [
        ("SELECT a FROM t", [T], [], {("a", T)}),
        ("SELECT x.a FROM t AS x", [T], [], {("a", T)}),
        ("SELECT a FROM t JOIN u ON t.i = u.j", [T, U], [], {("a", T), ("a", U), ("i", T), ("j", U)}),
        ("SELECT * FROM t", [T], [], {("*", T)}),
        ("SELECT x.* FROM t, db.v x", [T, V], [], {("*", V)}),
        ("SELECT COUNT(*) FROM t", [T], [], set()),
        ("SELECT d.b FROM (SELECT a AS b FROM t) d", [T], [], {("a", T)}),
        ("SELECT b FROM (SELECT * FROM t) d", [T], [], {("*", T)}),
        ("SELECT _ssn'x', _latin1'y' FROM t", [T], [], {("_ssn", T)}),
        ("WITH x AS (SELECT a FROM t) SELECT a FROM x", [T], [], {("a", T)}),
        ("WITH t AS (SELECT a FROM t) SELECT a FROM t", [T], [], {("a", T)}),
        ("WITH x (n) AS (SELECT a FROM u), y AS (SELECT n FROM x) SELECT n FROM y", [U], [], {("a", U)}),
        ("SELECT a FROM t WHERE i IN (SELECT j FROM u)", [T, U], [], {("a", T), ("i", T), ("j", T), ("j", U)}),
        ("SELECT a FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.i = t.j)", [T, U], [], {("a", T), ("i", U), ("j", T)}),
        ("SELECT a FROM t JOIN u USING (i)", [T, U], [], {("a", T), ("a", U), ("i", T), ("i", U)}),
        ("SELECT 1 FROM t NATURAL JOIN u", [T, U], [], {("*", T), ("*", U)}),
        ("SELECT a FROM (t, u)", [T, U], [], {("a", T), ("a", U)}),
        ("SELECT a FROM t UNION SELECT b FROM u", [T, U], [], {("a", T), ("b", U)}),
        ("SELECT q.a FROM t", [T], [], {("a", None)}),
        ("SELECT db.v.a FROM db.v", [V], [], {("a", V)}),
        ("TABLE t", [T], [], {("*", T)}),
        ("SELECT * FROM t FOR UPDATE", [T], [], {("*", T)}),
        ("INSERT INTO t (a, b) VALUES (1, 2)", [], [T], {("a", T), ("b", T)}),
        ("INSERT INTO t VALUES (1)", [], [T], {("*", T)}),
        ("INSERT INTO t (a) SELECT b FROM u", [U], [T], {("a", T), ("b", U), ("b", T)}),
        ("REPLACE INTO db.v (a) VALUES (1)", [], [V], {("a", V)}),
        ("UPDATE t SET a = b WHERE c = 1", [], [T], {("a", T), ("b", T), ("c", T)}),
        ("UPDATE t x JOIN u ON x.i = u.i SET x.a = u.b", [U], [T], {("a", T), ("b", U), ("i", T), ("i", U)}),
        ("DELETE FROM t WHERE a = 1", [], [T], {("*", T), ("a", T)}),
        ("DELETE x FROM t x JOIN u ON x.i = u.i WHERE u.a = 1", [U], [T], {("*", T), ("i", T), ("i", U), ("a", U)}),
    ],
)
def test_tables_and_columns(
    sql: str, reads: list[Table], writes: list[Table], columns: set[tuple[str, Table | None]]
) -> None:
    operation = classify_text(sql.encode(), Reading())[0]
    assert list(operation.reads) == reads
    assert list(operation.writes) == writes
    assert operation.columns == {Column(*column) for column in columns}
    assert operation.tables_complete


@pytest.mark.parametrize(
    "sql", ["SELECT evil(1)", "SELECT * FROM t WHERE", "CALL p()", "DROP TABLE t", "FOO", "SHOW FOO"]
)
def test_what_is_not_understood_may_touch_anything(sql: str) -> None:
    assert not classify_text(sql.encode(), MARIADB)[0].tables_complete


def test_functions_and_variables_are_listed_in_lower_case() -> None:
    operation = classify_text(b"SELECT NOW(), CURRENT_USER, Lower(@X), @`y Z` FROM t", Reading())[0]
    assert operation.functions == {"now", "current_user", "lower"}
    assert operation.user_variables == {"x", "y z"}


def test_temporary_tables_and_use_and_gateway() -> None:
    assert classify_text(b"CREATE TEMPORARY TABLE db.v (a INT)", Reading())[0].temporary_tables == (V,)
    assert classify_text(b"USE `my db`", Reading())[0].database == "my db"
    assert classify_text(b"SHOW GATEWAY LAST ROUTE", Reading())[0].gateway == "LAST ROUTE"
    assert classify_text(b"set gateway token = 'ab.c'", Reading())[0].gateway == "token = 'ab.c'"


def rows(count: int) -> bytes:
    return b",".join(b"(%d,'x(%d)','it''s')" % (i, i) if i % 2 else b"(%d,'x','y')" % i for i in range(count))


def test_a_long_insert_is_known_by_its_head() -> None:
    classifier = Classifier()
    plain = b"INSERT INTO t (a, b, c) VALUES " + b",".join([b"(1,'x','y')"] * 400)
    operation = classifier.classify(plain)
    assert (operation.kind, operation.writes, operation.pin) == (Kind.WRITE, (T,), None)
    assert operation.columns == {Column("a", T), Column("b", T), Column("c", T)}
    assert classifier.classify(plain + b",(2,'x','z')") is operation


@pytest.mark.parametrize(
    ("tail", "pin"),
    [
        (b",(GET_LOCK('a',1),2,3)", PinCause.NAMED_LOCK),
        (b",(evil(1),2,3)", PinCause.PROCEDURE),
        (b",(@a:=1,2,3)", PinCause.USER_VARIABLE),
        (b",((SELECT evil(1)),2,3)", PinCause.PROCEDURE),
        (b" ON DUPLICATE KEY UPDATE a=evil(2)", PinCause.PROCEDURE),
        (b"; SET @a=UUID()", PinCause.USER_VARIABLE),
        (b"", None),
        (b" ON DUPLICATE KEY UPDATE a=VALUES(a)", None),
    ],
)
@pytest.mark.parametrize("count", [50, 200, 2_000, 20_000])
def test_what_pins_is_seen_at_the_end_of_a_long_insert(tail: bytes, pin: PinCause | None, count: int) -> None:
    operation = Classifier().classify(b"INSERT INTO t (a,b,c) VALUES " + rows(count) + tail, MARIADB)
    assert operation.kind is not Kind.READ
    assert operation.pin in (pin, PinCause.UNPROVEN if pin else None)


def test_long_lists_are_parsed_without_their_length() -> None:
    sql = b"SELECT a FROM t WHERE id IN (" + b",".join(b"%d" % i for i in range(20_000)) + b")"
    operation = Classifier().classify(sql)
    assert (operation.kind, operation.reads) == (Kind.READ, (T,))


def test_what_is_too_long_to_parse_goes_to_the_primary_without_a_pin() -> None:
    sql = b"SELECT a FROM t WHERE " + b" OR ".join(b"c%d = %d" % (i, i) for i in range(2_000))
    operation = Classifier().classify(sql)
    assert (operation.kind, operation.pin) == (Kind.UNKNOWN, None)


@pytest.mark.parametrize("depth", [500, 3_000])
def test_deep_nesting_is_unknown_and_not_an_error(depth: int) -> None:
    for sql in (b"SELECT " + b"(" * depth + b"1" + b")" * depth, b"SELECT " + b"NOT " * depth + b"1"):
        assert Classifier().classify(sql, MARIADB).kind in (Kind.UNKNOWN, Kind.READ)


def test_invalid_sql_by_the_hundred_thousand_does_not_grow_memory() -> None:
    classifier = Classifier(exact_entries=512, plan_entries=512, cache_bytes=256 * 1024)
    for number in range(2_000):
        classifier.classify(b"SELECT FROM x%d WHERE (" % number + b"x" * (number % 900))
    tracemalloc.start()
    before = tracemalloc.take_snapshot()
    for number in range(2_000, 6_000):
        classifier.classify(b"SELECT FROM x%d WHERE (" % number + b"x" * (number % 900))
    grown = sum(change.size_diff for change in tracemalloc.take_snapshot().compare_to(before, "filename"))
    tracemalloc.stop()
    assert classifier.entries() <= 1_024
    assert grown < 3 * 1024 * 1024


def test_an_unparsable_text_costs_as_little_the_second_time() -> None:
    classifier = Classifier()
    for value in (b"1", b"2", b"3"):
        classifier.classify(b"SELECT FROM t WHERE ( = " + value)
    assert classifier.statistics().parses == 1


def test_the_cache_keeps_what_is_used_and_forgets_the_rest() -> None:
    operation = Classifier().classify(b"SELECT 1")
    cache = Cache(entries=8, size=1_000)
    cache.put(b"kept", operation)
    for number in range(100):
        cache.put(b"%d" % number, operation)
        assert cache.young.get(b"kept") or cache.old(b"kept")
    assert len(cache) <= 8
    for _ in range(10):
        cache.put(b"x" * 400, operation)
    assert cache.young.get(b"kept") is None


def test_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for sql in ("CALL p()", "PREPARE p FROM 'x'", "LOCK TABLES t READ", "SELECT 1 FOO BAR", "INSERT INTO t SET"):
            classify_text(sql.encode(), MARIADB)
    assert not caplog.records


def test_a_megabyte_of_anything_is_classified_at_once() -> None:
    for unit in (b"\\'", b"'", b'"', b"/*", b"`", b"(", b"1,", b"a ", b"--\n", b"/**/", b"/*!", b"\x00", b";", b"@"):
        for head in (b"SELECT ", b"INSERT INTO t VALUES ('", b""):
            started = time.perf_counter()
            Classifier().classify(head + unit * (1_000_000 // len(unit)))
            assert time.perf_counter() - started < 3.0, (unit, head)
