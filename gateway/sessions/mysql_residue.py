"""What the statement before left behind, answered by the gateway where no connection can be asked for it any more.

Warnings, row counts and the insert id live on the connection that ran a statement. As long as that one is idle it is
asked itself. Before it is lent to another session what it knows is *captured* (`backends.pool`), and a statement that
the gateway refused itself leaves what a server would leave. From there the simple questions are answered (`sql_asks`);
whatever else speaks of the statement before is refused, never answered with a stranger's value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from gateway.backends.mysql import Left, MysqlConnection
from gateway.errors import BackendRefused, ProtocolError
from gateway.protocol.mysql import answers
from gateway.protocol.mysql.answers import Column, Value
from gateway.protocol.mysql.constants import Collation, Command
from gateway.protocol.mysql.results import Row
from gateway.routing.operation import Kind, SqlOperation
from gateway.routing.sql_asks import Asked, Item, counts_its_rows, select_items, shown
from gateway.sessions.mysql_prepared import EXECUTE

if TYPE_CHECKING:
    from gateway.sessions.mysql import MysqlSession

SETTLE_SECONDS: Final = 0.01  # some times what a server takes to answer what it knows

_LONG: Final = 3  # FIELD_TYPE
_LONGLONG: Final = 8
_VAR_STRING: Final = 253
_NOT_NULL: Final = 1
_UNSIGNED: Final = 32
_BINARY: Final = 128
_COUNTED: Final = frozenset(("insert", "update", "delete", "replace"))  # their OK tells what ROW_COUNT() will

_SCHEMA_CHANGES: Final = ("create ", "alter ", "drop ", "truncate ", "rename ")  # theirs is 0

# MySQL 8.0.17 and later.
_DEPRECATED: Final = (
    "Warning",
    "1287",
    "FOUND_ROWS() is deprecated and will be removed in a future release. Consider using COUNT(*) instead.",
)


@dataclass(slots=True)
class Captured:
    """What is known of the statement before; None for what is not. `at`: the session's number of commands then.

    `first`: no connection knows it, since the gateway answered that statement itself.
    """

    at: int
    warnings: list[Row] | None  # level, code, message
    row_count: int | None
    found_rows: int | None
    first: bool = False
    sqlstates: tuple[str, ...] = ()  # of the first warnings


class Residue:
    """Where one session's residue is.

    `last` served the statement before, and `warned` says that it left warnings or an error; `writer` served the last
    write, so that LAST_INSERT_ID() lives there. Both may have been lent to another session since.
    """

    __slots__ = ("asked", "captured", "insert_id", "insert_id_lost", "last", "warned", "writer")

    def __init__(self) -> None:
        self.forget()

        self.asked: trio.Event | None = None  # somebody waits for `losing`

    def forget(self) -> None:
        """There is nothing to ask for."""
        self.last: MysqlConnection | None = None
        self.writer: MysqlConnection | None = None
        self.warned = False
        self.insert_id: int | None = None  # LAST_INSERT_ID(), where `writer` went to somebody else
        self.insert_id_lost = False  # it went away without anybody asking
        self.captured: Captured | None = None

    def losing(
        self, connection: MysqlConnection, left: Left | None, at: int, operation: SqlOperation | None, affected: int
    ) -> None:
        """A connection goes to somebody else (backends.mysql.Borrower).

        `at` is the session's number of commands; `operation` the last one, and `affected` what its OK said.
        """
        if self.asked is not None:
            self.asked.set()
            self.asked = None
        if connection is self.writer:
            self.writer = None
            self.insert_id = (left.insert_id or None) if left is not None else None
            self.insert_id_lost = left is None or left.insert_id is None
        if connection is self.last:
            self.last = None
            warnings: list[Row] | None = [] if not self.warned else None
            row_count: int | None = None
            if left is not None:
                warnings = left.warnings
                row_count = left.row_count
            if row_count is None and operation is not None:
                row_count = _row_count(operation, affected, warnings)
            self.captured = Captured(at, warnings, row_count, left.found_rows if left is not None else None)
            if left is not None:
                self.captured.sqlstates = tuple(left.sqlstates)

    def refused(self, at: int, code: int, text: str, sqlstate: str) -> None:
        """The gateway answered a statement with an error of its own, which is now the statement before."""
        self.captured = Captured(at, [("Error", str(code), text)], -1, None, first=True, sqlstates=(sqlstate,))


def _row_count(operation: SqlOperation, affected: int, warnings: list[Row] | None) -> int | None:
    if operation.kind is Kind.READ:
        return -1
    counted = operation.statement in _COUNTED or operation.statement.startswith(_SCHEMA_CHANGES)
    if operation.multi or not counted or warnings is None:
        return None
    failed = any(row[0] == "Error" for row in warnings)
    return -1 if failed else affected


def thread_id_answer(session: MysqlSession, raw: bytes) -> bytes:
    """The reply to SELECT CONNECTION_ID(): the gateway's thread id, which KILL takes."""
    items = select_items(session.prepared.text_and_reading(raw)[0])
    assert items is not None  # the classifier saw to it
    return _values(session, raw, [(item, session.id) for item in items], 0)


async def insert_id_answer(session: MysqlSession, raw: bytes) -> bytes | None:
    """The reply to SELECT LAST_INSERT_ID(); None if it asks for more, or the connection that knew it is lost."""
    items = select_items(session.prepared.text_and_reading(raw)[0])
    if items is None or any(item.asked is not Asked.LAST_INSERT_ID for item in items):
        return None
    known = await insert_id(session)
    return None if known is None else _values(session, raw, [(item, known) for item in items], 0)


async def answer(session: MysqlSession, raw: bytes) -> bytes | None:
    """The reply to a question about the statement before, made from what is known of it; None if that is not enough."""
    sql = session.prepared.text_and_reading(raw)[0]
    known = what_is_known(session)
    if known is None:
        return None
    asked = shown(sql)
    if asked is not None:
        if known.warnings is None:
            return None
        rows = [row for row in known.warnings if row[0] == "Error"] if asked.errors_only else known.warnings
        known.row_count = -1
        if asked.counted:
            name = "@@session.error_count" if asked.errors_only else "@@session.warning_count"
            return answers.resultset(
                [Column(name, _LONGLONG, 21, _UNSIGNED | _BINARY, int(Collation.BINARY))],
                [(len(rows),)],
                capabilities=session.capabilities,
                status=session.kept.status,
                binary=raw[4] == EXECUTE,
            )
        end = None if asked.limit is None else asked.offset + asked.limit
        return answers.resultset(
            _WARNING_COLUMNS,
            rows[asked.offset : end],
            capabilities=session.capabilities,
            status=session.kept.status,
            binary=raw[4] == EXECUTE,
        )
    items = select_items(sql)
    if items is None:
        return None
    values: list[tuple[Item, int]] = []
    for item in items:
        value = await _value(session, known, item.asked)
        if value is None:
            return None
        values.append((item, value))
    # What this SELECT leaves behind itself: MySQL forgets the warnings, MariaDB keeps them until a table is used.
    known.row_count = -1
    if not _is_mariadb(session):
        deprecated = any(item.asked is Asked.FOUND_ROWS for item in items)
        known.warnings = [_DEPRECATED] if deprecated else []
    known.found_rows = 1
    return _values(session, raw, values, 0 if _is_mariadb(session) else len(known.warnings or ()))


def what_is_known(session: MysqlSession) -> Captured | None:
    """Of the statement before, where no connection can be asked for it any more; None for nothing."""
    residue = session.residue
    captured = residue.captured
    if captured is not None and captured.at == session.commands:
        return captured
    if session.operation is None or residue.warned:
        return None
    if session.operation.kind is Kind.READ:
        # Its connection was clean and serves others by now.
        residue.captured = Captured(session.commands, [], -1, _found_rows(session, session.operation))
        return residue.captured
    return None


def _found_rows(session: MysqlSession, operation: SqlOperation) -> int | None:
    """What FOUND_ROWS() is after a SELECT that was a query of its own; None if nobody can tell."""
    if operation.statement != "select" or operation.multi or operation.found_rows or session.raw[4] != Command.QUERY:
        return None
    sql, reading = session.prepared.text_and_reading(session.raw)
    return session.rows if counts_its_rows(sql, reading) else None


async def _value(session: MysqlSession, known: Captured, asked: Asked) -> int | None:
    match asked:
        case Asked.THREAD_ID:
            return session.id
        case Asked.ROW_COUNT:
            return known.row_count
        case Asked.FOUND_ROWS:
            return known.found_rows
        case Asked.WARNING_COUNT:
            return None if known.warnings is None else len(known.warnings)
        case Asked.ERROR_COUNT:
            return None if known.warnings is None else sum(row[0] == "Error" for row in known.warnings)
        case Asked.LAST_INSERT_ID:
            return await insert_id(session)


async def insert_id(session: MysqlSession) -> int | None:
    """LAST_INSERT_ID() of the session, from the connection that knows or from what was captured; None if lost."""
    await settle(session)
    residue = session.residue
    writer = residue.writer
    if residue.insert_id_lost:
        return None
    if writer is None:
        return residue.insert_id or 0
    pool = session.topology.members[writer.member].pool
    if not pool.take_bound(writer, session):
        return None
    try:
        rows = await writer.ask("SELECT CAST(LAST_INSERT_ID() AS BINARY) LIMIT 1")
    except (OSError, BackendRefused, ProtocolError):
        writer.close()
        return None
    pool.give_back(writer)
    return int(rows[0][0] or 0)


async def settle(session: MysqlSession) -> None:
    """Waits for what is being captured at the moment.

    A connection that goes to another session is asked first, and the session hears of it when that was answered: until
    then it can neither take the connection back nor know what was left there.
    """
    for connection in (session.residue.writer, session.residue.last):
        while (
            connection is not None
            and connection.leased
            and connection.last_session is session
            and connection in (session.residue.writer, session.residue.last)
            and connection is not session.held
            and not connection.endpoint.closed
        ):
            asked = session.residue.asked = trio.Event()
            with trio.move_on_after(SETTLE_SECONDS):  # whoever was to get it may have given up
                await asked.wait()


def _is_mariadb(session: MysqlSession) -> bool:
    identity = session.topology.identity
    return identity is not None and identity.mariadb


def _values(session: MysqlSession, raw: bytes, values: list[tuple[Item, int]], warnings: int) -> bytes:
    mariadb = _is_mariadb(session)
    row: list[Value] = [value for _, value in values]
    return answers.resultset(
        [_column(item, mariadb=mariadb) for item, _ in values],
        [row],
        capabilities=session.capabilities,
        status=session.kept.status,
        warnings=warnings,
        binary=raw[4] == EXECUTE,
    )


def _column(item: Item, *, mariadb: bool) -> Column:
    """As servers announce it (tried on MariaDB 10.11 and MySQL 9.7)."""
    if item.variable:
        return Column(item.name, _LONGLONG, 21, _UNSIGNED | _BINARY, int(Collation.BINARY))
    if item.asked is Asked.THREAD_ID and mariadb:
        return Column(item.name, _LONG, 10, _NOT_NULL | _UNSIGNED | _BINARY, int(Collation.BINARY))
    unsigned = _UNSIGNED if item.asked in (Asked.THREAD_ID, Asked.LAST_INSERT_ID) else 0
    return Column(item.name, _LONGLONG, 21, _NOT_NULL | unsigned | _BINARY, int(Collation.BINARY))


_WARNING_COLUMNS: Final = (
    Column("Level", _VAR_STRING, 28, _NOT_NULL),
    Column("Code", _LONG, 5, _NOT_NULL | _UNSIGNED | _BINARY, int(Collation.BINARY)),
    Column("Message", _VAR_STRING, 2048, _NOT_NULL),
)
