"""flush_all: holds the group's writes back until every primary server has answered, then becomes one record of the log.

Every server gets it over the connection of its writes, so that it comes after all that were dispatched before. A server
that does not answer leaves the outcome unknown. Then the replicas are flushed all the same: what the primary still has
is a miss there, and asked again, while nothing that the primary lost is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog
import trio

from gateway.protocol.memcached import encoder
from gateway.protocol.memcached.reply import Code, Reply
from gateway.replication.log.record import Record, RecordKind
from gateway.routing.kv import deadline
from gateway.topology.memcached_writes import FlushPart

if TYPE_CHECKING:
    from gateway.topology.memcached import MemcachedTopology

OK: Final = b"OK\r\n"
UNKNOWN: Final = b"SERVER_ERROR flush_all reached not all primary servers: outcome unknown, it was not tried again\r\n"

log = structlog.get_logger(__name__)


class Flush:
    """The flushes of one group, one at a time. Writes wait while it is `frozen`."""

    def __init__(self, topology: MemcachedTopology) -> None:
        self.frozen = False
        self.done = 0
        self.nursery: trio.Nursery | None = None  # where a delayed one waits
        self._topology = topology
        self._thaw = trio.Event()
        self._timer: trio.CancelScope | None = None

    async def ask(self, delay: int) -> bytes:
        """What a flush_all is answered. `delay` as the client gave it: seconds, over 30 days a Unix time, or 0.

        A delayed one is a timer here, never forwarded, and replaces an earlier one, as it would at a server.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if delay <= 0:
            return await self._flush()
        assert self.nursery is not None
        clock_offset = max(server.clock_offset for server in self._topology.primary)
        at = deadline(delay, trio.current_time(), clock_offset)
        self._timer = trio.CancelScope()
        self.nursery.start_soon(self._flush_later, at, self._timer, name="delayed flush_all")
        return OK

    async def _flush_later(self, at: float, timer: trio.CancelScope) -> None:
        with timer:
            await trio.sleep_until(at)
        if timer.cancelled_caught:
            return
        if self._timer is timer:
            self._timer = None
        answer = await self._flush()
        if answer != OK:
            log.error("a delayed flush_all failed", group=self._topology.name, answer=answer.decode().strip())

    async def _flush(self) -> bytes:
        topology = self._topology
        while self.frozen:
            await self._thaw.wait()
        down = next((server for server in topology.primary if server.connection is None), None)
        if down is not None:
            return down.unreachable
        if topology.refusal is not None:
            return topology.refusal
        answers: list[Reply | None] = []
        ended = trio.Event()

        def part(reply: Reply | None) -> None:
            answers.append(reply)
            if len(answers) == len(topology.primary):
                self._ended(answers)
                ended.set()
                topology.lane.woke = True

        def send() -> None:
            self.frozen = True
            for replica in topology.replicas:
                replica.follower.pending.flushes += 1
                replica.look()
            for server in topology.primary:
                server.writes += 1
                if server.connection is not None:
                    server.connection.send(encoder.FLUSH_ALL, FlushPart(part))

        topology.lane.batch(send)
        await ended.wait()  # and if this is cancelled, the answers are still waited for
        if None in answers:
            return UNKNOWN
        refused = next((reply for reply in answers if reply is not None and reply.code is not Code.OK), None)
        return OK if refused is None else refused.raw

    def _ended(self, answers: list[Reply | None]) -> None:
        topology = self._topology
        followers = topology.followers
        if any(reply is None or reply.code is Code.OK for reply in answers):
            self.done += 1
            record = Record(RecordKind.FLUSH, b"", topology.lane.now, tuple(followers))
            topology.log.append(record)
            for follower in followers:
                follower.pending.log_flush()
                follower.accept(record)
        else:  # refused everywhere: nothing was flushed
            for follower in followers:
                follower.pending.flushes -= 1
        for replica in topology.replicas:
            replica.look()
        self.frozen = False
        thaw, self._thaw = self._thaw, trio.Event()
        thaw.set()
        topology.unstall()
