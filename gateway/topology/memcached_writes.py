"""Writes on their way to a primary server: what their answer did becomes a record of the log, and the client is told.

A write has a mark in the pending index of every owner (replica server of its key) from its dispatch on. Its answer
turns the mark into a record, or settles it where nothing happened. A lost one leaves the mark and makes the key
doubtful. The answer to the client is the primary's; where the write is synchronous it waits until every owner has
applied the record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from gateway.protocol.memcached.reply import Code, Reply
from gateway.protocol.memcached.request import Request
from gateway.replication.log.follower import Follower
from gateway.replication.log.record import OVERHEAD_BYTES, Record, RecordKind
from gateway.routing.kv import Outcome, deadline, effect_of

if TYPE_CHECKING:
    from gateway.topology.memcached import MemcachedTopology
    from gateway.topology.memcached_servers import PrimaryServer

OUTCOME_UNKNOWN: Final = (
    b"SERVER_ERROR the connection to the primary server was lost: outcome unknown, it was not tried again\r\n"
)


class Answer(Protocol):
    """Where the client's answer goes, in its place among the answers of its connection."""

    def complete(self, raw: bytes) -> None: ...


class Nobody:
    """Takes the answers that `noreply` hides."""

    __slots__ = ()

    def complete(self, raw: bytes) -> None:
        """Hidden."""


NOBODY: Final = Nobody()


class Ping:
    """Asks an idle server, so that its silence is noticed before somebody needs it."""

    __slots__ = ()
    writes = False

    def answered(self, reply: Reply) -> None:
        """It lives."""

    def lost(self, reason: str) -> None:
        """Its link knows."""


PING: Final = Ping()


class Write:
    """A write of one key whose effect its answer tells (set, add, replace, cas, delete, touch, gat of one key)."""

    __slots__ = ("answer", "at", "group", "owners", "request", "server", "sync")

    writes = True

    def __init__(
        self,
        group: MemcachedTopology,
        server: PrimaryServer,
        request: Request,
        owners: tuple[Follower, ...],
        answer: Answer,
        sync: bool,
        at: float,
    ) -> None:
        self.group = group
        self.server = server
        self.request = request
        self.owners = owners
        self.answer = answer
        self.sync = sync
        self.at = at

    def answered(self, reply: Reply) -> None:
        owners = self.owners
        if not owners:
            self.answer.complete(reply.raw)
            return
        request = self.request
        if reply.code is Code.STORED:
            record = self._stored()
        else:
            key = request.keys[0]
            outcome = effect_of(request, reply)
            if outcome is Outcome.NOTHING:
                for owner in owners:
                    owner.pending.settle(key)
                self.answer.complete(reply.raw)
                return
            if outcome is Outcome.STORED:
                record = self._stored()
            elif outcome is Outcome.DELETED:
                record = Record(RecordKind.DELETE, key, self.at, owners)
            elif outcome is Outcome.TOUCHED:
                until = deadline(request.exptime, self.at, self.server.clock_offset)
                record = Record(RecordKind.TOUCH, key, self.at, owners, deadline=until)
            else:  # CHANGED or DOUBTFUL: the server is asked
                self.group.fetch(self.server, key, owners, False, reply.raw if self.sync else None, self.answer)
                if not self.sync:
                    self.answer.complete(reply.raw)
                return
        if self.sync:
            self.group.wait_for_owners(record, reply.raw, self.answer)
            self.group.append(record)
        else:
            self.group.append(record)
            self.answer.complete(reply.raw)

    def _stored(self) -> Record:
        request = self.request
        key = request.keys[0]
        size = len(request.raw) + OVERHEAD_BYTES
        if request.exptime == 0 and request.verb == b"set":
            return Record(RecordKind.STORE, key, self.at, self.owners, request.raw, size=size)
        until = deadline(request.exptime, self.at, self.server.clock_offset)
        return Record(RecordKind.STORE, key, self.at, self.owners, b"", request.value, request.flags, until, size)

    def lost(self, reason: str) -> None:
        self.server.doubtful.add(self.request.keys[0], self.owners)
        self.answer.complete(OUTCOME_UNKNOWN)


class Change:
    """A write whose result only the server knows (append, prepend, incr, decr): a fetch behind it tells, and has its
    marks."""

    __slots__ = ("answer", "fetch")

    writes = True

    def __init__(self, answer: Answer, fetch: Fetch | None) -> None:
        """`fetch` is given where the client waits for the replicas."""
        self.answer = answer
        self.fetch = fetch

    def answered(self, reply: Reply) -> None:
        if self.fetch is not None:
            self.fetch.reply = reply.raw
        else:
            self.answer.complete(reply.raw)

    def lost(self, reason: str) -> None:
        self.answer.complete(OUTCOME_UNKNOWN)


class Fetch:
    """Reads a key's whole state after a write, or after its loss; what comes is the record."""

    __slots__ = ("answer", "doubtful", "group", "key", "owners", "reply", "server")

    def __init__(
        self,
        group: MemcachedTopology,
        server: PrimaryServer,
        key: bytes,
        owners: tuple[Follower, ...],
        doubtful: bool,
        reply: bytes | None,
        answer: Answer,
    ) -> None:
        """`reply` is the client's, where it waits for the replicas. With `doubtful` the marks are those of lost
        writes, and `owners` is not looked at."""
        self.group = group
        self.server = server
        self.key = key
        self.owners = owners
        self.doubtful = doubtful
        self.reply = reply
        self.answer = answer

    @property
    def writes(self) -> bool:
        return False

    def answered(self, reply: Reply) -> None:
        group = self.group
        owners = self.owners
        if self.doubtful:
            owners = self.server.doubtful.resolve(self.key)
            if not owners:
                return
            for owner in owners:
                owner.pending.dispatch_doubtful()
        record = group.record_of(self.key, owners, reply)
        if self.reply is not None:
            group.wait_for_owners(record, self.reply, self.answer)
        group.append(record)

    def lost(self, reason: str) -> None:
        if not self.doubtful:
            self.server.doubtful.add(self.key, self.owners)
        if self.reply is not None:
            self.group.sync_failed(self.reply, self.answer, "the connection to the primary server was lost")


class LocalWrite(Write):
    """A write of a key that is not replicated (any more): whatever it did, the replicas lose the key."""

    __slots__ = ()

    def answered(self, reply: Reply) -> None:
        self.group.append(Record(RecordKind.DELETE, self.request.keys[0], self.at, self.owners))
        self.answer.complete(reply.raw)

    def lost(self, reason: str) -> None:
        self.group.forget_local(self.request.keys[0])  # what is read again will be shipped
        super().lost(reason)


class FlushPart:
    """A flush_all at one primary server."""

    __slots__ = ("ended",)

    writes = True

    def __init__(self, ended: Callable[[Reply | None], None]) -> None:
        """`ended` is called with the answer, or None if it was lost."""
        self.ended = ended

    def answered(self, reply: Reply) -> None:
        self.ended(reply)

    def lost(self, reason: str) -> None:
        self.ended(None)
