"""One pipelined connection to a memcached server, shared by all sessions, in the lane.

Requests of many sessions are queued in one batch and leave in one send; answers come in the order of the requests and
are handed to who waits for them. There is one such connection per server and purpose, so that the writes of a key, and
the reads behind them, reach the server in the order in which they were dispatched.

Whoever waits is called exactly once: `answered` with the reply, or `lost` when the connection ended before it. A lost
request was sent, or may have been: whether it was carried out is unknown.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from gateway.errors import ProtocolError
from gateway.net.connect import Conversation
from gateway.net.lane import Lane
from gateway.protocol.memcached.reply import Reply
from gateway.protocol.memcached.reply_decoder import ReplyDecoder
from gateway.protocol.memcached.request import Request

DEPTH_MAX: Final = 4096  # requests in flight: some 40 ms of one memcached thread
DEPTH_LOW: Final = 1024
OUTPUT_HIGH_BYTES: Final = 4_194_304  # four values of the default largest size
OUTPUT_LOW_BYTES: Final = 1_048_576

log = structlog.get_logger(__name__)


class Waiter(Protocol):
    """Who gets the answer to one request. Both calls are made by the lane, within a batch."""

    @property
    def writes(self) -> bool:
        """Whether the request changes something: its loss makes a key doubtful and the connection one to be fenced."""

    def answered(self, reply: Reply) -> None: ...

    def lost(self, reason: str) -> None: ...


class PipelinedConnection:
    """A connection in service. `full` asks to send no more until `drained_again` was called; sending works anyway."""

    __slots__ = (
        "_decoder",
        "_deep",
        "_drained_again",
        "_expected",
        "_lane",
        "_on_loss",
        "_out",
        "_overfull",
        "_timeout",
        "addresses",
        "closed",
        "endpoint",
        "full",
        "name",
        "waiting",
    )

    def __init__(
        self,
        lane: Lane,
        conversation: Conversation,
        name: str,
        *,
        timeout: float,
        on_loss: Callable[[PipelinedConnection, str, bool], None],
        drained_again: Callable[[], None],
    ) -> None:
        """Takes over the connection of a finished dialogue.

        `timeout`: seconds without a byte while answers are due, after which the server counts as silent. `on_loss` is
        called once with the reason in words and whether writes were unanswered, before those who wait are.
        Raises OSError or ProtocolError if the connection is of no use already.
        """
        self.name = name
        self.endpoint = conversation.endpoint
        self.addresses: tuple[object, object] = (
            self.endpoint.sock.getsockname(),
            self.endpoint.sock.getpeername(),
        )  # the local one and the server's, for fencing
        self.waiting: deque[Waiter] = deque()
        self.closed = False
        self.full = False
        self._lane = lane
        self._decoder = ReplyDecoder()
        self._expected = self._decoder.expected
        self._timeout = timeout
        self._on_loss = on_loss
        self._drained_again = drained_again
        self._deep = False
        self._overfull = False
        self._out: list[bytes] = []  # of this batch
        self.endpoint.high = OUTPUT_HIGH_BYTES
        self.endpoint.low = OUTPUT_LOW_BYTES
        if unread := conversation.hand_over(self):
            raise ProtocolError(f"{name} sent {unread[:60]!r} unasked")

    def send(self, request: Request, waiter: Waiter) -> None:
        """Queues a request. Only within a batch (`lane.batch` from a task), and not once `closed`."""
        self.waiting.append(waiter)
        self._expected.append(request)
        out = self._out
        out.append(request.raw)
        if len(out) == 1:
            self._lane.after_batch(self._send_batch)

    def _send_batch(self) -> None:
        out = self._out
        chunk = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        if self.closed:
            return
        self.endpoint.send(chunk)
        if self.endpoint.deadline == math.inf:
            self.endpoint.deadline = self._lane.now + self._timeout
        if len(self.waiting) > DEPTH_MAX:
            self._deep = self.full = True

    @property
    def has_writes(self) -> bool:
        """Whether a write is unanswered."""
        return any(waiter.writes for waiter in self.waiting)

    def close(self) -> None:
        """Ends a connection that nobody waits on; otherwise as `fail`."""
        self.fail("closed by the gateway")

    def fail(self, reason: str) -> None:
        """Resets the connection: with unanswered requests anything else could deliver their bytes late."""
        if not self.closed:
            self.endpoint.reset()
            self._end(reason)

    def _end(self, reason: str) -> None:
        if self.closed:
            return
        self.closed = True
        self.full = False
        waiting, self.waiting = self.waiting, deque()
        self._expected.clear()
        self._on_loss(self, reason, any(waiter.writes for waiter in waiting))
        for waiter in waiting:
            try:
                waiter.lost(reason)
            except Exception as error:  # belongs to one session, and the others want to be told too
                log.error("telling a loss failed", server=self.name, exc_info=error)
        self._drained_again()

    # -- what the endpoint calls

    def received(self, chunk: bytes) -> None:
        try:
            replies = self._decoder.decode(chunk)
        except ProtocolError as error:
            log.error("a server's answer was not understood", server=self.name, error=str(error))
            self.fail(str(error))
            return
        waiting = self.waiting
        for reply in replies:
            waiter = waiting.popleft()
            try:
                waiter.answered(reply)
            except Exception as error:  # belongs to one session; the replies behind it are others'
                log.error("handing out an answer failed", server=self.name, exc_info=error)
            if self.closed:
                return  # by the waiter; those behind it were told that it is lost
        self.endpoint.deadline = self._lane.now + self._timeout if waiting else math.inf
        if self._deep and len(waiting) < DEPTH_LOW:
            self._deep = False
            self._unfill()

    def ended(self) -> None:
        self.fail("closed by the server")

    def lost(self, error: OSError) -> None:
        self._end(error.strerror or str(error))

    def overfull(self) -> None:
        self._overfull = self.full = True

    def drained(self) -> None:
        self._overfull = False
        self._unfill()

    def _unfill(self) -> None:
        if self.full and not (self._deep or self._overfull):
            self.full = False
            self._drained_again()

    def expired(self) -> None:
        if self.waiting:
            self.fail(f"no answer for {self._timeout:g} s")

    def raised(self, error: Exception) -> None:
        log.error("a server connection failed in the gateway", server=self.name, exc_info=error)
        self.fail("an error in the gateway")
