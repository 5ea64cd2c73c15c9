"""Splits SQL text into tokens exactly as the servers' lexers do, and says where that cannot be known.

Everything the classifier proves rests on these tokens: sqlglot never sees the client's text, but one rebuilt from them
(`canonical`), without comments, escapes and literal values, so that the two cannot disagree about where a string or
a comment ends. Text that servers of different kind, version or character set would split differently is called odd, and
nothing is proven of an odd text.

Executable comments (`/*!50701 ... */`, `/*M! ... */`) are SQL on some servers and comments on others. The lexer reads a
text once per choice: `include` has a bit for each of them, in the order in which that reading meets them.

Sources: MySQL sql_lex.cc and MariaDB sql_lex.cc (their lexers), manual chapters Language Structure and Comments.
"""

from __future__ import annotations

import re
from enum import IntEnum
from functools import lru_cache
from typing import Final, NamedTuple

from gateway.routing.fingerprint import (
    BLOCK_COMMENT,
    HINT_HEAD,
    LIST_LENGTH,
    NUMBER,
    WORD_REST,
    Reading,
    quote_patterns,
)

EXECUTABLE_LIMIT: Final = 3
"""Most executable comments in a text that is still proven: every one doubles the readings."""


# What MySQL 9 and MariaDB 11 have both. `_other'x'` is a column by the name of `_other`, shown as x (tried).
CHARACTER_SETS: Final = {
    "armscii8", "ascii", "big5", "binary", "cp1250", "cp1251", "cp1256", "cp1257", "cp850", "cp852", "cp866", "cp932",
    "dec8", "eucjpms", "euckr", "gb2312", "gbk", "geostd8", "greek", "hebrew", "hp8", "keybcs2", "koi8r", "koi8u",
    "latin1", "latin2", "latin5", "latin7", "macce", "macroman", "sjis", "swe7", "tis620", "ucs2", "ujis", "utf16",
    "utf16le", "utf32", "utf8", "utf8mb3", "utf8mb4",
}  # fmt: skip


class TokenKind(IntEnum):
    WORD = 1  # unquoted: a keyword or a name
    NAME = 2  # quoted, or with letters beyond ASCII: always a name
    STRING = 3
    NUMBER = 4
    PLACEHOLDER = 5
    USER_VARIABLE = 6  # @name, lower case in `text`
    SYSTEM_VARIABLE = 7  # @@[scope.]name, lower case in `text`
    SIGN = 8  # any other single character, and := as one


_WORD: Final = TokenKind.WORD  # looking a member up on its enum costs more than the rest of a common token


class Gap(IntEnum):
    """What stands between a token and the one before it."""

    NOTHING = 0
    SPACE = 1
    COMMENT = 2  # at least one: IGNORE_SPACE does not look past it (tried)


NOTHING: Final = Gap.NOTHING
SPACE: Final = Gap.SPACE
COMMENT: Final = Gap.COMMENT


class Token(NamedTuple):
    kind: TokenKind
    word: str  # upper case of a WORD, the character of a SIGN, else ""
    text: str  # a name without its quotes, a literal as it stands
    space: Gap  # what stands before it


class Lexed(NamedTuple):
    """A text as one server may read it: its statements (empty ones left out), and what is doubtful."""

    statements: tuple[tuple[Token, ...], ...]
    hints: tuple[str, ...]  # the contents of `/* gateway: ... */` comments after the colon
    executable: int  # how many executable comments were met
    odd: str | None  # why servers may read it differently, None if they cannot


_VERSION = re.compile(rb"/\*M?!([0-9]*+)")
_GLUED = re.compile(rb"[0-9]++[A-DF-Za-df-z_$][" + WORD_REST + rb"]*+(?![.])")
_NAME_PARTS = re.compile(rb"[A-Za-z0-9_$\x80-\xff]++")


@lru_cache(maxsize=8)
def _scanner(ansi_quotes: bool, no_backslash_escapes: bool) -> re.Pattern[bytes]:
    strings, identifiers = quote_patterns(ansi_quotes, no_backslash_escapes)
    any_quoted = strings + rb"|" + identifiers
    return re.compile(
        rb"(?P<space>[ \t\n\v\f\r]++)"
        rb"|(?P<executable>/\*M?!)"
        rb"|(?P<block>" + BLOCK_COMMENT + rb")"
        rb"|(?P<line>(?:#|--(?=[\x00-\x20\x7f]|\Z))[^\n]*+)"
        rb"|(?P<open>/\*)"
        rb"|(?P<string>(?:[nN](?=')|)(?:" + strings + rb"))"
        rb"|(?P<name>" + identifiers + rb")"
        rb"|(?P<bits>[xXbB]'[0-9a-fA-F]*+')"
        rb"|(?P<system>@@(?:[A-Za-z0-9_$.]++|`[A-Za-z0-9_$]++`)*+)"
        rb"|(?P<user>@(?:" + any_quoted + rb"|[A-Za-z0-9_$.\x80-\xff]*+))"
        rb"|(?P<number>" + NUMBER + rb")"
        rb"|(?P<word>[A-Za-z_\x80-\xff][" + WORD_REST + rb"]*+)"
        rb"|(?P<assign>:=)"
        rb"|(?P<end>\*/)"
        rb"|(?P<sign>[(),=<>*+\-/%!&|^~;:?{}\[\].])"
        rb"|(?P<digits>[0-9])"
        rb"|(?P<odd>[\s\S])"
    )


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def unquote(raw: bytes) -> str:
    """The name inside quotes of its own kind, doubled quotes undone."""
    quote = raw[:1]
    return _decode(raw[1:-1].replace(quote + quote, quote))


def lex(sql: bytes, reading: Reading, include: int = 0) -> Lexed:
    """Read a text as a server would that takes in the executable comments whose bit in `include` is set."""
    scanner = _scanner(reading.ansi_quotes, reading.no_backslash_escapes)
    statements: list[tuple[Token, ...]] = []
    tokens: list[Token] = []
    hints: list[str] = []
    executable = 0
    inside = False  # in an executable comment that is taken in
    odd: str | None = None
    space = NOTHING
    after_dot = False
    position, end = 0, len(sql)
    if reading.unsafe_charset and not sql.isascii():
        odd = "in this character set a backslash may be half a character"
    while position < end:
        match = scanner.match(sql, position)
        assert match is not None  # the last alternative takes any byte
        group = match.lastgroup
        raw = match.group()
        position = match.end()
        if group == "space":
            space = space or SPACE
            continue
        if group == "line":
            space = COMMENT
            continue
        if group == "word" and len(raw) == 1 and raw in b"xXbB" and sql[position : position + 1] == b"'":
            odd = odd or "a hexadecimal or binary literal with other characters"
        if group == "word" and not after_dot and raw.isascii() and raw[0] != 0x5F:
            text = raw.decode()
            tokens.append(Token(_WORD, text.upper(), text, space))
            space = NOTHING
            continue
        if group == "block":
            if inside:
                odd = odd or "a comment inside an executable comment"
            if HINT_HEAD.match(raw):
                hints.append(_decode(raw[2:-2].partition(b":")[2]).strip())
            space = COMMENT
            continue
        if group == "executable":
            taken = include >> executable & 1
            executable += 1
            space = COMMENT
            if inside:
                odd = odd or "an executable comment inside another"
            version = _VERSION.match(sql, match.start())
            digits = len(version.group(1)) if version else 0
            if digits not in (0, 5) and not (digits == 6 and reading.mariadb):
                odd = odd or "an executable comment whose version has an unusual length"
            close = sql.find(b"*/", position)
            if close < 0:
                odd = odd or "an executable comment without an end"
                break
            if sql.find(b"/*", position, close) >= 0:
                odd = odd or "a comment inside an executable comment"
            if taken:
                inside = True
                position = version.end() if version else position
            else:
                position = close + 2
            continue
        if group == "end":
            if inside:
                inside = False
                space = COMMENT
                continue
            tokens.append(Token(TokenKind.SIGN, "*", "*", space))
            tokens.append(Token(TokenKind.SIGN, "/", "/", NOTHING))
            space, after_dot = NOTHING, False
            continue
        token: Token
        named = bool(tokens) and not space and tokens[-1].kind in (TokenKind.WORD, TokenKind.NAME)
        if named and raw[:1] == b"." and group == "number":
            # Right after a name a dot leads to another name, `t.5`; anywhere else `.5` is a number.
            group, raw, position = "sign", b".", match.start() + 1
        if group == "word" or (after_dot and not space and group in ("number", "digits")):
            if after_dot and not space and group != "word":
                # Right after the dot of a qualified name a server reads a name whatever it begins with.
                part = _NAME_PARTS.match(sql, match.start())
                if part is not None:
                    raw = part.group()
                    position = part.end()
            if not raw.isascii():
                try:
                    raw.decode("utf-8")
                except UnicodeDecodeError:
                    odd = odd or "a name that is not UTF-8"
                if not reading.utf8:
                    odd = odd or "a name beyond ASCII that is not quoted, in a character set that is not UTF-8"
            text = _decode(raw)
            if text[0] == "_" and text[1:].lower() in CHARACTER_SETS and sql[position : position + 1] in (b"'", b'"'):
                continue  # of the string that follows: no class depends on it
            if (after_dot and not space) or not text.isascii():
                # No keyword or built-in has letters beyond ASCII, whatever `ſ` and `K` are in upper or lower case.
                token = Token(TokenKind.NAME, "", text, space)
            else:
                token = Token(TokenKind.WORD, text.upper(), text, space)
        elif group == "number" or group == "bits":
            token = Token(TokenKind.NUMBER, "", _decode(raw), space)
        elif group == "string":
            token = Token(TokenKind.STRING, "", _decode(raw), space)
            if raw[:1] in b"nN":
                token = token._replace(text=token.text[1:])
        elif group == "name":
            token = Token(TokenKind.NAME, "", unquote(raw), space)
        elif group == "user":
            if tokens and not space and tokens[-1].kind in (TokenKind.WORD, TokenKind.NAME, TokenKind.STRING):
                # The user@host of an account; `SELECT@a` comes out so, too, and is then not proven.
                token = Token(TokenKind.SIGN, "@", "@", space)
                position = match.start() + 1
            else:
                name = raw[1:]
                text = unquote(name) if name[:1] in (b"'", b'"', b"`") else _decode(name)
                if not text:
                    odd = odd or "a user variable without a name"
                token = Token(TokenKind.USER_VARIABLE, "", text.lower(), space)
        elif group == "system":
            text = _decode(raw[2:]).replace("`", "").lower()
            if not text or text[-1] == "." or not sql[position : position + 1].isascii():
                odd = odd or "a system variable with an unusual name"
            token = Token(TokenKind.SYSTEM_VARIABLE, "", text, space)
        elif group == "assign":
            token = Token(TokenKind.SIGN, ":=", ":=", space)
        elif group == "sign":
            if raw == b"." and not named and sql[position : position + 1].isdigit():
                odd = odd or "a number that runs into a word"
            if raw == b";":
                if tokens:
                    statements.append(tuple(tokens))
                    tokens = []
                space, after_dot = NOTHING, False
                continue
            kind = TokenKind.PLACEHOLDER if raw == b"?" else TokenKind.SIGN
            token = Token(kind, chr(raw[0]), chr(raw[0]), space)
        elif group == "digits" and (glued := _GLUED.match(sql, match.start())):
            raw = glued.group()
            position = glued.end()
            token = Token(TokenKind.NAME, "", _decode(raw), space)
        else:
            if group == "open":
                odd = odd or "a comment without an end"
            elif raw in (b"'", b'"', b"`"):
                odd = odd or "a quote without an end"
            else:
                piece = _decode(sql[match.start() : match.start() + 12])
                odd = odd or f"characters that servers may read differently, at {piece!r}"
            break
        tokens.append(token)
        after_dot = named and token.word == "."
        space = NOTHING
    if inside:
        odd = odd or "an executable comment without an end"
    if tokens:
        statements.append(tuple(tokens))
    return Lexed(tuple(statements), tuple(hints), executable, odd)


_GLUE = (TokenKind.WORD, TokenKind.NAME, TokenKind.STRING, TokenKind.NUMBER, TokenKind.PLACEHOLDER)


def canonical(tokens: tuple[Token, ...] | list[Token]) -> str:
    """The text that sqlglot parses: the statement with every literal, variable and long list of literals folded."""
    return "".join(canonical_pieces(tokens))


def canonical_pieces(tokens: tuple[Token, ...] | list[Token]) -> list[str]:
    """The same as pieces, one for each token that is left."""
    pieces: list[str] = []
    previous: Token | None = None
    run = 0  # literals so far in a list of nothing but literals
    for token in tokens:
        kind = token.kind
        if kind is TokenKind.STRING:
            piece = "'$'"
        elif kind is TokenKind.NUMBER:
            piece = "1"
        elif kind is TokenKind.PLACEHOLDER:
            piece = "?"
        elif kind is TokenKind.NAME:
            piece = "`" + token.text.replace("`", "``") + "`"
        elif kind is TokenKind.USER_VARIABLE:
            piece = "@v"
        elif kind is TokenKind.SYSTEM_VARIABLE:
            piece = "@@v"
        else:
            piece = token.text
        if kind in (TokenKind.STRING, TokenKind.NUMBER, TokenKind.PLACEHOLDER):
            run += 1
            if run > LIST_LENGTH and pieces and pieces[-1].strip() == ",":
                pieces.pop()
                previous = token
                continue
        elif token.word != ",":
            run = 0
        if previous is not None and (token.space or (kind in _GLUE and previous.kind in _GLUE)):
            piece = " " + piece
        pieces.append(piece)
        previous = token
    return pieces
