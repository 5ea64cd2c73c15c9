"""A memcached group: its pools, the log between them, and what decides where a key is read and how a write is shipped.

The primary pool takes every write. Its answers become records of the log, which followers apply to the servers of the
replica pools. A replica server serves a key that is not pending there while its follower streams.

Replicas begin, and stay, in step with the primary only by the log, since full resync is not part of this version: a
follower begins when its own server and all primary servers were found empty at first sight, and ends for good (needs a
full resync, serves no reads) when a server turns out to have been restarted, or what it lacks has left the backlog.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Final

import structlog
import trio

from gateway.backends.memcached import PipelinedConnection
from gateway.backends.memcached_fence import Greeting
from gateway.backends.memcached_link import ServerLink
from gateway.config import MemcachedGroup
from gateway.net.lane import Lane, Serves
from gateway.protocol.memcached import encoder
from gateway.protocol.memcached.reply import Code, Reply
from gateway.protocol.memcached.request import Request
from gateway.replication.log.backlog import Backlog
from gateway.replication.log.follower import CONNECTED, Follower, FollowerState
from gateway.replication.log.record import OVERHEAD_BYTES, Record, RecordKind
from gateway.replication.log.shipping import Shipping
from gateway.replication.log.synchronous import STILL_SHIPPED, SyncWait, SyncWaits
from gateway.replication.position import LogPosition
from gateway.routing.kv import KEY_OPERATIONS
from gateway.routing.operation import Effect
from gateway.rules.policy import Replicate
from gateway.topology.memcached_flush import Flush
from gateway.topology.memcached_servers import PrimaryServer, ReplicaPool, ReplicaServer, ring_of
from gateway.topology.memcached_writes import NOBODY, PING, Answer, Change, Fetch, LocalWrite, Write

TICK_SECONDS: Final = 0.1  # how late a synchronous write is given up
TICKS_PER_CHECK: Final = 10
FIRST_LOOK_SECONDS: Final = 1.0  # how long a start waits until every server was reached, or could not be
DRAIN_SECONDS: Final = 10.0
DRAIN_POLL_SECONDS: Final = 0.02
LOCAL_KEYS_MAX: Final = 1_000_000  # some 100 MiB; beyond it they are forgotten, and deleted on the replicas once more

_CHANGES: Final = frozenset(verb for verb, operation in KEY_OPERATIONS.items() if operation.effect is Effect.CHANGE)
log = structlog.get_logger(__name__)


class MemcachedTopology:
    """One group. Everything but `run` and `drain` is synchronous and belongs into a batch.

    `read_pools` are those that reads may go to; `refusal` is what writes are answered while too few replicas are in
    step, or None.
    """

    def __init__(self, config: MemcachedGroup, lane: Lane) -> None:
        self.config = config
        self.name = config.name
        self.lane = lane
        self.log = Backlog(config.backlog, self._held_offset, self._cutting)
        self.sync_waits = SyncWaits()
        self.refusal: bytes | None = None
        self.flush = Flush(self)
        self.resync_reason: str | None = None
        pool = config.pools[config.primary]
        self.primary_place = ring_of(config, pool)
        self.primary = [
            PrimaryServer(lane, server, ready=self._primary_ready, drained=self.unstall) for server in pool.servers
        ]
        self.replica_pools: list[ReplicaPool] = []
        shipping = Shipping(lane)
        for name in config.replicas:
            replica = config.pools[name]
            servers = [
                ReplicaServer(
                    lane,
                    name,
                    server,
                    config,
                    self.log,
                    ready=self._follower_ready,
                    schedule=shipping.soon,
                    changed=self._look_at_replicas,
                    drained=self.unstall,
                )
                for server in replica.servers
            ]
            self.replica_pools.append(ReplicaPool(name, ring_of(config, replica), servers))
        self.replicas = [server for pool in self.replica_pools for server in pool.servers]
        self.followers = [server.follower for server in self.replicas]
        self.read_pools = tuple(self.replica_pools)
        self._stalled: dict[Serves, Callable[[], None]] = {}
        self._unseen = set(self.primary)
        self._local: set[bytes] | None = None
        self._look_at_replicas()

    # -- tasks

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps connections, followers and timers until cancelled. Started when every server has answered or failed
        once, at the latest after FIRST_LOOK_SECONDS."""
        links = [*self._links(), *(server.following for server in self.replicas)]
        async with trio.open_nursery() as nursery:
            self.flush.nursery = nursery
            for link in links:
                nursery.start_soon(link.run, name=f"{self.name}: connection to {link.name}")
            with trio.move_on_after(FIRST_LOOK_SECONDS):
                for link in links:
                    await link.attempted()
            nursery.start_soon(self._tick, name=f"{self.name}: timers")
            task_status.started()

    def _links(self) -> list[ServerLink]:
        """Those that requests of clients go over."""
        return [*(server.link for server in self.primary), *(server.link for server in self.replicas)]

    async def drain(self) -> None:
        """Ships what is pending, for at most DRAIN_SECONDS; for after the clients have ended."""
        with trio.move_on_after(DRAIN_SECONDS):
            while self._busy():  # noqa: ASYNC110 - changes with every answer in the lane, which must not pay for it
                await trio.sleep(DRAIN_POLL_SECONDS)
        left = {follower.name: follower.pending.logged for follower in self.followers if follower.pending.logged}
        if left:
            log.warning("stopping with records that were not shipped", group=self.name, records=left)

    def _busy(self) -> bool:
        """Whether answers of the primary are due, or a connected follower lacks something."""
        return any(server.connection and server.connection.waiting for server in self.primary) or any(
            follower.state in CONNECTED and follower.pending.logged for follower in self.followers
        )

    async def _tick(self) -> None:
        ticks = 0
        while True:
            await trio.sleep(TICK_SECONDS)
            ticks += 1
            if self.sync_waits:
                self.lane.batch(lambda: self.sync_waits.expire(trio.current_time()))
            if ticks % TICKS_PER_CHECK == 0:
                self.lane.batch(self._check)

    def _check(self) -> None:
        """Once a second: pings who is idle, cuts off who stays behind, counts who is in step."""
        now = trio.current_time()
        limit = self.config.replica_buffer_limit
        for link in self._links():
            if link.connection is not None and not link.connection.waiting:
                link.connection.send(encoder.VERSION, PING)
        for follower in self.followers:
            follower.ping(encoder.VERSION)
            if follower.owed_bytes <= limit.soft or follower.state not in CONNECTED:
                follower.over_soft_since = None
            elif follower.over_soft_since is None:
                follower.over_soft_since = now
            elif now - follower.over_soft_since >= limit.soft_for:
                follower.need_resync("it was behind replica_buffer_limit.soft for too long")
        self._look_at_replicas()

    # -- connections

    def _primary_ready(self, server: PrimaryServer, greeting: Greeting) -> None:
        if server.instance is None:
            server.instance = greeting.instance
            self._unseen.discard(server)
            if greeting.items:
                self._begin_timeline(f"the primary server {server.name} was not empty when it was first seen")
            if not self._unseen:
                for replica in self.replicas:
                    self._begin(replica)
        elif server.instance != greeting.instance:
            server.instance = greeting.instance
            server.doubtful.settle()
            self._begin_timeline(f"the primary server {server.name} was restarted, and is empty")
        connection = server.connection
        assert connection is not None
        for key in server.doubtful.keys_now():
            connection.send(encoder.meta_get(key), Fetch(self, server, key, (), True, None, NOBODY))

    def _follower_ready(self, replica: ReplicaServer, connection: PipelinedConnection, greeting: Greeting) -> None:
        if replica.instance is None:
            replica.instance = greeting.instance
            if greeting.items:
                replica.follower.need_resync("its server was not empty when it was first seen")
        elif replica.instance != greeting.instance:
            replica.instance = greeting.instance
            replica.follower.need_resync("its server was restarted, and is empty")
        replica.waiting_for_origin = (connection, greeting)
        if not self._unseen:
            self._begin(replica)

    def _begin(self, replica: ReplicaServer) -> None:
        if replica.waiting_for_origin is not None:
            connection, greeting = replica.waiting_for_origin
            replica.waiting_for_origin = None
            if self.resync_reason is not None:
                replica.follower.need_resync(self.resync_reason)
            replica.follower.connected(connection, greeting.clock_offset)

    def _begin_timeline(self, reason: str) -> None:
        """What the replicas have is no longer what the primary has, as far as anybody knows."""
        log.error("replicas need a full resync and serve no reads", group=self.name, reason=reason)
        self.resync_reason = reason
        for follower in self.followers:
            follower.need_resync(reason)
        self.log.begin_timeline()

    def stall(self, resume: Callable[[], None], serves: Serves) -> None:
        """Calls `resume` once, when a server connection that was full takes requests again or has ended, or a flush
        has; `serves` is blamed for its exceptions."""
        self._stalled[serves] = resume

    def unstall(self) -> None:
        stalled, self._stalled = self._stalled, {}
        for serves, resume in stalled.items():
            self.lane.again(resume, serves)

    def _held_offset(self) -> int:
        """Connected followers need everything after this."""
        offsets = [follower.applied_offset for follower in self.followers if follower.state in CONNECTED]
        return min(offsets, default=self.log.offset)

    def _cutting(self, upto: int) -> None:
        for follower in self.followers:
            follower.cutting(upto)

    def _look_at_replicas(self) -> None:
        """Who may be read from, and whether enough are in step for writes."""
        pools = tuple(
            pool
            for pool in self.replica_pools
            if any(server.follower.state is not FollowerState.NEEDS_FULL_RESYNC for server in pool.servers)
        )
        self.read_pools = pools if self.config.read_from == "replica" else ()
        needed = self.config.min_replicas_to_write
        if needed:
            now = trio.current_time()
            lags = [pool.lag(now) for pool in self.replica_pools]
            good = sum(lag is not None and lag <= self.config.min_replicas_max_lag for lag in lags)
            self.refusal = (
                None
                if good >= needed
                else (
                    f"SERVER_ERROR not enough replicas: {good} of {needed} are within "
                    f"{self.config.min_replicas_max_lag:g} s of the primary\r\n"
                ).encode()
            )

    # -- writes

    def server_of(self, key: bytes) -> PrimaryServer:
        """The primary server that owns the key."""
        return self.primary[self.primary_place(key)]

    def owners(self, key: bytes) -> tuple[Follower, ...]:
        """The followers whose servers own the key, one for each replica pool."""
        return tuple([pool.servers[pool.place(key)].follower for pool in self.replica_pools])

    def write(
        self,
        server: PrimaryServer,
        connection: PipelinedConnection,
        request: Request,
        replicate: Replicate,
        answer: Answer,
    ) -> None:
        """Sends a write of one key to its server. The caller has looked at `frozen`, `refusal` and the connection."""
        key = request.keys[0]
        server.writes += 1
        at = self.lane.now
        if replicate is Replicate.NONE:
            connection.send(request, self._local_write(server, request, key, answer, at))
            return
        if self._local is not None:
            self._local.discard(key)
        owners = self.owners(key)
        sync = replicate is Replicate.SYNC and bool(owners) and answer is not NOBODY
        for owner in owners:
            owner.pending.dispatch(key)
        if owners and request.verb in _CHANGES:
            fetch = Fetch(self, server, key, owners, False, None, answer)
            connection.send(request, Change(answer, fetch if sync else None))
            connection.send(encoder.meta_get(key), fetch)
        else:
            connection.send(request, Write(self, server, request, owners, answer, sync, at))

    def _local_write(self, server: PrimaryServer, request: Request, key: bytes, answer: Answer, at: float) -> Write:
        """A write that is not replicated. Once rules have changed, the replicas may have the key from before: the
        first write since then deletes it there, so that a later change back finds nothing old."""
        if self._local is None or key in self._local or not self.replica_pools:
            return Write(self, server, request, (), answer, False, at)
        if len(self._local) >= LOCAL_KEYS_MAX:
            self._local.clear()
        self._local.add(key)
        owners = self.owners(key)
        for owner in owners:
            owner.pending.dispatch(key)
        return LocalWrite(self, server, request, owners, answer, False, at)

    def rules_changed(self) -> None:
        """Rules may make keys local that were replicated until now, or the reverse."""
        if self._local is None:
            self._local = set()

    def forget_local(self, key: bytes) -> None:
        if self._local is not None:
            self._local.discard(key)

    def fetch(
        self,
        server: PrimaryServer,
        key: bytes,
        owners: tuple[Follower, ...],
        doubtful: bool,
        reply: bytes | None,
        answer: Answer,
    ) -> None:
        """Reads a key's state behind a write whose answer does not tell it; on the connection of that write."""
        connection = server.connection
        fetch = Fetch(self, server, key, owners, doubtful, reply, answer)
        if connection is None:
            fetch.lost("not connected")
        else:
            connection.send(encoder.meta_get(key), fetch)

    def record_of(self, key: bytes, owners: tuple[Follower, ...], reply: Reply) -> Record:
        """What `mg k v f t c` answered. Anything but a value is a delete, which is always safe on a replica."""
        now = self.lane.now
        if reply.code is not Code.VA:
            return Record(RecordKind.DELETE, key, now, owners)
        flags = reply.meta_flags()
        left = int(flags[b"t"])
        value = reply.meta_value
        return Record(
            RecordKind.STORE,
            key,
            now,
            owners,
            value=value,
            flags=int(flags[b"f"]),
            deadline=math.inf if left < 0 else now + left,
            size=len(key) + len(value) + OVERHEAD_BYTES,
        )

    def append(self, record: Record) -> None:
        """Gives a record its place in the log, and to the followers that it is for."""
        self.log.append(record)
        for owner in record.owners:
            owner.pending.log()
            owner.accept(record)
            if record.sync is not None:
                self.lane.after_batch(owner.ship)  # somebody waits

    def wait_for_owners(self, record: Record, reply: bytes, answer: Answer) -> None:
        """Answers when every owner has applied the record, which is appended next."""

        def done(reason: str | None) -> None:
            if reason is None:
                answer.complete(reply)
            else:
                self.sync_failed(reply, answer, reason)

        record.sync = SyncWait(len(record.owners), trio.current_time() + self.config.sync_timeout, done)
        self.sync_waits.add(record.sync)

    def sync_failed(self, reply: bytes, answer: Answer, reason: str) -> None:
        """A synchronous write is at the primary and not, or not yet, on all replicas."""
        if self.config.sync_failure == "degrade":
            answer.complete(reply)
        else:
            answer.complete(f"SERVER_ERROR {STILL_SHIPPED}: {reason}\r\n".encode())

    # -- status

    @property
    def position(self) -> LogPosition:
        return self.log.position

    def dropped(self) -> Counter[str]:
        """Records that were not applied, by reason, over all replica servers."""
        total: Counter[str] = Counter()
        for follower in self.followers:
            total.update({reason.value: count for reason, count in follower.ledger.dropped.items()})
        return total

    def status(self) -> dict[str, object]:
        """Everything that `gateway status --json` shows of the group, as plain values."""
        now = trio.current_time()
        return {
            "engine": "memcached",
            "run_id": self.log.run_id,
            "offset": self.log.offset,
            "backlog_first_offset": self.log.first,
            "backlog_records": len(self.log),
            "backlog_bytes": self.log.byte_count,
            "backlog_budget_bytes": self.log.budget,
            "flushes": self.flush.done,
            "frozen": self.flush.frozen,
            "writes_refused": self.refusal.decode().strip() if self.refusal else None,
            "needs_full_resync": self.resync_reason,
            "sync_waiting": len(self.sync_waits),
            "sync_timed_out": self.sync_waits.timed_out,
            "doubtful_keys": sum(len(server.doubtful) for server in self.primary),
            "primary": {"pool": self.config.primary, "servers": [server.status() for server in self.primary]},
            "replicas": [
                {
                    "pool": pool.name,
                    "lag_seconds": pool.lag(now),
                    "servers": [server.status(now) for server in pool.servers],
                }
                for pool in self.replica_pools
            ],
        }
