"""Classifies one text without remembering anything: the dispatch from its tokens to whoever knows such statements.

A text that is too long for that is shortened first (`sql_long`); a text of several statements is what they are
together; one with executable comments is what it is both with and without them. Statements are dispatched by their
first word: queries and data changes to `sql_query`, SET to `sql_set`, SHOW and EXPLAIN to `sql_show`, the rest to
`first_words`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from gateway.routing.fingerprint import Reading
from gateway.routing.first_words import classify_first_words, unproven
from gateway.routing.operation import NO_HINT, Column, Hint, Kind, PinCause, SqlOperation, TransactionEffect
from gateway.routing.sql_asks import asks_for_thread_id
from gateway.routing.sql_facts import scan
from gateway.routing.sql_hints import parse_hint
from gateway.routing.sql_long import HEAD_BYTES, LEX_BYTES, UNREAD, as_shortened, shorten, unread
from gateway.routing.sql_query import CHANGE_WORDS, QUERY_WORDS, classify_query
from gateway.routing.sql_set import classify_set
from gateway.routing.sql_show import classify_explain, classify_show
from gateway.routing.sql_tokens import EXECUTABLE_LIMIT, Gap, Lexed, Token, TokenKind, lex

PARSE_BYTES: Final = 8_192
"""Longest canonical text that is parsed while other sessions wait, in characters: 10 to 20 ms for a dense one
(measured)."""
EXECUTABLE_BYTES: Final = 12 * 1024
"""Most bytes of a text with executable comments that are split into tokens, all its readings together."""
SHAPES: Final = 64
"""Most statements of one text that are parsed; those that differ in their literals alone count once."""


def short_of(sql: bytes, reading: Reading) -> bytes | None:
    """The text to be read in the place of a text: itself, if it is short; None if only its first words can be read.

    The rows of a bulk INSERT are left out of shorter texts, too: its fold would be twice as long as itself.
    """
    if len(sql) <= LEX_BYTES and (len(sql) <= HEAD_BYTES or sql[:6].upper() not in (b"INSERT", b"REPLAC")):
        return sql
    shortened = shorten(sql, reading)
    return sql if shortened is None and len(sql) <= LEX_BYTES else shortened


def classify_text(sql: bytes, reading: Reading, parse_limit: int = PARSE_BYTES) -> tuple[SqlOperation, bool]:
    """The class of a text, and whether it holds for every text with the same fold. No cache; raises nothing."""
    text = short_of(sql, reading)
    if text is None:
        return unread(sql, reading), False
    if text is sql:
        return classify_short(sql, reading, parse_limit)
    operation, foldable = classify_short(text, reading, parse_limit)
    return as_shortened(operation), foldable


def classify_short(sql: bytes, reading: Reading, parse_limit: int = PARSE_BYTES) -> tuple[SqlOperation, bool]:
    """The same for a text of at most LEX_BYTES."""
    lexed = lex(sql, reading)
    if lexed.odd is not None:
        return replace(_odd(lexed), hint=parse_hint(lexed.hints)), False
    if lexed.executable:
        operation = _classify_executable(sql, reading, lexed, parse_limit)
        return replace(operation, hint=parse_hint(lexed.hints)), False
    operation = _classify_statements(lexed, reading, parse_limit)
    if lexed.hints:
        operation = _both(operation, hint=parse_hint(lexed.hints))
    operation = _only_primary(operation, reading)
    if operation.pin is PinCause.CONNECTION_ID and not operation.multi and asks_for_thread_id(sql):
        operation = replace(
            operation,
            reason="asks for the thread id, which is the gateway's own",
            gateway="thread id",
            by_task=True,
            pin=None,
        )
    foldable = operation.gateway is None and not (
        lexed.statements and lexed.statements[0][0].word in ("SET", "KILL")  # their literals matter
    )
    return operation, foldable


def _both(operation: SqlOperation, hint: Hint) -> SqlOperation:
    """The operation with a hint, and with it what it is if its stored functions only read."""
    proven = operation.if_proven
    return replace(operation, hint=hint, if_proven=None if proven is None else replace(proven, hint=hint))


def _only_primary(operation: SqlOperation, reading: Reading) -> SqlOperation:
    """The operation as it is where nothing may go to a replica, if the reading is of that sort."""
    if not (reading.oracle_mode or reading.unsafe_charset):
        return operation
    if operation.if_proven is not None:
        operation = replace(operation, if_proven=_only_primary(operation.if_proven, reading))
    if operation.kind is not Kind.READ or operation.needs_primary is not None:
        return operation
    why = "sql_mode ORACLE" if reading.oracle_mode else "a character set whose characters may end in a backslash"
    return replace(operation, needs_primary=f"under {why} nothing is proven")


def _odd(lexed: Lexed) -> SqlOperation:
    tokens = lexed.statements[0] if lexed.statements else ()
    return unproven(tokens, f"has {lexed.odd}")


def _classify_executable(sql: bytes, reading: Reading, first: Lexed, parse_limit: int) -> SqlOperation:
    """A text with executable comments is what all its readings are, or unknown."""
    operations: list[SqlOperation] = []
    count = first.executable
    include = 0
    while include < 1 << count:
        lexed = lex(sql, reading, include)
        count = max(count, lexed.executable)
        if lexed.odd is None and count > EXECUTABLE_LIMIT:
            lexed = lexed._replace(odd=f"more than {EXECUTABLE_LIMIT} executable comments")
        elif len(sql) << count > EXECUTABLE_BYTES:
            lexed = lexed._replace(odd=lexed.odd or "executable comments, and is too long to be read with and without")
        if lexed.odd is not None:
            return _odd(lexed)
        operations.append(_classify_statements(lexed, reading, parse_limit >> count))
        include += 1
    fullest = operations[-1]
    if all(operation.kind is Kind.READ for operation in operations):
        needs = next((operation.needs_primary for operation in operations if operation.needs_primary), None)
        return _only_primary(replace(_union(operations, fullest), needs_primary=needs), reading)
    if all(operation.kind is Kind.WRITE and operation.pin is None for operation in operations) and (
        len({operation.transaction for operation in operations}) == 1
    ):
        return _union(operations, fullest)
    tokens = first.statements[0] if first.statements else ()
    if not first.statements and fullest.kind is Kind.WRITE and fullest.pin is None:
        return fullest  # all of it is in the comment, as in dumps: at worst nothing happens
    return unproven(tokens, "has an executable comment that changes what it is")


def _union(operations: Sequence[SqlOperation], base: SqlOperation) -> SqlOperation:
    """The base with everything that any of the operations touches."""
    return replace(
        base,
        calls=(),
        if_proven=None,
        describes=all(operation.describes for operation in operations),
        upsert=any(operation.upsert for operation in operations),
        reads=tuple(dict.fromkeys(table for operation in operations for table in operation.reads)),
        writes=tuple(dict.fromkeys(table for operation in operations for table in operation.writes)),
        columns=frozenset().union(*(operation.columns for operation in operations)),
        functions=frozenset().union(*(operation.functions for operation in operations)),
        user_variables=frozenset().union(*(operation.user_variables for operation in operations)),
        last_connection=any(operation.last_connection for operation in operations),
        without_where=any(operation.without_where for operation in operations),
        tables_complete=all(operation.tables_complete for operation in operations),
        found_rows=any(operation.found_rows for operation in operations),
    )


_ROUTINES: Final = frozenset(["PROCEDURE", "FUNCTION", "TRIGGER", "EVENT", "PACKAGE"])


def _routine(statements: Sequence[tuple[Token, ...]]) -> SqlOperation | None:
    """CREATE PROCEDURE and its kin, whose body has semicolons of its own; None if the text is something else."""
    head = [token.word for token in statements[0][:24]]
    if head[0] not in ("CREATE", "ALTER") or not _ROUTINES & set(head):
        return None
    operation = SqlOperation(
        Kind.WRITE,
        f"{head[0].lower()} {next(word for word in head if word in _ROUTINES).lower()}",
        "changes the schema",
        columns=frozenset([Column("*")]),
        transaction=TransactionEffect.IMPLICIT_COMMIT,
        tables_complete=False,
    )
    if len(statements) > 1:
        # The parts after the first may be the body or further statements: only a body that is one block is clear.
        words = [token.word for statement in statements for token in statement]
        if words[-1] != "END" or words.count("BEGIN") != 1 or "BEGIN" not in [token.word for token in statements[0]]:
            return replace(operation, pin=PinCause.UNPROVEN, multi=True)
    return operation


def _classify_statements(lexed: Lexed, reading: Reading, parse_limit: int) -> SqlOperation:
    statements = lexed.statements
    if not statements:
        return SqlOperation(Kind.UNKNOWN, "", "is empty")
    if len(statements) == 1:
        return _classify_one(statements[0], reading, parse_limit)
    routine = _routine(statements)
    if routine is not None:
        return routine
    if statements[0][0].word == "BEGIN" and len(statements[0]) > 1 and statements[0][1].word == "NOT":
        return unproven(statements[0], "is a compound statement")
    known: dict[tuple[tuple[TokenKind, str, Gap], ...], SqlOperation] = {}
    parts: list[SqlOperation] = []
    for tokens in statements:
        shape = tuple((token.kind, "" if token.kind in _LITERALS else token.text, token.space) for token in tokens)
        operation = known.get(shape)
        if operation is None:
            if len(known) >= SHAPES:
                unproved = unproven(statements[0], f"has more than {SHAPES} different statements")
                return replace(unproved, statement=f"{unproved.statement}; {UNREAD}", multi=True)
            operation = known[shape] = _classify_one(tokens, reading, parse_limit)
        parts.append(operation)
    return _several(parts)


_LITERALS: Final = (TokenKind.STRING, TokenKind.NUMBER)


def _several(parts: Sequence[SqlOperation]) -> SqlOperation:
    """Several statements in one text are a read only if each is; what sticks to the session makes all unproven."""
    base = replace(
        _union(parts, parts[0]), multi=True, statement="; ".join(dict.fromkeys(part.statement for part in parts))
    )
    if all(part.kind is Kind.READ for part in parts):
        return replace(
            base,
            reason="several queries that only read",
            needs_primary=next((part.needs_primary for part in parts if part.needs_primary), None),
        )
    effects = [part.transaction for part in parts if part.transaction is not TransactionEffect.NONE]
    sticks = any(
        part.pin or part.unpin or part.assignments or part.database or part.gateway or part.chain or part.release
        for part in parts
    )
    plain = all(part.kind in (Kind.READ, Kind.WRITE) for part in parts)
    return replace(
        base,
        kind=Kind.WRITE if plain and not sticks else Kind.UNKNOWN,
        reason="several statements, not all of them reads",
        transaction=effects[-1] if effects else TransactionEffect.NONE,
        assignments=(),
        database=None,
        gateway=None,
        kill=None,
        by_task=False,
        read_back=(),
        names=(),
        pin=next((part.pin for part in parts if part.pin), PinCause.UNPROVEN if sticks else None),
        unpin=None,
        chain=False,
        release=False,
        needs_primary=None,
        hint=NO_HINT,
    )


def _classify_one(tokens: Sequence[Token], reading: Reading, parse_limit: int) -> SqlOperation:
    first = tokens[0].word
    second = tokens[1].word if len(tokens) > 1 else ""
    if tokens[0].kind not in (TokenKind.WORD, TokenKind.SIGN):
        return unproven(tokens, "begins with no keyword")
    if first in ("SHOW", "SET") and second == "GATEWAY":
        words = " ".join(token.text for token in tokens[2:])
        return SqlOperation(
            Kind.SESSION, f"{first.lower()} gateway", "is for the gateway itself", gateway=words, by_task=True
        )
    if first in QUERY_WORDS or first in CHANGE_WORDS:
        return classify_query(tokens, reading, parse_limit)
    if first == "SET":
        return _classify_set(tokens, reading)
    if first == "SHOW":
        return classify_show(tokens, reading)
    if first in ("EXPLAIN", "DESCRIBE", "DESC") or (first == "ANALYZE" and _analyzes_statement(tokens)):
        return classify_explain(tokens, lambda rest: classify_query(rest, reading, parse_limit))
    return classify_first_words(tokens, reading)


def _analyzes_statement(tokens: Sequence[Token]) -> bool:
    """MariaDB's ANALYZE [FORMAT=JSON] statement, as opposed to ANALYZE TABLE."""
    words = [token.word for token in tokens[1:5]] + [""] * 4
    return words[0] == "FORMAT" or words[0] in CHANGE_WORDS or (words[0] in QUERY_WORDS and words[0] != "TABLE")


def _classify_set(tokens: Sequence[Token], reading: Reading) -> SqlOperation:
    operation = classify_set(tokens)
    facts = scan(tokens, reading)
    operation = replace(operation, functions=frozenset(facts.functions), last_connection=facts.last_connection)
    inner = (
        facts.unknown or facts.writes or ("runs a query" if any(token.word == "SELECT" for token in tokens) else None)
    )
    if inner is not None and operation.kind is Kind.SESSION:
        operation = replace(
            operation,
            kind=Kind.UNKNOWN,
            reason=f"{operation.reason}; {inner}",
            tables_complete=False,
            read_back=(),
            by_task=False,
        )
    return operation
