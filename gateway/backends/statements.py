"""The statements that are prepared on one backend connection: shared by all who prepare the same in the same context.

A *handle* is one statement of the server's. MySQL fits a handle to the parameter types that it runs with first, and
keeps to them: `SELECT ?` that ran with an integer answers 0 to 'abc' (seen on 9.7). There a handle serves only
executions with its own types, NULLs aside; MariaDB derives types anew each time.

One that takes a VECTOR serves once. MySQL prepares a statement again within its first execution where other types come
than it had expected, an integer for INT already, and from then on refuses every vector (error 6136, seen on 9.7).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from gateway.backends.mysql_context import context_of, lend, switch
from gateway.errors import BackendRefused
from gateway.protocol.mysql.constants import Command
from gateway.protocol.mysql.packets import PacketError
from gateway.protocol.mysql.prelude import Prelude
from gateway.protocol.mysql.replies import ReplyTracker
from gateway.protocol.mysql.statements import close_statement, fits_types, merged_types, prepare

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.backends.mysql import MysqlConnection, Taker
    from gateway.backends.mysql_state import State
    from gateway.protocol.mysql.ok_packet import ServerError

TEXT_BYTES: Final = 4 << 20  # of all statements of one connection: a few hundred of the longest that are common
SERVERS_LIMIT: Final = 16_382  # max_prepared_stmt_count where nobody set it
MOST_PER_CONNECTION: Final = 1_024


def statements_per_connection(servers_limit: int, connections: int) -> int:
    """How many statements one of so many connections may have prepared: the server's limit is for all together."""
    return max(1, min(MOST_PER_CONNECTION, servers_limit // connections))


class SharedStatement:
    """A text and the context that it is prepared in. Equal ones are the same object (see `shared_statement`).

    A `private` one was prepared by a pinned session, in whatever its connection has beside the context.
    """

    __slots__ = ("__weakref__", "context", "private", "text", "user_variables")

    def __init__(self, text: bytes, context: State, user_variables: frozenset[str], *, private: bool = False) -> None:
        self.private = private
        self.text = text
        self.context = context
        self.user_variables = user_variables


_shared: WeakValueDictionary[tuple[State, bytes], SharedStatement] = WeakValueDictionary()


def shared_statement(text: bytes, state: State, user_variables: frozenset[str]) -> SharedStatement:
    """The one statement with this text for sessions in states with the same context."""
    context = context_of(state, user_variables)
    found = _shared.get((context, text))
    if found is None:
        found = _shared[context, text] = SharedStatement(text, context, user_variables)
    return found


class Handle:
    """A statement on a server. `types` are those of its last execution; `settled` those that MySQL fitted it to.

    `once`: it serves one execution only.
    """

    __slots__ = ("cursor", "id", "once", "settled", "shared", "types", "used")

    def __init__(self, shared: SharedStatement, id_: int, *, once: bool = False) -> None:
        self.shared = shared
        self.id = id_
        self.once = once
        self.types: bytes | None = None  # None: unknown, to be sent with the next execution
        self.settled: bytes | None = None
        self.cursor = False  # a client has an open cursor on it
        self.used = 0.0

    def run_with(self, types: bytes | None) -> None:
        """Notes the parameter types of an execution."""
        self.types = types
        if types is not None and self.settled != types:
            self.settled = types if self.settled is None else merged_types(self.settled, types)


class Handles:
    """What is prepared on one connection. `fitted` says that types are settled by the first execution (MySQL)."""

    __slots__ = ("_by_statement", "_fitted", "count", "text_bytes")

    def __init__(self, *, fitted: bool) -> None:
        self._by_statement: dict[SharedStatement, list[Handle]] = {}
        self._fitted = fitted
        self.count = 0
        self.text_bytes = 0

    def __contains__(self, shared: SharedStatement) -> bool:
        return shared in self._by_statement

    def find(self, shared: SharedStatement, types: bytes | None) -> Handle | None:
        """A handle without an open cursor that an execution with these types may use."""
        for handle in self._by_statement.get(shared, ()):
            if handle.cursor or (handle.once and handle.settled is not None):
                continue
            settled = handle.settled
            if settled == types or not self._fitted or settled is None or types is None or fits_types(settled, types):
                return handle
        return None

    def add(self, handle: Handle) -> None:
        self._by_statement.setdefault(handle.shared, []).append(handle)
        self.count += 1
        self.text_bytes += len(handle.shared.text)

    def remove(self, handle: Handle) -> None:
        """Forgets a handle that the server has closed, or is being told to close."""
        handles = self._by_statement.get(handle.shared)
        if handles is None or handle not in handles:
            return  # the connection was reset since
        handles.remove(handle)
        if not handles:
            del self._by_statement[handle.shared]
        self.count -= 1
        self.text_bytes -= len(handle.shared.text)

    def clear(self) -> None:
        """The connection was reset: its server has dropped them all."""
        self._by_statement.clear()
        self.count = self.text_bytes = 0

    def evict(self, limit: int, text: bytes) -> list[Handle]:
        """Forgets the longest unused, so that one more with `text` is within the limits; to be closed by the caller."""
        gone: list[Handle] = []
        while self.count and (self.count >= limit or self.text_bytes + len(text) > TEXT_BYTES):
            free = [one for handles in self._by_statement.values() for one in handles if not one.cursor]
            if not free:
                break
            oldest = min(free, key=lambda handle: handle.used)
            self.remove(oldest)
            gone.append(oldest)
        return gone

    def replaced_by(self, handle: Handle) -> list[Handle]:
        """Forgets what a new handle of the same statement makes superfluous; to be closed by the caller."""
        old = [
            one
            for one in self._by_statement.get(handle.shared, ())
            if one is not handle and not one.cursor and (not self._fitted or one.settled is None)
        ]
        for one in old:
            self.remove(one)
        return old


def make_room(connection: MysqlConnection, text: bytes) -> None:
    """Closes what has to go before one more statement is prepared on a connection."""
    for handle in connection.handles.evict(connection.home.statement_limit, text):
        connection.endpoint.write(close_statement(handle.id))


def close_handle(connection: MysqlConnection, handle: Handle) -> None:
    """Closes one statement of a connection, and with it its cursor."""
    connection.handles.remove(handle)
    handle.cursor = False
    connection.endpoint.write(close_statement(handle.id))


class Preparation:
    """Prepares a statement on a leased connection in front of its execution, in one round trip.

    Takes the replies in the place of `taker`, who gets the connection back with `then(handle)`, or is told by
    `refused(error)` that the server does not prepare it. `state` is what is set on the connection, None if a pinned
    session has set what cannot be told. The connection is in the session's state before and after;
    where that is not what the statement captured, the commands to there and back stand around COM_STMT_PREPARE.
    """

    __slots__ = ("_after", "_before", "_connection", "_refused", "_shared", "_taker", "_then", "_tracker")

    def __init__(
        self,
        connection: MysqlConnection,
        shared: SharedStatement,
        state: State | None,
        taker: Taker,
        then: Callable[[Handle], None],
        refused: Callable[[ServerError], None],
    ) -> None:
        self._connection = connection
        self._shared = shared
        self._taker = taker
        self._then = then
        self._refused = refused
        self._tracker = ReplyTracker(connection.credentials.capabilities)
        self._tracker.begin(Command.STMT_PREPARE)
        make_room(connection, shared.text)
        there: list[bytes] = []
        back: list[bytes] = []
        current = context_of(state, shared.user_variables) if state is not None else None
        if current is None:
            if not shared.private:
                there, back = lend(shared.context, connection.selected, connection.arming)
        elif current is not shared.context:
            there = switch(current, shared.context, connection.arming)
            back = switch(shared.context, current, connection.arming)
        self._before = Prelude(len(there))
        self._after = Prelude(len(back))
        connection.taker = self
        for command in there:
            connection.write_own(command)
        connection.endpoint.send(prepare(shared.text))
        for command in back:
            connection.write_own(command)

    def reply(self, chunk: bytes) -> None:
        try:
            if not self._before.done:
                chunk = self._before.feed(chunk)
            if chunk and self._before.done and not self._tracker.done:
                self._tracker.feed(chunk)
                chunk = self._tracker.leftover if self._tracker.done else b""
            if chunk and self._tracker.done and not self._after.done:
                self._after.feed(chunk)
        except PacketError as error:
            self._lose(error)
            return
        if self._before.done and self._tracker.done and self._after.done:
            self._finish()

    def _finish(self) -> None:
        connection, tracker = self._connection, self._tracker
        error = self._before.error or self._after.error
        if error is not None:  # the connection is in nobody's state
            connection.taker = None
            connection.close()
            self._taker.prelude_refused(connection, BackendRefused(error.message, error.code, error.sqlstate))
            return
        connection.taker = self._taker
        if tracker.error is not None:
            self._refused(tracker.error)
            return
        assert tracker.statement_id is not None
        handle = Handle(self._shared, tracker.statement_id, once=tracker.takes_vectors)
        connection.handles.add(handle)
        self._then(handle)

    def _lose(self, error: PacketError) -> None:
        self._connection.taker = None
        self._connection.close()
        self._taker.backend_lost(self._connection, error)

    def backend_lost(self, connection: MysqlConnection, error: Exception) -> None:
        self._taker.backend_lost(connection, error)

    def prelude_refused(self, connection: MysqlConnection, error: BackendRefused) -> None:
        self._taker.prelude_refused(connection, error)

    def overdue(self, connection: MysqlConnection) -> None:
        self._taker.overdue(connection)
