"""Classifies queries (SELECT, WITH, VALUES, TABLE) and data changes (INSERT, REPLACE, UPDATE, DELETE).

A query is a read only if its tokens (`sql_facts`) and its syntax tree (`sql_tree`) both prove it. What does not parse
is unknown, but pins only if its tokens give a reason to: without one it cannot change its connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from sqlglot import exp

from gateway.routing.fingerprint import Reading
from gateway.routing.functions import read_functions, words
from gateway.routing.operation import Column, Kind, PinCause, SqlOperation, Table
from gateway.routing.sql_facts import Facts, scan
from gateway.routing.sql_tokens import SPACE, Token, TokenKind, canonical_pieces
from gateway.routing.sql_tree import Touched, UnprovenError, parse, prove_read, touched

PARSE_TOKENS: Final = 2_500
"""Most tokens that are parsed and proven, 8 us each (measured); 8 KiB of ordinary SQL have half as many."""

QUERY_WORDS: Final = frozenset(["SELECT", "WITH", "VALUES", "TABLE", "("])
CHANGE_WORDS: Final = frozenset(["INSERT", "REPLACE", "UPDATE", "DELETE"])

_MODIFIERS: Final = words(
    """
    HIGH_PRIORITY LOW_PRIORITY DELAYED QUICK IGNORE SQL_NO_CACHE SQL_CACHE SQL_SMALL_RESULT SQL_BIG_RESULT
    SQL_BUFFER_RESULT SQL_CALC_FOUND_ROWS STRAIGHT_JOIN
    """
)
"""Words after SELECT, INSERT, ... that change neither class nor tables, and that sqlglot does not know everywhere."""

_SCHEMA_TABLES: Final = words(
    """
    APPLICABLE_ROLES CHARACTER_SETS CHECK_CONSTRAINTS COLLATIONS COLLATION_CHARACTER_SET_APPLICABILITY COLUMNS
    COLUMN_PRIVILEGES COLUMN_STATISTICS COLUMNS_EXTENSIONS ENABLED_ROLES ENGINES EVENTS GEOMETRY_COLUMNS KEYWORDS
    KEY_COLUMN_USAGE PARAMETERS PARTITIONS PERIODS KEY_PERIOD_USAGE PLUGINS REFERENTIAL_CONSTRAINTS RESOURCE_GROUPS
    ROLE_COLUMN_GRANTS ROLE_ROUTINE_GRANTS ROLE_TABLE_GRANTS ROUTINES SCHEMATA SCHEMATA_EXTENSIONS SCHEMA_PRIVILEGES
    SEQUENCES SPATIAL_REF_SYS SQL_FUNCTIONS STATISTICS ST_GEOMETRY_COLUMNS ST_SPATIAL_REFERENCE_SYSTEMS
    ST_UNITS_OF_MEASURE TABLES TABLESPACES TABLESPACES_EXTENSIONS TABLES_EXTENSIONS TABLE_CONSTRAINTS
    TABLE_CONSTRAINTS_EXTENSIONS TABLE_PRIVILEGES TRIGGERS USER_ATTRIBUTES USER_PRIVILEGES VIEWS VIEW_ROUTINE_USAGE
    VIEW_TABLE_USAGE LIBRARIES
    """
)
"""INFORMATION_SCHEMA tables that describe the schema; the others describe one server or one connection."""

_SERVER_SCHEMAS: Final = frozenset(["performance_schema", "sys"])
_CONNECTION_TABLES: Final = frozenset(["PROFILING", "OPTIMIZER_TRACE", "USER_VARIABLES"])
_MYSQL_TABLES_OF_ONE_SERVER: Final = words(
    """
    GENERAL_LOG SLOW_LOG GTID_EXECUTED GTID_SLAVE_POS INNODB_INDEX_STATS INNODB_TABLE_STATS SLAVE_MASTER_INFO
    SLAVE_RELAY_LOG_INFO SLAVE_WORKER_INFO REPLICATION_ASYNCHRONOUS_CONNECTION_FAILOVER
    REPLICATION_ASYNCHRONOUS_CONNECTION_FAILOVER_MANAGED REPLICATION_GROUP_CONFIGURATION_VERSION
    REPLICATION_GROUP_MEMBER_ACTIONS SERVER_COST ENGINE_COST COLUMN_STATS INDEX_STATS TABLE_STATS
    """
)
"""Tables of the schema mysql that are not replicated."""


def _look(facts: Facts, tokens: Sequence[Token]) -> str:
    """Add to the facts what the clauses of a query say; returns the name of its statement."""
    statement = ""
    words = [token.word if token.kind is not TokenKind.SIGN or token.word == "(" else "" for token in tokens]
    words.append("")
    for index, token in enumerate(tokens):
        if token.kind is not TokenKind.WORD:
            continue
        word, following = token.word, words[index + 1]
        before = words[index - 1] if index else ""
        if word == "INTO" and statement not in ("insert", "replace"):
            if following in ("OUTFILE", "DUMPFILE"):
                facts.writes = "writes a file on the server"
            else:
                facts.session = "stores its result in variables (INTO)"
                facts.pin_beside = PinCause.USER_VARIABLE
                facts.pin = facts.pin if facts.pin is PinCause.PROCEDURE else PinCause.USER_VARIABLE
        elif (word == "FOR" and following in ("UPDATE", "SHARE")) or (word == "LOCK" and following == "IN"):
            facts.writes = "locks the rows that it reads"
        elif word == "PROCEDURE":
            facts.unknown = facts.unknown or "has a PROCEDURE clause"
            facts.unknown_beside = facts.unknown_beside or "has a PROCEDURE clause"
        elif word in CHANGE_WORDS and following != "(" and before not in ("FOR", "KEY", "ON"):
            facts.writes = facts.writes or "changes data"
            statement = word.lower()
        elif not statement and word in ("SELECT", "VALUES", "TABLE"):
            statement = word.lower()
    return statement or "select"


def _without_modifiers(tokens: Sequence[Token]) -> list[Token]:
    """The tokens as sqlglot likes them: REPLACE as INSERT, without the modifiers after the verb."""
    kept: list[Token] = []
    after_verb = False
    for token in tokens:
        if token.kind is TokenKind.WORD:
            if after_verb and token.word in _MODIFIERS:
                continue
            after_verb = token.word in ("SELECT", *CHANGE_WORDS)
        else:
            after_verb = False
        kept.append(token)
    if kept and kept[0].word == "REPLACE":
        kept[0] = kept[0]._replace(word="INSERT", text="INSERT")
    if kept and kept[0].word == "VALUES":
        return _rows_as_row(kept)
    return kept


def _with_marked_calls(tokens: Sequence[Token], called: Sequence[int]) -> Sequence[Token]:
    """The tokens with the names of functions that are no built-ins marked, lest they are some that sqlglot knows.

    It knows hundreds that no MySQL has, and makes `SORT_ARRAY(1, SORT_ARRAY(1, ...))` twice as large at each level.
    """
    if not called:
        return tokens
    marked = list(tokens)
    for index in called:
        token = marked[index]
        marked[index] = token._replace(kind=TokenKind.NAME, word="", text=token.text + _STORED_MARK)
    return marked


_STORED_MARK: Final = "$stored"


def _rows_as_row(tokens: Sequence[Token]) -> list[Token]:
    """MariaDB's VALUES (1), (2) as MySQL's VALUES ROW(1), ROW(2), which sqlglot parses."""
    kept: list[Token] = []
    depth = 0
    for token in tokens:
        if token.word == "(" and depth == 0 and kept[-1].word in ("VALUES", ","):
            kept.append(Token(TokenKind.WORD, "ROW", "ROW", SPACE))
        depth += (token.word == "(") - (token.word == ")")
        kept.append(token)
    return kept


def first_table(tokens: Sequence[Token], index: int) -> tuple[Table | None, int]:
    """The name [database.]table at `index`, and the index after it."""
    names: list[str] = []
    while index < len(tokens) and tokens[index].kind in (TokenKind.WORD, TokenKind.NAME):
        names.append(tokens[index].text)
        index += 1
        if index < len(tokens) and tokens[index].word == "." and len(names) < 2:
            index += 1
            continue
        break
    if not names:
        return None, index
    return Table(names[-1], names[0] if len(names) == 2 else None), index


def _fallback_target(tokens: Sequence[Token]) -> Touched:
    """The target of a data change that does not parse, as far as its first words show it."""
    result = Touched()
    rest = _without_modifiers(tokens)
    index = 1
    while index < len(rest) and rest[index].word in ("INTO", "FROM"):
        index += 1
    table, _ = first_table(rest, index)
    if table is not None:
        result.writes.append(table)
    result.columns.add(Column("*"))
    result.without_where = rest[0].word in ("UPDATE", "DELETE") and all(token.word != "WHERE" for token in rest)
    return result


def _asks_server(facts: Facts, tables: Sequence[Table]) -> None:
    for table in tables:
        database = (table.database or "").lower()
        name = table.name.upper()
        if database in _SERVER_SCHEMAS:
            facts.primary = f"reads {database}, which is about one server"
        elif database == "mysql" and name in _MYSQL_TABLES_OF_ONE_SERVER:
            facts.primary = f"reads mysql.{name.lower()}, which is about one server"
        elif (database == "information_schema" and name not in _SCHEMA_TABLES) or (
            not database and name == "PROCESSLIST"
        ):
            facts.primary = f"reads {name}, which is about one server"
            if name in _CONNECTION_TABLES:
                facts.last_connection = True


def classify_query(tokens: Sequence[Token], reading: Reading, parse_limit: int) -> SqlOperation:
    """What one query or data change is. `parse_limit`: longest canonical text, in characters, that is parsed."""
    facts = scan(tokens, reading)
    statement = _look(facts, tokens)
    change = tokens[0].word in CHANGE_WORDS
    if change:
        statement = tokens[0].word.lower()
        facts.writes = "changes data"
    known = read_functions(reading.mariadb, reading.version)
    pieces = canonical_pieces(_without_modifiers(_with_marked_calls(tokens, facts.stored_at)))
    text = "".join(pieces)
    what: Touched | None = None
    problem: str | None = None
    problem_beside: str | None = None  # as if the stored functions were known to only read
    try:
        if len(text) > parse_limit:
            raise UnprovenError(f"is longer than the {parse_limit} bytes that are parsed")
        if len(pieces) > PARSE_TOKENS:
            raise UnprovenError(f"has more than the {PARSE_TOKENS} words and signs that are parsed")
        tree = parse(text)
        what = touched(tree)
        if not change and facts.stored:
            stored = {name.name.lower() + _STORED_MARK for name in facts.stored}
            prove_read(tree, known | stored, stored=True)
        if not change:
            problem_beside, problem = None, _problem(tree, known)
    except UnprovenError as unproven:
        problem = problem_beside = str(unproven)
    except (
        Exception
    ) as error:  # sqlglot raises far more than its ParseError, RecursionError among them: all mean unparsed
        problem = problem_beside = f"does not parse ({type(error).__name__})"
    complete = what is not None
    if what is None:
        what = _fallback_target(tokens) if change else Touched(columns={Column("*")})
    _asks_server(facts, what.reads)
    operation = _operation(facts, statement, what, complete, problem, change)
    operation = replace(operation, upsert=change and _updates_duplicates(tokens))
    if not facts.stored:
        return operation
    facts.unknown, facts.pin = facts.unknown_beside, facts.pin_beside
    proven = _operation(facts, statement, what, complete, problem_beside, change)
    proven = replace(proven, upsert=operation.upsert)
    return replace(operation, calls=tuple(dict.fromkeys(facts.stored)), if_proven=proven)


def _problem(tree: exp.Expr, known: frozenset[str]) -> str | None:
    try:
        prove_read(tree, known)
    except UnprovenError as unproven:
        return str(unproven)
    return None


def _updates_duplicates(tokens: Sequence[Token]) -> bool:
    return any(token.word == "DUPLICATE" and token.kind is TokenKind.WORD for token in tokens)


def _operation(
    facts: Facts, statement: str, what: Touched, complete: bool, problem: str | None, change: bool
) -> SqlOperation:
    kind, reason = Kind.READ, "a query that only reads"
    if facts.unknown and not change:
        kind, reason = Kind.UNKNOWN, facts.unknown
    elif facts.writes:
        kind, reason = Kind.WRITE, facts.unknown or facts.writes
    elif facts.session:
        kind, reason = Kind.SESSION, facts.session
    elif problem is not None:
        kind, reason = Kind.UNKNOWN, problem
    return SqlOperation(
        kind,
        statement,
        reason,
        reads=tuple(what.reads),
        writes=tuple(what.writes),
        columns=frozenset(what.columns),
        functions=frozenset(facts.functions),
        pin=facts.pin,
        unpin=facts.unpin,
        last_connection=facts.last_connection,
        user_variables=frozenset(facts.user_variables),
        without_where=what.without_where,
        needs_primary=facts.primary if kind is Kind.READ else None,
        tables_complete=complete and facts.unknown is None,
        found_rows=facts.found_rows,
        by_task="release_lock" in facts.functions,
    )
