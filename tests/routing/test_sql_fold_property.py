"""The class from the cache of folds is the class of a full reading, for every statement; any bytes are taken."""

from __future__ import annotations

import os
import re
from typing import Final

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sql_corpus import ENTRIES
from sql_grammar import LITERALS, STATEMENTS

from gateway.routing.fingerprint import Reading, folder_of
from gateway.routing.operation import Kind, SqlOperation
from gateway.routing.sql import Classifier, classify_text

EXAMPLES: Final = int(os.environ.get("GATEWAY_FUZZ_EXAMPLES", "300"))
READINGS: Final = [
    Reading(),
    Reading(mariadb=True, version=(10, 11)),
    Reading(ansi_quotes=True, ignore_space=True),
    Reading(no_backslash_escapes=True),
    Reading(mariadb=True, ignore_space=True),
    Reading(utf8=False),
    Reading(oracle_mode=True),
]
LITERAL: Final = re.compile(rb"(?<![\w@.`'\"\\])(?:[0-9]+(?![\w.'\"])|'[A-Za-z ]*'(?![\w'\"]))")
SIDE_BY_SIDE: Final = re.compile(rb"\?\?\s*\?\?")
"""Strings side by side are one string. With a number among them the text is refused by servers, whatever its class."""


def cannot_parse(operation: SqlOperation) -> bool:
    """Unknown for its form alone: no token of it does anything but read, and nothing sticks."""
    return operation.kind is Kind.UNKNOWN and operation.pin is None


def agree(cached: SqlOperation, full: SqlOperation) -> bool:
    """Whether two readings of texts with one fold mean the same.

    A literal of another sort where the grammar allows only one (`DATE 5`) makes a text that does not parse of one that
    does; servers refuse such a text, so either class is right.
    """
    if cached == full:
        return True
    return (
        cannot_parse(cached) != cannot_parse(full)
        and {cached.pin, full.pin} == {None}
        and ({cached.kind, full.kind} <= {Kind.READ, Kind.UNKNOWN})
    )


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(STATEMENTS, st.sampled_from(READINGS), st.lists(LITERALS, min_size=1, max_size=4), st.randoms())
def test_texts_with_one_fold_have_one_class(sql: bytes, reading: Reading, literals: list[str], dice: object) -> None:
    """Other literals in a text that leave its fold alone leave its class alone, whichever came first."""
    fold = folder_of(reading).fold
    number = iter(range(10_000))

    def other(_: re.Match[bytes]) -> bytes:
        return literals[next(number) % len(literals)].encode()

    changed = LITERAL.sub(other, sql)
    folded = fold(sql)
    if folded is None or fold(changed) != folded or SIDE_BY_SIDE.search(folded):
        return
    for first, second in ((sql, changed), (changed, sql)):
        classifier = Classifier()
        classifier.classify(first, reading)
        cached, full = classifier.classify(second, reading), classify_text(second, reading)[0]
        assert agree(cached, full), (first, second, cached, full)


def test_the_whole_corpus_through_one_cache_is_what_it_is_alone() -> None:
    for reading in READINGS[:2]:
        shared = Classifier()
        folds: dict[bytes, bytes] = {}
        for entry in ENTRIES:
            folded = folder_of(reading).fold(entry.sql)
            first = folds.setdefault(folded, entry.sql) if folded is not None else entry.sql
            cached, full = shared.classify(entry.sql, reading), classify_text(entry.sql, reading)[0]
            assert agree(cached, full), (first, entry.sql, cached, full)


def test_the_number_of_arguments_survives_in_the_fold() -> None:
    rows = b"".join(b", (%d)" % number for number in range(30))
    for reading in READINGS:
        fold = folder_of(reading).fold
        assert fold(b"SELECT LAST_INSERT_ID()" + rows) != fold(b"SELECT LAST_INSERT_ID(7)" + rows)
        assert fold(b"SELECT POINT(1)" + rows) != fold(b"SELECT POINT(1, 2)" + rows)
    classifier = Classifier()
    assert classifier.classify(b"SELECT LAST_INSERT_ID()" + rows).kind is Kind.READ
    assert classifier.classify(b"SELECT LAST_INSERT_ID(7)" + rows).kind is Kind.SESSION


def test_under_ignore_space_a_comment_is_no_space() -> None:
    reading = Reading(ignore_space=True)
    classifier = Classifier()
    assert classifier.classify(b"SELECT COUNT (1) FROM t", reading).kind is Kind.READ
    assert classifier.classify(b"SELECT COUNT/**/(1) FROM t", reading).kind is Kind.UNKNOWN
    padding = b"'" + b"x" * 9_000 + b"'"
    assert classifier.classify(b"SELECT COUNT (1), " + padding, reading).kind is Kind.READ
    assert classifier.classify(b"SELECT COUNT/**/(1), " + padding, reading).kind is Kind.UNKNOWN


def test_a_nul_in_a_long_text_proves_nothing() -> None:
    text = b"SELECT a FROM t WHERE b = '" + b"x" * 9_000 + b"'"
    assert Classifier().classify(text).kind is Kind.READ
    assert Classifier().classify(text + b"\0 INTO OUTFILE 'x'").kind is not Kind.READ
    assert Classifier().classify(text + b" /* gateway: replica */").kind is Kind.READ


def test_a_long_insert_with_a_query_in_it_names_the_tables_that_it_reads() -> None:
    rows = b",".join(b"(%d,'x')" % number for number in range(300))
    hidden = b"INSERT INTO t (a, b) VALUES (1,(SELECT password FROM accounts))," + rows
    assert [table.name for table in Classifier().classify(hidden).reads] == ["accounts"] or not (
        Classifier().classify(hidden).tables_complete
    )
    named = b"INSERT INTO old_values (a, b) SELECT a,(SELECT b FROM u),'" + b"x" * 1_200 + b"' FROM v"
    assert Classifier().classify(named).writes[0].name == "old_values"
    more = b"INSERT INTO t (a, b) VALUES " + rows + b" ON DUPLICATE KEY UPDATE secret = 'y'"
    columns = {column.name for column in Classifier().classify(more).columns}
    assert "secret" in columns or "*" in columns


@settings(max_examples=EXAMPLES)
@given(st.binary(max_size=200), st.sampled_from(READINGS))
def test_any_bytes_are_classified(noise: bytes, reading: Reading) -> None:
    classifier = Classifier()
    for text in (noise, b"SELECT " + noise, b"INSERT INTO t VALUES (" + noise, noise * 60):
        assert classifier.classify(text, reading) == classifier.classify(text, reading)
