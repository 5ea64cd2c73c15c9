"""Long texts: what shortening leaves out changes no class, and nothing unbounded reaches lexer, parser or resolver."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sql_corpus import ENTRIES
from sql_grammar import STATEMENTS

from gateway.routing import sql_long, sql_query, sql_text, sql_tokens, sql_tree
from gateway.routing.fingerprint import Reading
from gateway.routing.operation import Column, Kind, PinCause, SqlOperation, Table, TransactionEffect
from gateway.routing.sql import Classifier, classify_text
from gateway.routing.sql_asks import diagnosed
from gateway.routing.sql_long import LEX_BYTES, MATCHES, shorten, unread
from gateway.routing.sql_text import SHAPES, classify_short

MARIADB = Reading(mariadb=True, version=(10, 11))
READINGS = [Reading(), MARIADB, Reading(ansi_quotes=True), Reading(no_backslash_escapes=True, mariadb=True)]
BLOB = b"'" + b"a(b);--#/*!@:= '' \\' " * 600 + b"'"
ROWS = b",".join(b"(%d,'%d@x.org; (\\'',NULL,-1.5e3,0x4a)" % (number, number) for number in range(3_000))
BYTES = 200_000
NOTHING_STICKS = (None, PinCause.UNPROVEN)
"""Pins without which nothing is lost: a query in which servers may see other words, but none of them sticks."""


def is_as_strict(short: SqlOperation, full: SqlOperation) -> bool:
    """Whether what is made of a shortened text is right: no read that was none, no pin less, nothing unseen."""
    if short.kind is Kind.READ and full.kind not in (Kind.READ, Kind.UNKNOWN):
        return False
    if short.kind is Kind.READ and full.kind is Kind.UNKNOWN and "parse" not in full.reason:
        return False
    return not (full.pin is not None and short.pin is None) and not (full.multi and not short.multi)


def test_the_corpus_without_its_literals_is_no_more_than_it_was() -> None:
    shortened = 0
    for entry in ENTRIES:
        for reading in entry.readings:
            full = classify_short(entry.sql, reading)[0]
            text = shorten(entry.sql, reading, kept_bytes=0)
            if text is not None:
                shortened += 1
                assert is_as_strict(sql_long.as_shortened(classify_short(text, reading)[0]), full), (entry.sql, text)
            seen = unread(entry.sql, reading)
            assert seen.kind is not Kind.READ
            whole = entry.sql.count(b"(") == entry.sql.count(b")")
            assert not whole or seen.pin is not None or full.pin in NOTHING_STICKS, entry.sql
            assert seen.multi or not full.multi, entry.sql
    assert shortened > 1_000


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(STATEMENTS, st.sampled_from(READINGS))
def test_generated_statements_without_their_literals_are_no_more_than_they_were(sql: bytes, reading: Reading) -> None:
    text = shorten(sql, reading, kept_bytes=0)
    full = classify_short(sql, reading)[0]
    if text is not None:
        assert is_as_strict(sql_long.as_shortened(classify_short(text, reading)[0]), full), (sql, text)
    assert unread(sql, reading).pin is not None or full.pin in NOTHING_STICKS, sql


@pytest.mark.parametrize(
    ("tail", "pin", "kind"),
    [
        (b"", None, Kind.WRITE),
        (b" ON DUPLICATE KEY UPDATE b = VALUES(b)", None, Kind.WRITE),
        (b",(1, NOW(), UUID(), 'x', 5)", None, Kind.WRITE),
        (b",(1, evil(1), 2, 3, 4)", PinCause.PROCEDURE, Kind.WRITE),
        (b",(1, 5lower(1), 2, 3, 4)", PinCause.PROCEDURE, Kind.WRITE),
        (b",(1, @a := 1, 2, 3, 4)", PinCause.USER_VARIABLE, Kind.WRITE),
        (b"; SET @a = UUID()", PinCause.USER_VARIABLE, Kind.UNKNOWN),
        (b"; DELETE FROM t", None, Kind.WRITE),
        (b";", None, Kind.WRITE),
    ],
)
@pytest.mark.parametrize("reading", [Reading(), MARIADB])
def test_a_bulk_insert_is_an_ordinary_write(tail: bytes, pin: PinCause | None, kind: Kind, reading: Reading) -> None:
    sql = b"INSERT INTO `t` (`a`, b, c, d, e) VALUES " + ROWS + tail
    operation = Classifier().classify(sql, reading)
    assert (operation.kind, operation.pin) == (kind, pin)
    assert operation.transaction is TransactionEffect.NONE
    assert operation.writes[0] == Table("t")
    assert operation == classify_text(sql, reading)[0]
    if not tail:
        assert operation.columns == {Column(name, Table("t")) for name in "abcde"}
        assert operation.tables_complete


@pytest.mark.parametrize("rows", [200, 5_000])
def test_rows_with_calls_are_not_left_out_and_pin_only_if_a_call_does(rows: int) -> None:
    def insert(row: bytes) -> SqlOperation:
        return Classifier().classify(b"INSERT INTO t (a, b) VALUES " + b",".join([row] * rows), MARIADB)

    plain = insert(b"(NOW(), 'it;s (@x)' /* n */)")
    assert (plain.kind, plain.pin) == (Kind.WRITE, None)
    for row in (b"(evil(1), 2)", b"(LAST_INSERT_ID(7), 2)", b"(COUNT (1), 2)", b"(POINT(1), 2)", b"(`now`(), 2)"):
        assert insert(row).pin is not None, row


@pytest.mark.parametrize(
    "sql",
    [
        b"SELECT a FROM t WHERE b IN (" + b",".join(b"%d" % number for number in range(150_000)) + b")",
        b"SELECT a FROM t WHERE b IN (" + b" , ".join(b"'x%d;'" % number for number in range(50_000)) + b")",
        b"SELECT a FROM t WHERE (b, c) IN (" + b",".join(b"(%d, 'y')" % number for number in range(50_000)) + b")",
        b"SELECT a FROM t WHERE b = " + BLOB + b" AND c = x'" + b"4a" * 9_000 + b"' LIMIT 5",
        b"/*" + b" padding" * 100_000 + b"*/ SELECT a FROM t -- " + b"x" * 9_000,
        b"SELECT a FROM t WHERE b = " + b"1" * 900_000,
    ],
)
def test_long_reads_whose_length_is_their_literals_stay_reads(sql: bytes) -> None:
    for reading in (Reading(), MARIADB):
        operation = Classifier().classify(sql, reading)
        assert (operation.kind, operation.reads, operation.pin) == (Kind.READ, (Table("t"),), None)


def test_what_hides_behind_long_literals_is_seen() -> None:
    for tail, kind in (
        (b" INTO OUTFILE 'x'", Kind.WRITE),
        (b" FOR UPDATE", Kind.WRITE),
        (b" OR evil(1)", Kind.UNKNOWN),
        (b"; DROP TABLE t", Kind.WRITE),
        (b"; SET autocommit = 0", Kind.UNKNOWN),
        (b" /*! INTO OUTFILE 'x' */", Kind.UNKNOWN),
        (b" 'open", Kind.UNKNOWN),
    ):
        sql = b"SELECT a FROM t WHERE b IN (" + b"1,2," * 9_000 + b"3)" + tail
        assert Classifier().classify(sql).kind is kind, tail
        assert Classifier().classify(sql + b" " + BLOB).kind is not Kind.READ


def test_values_that_matter_are_not_taken_from_a_shortened_text() -> None:
    operation = Classifier().classify(b"SET @a = " + BLOB)
    assert (operation.kind, operation.pin, operation.assignments) == (Kind.UNKNOWN, PinCause.UNPROVEN, ())
    hinted = Classifier().classify(b"/* gateway: primary */ SELECT a FROM t WHERE b = " + BLOB)
    assert (hinted.kind, hinted.hint.to) == (Kind.READ, "primary")


def test_statements_that_nobody_has_seen_are_the_most_that_they_could_be() -> None:
    words = b" AND ".join(b"c%d = d%d" % (number, number) for number in range(2_000))
    operation = Classifier().classify(b"SELECT a FROM t WHERE " + words + b"; DROP VIEW v")
    assert (operation.kind, operation.multi, operation.pin) == (Kind.UNKNOWN, True, PinCause.UNPROVEN)
    assert operation.statement == "select; unread"
    many = Classifier().classify(b";".join(b"SELECT a%d" % number for number in range(SHAPES + 1)))
    assert (many.kind, many.multi, many.pin) == (Kind.UNKNOWN, True, PinCause.UNPROVEN)
    alike = Classifier().classify(b";".join(b"UPDATE t SET a = %d" % number for number in range(300)))
    assert (alike.kind, alike.multi, alike.pin) == (Kind.WRITE, True, None)
    alone = Classifier().classify(b"SELECT a FROM t WHERE " + words + b" ; ")
    assert (alone.kind, alone.multi, alone.pin) == (Kind.UNKNOWN, False, None)


QUOTES = rb"""\' ' '' " ` x' 'a' 'a', ('('), /* */ /**/ /*! -- #"""
SIGNS = rb"( ) ; , ? @ @@ := - / = . (1), ,(1) 0x 1 1, 1+ 1e a a, a( a. a; (1,NOW()),"
UNITS = [*QUOTES.split(), *SIGNS.split(), b" ", b"\0", b"\n", b"-- \n", b"\xc3\xbc", b"\xff", b"WHEN 1 THEN 'x' "]
HEADS = (b"SELECT ", b"SELECT '", b"INSERT INTO t VALUES (")


@pytest.mark.parametrize("reading", [Reading(), Reading(ansi_quotes=True, no_backslash_escapes=True)])
def test_the_work_on_a_long_text_is_bounded(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not timed but counted: what is split into tokens and parsed, and how often a pattern matches."""
    work: Counter[str] = Counter()
    lex, pieces = sql_tokens.lex, sql_tokens.canonical_pieces

    class Counted:
        def __init__(self, pattern: re.Pattern[bytes]) -> None:
            self._pattern = pattern

        def finditer(self, sql: bytes, start: int = 0) -> Any:
            for match in self._pattern.finditer(sql, start):
                work["matches"] += 1
                yield match

    def counted_lex(sql: bytes, *rest: Any) -> Any:
        work["lexed"] += len(sql)
        return lex(sql, *rest)

    def counted_pieces(tokens: Any) -> list[str]:
        work["parsed"] += len(found := pieces(tokens))
        return found

    literals, sticking = sql_long._literals, sql_long._sticking
    monkeypatch.setattr(sql_long, "_literals", lambda *modes: Counted(literals(*modes)))
    monkeypatch.setattr(sql_long, "_sticking", lambda *modes: Counted(sticking(*modes)))
    monkeypatch.setattr(sql_text, "lex", counted_lex)
    monkeypatch.setattr(sql_long, "lex", counted_lex)
    monkeypatch.setattr(sql_query, "canonical_pieces", counted_pieces)
    for unit in UNITS:
        for head in HEADS:
            work.clear()
            Classifier().classify(head + unit * (BYTES // len(unit)), reading)
            assert work["lexed"] <= 9 * LEX_BYTES, (unit, head)
            assert work["parsed"] <= 9 * LEX_BYTES, (unit, head)
            assert work["matches"] <= MATCHES + LEX_BYTES + BYTES // 256, (unit, head)


@pytest.mark.parametrize(
    "sql",
    [
        b"SELECT " + b"DATE(" * 40 + b"1" + b")" * 40,
        b"SELECT " + b"CHAR(" * 40 + b"1" + b")" * 40,
        b"SELECT " + b"SORT_ARRAY(1," * 40 + b"1" + b")" * 40,
        b"SELECT 1 FROM " + b"STRUCT(" * 40 + b"1" + b")" * 40,
        b"SELECT " + b"a(" * 4_000,
        b"SELECT " + b",".join(b"c%d" % n for n in range(300)) + b" FROM " + b",".join(b"t%d" % n for n in range(300)),
        b"SELECT /*!50000 1, */ /*!50001 1, */ /*M! 2, */" + b"a+" * 3_900 + b"1",
        b"SELECT " + b"a+" * 1_000 + b"(SELECT 1 FROM " + b"t," * 300 + b"t)" + b"+1" * 200,
        b"WITH " + b",".join(b"c%d AS (SELECT 1)" % n for n in range(200)) + b" SELECT 1 FROM " + b"t," * 400 + b"t",
    ],
)
def test_short_texts_that_took_seconds_are_given_up_in_bounded_steps(sql: bytes) -> None:
    """Each of them took up to 91 s; here they would run into the test's own limit."""
    for reading in READINGS[:2]:
        assert classify_text(sql, reading)[0].kind in (Kind.READ, Kind.UNKNOWN)


def test_the_steps_from_columns_to_tables_are_counted() -> None:
    def steps(columns: int, tables: int) -> int:
        names = ", ".join(f"c{number}" for number in range(columns))
        sources = ", ".join(f"t{number}" for number in range(tables))
        tree = sql_tree.parse(f"SELECT {names} FROM {sources}")
        counted: list[sql_tree.Climb] = []
        made = sql_tree.Climb

        def climb() -> sql_tree.Climb:
            counted.append(made())
            return counted[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sql_tree, "Climb", climb)
            sql_tree.touched(tree)
        return sum(sql_tree.STEPS - one.left for one in counted)

    assert steps(200, 1) <= 8 * 200
    assert steps(20, 20) <= 8 * (20 * 20)
    with pytest.raises(sql_tree.UnprovenError, match="too many names"):
        steps(300, 300)


def test_a_long_or_of_many_terms_keeps_its_columns() -> None:
    sql = b"SELECT a FROM t WHERE " + b" OR ".join(b"b = %d" % number for number in range(400))
    operation = classify_text(sql, Reading())[0]
    assert operation.kind is Kind.READ
    assert operation.columns == {Column("a", Table("t")), Column("b", Table("t"))}


@pytest.mark.parametrize(
    "sql", [b"KILL %b", b"KILL QUERY %b", b"SELECT %b", b"SET wait_timeout = %b", b"SELECT 1 LIMIT %b"]
)
def test_numbers_of_thousands_of_digits_are_only_text(sql: bytes) -> None:
    for digits in (4_299, 5_000, 9_000):
        assert classify_text(sql % (b"9" * digits), Reading())[0].kill is None
    assert diagnosed(b"GET DIAGNOSTICS CONDITION " + b"9" * 5_000 + b" @a = MESSAGE_TEXT", Reading()) is None
