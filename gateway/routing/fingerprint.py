r"""Folds the text of a statement to what its class depends on: literals become `?`, comments one space.

The fold is the key of the classifier's second cache, so it runs for most queries and must be both cheap and linear. It
is one `findall` whose only group captures what stays, and one `join`: no Python code runs per match. Every quantifier
is possessive and every alternative that opens a quote also matches when the quote never closes, so that no input is
scanned twice (a backtracking pattern took 7.6 s for 64 KB of `\'`). What stands in a possessive group that is repeated
never fails after it has matched a part, unless a quote or comment does not end: up to CPython 3.11.4 (Debian 12 has
3.11.2) the group then ends at the wrong place (CPython issue 106052).

Two texts with one fold must have one class. Therefore the fold reads text exactly as `sql_tokens` does, everything that
is not certainly a literal stays as it is, and texts in which a literal decides (SET, SHOW GATEWAY, executable comments)
are not folded at all: `fold` returns None for them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

FOLD_BYTES: Final = 1024 * 1024
"""Longest text that is folded, in bytes. Dense text costs 8 ns per byte (measured), so at worst 8 ms; a text of this
size is mostly one long string, which costs a tenth of that."""

LIST_LENGTH: Final = 8
"""Longest list of literals that keeps its length in the fold; `IN` lists of any greater length share one entry."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What changes how the text of a statement is read: settings of the session and the server behind it.

    `version` is (major, minor) of the oldest member; (0, 0) means the oldest that is supported.
    """

    ansi_quotes: bool = False  # sql_mode ANSI_QUOTES: "x" is an identifier
    no_backslash_escapes: bool = False  # status flag SERVER_STATUS_NO_BACKSLASH_ESCAPES
    ignore_space: bool = False  # sql_mode or capability IGNORE_SPACE: COUNT (x) calls the built-in
    mariadb: bool = False
    unsafe_charset: bool = False  # gbk, sjis, big5, cp932, gb18030: a backslash may be half a character
    utf8: bool = True  # character_set_client is utf8mb3 or utf8mb4: bytes from 0x80 on are letters
    oracle_mode: bool = False  # sql_mode ORACLE
    version: tuple[int, int] = (0, 0)
    database: str | None = None  # what names without a database mean; it matters to the catalogue alone


DEFAULT_READING: Final = Reading()


WORD_START: Final = rb"A-Za-z_$\x80-\xff"
WORD_REST: Final = rb"0-9A-Za-z_$\x80-\xff"
NUMBER: Final = (
    rb"(?:0x[0-9a-fA-F]++|0b[01]++|(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][+-]?+[0-9]++)?+)"
    rb"(?![" + WORD_REST + rb".])"
)
"""A number that no letter or dot follows; what is glued together (`1.INTO`) is left for the lexer to call odd."""

BLOCK_COMMENT: Final = rb"/\*[^*]*+\*++(?:[^/*][^*]*+\*++)*+/"
LINE_COMMENT: Final = rb"(?:#|--(?=[\x00-\x20\x7f]|\Z))[^\n]*+"
EMPTY_COMMENT: Final = b"/**/"
HINT_HEAD: Final = re.compile(rb"/\*\s*+gateway\s*+:", re.IGNORECASE)


class QuotePatterns(NamedTuple):
    """Patterns of quoted text under one reading: alternatives without a group around them."""

    strings: bytes
    identifiers: bytes


@lru_cache(maxsize=8)
def quote_patterns(ansi_quotes: bool, no_backslash_escapes: bool) -> QuotePatterns:
    """Patterns of strings and quoted identifiers (MySQL manual: String Literals, Schema Object Names)."""

    def quoted(quote: bytes, backslash: bool) -> bytes:
        if backslash:
            rest = rb"[^" + quote + rb"\\]*+"
            return quote + rest + rb"(?:(?:" + quote + quote + rb"|\\[\s\S])" + rest + rb")*+" + quote
        rest = rb"[^" + quote + rb"]*+"
        return quote + rest + quote + rb"(?:" + quote + rest + quote + rb")*+"

    backslash = not no_backslash_escapes
    strings = [quoted(b"'", backslash)]
    identifiers = [quoted(b"`", False)]
    if ansi_quotes:
        identifiers.append(quoted(b'"', False))
    else:
        strings.append(quoted(b'"', backslash))
    return QuotePatterns(b"|".join(strings), b"|".join(identifiers))


_ROW = rb"\((?:\s|-)*+(?:\?|NULL|null|DEFAULT|default)(?:[?\s,.\-]|NULL|null|DEFAULT|default)*+\)"
_ROWS = re.compile(rb"(?:\s*+,\s*+" + _ROW + rb"){%d,}+" % LIST_LENGTH)
# The first row stays as it is: it may be the arguments of a function, whose number may decide what is called.
_LIST = re.compile(rb"\?\?(?:\s*+,\s*+\?\?){%d,}+" % LIST_LENGTH)


class Folder:
    """Folds texts under one way of quoting. Immutable after construction.

    `keep_gaps`: a comment leaves an empty comment behind instead of a space. Under IGNORE_SPACE the two differ:
    `COUNT (x)` calls the built-in, `COUNT/**/(x)` a stored function (tried).
    """

    __slots__ = ("_gap", "_parts", "_pieces", "_without_comments")

    def __init__(self, ansi_quotes: bool, no_backslash_escapes: bool, keep_gaps: bool = False) -> None:
        self._gap = EMPTY_COMMENT if keep_gaps else b" "
        strings, identifiers = quote_patterns(ansi_quotes, no_backslash_escapes)
        # Literals first: what the group does not capture, findall reports as an empty piece.
        self._pieces = re.compile(
            strings + rb"|" + NUMBER + rb"|((?:"
            rb"[" + WORD_START + rb".][" + WORD_REST + rb".]*+[\s(),=<>]*+"
            rb"|[\s(),=<>*+\-/%!&|^~;:?{}\[\]\\#\x00-\x1f\x7f]++"
            rb"|@(?:(?:" + strings + rb")|[" + WORD_REST + rb".]*+)"
            rb"|" + identifiers + rb")++"
            rb"|[0-9]++[" + WORD_REST + rb".]*+"  # a name that begins with digits, or nothing known: a piece of its own
            rb"|['\"`][\s\S]*+)"
        ).findall
        # Without comments; and with the comments, for texts that have a hint.
        kept = (
            rb"(/\*[\s\S]*+"  # a comment that never ends
            rb"|(?:[^'\"`/#\-]++|" + strings + rb"|" + identifiers + rb")++"
            rb"|-++(?![\x00-\x20\x7f\-]|\Z)|-+(?=--(?:[\x00-\x20\x7f]|\Z))|[/\-]"
            rb"|['\"`][\s\S]*+)"
        )
        comment = BLOCK_COMMENT + rb"|" + LINE_COMMENT
        self._parts = re.compile(rb"(" + comment + rb")|" + kept).findall
        self._without_comments = re.compile(rb"(?:" + comment + rb")|" + kept).findall

    def fold(self, sql: bytes) -> bytes | None:
        """The fold of a text, or None for one that must be read whole: too long, or with an executable comment."""
        if len(sql) > FOLD_BYTES:
            return None
        hints = b""
        if b"/*" in sql or b"#" in sql or b"--" in sql:
            if b"/*!" in sql or b"/*M!" in sql:
                return None
            if HINT_HEAD.search(sql):
                parts = self._parts(sql)
                hints = b"\0" + b"".join(comment for comment, _ in parts if comment and HINT_HEAD.match(comment))
                sql = b"".join([kept or self._gap for _, kept in parts])
            else:
                sql = b"".join([kept or self._gap for kept in self._without_comments(sql)])
        folded = b"?".join(self._pieces(sql))
        if folded.count(b"?") > 2 * LIST_LENGTH:
            folded = _ROWS.sub(b",(??)..", _LIST.sub(b"??..", folded))
        return folded + hints


@lru_cache(maxsize=8)
def folder(ansi_quotes: bool, no_backslash_escapes: bool, keep_gaps: bool = False) -> Folder:
    """The folder for one way of quoting; they are few and shared."""
    return Folder(ansi_quotes, no_backslash_escapes, keep_gaps)


def folder_of(reading: Reading) -> Folder:
    """The folder for texts under a reading."""
    return folder(reading.ansi_quotes, reading.no_backslash_escapes, reading.ignore_space)


def unfold(folded: bytes) -> tuple[bytes, bytes]:
    """A fold as SQL again, with one placeholder per literal or long list, and the hints of the text."""
    text, _, hints = folded.partition(b"\0")
    return text.replace(b"??..", b"?").replace(b"(??)..", b"(?)").replace(b"??", b"?"), hints


def fingerprint(sql: bytes, reading: Reading = DEFAULT_READING) -> bytes | None:
    """What a person is shown for all statements of one fold: single spaces, one `?` per literal."""
    folded = folder_of(reading).fold(sql)
    if folded is None:
        return None
    return b" ".join(folded.partition(b"\0")[0].replace(b"??", b"?").replace(EMPTY_COMMENT, b" ").split())
