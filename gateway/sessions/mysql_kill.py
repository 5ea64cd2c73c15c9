"""KILL: the thread ids that the gateway gives to sessions, and what ending one or its statement comes to.

A session has an id of the gateway's, whichever connection serves it. KILL QUERY of it is forwarded to the server where
its statement runs. That connection is closed as soon as the session has no need of it any more, and serves nobody else
before: the server may carry out a KILL late, and must not meet another client's statement then. A session that holds
its connection (an open transaction, a pin) keeps it, and its own next statement waits for the KILL's answer.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

import trio

from gateway.errors import BackendRefused
from gateway.protocol.mysql import answers
from gateway.protocol.mysql.constants import ErrorCode
from gateway.routing.operation import THREAD_ID_BIT, Kill
from gateway.topology.mysql import Topology

if TYPE_CHECKING:
    from gateway.sessions.mysql import MysqlSession

WORKER_SHIFT: Final = 24
"""Bits 24 to 30 of a thread id are the worker's number, which is 0: there is one."""
_NUMBERS: Final = (1 << WORKER_SHIFT) - 1


class Threads:
    """The sessions of one group by thread id, over all its listeners."""

    def __init__(self) -> None:
        self._sessions: dict[int, MysqlSession] = {}
        self._numbers = itertools.count(1)

    def new_id(self) -> int:
        """An id that no session has."""
        while True:
            id_ = THREAD_ID_BIT | next(self._numbers) & _NUMBERS
            if id_ not in self._sessions:
                return id_

    def add(self, session: MysqlSession) -> None:
        self._sessions[session.id] = session

    def discard(self, session: MysqlSession) -> None:
        self._sessions.pop(session.id, None)

    def get(self, id_: int) -> MysqlSession | None:
        return self._sessions.get(id_)

    def __iter__(self) -> itertools.chain[MysqlSession]:
        return itertools.chain(self._sessions.values())


_threads: WeakKeyDictionary[Topology, Threads] = WeakKeyDictionary()


def threads_of(topology: Topology) -> Threads:
    """The one registry of a group."""
    found = _threads.get(topology)
    if found is None:
        found = _threads[topology] = Threads()
    return found


def may_reach_others(session: MysqlSession) -> bool:
    """Whether a session's user may end and see other users' sessions (`sessions = "any"` in `users`)."""
    settings = session.service.users.settings(session.user)
    return settings is not None and settings.sessions == "any"


async def kill(session: MysqlSession, wanted: Kill) -> bytes:
    """Carries out a KILL for `session`; returns the reply. Raises BackendRefused as a server would, Unavailable."""
    id_ = session.id if wanted.thread is None else wanted.thread
    victim = session.service.threads.get(id_)
    if victim is None:
        raise BackendRefused(f"Unknown thread id: {id_}", ErrorCode.NO_SUCH_THREAD)
    if victim.user != session.user and not may_reach_others(session):
        raise BackendRefused(f"You are not owner of thread {id_}", ErrorCode.KILL_DENIED)
    if victim is session:
        if not wanted.query:
            session.client.requests.end()
        identity = session.topology.identity
        if not wanted.query and identity is not None and identity.mariadb:
            raise BackendRefused("Connection was killed", ErrorCode.CONNECTION_KILLED, "70100")
        raise interrupted()
    if wanted.query:
        await end_statement(victim)
    else:
        victim.end_by_kill()
    return answers.ok(1, status=session.kept.status)


def interrupted() -> BackendRefused:
    """What the client of a statement hears that was ended by KILL QUERY before any server had it."""
    return BackendRefused("Query execution was interrupted", ErrorCode.QUERY_INTERRUPTED, "70100")


async def end_statement(victim: MysqlSession) -> None:
    """Ends what runs for a session, wherever it has got to; nothing if it is idle. Raises Unavailable."""
    connection = victim.connection
    if connection is None:
        if victim.waiting is not None:
            victim.waiting.cancel()
        return
    connection.retired = True
    answered = victim.frozen = trio.Event()
    victim.rules_version = -1  # declines the next command, which then waits
    try:
        await victim.service.ask_to_end(connection, "KILL QUERY")
    finally:
        answered.set()
        if victim.frozen is answered:
            victim.frozen = None
