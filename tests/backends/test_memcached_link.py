"""A link comes back quickly, and never before everything that its lost connection carried has been dealt with."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from memcached_gateway import transcript, until
from netns import NamespacedMemcached

from gateway.backends.memcached import PipelinedConnection
from gateway.backends.memcached_fence import Greeting
from gateway.backends.memcached_link import LinkState, ServerLink
from gateway.config import Address
from gateway.demo.relay import Relay
from gateway.demo.servers import MemcachedServer, Server
from gateway.demo.stack import Stack
from gateway.net.lane import Lane
from gateway.protocol.memcached import encoder
from gateway.protocol.memcached.reply import Reply
from gateway.protocol.memcached.request import Request

pytestmark = pytest.mark.servers


@dataclass
class Wait:
    """Waits for one answer."""

    writes: bool = True
    reply: Reply | None = None
    loss: str | None = None

    def answered(self, reply: Reply) -> None:
        self.reply = reply

    def lost(self, reason: str) -> None:
        self.loss = reason

    @property
    def over(self) -> bool:
        return self.reply is not None or self.loss is not None


@dataclass
class Kept:
    """A link, and what it said."""

    lane: Lane
    link: ServerLink = field(init=False)
    greetings: list[Greeting] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)

    def ready(self, connection: PipelinedConnection, greeting: Greeting) -> None:
        assert self.link.connection is connection
        self.greetings.append(greeting)

    def ask(self, request: Request, *, writes: bool = True) -> Wait:
        wait = Wait(writes)
        connection = self.link.connection
        assert connection is not None
        self.lane.batch(lambda: connection.send(request, wait))
        return wait

    @property
    def connected(self) -> bool:
        return self.link.connection is not None


@asynccontextmanager
async def kept(server: Server, *, writes: bool = True, patience: float = 0.5) -> AsyncIterator[Kept]:
    lane = Lane()
    held = Kept(lane)
    held.link = ServerLink(
        lane,
        "server",
        Address(server.host, server.port),
        writes=writes,
        ready=held.ready,
        gone=held.losses.append,
        drained=lambda: None,
        patience=patience,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lane.run)
        try:
            async with trio.open_nursery() as inner:
                inner.start_soon(held.link.run)
                await until(lambda: held.connected)
                yield held
                inner.cancel_scope.cancel()
        finally:
            nursery.cancel_scope.cancel()


def local_address(held: Kept) -> tuple[str, int]:
    assert held.link.connection is not None
    address = held.link.connection.addresses[0]
    assert isinstance(address, tuple)
    host, port = address
    return host, port


def value_of(server: MemcachedServer, key: bytes) -> bytes | None:
    answered = transcript((server.host, server.port), b"get %b\r\n" % key)
    match = re.fullmatch(rb"VALUE \S+ \d+ \d+\r\n(.*)\r\nEND\r\n", answered)
    return match[1] if match else None


def one_server(stack: Stack, version: str = "debian") -> MemcachedServer:
    server = MemcachedServer(stack, version=version, options=("-t", "4"))  # type: ignore[arg-type]  # one of two words
    server.start()
    return server


def one_relay(stack: Stack, server: MemcachedServer) -> Relay:
    relay = Relay(stack, server.host, server.port)
    relay.start()
    return relay


@pytest.mark.parametrize("version", ["debian", "newest"])
async def test_learns_how_the_server_knows_it_even_behind_a_relay(stack: Stack, version: str) -> None:
    server = one_server(stack, version)
    relay = one_relay(stack, server)
    async with kept(server) as held:
        host, port = local_address(held)
        assert str(held.greetings[0].seen).startswith(f"b'tcp:{host}:{port} fd ")
    async with kept(relay) as held:
        _, port = local_address(held)
        seen = held.greetings[0].seen
        assert seen is not None
        assert seen.startswith(b"tcp:127.0.0.1:")
        assert not seen.startswith(b"tcp:127.0.0.1:%d " % port)
        assert held.greetings[0].instance.pid == server.pid


async def test_late_bytes_of_a_lost_connection_never_win(stack: Stack) -> None:
    server = one_server(stack)
    relay = one_relay(stack, server)
    async with kept(relay) as held:
        await trio.to_thread.run_sync(relay.delay, 2.0, "to_server")
        lost = held.ask(encoder.store(b"k", b"old", 0, 0))
        await until(lambda: lost.over)
        assert lost.loss == "no answer for 0.5 s"
        await trio.to_thread.run_sync(relay.delay, 0.0, "to_server")
        await until(lambda: held.connected)
        # Only now may a write be sent; the old one has arrived by then, and not after it.
        assert await trio.to_thread.run_sync(value_of, server, b"k") == b"old"
        written = held.ask(encoder.store(b"k", b"new", 0, 0))
        await until(lambda: written.over)
        await trio.to_thread.run_sync(relay.heal)
        await trio.sleep(2.0)  # as long as anything could still be on its way
        assert await trio.to_thread.run_sync(value_of, server, b"k") == b"new"


async def test_without_unanswered_writes_there_is_nothing_to_wait_for(stack: Stack) -> None:
    server = one_server(stack)
    relay = one_relay(stack, server)
    async with kept(relay) as held:
        await trio.to_thread.run_sync(relay.delay, 5.0, "to_server")
        lost = held.ask(encoder.get([b"k"]), writes=False)
        await until(lambda: lost.over)
        await trio.to_thread.run_sync(relay.delay, 0.0, "to_server")
        with trio.fail_after(3.0):
            await until(lambda: held.connected)


async def test_stopped_server_carries_out_what_it_had_before_it_is_used_again(stack: Stack) -> None:
    server = one_server(stack)
    async with kept(server) as held:
        for number in range(5):
            await until(lambda: held.connected)
            server.pause()
            lost = held.ask(encoder.store(b"k", b"old%d" % number, 0, 0))
            await until(lambda: lost.over)  # noqa: B023 - used at once
            assert lost.loss is not None
            server.resume()
            await until(lambda: held.connected)
            assert held.ask(encoder.store(b"k", b"new%d" % number, 0, 0)).loss is None
            await trio.sleep(0.1)
            assert await trio.to_thread.run_sync(value_of, server, b"k") == b"new%d" % number


async def test_after_a_partition_the_server_is_made_to_forget_the_old_connection(
    memcached_in_namespace: NamespacedMemcached,
) -> None:
    server = memcached_in_namespace
    async with kept(server) as held:
        old = held.greetings[0].seen
        # Until its last answer was acknowledged (40 ms, tcp(7)) the server sends it again, and so learns of the loss.
        await trio.sleep(0.3)
        await trio.to_thread.run_sync(server.cut)
        lost = held.ask(encoder.store(b"k", b"old", 0, 0))
        await until(lambda: lost.over)
        await trio.sleep(0.5)
        await trio.to_thread.run_sync(server.heal)
        await until(lambda: held.connected, 20.0)
        listed = await trio.to_thread.run_sync(transcript, (server.host, server.port), b"stats conns\r\n")
        assert old is not None
        assert old.split(b" ")[0] not in listed.split()
        written = held.ask(encoder.store(b"k", b"new", 0, 0))
        await until(lambda: written.over)
        await trio.sleep(1.0)  # retransmissions would come by now
        assert await trio.to_thread.run_sync(value_of, server, b"k") == b"new"


async def test_another_process_needs_no_fence(stack: Stack) -> None:
    server = one_server(stack)
    async with kept(server) as held:
        server.pause()
        lost = held.ask(encoder.store(b"k", b"old", 0, 0))
        await until(lambda: lost.over)
        server.kill()
        await trio.to_thread.run_sync(server.start)
        await until(lambda: held.connected)
        assert len({greeting.instance for greeting in held.greetings}) == 2
        assert await trio.to_thread.run_sync(value_of, server, b"k") is None


async def test_comes_back_quickly_after_a_reset(stack: Stack) -> None:
    server = one_server(stack)
    relay = one_relay(stack, server)
    async with kept(relay) as held:
        for _ in range(3):
            before = held.link.connected
            await trio.to_thread.run_sync(relay.reset)
            began = trio.current_time()
            await until(lambda: held.link.connected > before)  # noqa: B023 - used at once
            assert trio.current_time() - began < 1.0
        assert held.link.state is LinkState.CONNECTED


async def test_server_that_is_no_memcached_is_not_used(stack: Stack) -> None:
    lane = Lane()
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    held = Kept(lane)
    held.link = ServerLink(
        lane,
        "server",
        Address("127.0.0.1", port),
        writes=True,
        ready=held.ready,
        gone=held.losses.append,
        drained=lambda: None,
        patience=0.5,
    )

    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"220 mail.example.com ESMTP\r\n")
        await stream.receive_some(100)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lane.run)
        nursery.start_soon(trio.serve_listeners, greet, [listener])
        nursery.start_soon(held.link.run)
        await until(lambda: held.link.trouble is not None)
        assert not held.connected
        assert "does not fit" in str(held.link.trouble)
        nursery.cancel_scope.cancel()
