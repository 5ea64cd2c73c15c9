"""Proves how declined requests go to the task and back: order, hand-back, failure, and cancellation in every state."""

from __future__ import annotations

import gc
import os
import select
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.net.endpoint import Endpoint
from gateway.net.lane import Lane, Poller, SelectorPoller
from gateway.net.requests import Requests


class Session:
    """A line protocol in small. `fast` lines are answered in the lane, others by the task; the first line is a log-in.

    A task's line: `wait` waits for `released`, `fill` writes more than the kernel takes, `bug` raises, `cancel` cancels
    the task in the midst of a batch. What came behind a declined line waits in `unread`.
    """

    def __init__(self, lane: Lane, sock: socket.socket) -> None:
        self.lane = lane
        self.unread = b""
        self.by_lane: list[bytes] = []
        self.by_task: list[bytes] = []
        self.released = trio.Event()
        self.scope = trio.CancelScope()
        self.outcome = "running"
        self.has_ended = False
        self.requests: Requests[bytes] = Requests(lane, self.go_on)
        self.endpoint = Endpoint(lane, sock, self)

    async def run(self) -> None:
        try:
            with self.scope:
                await anext(self.requests)  # the log-in
                async for line in self.requests:
                    await self.handle(line)
                self.outcome = "ended"
            if self.scope.cancelled_caught:
                self.outcome = "cancelled"
        except Exception as error:
            self.outcome = repr(error)
        finally:
            self.endpoint.close()

    async def handle(self, line: bytes) -> None:
        if line == b"wait":
            await self.released.wait()
        self.by_task.append(line)
        if line == b"fill":
            while not self.endpoint.queued:
                self.endpoint.write(b"x" * 100_000)
        else:
            self.endpoint.write(line + b" done\n")

    def go_on(self) -> None:
        while not self.requests.with_task and b"\n" in self.unread:
            line, _, self.unread = self.unread.partition(b"\n")
            if line == b"bug":
                raise ValueError("a bug in the session")
            if line == b"cancel":
                self.scope.cancel()
            elif line.startswith(b"fast"):
                self.by_lane.append(line)
                self.endpoint.write(line + b" done\n")
            else:
                self.requests.decline(line)
        if self.has_ended and not self.requests.with_task:
            self.requests.end()
        elif self.requests.with_task:
            self.endpoint.pause_reading()
        else:
            self.endpoint.resume_reading()

    def received(self, chunk: bytes) -> None:
        self.unread += chunk
        self.go_on()

    def ended(self) -> None:
        self.has_ended = True
        self.go_on()

    def lost(self, error: OSError) -> None:
        self.requests.fail(error)

    def raised(self, error: Exception) -> None:
        self.requests.fail(error)

    def overfull(self) -> None:
        self.endpoint.pause_reading()

    def drained(self) -> None:
        self.endpoint.resume_reading()

    def expired(self) -> None:
        self.requests.fail(TimeoutError("idle"))


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
async def session(lane: Lane, nursery: trio.Nursery) -> AsyncIterator[tuple[Session, socket.socket]]:
    ours, peer = socket.socketpair()
    session = Session(lane, ours)
    nursery.start_soon(session.run)
    with peer:
        yield session, peer
        session.scope.cancel()
        await wait_all_tasks_blocked()
        assert ours.fileno() == -1, "the task ended and left its socket open"


Served = tuple[Session, socket.socket]


# -- by itself


async def test_a_request_declined_before_the_task_asks_is_not_handed_back_unseen(lane: Lane) -> None:
    resumed: list[str] = []
    requests: Requests[str] = Requests(lane, lambda: resumed.append("resumed"))
    requests.decline("first")
    assert await anext(requests) == "first"
    assert resumed == []
    assert requests.with_task
    requests.end()
    with pytest.raises(StopAsyncIteration):
        await anext(requests)
    assert resumed == ["resumed"]
    assert not requests.with_task


async def test_declining_a_second_request_is_an_error(lane: Lane) -> None:
    requests: Requests[str] = Requests(lane, lambda: None)
    requests.decline("first")
    with pytest.raises(RuntimeError, match="another one is with the task"):
        requests.decline("second")
    assert await anext(requests) == "first"
    with pytest.raises(RuntimeError, match="another one is with the task"):
        requests.decline("third")


async def test_what_was_declined_comes_before_the_end_and_before_the_failure(lane: Lane) -> None:
    requests: Requests[str] = Requests(lane, lambda: None)
    requests.decline("last")
    requests.end()
    assert requests.over
    assert [request async for request in requests] == ["last"]
    assert [request async for request in requests] == []

    resumed: list[str] = []
    requests = Requests(lane, lambda: resumed.append("resumed"))
    requests.decline("last")
    requests.fail(ConnectionResetError("gone"))
    requests.fail(ValueError("a consequence"))
    requests.end()
    assert requests.over
    assert await anext(requests) == "last"
    for _ in range(2):
        with pytest.raises(ConnectionResetError, match="gone"):
            await anext(requests)
    assert resumed == [], "a connection that failed went on"


async def test_resuming_may_decline_at_once_and_others_still_get_their_turn(lane: Lane) -> None:
    ticks = 0

    def resume() -> None:
        if len(seen) < 1000:
            requests.decline(len(seen))
        else:
            requests.end()

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.lowlevel.checkpoint()
            ticks += 1

    requests: Requests[int] = Requests(lane, resume)
    seen: list[int] = []
    requests.decline(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        async for request in requests:
            seen.append(request)
        nursery.cancel_scope.cancel()
    assert seen == list(range(1000))
    assert ticks > 900


async def test_what_resume_raises_is_raised_in_the_task(lane: Lane) -> None:
    def resume() -> None:
        raise ValueError("a bug")

    requests: Requests[str] = Requests(lane, resume)
    requests.decline("first")
    await anext(requests)
    with pytest.raises(ValueError, match="a bug"):
        await anext(requests)


# -- in a session


async def test_pipelined_requests_keep_their_order_across_both_ways(session: Served) -> None:
    served, peer = session
    peer.sendall(b"log-in\nfast 1\nslow 2\nfast 3\nslow 4\nslow 5\nfast 6\n")
    await wait_all_tasks_blocked()
    assert peer.recv(1000) == b"".join(
        b"%s done\n" % line for line in (b"fast 1", b"slow 2", b"fast 3", b"slow 4", b"slow 5", b"fast 6")
    )
    assert served.by_lane == [b"fast 1", b"fast 3", b"fast 6"]
    assert served.by_task == [b"slow 2", b"slow 4", b"slow 5"]


async def test_a_session_reads_nothing_while_its_request_is_with_the_task(session: Served) -> None:
    served, peer = session
    peer.sendall(b"log-in\nwait\n")
    await wait_all_tasks_blocked()
    peer.sendall(b"fast\n")
    await wait_all_tasks_blocked()
    assert served.by_lane == []
    assert served.endpoint.bytes_in == len(b"log-in\nwait\n")
    served.released.set()
    await wait_all_tasks_blocked()
    assert peer.recv(1000) == b"wait done\nfast done\n"


async def test_a_client_that_half_closes_behind_a_declined_request_gets_all_answers(session: Served) -> None:
    served, peer = session
    peer.sendall(b"log-in\nwait\nslow\nfast\n")
    peer.shutdown(socket.SHUT_WR)
    await wait_all_tasks_blocked()
    assert served.outcome == "running"
    served.released.set()
    await wait_all_tasks_blocked()
    assert served.outcome == "ended"
    assert peer.recv(1000) == b"wait done\nslow done\nfast done\n"
    assert peer.recv(1000) == b""


async def test_a_bug_in_the_fast_path_is_raised_in_the_task(session: Served) -> None:
    served, peer = session
    peer.sendall(b"log-in\nfast\nbug\n")
    await wait_all_tasks_blocked()
    assert served.outcome == "ValueError('a bug in the session')"
    assert peer.recv(1000) == b"fast done\n"
    assert peer.recv(1000) == b""


async def test_a_bug_behind_a_declined_request_is_raised_in_the_task(session: Served) -> None:
    served, peer = session
    peer.sendall(b"log-in\nslow\nbug\n")
    await wait_all_tasks_blocked()
    assert served.outcome == "ValueError('a bug in the session')"
    assert peer.recv(1000) == b"slow done\n"


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(b"", id="waiting for a log-in"),
        pytest.param(b"half a log", id="in the midst of a log-in"),
        pytest.param(b"log-in\n", id="waiting for a request"),
        pytest.param(b"log-in\nfast\n", id="after a fast request"),
        pytest.param(b"log-in\nslow\n", id="after a declined request"),
        pytest.param(b"log-in\nwait\n", id="with a request in the task"),
        pytest.param(b"log-in\nwait\nfast\nslow\n", id="with more behind it"),
        pytest.param(b"log-in\nfill\n", id="with output waiting"),
        pytest.param(b"log-in\nfill\nwait\n", id="with both"),
    ],
)
async def test_a_cancelled_task_leaves_nothing_behind(session: Served, lane: Lane, before: bytes) -> None:
    served, peer = session
    peer.sendall(before)
    await wait_all_tasks_blocked()
    assert served.outcome == "running"
    assert len(lane) == 1
    served.scope.cancel()
    await wait_all_tasks_blocked()
    assert served.outcome == "cancelled"
    assert len(lane) == 0


async def test_a_task_cancelled_within_a_batch_leaves_nothing_behind(session: Served, lane: Lane) -> None:
    served, peer = session
    peer.sendall(b"log-in\ncancel\nfast\nslow\n")
    await wait_all_tasks_blocked()
    assert served.outcome == "cancelled"
    assert served.by_task == []
    assert len(lane) == 0


async def test_a_task_cancelled_before_it_ran_leaves_nothing_behind(session: Served, lane: Lane) -> None:
    served, _ = session
    served.scope.cancel()
    await wait_all_tasks_blocked()
    assert served.outcome == "cancelled"
    assert len(lane) == 0
