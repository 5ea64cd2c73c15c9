"""Proves the lane's invariants: turns, stale events, leftover work, flushes, exceptions, and the order of the end."""

from __future__ import annotations

import gc
import math
import os
import select
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.net.endpoint import Endpoint
from gateway.net.lane import (
    BATCHES_PER_CHECKPOINT,
    DIALOGUE_TURNS,
    EVENTS_PER_CHECKPOINT,
    READ,
    SWEEP_SECONDS,
    Lane,
    Poller,
    SelectorPoller,
)

POLLERS = pytest.mark.parametrize("poller", [select.epoll, SelectorPoller], ids=["epoll", "selectors"])


class Client:
    """A connection that notes what its owner is told; the socket's other end is `peer`."""

    def __init__(self, lane: Lane, on_received: Callable[[Client], object] | None = None) -> None:
        ours, self.peer = socket.socketpair()
        self.heard: list[str] = []
        self.errors: list[Exception] = []
        self.on_received = on_received
        self.on_raised: Callable[[Exception], object] = self.errors.append
        self.endpoint = Endpoint(lane, ours, self)

    def received(self, chunk: bytes) -> None:
        self.heard.append(chunk.decode())
        if self.on_received is not None:
            self.on_received(self)

    def ended(self) -> None:
        self.endpoint.close()

    def lost(self, error: OSError) -> None:
        self.heard.append("lost")

    def overfull(self) -> None:
        self.heard.append("overfull")

    def drained(self) -> None:
        self.heard.append("drained")

    def expired(self) -> None:
        raise ValueError("expired")

    def raised(self, error: Exception) -> None:
        self.on_raised(error)

    def close(self) -> None:
        self.endpoint.close()
        self.peer.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fail(_: object = None) -> None:
    raise ValueError("a bug in an owner")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    gc.collect()
    before = descriptors()
    yield
    gc.collect()
    assert descriptors() == before


@pytest.fixture(params=[select.epoll, SelectorPoller], ids=["epoll", "selectors"])
async def lane(request: pytest.FixtureRequest, nursery: trio.Nursery) -> AsyncIterator[Lane]:
    poller: Poller = request.param()
    lane = Lane(poller)
    nursery.start_soon(lane.run)
    yield lane
    assert len(lane) == 0, "a descriptor stayed registered"
    nursery.cancel_scope.cancel()


# -- turns


async def test_other_tasks_get_their_turn_while_the_lane_never_sleeps(lane: Lane) -> None:
    busy = True

    def work() -> None:
        if busy:
            lane.again(work)

    lane.again(work)
    before = lane.batches
    for _ in range(100):
        await trio.lowlevel.checkpoint()
    busy = False
    assert 50 < lane.batches - before <= 101 * BATCHES_PER_CHECKPOINT
    await wait_all_tasks_blocked()


class Watched:
    """An epoll that notes each timeout it was asked for."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.timeouts: list[float] = []
        self.register = self.epoll.register
        self.modify = self.epoll.modify
        self.unregister = self.epoll.unregister
        self.fileno = self.epoll.fileno
        self.close = self.epoll.close

    def poll(self, timeout: float, maxevents: int) -> list[tuple[int, int]]:
        self.timeouts.append(timeout)
        return self.epoll.poll(timeout, maxevents)


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="the dialogue is watched on an epoll")
@pytest.mark.parametrize("talking", [1, 2, 3])
async def test_only_two_sockets_that_alternate_are_spun_for(talking: int) -> None:
    watched = Watched()
    lane = Lane(watched)
    remaining = 10 * DIALOGUE_TURNS
    done = trio.Event()

    def answer(client: Client) -> None:
        nonlocal remaining
        remaining -= 1
        if remaining:
            clients[(clients.index(client) + 1) % talking].peer.send(b"x")
        else:
            done.set()
            lane.woke = True

    clients = [Client(lane, answer) for _ in range(talking)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lane.run)
        clients[0].peer.send(b"x")
        await done.wait()
        await wait_all_tasks_blocked(0.05)  # long past the patience
        asleep = len(watched.timeouts)
        await wait_all_tasks_blocked(0.05)
        assert len(watched.timeouts) == asleep, "the lane spins for sockets that say nothing"
        nursery.cancel_scope.cancel()
    for client in clients:
        client.endpoint.close()
        client.peer.close()
    spun = sum(later == 0 for later in watched.timeouts[1:])
    if talking == 3:
        assert spun <= remaining + BATCHES_PER_CHECKPOINT
    else:
        assert spun >= 8 * DIALOGUE_TURNS


async def test_a_batch_of_many_sockets_ends_the_lanes_turn(lane: Lane) -> None:
    """Every socket always has something to read: the lane is bounded by events, not only by batches."""
    clients = [Client(lane, lambda client: client.peer.send(b"more")) for _ in range(EVENTS_PER_CHECKPOINT)]
    for client in clients:
        client.peer.send(b"first")
    await trio.lowlevel.checkpoint()
    before = lane.batches
    turns = 20
    for _ in range(turns):
        await trio.lowlevel.checkpoint()
    assert turns / 2 <= lane.batches - before <= turns + 1
    for client in clients:
        client.close()


async def test_a_batch_that_woke_a_task_ends_the_lanes_turn(lane: Lane) -> None:
    busy = True

    def work() -> None:
        lane.woke = True
        if busy:
            lane.again(work)

    lane.again(work)
    before = lane.batches
    for _ in range(100):
        await trio.lowlevel.checkpoint()
    busy = False
    assert 50 < lane.batches - before <= 101
    await wait_all_tasks_blocked()


# -- descriptors


async def test_a_descriptor_closed_in_a_batch_is_not_reused_before_its_end(lane: Lane) -> None:
    """Two sockets are ready in one batch. The first one served closes the other and opens a third."""
    strangers: list[Client] = []
    numbers: list[int] = []

    def close_the_other(client: Client) -> None:
        other = second if client is first else first
        numbers.append(other.endpoint.sock.fileno())
        other.endpoint.close()
        strangers.append(Client(lane))
        assert other.endpoint.sock.fileno() == numbers[0], "released within the batch"

    first, second = Client(lane, close_the_other), Client(lane, close_the_other)
    batches = lane.batches
    first.peer.send(b"a")
    second.peer.send(b"b")
    await wait_all_tasks_blocked()
    assert lane.batches - batches == 1
    assert len(strangers) == 1
    assert sorted([*first.heard, *second.heard]) in (["a"], ["b"])
    assert strangers[0].heard == []
    assert numbers[0] not in (strangers[0].endpoint.sock.fileno(), strangers[0].peer.fileno())
    assert {first.endpoint.closed, second.endpoint.closed} == {True, False}
    with Client(lane) as after:
        assert numbers[0] in (after.endpoint.sock.fileno(), after.peer.fileno()), "not released after the batch"
    for client in (first, second, strangers[0]):
        client.close()


async def test_a_detached_descriptor_stays_open(lane: Lane) -> None:
    with Client(lane) as client:
        lane.detach(client.endpoint.sock.fileno())
        client.peer.send(b"x")
        await wait_all_tasks_blocked()
        assert client.heard == []
        assert client.endpoint.sock.recv(1) == b"x"
        lane.detach(client.endpoint.sock.fileno())  # a second time is no error


# -- work and flushes


async def test_leftover_work_runs_although_the_lane_sleeps(lane: Lane) -> None:
    ran: list[str] = []

    def work(name: str) -> Callable[[], None]:
        return lambda: ran.append(name)

    await wait_all_tasks_blocked()
    lane.again(work("first"))
    lane.again(work("second"))
    assert ran == []
    await wait_all_tasks_blocked()
    assert ran == ["first", "second"]
    lane.again(work("third"))
    await wait_all_tasks_blocked()
    assert ran == ["first", "second", "third"]


async def test_leftover_work_shares_the_lane_with_sockets(lane: Lane) -> None:
    batch_of_answer: list[int] = []
    with Client(lane, lambda _: batch_of_answer.append(lane.batches)) as client:
        start = lane.batches

        def work() -> None:
            if not batch_of_answer:
                lane.again(work)

        lane.again(work)
        client.peer.send(b"x")
        await wait_all_tasks_blocked()
        assert batch_of_answer[0] - start <= 2


async def test_a_flush_outside_a_batch_runs_at_once_and_so_do_those_it_queues(lane: Lane) -> None:
    ran: list[str] = []

    def flush() -> None:
        ran.append("flush")
        lane.after_batch(lambda: ran.append("queued by it"))

    lane.after_batch(flush)
    assert ran == ["flush", "queued by it"]


async def test_a_task_that_writes_outside_a_batch_is_sent_at_once(lane: Lane) -> None:
    with Client(lane) as client:
        client.endpoint.write(b"one")
        assert client.peer.recv(100) == b"one"


async def test_what_is_written_in_one_batch_leaves_in_one_send_at_its_end(lane: Lane) -> None:
    client = Client(lane)
    client.peer.setblocking(False)

    def work() -> None:
        for chunk in (b"one ", b"two ", b"three"):
            client.endpoint.write(chunk)
        with pytest.raises(BlockingIOError):
            client.peer.recv(100)
        lane.batch(lambda: client.endpoint.write(b" four"))  # inside a batch it is part of that one
        with pytest.raises(BlockingIOError):
            client.peer.recv(100)

    lane.batch(work)
    assert client.peer.recv(100) == b"one two three four"
    client.close()


async def test_a_batch_of_a_task_raises_in_it_and_is_flushed_all_the_same(lane: Lane) -> None:
    with Client(lane) as client:

        def work() -> None:
            client.endpoint.write(b"before")
            fail()

        with pytest.raises(ValueError, match="a bug"):
            lane.batch(work)
        assert client.peer.recv(100) == b"before"


# -- exceptions


async def test_an_owners_exception_goes_to_its_connection_and_hurts_no_other(lane: Lane) -> None:
    with Client(lane, fail) as bad, Client(lane, lambda client: client.endpoint.write(b"answer")) as good:
        for _ in range(3):
            bad.peer.send(b"x")
            good.peer.send(b"y")
            await wait_all_tasks_blocked()
            assert good.peer.recv(100) == b"answer"
        assert [type(error) for error in bad.errors] == [ValueError]
        assert bad.heard == ["x"], "read on in a state that is in doubt"
        assert good.errors == []


async def test_an_exception_that_nobody_takes_is_logged_and_the_lane_goes_on(lane: Lane) -> None:
    with Client(lane, fail) as bad, Client(lane, lambda client: client.endpoint.write(b"answer")) as good:
        bad.on_raised = fail
        with capture_logs() as logs:
            for client in (bad, good):
                client.peer.send(b"x")
            await wait_all_tasks_blocked()
        assert [entry["log_level"] for entry in logs] == ["error"]
        assert good.peer.recv(100) == b"answer"
        assert len(lane) == 1, "it would fail again without end"


async def test_a_failing_flush_keeps_no_other_from_its_turn(lane: Lane) -> None:
    with Client(lane) as closing, Client(lane) as writing, capture_logs() as logs:

        def work() -> None:
            lane.after_batch(fail)
            writing.endpoint.write(b"flushed")
            closing.endpoint.close()

        lane.again(work)
        await wait_all_tasks_blocked()
        assert writing.peer.recv(100) == b"flushed"
        assert closing.endpoint.sock.fileno() == -1
    assert [entry["event"] for entry in logs] == ["a flush failed"]


async def test_the_exception_of_leftover_work_goes_to_its_connection(lane: Lane) -> None:
    ran: list[str] = []
    with Client(lane) as client, capture_logs() as logs:
        lane.again(fail, client.endpoint)
        lane.again(fail)
        lane.again(lambda: ran.append("after them"))
        await wait_all_tasks_blocked()
        assert [type(error) for error in client.errors] == [ValueError]
    assert len(logs) == 1
    assert ran == ["after them"]


async def test_the_exception_of_a_deadline_goes_to_its_connection(lane: Lane, mock_clock: MockClock) -> None:
    with Client(lane) as bad, Client(lane, lambda client: client.endpoint.write(b"answer")) as good:
        bad.endpoint.deadline = trio.current_time() + 1
        await wait_all_tasks_blocked()
        mock_clock.jump(1 + SWEEP_SECONDS)
        await wait_all_tasks_blocked()
        assert [str(error) for error in bad.errors] == ["expired"]
        assert bad.endpoint.deadline == math.inf
        good.peer.send(b"x")
        await wait_all_tasks_blocked()
        assert good.peer.recv(100) == b"answer"


# -- the end


@POLLERS
async def test_what_tasks_do_to_their_sockets_after_the_lanes_end_does_not_fail(poller: Callable[[], Poller]) -> None:
    lane = Lane(poller())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lane.run)
        clients = [Client(lane) for _ in range(3)]
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    late = Client(lane)
    while not late.endpoint.queued:
        late.endpoint.write(b"x" * 100_000)
    clients[0].endpoint.pause_reading()
    clients[0].endpoint.resume_reading()
    clients[1].endpoint.finish()
    lane.again(fail)
    for client in [*clients, late]:
        client.close()
    assert len(lane) == 0


@POLLERS
async def test_a_lane_that_is_cancelled_at_work_ends(poller: Callable[[], Poller]) -> None:
    lane = Lane(poller())

    def work() -> None:
        lane.again(work)

    lane.again(work)
    with trio.move_on_after(0) as scope:
        await lane.run()
    assert scope.cancelled_caught


def test_a_selector_can_hold_a_descriptor_without_interest() -> None:
    poller = SelectorPoller()
    ours, peer = socket.socketpair()
    with ours, peer:
        fd = ours.fileno()
        peer.send(b"x")
        for begin in (0, READ):
            poller.register(fd, begin)
            poller.modify(fd, 0)
            poller.modify(fd, 0)
            assert poller.poll(0, 10) == []
            poller.modify(fd, READ)
            assert poller.poll(0, 10) == [(fd, READ)]
            poller.modify(fd, 0)
            poller.unregister(fd)
    poller.close()
