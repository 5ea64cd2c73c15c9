"""Which files of its client a text asks for: LOAD DATA LOCAL INFILE and LOAD XML LOCAL INFILE.

A server may ask a client for any file it likes, and most clients send it. The gateway lets a request pass only if the
client's own statement names that file, so what is not understood here names none.
"""

from __future__ import annotations

import re
from typing import Final

from gateway.routing.fingerprint import Reading
from gateway.routing.sql_tokens import Lexed, TokenKind, lex

TEXT_BYTES: Final = 32_768
"""Longest text that is looked at: 30 ms for one that is nothing but tokens."""

_ALL_EXECUTABLE: Final = -1
"""All executable comments are taken in: dumps have LOAD DATA in one."""

_ESCAPES: Final = {"0": "\0", "b": "\b", "n": "\n", "r": "\r", "t": "\t", "Z": "\x1a", "%": "\\%", "_": "\\_"}


def local_files(sql: bytes, reading: Reading) -> list[bytes]:
    """The names of the files that a text asks its client for, in order, as the server will ask for them."""
    if len(sql) > TEXT_BYTES:
        return []
    lexed = lex(sql, reading)
    if lexed.executable:
        lexed = lex(sql, reading, _ALL_EXECUTABLE)
    return [] if lexed.odd is not None else _names(lexed, reading)


def _names(lexed: Lexed, reading: Reading) -> list[bytes]:
    found: list[bytes] = []
    for tokens in lexed.statements:
        if all(token.word != "LOAD" for token in tokens):
            continue
        for first, second, name in zip(tokens, tokens[1:], tokens[2:], strict=False):
            if (first.word, second.word) == ("LOCAL", "INFILE") and name.kind is TokenKind.STRING:
                found.append(_value(name.text, reading))
                break
    return found


def _value(literal: str, reading: Reading) -> bytes:
    """What a string literal stands for (manual: String Literals)."""
    quote, inside = literal[0], literal[1:-1]
    if reading.no_backslash_escapes:
        value = inside.replace(quote + quote, quote)
    else:
        # A doubled quote is one, but not where its first half is escaped: so both are undone from left to right.
        value = re.sub(
            r"\\(.)|" + quote + quote,
            lambda match: quote if match[1] is None else _ESCAPES.get(match[1], match[1]),
            inside,
            flags=re.DOTALL,
        )
    return value.encode("utf-8", "surrogateescape")
