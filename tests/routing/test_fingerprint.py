"""What the fold keeps and what it folds, and that it is linear on every input."""

from __future__ import annotations

import time

import pytest

from gateway.routing.fingerprint import Reading, fingerprint, folder

ANSI = Reading(ansi_quotes=True)
NO_BACKSLASH = Reading(no_backslash_escapes=True)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b"SELECT c FROM t WHERE id=17", b"SELECT c FROM t WHERE id=?"),
        (b"SELECT 'a', \"b\", 1.5, 1e9, 0x1F FROM t", b"SELECT ?, ?, ?, ?, ? FROM t"),
        (b"SELECT 'it''s', 'a\\'b' FROM t", b"SELECT ?, ? FROM t"),
        (b"SELECT t1.c2, `3`, `a'1'` FROM t1", b"SELECT t1.c2, `3`, `a'1'` FROM t1"),
        (b"SELECT a1a, t.1, @v1, @'v 1' FROM t", b"SELECT a1a, t.1, @v1, @'v 1' FROM t"),
        (b"SELECT 2fa.id FROM 2fa WHERE a=0x1F", b"SELECT ?2fa.id? FROM ?2fa? WHERE a=?"),
        (b"SELECT 1.INTO FROM t", b"SELECT ?1.INTO? FROM t"),
        (b"SELECT a->'$.x', 1-/* c */-1, 5---1 -- x", b"SELECT a->?, ?- -?, ?---?"),
        (b"SELECT 1 /* a * b **/ / 2 /**/ + 3", b"SELECT ? / ? + ?"),
        (b"SELECT /* why 1 */ a -- one\n FROM t # two", b"SELECT a FROM t"),
        (b"SELECT '/* no comment */', 5--1", b"SELECT ?, ?--?"),
        (b"SELECT `--1`, '-- x'", b"SELECT `--1`, ?"),
        (b"SELECT 'open", b"SELECT ?'open"),
        (b"SELECT 1 /* open 2", b"SELECT ? /* open ?"),
    ],
)
def test_literals_and_comments_are_folded_and_nothing_else(text: bytes, shown: bytes) -> None:
    assert fingerprint(text) == shown


def test_the_modes_of_the_session_decide_what_is_a_string() -> None:
    assert fingerprint(b"SELECT \"a\", 'b'", ANSI) == b'SELECT "a", ?'
    assert fingerprint(b"SELECT 'a\\', 2", NO_BACKSLASH) == b"SELECT ?, ?"
    assert fingerprint(b"SELECT 'a\\', 2") == b"SELECT ?'a\\', 2"


def test_long_lists_share_a_fold_and_short_ones_do_not() -> None:
    fold = folder(False, False).fold

    def query(length: int) -> bytes:
        return b"SELECT a FROM t WHERE b IN (" + b", ".join(b"%d" % i for i in range(length)) + b") AND c"

    assert fold(query(20)) == fold(query(200))
    assert fold(query(2)) != fold(query(3))


def test_hints_are_part_of_the_fold() -> None:
    fold = folder(False, False).fold
    plain = fold(b"SELECT 1")
    primary = fold(b"/* gateway: primary */ SELECT 1")
    replica = fold(b"/* gateway: replica, max_lag=5 */ SELECT 1")
    assert len({plain, primary, replica, fold(b"/* gateway: replica, max_lag=6 */ SELECT 1")}) == 4
    assert fold(b"/* other */ SELECT 1") == fold(b"/* comment */ SELECT 1")


@pytest.mark.parametrize("text", [b"SELECT 1 /*! , 2 */", b"SELECT 1 /*M! , 2 */", b"/*!50701 DELETE FROM t */"])
def test_texts_with_executable_comments_are_not_folded(text: bytes) -> None:
    assert folder(False, False).fold(text) is None


@pytest.mark.parametrize(
    "unit",
    [
        b"\\'",
        b"'",
        b'"',
        b"`",
        b"/*",
        b"*/",
        b"/* '",
        b"-- ",
        b"--",
        b"#",
        b"'\\",
        b"1",
        b"1.",
        b"1e",
        b"0x",
        b"@",
        b"@'",
        b"a.",
        b"(",
        b"'a",
        b"`'",
        b"\\",
        b"/*gateway:",
        b"/* gateway",
        b"?,",
        b"1,",
        b" ",
        b"\xff",
        b"\x00",
        b"-",
        b"e1",
        b".1",
        b"1a",
        b"''",
        b"'\\'",
        b"/**/",
    ],
)
@pytest.mark.parametrize("head", [b"", b"SELECT '", b"SELECT `", b"SELECT /*", b'SELECT "'])
def test_the_fold_is_linear_on_every_input(unit: bytes, head: bytes) -> None:
    """A quadratic pattern takes 64 times as long for eight times the text; a linear one about 8 times."""
    fold = folder(False, False).fold

    def seconds(size: int) -> float:
        text = head + unit * (size // len(unit))
        best = 1.0
        for _ in range(2):
            started = time.process_time()
            fold(text)
            best = min(best, time.process_time() - started)
        return best

    assert seconds(64_000) < 32 * seconds(8_000) + 0.05


def test_a_megabyte_of_escaped_quotes_folds_in_a_fraction_of_a_second() -> None:
    fold = folder(False, False).fold
    for unit in (b"\\'", b"/*", b'"', b"`"):
        started = time.process_time()
        fold(b"SELECT '" + unit * (1_000_000 // len(unit)))
        assert time.process_time() - started < 1.0
