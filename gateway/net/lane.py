"""The fast lane: many sockets drained in batches by one Trio task.

Why. Trio charges a scheduler pass for every `await` that really happens and an `epoll_ctl` for every wait: a task per
connection that awaits each receive and send costs 21 to 31 us of CPU per proxied request, this loop 7 to 9
(docs/performance.md says how to measure it). One wake-up serves every socket that is ready, and everything written to
one connection during the batch leaves in one send.

How. Every socket of the gateway is registered in one private, level-triggered epoll. One Trio task waits until that
epoll is readable, asks it for the ready sockets and calls each one's endpoint; these calls are the *batch*. They are
synchronous and may only receive, decide and queue output. At the batch's end the queued output is flushed and the
descriptors closed meanwhile are released. Whatever is slow or rare is handed to the Trio task that owns the connection
(`net.requests`) and comes back by `batch()`.

What to get right:

- A descriptor that is closed during a batch keeps its number until the batch ends: later events of the same batch may
  still name it, and a number that was reused would deliver them to a stranger.
- Output that is queued outside a batch (by a task, after its await) has no batch end to flush it: `after_batch` runs
  such a flush at once.
- Work that is left over without new bytes on the socket (a fairness bound was reached) goes to `again`; epoll would not
  announce it.
- An exception of an endpoint's owner belongs to that connection and is handed to it; it never ends the lane, and it
  keeps no other connection from being flushed or closed. What cannot even be handed over is logged, and served no more.
- The lane may end before the tasks whose sockets it served: what they still attach, change or close must not fail.
"""

from __future__ import annotations

import contextlib
import math
import select
import selectors
import socket
import time
from collections.abc import Callable
from typing import Final, Protocol

import structlog
import trio

READ: Final = 1  # select.EPOLLIN
WRITE: Final = 4  # select.EPOLLOUT
GONE: Final = 8 | 16  # select.EPOLLERR | select.EPOLLHUP
EDGE: Final = 1 << 31  # select.EPOLLET: reported once, not again for as long as it lasts

EVENTS_PER_BATCH: Final = 512
BATCHES_PER_CHECKPOINT: Final = 16  # measured: one each costs a single connection 5 us of 66
CHECKPOINT_SECONDS: Final = 0.002  # other tasks wait no longer while batches follow each other
PATIENCE_SECONDS: Final = 0.001  # in the private epoll after a batch, its unit (docs/decisions/lane-patience.md)
DIALOGUE_TURNS: Final = 16  # two sockets alone, one after the other: from here on their next turn is spun for
SPIN_SECONDS: Final = 0.0001  # and no longer than this (docs/decisions/lane-spin.md)
EVENTS_PER_CHECKPOINT: Final = 256  # under load a few ms; a batch of many events pays its checkpoint easily
SWEEP_SECONDS: Final = 0.25  # how coarse deadlines are

log = structlog.get_logger(__name__)


class Serves(Protocol):
    """What the lane calls when a socket is ready."""

    deadline: float

    def on_event(self, mask: int) -> None: ...

    def on_error(self, error: Exception) -> None: ...

    def on_deadline(self) -> None: ...


class Poller(Protocol):
    """The part of select.epoll that the lane uses."""

    def register(self, fd: int, mask: int) -> None: ...

    def modify(self, fd: int, mask: int) -> None: ...

    def unregister(self, fd: int) -> None: ...

    def poll(self, timeout: float, maxevents: int) -> list[tuple[int, int]]: ...

    def fileno(self) -> int: ...

    def close(self) -> None: ...


class SelectorPoller:
    """The same on `selectors`, for systems that have kqueue instead of epoll.

    GONE is not reported by itself: it comes as READ and WRITE, where these are asked for. `maxevents` is not kept,
    since the sockets beyond it would be the same ones every time.
    """

    def __init__(self) -> None:
        chosen: type[selectors.BaseSelector] = getattr(selectors, "KqueueSelector", selectors.DefaultSelector)
        self._selector = chosen()
        self._quiet: set[int] = set()  # registered without any interest, which selectors cannot express

    def register(self, fd: int, mask: int) -> None:
        if mask:
            self._selector.register(fd, self._events(mask))
        else:
            self._quiet.add(fd)

    def modify(self, fd: int, mask: int) -> None:
        if fd in self._quiet:
            if mask:
                self._quiet.remove(fd)
                self._selector.register(fd, self._events(mask))
        elif mask:
            self._selector.modify(fd, self._events(mask))
        else:
            self._selector.unregister(fd)
            self._quiet.add(fd)

    def unregister(self, fd: int) -> None:
        if fd in self._quiet:
            self._quiet.remove(fd)
        else:
            self._selector.unregister(fd)

    def poll(self, timeout: float, maxevents: int) -> list[tuple[int, int]]:
        return [
            (key.fd, (READ if events & selectors.EVENT_READ else 0) | (WRITE if events & selectors.EVENT_WRITE else 0))
            for key, events in self._selector.select(timeout)
        ]

    def fileno(self) -> int:
        fileno: Callable[[], int] = self._selector.fileno  # type: ignore[attr-defined]  # epoll and kqueue have it
        return fileno()

    def close(self) -> None:
        self._selector.close()

    @staticmethod
    def _events(mask: int) -> int:
        return (selectors.EVENT_READ if mask & READ else 0) | (selectors.EVENT_WRITE if mask & WRITE else 0)


class Lane:
    """One private poller and the Trio task that drains it. Everything but `run` is synchronous.

    `now` is Trio's clock in seconds, taken once per batch; outside a batch use `trio.current_time()`.
    """

    def __init__(self, poller: Poller | None = None) -> None:
        self._poller: Poller = poller or (select.epoll() if hasattr(select, "epoll") else SelectorPoller())
        self._served: dict[int, Serves] = {}
        self._flushes: list[Callable[[], None]] = []
        self._again: list[tuple[Callable[[], None], Serves | None]] = []
        self._closing: list[socket.socket] = []
        self._lingering: dict[int, trio.Event] = {}
        self._draining = False
        self._asleep = False
        self._over = False
        self._wake_receive, self._wake_send = socket.socketpair()
        self._wake_receive.setblocking(False)
        self._wake_send.setblocking(False)
        self._poller.register(self._wake_receive.fileno(), READ)
        self.now = 0.0
        self.woke = False  # a task was woken in this batch: let it run soon
        self.batches = 0
        self.events = 0

    def __len__(self) -> int:
        return len(self._served)

    def attach(self, fd: int, serves: Serves, mask: int) -> None:
        """Begins to serve a descriptor; `mask` is READ, WRITE, both or 0."""
        if not self._over:
            self._poller.register(fd, mask)
        self._served[fd] = serves

    def modify(self, fd: int, mask: int) -> None:
        """Changes what a descriptor is asked for; no error where it is served no more."""
        if fd in self._served and not self._over:
            self._poller.modify(fd, mask)

    def detach(self, fd: int) -> None:
        """Ends serving a descriptor without closing it."""
        if self._served.pop(fd, None) is not None and not self._over:
            self._poller.unregister(fd)

    def close(self, sock: socket.socket) -> None:
        """Detaches a socket and closes it, at the batch's end where one is under way."""
        fd = sock.fileno()
        if fd >= 0:
            self.detach(fd)
            if self._lingering and fd in self._lingering:
                self._lingering.pop(fd).set()
            if self._draining:
                self._closing.append(sock)
            else:
                sock.close()

    def linger(self, sock: socket.socket) -> None:
        """Says that `sock` will be closed by its endpoint, once its last output was taken or that took too long."""
        self._lingering[sock.fileno()] = trio.Event()

    async def lingered(self, sock: socket.socket) -> None:
        """Waits until a socket that lingers is closed; for the task that owns it, before it ends."""
        lingering = self._lingering.get(sock.fileno())
        if lingering is not None:
            await lingering.wait()

    def after_batch(self, flush: Callable[[], None]) -> None:
        """Runs `flush` when the current batch ends; at once where there is none. It handles its own errors."""
        if self._draining:
            self._flushes.append(flush)
        else:
            self.batch(flush)

    def again(self, work: Callable[[], None], serves: Serves | None = None) -> None:
        """Runs `work` in the next batch, which is made to come at once. `serves` gets the exception that it raises."""
        self._again.append((work, serves))
        if self._asleep and len(self._again) == 1:
            try:
                self._wake_send.send(b"\0")
            except BlockingIOError:
                return  # full of wake-ups: it will wake

    def batch(self, work: Callable[[], None]) -> None:
        """Runs `work` as a batch of its own; for tasks that hand a connection back."""
        if self._draining:
            work()
            return
        self.now = trio.current_time()
        self._draining = True
        try:
            work()
        finally:
            self._end_batch()

    def _end_batch(self) -> None:
        try:
            while self._flushes:
                flushes, self._flushes = self._flushes, []
                for flush in flushes:
                    try:
                        flush()
                    except Exception as error:  # the other connections of the batch want to be flushed
                        log.error("a flush failed", flush=repr(flush), exc_info=error)
        finally:
            self._draining = False
            if self._closing:
                closing, self._closing = self._closing, []
                for sock in closing:
                    with contextlib.suppress(OSError):  # close(2) reports what befell earlier output; it is closed
                        sock.close()

    def _blame(self, serves: Serves | None, error: Exception) -> None:
        """Hands an exception to the connection that it belongs to."""
        try:
            if serves is None:
                raise error
            serves.on_error(error)
        except Exception as unheard:
            log.error("an exception in the lane that no connection took", serves=repr(serves), exc_info=unheard)
            for fd, served in list(self._served.items()):
                if served is serves:
                    self.detach(fd)  # level-triggered, it would fail again without end

    async def run(self) -> None:
        """Serves until it is cancelled; then closes the poller, not the sockets, which belong to their owners."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sweep, name="lane deadlines")
                await self._drain()
        finally:
            self._over = True
            self._poller.close()
            self._wake_receive.close()
            self._wake_send.close()

    def _spin(self) -> list[tuple[int, int]]:
        """Polls without sleeping for a short time: to be woken on an idle core takes longer than the answer does."""
        until = time.perf_counter() + SPIN_SECONDS
        while not (events := self._poller.poll(0, EVENTS_PER_BATCH)) and time.perf_counter() < until:
            pass
        return events

    async def _drain(self) -> None:
        poll, served, wake_fd = self._poller.poll, self._served, self._wake_receive.fileno()
        busy = load = 0
        patience = 0.0
        turns, last, before = 0, -1, -1  # how often two sockets have alternated, and the last two
        checked = trio.current_time()  # when other tasks last had their turn
        while True:
            if turns < DIALOGUE_TURNS or self._again:
                events = poll(0 if self._again else patience, EVENTS_PER_BATCH)
            elif not (events := self._spin()):
                turns = 0  # somebody thinks for longer: sleep, and begin to count anew
                events = poll(patience, EVENTS_PER_BATCH)
            if not events and not self._again:
                busy = load = turns = 0
                patience = 0.0
                self._asleep = True
                try:
                    await trio.lowlevel.wait_readable(self._poller.fileno())
                finally:
                    self._asleep = False
                continue
            self.now = trio.current_time()
            self.batches += 1
            self.events += len(events)
            if len(events) == 1:
                before, last, previous = last, events[0][0], before
                turns = turns + 1 if last == previous else 0
            else:
                turns = 0
            self._draining = True
            try:
                if self._again:
                    again, self._again = self._again, []
                    for work, serves in again:
                        try:
                            work()
                        except Exception as error:  # belongs to that connection
                            self._blame(serves, error)
                for fd, mask in events:
                    ready = served.get(fd)
                    if ready is not None:
                        try:
                            ready.on_event(mask)
                        except Exception as error:  # belongs to that connection
                            self._blame(ready, error)
                    elif fd == wake_fd:
                        self._wake_receive.recv(4096)
            finally:
                self._end_batch()
            busy += 1
            load += len(events)
            patience = PATIENCE_SECONDS  # the answer to what was just sent is often microseconds away
            due = busy >= BATCHES_PER_CHECKPOINT or self.now - checked >= CHECKPOINT_SECONDS
            if due or self.woke or load >= EVENTS_PER_CHECKPOINT:
                self.woke = False
                busy = load = 0
                checked = self.now
                await trio.lowlevel.checkpoint()

    async def _sweep(self) -> None:
        """Calls `on_deadline` of what is past its deadline: one pass over all, instead of a timer for each request."""
        while True:
            await trio.sleep(SWEEP_SECONDS)
            now = trio.current_time()
            late = [(fd, serves) for fd, serves in self._served.items() if serves.deadline <= now]
            for fd, serves in late:
                if self._served.get(fd) is serves and serves.deadline <= now:  # an earlier one may have changed it
                    serves.deadline = math.inf
                    try:
                        self.batch(serves.on_deadline)
                    except Exception as error:  # belongs to that connection
                        self._blame(serves, error)
