"""Classifies by their first words the statements that are neither queries nor data changes.

Most of them sqlglot does not parse, or parses as something else (`SAVEPOINT a` as an alias). None is trusted to be a
read for its first word alone: the few that are (HELP, CHECKSUM TABLE) are read to their end, token by token. The tables
below say of every other statement what it does to data, transaction and session; one that is not in them is unknown and
pins.

Sources: MySQL manual, SQL Statements, and Statements That Cause an Implicit Commit; MariaDB documentation, SQL
Statements.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from gateway.routing.fingerprint import Reading
from gateway.routing.functions import words
from gateway.routing.operation import (
    THREAD_ID_BIT,
    Assignment,
    Column,
    Kill,
    Kind,
    PinCause,
    Scope,
    SqlOperation,
    Table,
    TransactionEffect,
)
from gateway.routing.sql_facts import parentheses, scan
from gateway.routing.sql_query import QUERY_WORDS, classify_query, first_table
from gateway.routing.sql_tokens import Token, TokenKind

_ALL_COLUMNS: Final = frozenset([Column("*")])
QUERY_BYTES: Final = 8_192
"""Longest query of a CREATE TABLE or VIEW that is parsed (see sql_text.PARSE_BYTES)."""


def _commits(statement: str, reason: str = "changes the schema", **more: object) -> SqlOperation:
    operation = SqlOperation(
        Kind.WRITE,
        statement,
        reason,
        columns=_ALL_COLUMNS,
        transaction=TransactionEffect.IMPLICIT_COMMIT,
        tables_complete=False,
    )
    return replace(operation, **more) if more else operation  # type: ignore[arg-type]


def _writes(statement: str, reason: str) -> SqlOperation:
    return SqlOperation(Kind.WRITE, statement, reason, columns=_ALL_COLUMNS, tables_complete=False)


def _unknown(statement: str, reason: str, pin: PinCause | None) -> SqlOperation:
    return SqlOperation(Kind.UNKNOWN, statement, reason, columns=_ALL_COLUMNS, pin=pin, tables_complete=False)


def unproven(tokens: Sequence[Token], reason: str) -> SqlOperation:
    """The class of what could not be understood at all."""
    name = next((token.text.lower() for token in tokens if token.kind is TokenKind.WORD), "")
    return _unknown(name, reason, PinCause.UNPROVEN)


def _session(statement: str, reason: str, pin: PinCause) -> SqlOperation:
    return SqlOperation(Kind.SESSION, statement, reason, pin=pin)


_SERVER: Final = "acts on one server"
_ACCOUNTS: Final = "changes accounts"

_DEALLOCATE: Final = _session("deallocate prepare", "drops a prepared statement", PinCause.PREPARED_STATEMENT)

_HEADS: Final[dict[tuple[str, ...], SqlOperation]] = {
    ("ALTER",): _commits("alter"),
    ("CREATE",): _commits("create"),
    ("DROP",): _commits("drop"),
    ("RENAME",): _commits("rename"),
    ("TRUNCATE",): _commits("truncate", "empties a table"),
    ("GRANT",): _commits("grant", _ACCOUNTS),
    ("REVOKE",): _commits("revoke", _ACCOUNTS),
    ("ANALYZE", "TABLE"): _commits("analyze table", "maintains tables"),
    ("ANALYZE", "LOCAL", "TABLE"): _commits("analyze table", "maintains tables"),
    ("ANALYZE", "NO_WRITE_TO_BINLOG", "TABLE"): _commits("analyze table", "maintains tables"),
    ("OPTIMIZE",): _commits("optimize table", "maintains tables"),
    ("REPAIR",): _commits("repair table", "maintains tables"),
    ("CHECK",): _commits("check table", "maintains tables"),
    ("CACHE", "INDEX"): _commits("cache index", _SERVER),
    ("LOAD", "INDEX"): _commits("load index", _SERVER),
    ("LOAD", "DATA"): _writes("load data", "loads data"),
    ("LOAD", "XML"): _writes("load xml", "loads data"),
    ("IMPORT", "TABLE"): _commits("import table", "loads data"),
    ("FLUSH",): _commits("flush", _SERVER),
    ("RESET",): _commits("reset", _SERVER),
    ("PURGE",): _writes("purge", _SERVER),
    ("BINLOG",): _writes("binlog", "replays events"),
    ("KILL",): _writes("kill", _SERVER),
    ("SHUTDOWN",): _writes("shutdown", _SERVER),
    ("RESTART",): _writes("restart", _SERVER),
    ("CLONE",): _writes("clone", _SERVER),
    ("INSTALL",): _commits("install", _SERVER),
    ("UNINSTALL",): _commits("uninstall", _SERVER),
    ("CHANGE", "MASTER"): _commits("change master", _SERVER),
    ("CHANGE", "REPLICATION"): _commits("change replication", _SERVER),
    ("START", "SLAVE"): _commits("start slave", _SERVER),
    ("START", "REPLICA"): _commits("start replica", _SERVER),
    ("START", "ALL"): _commits("start all slaves", _SERVER),
    ("START", "GROUP_REPLICATION"): _commits("start group_replication", _SERVER),
    ("STOP",): _commits("stop", _SERVER),
    ("CALL",): _unknown("call", "runs a stored procedure", PinCause.PROCEDURE),
    ("EXECUTE", "IMMEDIATE"): _unknown("execute immediate", "runs SQL that is not seen here", PinCause.UNPROVEN),
    ("EXECUTE",): _unknown("execute", "runs a prepared statement", PinCause.PREPARED_STATEMENT),
    ("PREPARE",): _session("prepare", "prepares a statement on its connection", PinCause.PREPARED_STATEMENT),
    ("DEALLOCATE", "PREPARE"): _DEALLOCATE,
    ("DROP", "PREPARE"): _DEALLOCATE,
    ("HANDLER",): replace(
        _session("handler", "reads through a handler of its connection", PinCause.HANDLER), columns=_ALL_COLUMNS
    ),
    ("LOCK", "TABLE"): replace(
        _session("lock tables", "locks tables", PinCause.TABLE_LOCK), transaction=TransactionEffect.IMPLICIT_COMMIT
    ),
    ("LOCK", "TABLES"): replace(
        _session("lock tables", "locks tables", PinCause.TABLE_LOCK), transaction=TransactionEffect.IMPLICIT_COMMIT
    ),
    ("LOCK", "INSTANCE"): _session("lock instance", "locks the instance", PinCause.INSTANCE_LOCK),
    ("BACKUP",): _session("backup", "takes a backup lock", PinCause.INSTANCE_LOCK),
    ("GET", "DIAGNOSTICS"): replace(
        _session("get diagnostics", "stores diagnostics in variables", PinCause.USER_VARIABLE), last_connection=True
    ),
    ("GET", "CURRENT", "DIAGNOSTICS"): replace(
        _session("get diagnostics", "stores diagnostics in variables", PinCause.USER_VARIABLE), last_connection=True
    ),
    ("XA",): SqlOperation(Kind.TRANSACTION, "xa", "is a distributed transaction", pin=PinCause.XA),
    ("XA", "RECOVER"): SqlOperation(Kind.TRANSACTION, "xa", "lists the distributed transactions of one server"),
    ("SIGNAL",): _writes("signal", "raises a condition"),
    ("RESIGNAL",): _writes("resignal", "raises a condition"),
}
"""First words, the longest that match decide. All of these go to the primary whatever follows."""

_UNLOCKS: Final = {
    ("UNLOCK", "TABLES"): ("unlock tables", PinCause.TABLE_LOCK),
    ("UNLOCK", "TABLE"): ("unlock tables", PinCause.TABLE_LOCK),
    ("UNLOCK", "INSTANCE"): ("unlock instance", PinCause.INSTANCE_LOCK),
    ("BACKUP", "STAGE", "END"): ("backup", PinCause.INSTANCE_LOCK),
    ("BACKUP", "UNLOCK"): ("backup", PinCause.INSTANCE_LOCK),
    ("XA", "COMMIT"): ("xa", PinCause.XA),
    ("XA", "ROLLBACK"): ("xa", PinCause.XA),
}

_BEGIN: Final = SqlOperation(Kind.TRANSACTION, "begin", "begins a transaction", transaction=TransactionEffect.BEGIN)
_START_MODES: Final = (("READ", "ONLY"), ("READ", "WRITE"), ("WITH", "CONSISTENT", "SNAPSHOT"))


def _transaction(words: tuple[str, ...], tokens: Sequence[Token]) -> SqlOperation | None:
    """BEGIN, START TRANSACTION, COMMIT, ROLLBACK, SAVEPOINT and RELEASE SAVEPOINT, each in its exact shape."""
    if words in (("BEGIN",), ("BEGIN", "WORK")):
        return _BEGIN
    if words[:2] == ("START", "TRANSACTION"):
        modes = _modes(words[2:])
        if modes is None or {("READ", "ONLY"), ("READ", "WRITE")} <= modes:
            return None
        only = ("READ", "ONLY") in modes
        return SqlOperation(
            Kind.TRANSACTION,
            "start transaction",
            "begins a transaction that only reads" if only else "begins a transaction",
            transaction=TransactionEffect.BEGIN_READ_ONLY if only else TransactionEffect.BEGIN,
        )
    if words[:1] in (("COMMIT",), ("ROLLBACK",)):
        return _end(words, tokens)
    if (words[:1] == ("SAVEPOINT",) and len(words) == 2) or (words[:2] == ("RELEASE", "SAVEPOINT") and len(words) == 3):
        return SqlOperation(
            Kind.TRANSACTION,
            "savepoint" if words[0] == "SAVEPOINT" else "release savepoint",
            "marks a place in the transaction",
            transaction=TransactionEffect.SAVEPOINT,
        )
    return None


def _modes(words: tuple[str, ...]) -> set[tuple[str, ...]] | None:
    found: set[tuple[str, ...]] = set()
    while words:
        mode = next((mode for mode in _START_MODES if words[: len(mode)] == mode), None)
        if mode is None:
            return None
        found.add(mode)
        words = words[len(mode) :]
        if words:
            if words[0] != "," or len(words) == 1:
                return None
            words = words[1:]
    return found


def _end(words: tuple[str, ...], tokens: Sequence[Token]) -> SqlOperation | None:
    verb = words[0]
    rest = words[1:]
    if rest[:1] == ("WORK",):
        rest = rest[1:]
    if verb == "ROLLBACK" and rest[:1] == ("TO",):
        name = rest[2:] if rest[1:2] == ("SAVEPOINT",) and len(rest) > 2 else rest[1:]
        if len(name) != 1:
            return None
        return SqlOperation(
            Kind.TRANSACTION,
            "rollback to savepoint",
            "goes back to a savepoint",
            transaction=TransactionEffect.SAVEPOINT,
        )
    chain = release = False
    if rest[:2] == ("AND", "CHAIN"):
        chain, rest = True, rest[2:]
    elif rest[:3] == ("AND", "NO", "CHAIN"):
        rest = rest[3:]
    if rest == ("RELEASE",):
        release, rest = True, ()
    elif rest == ("NO", "RELEASE"):
        rest = ()
    if rest or (chain and release):
        return None
    return SqlOperation(
        Kind.TRANSACTION,
        verb.lower(),
        "ends the transaction",
        transaction=TransactionEffect.COMMIT if verb == "COMMIT" else TransactionEffect.ROLLBACK,
        chain=chain,
        release=release,
    )


def _use(tokens: Sequence[Token]) -> SqlOperation | None:
    if len(tokens) != 2 or tokens[1].kind not in (TokenKind.WORD, TokenKind.NAME):
        return None
    return SqlOperation(Kind.SESSION, "use", "selects a database", database=tokens[1].text)


def _checksum(tokens: Sequence[Token]) -> SqlOperation | None:
    """CHECKSUM TABLE name [, name] ... [QUICK | EXTENDED], to the end."""
    if len(tokens) < 3 or tokens[1].word not in ("TABLE", "TABLES"):
        return None
    reads: list[Table] = []
    index = 2
    while True:
        table, index = first_table(tokens, index)
        if table is None:
            return None
        reads.append(table)
        if index == len(tokens) or tokens[index].word != ",":
            break
        index += 1
    if index < len(tokens) and not (index + 1 == len(tokens) and tokens[index].word in ("QUICK", "EXTENDED")):
        return None
    columns = frozenset(Column("*", table) for table in reads)
    return SqlOperation(Kind.READ, "checksum table", "computes checksums", reads=tuple(reads), columns=columns)


_OBJECTS: Final = words(
    """
    TABLE VIEW INDEX DATABASE SCHEMA USER ROLE PROCEDURE FUNCTION TRIGGER EVENT SEQUENCE SERVER TABLESPACE PACKAGE
    """
)


def _schema_change(words: tuple[str, ...], tokens: Sequence[Token], reading: Reading) -> SqlOperation:
    """CREATE, ALTER, DROP, RENAME and TRUNCATE: the tables where they are easy to see, and temporary ones."""
    verb = words[0].lower()
    place = next((index for index, word in enumerate(words[1:10], 1) if word in _OBJECTS), None)
    if verb == "truncate" and place is None:
        place = 0
    if place is None:
        return _commits(verb)
    thing = words[place].lower() if place else "table"
    statement = f"{verb} {thing}"
    temporary = "TEMPORARY" in words[1:place]
    index = place + 1
    while index < len(words) and words[index] in ("IF", "NOT", "EXISTS", "IGNORE", "ONLINE"):
        index += 1
    tables: list[Table] = []
    if thing in ("table", "view", "sequence"):
        while True:
            table, index = first_table(tokens, index)
            if table is not None:
                tables.append(table)
            # DROP TABLE a, b and RENAME TABLE a TO b, c TO d
            if (
                table is None
                or index >= len(tokens)
                or verb not in ("drop", "rename")
                or words[index] not in (",", "TO")
            ):
                break
            index += 1
    elif thing == "index" and "ON" in words:
        table, index = first_table(tokens, words.index("ON") + 1)
        if table is not None:
            tables.append(table)
    operation = _commits(statement, writes=tuple(tables))
    if tables:
        operation = replace(operation, columns=frozenset(Column("*", table) for table in tables))
    if thing in ("table", "view") and (within := _query_within(tokens, index)):
        query = classify_query(within, reading, QUERY_BYTES)
        operation = replace(
            operation,
            reads=query.reads,
            columns=operation.columns | query.columns,
            columns_complete=query.tables_complete,
            functions=query.functions,
        )
        if thing == "table":
            operation = replace(operation, pin=query.pin, user_variables=query.user_variables)
    if temporary:
        operation = replace(operation, transaction=TransactionEffect.NONE)
        if verb == "create":
            operation = replace(operation, pin=PinCause.TEMPORARY_TABLE, temporary_tables=tuple(tables))
    return operation


def _query_within(tokens: Sequence[Token], index: int) -> Sequence[Token]:
    """The query of CREATE TABLE ... [AS] query or CREATE VIEW ... AS query, which begins behind `index`; () if none."""
    end = len(tokens)
    if [token.word for token in tokens[-2:]] == ["CHECK", "OPTION"]:
        end -= 4 if tokens[-3].word in ("CASCADED", "LOCAL") else 3
    for start in range(index, end):
        before, word = tokens[start - 1].word, tokens[start].word
        if word == "(" and start + 1 < end:
            word = tokens[start + 1].word if before in _BEFORE_QUERY else ""
        if word == "SELECT" or (word in QUERY_WORDS and before in _BEFORE_QUERY):
            return tokens[start:end]
    return ()


_BEFORE_QUERY: Final = frozenset(["AS", "IGNORE", "REPLACE"])


def _flush(words: tuple[str, ...]) -> SqlOperation:
    locks = "TABLES" in words or "TABLE" in words
    if locks and ("LOCK" in words or "EXPORT" in words):
        return _commits("flush", "locks tables", pin=PinCause.TABLE_LOCK)
    return _HEADS[("FLUSH",)]


def _do(tokens: Sequence[Token], reading: Reading) -> SqlOperation:
    facts = scan(tokens, reading)
    if facts.session and not facts.unknown and not facts.writes:
        kind, reason = Kind.SESSION, facts.session
    else:
        kind, reason = Kind.UNKNOWN, facts.unknown or facts.writes or "evaluates expressions for their effect"
    return SqlOperation(
        kind,
        "do",
        reason,
        columns=_ALL_COLUMNS,
        functions=frozenset(facts.functions),
        pin=facts.pin,
        unpin=facts.unpin,
        last_connection=facts.last_connection,
        user_variables=frozenset(facts.user_variables),
        tables_complete=False,
        by_task="release_lock" in facts.functions,
    )


def _handler(tokens: Sequence[Token]) -> SqlOperation | None:
    """HANDLER table OPEN [[AS] alias] and HANDLER alias CLOSE; None for its reads."""
    table, index = first_table(tokens, 1)
    if table is None or index >= len(tokens):
        return None
    rest = tokens[index + 1 :]
    if tokens[index].word == "CLOSE" and not rest:
        return SqlOperation(
            Kind.SESSION, "handler", "closes a handler", unpin=PinCause.HANDLER, names=(table.name.lower(),)
        )
    if tokens[index].word != "OPEN":
        return None
    if rest and rest[0].word == "AS":
        rest = rest[1:]
    if len(rest) > 1:
        return None
    return replace(_HEADS[("HANDLER",)], names=((rest[0].text if rest else table.name).lower(),))


def _call(tokens: Sequence[Token], reading: Reading) -> SqlOperation:
    """CALL procedure[(arguments)]: what the catalogue may prove of it, if its arguments do nothing themselves."""
    operation = _HEADS[("CALL",)]
    table, at = first_table(tokens, 1)
    arguments = tokens[at:]
    if table is None or (arguments and (arguments[0].word != "(" or parentheses(tokens).closes[at] != len(tokens) - 1)):
        return operation
    facts = scan(arguments, reading)
    if facts.unknown or facts.writes or facts.session or facts.pin:
        return operation
    # Any of them may be an OUT parameter.
    told = tuple(Assignment(Scope.USER, name, "") for name in sorted(facts.user_variables))
    proven = replace(operation, pin=PinCause.USER_VARIABLE if told else None, read_back=told, by_task=bool(told))
    return replace(operation, calls=(table,), if_proven=proven)


_STATEMENT_NAME: Final = re.compile(r"[A-Za-z0-9_$]{1,64}")
"""Of names by other characters servers take some for the same."""


def _of_prepared(operation: SqlOperation, tokens: Sequence[Token]) -> SqlOperation:
    """PREPARE, EXECUTE and DEALLOCATE PREPARE with the name that they are about, where it is plain to see."""
    place = 2 if operation is _DEALLOCATE else 1
    token = tokens[place] if place < len(tokens) else None
    if token is None or token.kind not in (TokenKind.WORD, TokenKind.NAME) or not _STATEMENT_NAME.fullmatch(token.text):
        return operation
    rest = tokens[place + 1 :]
    names = (token.text.lower(),)
    if operation is _DEALLOCATE:
        return operation if rest else replace(operation, pin=None, unpin=PinCause.PREPARED_STATEMENT, names=names)
    if operation.statement == "execute" and rest:
        plain = (TokenKind.USER_VARIABLE, TokenKind.NUMBER, TokenKind.STRING)
        if rest[0].word != "USING" or any(one.kind not in plain and one.word != "," for one in rest[1:]):
            return operation
    return replace(operation, names=names)


def _kill(words: tuple[str, ...], tokens: Sequence[Token]) -> SqlOperation | None:
    """KILL [HARD | SOFT] [CONNECTION | QUERY] of one of the gateway's own thread ids; None for all other forms.

    Lower ids are the primary's own, and so are MariaDB's user names and query ids: it decides by the user's rights.
    """
    rest = words[1:]
    if rest[:1] in (("HARD",), ("SOFT",)):
        rest = rest[1:]
    query = rest[:1] == ("QUERY",)
    if query or rest[:1] == ("CONNECTION",):
        rest = rest[1:]
    if rest == ("CONNECTION_ID", "(", ")"):
        thread = None
    elif len(rest) == 1 and tokens[-1].kind is TokenKind.NUMBER and _is_own_id(rest[0]):
        thread = int(rest[0])
    else:
        return None
    return SqlOperation(
        Kind.SESSION,
        "kill",
        "ends a session of the gateway, or its statement",
        gateway="kill",
        kill=Kill(thread, query),
        by_task=True,
    )


def _is_own_id(digits: str) -> bool:
    """Whether a number is a thread id of the gateway's. Thousands of digits int() would refuse (ValueError)."""
    return digits.isdigit() and len(digits) <= 20 and bool(int(digits) & THREAD_ID_BIT)


_WITH_EXPRESSIONS: Final = frozenset(["LOAD", "KILL", "PURGE", "SIGNAL", "RESIGNAL"])


def _with_expressions(operation: SqlOperation, tokens: Sequence[Token], reading: Reading) -> SqlOperation:
    """What the expressions of LOAD DATA (... SET a = f(@b)), KILL and their kin leave behind on their connection."""
    load = tokens[0].word == "LOAD"
    sets = [index for index, token in enumerate(tokens) if token.word == "SET"]  # CHARACTER SET may come first
    start = (sets[-1] if sets else len(tokens)) if load else 1
    facts = scan(tokens[start:], reading)
    pin = facts.pin
    variables = {token.text for token in tokens if token.kind is TokenKind.USER_VARIABLE}
    if pin is None and load and variables:
        pin = PinCause.USER_VARIABLE  # LOAD DATA ... (a, @b): the last row's value stays in @b
    return replace(
        operation,
        pin=pin,
        functions=frozenset(facts.functions),
        user_variables=frozenset(variables),
        last_connection=facts.last_connection,
    )


def classify_first_words(tokens: Sequence[Token], reading: Reading) -> SqlOperation:
    """What a statement is that is no query, data change, SET, SHOW or EXPLAIN."""
    words = tuple(token.word or token.text if token.kind is not TokenKind.NAME else "" for token in tokens)
    head = words[0]
    operation = _transaction(words, tokens)
    if operation is None and head == "USE":
        operation = _use(tokens)
    if operation is None and head == "CHECKSUM":
        operation = _checksum(tokens)
    if head == "HANDLER":
        operation = _handler(tokens)
    if head == "KILL":
        operation = _kill(words, tokens)
    if operation is not None:
        return operation
    if head == "DO":
        return _do(tokens, reading)
    if head == "HELP" and len(tokens) == 2:
        return SqlOperation(Kind.READ, "help", "reads the help tables")
    if head == "FLUSH":
        return _flush(words)
    for length in (3, 2):
        unlock = _UNLOCKS.get(words[:length])
        if unlock is not None:
            kind = Kind.TRANSACTION if head == "XA" else Kind.SESSION
            return SqlOperation(kind, unlock[0], "ends a lock or transaction", unpin=unlock[1])
    for length in (3, 2, 1):
        found = _HEADS.get(words[:length])
        if found is not None:
            if head in ("CREATE", "ALTER", "DROP", "RENAME", "TRUNCATE") and length == 1:
                return _schema_change(words, tokens, reading)
            if head == "CALL":
                return _call(tokens, reading)
            if found.pin is PinCause.PREPARED_STATEMENT:
                return _of_prepared(found, tokens)
            if head in _WITH_EXPRESSIONS and found.transaction is TransactionEffect.NONE:
                return _with_expressions(found, tokens, reading)
            return found
    return unproven(tokens, f"is a statement that is not known ({head.lower()})")
