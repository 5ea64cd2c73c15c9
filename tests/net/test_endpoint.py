"""Proves what an endpoint promises its owner: shares, watermarks, resets, half-close, last output, deadlines.

Each test runs with and without a layer (one that changes nothing), of which an owner must notice nothing.
"""

from __future__ import annotations

import gc
import hashlib
import math
import os
import select
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.net.endpoint import LINGER_SECONDS, Endpoint
from gateway.net.lane import SWEEP_SECONDS, Lane, Poller, SelectorPoller
from gateway.net.layers import add_layer

Pair = tuple[socket.socket, socket.socket]


class Through:
    """A layer that changes nothing."""

    open = True
    holding = over = wants_to_send = False

    def inbound(self, wire: bytes) -> bytes:
        return wire

    def outbound(self, plain: bytes) -> bytes:
        return plain

    def ended(self) -> None:
        pass

    def farewell(self) -> bytes:
        return b""


def layered(*arguments: Any, **options: Any) -> Endpoint:
    endpoint = Endpoint(*arguments, **options)
    add_layer(endpoint, Through())
    return endpoint


@pytest.fixture(params=["bare", "layered"], autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "layered":
        monkeypatch.setattr(sys.modules[__name__], "open_endpoint", layered)
    return str(request.param)


open_endpoint: Callable[..., Endpoint] = Endpoint


class Recorder:
    """Notes every call; `on` has what to do besides."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.chunks: list[bytes] = []
        self.errors: list[BaseException] = []
        self.on: dict[str, Callable[[], object]] = {}

    def _note(self, call: str) -> None:
        self.heard.append(call)
        if call in self.on:
            self.on[call]()

    def received(self, chunk: bytes) -> None:
        self.chunks.append(chunk)
        self._note("received")

    def ended(self) -> None:
        self._note("ended")

    def lost(self, error: OSError) -> None:
        self.errors.append(error)
        self._note("lost")

    def overfull(self) -> None:
        self._note("overfull")

    def drained(self) -> None:
        self._note("drained")

    def expired(self) -> None:
        self._note("expired")

    def raised(self, error: Exception) -> None:
        self.errors.append(error)
        self._note("raised")


class Forwarder(Recorder):
    """Writes what it receives to the other side, and reads no faster than that side takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.most_queued = 0

    def join(self, other: Endpoint) -> None:
        def forward() -> None:
            other.write(self.chunks.pop())
            self.most_queued = max(self.most_queued, other.queued)

        def finish() -> None:
            other.finish()

        self.on = {"received": forward, "ended": finish}
        self.source = other

    def overfull(self) -> None:
        super().overfull()
        self.source.pause_reading()

    def drained(self) -> None:
        super().drained()
        self.source.resume_reading()


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture(params=[select.epoll, SelectorPoller], ids=["epoll", "selectors"])
async def lane(request: pytest.FixtureRequest, nursery: trio.Nursery) -> AsyncIterator[Lane]:
    poller: Poller = request.param()
    lane = Lane(poller)
    nursery.start_soon(lane.run)
    yield lane
    assert len(lane) == 0, "a descriptor stayed registered"
    nursery.cancel_scope.cancel()


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A unix socket pair: ours, the peer's."""
    ours, peer = socket.socketpair()
    with ours, peer:
        yield ours, peer


@pytest.fixture
def tcp() -> Iterator[Pair]:
    ours, peer = tcp_pair()
    with ours, peer:
        yield ours, peer


def tcp_pair() -> Pair:
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    return ours, peer


def reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def fill(endpoint: Endpoint, size: int = 1 << 16) -> None:
    """Writes until the kernel takes no more."""
    while not endpoint.queued:
        endpoint.write(b"x" * size)


async def read_to_end(peer: socket.socket) -> bytes:
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(peer.dup()))
    async with stream:
        return b"".join([chunk async for chunk in stream])


# -- shares


async def test_a_greedy_peer_gets_a_bounded_share_of_a_batch(lane: Lane, pair: Pair) -> None:
    ours, peer = pair
    modest_ours, modest_peer = socket.socketpair()
    with modest_peer:
        greedy, modest = Recorder(), Recorder()
        batch_of: list[int] = []
        greedy.on["received"] = lambda: batch_of.append(lane.batches)
        served_in: list[int] = []
        modest.on["received"] = lambda: served_in.append(lane.batches)
        peer.sendall(b"g" * 100_000)
        modest_peer.sendall(b"m")
        ends = open_endpoint(lane, ours, greedy, receive_bytes=1000), open_endpoint(lane, modest_ours, modest)
        await wait_all_tasks_blocked()
        assert [len(chunk) for chunk in greedy.chunks] == [1000] * 100
        assert len(set(batch_of)) == 100, "more than one share in a batch"
        assert served_in == batch_of[:1], "the modest peer waited for the greedy one"
        for end in ends:
            end.close()


# -- back-pressure


async def test_a_peer_that_stops_reading_holds_its_source_and_nothing_grows(lane: Lane, pair: Pair) -> None:
    source_ours, source_peer = pair
    sink_ours, sink_peer = tcp_pair()
    high, share = 100_000, 10_000
    forward, back = Forwarder(), Forwarder()
    source = open_endpoint(lane, source_ours, forward, receive_bytes=share)
    sink = open_endpoint(lane, sink_ours, back, receive_bytes=share, high=high, low=20_000)
    forward.join(sink)
    back.join(source)
    sent = os.urandom(20_000_000)

    async def send() -> None:
        async with trio.SocketStream(trio.socket.from_stdlib_socket(source_peer.dup())) as stream:
            await stream.send_all(sent)
        source_peer.shutdown(socket.SHUT_WR)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        assert back.heard == ["overfull"]
        assert not source.reading
        assert high < sink.queued <= high + share
        assert source.bytes_in < len(sent) / 2, "the kernel took it all: this test proves nothing"
        with sink_peer:
            got = await read_to_end(sink_peer)
    assert hashlib.sha256(got).digest() == hashlib.sha256(sent).digest()
    assert forward.most_queued <= high + share
    assert back.heard.count("overfull") == back.heard.count("drained")
    source.close()
    await wait_all_tasks_blocked()
    assert sink.closed


async def test_both_directions_at_once_are_bounded_and_whole(lane: Lane, tcp: Pair, pair: Pair) -> None:
    high, share = 50_000, 16_384
    left_owner, right_owner = Forwarder(), Forwarder()
    left = open_endpoint(lane, tcp[0], left_owner, receive_bytes=share, high=high, low=10_000)
    right = open_endpoint(lane, pair[0], right_owner, receive_bytes=share, high=high, low=10_000)
    left_owner.join(right)
    right_owner.join(left)
    there, back = os.urandom(6_000_000), os.urandom(8_000_000)
    got: dict[str, bytes] = {}

    async def talk(name: str, peer: socket.socket, out: bytes, expected: int) -> None:
        async def receive() -> None:
            chunks, size = [], 0
            while size < expected:
                chunks.append(await stream.receive_some(30_000))
                size += len(chunks[-1])
            got[name] = b"".join(chunks)

        async with trio.SocketStream(trio.socket.from_stdlib_socket(peer.dup())) as stream, trio.open_nursery() as both:
            both.start_soon(stream.send_all, out)
            await wait_all_tasks_blocked()  # everybody is stuck, in both directions, before anybody reads
            both.start_soon(receive)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk, "left", tcp[1], there, len(back))
        nursery.start_soon(talk, "right", pair[1], back, len(there))
    assert got["left"] == back
    assert got["right"] == there
    for owner in (left_owner, right_owner):
        assert owner.most_queued <= high + share
        assert "overfull" in owner.heard, "never stuck: this test proves nothing"
    left.close()
    right.close()


async def test_output_that_the_kernel_takes_in_parts_stays_whole(lane: Lane, pair: Pair) -> None:
    """A send buffer smaller than a chunk: every send ends within one, or between two."""
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    end = open_endpoint(lane, pair[0], Recorder())
    chunks = [os.urandom(size) for size in (50_000, 1, 30_000, 7, *range(500, 1000), 100_000)]
    for chunk in chunks:
        end.write(chunk)
    end.finish()
    assert end.queued > 400_000
    assert await read_to_end(pair[1]) == b"".join(chunks)
    await lane.lingered(pair[0])
    assert end.bytes_out == sum(map(len, chunks))


async def test_an_empty_write_behind_waiting_output_does_not_keep_the_lane_busy(lane: Lane, pair: Pair) -> None:
    end = open_endpoint(lane, pair[0], Recorder())
    fill(end)
    end.write(b"")
    end.write(b"last")
    end.write(b"")
    waiting = end.queued
    received = b""
    while not received.endswith(b"last"):
        received += pair[1].recv(1 << 20)
        await wait_all_tasks_blocked()  # never returns if a batch follows the other
    assert waiting > 4
    assert end.queued == 0
    end.close()


async def test_the_exception_of_a_full_connection_is_not_raised_in_who_writes_to_it(lane: Lane, pair: Pair) -> None:
    owner = Recorder()
    end = open_endpoint(lane, pair[0], owner, high=10)
    owner.on["overfull"] = lambda: 1 // 0
    fill(end)
    assert owner.heard == ["overfull", "raised"]
    assert isinstance(owner.errors[0], ZeroDivisionError)
    end.close()


async def test_a_low_watermark_of_nothing_is_reached(lane: Lane, pair: Pair) -> None:
    owner = Recorder()
    end = open_endpoint(lane, pair[0], owner, high=10, low=0)
    fill(end)
    while end.queued:
        pair[1].recv(1 << 20)
        await wait_all_tasks_blocked()
    assert owner.heard == ["overfull", "drained"]
    end.close()


# -- peers that go away


async def test_reset_in_mid_message_while_reading(lane: Lane, tcp: Pair) -> None:
    owner = Recorder()
    end = open_endpoint(lane, tcp[0], owner)
    tcp[1].sendall(b"set key 0 0 1000\r\nhalf a val")
    await wait_all_tasks_blocked()
    reset(tcp[1])
    await wait_all_tasks_blocked()
    assert owner.heard == ["received", "lost"]
    assert isinstance(owner.errors[0], ConnectionResetError)
    assert end.closed
    assert tcp[0].fileno() == -1


async def test_reset_while_output_waits(lane: Lane, tcp: Pair) -> None:
    owner = Recorder()
    end = open_endpoint(lane, tcp[0], owner)
    end.pause_reading()
    fill(end)
    reset(tcp[1])
    await wait_all_tasks_blocked()
    assert owner.heard[-1] == "lost"
    assert owner.heard.count("lost") == 1
    assert end.closed
    assert end.queued == 0
    end.write(b"ignored")
    assert end.queued == 0


async def test_reset_is_noticed_by_the_write_that_follows(lane: Lane, tcp: Pair) -> None:
    """Written by a task, outside a batch: the owner is told, the writer is not hit by what the owner raises."""
    owner = Recorder()
    owner.on["lost"] = lambda: 1 // 0
    end = open_endpoint(lane, tcp[0], owner, reading=False)
    reset(tcp[1])
    end.write(b"too late")
    assert owner.heard == ["lost", "raised"]
    assert end.closed


async def test_reset_while_paused_is_told_once(lane: Lane, tcp: Pair) -> None:
    """`selectors` cannot say so while nothing is asked for: there, when reading resumes."""
    owner = Recorder()
    end = open_endpoint(lane, tcp[0], owner)
    end.pause_reading()
    reset(tcp[1])
    before = lane.batches
    await wait_all_tasks_blocked()
    assert lane.batches - before <= 2
    end.resume_reading()
    await wait_all_tasks_blocked()
    assert owner.heard == ["lost"]


@pytest.mark.parametrize("unread", [0, 150_000])
async def test_a_unix_peer_that_closed_is_read_to_its_end(lane: Lane, pair: Pair, unread: int) -> None:
    """EPOLLHUP comes while the owner has paused: neither is the input lost nor the lane kept busy."""
    owner = Recorder()
    end = open_endpoint(lane, pair[0], owner)
    owner.on["received"] = end.pause_reading  # declined: nothing more is read until the task hands back
    pair[1].sendall(b"first")
    await wait_all_tasks_blocked()
    pair[1].sendall(b"x" * unread)
    pair[1].close()
    before = lane.batches
    await wait_all_tasks_blocked()
    assert lane.batches - before <= 3
    assert owner.heard == ["received"]
    while "ended" not in owner.heard:
        end.resume_reading()
        await wait_all_tasks_blocked()
    assert b"".join(owner.chunks) == b"first" + b"x" * unread
    assert set(owner.heard) == {"received", "ended"}
    assert lane.batches - before < 20
    end.write(b"nobody is there")
    assert owner.heard[-1] == "lost"


async def test_a_closed_unix_peer_with_output_waiting_is_lost(lane: Lane, pair: Pair) -> None:
    owner = Recorder()
    end = open_endpoint(lane, pair[0], owner, reading=False)
    fill(end)
    pair[1].recv(10)
    pair[1].close()
    await wait_all_tasks_blocked()
    assert owner.heard == ["lost"]
    assert end.closed


async def test_a_client_that_half_closes_gets_its_answers(lane: Lane, tcp: Pair) -> None:
    owner = Recorder()
    end = open_endpoint(lane, tcp[0], owner, high=1 << 30)
    owner.on["received"] = lambda: end.write(b"a" * 3_000_000)
    owner.on["ended"] = end.finish
    tcp[1].sendall(b"one two three")
    tcp[1].shutdown(socket.SHUT_WR)
    assert await read_to_end(tcp[1]) == b"a" * 3_000_000
    assert owner.heard == ["received", "ended"]
    assert end.closed


# -- closing


async def test_close_sends_what_was_written_in_the_batch_and_nothing_follows(lane: Lane, pair: Pair) -> None:
    owner = Recorder()
    end = open_endpoint(lane, pair[0], owner)

    def answer_and_close() -> None:
        end.write(b"ERROR\r\n")
        end.close()

    owner.on["received"] = answer_and_close
    pair[1].sendall(b"nonsense")
    pair[1].shutdown(socket.SHUT_WR)
    assert await read_to_end(pair[1]) == b"ERROR\r\n"
    assert owner.heard == ["received"]


async def test_close_on_a_broken_connection_is_silent(lane: Lane, tcp: Pair) -> None:
    owner = Recorder()
    end = open_endpoint(lane, tcp[0], owner, reading=False)
    reset(tcp[1])

    def write_and_close() -> None:
        end.write(b"x")
        end.close()

    lane.batch(write_and_close)
    assert owner.heard == []
    assert tcp[0].fileno() == -1


async def test_finish_does_not_let_unread_input_reset_the_last_answer(lane: Lane, tcp: Pair) -> None:
    owner = Recorder()
    end = open_endpoint(lane, tcp[0], owner, receive_bytes=100)

    def refuse() -> None:
        end.write(b"CLIENT_ERROR nonsense\r\n")
        end.finish()

    owner.on["received"] = refuse
    tcp[1].sendall(b"nonsense" * 10_000)
    assert await read_to_end(tcp[1]) == b"CLIENT_ERROR nonsense\r\n"  # and not ECONNRESET
    assert owner.heard == ["received"]


async def test_finish_waits_for_a_slow_reader(lane: Lane, pair: Pair) -> None:
    owner = Recorder()
    end = open_endpoint(lane, pair[0], owner)
    fill(end)
    end.write(b"the last")
    end.finish()
    assert not end.closed
    assert (await read_to_end(pair[1])).endswith(b"the last")
    assert owner.heard == []
    await lane.lingered(pair[0])
    assert end.closed


async def test_finish_gives_up_after_its_linger(lane: Lane, pair: Pair, mock_clock: MockClock) -> None:
    end = open_endpoint(lane, pair[0], Recorder())
    await wait_all_tasks_blocked()
    mock_clock.jump(3600)  # the lane slept: its own idea of now is an hour old
    await wait_all_tasks_blocked()
    fill(end)
    end.finish()
    mock_clock.jump(LINGER_SECONDS - 0.01)
    await wait_all_tasks_blocked()
    assert not end.closed
    mock_clock.jump(SWEEP_SECONDS + 0.02)
    await wait_all_tasks_blocked()
    assert end.closed
    with trio.fail_after(0):
        await lane.lingered(pair[0])


async def test_a_socket_closed_under_a_lingering_endpoint_is_no_error(lane: Lane, pair: Pair) -> None:
    """What an acceptor does for a task that was cancelled while its last output waited."""
    owner = Recorder()
    end = open_endpoint(lane, pair[0], owner)
    fill(end)
    end.finish()
    lane.close(pair[0])
    await lane.lingered(pair[0])
    end.write(b"late")
    end.pause_reading()
    end.resume_reading()
    end.close()
    assert owner.heard == []


async def test_a_socket_closed_under_its_endpoint_is_no_error(lane: Lane, pair: Pair) -> None:
    owner = Recorder()
    end = open_endpoint(lane, pair[0], owner)
    lane.close(pair[0])
    end.pause_reading()
    end.resume_reading()
    end.write(b"late")
    assert owner.heard == ["lost"]
    assert end.closed


async def test_reset_sends_a_reset(lane: Lane, tcp: Pair) -> None:
    end = open_endpoint(lane, tcp[0], Recorder())
    end.reset()
    with pytest.raises(ConnectionResetError):
        tcp[1].recv(1)


# -- deadlines


async def test_a_deadline_is_told_once_and_coarsely(lane: Lane, pair: Pair, mock_clock: MockClock) -> None:
    owner = Recorder()
    end = open_endpoint(lane, pair[0], owner)
    await wait_all_tasks_blocked()
    end.deadline = trio.current_time() + 10
    for _ in range(100):
        mock_clock.jump(0.1)
        await wait_all_tasks_blocked()
        assert owner.heard == [] or trio.current_time() >= 10
    mock_clock.jump(SWEEP_SECONDS)
    await wait_all_tasks_blocked()
    assert owner.heard == ["expired"]
    assert end.deadline == math.inf
    mock_clock.jump(1000)
    await wait_all_tasks_blocked()
    assert owner.heard == ["expired"]
    end.close()


async def test_an_idle_deadline_moves_with_every_request(lane: Lane, pair: Pair, mock_clock: MockClock) -> None:
    owner = Recorder()
    end = open_endpoint(lane, pair[0], owner)

    def busy() -> None:
        end.deadline = lane.now + 5

    owner.on["received"] = busy
    owner.on["expired"] = end.finish
    for _ in range(10):
        pair[1].sendall(b"ping")
        await wait_all_tasks_blocked()
        mock_clock.jump(4)
        await wait_all_tasks_blocked()
    assert not end.closed
    mock_clock.jump(2)
    await wait_all_tasks_blocked()
    assert end.closed
    assert owner.heard == ["received"] * 10 + ["expired"]


async def test_a_deadline_that_closes_another_late_one_silences_it(
    lane: Lane, pair: Pair, tcp: Pair, mock_clock: MockClock
) -> None:
    owners = Recorder(), Recorder()
    ends = open_endpoint(lane, pair[0], owners[0]), open_endpoint(lane, tcp[0], owners[1])
    owners[0].on["expired"] = ends[1].close
    owners[1].on["expired"] = ends[0].close
    for end in ends:
        end.deadline = trio.current_time() + 1
    await wait_all_tasks_blocked()
    mock_clock.jump(2)
    await wait_all_tasks_blocked()
    assert sorted(owner.heard for owner in owners) == [[], ["expired"]]
    for end in ends:
        end.close()
