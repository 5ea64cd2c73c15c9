"""Leases of MySQL connections: which connection serves which session next, how many there are, and who waits.

Per member there is one limit over all users. Of a member's idle connections, the *clean* ones ran nothing but proven
reads since they were last reset, and serve any session of the same credentials whose state they have or can be given.
The *bound* ones keep something of the session that used them last (insert id, warnings): they go back to that session
at once, and to another one only when there is nothing else: after a reset, and the session is told what it loses.

`take_now` and `take_bound` are synchronous and give a connection only if nothing has to be awaited for it; `take`
opens, resets, takes over or waits, first come first served.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from typing import Final

import structlog
import trio

from gateway.backends.mysql import Borrower, Credentials, Left, MysqlConnection
from gateway.backends.mysql_log_in import connect
from gateway.backends.mysql_server import MysqlServer
from gateway.backends.mysql_state import Arming, State
from gateway.backends.statements import SERVERS_LIMIT, SharedStatement, statements_per_connection
from gateway.config import Pool
from gateway.errors import BackendRefused, ProtocolError, Unavailable
from gateway.net.lane import Lane
from gateway.protocol.mysql.commands import query
from gateway.protocol.mysql.results import Row

log = structlog.get_logger(__name__)

Key = tuple[str, int, int]  # user, capabilities, collation: connections of one key are interchangeable after a reset

KEPT_WARM_SECONDS: Final = 600.0  # credentials that nobody used for longer need no idle connections
LOOKED_AT: Final = 16  # idle connections, for one that has a statement prepared; preparing costs one round trip
LIFETIME_SPREAD: Final = 0.1  # connections opened together are not all replaced together


# Of the role that a connection logged in with, and has no longer: another connection logs in with what there is now.
ROLE_NOT_GRANTED: Final = frozenset((1959, 3530))  # ER_INVALID_ROLE of MariaDB, ER_ROLE_NOT_GRANTED of MySQL
WARNINGS_KEPT: Final = 1024  # of one statement: MySQL's own default of max_error_count
SQLSTATES_KEPT: Final = 16  # of them; each takes a statement to ask for


async def what_is_left(connection: MysqlConnection) -> Left:
    """Asks for the residue of the last statement. Raises BackendRefused, OSError, ValueError.

    SHOW WARNINGS makes ROW_COUNT() forgotten, and asking for the others makes MySQL forget the warnings; FOUND_ROWS()
    outlives SHOW WARNINGS on both (tried). LIMIT and CAST: whatever the session has set, a limit on rows, a character
    set for results.
    """
    warnings: list[Row] = []
    if connection.warned:
        warnings = await connection.ask(f"SHOW WARNINGS LIMIT {WARNINGS_KEPT}")
    told = [f"@gateway_{number}" for number in range(1, min(len(warnings), SQLSTATES_KEPT) + 1)]
    if told:
        await connection.acknowledge(
            [query(f"GET DIAGNOSTICS CONDITION {at} {name} = RETURNED_SQLSTATE") for at, name in enumerate(told, 1)]
        )
    asked = ["CAST(LAST_INSERT_ID() AS BINARY)", "CAST(ROW_COUNT() AS BINARY)", "CAST(FOUND_ROWS() AS BINARY)", *told]
    ((insert_id, row_count, found_rows, *sqlstates),) = await connection.ask(f"SELECT {', '.join(asked)} LIMIT 1")
    return Left(
        insert_id=int(insert_id or 0),
        row_count=None if connection.warned else int(row_count or 0),
        found_rows=int(found_rows or 0),
        warnings=warnings,
        sqlstates=[one.decode("ascii") if isinstance(one, bytes) else one or "" for one in sqlstates],
    )


class _Waiter:
    """One place in the queue: gets a connection, or the right to open one."""

    __slots__ = ("connection", "may_open", "woken")

    def __init__(self) -> None:
        self.connection: MysqlConnection | None = None
        self.may_open = False
        self.woken = trio.Event()


class MemberPool:
    """The connections to one member.

    Counts: `opened` (open or being opened), `in_use`, `resets`, `replays` (of state), `taken_over`.
    """

    def __init__(self, lane: Lane, name: str, server: MysqlServer, settings: Pool, limit: int) -> None:
        self._lane = lane
        self.name = name
        self.server = server
        self.limit = limit
        self.arming: Arming | None = None  # None until the member was seen: nothing can be leased
        self.statement_limit = statements_per_connection(SERVERS_LIMIT, limit)
        self.opened = 0
        self.in_use = 0
        self.resets = 0
        self.replays = 0
        self.taken_over = 0
        self.retired = 0  # how often `retire` was called
        self._settings = settings
        self._clean: dict[Key, dict[State | None, list[MysqlConnection]]] = {}
        self._bound: dict[MysqlConnection, None] = {}  # the longest unused first
        self._all: set[MysqlConnection] = set()
        self._waiting: deque[_Waiter] = deque()
        self._used: dict[Key, tuple[Credentials, float]] = {}

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    # -- taking

    def take_now(self, credentials: Credentials, state: State) -> MysqlConnection | None:
        """A clean connection in exactly this state, None if there is none (or others wait for connections)."""
        states = self._clean.get(credentials.key)
        if states is None or self._waiting:
            return None
        connections = states.get(state)
        if not connections:
            return None
        connection = connections.pop()
        connection.leased = True
        self.in_use += 1
        return connection

    def take_prepared_now(
        self, credentials: Credentials, state: State, shared: SharedStatement
    ) -> MysqlConnection | None:
        """The same, and if one of those used last has the statement prepared, that one."""
        states = self._clean.get(credentials.key)
        connections = states.get(state) if states is not None else None
        if connections and not self._waiting and shared not in connections[-1].handles:
            for at in range(len(connections) - 2, max(-1, len(connections) - 1 - LOOKED_AT), -1):
                if shared in connections[at].handles:
                    connections.append(connections.pop(at))
                    break
        return self.take_now(credentials, state)

    def take_bound(self, connection: MysqlConnection, session: Borrower) -> bool:
        """Takes an idle connection back for the session that used it last; False if it is somebody else's by now."""
        if connection.last_session is not session or connection.leased or connection.endpoint.closed:
            return False
        self._remove_idle(connection)
        self._lease(connection)
        return True

    def take_other_now(self, credentials: Credentials, state: State) -> MysqlConnection | None:
        """A clean connection that commands can bring to `state`: the caller has to send them."""
        if self._waiting:
            return None
        for connections in self._clean.get(credentials.key, {}).values():
            for connection in connections:
                if state.database is not None or connection.selected is None:
                    self._remove_idle(connection)
                    self._lease(connection)
                    return connection
        return None

    async def take(self, credentials: Credentials, state: State) -> MysqlConnection:
        """A connection in this state. Raises Unavailable (none in time, or no server) or BackendRefused.

        `acquire_timeout` bounds the waiting for a place; connecting has a limit of its own.
        """
        if self.arming is None:
            raise Unavailable(f"{self.name} has not answered yet")
        self._used[credentials.key] = (credentials, trio.current_time())
        while True:
            connection = await self._find(credentials, state)
            connection.last_session = None
            try:
                await connection.bring_to(state)
            except (OSError, ProtocolError) as error:
                connection.close()
                raise Unavailable(f"the connection to {self.name} was lost: {error}") from error
            except BackendRefused as error:
                connection.close()
                if error.code not in ROLE_NOT_GRANTED:
                    raise
            except BaseException:
                connection.close()
                raise
            else:
                return connection

    async def _find(self, credentials: Credentials, state: State) -> MysqlConnection:
        deadline = trio.current_time() + self._settings.acquire_timeout
        while True:
            connection = self.take_now(credentials, state) or self.take_other_now(credentials, state)
            if connection is not None:
                return connection
            may_open = not self._waiting and self._reserve()
            if not may_open and not self._waiting:
                stranger = next(self._clean_ones(), None)
                if stranger is not None:  # of other credentials, or with a database that cannot be un-selected
                    stranger.close()
                    continue
                connection = self._least_missed()
            if connection is None and not may_open:
                connection = await self._wait(deadline)
            if connection is None:
                return await self._open(credentials)
            await self._clear(connection)
            if self._fits(connection, credentials, state):
                return connection
            if connection.endpoint.closed:
                continue  # it broke meanwhile, and its place went back to all who wait
            # Its place stays with whoever has waited for it.
            self.opened += 1
            connection.close()
            return await self._open(credentials)

    def _reserve(self) -> bool:
        if self.opened >= self.limit:
            return False
        self.opened += 1
        return True

    def _least_missed(self) -> MysqlConnection | None:
        """A bound connection for somebody else: the longest unused, those with warnings to be shown last."""
        quiet = (connection for connection in self._bound if not connection.warned)
        connection = next(quiet, None) or next(iter(self._bound), None)
        if connection is not None:
            del self._bound[connection]
            self._lease(connection)
            self.taken_over += 1
        return connection

    async def _wait(self, deadline: float) -> MysqlConnection | None:
        """Waits its turn; None: a place was reserved to open a connection."""
        waiter = _Waiter()
        self._waiting.append(waiter)
        try:
            with trio.move_on_at(deadline):
                await waiter.woken.wait()
        except BaseException:
            if waiter.connection is not None:
                self.give_back(waiter.connection)
            elif waiter.may_open:
                self._release_place()
            else:
                self._waiting.remove(waiter)
            raise
        if waiter.woken.is_set():
            return waiter.connection
        self._waiting.remove(waiter)
        raise Unavailable(
            f"all {self.limit} connections to {self.name} were busy for {self._settings.acquire_timeout:g} s "
            "(pool.size of the group, max_connections of the member)",
            code=1040,
            sqlstate="08004",
        )

    async def _open(self, credentials: Credentials) -> MysqlConnection:
        """Opens a connection for which a place was reserved."""
        assert self.arming is not None
        retired = self.retired
        try:
            connection = await connect(self._lane, self.server, self, self.name, credentials, self.arming)
        except BaseException:
            self._release_place()
            raise
        spread = self._settings.max_lifetime * LIFETIME_SPREAD
        connection.expires = trio.current_time() + self._settings.max_lifetime - random.random() * spread
        if retired != self.retired:  # meanwhile: this one lease began before
            connection.retired = True
        self._all.add(connection)
        self._lease(connection)
        return connection

    async def _clear(self, connection: MysqlConnection) -> None:
        """Tells the session that a bound connection leaves it what it loses, and marks it to be reset."""
        session = connection.last_session
        if connection.tainted and session is not None:
            left: Left | None = None
            try:
                left = await what_is_left(connection)
            except (OSError, BackendRefused, ProtocolError, IndexError, ValueError) as error:
                log.info("what a statement left behind could not be asked for", member=self.name, error=str(error))
            except BaseException:
                connection.close()
                raise
            finally:
                session.losing(connection, left)
        connection.last_session = None
        if connection.tainted:
            connection.tainted = connection.warned = False
            connection.state = None
            self.resets += 1

    def _fits(self, connection: MysqlConnection, credentials: Credentials, state: State) -> bool:
        return (
            not connection.endpoint.closed
            and connection.credentials.key == credentials.key
            and (state.database is not None or connection.selected is None)
        )

    # -- giving back

    def give_back(self, connection: MysqlConnection) -> None:
        """Ends a lease. A connection with a reply under way must be closed instead."""
        if connection.endpoint.closed:
            return
        connection.taker = None
        stale = connection.retired or connection.arming is not self.arming  # the member's role has changed
        if stale or (connection.expires <= self._lane.now and not connection.tainted):
            if connection.tainted and connection.last_session is not None:
                connection.last_session.losing(connection, None)
            connection.close()
            return
        if self._waiting:
            waiter = self._waiting.popleft()
            waiter.connection = connection
            waiter.woken.set()
            self._lane.woke = True
            return
        connection.leased = False
        self.in_use -= 1
        if connection.tainted:
            self._bound[connection] = None
            return
        states = self._clean.get(connection.credentials.key)
        if states is None:
            states = self._clean[connection.credentials.key] = {}
        connections = states.get(connection.state)
        if connections is None:
            states[connection.state] = [connection]
        else:
            connections.append(connection)

    async def recycle(self, connection: MysqlConnection) -> None:
        """Gives back what a session leaves for good: reset at once, since locks and transactions may be open on it."""
        try:
            connection.state = None
            connection.tainted = connection.warned = False
            connection.last_session = None
            self.resets += 1
            await connection.bring_to(connection.after_reset())
        except (OSError, BackendRefused, ProtocolError) as error:
            log.info("a connection could not be reset", member=self.name, error=str(error))
            connection.close()
        except BaseException:
            connection.close()
            raise
        else:
            self.give_back(connection)

    def forget(self, connection: MysqlConnection) -> None:
        """A connection was closed: its place is free."""
        if connection not in self._all:
            return
        self._all.discard(connection)
        if connection.leased:
            self.in_use -= 1
        else:
            self._remove_idle(connection)
        if connection.tainted and connection.last_session is not None:
            connection.last_session.losing(connection, None)
        self._release_place()

    def _release_place(self) -> None:
        self.opened -= 1
        if self._waiting and self._reserve():
            waiter = self._waiting.popleft()
            waiter.may_open = True
            waiter.woken.set()
            self._lane.woke = True

    def _lease(self, connection: MysqlConnection) -> None:
        connection.leased = True
        self.in_use += 1

    def _remove_idle(self, connection: MysqlConnection) -> None:
        if connection in self._bound:
            del self._bound[connection]
            return
        states = self._clean[connection.credentials.key]
        connections = states[connection.state]
        connections.remove(connection)
        if not connections:
            del states[connection.state]

    def _clean_ones(self) -> Iterator[MysqlConnection]:
        """Every clean connection, those longest unused first within their state."""
        for states in self._clean.values():
            for connections in states.values():
                yield from connections

    # -- keeping

    def close_idle(self) -> None:
        """Closes what nobody holds: the member is gone, or its role has changed and with it the arming."""
        for connection in [*self._clean_ones(), *self._bound]:
            connection.close()

    def close_all(self, why: str = "the gateway gave the connection up") -> None:
        """Closes every connection; sessions that hold one are told that it was lost."""
        for connection in list(self._all):
            connection.lost(ConnectionAbortedError(why))

    def retire(self, user: str | None = None) -> None:
        """Gives no connection that is open by now out again: a user's, or everybody's.

        What is idle is closed at once, what is leased (or being opened) when it comes back.
        """
        self.retired += 1
        for connection in list(self._all):
            if user is None or connection.credentials.user == user:
                if connection.leased:
                    connection.retired = True
                else:
                    connection.close()
        for key in [key for key, (known, _) in self._used.items() if user is None or known.user == user]:
            del self._used[key]

    def give_up_primary(self) -> None:
        """Closes what was opened to the member as the primary: another one is, and this one must not be written to."""
        for connection in list(self._all):
            if not connection.arming.replica:
                connection.lost(ConnectionAbortedError("another server is the primary now"))

    async def maintain(self) -> None:
        """Replaces what has grown old, and keeps `min_idle` connections ready for credentials in use."""
        now = trio.current_time()
        for connection in [one for one in self._clean_ones() if one.expires <= now]:
            connection.close()
        for states in self._clean.values():
            for state in [state for state, connections in states.items() if not connections]:
                del states[state]
        for key, (credentials, used) in list(self._used.items()):
            if now - used > KEPT_WARM_SECONDS:
                del self._used[key]
                continue
            idle = sum(len(connections) for connections in self._clean.get(key, {}).values())
            if idle + self.in_use < self._settings.min_idle and not self._waiting and self._reserve():
                try:
                    connection = await self._open(credentials)
                except (Unavailable, BackendRefused) as error:
                    log.info("no spare connection could be opened", member=self.name, error=str(error))
                else:
                    self.give_back(connection)
