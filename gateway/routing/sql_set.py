"""Reads SET: which assignments can be replayed by value on another connection, and what pins instead.

Only literals are replayable. `SET @id = UUID()` or `SET @a = @a + 1` would give another value the second time, DEFAULT
may be another value on another server, and some variables mean something only on the connection where they were set.

Source: MySQL manual, SET Syntax for Variable Assignment, SET TRANSACTION; MariaDB documentation, SET.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from gateway.routing.functions import words
from gateway.routing.operation import Assignment, Kind, PinCause, Scope, SqlOperation, TransactionEffect
from gateway.routing.sql_tokens import Token, TokenKind

CONNECTION_VARIABLES: Final = words(
    """
    timestamp insert_id last_insert_id identity rand_seed1 rand_seed2 skip_replication sql_log_bin sql_log_off
    transaction_read_only tx_read_only completion_type profiling profiling_history_size server_id proxy_user
    external_user default_master_connection skip_parallel_replication read_only_compat original_commit_timestamp
    original_server_version immediate_server_version rbr_exec_mode default_week_format_compat resultset_metadata
    optimizer_trace require_row_format print_identified_with_as_hex terminology_use_previous
    show_create_table_skip_secondary_engine secondary_engine_cost_threshold
    """
)
"""Session variables whose value belongs to one connection, or changes what the gateway itself must decide."""

CONNECTION_PREFIXES: Final = (
    "gtid_", "pseudo_", "session_track_", "wsrep_", "ndb_", "debug", "binlog_", "sql_log_", "innodb_", "rpl_",
    "replicate_", "slave_", "replica_", "optimizer_trace", "performance_schema", "spider_", "system_versioning_",
)  # fmt: skip

TRACKERS: Final = frozenset(
    {
        "session_track_gtids",
        "session_track_schema",
        "session_track_state_change",
        "session_track_system_variables",
        "session_track_transaction_info",
    }
)
"""What says of which changes a server tells. The gateway has some of its own (backends.mysql_trackers)."""

ISOLATION_VARIABLES: Final = frozenset(["transaction_isolation", "tx_isolation"])
ONE_SHOT_VARIABLES: Final = ISOLATION_VARIABLES | {"transaction_read_only", "tx_read_only"}
"""`SET @@name = ...` without a scope sets these for the next transaction only (manual: SET TRANSACTION)."""

READING_VARIABLES: Final = frozenset(["sql_mode", "character_set_client"])
"""What decides how the texts that follow are read: the gateway must know the value, not only replay it."""

_LEVELS: Final = {
    ("READ", "UNCOMMITTED"): "'READ-UNCOMMITTED'",
    ("READ", "COMMITTED"): "'READ-COMMITTED'",
    ("REPEATABLE", "READ"): "'REPEATABLE-READ'",
    ("SERIALIZABLE",): "'SERIALIZABLE'",
}
_GLOBAL_SCOPES: Final = frozenset(["GLOBAL", "PERSIST", "PERSIST_ONLY"])
_SCOPES: Final = _GLOBAL_SCOPES | {"SESSION", "LOCAL"}
_BARE_VALUE: Final = re.compile(r"[A-Za-z0-9_]{1,64}")


@dataclass(slots=True)
class _Found:
    assignments: list[Assignment] = field(default_factory=list)
    user_variables: set[str] = field(default_factory=set)
    pin: PinCause | None = None
    reason: str = ""
    server: bool = False  # changes a global variable
    read_back: list[Assignment] = field(default_factory=list)  # without a value: it has to be asked for
    only_to_read: bool = True  # nothing pins but what can be read back

    def pinned(self, cause: PinCause, reason: str, *read_back: Assignment) -> None:
        """Notes why it pins; `read_back`: the values that, once known, are all that it changed."""
        if self.pin is None:
            self.pin, self.reason = cause, reason
        self.read_back += read_back
        self.only_to_read = self.only_to_read and bool(read_back)


def _split(tokens: Sequence[Token]) -> list[list[Token]]:
    """The assignments between the commas that stand in no parentheses."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        if token.word == "," and depth == 0:
            parts.append([])
            continue
        depth += (token.word == "(") - (token.word == ")")
        parts[-1].append(token)
    return parts


def _literal(tokens: Sequence[Token], *, words: bool) -> str | None:
    """SQL text of a value that is one literal (or, for system variables, one plain word), None for anything else."""
    sign = ""
    if len(tokens) == 2 and tokens[0].word in ("-", "+") and tokens[1].kind is TokenKind.NUMBER:
        sign, tokens = tokens[0].word, tokens[1:]
    if len(tokens) != 1:
        return None
    token = tokens[0]
    if token.kind in (TokenKind.STRING, TokenKind.NUMBER):
        return sign + token.text
    if token.kind is TokenKind.WORD:
        if token.word in ("NULL", "TRUE", "FALSE"):
            return token.word
        if words and token.word != "DEFAULT" and _BARE_VALUE.fullmatch(token.text):
            return token.text
    return None


def _plain(token: Token) -> bool:
    """Whether a value is what it looks like: no number (`SET sql_mode = 4` is ANSI_QUOTES), no escapes (`'A\\NSI'`)."""
    return token.kind is TokenKind.WORD or (token.kind is TokenKind.STRING and "\\" not in token.text)


_SET_WITH_NAMES: Final = tuple(
    Assignment(Scope.SESSION, name, "")
    for name in ("character_set_client", "collation_connection", "character_set_results")
)


def _names(found: _Found, name: str, tokens: Sequence[Token]) -> None:
    """SET NAMES value [COLLATE value], SET CHARACTER SET value."""
    default = len(tokens) == 1 and tokens[0].word == "DEFAULT"
    if name == "character set" and len(tokens) == 1:
        reason = "sets the collation to that of the database at hand"
        return found.pinned(PinCause.SESSION_VARIABLE, reason, *_SET_WITH_NAMES)
    if default:
        return found.pinned(PinCause.SESSION_VARIABLE, "sets the names to the server's own", *_SET_WITH_NAMES)
    values = []
    for index, token in enumerate(tokens):
        if index == 1 and token.word == "COLLATE" and name == "names" and len(tokens) == 3:
            values.append("COLLATE")
            continue
        value = _literal([token], words=True) if index in (0, 2) else None
        if value is None or value in ("NULL", "TRUE", "FALSE") or not _plain(token):
            return found.pinned(PinCause.SESSION_VARIABLE, f"sets {name} to something that is no plain name")
        values.append(value)
    if len(values) not in (1, 3):
        return found.pinned(PinCause.SESSION_VARIABLE, f"sets {name} in a form that is not known")
    found.assignments.append(Assignment(Scope.NAMES, name, " ".join(values)))
    return None


def _transaction(found: _Found, tokens: Sequence[Token], *, session: bool) -> None:
    """What follows SET [SESSION] TRANSACTION: characteristics, separated by commas."""
    if not session:
        return found.pinned(PinCause.TRANSACTION_CHARACTERISTIC, "sets what holds for the next transaction only")
    for part in _split(tokens):
        words = tuple(token.word for token in part)
        level = _LEVELS.get(words[2:]) if words[:2] == ("ISOLATION", "LEVEL") else None
        if level is None:
            found.pinned(PinCause.SESSION_VARIABLE, "sets the access mode of the session's transactions")
        else:
            found.assignments.append(Assignment(Scope.SESSION, "transaction_isolation", level))
    return None


def _system(found: _Found, name: str, value: Sequence[Token]) -> None:
    if name in TRACKERS:
        literal = _literal(value, words=True)
        if literal is not None and _plain(value[-1]):
            found.assignments.append(Assignment(Scope.SESSION, name, literal))
        # Its connection is kept until the gateway's own trackers are on again.
        return found.pinned(
            PinCause.SESSION_VARIABLE,
            f"sets {name}, beside which the gateway has its own",
            Assignment(Scope.SESSION, name, ""),
        )
    if name in CONNECTION_VARIABLES or name.startswith(CONNECTION_PREFIXES):
        return found.pinned(PinCause.SESSION_VARIABLE, f"sets {name}, which belongs to one connection")
    if "." in name:
        return found.pinned(PinCause.SESSION_VARIABLE, f"sets {name}, which is no plain variable")
    literal = _literal(value, words=True)
    asked = [Assignment(Scope.SESSION, "transaction_isolation" if name in ISOLATION_VARIABLES else name, "")]
    if name == "sql_auto_is_null":
        asked = []  # what it says decides whether it may follow at all
    if literal is None:
        return found.pinned(PinCause.SESSION_VARIABLE, f"sets {name} to something that is no literal", *asked)
    if name in READING_VARIABLES and not _plain(value[-1]):
        return found.pinned(PinCause.SESSION_VARIABLE, f"sets {name} to something that is no plain name", *asked)
    if name == "sql_auto_is_null" and literal.strip("'\"").upper() not in ("0", "OFF", "FALSE"):
        return found.pinned(PinCause.SESSION_VARIABLE, "makes IS NULL ask for the connection's last insert id")
    if name in ISOLATION_VARIABLES:
        name = "transaction_isolation"
        literal = f"'{literal}'" if literal[0] not in "'\"" and not literal[0].isdigit() else literal
    found.assignments.append(Assignment(Scope.SESSION, name, literal))
    return None


def _assignment(found: _Found, tokens: Sequence[Token], scope: str) -> str:
    """One assignment of a list; returns the scope that the next one inherits ("" for the session's)."""
    first = tokens[0] if tokens else None
    explicit = False
    if first is not None and first.word in _SCOPES and len(tokens) > 1 and tokens[1].word not in ("=", ":="):
        scope, tokens, explicit = first.word, tokens[1:], True
    equals = next((index for index, token in enumerate(tokens) if token.word in ("=", ":=")), None)
    if not equals or equals + 1 == len(tokens):
        found.pinned(PinCause.UNPROVEN, "is a SET that is not known")
        return scope
    target, value = tokens[:equals], tokens[equals + 1 :]
    first = target[0]
    if first.kind is TokenKind.USER_VARIABLE and len(target) == 1:
        literal = _literal(value, words=False)
        if literal is None:
            asked = Assignment(Scope.USER, first.text, "")
            found.pinned(PinCause.USER_VARIABLE, f"sets @{first.text} to something that is no literal", asked)
        else:
            found.assignments.append(Assignment(Scope.USER, first.text, literal))
        return scope
    if first.kind is TokenKind.SYSTEM_VARIABLE and len(target) == 1:
        prefix, _, name = first.text.rpartition(".")
        if prefix in ("global", "persist", "persist_only"):
            found.server = True
        elif prefix == "" and name in ONE_SHOT_VARIABLES:
            found.pinned(PinCause.TRANSACTION_CHARACTERISTIC, f"sets @@{name} for the next transaction only")
        elif prefix in ("", "session", "local"):
            _system(found, name, value)
        else:
            found.pinned(PinCause.UNPROVEN, f"sets @@{first.text}, which is not known")
        return scope
    name = "".join(token.text for token in target).lower()
    if scope in _GLOBAL_SCOPES:
        found.server = True
        if not explicit:
            # Which scope a following name without one has differs between versions.
            found.pinned(PinCause.SESSION_VARIABLE, f"sets {name} after a global variable")
    elif name.isascii() and all(
        token.kind in (TokenKind.WORD, TokenKind.NAME) or token.word == "." for token in target
    ):  # to MySQL `İnsert_id` is insert_id (tried)
        _system(found, name, value)
    else:
        found.pinned(PinCause.UNPROVEN, f"sets {name}, which is not known")
    return scope


def classify_set(tokens: Sequence[Token]) -> SqlOperation:
    """What a statement that begins with SET is; `tokens` with the SET, and with their literals as they stand."""
    words = [token.word for token in tokens[1:5]] + [""] * 4
    if words[0] == "PASSWORD":
        return SqlOperation(
            Kind.WRITE, "set password", "changes an account", transaction=TransactionEffect.IMPLICIT_COMMIT
        )
    if words[0] == "DEFAULT" and words[1] == "ROLE":
        return SqlOperation(
            Kind.WRITE, "set default role", "changes accounts", transaction=TransactionEffect.IMPLICIT_COMMIT
        )
    if words[0] == "ROLE":
        return SqlOperation(Kind.SESSION, "set role", "changes the role of its connection", pin=PinCause.ROLE)
    if words[0] == "STATEMENT":
        return SqlOperation(
            Kind.UNKNOWN, "set statement", "runs a statement under other variables", pin=PinCause.SESSION_VARIABLE,
            tables_complete=False,
        )  # fmt: skip
    if words[0] == "RESOURCE" and words[1] == "GROUP":
        return SqlOperation(
            Kind.SESSION, "set resource group", "binds a thread of one server", pin=PinCause.SESSION_VARIABLE
        )
    found = _Found()
    body = tokens[1:]
    scope = words[0] if words[0] in _SCOPES else ""
    if words[0] == "TRANSACTION":
        _transaction(found, body[1:], session=False)
    elif scope and words[1] == "TRANSACTION":
        if scope in _GLOBAL_SCOPES:
            return SqlOperation(Kind.WRITE, "set", "changes a variable of the server")
        _transaction(found, body[2:], session=True)
    else:
        scope = ""
        for part in _split(body):
            head = [token.word for token in part[:2]] + ["", ""]
            if head[0] == "NAMES" and head[1] not in ("=", ":="):
                _names(found, "names", part[1:])
            elif head[0] == "CHARACTER" and head[1] == "SET":
                _names(found, "character set", part[2:])
            elif head[0] == "CHARSET" and head[1] not in ("=", ":="):
                _names(found, "character set", part[1:])
            else:
                scope = _assignment(found, part, scope)
    variables = frozenset(
        token.text for token in body if token.kind is TokenKind.USER_VARIABLE
    ) - {assignment.name for assignment in found.assignments if assignment.scope is Scope.USER}  # fmt: skip
    kind = Kind.WRITE if found.server else Kind.SESSION
    if found.pin is PinCause.UNPROVEN:
        kind = Kind.UNKNOWN
    return SqlOperation(
        kind,
        "set",
        found.reason
        or ("changes a variable of the server" if found.server else "sets session state that can be replayed"),
        # Also beside a pin: the session must know them, and its connection has them.
        assignments=tuple(found.assignments),
        pin=found.pin,
        user_variables=variables,
        read_back=tuple(found.read_back) if found.only_to_read and not found.server else (),
        by_task=bool(found.read_back),
    )
