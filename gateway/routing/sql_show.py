"""Classifies SHOW, DESCRIBE and EXPLAIN: which of them a replica may answer, and which are about one server.

SHOW has no side effect by itself, but its WHERE is an expression and may call anything: the tail is read to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from gateway.routing.fingerprint import Reading
from gateway.routing.functions import words
from gateway.routing.operation import Column, Kind, PinCause, SqlOperation, Table
from gateway.routing.sql_facts import scan
from gateway.routing.sql_query import CHANGE_WORDS, QUERY_WORDS, first_table
from gateway.routing.sql_tokens import Token, TokenKind

_SCHEMA: Final[frozenset[tuple[str, ...]]] = frozenset(
    [
        ("DATABASES",), ("SCHEMAS",), ("TABLES",), ("COLUMNS",), ("FIELDS",), ("INDEX",), ("INDEXES",), ("KEYS",),
        ("TABLE", "STATUS"), ("TRIGGERS",), ("EVENTS",), ("CHARACTER", "SET"), ("CHARSET",), ("COLLATION",),
        ("ENGINES",), ("STORAGE", "ENGINES"), ("GRANTS",), ("PRIVILEGES",), ("PLUGINS",), ("PROCEDURE", "STATUS"),
        ("FUNCTION", "STATUS"), ("PROCEDURE", "CODE"), ("FUNCTION", "CODE"), ("PACKAGE", "STATUS"),
        ("PACKAGE", "BODY", "STATUS"), ("LIBRARY", "STATUS"), ("CONTRIBUTORS",), ("AUTHORS",),
    ]
)  # fmt: skip
_CREATE: Final = words(
    """
    TABLE VIEW DATABASE SCHEMA PROCEDURE FUNCTION TRIGGER EVENT USER SEQUENCE PACKAGE SERVER LIBRARY
    """
)
_CONNECTION: Final = frozenset([("WARNINGS",), ("ERRORS",), ("COUNT",), ("PROFILE",), ("PROFILES",)])
_WITH_TABLE: Final = frozenset(["COLUMNS", "FIELDS", "INDEX", "INDEXES", "KEYS"])
_ADVERBS: Final = frozenset(["FULL", "EXTENDED", "GLOBAL", "SESSION", "LOCAL", "ALL"])
_ONE_SERVER: Final = words(
    """
    VARIABLES STATUS PROCESSLIST MASTER BINARY BINLOG RELAYLOG SLAVE SLAVES REPLICA REPLICAS ENGINE INNODB OPEN
    MUTEX PARSE_TREE LOCALES EXPLAIN ANALYZE USER_STATISTICS CLIENT_STATISTICS INDEX_STATISTICS TABLE_STATISTICS
    QUERY_RESPONSE_TIME WSREP_MEMBERSHIP WSREP_STATUS
    """
)


def classify_show(tokens: Sequence[Token], reading: Reading) -> SqlOperation:
    """What a SHOW statement is."""
    index = 1
    while index < len(tokens) and tokens[index].word in _ADVERBS:
        index += 1
    words = tuple(token.word if token.kind in (TokenKind.WORD, TokenKind.SIGN) else "" for token in tokens[index:])
    statement = "show " + (words[0].lower() if words else "")
    facts = scan(tokens[index + 1 :] if words[:1] == ("COUNT",) else tokens, reading)
    if facts.unknown or facts.session or facts.writes or "SELECT" in words or "INTO" in words:
        reason = facts.unknown or facts.session or facts.writes or "has a query inside"
        return SqlOperation(
            Kind.UNKNOWN, statement, reason, columns=frozenset([Column("*")]), pin=facts.pin, tables_complete=False
        )
    found = frozenset(facts.functions)
    variables = frozenset(facts.user_variables)
    base = SqlOperation(
        Kind.READ, statement, "shows the schema", functions=found, user_variables=variables,
        tables_complete=False, last_connection=facts.last_connection,
    )  # fmt: skip
    if words[:1] in _CONNECTION:
        return replace(base, reason="asks about the statement before", last_connection=True)
    if words[:1] == ("CREATE",) and len(words) > 2 and words[1] in _CREATE:
        start = index + 2
        while start < len(tokens) and tokens[start].word in ("IF", "NOT", "EXISTS", "BODY"):
            start += 1
        table, _ = first_table(tokens, start)
        if words[1] in ("TABLE", "VIEW", "SEQUENCE") and table is not None:
            return replace(base, statement=f"show create {words[1].lower()}", reads=(table,), describes=True)
        return replace(base, statement=f"show create {words[1].lower()}")
    if any(words[: len(head)] in _SCHEMA for head in (words[:3], words[:2], words[:1])):
        return replace(base, reads=_shown_table(tokens, index) if words[0] in _WITH_TABLE else (), describes=True)
    if words and words[0] in _ONE_SERVER:
        return replace(base, needs_primary=f"{statement.upper()}: is about one server or connection")
    return SqlOperation(Kind.UNKNOWN, statement, "is a SHOW that is not known", tables_complete=False)


def _shown_table(tokens: Sequence[Token], index: int) -> tuple[Table, ...]:
    """SHOW COLUMNS {FROM | IN} table [{FROM | IN} database]."""
    if index + 1 >= len(tokens) or tokens[index + 1].word not in ("FROM", "IN"):
        return ()
    table, after = first_table(tokens, index + 2)
    if table is None:
        return ()
    if after < len(tokens) and tokens[after].word in ("FROM", "IN"):
        database, _ = first_table(tokens, after + 1)
        if database is not None:
            table = Table(table.name, database.name)
    return (table,)


def classify_explain(tokens: Sequence[Token], inner: Callable[[Sequence[Token]], SqlOperation]) -> SqlOperation:
    """What EXPLAIN, DESCRIBE, DESC or MariaDB's ANALYZE is; `inner` classifies the statement that it is about.

    An EXPLAIN is what its statement is: with ANALYZE it runs it, and without it a server may still evaluate constants.
    """
    index = 1
    while index < len(tokens):
        word = tokens[index].word
        if word in ("EXTENDED", "PARTITIONS", "ANALYZE") and word not in (tokens[0].word, tokens[index - 1].word):
            index += 1
        elif word == "FORMAT" and index + 2 < len(tokens) and tokens[index + 1].word == "=":
            index += 3
        else:
            break
    rest = tokens[index:]
    statement = tokens[0].word.lower()
    if not rest:
        return SqlOperation(Kind.UNKNOWN, statement, "explains nothing", tables_complete=False)
    if rest[0].word in QUERY_WORDS or rest[0].word in CHANGE_WORDS:
        operation = inner(rest)
        explained = replace(operation, statement=statement, reason=f"explains: {operation.reason}")
        if operation.if_proven is None:
            return explained
        proven = replace(operation.if_proven, statement=statement, reason=f"explains: {operation.if_proven.reason}")
        return replace(explained, if_proven=proven)
    if rest[0].word == "FOR" and len(rest) == 3 and rest[1].word == "CONNECTION":
        return SqlOperation(
            Kind.READ,
            statement,
            "explains another connection",
            needs_primary="EXPLAIN FOR CONNECTION: names one server's",
        )
    table, after = first_table(rest, 0)
    if table is not None and index == 1:
        tail = rest[after:]
        if not tail or (len(tail) == 1 and tail[0].kind in (TokenKind.WORD, TokenKind.NAME, TokenKind.STRING)):
            return SqlOperation(Kind.READ, "describe", "describes a table", reads=(table,), describes=True)
    return SqlOperation(
        Kind.UNKNOWN, statement, "is an EXPLAIN that is not known", columns=frozenset([Column("*")]),
        pin=PinCause.UNPROVEN, tables_complete=False,
    )  # fmt: skip
