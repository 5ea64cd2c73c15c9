"""Reads texts that are too long to be split into tokens, from 8 KiB to 1 MiB, at the speed of `re`.

Long texts are long for their literals: a blob, a list of thousands of ids, the rows of a bulk INSERT, a comment.
`shorten` leaves those out and everything else as it stands, so that what remains is a text with the same meaning for
the classifier, which goes the way of any other. A list keeps at least two of its elements, and never gets more than it
had, since a call with too few arguments may be a stored function's.

What is still long then is known by its first words alone (`unread`): no read. One more look says whether anything in it
could stick to its connection; if there may be several statements in it, they are the most that they could be.

The cost is bounded by the length of the text: every byte is looked at three times at most, what is kept is bounded by
LEX_BYTES, and no look makes more than MATCHES matches. Repetitions of groups are greedy and bounded, not possessive: up
to CPython 3.11.4 a possessive one ends at the wrong place where its last round failed half-way (issue 106052).
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Final

from gateway.routing.fingerprint import (
    BLOCK_COMMENT,
    EMPTY_COMMENT,
    HINT_HEAD,
    LINE_COMMENT,
    WORD_REST,
    Reading,
    quote_patterns,
)
from gateway.routing.first_words import unproven
from gateway.routing.functions import LAST_CONNECTION, PAREN_WORDS, fewest_arguments, read_functions, space_sensitive
from gateway.routing.operation import Kind, PinCause, SqlOperation
from gateway.routing.sql_query import CHANGE_WORDS, QUERY_WORDS
from gateway.routing.sql_tokens import lex

LEX_BYTES: Final = 8 * 1024
"""Longest text that is split into tokens as it stands, bytes: 3 us per token (measured), 10 ms for a dense one."""
LONGEST_BYTES: Final = 1024 * 1024
"""Longest text that is looked at beyond its head, bytes: at worst 40 ms (measured)."""
HEAD_BYTES: Final = 1_024
"""How much of a text that is not read is looked at to know its first words."""
KEPT_BYTES: Final = 64
"""Longest literal, or list of literals, that stays in a text that is shortened."""
NAME_BYTES: Final = 66
"""What is looked at of a called name, bytes: built-ins have at most 64 characters."""
MATCHES: Final = 40_000
"""Most matches of one look at a text, 0.3 us each (measured)."""
UNREAD: Final = "unread"
"""In the name of a statement: others follow it that nobody has seen."""


@lru_cache(maxsize=8)
def _literals(ansi_quotes: bool, no_backslash_escapes: bool) -> re.Pattern[bytes]:
    """What can be left out of a text; whatever else stays is matched by no group.

    A literal counts as one only with the comma or parenthesis behind it: `NULLIF` and `5lower` are names.
    """
    strings, identifiers = quote_patterns(ansi_quotes, no_backslash_escapes)
    literal = (
        rb"(?:[-+]?+[0-9.]++|" + strings + rb"|NULL|null|DEFAULT|default|TRUE|true|FALSE|false"
        rb"|0[xX][0-9a-fA-F]++|[-+]?+[0-9.]++[eE][+-]?+[0-9]++|[xXbB]'[0-9a-fA-F]*+'"
        rb"|_(?:binary|utf8mb4|utf8mb3|utf8|latin1)\s*+(?:" + strings + rb"))"
    )
    elements = rb"(?:[0-9]++,|" + literal + rb"\s*+,\s*+)"
    return re.compile(
        rb"(?<=\))(?P<rows>(?:\s*+,\s*+\(\s*+" + literal + rb"(?:\s*+,\s*+" + literal + rb"){0,4095}\s*+\)){1,16})"
        rb"|(?P<executable>/\*M?!)"
        rb"|(?P<comment>" + BLOCK_COMMENT + rb"|" + LINE_COMMENT + rb")"
        rb"|(?P<open>/\*)"
        rb"|(?P<first>" + literal + rb")\s*+,\s*+(?P<more>" + elements + rb"{0,255})"
        rb"|(?P<string>" + strings + rb")"
        rb"|(?P<number>[0-9][" + WORD_REST + rb".]*+)"
        rb"|(?:[A-Za-z_$\x80-\xff.@][" + WORD_REST + rb".@]*+[\s(,=<>]*+"
        rb"|[\s(,=<>+*%!&|^~;:?{}\[\]\\\x00-\x1f\x7f]++|" + identifiers + rb"){1,200}"
        rb"|[-/)]"
        rb"|(?P<odd>[\s\S])"
    )


_HEXADECIMAL: Final = b"0123456789abcdefABCDEF"
_WHOLE_NUMBER: Final = re.compile(rb"0x[0-9a-fA-F]++|[0-9]++(?:\.[0-9]*+)?")


def shorten(sql: bytes, reading: Reading, kept_bytes: int = KEPT_BYTES) -> bytes | None:
    """The text without its long literals, lists and comments, at most LEX_BYTES; None if that is not possible.

    `kept_bytes`: longest literal, or list of literals, that stays.
    """
    if len(sql) > LONGEST_BYTES or (reading.unsafe_charset and not sql.isascii()):
        return None
    kept: list[bytes] = []
    size = 0
    left_out = ""  # the group of the piece before, if that was left out
    for match in _literals(reading.ansi_quotes, reading.no_backslash_escapes).finditer(sql):
        group, piece = match.lastgroup, match[0]
        if group in ("executable", "open", "odd"):
            return None
        before, left_out = left_out, ""
        if group == "comment":
            if not HINT_HEAD.match(piece):
                piece = EMPTY_COMMENT
        elif group is not None and len(piece) > kept_bytes:
            if group == "rows":
                piece = b"" if before == group else b",(1)"
                left_out = group
            elif group == "more":
                piece, left_out = _abridged(match, before == group, kept_bytes)
            elif group == "string":
                piece = b"'.'" if piece[1:-1].strip(_HEXADECIMAL) else b"''"  # an x may stand before it
            elif _WHOLE_NUMBER.fullmatch(piece):
                piece = b"1"
        kept.append(piece)
        size += len(piece)
        if size > LEX_BYTES:
            return None
    return b"".join(kept)


def _abridged(match: re.Match[bytes], goes_on: bool, kept_bytes: int) -> tuple[bytes, str]:
    """A part of a list, and "more" if elements were left out of it. `goes_on`: of the part before some were, too."""
    first, more = match["first"], match["more"]
    if goes_on:
        return b"", "more"
    if len(first) > kept_bytes:
        first = b"''" if first[-1:] in b"'\"" else b"1"
    if len(more) <= kept_bytes:
        return first + b"," + more, ""
    return first + b",1,", "more"


# ---------------------------------------------------------------- what is not read


@lru_cache(maxsize=8)
def _sticking(ansi_quotes: bool, no_backslash_escapes: bool) -> re.Pattern[bytes]:
    """Finds what may stick to a connection: calls, several statements, variables, and whatever is read differently."""
    strings, identifiers = quote_patterns(ansi_quotes, no_backslash_escapes)
    words = rb"[0-9A-Za-z_$.\s\x80-\xff]"
    operators = rb",=<>+*%&|^~!?{}\[\])"
    return re.compile(
        rb"(?P<call>" + words + rb"++)\("
        rb"|(?:" + words + rb"*+[" + operators + rb"]++[\s(" + operators + rb"]*+|" + strings
        + rb"|(?:" + identifiers + rb")(?!\s*+\()|-(?!-)|/++(?!\*)){1,2000}"
        rb"|(?P<executable>/\*M?!)"
        rb"|(?:" + BLOCK_COMMENT + rb"|" + LINE_COMMENT + rb")(?:\s*+(?P<gap>\())?"
        rb"|(?P<several>;)"
        rb"|" + words + rb"++|--?+"
        rb"|(?P<odd>[\s\S])"
    )  # fmt: skip


_TARGET: Final = re.compile(
    rb"(?:\s++|/\*[^!M*][^*]*+\*/)*(?:INSERT|REPLACE)\s++(?:(?:LOW_PRIORITY|HIGH_PRIORITY|DELAYED|IGNORE|INTO)\s++){0,4}"
    rb"(?:`[^`]++`|[" + WORD_REST + rb"]++)(?:\.(?:`[^`]++`|[" + WORD_REST + rb"]++))?\s*+\(",
    re.IGNORECASE,
)
"""An INSERT up to the columns that it names, which look like the arguments of a call."""
_SPACE_SENSITIVE: Final = space_sensitive(mariadb=True)
_LAST_WORD: Final = re.compile(rb"(?:\.\s*+)?[" + WORD_REST + rb"]*+\Z")


@lru_cache(maxsize=64)
def _harmless(mariadb: bool, version: tuple[int, int]) -> frozenset[str]:
    """What may stand before a parenthesis, lower case, and leaves nothing behind, whatever is in it."""
    known = read_functions(mariadb, version) - LAST_CONNECTION - {"connection_id"}
    return frozenset(
        {name for name in known if not fewest_arguments(name, mariadb)} | {word.lower() for word in PAREN_WORDS} | {""}
    )


def _sticks(sql: bytes, reading: Reading) -> str | None:
    """Why a text may leave something on its connection: "several" statements, or a group of the pattern, or None."""
    target = _TARGET.match(sql)
    pattern = _sticking(reading.ansi_quotes, reading.no_backslash_escapes)
    harmless = _harmless(reading.mariadb, reading.version)
    end = len(sql.rstrip(b"; \t\r\n\v\f"))
    called: set[bytes] = set()
    found: str | None = None
    count = 0
    for match in islice(pattern.finditer(sql, target.end() if target is not None else 0), MATCHES):
        count += 1
        group = match.lastgroup
        if group is None:
            continue
        if group == "call":
            called.add(match["call"][-NAME_BYTES:])
        elif group != "several":
            return "several" if sql.find(b";", match.start()) >= 0 else group
        elif match.start() < end:
            return "several"
    if count >= MATCHES:
        return "several" if b";" in sql else "odd"
    for words in called:
        name = _LAST_WORD.search(words.rstrip())
        assert name is not None  # it matches nothing, too
        text = name[0].decode("latin-1").lower()
        cut_off = len(words) == NAME_BYTES and not words[: name.start()].strip()  # a dot may stand before it
        if cut_off or text not in harmless or (words[-1:].isspace() and text in _SPACE_SENSITIVE):
            found = "call"
    return found


def unread(sql: bytes, reading: Reading) -> SqlOperation:
    """The class of a text that is too long to be read: by its first words, and by what may stick."""
    statements = lex(sql[:HEAD_BYTES], reading).statements
    tokens = statements[0] if statements else ()
    operation = unproven(tokens, f"has more than {LEX_BYTES // 1024} KiB")
    word = tokens[0].word if tokens else ""
    known = len(sql) <= LONGEST_BYTES and not (reading.unsafe_charset and not sql.isascii())
    sticks = _sticks(sql, reading) if known else "several"
    if sticks == "several" and b";" in sql:
        return replace(operation, statement=f"{operation.statement}; {UNREAD}", multi=True)
    change = word in CHANGE_WORDS
    if change:
        operation = replace(operation, kind=Kind.WRITE)
    if sticks is None and (change or (word in QUERY_WORDS and b"INTO" not in sql.upper())):
        operation = replace(operation, pin=None)
    return operation


def as_shortened(operation: SqlOperation) -> SqlOperation:
    """What a shortened text is: as it says, unless the values of its literals matter."""
    if operation.assignments or operation.gateway is not None:
        return replace(
            operation,
            kind=Kind.UNKNOWN,
            reason=f"has more than {LEX_BYTES // 1024} KiB",
            pin=PinCause.UNPROVEN,
            unpin=None,
            assignments=(),
            read_back=(),
            gateway=None,
            kill=None,
            by_task=False,
            names=(),
            tables_complete=False,
        )
    return operation
