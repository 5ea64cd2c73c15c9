"""One pipelined connection: answers reach who waits in order, and a server that talks nonsense is left at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from memcached_gateway import until
from structlog.testing import capture_logs

from gateway.backends.memcached import DEPTH_MAX, PipelinedConnection
from gateway.net.connect import Conversation, connect_tcp
from gateway.net.lane import Lane
from gateway.protocol.memcached import encoder
from gateway.protocol.memcached.reply import Reply
from gateway.protocol.memcached.request import Request


@dataclass
class Wait:
    """Notes what became of one request, in the order of all."""

    name: str
    seen: list[str]
    writes: bool = False
    fails: bool = False

    def answered(self, reply: Reply) -> None:
        self.seen.append(f"{self.name}: {reply.line.decode()}")
        if self.fails:
            raise ValueError("a session's own trouble")

    def lost(self, reason: str) -> None:
        self.seen.append(f"{self.name}: lost, {reason}")


@dataclass
class Scripted:
    """A connection to a server that answers what the test says."""

    lane: Lane
    connection: PipelinedConnection
    server: trio.SocketStream
    losses: list[tuple[str, bool]]
    drained: list[int] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    def send(self, *requests: tuple[str, Request], writes: bool = False, fails: bool = False) -> None:
        def work() -> None:
            for name, request in requests:
                self.connection.send(request, Wait(name, self.seen, writes, fails))

        self.lane.batch(work)


@asynccontextmanager
async def scripted(patience: float = 5.0) -> AsyncIterator[Scripted]:
    lane = Lane()
    losses: list[tuple[str, bool]] = []
    drained: list[int] = []
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery, listener:
        nursery.start_soon(lane.run)
        sock = await connect_tcp("127.0.0.1", listener.socket.getsockname()[1])
        async with await listener.accept() as server:
            connection = PipelinedConnection(
                lane,
                Conversation(lane, sock),
                "scripted",
                timeout=patience,
                on_loss=lambda _, reason, writes: losses.append((reason, writes)),
                drained_again=lambda: drained.append(1),
            )
            yield Scripted(lane, connection, server, losses, drained)
            lane.batch(connection.close)
        nursery.cancel_scope.cancel()


GET = encoder.get([b"k"])


async def test_answers_are_handed_out_in_the_order_of_the_requests() -> None:
    async with scripted() as at:
        at.send(("set", encoder.store(b"k", b"v", 0, 0)), ("get", GET), ("delete", encoder.delete(b"k")))
        sent = b"set k 0 0 1\r\nv\r\nget k\r\ndelete k\r\n"
        assert await at.server.receive_some(1000) == sent
        for byte in b"STORED\r\nVALUE k 0 1\r\nv\r\nEND\r\nDELETED\r\n":
            await at.server.send_all(bytes([byte]))
        await until(lambda: len(at.seen) == 3)
        assert at.seen == ["set: STORED", "get: VALUE k 0 1", "delete: DELETED"]


@pytest.mark.parametrize(
    "nonsense", [b"VALUE other 0 1\r\nv\r\nEND\r\n", b"STORED\r\n", b"HELLO\r\n", b"VALUE k 0 1\r\nvxxEND\r\n"]
)
async def test_answer_that_does_not_fit_ends_the_connection(nonsense: bytes) -> None:
    async with scripted() as at:
        with capture_logs() as logs:
            at.send(("get", GET))
            at.send(("set", encoder.store(b"k", b"v", 0, 0)), writes=True)
            await at.server.send_all(nonsense)
            await until(lambda: len(at.seen) == 2)
        assert at.connection.closed
        assert [name.split(":")[0] for name in at.seen] == ["get", "set"]
        assert all("lost" in name for name in at.seen)
        assert [writes for _, writes in at.losses] == [True]
        assert logs[0]["log_level"] == "error"


async def test_answer_that_nobody_asked_for_ends_the_connection() -> None:
    async with scripted() as at:
        with capture_logs():
            await at.server.send_all(b"STORED\r\n")
            await until(lambda: at.connection.closed)
        assert [writes for _, writes in at.losses] == [False]


async def test_trouble_of_one_session_is_not_anothers() -> None:
    async with scripted() as at:
        with capture_logs() as logs:
            at.send(("bad", GET), fails=True)
            at.send(("good", GET))
            await at.server.send_all(b"END\r\nEND\r\n")
            await until(lambda: len(at.seen) == 2)
        assert not at.connection.closed
        assert [entry["event"] for entry in logs] == ["handing out an answer failed"]


async def test_silent_server_is_left_and_a_slow_one_is_not() -> None:
    async with scripted(patience=0.6) as at:
        at.send(*[("get", GET)] * 4)
        for _ in range(4):
            await trio.sleep(0.3)
            await at.server.send_all(b"END\r\n")
        await until(lambda: len(at.seen) == 4)
        await trio.sleep(1.0)
        assert not at.connection.closed  # nothing is due
        at.send(("last", GET))
        await until(lambda: at.connection.closed)
        assert at.losses == [("no answer for 0.6 s", False)]


async def test_too_many_requests_in_flight_fill_it_until_most_are_answered() -> None:
    async with scripted() as at:
        at.send(*[("get", GET)] * (DEPTH_MAX + 1))
        assert at.connection.full
        await at.server.send_all(b"END\r\n" * 1000)
        await until(lambda: len(at.seen) == 1000)
        assert at.connection.full
        assert not at.drained
        await at.server.send_all(b"END\r\n" * (DEPTH_MAX - 1000))
        await until(lambda: len(at.seen) == DEPTH_MAX)
        assert not at.connection.full
        assert len(at.drained) == 1
