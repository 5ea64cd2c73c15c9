"""The prepared statements (COM_STMT_*) of one MySQL session: the client's ids, and what it has said about each.

A client's statement is its text and the moment at which it was prepared: how the text was read, and what of the
session's state it captured. No server knows it. When it is executed it is routed as its text would be now, and runs by
a handle of the connection that the route leads to; where there is none yet, it is prepared first, in front of the
execution. Handles belong to connections and are shared (see backends.statements).

    PREPARE          goes to where the text would be executed, and makes a handle there
    EXECUTE          is what its text is; the statement's id, and types that the handle does not know, are put in
    SEND_LONG_DATA   is held until the statement is executed, and sent in front of that
    FETCH            goes to the connection that has the cursor
    RESET, CLOSE     are answered here

A connection with an open cursor stays with the session. If the session does not hold it anyway, for a transaction or a
pin, it is *aside*: leased, and used for nothing else, until the cursor is exhausted or closed.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from gateway.backends.mysql_context import context_of
from gateway.backends.statements import (
    Handle,
    Preparation,
    SharedStatement,
    close_handle,
    make_room,
    shared_statement,
)
from gateway.errors import BackendRefused, Refused
from gateway.protocol.mysql import answers
from gateway.protocol.mysql.commands import argument_of, query, statement_id_of
from gateway.protocol.mysql.constants import Capability, Command, ErrorCode, Status
from gateway.protocol.mysql.packets import PacketError, packets_in
from gateway.protocol.mysql.statements import LAST_PREPARED, bound_types, with_statement_id, with_types
from gateway.routing.operation import PinCause, SqlOperation
from gateway.sessions.mysql_client_statement import FETCHING, ClientStatement, preparing

if TYPE_CHECKING:
    from gateway.backends.mysql import MysqlConnection
    from gateway.protocol.mysql.ok_packet import ServerError
    from gateway.protocol.mysql.replies import ReplyTracker
    from gateway.routing.fingerprint import Reading
    from gateway.routing.route import Policy
    from gateway.sessions.mysql import MysqlSession

MAX_STATEMENTS: Final = 4_096  # of one client; MySQL allows 16,382 to all of a server's clients together
MAX_TEXT_BYTES: Final = 16 << 20  # of one client's statements
CHUNK_OVERHEAD_BYTES: Final = 64  # what holding one more chunk of long data costs beside its bytes

PREPARE: Final = int(Command.STMT_PREPARE)
EXECUTE: Final = int(Command.STMT_EXECUTE)
FETCH: Final = int(Command.STMT_FETCH)
COMMANDS: Final = frozenset(
    {
        PREPARE,
        EXECUTE,
        FETCH,
        int(Command.STMT_SEND_LONG_DATA),
        int(Command.STMT_CLOSE),
        int(Command.STMT_RESET),
    }
)
_SEND_LONG_DATA: Final = int(Command.STMT_SEND_LONG_DATA)
_CLOSE: Final = int(Command.STMT_CLOSE)
_CURSOR_EXISTS: Final = int(Status.CURSOR_EXISTS)
_LAST_ROW_SENT: Final = int(Status.LAST_ROW_SENT)
ABOUT_CURSORS: Final = _CURSOR_EXISTS | _LAST_ROW_SENT  # flags that are about one statement, not the session
_ABOUT_DATABASE: Final = frozenset({"database", "schema"})
_TO_PREPARE_AGAIN: Final = frozenset({ErrorCode.UNKNOWN_STATEMENT, ErrorCode.NEED_REPREPARE})
# After these MySQL repeats the error until COM_STMT_RESET; after any other the long data is gone.
_KEEP_LONG_DATA: Final = frozenset({ErrorCode.WRONG_ARGUMENTS, ErrorCode.UNKNOWN_ERROR})
_TOO_LONG: Final = (
    "Parameter of prepared statement which is set through mysql_send_long_data() is longer than "
    "'max_allowed_packet' bytes"
)

# Pins of sessions that may have set anything, in no way that is known.
_UNTOLD: Final = frozenset({PinCause.SESSION_VARIABLE, PinCause.PROCEDURE, PinCause.UNPROVEN})


class PreparedStatements:
    """All of one session's. `current` is the statement that is being executed, `cursors` counts those with one."""

    __slots__ = (
        "_again",
        "_attributed",
        "_by_id",
        "_last",
        "_long_bytes",
        "_next",
        "_session",
        "_text_bytes",
        "aside",
        "current",
        "cursors",
        "handle",
        "preparing",
    )

    def __init__(self, session: MysqlSession) -> None:
        self._session = session
        self._by_id: dict[int, ClientStatement] = {}
        self._attributed = bool(session.capabilities & Capability.QUERY_ATTRIBUTES)
        self._next = 1
        self._last: ClientStatement | None = None
        self._text_bytes = 0
        self._long_bytes = 0
        self._again = False  # the execution under way was sent once more already
        self.current: ClientStatement | None = None
        self.handle: Handle | None = None  # by which `current` is executed
        self.preparing: tuple[SharedStatement, Reading] | None = None
        self.cursors = 0
        self.aside: set[MysqlConnection] = set()

    def __len__(self) -> int:
        return len(self._by_id)

    # ---------------------------------------------------------------- what a command is

    def serve_here(self, raw: bytes) -> bool:
        """Serves what needs no server; False for all else. Never waits."""
        command = raw[4]
        if command in (EXECUTE, PREPARE):
            return False
        if command == FETCH:
            return self._fetch(raw)
        session = self._session
        try:
            statement = self._statement(raw)
        except BackendRefused as error:
            if command == Command.STMT_RESET:
                session.endpoint.write(answers.err(packets_in(raw), error.code, str(error), error.sqlstate))
            return True  # nothing to close, and nobody to keep data for
        if command == _SEND_LONG_DATA:
            self._hold(statement, raw)
        elif command == _CLOSE:
            self._close(statement)
        else:
            self._long_bytes -= statement.forget_long_data()
            self.close_cursor(statement)
            session.endpoint.write(answers.ok(packets_in(raw), status=session.kept.status))
        return True

    def decide(self, raw: bytes) -> tuple[SqlOperation, Policy]:
        """What COM_STMT_PREPARE or COM_STMT_EXECUTE is and what is wanted for it.

        Raises Refused, and BackendRefused with what a server would say.
        """
        session = self._session
        kept = session.kept
        if raw[4] == PREPARE:
            text = argument_of(raw)
            operation = session.service.classifier.classify(text, kept.reading)
            policy = session.policies.policy(operation, kept.state.database)
            self._prepare(text, operation)
            return preparing(operation), policy
        if raw[4] == FETCH:  # the connection with the cursor was lost
            return FETCHING, session.policies.policy(FETCHING, kept.state.database)
        statement = self._statement(raw)
        service = session.service
        if statement.version == service.classifier.version and statement.operation is not None:
            operation = statement.operation
        else:
            operation = self._classify(statement)
        shared = statement.shared
        if operation.assignments and context_of(kept.state, shared.user_variables).assignments != (
            shared.context.assignments
        ):  # its values mean what they meant in the context of the statement
            operation = replace(operation, assignments=(), pin=operation.pin or PinCause.SESSION_VARIABLE)
        parameters = statement.parameters
        if parameters:
            try:
                types = bound_types(raw, parameters, attributed=self._attributed)
            except PacketError as error:
                raise BackendRefused("Malformed communication packet.", error.code) from error
            if types is not None:
                statement.types = types
            elif statement.types is None:
                raise BackendRefused("Incorrect arguments to mysqld_stmt_execute", ErrorCode.WRONG_ARGUMENTS)
        if statement.overlong:
            raise BackendRefused(_TOO_LONG, ErrorCode.UNKNOWN_ERROR)
        if statement.cursor is not None:
            self.close_cursor(statement)
        context = shared.context
        if context.database is None and kept.state.database is not None and operation.functions & _ABOUT_DATABASE:
            raise Refused(
                "the statement was prepared while no database was selected, and asks which one is; prepare it again"
            )
        self.current = statement
        self._again = False
        return operation, session.policies.policy(operation, context.database)

    def _prepare(self, text: bytes, operation: SqlOperation) -> None:
        kept = self._session.kept
        if operation.gateway is not None and operation.statement.endswith(" gateway"):
            raise Refused("statements for the gateway itself cannot be prepared", code=ErrorCode.UNSUPPORTED_PS)
        if len(self._by_id) >= MAX_STATEMENTS or self._text_bytes + len(text) > MAX_TEXT_BYTES:
            raise Refused(
                f"Can't create more than {MAX_STATEMENTS} prepared statements, nor more than "
                f"{MAX_TEXT_BYTES >> 20} MiB of them, in one session; close some",
                code=ErrorCode.TOO_MANY_STATEMENTS,
                sqlstate="42000",
            )
        variables = operation.user_variables
        if kept.pins:
            # What its connection has beyond the session's state, the statement may capture: it is nobody else's.
            shared = SharedStatement(text, context_of(kept.state, variables), variables, private=True)
        else:
            shared = shared_statement(text, kept.state, variables)
        self.preparing = shared, kept.reading
        self._again = False

    def _classify(self, statement: ClientStatement) -> SqlOperation:
        classifier = self._session.service.classifier
        operation = classifier.classify(statement.shared.text, statement.reading)
        staying = statement.shared.context.stays_at_primary
        if staying is not None and operation.needs_primary is None:
            operation = replace(operation, needs_primary=staying)
        statement.operation = operation
        statement.version = classifier.version
        return operation

    def _statement(self, raw: bytes) -> ClientStatement:
        try:
            number = statement_id_of(raw)
        except PacketError:
            number = 0
        statement = self._by_id.get(number)
        if statement is None and number == LAST_PREPARED:
            statement = self._last
        if statement is None:
            raise BackendRefused(
                f"Unknown prepared statement handler ({number}) given to {_caller(self._session, raw)}",
                ErrorCode.UNKNOWN_STATEMENT,
            )
        return statement

    def text_and_reading(self, raw: bytes) -> tuple[bytes, Reading]:
        """The statement that a command carries out, and how it is read."""
        if raw[4] == EXECUTE and self.current is not None:
            return self.current.shared.text, self.current.reading
        return argument_of(raw), self._session.kept.reading

    def as_query(self, raw: bytes) -> bytes:
        """A command as if the client had sent its statement as text."""
        if raw[4] == EXECUTE and self.current is not None:
            return query(self.current.shared.text)
        return raw

    # ---------------------------------------------------------------- on a connection

    def send(self, connection: MysqlConnection, raw: bytes, tracker: ReplyTracker) -> None:
        """Sends a command to a server, which answers the session through `tracker`."""
        command = raw[4]
        if command == EXECUTE:
            statement = self.current
            assert statement is not None
            shared = statement.shared
            handle = connection.handles.find(shared, statement.types)
            if handle is not None:
                self._execute(connection, handle, raw)
                return
            self._prepare_first(connection, shared, raw)
            return
        if command == PREPARE:
            make_room(connection, argument_of(raw))
            tracker.statement_told = self._next
        elif command == FETCH and self.current is not None and self.current.handle is not None:
            raw = with_statement_id(raw, self.current.handle.id)
        connection.endpoint.send(raw)

    def _prepare_first(self, connection: MysqlConnection, shared: SharedStatement, raw: bytes) -> None:
        """Prepares what is to be executed on a connection that does not have it yet."""
        session = self._session
        session.service.prepared_again += 1
        Preparation(
            connection,
            shared,
            None if session.kept.pins.keys() & _UNTOLD else connection.state or session.kept.state,
            session,
            lambda handle: self._execute(connection, handle, raw),
            lambda error: self._not_prepared(connection, shared, raw, error),
        )

    def _execute(self, connection: MysqlConnection, handle: Handle, raw: bytes) -> None:
        statement = self.current
        assert statement is not None
        self.handle = handle
        types = statement.types
        if types is not None and handle.types != types:
            attributed = self._attributed
            if bound_types(raw, statement.parameters, attributed=attributed) is None:
                with contextlib.suppress(PacketError):  # the server says what is wrong with it
                    raw = with_types(raw, statement.parameters, types, attributed=attributed)
            handle.run_with(types)
        handle.used = self._session.service.lane.now
        for chunk in statement.long_data:
            connection.endpoint.write(with_statement_id(chunk, handle.id))
        connection.endpoint.send(with_statement_id(raw, handle.id))

    def _not_prepared(
        self, connection: MysqlConnection, shared: SharedStatement, raw: bytes, error: ServerError
    ) -> None:
        """What the server says to the statement now is the answer to its execution."""
        if self._made_room(connection, error):
            self._prepare_first(connection, shared, raw)
            return
        self._session.reply(answers.err(packets_in(raw), error.code, error.message, error.sqlstate))

    # ---------------------------------------------------------------- after the reply

    def ran(self, connection: MysqlConnection, command: int, tracker: ReplyTracker) -> bool:
        """Notes what a reply says; False if nothing of it is for the client, since the command was sent once more."""
        error = tracker.error
        if command == EXECUTE:
            return self._executed(connection, tracker)
        if command == PREPARE:
            tracker.statement_told = None
            if error is None:
                self._prepared(connection, tracker)
            elif self._made_room(connection, error):
                return False
            else:
                self._last = None
        elif command == FETCH:
            statement = self.current
            if statement is not None and (error is not None or tracker.status & _LAST_ROW_SENT):
                self._cursor_ended(statement)
        return True

    def _made_room(self, connection: MysqlConnection, error: ServerError) -> bool:
        """Whether a server that has all the statements it may, others' included, can take one once ours are closed."""
        if error.code != ErrorCode.TOO_MANY_STATEMENTS or self._again:
            return False
        self._again = True
        free = connection.handles.evict(1, b"")
        for handle in free:
            close_handle(connection, handle)
        return bool(free)

    def _prepared(self, connection: MysqlConnection, tracker: ReplyTracker) -> None:
        assert self.preparing is not None
        assert tracker.statement_id is not None
        self._session.commands -= 1  # it leaves alone what is known of the statement before
        shared, reading = self.preparing
        handle = Handle(shared, tracker.statement_id, once=tracker.takes_vectors)
        handle.used = self._session.service.lane.now
        connection.handles.add(handle)
        for old in connection.handles.replaced_by(handle):
            close_handle(connection, old)
        statement = ClientStatement(self._next, shared, reading, tracker.parameters or 0)
        self._by_id[statement.id] = self._last = statement
        self._text_bytes += len(shared.text)
        self._next = self._next % (LAST_PREPARED - 1) + 1
        while self._next in self._by_id:
            self._next = self._next % (LAST_PREPARED - 1) + 1

    def _executed(self, connection: MysqlConnection, tracker: ReplyTracker) -> bool:
        statement, handle = self.current, self.handle
        error = tracker.error
        assert statement is not None
        self.handle = None
        if error is not None and handle is not None:
            handle.types = None
            if error.code in _TO_PREPARE_AGAIN and tracker.refused and not self._again:
                self._again = True
                close_handle(connection, handle)
                return False
            if statement.long_data and not handle.once:
                close_handle(connection, handle)  # whatever the server has kept of it is nobody else's
        if statement.long_data and (error is None or error.code not in _KEEP_LONG_DATA):
            self._long_bytes -= statement.forget_long_data()
        if error is None and handle is not None and tracker.status & _CURSOR_EXISTS:
            handle.cursor = True
            statement.cursor, statement.handle, statement.policy = connection, handle, self._session.policy
            self.cursors += 1
        elif handle is not None and handle.once:
            close_handle(connection, handle)
        return True

    # ---------------------------------------------------------------- long data

    def _hold(self, statement: ClientStatement, raw: bytes) -> None:
        if statement.overlong:
            return
        size = len(raw) + CHUNK_OVERHEAD_BYTES
        statement.long_data.append(raw)
        statement.long_bytes += size
        self._long_bytes += size
        if self._long_bytes > self._session.service.config.max_allowed_packet:
            self._long_bytes -= statement.forget_long_data()
            statement.overlong = True

    # ---------------------------------------------------------------- closing

    def _close(self, statement: ClientStatement) -> None:
        self.close_cursor(statement)
        self._long_bytes -= statement.forget_long_data()
        self._text_bytes -= len(statement.shared.text)
        del self._by_id[statement.id]
        if self._last is statement:
            self._last = None

    def clear(self) -> None:
        """Forgets them all: the client has reset its connection, or left."""
        for statement in list(self._by_id.values()):
            self._close(statement)
        self.current = self._last = None

    # ---------------------------------------------------------------- cursors

    def _fetch(self, raw: bytes) -> bool:
        session = self._session
        if session.state_lost is not None:
            return False
        try:
            statement = self._statement(raw)
            if statement.cursor is None or statement.policy is None:
                point = "" if _is_mariadb(session) else "."
                raise BackendRefused(f"The statement ({statement.id}) has no open cursor{point}", ErrorCode.NO_CURSOR)
        except BackendRefused as error:
            session.endpoint.write(answers.err(packets_in(raw), error.code, str(error), error.sqlstate))
            return True
        self.current = statement
        member = session.topology.members[statement.cursor.member]
        session.begin(statement.cursor, member, raw, FETCHING, statement.policy, "the cursor is there")
        return True

    def close_cursor(self, statement: ClientStatement) -> None:
        """Ends a statement's cursor before it is exhausted, if there is one: closing the handle needs no answer."""
        connection, handle = statement.cursor, statement.handle
        if connection is None or handle is None:
            return
        close_handle(connection, handle)
        self._cursor_ended(statement)

    def _cursor_ended(self, statement: ClientStatement) -> None:
        connection = statement.cursor
        if statement.handle is not None:
            statement.handle.cursor = False
        statement.cursor = statement.handle = None
        self.cursors -= 1
        if connection in self.aside and connection is not self._session.connection and not self.keeps(connection):
            self.aside.discard(connection)
            connection.home.give_back(connection)

    def keeps(self, connection: MysqlConnection) -> bool:
        """Whether a connection has an open cursor of this session."""
        return any(statement.cursor is connection for statement in self._by_id.values())

    def put_aside(self, connection: MysqlConnection) -> None:
        """Keeps a connection with an open cursor that the session would give back otherwise."""
        connection.taker = self._session
        self.aside.add(connection)

    def lost(self, connection: MysqlConnection) -> None:
        """A connection is gone, or is being reset, and with it its cursors."""
        self.aside.discard(connection)
        for statement in self._by_id.values():
            if statement.cursor is connection:
                statement.cursor = statement.handle = None
                self.cursors -= 1

    def settle(self, connection: MysqlConnection) -> None:
        """After COM_STMT_FETCH: a connection that was aside for the cursor is free if that is exhausted."""
        if connection in self.aside and not self.keeps(connection):
            self.aside.discard(connection)
            connection.home.give_back(connection)


def _is_mariadb(session: MysqlSession) -> bool:
    identity = session.topology.identity
    return identity is not None and identity.mariadb


def _caller(session: MysqlSession, raw: bytes) -> str:
    """What the servers name in their errors about a statement's id."""
    if not _is_mariadb(session):
        return "mysql_stmt_precheck"
    return {EXECUTE: "mysqld_stmt_execute", FETCH: "mysqld_stmt_fetch"}.get(raw[4], "mysqld_stmt_reset")
