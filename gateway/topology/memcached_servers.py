"""The servers of a memcached group: what each is connected by, what is known of it, and what it serves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from gateway.backends.memcached import PipelinedConnection
from gateway.backends.memcached_fence import Greeting, Instance
from gateway.backends.memcached_link import ServerLink
from gateway.backends.rings import RingServer, build_ring
from gateway.config import MemcachedGroup, MemcachedPool, PoolServer
from gateway.net.lane import Lane
from gateway.replication.log.backlog import Backlog
from gateway.replication.log.doubtful import DoubtfulKeys
from gateway.replication.log.follower import Follower, FollowerState

PLAIN_PORT: Final = 11211


def ring_of(config: MemcachedGroup, pool: MemcachedPool) -> Callable[[bytes], int]:
    """Which of the pool's servers, by place, owns a key. Raises ConfigError."""
    servers = [
        RingServer(
            host=server.address.host or server.address.path or "",
            port=server.address.port or PLAIN_PORT,
            id=server.id if server.id is not None else place,
            weight=server.weight,
        )
        for place, server in enumerate(pool.servers, 1)
    ]
    return build_ring(config.hash, config.key_hash, servers).server_for


class PrimaryServer:
    """One server of the primary pool. `connection` is None while it cannot be used."""

    __slots__ = (
        "connection",
        "doubtful",
        "down_misses",
        "instance",
        "link",
        "name",
        "reads",
        "reconnected",
        "writes",
    )

    def __init__(
        self,
        lane: Lane,
        config: PoolServer,
        *,
        ready: Callable[[PrimaryServer, Greeting], None],
        drained: Callable[[], None],
    ) -> None:
        self.name = str(config.address)
        self.connection: PipelinedConnection | None = None
        self.instance: Instance | None = None
        self.doubtful = DoubtfulKeys()
        self.reads = 0  # keys read here
        self.writes = 0
        self.down_misses = 0  # gets that were misses because it could not be asked

        def connected(connection: PipelinedConnection, greeting: Greeting) -> None:
            self.connection = connection
            ready(self, greeting)

        def gone(_reason: str) -> None:
            self.connection = None

        self.link = ServerLink(
            lane, self.name, config.address, writes=True, ready=connected, gone=gone, drained=drained
        )

    @property
    def clock_offset(self) -> float:
        """Its Unix time minus the gateway's monotonic time, as it was told at the last connection; 0 before."""
        return self.link.greeting.clock_offset if self.link.greeting else 0.0

    @property
    def unreachable(self) -> bytes:
        """What a client is told whose write could not be sent."""
        trouble = self.link.trouble or "not connected yet"
        return f"SERVER_ERROR the primary server {self.name} is not reachable: {trouble}\r\n".encode()

    def status(self) -> dict[str, object]:
        greeting = self.link.greeting
        return {
            "server": self.name,
            "state": self.link.state.value,
            "trouble": self.link.trouble,
            "version": greeting.version if greeting else None,
            "reads": self.reads,
            "writes": self.writes,
            "misses_while_down": self.down_misses,
            "doubtful_keys": len(self.doubtful),
            "doubtful_writes_ever": self.doubtful.ever,
            "connected": self.link.connected,
            "in_flight": len(self.connection.waiting) if self.connection else 0,
        }


class ReplicaServer:
    """One server of a replica pool: a connection to read from it, and a follower with its own that writes to it.

    `readable` says whether it may serve keys that `pending` does not name."""

    __slots__ = (
        "connection",
        "follower",
        "following",
        "instance",
        "link",
        "name",
        "pending",
        "pool",
        "readable",
        "reads",
        "waiting_for_origin",
    )

    def __init__(
        self,
        lane: Lane,
        pool: str,
        config: PoolServer,
        group: MemcachedGroup,
        log: Backlog,
        *,
        ready: Callable[[ReplicaServer, PipelinedConnection, Greeting], None],
        schedule: Callable[[Callable[[], None]], None],
        changed: Callable[[], None],
        drained: Callable[[], None],
    ) -> None:
        self.pool = pool
        self.name = str(config.address)
        self.connection: PipelinedConnection | None = None
        self.instance: Instance | None = None
        self.readable = False
        self.reads = 0
        self.waiting_for_origin: tuple[PipelinedConnection, Greeting] | None = None

        def state_changed() -> None:
            self.look()
            changed()

        self.follower = Follower(
            f"{pool}/{self.name}",
            log,
            clock=trio.current_time,
            schedule=schedule,
            changed=state_changed,
            hard_limit=group.replica_buffer_limit.hard,
        )
        self.pending = self.follower.pending.counts

        def reading(connection: PipelinedConnection, _greeting: Greeting) -> None:
            self.connection = connection
            self.look()

        def unread(_reason: str) -> None:
            self.connection = None
            self.look()

        def following(connection: PipelinedConnection, greeting: Greeting) -> None:
            ready(self, connection, greeting)

        def unfollowed(reason: str) -> None:
            self.waiting_for_origin = None
            self.follower.disconnected(reason)

        self.link = ServerLink(
            lane, self.name, config.address, writes=False, ready=reading, gone=unread, drained=drained
        )
        self.following = ServerLink(
            lane,
            f"{self.name} (follower)",
            config.address,
            writes=True,
            ready=following,
            gone=unfollowed,
            drained=self.follower.ship,
            silence=group.replica_timeout,
        )

    def look(self) -> None:
        """Finds out again whether it may be read from."""
        self.readable = (
            self.connection is not None
            and self.follower.state is FollowerState.STREAMING
            and not self.follower.pending.flushes
        )

    def status(self, now: float) -> dict[str, object]:
        follower = self.follower
        greeting = self.link.greeting or self.following.greeting
        return {
            "server": self.name,
            "state": follower.state.value,
            "reason": follower.reason,
            "readable": self.readable,
            "read_connection": self.link.state.value,
            "trouble": self.link.trouble or self.following.trouble,
            "version": greeting.version if greeting else None,
            "applied_offset": follower.applied_offset,
            "lag_seconds": round(follower.lag(now), 3),
            "lag_records": follower.pending.logged,
            "lag_bytes": follower.owed_bytes,
            "pending_keys": len(self.pending),
            "in_flight": len(follower.window),
            "acknowledged_seconds_ago": round(now - follower.acknowledged_at, 3),
            "partial_resyncs": follower.partial_resyncs,
            "reads": self.reads,
            "ledger": follower.ledger.status(),
        }


class ReplicaPool:
    """One replica of the data: servers and the ring that says which of them owns a key."""

    __slots__ = ("name", "place", "servers")

    def __init__(self, name: str, place: Callable[[bytes], int], servers: list[ReplicaServer]) -> None:
        self.name = name
        self.place = place
        self.servers = servers

    def lag(self, now: float) -> float | None:
        """Of the server that lags most, in seconds; None if not all of them stream."""
        if any(server.follower.state is not FollowerState.STREAMING for server in self.servers):
            return None
        return max(server.follower.lag(now) for server in self.servers)
