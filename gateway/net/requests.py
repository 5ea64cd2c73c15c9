"""Where the lane and a connection's Trio task meet: the requests that the fast path declined, one at a time.

The session's synchronous side calls `decline`, `fail` or `end`; the task iterates. While a request is with the task the
session reads nothing more; when the task asks for the next one, `resume` lets the session go on with what it has
buffered. An iterator class and not an async generator: nothing here needs cleaning up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import trio

from gateway.net.lane import Lane

R = TypeVar("R")


class Requests(Generic[R]):
    """The declined requests of one connection. `with_task` says whether the task holds one."""

    __slots__ = ("_ended", "_error", "_lane", "_lot", "_request", "_resume", "with_task")

    def __init__(self, lane: Lane, resume: Callable[[], None]) -> None:
        self._lane = lane
        self._resume = resume
        self._request: R | None = None
        self._error: BaseException | None = None
        self._ended = False
        self._lot = trio.lowlevel.ParkingLot()
        self.with_task = False

    def decline(self, request: R) -> None:
        """Gives a request to the task. One at a time: the session must not read on until it is handed back."""
        if self.with_task:
            raise RuntimeError("a request was declined while another one is with the task")
        self._request = request
        self.with_task = True
        self._wake()

    def fail(self, error: BaseException) -> None:
        """Raises `error` in the task; the first one counts."""
        if self._error is None:
            self._error = error
        self._wake()

    def end(self) -> None:
        """Ends the iteration after what was declined before."""
        self._ended = True
        self._wake()

    @property
    def over(self) -> bool:
        return self._ended or self._error is not None

    def _wake(self) -> None:
        self._lot.unpark_all()
        self._lane.woke = True

    def __aiter__(self) -> Requests[R]:
        return self

    async def __anext__(self) -> R:
        if self.with_task and self._request is None:
            self.with_task = False
            if self._error is None:  # a connection that failed goes on with nothing
                self._lane.batch(self._resume)
        if self._request is not None:
            # A client that pipelines what is declined must not keep the other tasks, and the lane, from running.
            await trio.lowlevel.checkpoint()
        while self._request is None:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            await self._lot.park()
        request, self._request = self._request, None
        return request
