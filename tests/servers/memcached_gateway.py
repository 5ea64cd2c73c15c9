"""A memcached group served in the test's own Trio: the lane, the topology and a listener, without the rest."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio

from gateway.config import Address, Listener, MemcachedGroup, MemcachedPool, PoolServer
from gateway.demo.servers import Server
from gateway.net.lane import Lane
from gateway.net.listener import Acceptor, bind_tcp
from gateway.replication.log.follower import FollowerState
from gateway.rules.compile import NO_RULES, RuleSet
from gateway.sessions.memcached import MemcachedService
from gateway.topology.memcached import MemcachedTopology


@dataclass
class RunningGateway:
    """What runs; `address` is where clients connect."""

    address: tuple[str, int]
    lane: Lane
    topology: MemcachedTopology
    service: MemcachedService
    nursery: trio.Nursery

    def connect(self) -> socket.socket:
        """A blocking client connection, for threads."""
        connection = socket.create_connection(self.address, timeout=30.0)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    @property
    def shipped(self) -> bool:
        """Whether nothing is pending anywhere."""
        return not any(follower.pending.counts or follower.pending.logged for follower in self.topology.followers)

    @property
    def streaming(self) -> bool:
        return all(follower.state is FollowerState.STREAMING for follower in self.topology.followers)

    @property
    def connected(self) -> bool:
        return all(server.connection is not None for server in self.topology.primary)


def group_config(pools: Mapping[str, Sequence[Server]], **settings: Any) -> MemcachedGroup:
    """The first pool is the primary."""
    names = list(pools)
    return MemcachedGroup(
        name="sessions",
        engine="memcached",
        primary=names[0],
        replicas=tuple(names[1:]),
        pools={
            name: MemcachedPool(
                servers=tuple(PoolServer(address=Address(server.host, server.port)) for server in servers)
            )
            for name, servers in pools.items()
        },
        **settings,
    )


@asynccontextmanager
async def memcached_gateway(
    pools: Mapping[str, Sequence[Server]],
    *,
    rules: RuleSet = NO_RULES,
    limit: int = 10_000,
    idle_timeout: float = 3600.0,
    **settings: Any,
) -> AsyncIterator[RunningGateway]:
    """Serves until the block ends."""
    lane = Lane()
    async with trio.open_nursery() as lane_nursery:
        lane_nursery.start_soon(lane.run)
        try:
            async with trio.open_nursery() as nursery:
                topology = MemcachedTopology(group_config(pools, **settings), lane)
                await nursery.start(topology.run)
                (sock,) = bind_tcp("127.0.0.1", 0)
                address = sock.getsockname()
                listener = Listener(
                    name="cache",
                    protocol="memcached",
                    listen=Address(*address),
                    group="sessions",
                    idle_timeout=idle_timeout,
                )
                service = MemcachedService(lane, listener, topology, rules)
                acceptor = Acceptor(
                    lane, sock, nursery, service.serve, name="cache", limit=limit, refusal=service.refusal
                )
                try:
                    yield RunningGateway(address, lane, topology, service, nursery)
                finally:
                    acceptor.close()
                    nursery.cancel_scope.cancel()
        finally:
            lane_nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    """Returns once the condition holds; fails the test if it takes too long."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for changes in the lane, not in the test
            await trio.sleep(0.01)


def transcript(address: tuple[str, int], request: bytes) -> bytes:
    """Everything that is answered to these bytes, up to the answer of a no-op behind them."""
    with socket.create_connection(address, timeout=30.0) as connection:
        connection.sendall(request + b"mn\r\n")
        received = bytearray()
        while not received.endswith(b"MN\r\n"):
            chunk = connection.recv(65536)
            if not chunk:
                return bytes(received) + b"<closed>"
            received += chunk
        return bytes(received[: -len(b"MN\r\n")])
