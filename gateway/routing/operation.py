"""What one request is, as plain data: its kind, what it touches, what it does to the session.

An operation says nothing about where the request goes; `router` decides that from the operation, the session and a
snapshot. It is immutable and shared: the SQL classifier returns the same object for every text with the same meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

THREAD_ID_BIT: Final = 1 << 31
"""Set in the thread ids that the gateway gives to its sessions, in none of a server's: KILL tells them apart by it."""


class Kind(Enum):
    """What a request may do to the data. Only READ may ever go to a replica."""

    READ = "read"  # proven to read and to have no side effect
    WRITE = "write"  # changes data or schema
    TRANSACTION = "transaction"  # begins, ends or marks a transaction
    SESSION = "session"  # changes session state only (SET, USE, ...)
    UNKNOWN = "unknown"  # nothing could be proven: treated as a write that also touches the session


class TransactionEffect(Enum):
    """What a statement does to the transaction of its session."""

    NONE = "none"
    BEGIN = "begin"
    BEGIN_READ_ONLY = "begin-read-only"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    SAVEPOINT = "savepoint"  # SAVEPOINT, RELEASE SAVEPOINT, ROLLBACK TO
    IMPLICIT_COMMIT = "implicit-commit"  # DDL and its kin: commits what is open, then runs


class PinCause(Enum):
    """Why a session must keep its backend connection on the primary. Values are what a person reads."""

    TEMPORARY_TABLE = "temporary table"
    USER_VARIABLE = "user variable set to something that cannot be replayed"
    SESSION_VARIABLE = "session variable that cannot be replayed"
    TABLE_LOCK = "table lock"
    INSTANCE_LOCK = "instance or backup lock"
    NAMED_LOCK = "named lock (GET_LOCK)"
    PREPARED_STATEMENT = "prepared statement (PREPARE as SQL text)"
    HANDLER = "open HANDLER"
    PROCEDURE = "stored procedure or function that nothing is known about"
    TRANSACTION_CHARACTERISTIC = "one-shot SET TRANSACTION"
    ROLE = "SET ROLE"
    XA = "XA transaction"
    SAVEPOINT = "savepoint before the transaction's first table, under autocommit=0"
    CONNECTION_ID = "CONNECTION_ID() was asked for: whoever ends it by KILL must not end another session's work"
    UNPROVEN = "statement that could not be understood"


@dataclass(frozen=True, slots=True)
class Table:
    """A table as the statement names it; `database` is None where the session's own is meant."""

    name: str
    database: str | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A column that a statement reads or writes. `name` "*" stands for all of the table, `table` None for unknown."""

    name: str
    table: Table | None = None


class Scope(Enum):
    """Which kind of variable an assignment sets."""

    SESSION = "session"  # SET [SESSION|@@session.] name = literal
    USER = "user"  # SET @name = literal
    NAMES = "names"  # SET NAMES / SET CHARACTER SET: `name` is "names" or "character set", `value` what follows


@dataclass(frozen=True, slots=True)
class Assignment:
    """One assignment whose value is a literal, so that it can be replayed on another connection.

    `name` is lower case without @ signs; `value` is SQL text that may stand after the equals sign as it is.
    """

    scope: Scope
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Hint:
    """What a `/* gateway: ... */` comment asks for. Times in seconds. `problem` is set where it was not understood."""

    to: str | None = None  # "primary" or "replica"
    consistency: str | None = None  # eventual | bounded | session | strong
    max_lag: float | None = None
    freshness_wait: float | None = None
    problem: str | None = None


NO_HINT = Hint()


@dataclass(frozen=True, slots=True)
class Kill:
    """KILL of a session of the gateway. `thread` is its id, None for whoever asks."""

    thread: int | None
    query: bool  # end its statement only


@dataclass(frozen=True, slots=True)
class SqlOperation:
    """What one SQL statement (or several in one text) is."""

    kind: Kind
    statement: str  # the statement's name, lower case: "select", "insert", "create table", "set", "start transaction"
    reason: str  # in words: why it is of this kind ("calls now(), which ...")
    reads: tuple[Table, ...] = ()
    writes: tuple[Table, ...] = ()
    columns: frozenset[Column] = frozenset()
    functions: frozenset[str] = frozenset()  # lower case
    transaction: TransactionEffect = TransactionEffect.NONE
    chain: bool = False  # COMMIT/ROLLBACK AND CHAIN: a new transaction begins at once
    assignments: tuple[Assignment, ...] = ()  # replayable effects of SET
    database: str | None = None  # USE: the database it selects
    pin: PinCause | None = None  # the session must keep its primary connection from here on
    unpin: PinCause | None = None  # UNLOCK TABLES and its kin: ends that pin
    last_connection: bool = False  # reads LAST_INSERT_ID(), warnings, ROW_COUNT(): only the connection before knows
    user_variables: frozenset[str] = frozenset()  # read by the statement, lower case, without the @
    temporary_tables: tuple[Table, ...] = ()  # created by it
    without_where: bool = False  # an UPDATE or DELETE that names no row
    multi: bool = False  # more than one statement in the text
    needs_primary: str | None = None  # a read that must run at the primary, and why ("SHOW PROCESSLIST: ...")
    hint: Hint = NO_HINT
    gateway: str | None = None  # SHOW GATEWAY ... / SET GATEWAY ...: answered by the gateway, the words after GATEWAY
    tables_complete: bool = True  # reads and writes name all tables; False: there may be others (DDL, CALL, unparsed)
    release: bool = False  # COMMIT/ROLLBACK RELEASE: the server closes the connection after it
    found_rows: bool = False  # SQL_CALC_FOUND_ROWS: leaves FOUND_ROWS() behind on its connection
    kill: Kill | None = None  # KILL of a gateway's thread id
    by_task: bool = False  # takes more than sending it and passing the reply on: served by the session's task
    read_back: tuple[Assignment, ...] = ()  # set to no literal: their values can be asked for (`value` is "")
    names: tuple[str, ...] = ()  # what `pin` or `unpin` is about: temporary tables, handlers; () for all there is
    describes: bool = False  # names tables only to show what they are (SHOW COLUMNS): no row of them is read
    upsert: bool = False  # an INSERT that may update rows (ON DUPLICATE KEY UPDATE)
    columns_complete: bool = True  # False: columns that nobody knows are touched too, through a view or routine
    calls: tuple[Table, ...] = ()  # the stored functions that it calls, if that is what they are
    if_proven: SqlOperation | None = None  # what it is if all of `calls` only read; None where that changes nothing
    plain: bool = field(init=False, compare=False, repr=False)  # a read after whose reply nothing has to be followed

    def __post_init__(self) -> None:
        object.__setattr__(self, "plain", self._is_plain())

    def _is_plain(self) -> bool:
        """Asked once for each operation, not for each request."""
        changes_session = self.pin or self.unpin or self.assignments or self.read_back or self.database
        return (
            self.kind is Kind.READ
            and self.transaction is TransactionEffect.NONE
            and not changes_session
            and not self.found_rows
            and not self.multi
        )


class Effect(Enum):
    """What a key-value verb does, as far as replication is concerned."""

    NONE = "none"
    STORE = "store"  # set add replace cas: the value is in the request
    CHANGE = "change"  # append prepend incr decr: the value is known only after the answer
    DELETE = "delete"
    TOUCH = "touch"  # touch gat gats
    FLUSH = "flush"


@dataclass(frozen=True, slots=True)
class KeyOperation:
    """What a key-value verb is; the key itself stays in the request."""

    kind: Kind
    verb: str
    effect: Effect = Effect.NONE
