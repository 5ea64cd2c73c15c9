"""Classifies SQL: the text of a statement becomes an `SqlOperation`.

Two caches stand before the parser. The first knows exact texts, the second folds (`fingerprint`), which all texts
share that differ only in literals and comments. What must be read in full goes through the lexer (`sql_tokens`) and is
then dispatched by its first word: queries and data changes to `sql_query`, which proves reads twice, by tokens and by
tree; SET to `sql_set`; SHOW and EXPLAIN to `sql_show`; the rest to `first_words`.

What comes of that knows no catalogue: it holds for any database, and is shared by them. With a catalogue `sql_resolve`
then says what it is in the session's database, where a name may be a view and a table have triggers; that is kept for
the exact text, and forgotten with the catalogue.

The rule is that only a proven read is READ. Doubt of any kind is UNKNOWN, which goes to the primary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from gateway.routing.catalogue import Catalogue
from gateway.routing.fingerprint import (
    DEFAULT_READING,
    EMPTY_COMMENT,
    HINT_HEAD,
    Reading,
    fingerprint,
    folder_of,
    unfold,
)
from gateway.routing.first_words import classify_first_words, unproven
from gateway.routing.functions import PAREN_WORDS, read_functions, space_sensitive
from gateway.routing.operation import NO_HINT, Column, Hint, Kind, PinCause, SqlOperation, TransactionEffect
from gateway.routing.sql_asks import asks_for_thread_id
from gateway.routing.sql_cache import Cache
from gateway.routing.sql_facts import scan
from gateway.routing.sql_hints import parse_hint
from gateway.routing.sql_query import CHANGE_WORDS, QUERY_WORDS, classify_query
from gateway.routing.sql_resolve import resolve
from gateway.routing.sql_set import classify_set
from gateway.routing.sql_show import classify_explain, classify_show
from gateway.routing.sql_tokens import EXECUTABLE_LIMIT, Lexed, Token, TokenKind, canonical, lex

__all__ = ["DEFAULT_READING", "Classifier", "Reading", "fingerprint"]

EXACT_ENTRIES: Final = 16_384
"""Texts in the exact cache."""
PLAN_ENTRIES: Final = 8_192
"""Folds in the second cache; an application has hundreds of statements, sysbench 6, MediaWiki some thousand."""
EXACT_TEXT_BYTES: Final = 1_024
"""Longest text in the exact cache, bytes: longer ones seldom come twice."""
FOLD_KEY_BYTES: Final = 8_192
"""Longest fold in the second cache, bytes."""
LEARNED_ENTRIES: Final = 1_024
"""Folds that a replica refused as a write."""
REFUSED_BEFORE: Final = "a replica refused it as a write before"
"""The reason of their operations."""
CACHE_BYTES: Final = 8 * 1024 * 1024
"""Keys of one generation of one cache, bytes. The values are shared or small."""
PARSE_BYTES: Final = 8_192
"""Longest canonical text that is parsed while other sessions wait: 29 ms for 49 KB, so about 5 ms (measured)."""
LEX_BYTES: Final = 8 * 1024
"""Longest text that is split into tokens as it stands, bytes: 3 us per token (measured), 6 ms for a dense one."""
CALLS_LOOKED_AT: Final = 4_096
"""Parentheses of a long text that are looked at for what they call; a megabyte of them took 150 ms."""
RESOLVED_ENTRIES: Final = 8_192
"""Operations whose meaning by the catalogue is remembered, counted once per database."""
READINGS: Final = 32
"""Readings with a cache of texts of their own; sessions of more databases take turns."""
HEAD_BYTES: Final = 1_024
"""How much of a long text is looked at to know a data change and its table."""


class Statistics(NamedTuple):
    """Counts since the start."""

    folds: int  # texts that missed the exact cache
    parses: int  # texts that missed both


class Classifier:
    """Classifies statements and remembers their classes. Not safe for several threads at once."""

    def __init__(
        self,
        *,
        exact_entries: int = EXACT_ENTRIES,
        plan_entries: int = PLAN_ENTRIES,
        max_parse_bytes: int = PARSE_BYTES,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._exact_entries = exact_entries
        self._plan_entries = plan_entries
        self._max_parse_bytes = max_parse_bytes
        self._cache_bytes = cache_bytes
        self._texts: dict[Reading, Cache] = {}  # each with its database
        self._folds_of: dict[Reading, Cache] = {}  # without one
        self._catalogue: Catalogue | None = None
        self._resolved: dict[tuple[int, str | None], tuple[SqlOperation, SqlOperation]] = {}
        self._learned: dict[tuple[Reading, bytes], SqlOperation] = {}
        self._folds = 0
        self._parses = 0
        self.version = 0  # grows whenever a text may be of another class than before
        self._use(DEFAULT_READING)

    def _use(self, reading: Reading) -> None:
        """Make the caches of a reading the current ones. Few readings are in use at a time, mostly one."""
        texts = self._texts.get(reading)
        if texts is None:
            if len(self._texts) >= READINGS:
                del self._texts[next(iter(self._texts))]
            texts = self._texts[reading] = Cache(self._exact_entries, self._cache_bytes // 2)
        shared = replace(reading, database=None) if reading.database is not None else reading
        plans = self._folds_of.get(shared)
        if plans is None:
            if len(self._folds_of) >= 16:
                self._folds_of.clear()
            plans = self._folds_of[shared] = Cache(self._plan_entries, self._cache_bytes)
        self._reading = reading
        self._exact, self._plans = texts, plans
        self._fold = folder_of(reading).fold

    def use_catalogue(self, catalogue: Catalogue) -> None:
        """Reads names by this catalogue from now on. What was learnt or remembered under another one is forgotten."""
        if catalogue is self._catalogue:
            return
        if self._catalogue is None or catalogue.version != self._catalogue.version:
            self._learned.clear()
        self._catalogue = catalogue
        self.version += 1
        self._resolved.clear()
        for texts in self._texts.values():
            texts.clear()

    def clear(self) -> None:
        """Forget everything that was classified."""
        self.version += 1
        self._resolved.clear()
        for cache in (*self._texts.values(), *self._folds_of.values()):
            cache.clear()

    def statistics(self) -> Statistics:
        return Statistics(self._folds, self._parses)

    def entries(self) -> int:
        """Number of remembered texts and folds, over all readings."""
        return sum(len(cache) for cache in (*self._texts.values(), *self._folds_of.values()))

    def classify(self, sql: bytes, reading: Reading = DEFAULT_READING) -> SqlOperation:
        """What the statement (or statements) of one COM_QUERY is, under one reading. Raises nothing."""
        if reading is not self._reading:
            self._use(reading)
        operation = self._exact.young.get(sql)
        if operation is not None:
            return operation
        return self._classify(sql)

    def learn_write(self, sql: bytes, reading: Reading) -> None:
        """A server refused as a write what was proven to be a read: nothing with its fold is a read from now on."""
        operation = self.classify(sql, reading)
        folded = self._fold(sql)
        if operation.kind is not Kind.READ or folded is None or len(folded) > FOLD_KEY_BYTES:
            return
        if len(self._learned) >= LEARNED_ENTRIES:
            self._learned.clear()  # a fence that is hit this often is the server's; learning again costs one retry
        self._learned[reading, folded] = replace(operation, kind=Kind.UNKNOWN, reason=REFUSED_BEFORE)
        self.clear()

    def _classify(self, sql: bytes) -> SqlOperation:
        short = len(sql) <= EXACT_TEXT_BYTES
        if short:
            operation = self._exact.old(sql)
            if operation is not None:
                return operation
        self._folds += 1
        operation = self._resolve(self._by_fold(sql))
        if short:
            self._exact.put(sql, operation)
        return operation

    def _by_fold(self, sql: bytes) -> SqlOperation:
        """What a text is as far as no catalogue is needed to say it."""
        head = long_change_head(sql) if len(sql) > HEAD_BYTES else None
        folded = self._fold(sql if head is None else head)
        if folded and len(folded) <= FOLD_KEY_BYTES and (not self._reading.unsafe_charset or sql.isascii()):
            plans = self._plans
            operation = self._learned.get((self._reading, folded)) if self._learned else None
            operation = operation or plans.young.get(folded) or plans.old(folded)
            if operation is None:
                self._parses += 1
                operation, foldable = classify_text(sql if head is None else head, self._reading, self._max_parse_bytes)
                if foldable:
                    plans.put(folded, operation)
            return operation
        self._parses += 1
        return classify_text(sql, self._reading, self._max_parse_bytes)[0]

    def _resolve(self, operation: SqlOperation) -> SqlOperation:
        """What an operation is in the reading's database, by the catalogue."""
        catalogue = self._catalogue
        if catalogue is None or not (operation.reads or operation.writes or operation.calls):
            return operation
        key = id(operation), self._reading.database
        known = self._resolved.get(key)
        if known is not None:
            return known[1]
        resolved = resolve(operation, catalogue, self._reading)
        if len(self._resolved) >= RESOLVED_ENTRIES:
            self._resolved.clear()
        self._resolved[key] = operation, resolved
        return resolved


def long_change_head(sql: bytes) -> bytes | None:
    """The head of a long INSERT or REPLACE of plain rows, made a whole statement; None for anything else.

    A 100-row INSERT takes 40 us to fold and its rows are nothing but literals. That they are is seen without reading
    them: every parenthesis follows a row, so nothing is called or queried; without @, semicolon and asterisk there is
    no user variable, further statement or hint.
    """
    start = sql[:HEAD_BYTES]
    if start[:6].upper() not in (b"INSERT", b"REPLAC"):
        return None
    values = start.upper().find(b"VALUES")
    if (
        values < 0
        or start[values - 1 : values].isalnum()
        or start[values - 1] in b"_$"
        or start[values - 1] >= 0x80
        or b"'" in start[:values]
        or b'"' in start[:values]
        or b"--" in start[:values]
        or b"#" in start[:values]
    ):
        return None
    first = sql.find(b"(", values)
    if first < 0 or sql[values + 6 : first].strip() or b"@" in sql or b";" in sql or b"*" in sql:
        return None
    if not sql.rstrip().endswith(b")") or b"--" in sql or b"#" in sql:
        return None  # more may follow than rows: ON DUPLICATE KEY UPDATE, RETURNING
    rows = sql.count(b"(", first + 1)
    if all(sql.count(separator, first) != rows for separator in (b"),(", b"), (", b"),\n(")):
        return None
    return start[:values] + b"VALUES (1)"


def classify_text(sql: bytes, reading: Reading, parse_limit: int = PARSE_BYTES) -> tuple[SqlOperation, bool]:
    """The class of a text, and whether it holds for every text with the same fold. No cache; raises nothing."""
    if len(sql) > LEX_BYTES:
        return _classify_long(sql, reading, parse_limit), True
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


def _classify_long(sql: bytes, reading: Reading, parse_limit: int) -> SqlOperation:
    """A text too long to be split into tokens: its fold is read instead, in which every literal is a placeholder."""
    folded = folder_of(reading).fold(sql)
    text, hints = unfold(folded) if folded is not None else (b"", b"")
    if folded is not None and b"\0" in folded and (b"\0" in hints or not HINT_HEAD.match(hints)):
        text = b""  # a NUL outside of strings and comments, where servers end, or not
    if not text or len(text) > LEX_BYTES or (reading.unsafe_charset and not sql.isascii()):
        return _classify_head(sql[:HEAD_BYTES], text, reading)
    lexed = lex(text, reading)
    if lexed.odd is not None or lexed.executable:
        return _odd(lexed)
    operation = _classify_statements(lexed, reading, parse_limit)
    if operation.assignments or operation.gateway is not None:
        return unproven(lexed.statements[0], f"has more than {LEX_BYTES // 1024} KiB")
    if hints:
        operation = _both(operation, hint=parse_hint(lex(hints, reading).hints))
    return _only_primary(operation, reading)


_SPACE_SENSITIVE_ANYWHERE: Final = space_sensitive(mariadb=True)
_LAST_WORD: Final = re.compile(rb"[.`\"]?[A-Za-z0-9_$\x80-\xff]*+[`\"?]?\Z")


def _called(text: bytes) -> set[str]:
    """What stands before the parentheses of a fold, lower case, with a dot, quote or space that touches it.

    Of spaces one is left only after names that are built-ins without it.
    """
    if text.count(b"(") > CALLS_LOOKED_AT:
        return {"("}  # no name: nothing is said of so many
    # Names have 64 characters.
    before = {(piece.rstrip()[-66:], piece[-1:].isspace()) for piece in text.split(b"(")[:-1]}
    called = set()
    for piece, space in before:
        match = _LAST_WORD.search(piece)
        assert match is not None  # it matches nothing, too
        name = match.group().decode("latin-1").lower()
        called.add(name + " " if space and name in _SPACE_SENSITIVE_ANYWHERE else name)
    return called


def _classify_head(head: bytes, text: bytes, reading: Reading) -> SqlOperation:
    """A text too long to be read as tokens: its first word, and whether its fold (`text`) shows something that pins."""
    statements = lex(head, reading).statements
    tokens = statements[0] if statements else ()
    operation = unproven(tokens, f"has more than {LEX_BYTES // 1024} KiB")
    word = tokens[0].word if tokens else ""
    change = word in CHANGE_WORDS
    if change:
        operation = replace(operation, kind=Kind.WRITE)
    if (
        (change or word in QUERY_WORDS)
        and text
        and not any(mark in text for mark in (b":=", b";", b"@", EMPTY_COMMENT))
    ):
        harmless = read_functions(reading.mariadb, reading.version) | {word.lower() for word in PAREN_WORDS} | {""}
        if _called(text) <= harmless and (change or b"INTO" not in text.upper()):
            operation = replace(operation, pin=None)
    return operation


def _classify_executable(sql: bytes, reading: Reading, first: Lexed, parse_limit: int) -> SqlOperation:
    """A text with executable comments is what all its readings are, or unknown."""
    operations: list[SqlOperation] = []
    count = first.executable
    include = 0
    while include < 1 << count:
        lexed = lex(sql, reading, include)
        count = max(count, lexed.executable)
        if lexed.odd is not None or count > EXECUTABLE_LIMIT:
            return _odd(lexed._replace(odd=lexed.odd or f"more than {EXECUTABLE_LIMIT} executable comments"))
        operations.append(_classify_statements(lexed, reading, parse_limit))
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
    return _several([_classify_one(tokens, reading, parse_limit) for tokens in statements])


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


def describe(sql: bytes, reading: Reading = DEFAULT_READING) -> list[str]:
    """The canonical text of each statement, as the parser gets it; for `explain` and tests."""
    return [canonical(tokens) for tokens in lex(sql, reading).statements]
