"""Reads the questions that the gateway can answer in a server's place: SELECT of nothing but values about the session.

`SELECT ROW_COUNT(), LAST_INSERT_ID() AS id` is one, `SELECT ROW_COUNT() + 1` is not. A text with a comment or anything
else beside is none: whoever asks falls back on a server, or refuses.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final, NamedTuple

from gateway.routing.fingerprint import Reading
from gateway.routing.sql_tokens import TokenKind, lex


class Asked(Enum):
    """A value that the gateway knows of a session. The value is the name that asks for it, without @@ and scope."""

    THREAD_ID = "connection_id"
    LAST_INSERT_ID = "last_insert_id"
    ROW_COUNT = "row_count"
    FOUND_ROWS = "found_rows"
    WARNING_COUNT = "warning_count"
    ERROR_COUNT = "error_count"


class Item(NamedTuple):
    """One item of a select list. `variable`: asked for as @@name, whose columns have other flags than a function's."""

    asked: Asked
    name: str  # of its column: the alias, or the text as it stands
    variable: bool


class Shown(NamedTuple):
    """SHOW WARNINGS, SHOW ERRORS and their COUNT(*)."""

    errors_only: bool
    counted: bool
    offset: int = 0
    limit: int | None = None


_LOCK_TEXT_BYTES: Final = 8192  # longest text in which the names of locks are looked for

_PREPARED_TEXT_BYTES: Final = 8192  # longest PREPARE whose text is looked at
# Of characters that are one byte in ASCII, in the form in which mysql_read_back writes them.
_HEX_TEXT: Final = re.compile(
    r"_(?:utf8mb4|utf8mb3|utf8|latin1|ascii) (?:0x(?P<digits>(?:[0-9A-F]{2})+)|'') COLLATE \w+"
)
_ESCAPE: Final = re.compile(r"\\([\s\S])")
_ESCAPED: Final = {"0": "\0", "b": "\b", "n": "\n", "r": "\r", "t": "\t", "Z": "\x1a", "%": "\\%", "_": "\\_"}

_VARIABLES: Final = {
    b"identity": Asked.LAST_INSERT_ID,
    b"last_insert_id": Asked.LAST_INSERT_ID,
    b"warning_count": Asked.WARNING_COUNT,
    b"error_count": Asked.ERROR_COUNT,
    b"pseudo_thread_id": Asked.THREAD_ID,
}
_SPACE: Final = rb"[ \t\r\n]"
_SELECT: Final = re.compile(_SPACE + rb"*+select" + _SPACE + rb"++(?=\S)", re.IGNORECASE)
_ITEM: Final = re.compile(
    rb"(?P<text>(?P<function>connection_id|last_insert_id|row_count|found_rows)" + _SPACE + rb"*+\(" + _SPACE + rb"*+\)"
    rb"|@@(?:(?:session|local)\.)?+(?P<variable>identity|last_insert_id|warning_count|error_count|pseudo_thread_id)\b)"
    rb"(?:" + _SPACE + rb"++(?:as" + _SPACE + rb"++)?+(?:`(?P<quoted>[^`]++)`|'(?P<string>[^'\\]++)'"
    rb"|(?P<alias>[a-z_][a-z0-9_]*+)))?+" + _SPACE + rb"*+",
    re.IGNORECASE,
)
_COMMA: Final = re.compile(rb"," + _SPACE + rb"*+")
_END: Final = re.compile(rb";?+" + _SPACE + rb"*+\Z")
_SHOW: Final = re.compile(
    _SPACE + rb"*+show" + _SPACE + rb"++(?P<count>count" + _SPACE + rb"*+\(" + _SPACE + rb"*+\*" + _SPACE
    + rb"*+\)" + _SPACE + rb"*+)?+(?P<what>warnings|errors)\b"
    rb"(?:" + _SPACE + rb"++limit" + _SPACE + rb"++(?P<first>[0-9]{1,9}+)(?:" + _SPACE + rb"*+,"
    + _SPACE + rb"*+(?P<second>[0-9]{1,9}+))?+)?+" + _SPACE + rb"*+;?+" + _SPACE + rb"*+",
    re.IGNORECASE,
)  # fmt: skip


def select_items(sql: bytes) -> tuple[Item, ...] | None:
    """The items of a SELECT of nothing but such values, None for any other text."""
    start = _SELECT.match(sql)
    if start is None:
        return None
    items: list[Item] = []
    at = start.end()
    while match := _ITEM.match(sql, at):
        function = match["function"]
        asked = Asked(function.decode().lower()) if function else _VARIABLES[match["variable"].lower()]
        name = match["quoted"] or match["string"] or match["alias"] or match["text"]
        items.append(Item(asked, name.decode("utf-8", "surrogateescape"), not function))
        at = match.end()
        comma = _COMMA.match(sql, at)
        if comma is None:
            return tuple(items) if _END.match(sql, at) else None
        at = comma.end()
    return None


def shown(sql: bytes) -> Shown | None:
    """What SHOW WARNINGS or SHOW ERRORS asks for, None for any other text."""
    match = _SHOW.fullmatch(sql)
    if match is None:
        return None
    count = match["count"] is not None
    first, second = match["first"], match["second"]
    if count and first is not None:
        return None
    limit = second if second is not None else first
    return Shown(
        errors_only=match["what"].lower() == b"errors",
        counted=count,
        offset=int(first) if second is not None else 0,
        limit=None if limit is None else int(limit),
    )


def named_locks(sql: bytes, reading: Reading) -> set[str] | None:
    """The names, lower case, that GET_LOCK() in a text locks; None if one of them is no plain string."""
    if len(sql) > _LOCK_TEXT_BYTES:
        return None
    lexed = lex(sql, reading)
    if lexed.odd is not None or lexed.executable or len(lexed.statements) != 1:
        return None
    tokens = lexed.statements[0]
    found: set[str] = set()
    for index, token in enumerate(tokens):
        if token.kind is TokenKind.WORD and token.word == "GET_LOCK":
            name = tokens[index + 2] if index + 3 < len(tokens) else None
            if name is None or name.kind is not TokenKind.STRING or tokens[index + 3].word != ",":
                return None
            text = name.text[1:-1]
            if not text.isascii() or not text.isprintable() or any(mark in text for mark in "\\'\""):
                return None
            found.add(text.lower())
    return found or None


def text_to_prepare(sql: bytes, reading: Reading) -> tuple[bytes | None, str | None]:
    """What PREPARE prepares: the text itself, or the user variable that has it; (None, None) for anything else."""
    if len(sql) > _PREPARED_TEXT_BYTES:
        return None, None
    lexed = lex(sql, reading)
    if lexed.odd is not None or lexed.executable or len(lexed.statements) != 1:
        return None, None
    tokens = lexed.statements[0]
    if len(tokens) != 4 or tokens[2].word != "FROM":
        return None, None
    source = tokens[3]
    if source.kind is TokenKind.USER_VARIABLE:
        return None, source.text
    return (string_value(source.text, reading), None) if source.kind is TokenKind.STRING else (None, None)


def string_value(literal: str, reading: Reading) -> bytes | None:
    """The ASCII text that a literal stands for: `'...'`, or what the gateway makes of a value that it has read back.

    None for any other, and where that depends on what is not known here.
    """
    known = _HEX_TEXT.fullmatch(literal)
    if known is not None:
        value = bytes.fromhex(known["digits"] or "")
        return value if value.isascii() else None
    quote = literal[:1]
    if len(literal) < 2 or quote not in "'\"" or literal[-1] != quote or not literal.isascii():
        return None
    inner = literal[1:-1].replace(quote + quote, quote)
    if "\\" not in inner or reading.no_backslash_escapes:
        return inner.encode()
    return _ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[1]), inner).encode()


class Diagnosed(NamedTuple):
    """What GET DIAGNOSTICS asks for: items of one condition, by its number from 1, or of the statement as a whole."""

    condition: int | None
    items: tuple[tuple[str, str], ...]  # user variable, and the name of the item in upper case


def diagnosed(sql: bytes, reading: Reading) -> Diagnosed | None:
    """What GET [CURRENT] DIAGNOSTICS asks for; None for what is not plain."""
    lexed = lex(sql, reading) if len(sql) <= _PREPARED_TEXT_BYTES else None
    if lexed is None or lexed.odd is not None or lexed.executable or len(lexed.statements) != 1:
        return None
    tokens = [token for token in lexed.statements[0] if token.word != "CURRENT"]
    words = [token.word for token in tokens]
    if words[:2] != ["GET", "DIAGNOSTICS"]:
        return None
    condition, at = None, 2
    if words[2:3] == ["CONDITION"]:
        if len(tokens) < 4 or not tokens[3].text.isdecimal() or len(tokens[3].text) > 9:
            return None
        condition, at = int(tokens[3].text), 4
    items: list[tuple[str, str]] = []
    while True:
        item = tokens[at : at + 3]
        if len(item) < 3 or item[0].kind is not TokenKind.USER_VARIABLE or words[at + 1] != "=":
            return None
        items.append((item[0].text, words[at + 2]))
        at += 3
        if at == len(tokens):
            return Diagnosed(condition, tuple(items))
        if words[at] != ",":
            return None
        at += 1


def counts_its_rows(sql: bytes, reading: Reading) -> bool:
    """Whether FOUND_ROWS() after this SELECT is the number of its rows (tried): with an offset it is more."""
    if len(sql) > _PREPARED_TEXT_BYTES:
        return False
    lexed = lex(sql, reading)
    if lexed.odd is not None or lexed.executable or len(lexed.statements) != 1:
        return False
    tokens = lexed.statements[0]
    for index, token in enumerate(tokens):
        if token.word in ("OFFSET", "EXAMINED", "PROCEDURE", "FETCH"):
            return False
        if token.word == "LIMIT" and "," in (one.word for one in tokens[index + 1 : index + 3]):
            return False
    return True


def asks_for_thread_id(sql: bytes) -> bool:
    """Whether a text asks for CONNECTION_ID() or @@pseudo_thread_id and nothing else."""
    items = select_items(sql)
    return items is not None and all(item.asked is Asked.THREAD_ID for item in items)
