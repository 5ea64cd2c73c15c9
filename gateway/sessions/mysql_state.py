"""What a MySQL session keeps between commands: state that follows it, pins, and which connection knows its residue.

State that has a value (database, character set, literals of SET) follows the session to any connection. What has none
*pins* the session to its connection. *Residue* is what a statement leaves behind on the connection that ran it: an
insert id, warnings, row counts; it is asked for there, or remembered when that connection goes to somebody else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from gateway.backends.mysql import MysqlConnection
from gateway.backends.mysql_state import SERVERS_OWN, State, state_of
from gateway.errors import BackendRefused, Refused
from gateway.protocol.mysql.commands import argument_of, database_of
from gateway.protocol.mysql.constants import Command, ErrorCode, Status
from gateway.protocol.mysql.handshake import LoggedIn
from gateway.protocol.mysql.ok_packet import ServerError, SessionChanges
from gateway.routing.operation import Assignment, Kind, PinCause, Scope, SqlOperation, Table, TransactionEffect
from gateway.routing.sql_asks import named_locks
from gateway.routing.sql_long import UNREAD
from gateway.sessions.mysql_text_prepared import PreparedTexts

if TYPE_CHECKING:
    from gateway.replication.observe import ServerIdentity
    from gateway.sessions.mysql_service import MysqlService

IN_TRANSACTION: Final = int(Status.IN_TRANS | Status.IN_TRANS_READONLY)
AUTOCOMMIT: Final = int(Status.AUTOCOMMIT)
_NO_BACKSLASH_ESCAPES: Final = int(Status.NO_BACKSLASH_ESCAPES)
_DB_DROPPED: Final = int(Status.DB_DROPPED)
_PINNED_TEXT_BYTES: Final = 200  # of a statement, as SHOW GATEWAY PINS prints it

WITHOUT_STATUS: Final = frozenset({Command.STMT_PREPARE, Command.STATISTICS})  # replies that end without flags


# What the things that these are about are called, is known.
_WITH_NAMES: Final = frozenset(
    (PinCause.TEMPORARY_TABLE, PinCause.HANDLER, PinCause.NAMED_LOCK, PinCause.PREPARED_STATEMENT)
)
_ENDS: Final = frozenset((TransactionEffect.COMMIT, TransactionEffect.ROLLBACK))


@dataclass(slots=True)
class Pin:
    """Why a session keeps its connection, which statement caused it, and since when (Trio's clock, seconds).

    `names` are the things that it is about, and it ends with the last of them; None where they are not known.
    """

    cause: PinCause
    statement: str
    since: float
    names: set[str] | None


_SERIALIZABLE: Final = Assignment(Scope.SESSION, "transaction_isolation", "'SERIALIZABLE'")


def fresh_state(identity: ServerIdentity | None, database: str | None, collation: int) -> State:
    """What nobody has changed: all is as the servers have it, and no level weaker than the primary's own."""
    serializable = identity is not None and identity.isolation == "SERIALIZABLE"
    return state_of(database, collation, (_SERIALIZABLE,) if serializable else ())


def _command(statement: str, reason: str) -> SqlOperation:
    return SqlOperation(Kind.READ, statement, reason, needs_primary=reason)


_OTHER_COMMANDS: Final = {
    int(Command.FIELD_LIST): _command("field list", "COM_FIELD_LIST is answered by the primary"),
    int(Command.STATISTICS): _command("statistics", "COM_STATISTICS is answered by the primary"),
    int(Command.PROCESS_INFO): _command("process info", "COM_PROCESS_INFO is answered by the primary"),
    int(Command.DEBUG): _command("debug", "COM_DEBUG is carried out by the primary"),
    int(Command.REFRESH): SqlOperation(
        Kind.WRITE,
        "refresh",
        "COM_REFRESH flushes the primary",
        transaction=TransactionEffect.IMPLICIT_COMMIT,
        tables_complete=False,
    ),
    int(Command.SHUTDOWN): SqlOperation(Kind.WRITE, "shutdown", "COM_SHUTDOWN acts on the primary"),
}
_NOT_CARRIED: Final = frozenset({Command.BINLOG_DUMP, Command.BINLOG_DUMP_GTID, Command.REGISTER_SLAVE})


@lru_cache(maxsize=1024)
def _use(database: str) -> SqlOperation:
    return SqlOperation(Kind.SESSION, "use", "selects a database", database=database)


_REFRESH_GRANT: Final = 1  # COM_REFRESH's bit for FLUSH PRIVILEGES

# Statements after which other people may log in, or the same with other rights. FLUSH only of PRIVILEGES.
_ACCOUNT_STATEMENTS: Final = frozenset(
    f"{verb} {what}" for verb in ("create", "alter", "drop", "rename") for what in ("user", "role")
) | {"grant", "revoke", "set password", "set default role", UNREAD}


# What MariaDB says of a statement of several accounts of which it has changed some: CREATE, ALTER, DROP, RENAME USER or
# ROLE; GRANT and REVOKE.
_IN_PART: Final = frozenset({1396, 1268, 1269})


def changes_accounts(operation: SqlOperation, raw: bytes) -> bool:
    """Whether a statement, or one of several in its text, changes who may log in, or what accounts may do."""
    if operation.statement == "refresh":
        return bool(raw[5:6] and raw[5] & _REFRESH_GRANT)
    for name in operation.statement.split("; "):
        if name in _ACCOUNT_STATEMENTS or (name == "flush" and b"PRIVILEGES" in raw.upper()):
            return True
    return False


def operation_of_command(raw: bytes) -> SqlOperation | None:
    """What a command other than COM_QUERY is; None for one that is not served."""
    command = raw[4]
    if command == Command.INIT_DB:
        return _use(database_of(raw))
    return _OTHER_COMMANDS.get(command)


def refusal_of_command(command: int) -> Exception:
    """What a client is told whose command is not served: what servers say of bytes that are no command."""
    if command in _NOT_CARRIED:
        return Refused(
            f"gateway: COM_{Command(command).name} is for replicas, which must connect to a server itself",
            code=ErrorCode.UNKNOWN_COMMAND,
            sqlstate="08S01",
        )
    return BackendRefused("Unknown command", ErrorCode.UNKNOWN_COMMAND, "08S01")


class SessionState:
    """What follows one session: `state` by value, `status` flags of its last reply, `pins`, `reading` of its texts."""

    __slots__ = (
        "_capabilities",
        "_service",
        "idle_timeout",
        "pins",
        "reading",
        "state",
        "status",
        "texts",
    )

    def __init__(self, service: MysqlService, login: LoggedIn) -> None:
        self._service = service
        self._capabilities = login.capabilities
        self.state = fresh_state(service.topology.identity, login.database, login.collation)
        self.reading = service.reading(self.state, 0, login.capabilities)
        self.status = AUTOCOMMIT
        self.idle_timeout = service.config.idle_timeout  # seconds that the client may say nothing
        self.pins: dict[PinCause, Pin] = {}
        self.texts = PreparedTexts()

    def reset(self) -> None:
        """As after the log-in, but for the database (COM_RESET_CONNECTION)."""
        self.pins.clear()
        self.texts.clear()
        identity = self._service.topology.identity
        self.state = fresh_state(identity, self.state.database, SERVERS_OWN)  # as is the log-in's character set
        self.reading = self._service.reading(self.state, 0, self._capabilities)
        self.status = AUTOCOMMIT
        self.idle_timeout = self._service.config.idle_timeout

    def stays_at_primary(self) -> str | None:
        """Why the session itself keeps even proven reads at the primary, in words."""
        if not self.status & AUTOCOMMIT:
            if self._service.config.autocommit_off_reads == "primary":
                return "autocommit is off: every statement belongs to a transaction (autocommit_off_reads)"
            if not self._read_committed():
                return "autocommit is off, and only at READ COMMITTED may a transaction read at a replica first"
        return self.state.stays_at_primary

    def _read_committed(self) -> bool:
        """Whether each statement of a transaction sees what is committed by then, so that the server may change."""
        chosen = self.state.value_of("transaction_isolation")
        if chosen is not None:
            return chosen.strip("'\"").upper() in ("READ-COMMITTED", "1")
        identities = [member.identity for member in self._service.topology.members.values()]
        return all(identity is not None and identity.isolation == "READ-COMMITTED" for identity in identities)

    def follow(
        self, connection: MysqlConnection, raw: bytes, operation: SqlOperation, changes: SessionChanges | None
    ) -> None:
        """After success: what the statement did to the session. `status` is that of its reply already."""
        if operation.pin is PinCause.PREPARED_STATEMENT:
            raw, operation = self._follow_text(raw, operation)
        state = self.state
        if operation.database is not None:
            state = state.with_database(operation.database)
        if operation.assignments:
            state = state.with_assignments(operation.assignments)
        if changes is not None and changes.database and changes.database != state.database:
            state = state.with_database(changes.database)  # a USE within something that is not followed otherwise
        # The flag says that some database was dropped; only the tracker's "" that it was the selected one (tried).
        if self.status & _DB_DROPPED and changes is not None and changes.database == "":
            state = state_of(None, state.collation, state.assignments)
            connection.state = connection.selected = None
        if state is not self.state:
            self.state = state
            self.reading = self._service.reading(state, self.status, self._capabilities)
            self.idle_timeout = self._idle_timeout()
            if connection.state is not None:
                connection.brought_to(state)
        elif bool(self.status & _NO_BACKSLASH_ESCAPES) != self.reading.no_backslash_escapes:
            self.reading = self._service.reading(state, self.status, self._capabilities)
        if operation.pin is not None or operation.kind is Kind.UNKNOWN:
            connection.role_in_doubt = True  # SET ROLE, or what may have run it
        if operation.pin is not None:
            self.pin(raw, operation)
        elif operation.statement == "savepoint" and not self.status & (AUTOCOMMIT | IN_TRANSACTION):
            self.pin(raw, replace(operation, pin=PinCause.SAVEPOINT))  # servers tell of no transaction yet
        self.follow_accounts(raw, operation)
        if self.pins:
            self._unpin(operation)

    def follow_accounts(self, raw: bytes, operation: SqlOperation) -> None:
        """A statement was carried out, or nobody knows whether: other people may be able to log in now."""
        may_change = operation.transaction is TransactionEffect.IMPLICIT_COMMIT or operation.multi
        if may_change and changes_accounts(operation, raw):
            self._service.users.account_changed()

    def failed(self, raw: bytes, operation: SqlOperation, code: int, *, in_part: bool) -> None:
        """A statement was refused; `in_part`: others that stand before it in its text were carried out.

        Not everybody's mere attempt counts, or all connections could be made to be opened anew by who has no rights.
        """
        if in_part or code in _IN_PART:
            self.follow_accounts(raw, operation)

    def _follow_text(self, raw: bytes, operation: SqlOperation) -> tuple[bytes, SqlOperation]:
        """After PREPARE or EXECUTE as SQL text: the statement that has to be followed."""
        if operation.statement == "execute":
            return self.texts.executed(raw, operation, self.reading, self._service.classifier)
        if operation.statement == "prepare" and operation.names and not operation.multi:
            known = not self.pins.keys() - {PinCause.PREPARED_STATEMENT}
            self.texts.prepare(operation.names[0], argument_of(raw), self.reading, self.state if known else None)
        return raw, operation

    def stuck(self, raw: bytes, operation: SqlOperation, error: ServerError) -> None:
        """After an error: what may have stuck to the connection nevertheless, and what cannot be there."""
        if error.code == ErrorCode.UNKNOWN_STATEMENT and operation.unpin is PinCause.PREPARED_STATEMENT:
            self._unpin(operation)  # a PREPARE that failed had dropped it
        if operation.statement == "execute" and not operation.multi:
            if PinCause.PREPARED_STATEMENT not in self.pins:
                return  # there was nothing that it could have run
            raw, operation = self.texts.executed(raw, operation, self.reading, self._service.classifier)
        if operation.pin is not None and (operation.multi or operation.kind is Kind.UNKNOWN):
            self.pin(raw, operation)

    def _idle_timeout(self) -> float:
        """The listener's, or less if the client has set `wait_timeout` (seconds): it expects to be cut off then."""
        longest = self._service.config.idle_timeout
        chosen = self.state.value_of("wait_timeout") or ""
        return min(longest, max(1.0, float(chosen))) if chosen.isdecimal() else longest

    def follow_database(self, connection: MysqlConnection, database: str) -> None:
        """A text of several statements failed after one that selected a database."""
        connection.selected = database
        connection.state = None
        if database != self.state.database:
            self.state = self.state.with_database(database)
            self.reading = self._service.reading(self.state, self.status, self._capabilities)

    def pin(self, raw: bytes, operation: SqlOperation) -> None:
        cause = operation.pin
        if cause is None:
            return
        names = self._names(raw, operation)
        pin = self.pins.get(cause)
        if pin is None:
            text = argument_of(raw)[:_PINNED_TEXT_BYTES].decode("utf-8", "replace")
            statement = text if raw[4] == Command.QUERY else operation.statement
            self.pins[cause] = Pin(cause, statement, self._service.lane.now, names)
        elif cause in _WITH_NAMES and not (cause is PinCause.HANDLER and names is None):
            pin.names = None if names is None or pin.names is None else pin.names | names

    def _names(self, raw: bytes, operation: SqlOperation) -> set[str] | None:
        """What a pin is about."""
        if operation.multi:
            return None
        match operation.pin:
            case PinCause.TEMPORARY_TABLE:
                return self._qualified(operation.temporary_tables) or None
            case PinCause.HANDLER | PinCause.PREPARED_STATEMENT:
                return set(operation.names) or None
            case PinCause.NAMED_LOCK:
                return named_locks(argument_of(raw), self.reading)
            case _:
                return None

    def _qualified(self, tables: Iterable[Table]) -> set[str]:
        return {f"{table.database or self.state.database}.{table.name}" for table in tables}

    def _unpin(self, operation: SqlOperation) -> None:
        """Ends the pins whose cause has provably ended."""
        pins, cause = self.pins, operation.unpin
        if cause is not None and not operation.names:
            pins.pop(cause, None)
        elif cause is not None:
            self._without(cause, set(operation.names))
        statement = operation.statement
        if PinCause.TEMPORARY_TABLE in pins and not operation.multi:
            if statement == "drop table":
                self._without(PinCause.TEMPORARY_TABLE, self._qualified(operation.writes))
            elif statement in ("alter table", "rename table"):
                pins[PinCause.TEMPORARY_TABLE].names = None  # it may have another name now
        effect = operation.transaction
        if effect in _ENDS and not self.status & IN_TRANSACTION:
            pins.pop(PinCause.TRANSACTION_CHARACTERISTIC, None)
        if effect is not TransactionEffect.NONE and effect is not TransactionEffect.SAVEPOINT:
            pins.pop(PinCause.SAVEPOINT, None)

    def _without(self, cause: PinCause, names: set[str]) -> None:
        pin = self.pins.get(cause)
        if pin is not None and pin.names is not None:
            pin.names -= names
            if not pin.names:
                del self.pins[cause]

    def know(self, connection: MysqlConnection, made: tuple[Assignment, ...]) -> None:
        """What was set on `connection` is known by value: it follows the session from here on."""
        self.state = self.state.with_assignments(made)
        self.reading = self._service.reading(self.state, self.status, self._capabilities)
        if connection.state is not None:
            connection.brought_to(self.state)
