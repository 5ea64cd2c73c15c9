"""One socket in the lane: receives into its owner, queues output, and says when the peer reads too slowly."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final, Protocol

import trio

from gateway.net.lane import EDGE, GONE, READ, WRITE, Lane

RECEIVE_BYTES: Final = 65_536  # per socket and batch: what one greedy peer can take of it
HIGH_WATERMARK_BYTES: Final = 262_144  # output held for a peer before its source is paused
LOW_WATERMARK_BYTES: Final = 65_536
BUFFERS_PER_SEND: Final = 64  # far below IOV_MAX (1024)
LINGER_SECONDS: Final = 5.0  # how long the last output of a closing connection may take
UNREAD_RECEIVES: Final = 16  # of input that nobody wants any more, before a connection is closed

# A peer whose machine or network has gone is noticed after two minutes; tcp(7) has two hours. Linux's names.
_KEEPALIVE: Final = tuple(
    (getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6))
    if hasattr(socket, name)
)

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST


class Owner(Protocol):
    """Who an endpoint belongs to. All calls are made by the lane, synchronously, within a batch."""

    def received(self, chunk: bytes) -> None:
        """Bytes came, never empty."""

    def ended(self) -> None:
        """The peer will send nothing more; output can still be written."""

    def lost(self, error: OSError) -> None:
        """The connection broke and the endpoint is closed already."""

    def overfull(self) -> None:
        """More than the high watermark waits for the peer: pause what produces it."""

    def drained(self) -> None:
        """After `overfull`: less than the low watermark waits."""

    def expired(self) -> None:
        """The endpoint's `deadline` has passed; it is infinite again."""

    def raised(self, error: Exception) -> None:
        """One of the calls above raised; to be raised again in the task that owns the connection."""


class Endpoint:
    """A connected, non-blocking stream socket that the lane serves for its owner.

    `deadline` is a time of Trio's clock in seconds, kept coarsely (`lane.SWEEP_SECONDS`); `math.inf` for none.
    """

    __slots__ = (
        "_blocked",
        "_closing",
        "_layers",  # net.layers
        "_mask",
        "_more_due",  # net.layers
        "_open",  # net.layers
        "_out",
        "_overfull",
        "_plain",  # net.layers
        "_reading",
        "_waiting",
        "bytes_in",
        "bytes_out",
        "closed",
        "deadline",
        "eof",
        "high",
        "lane",
        "low",
        "owner",
        "queued",
        "receive_bytes",
        "sock",
    )

    def __init__(
        self,
        lane: Lane,
        sock: socket.socket,
        owner: Owner,
        *,
        reading: bool = True,
        receive_bytes: int = RECEIVE_BYTES,
        high: int = HIGH_WATERMARK_BYTES,
        low: int = LOW_WATERMARK_BYTES,
    ) -> None:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
        self.lane = lane
        self.sock = sock
        self.owner = owner
        self.deadline = math.inf
        self.receive_bytes = receive_bytes
        self.high = high
        self.low = low
        self.closed = False
        self.eof = False  # the peer ended its side
        self.queued = 0  # bytes that the kernel did not take yet
        self.bytes_in = 0
        self.bytes_out = 0
        self._out: list[bytes] = []  # written in this batch
        self._waiting: deque[memoryview] = deque()  # not taken by the kernel
        self._blocked = False
        self._overfull = False
        self._closing = False
        self._reading = reading
        self._mask = READ if reading else 0
        lane.attach(sock.fileno(), self, self._mask)

    # -- what the lane calls

    def on_event(self, mask: int) -> None:
        if mask & READ and self._reading:
            try:
                chunk = self.sock.recv(self.receive_bytes)
            except (BlockingIOError, InterruptedError):
                chunk = None
            except OSError as error:
                self._lose(error)
                return
            if chunk:
                self.bytes_in += len(chunk)
                self.owner.received(chunk)
            elif chunk is not None:
                self.eof = True
                self.pause_reading()
                self.owner.ended()
        if mask & WRITE and not self.closed:
            self._send_waiting()
        if mask & GONE and not self._reading and not self.closed:
            self._gone()

    def on_error(self, error: Exception) -> None:
        self.pause_reading()  # the owner's state is in doubt; its task decides what comes next
        self.owner.raised(error)

    def on_deadline(self) -> None:
        if self._closing:
            self.close()
        else:
            self.owner.expired()

    # -- what the owner calls

    def write(self, chunk: bytes) -> None:
        """Queues output: sent at the batch's end, or at once where no batch is under way. Ignored once closed."""
        if self._blocked:
            if chunk:
                self._waiting.append(memoryview(chunk))
                self._add_queued(len(chunk))
        elif not self.closed:
            out = self._out
            out.append(chunk)
            if len(out) == 1:
                self.lane.after_batch(self._send_batch)

    def send(self, chunk: bytes) -> None:
        """What `write` does, but at once: for connections that get one chunk per batch, where waiting gains nothing."""
        if self._blocked or self._out or self.closed or not chunk:
            self.write(chunk)
            return
        try:
            sent = self.sock.send(chunk)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.write(chunk)  # the batch's end finds the same error, and no owner is called from within its own call
            return
        self.bytes_out += sent
        if sent < len(chunk):
            self._block(chunk, sent)

    def pause_reading(self) -> None:
        """Leaves what the peer sends in the kernel."""
        if self._reading:
            self._reading = False
            self._want(self._mask & ~READ)

    def resume_reading(self) -> None:
        if not self._reading and not self._closing and not self.eof:
            self._reading = True
            self._want((self._mask | READ) & ~EDGE)

    @property
    def reading(self) -> bool:
        return self._reading

    def finish(self) -> None:
        """Closes once everything written was taken by the kernel, at the latest after LINGER_SECONDS.

        Nothing is received any more, and the owner hears no more of it. `Lane.lingered` waits for the end.
        """
        if self._closing or self.closed:
            return
        self._closing = True
        if self._is_sent:
            self._close_sent()
        else:
            self.pause_reading()
            self.deadline = trio.current_time() + LINGER_SECONDS  # not `lane.now`: a task may call after a long wait
            self.lane.linger(self.sock)

    def close(self) -> None:
        """Closes at once; unsent output is dropped, and no call to the owner follows."""
        if not self.closed:
            self._closing = True
            if self._out:
                self._send_batch()  # written, and the kernel may still take it
                if self.closed:
                    return
            self._drop()
            self.lane.close(self.sock)

    def reset(self) -> None:
        """Closes with RST, so that the peer's kernel need not deliver what it has not delivered yet."""
        if not self.closed:
            with contextlib.suppress(OSError):  # the connection may be gone already
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._drop()
            self.lane.close(self.sock)

    # -- sending

    @property
    def _is_sent(self) -> bool:
        return not self._blocked and not self._out

    def _send_batch(self) -> None:
        out = self._out
        if not out or self.closed:
            return
        chunk = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        try:
            sent = self.sock.send(chunk)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._lose(error)
            return
        self.bytes_out += sent
        if sent < len(chunk):
            self._block(chunk, sent)
        elif self._closing:
            self._close_sent()

    def _block(self, chunk: bytes, sent: int) -> None:
        """The kernel took only `sent` bytes: keeps the rest until it takes more."""
        self._blocked = True
        self._waiting.append(memoryview(chunk)[sent:])
        self._want(self._mask | WRITE)
        self._add_queued(len(chunk) - sent)

    def _send_waiting(self) -> None:
        if not self._take_waiting():
            return
        if not self._waiting:
            self._blocked = False
            self._want(self._mask & ~WRITE)
            if self._closing:
                self._close_sent()
                return
        self._relieve()

    def _take_waiting(self) -> bool:
        """Gives the kernel what waits for it; False if it took nothing, or the connection broke."""
        waiting = self._waiting
        try:
            sent = self.sock.sendmsg(list(islice(waiting, BUFFERS_PER_SEND)))
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._lose(error)
            return False
        self.bytes_out += sent
        self.queued -= sent
        while sent:
            head = waiting[0]
            if len(head) > sent:
                waiting[0] = head[sent:]
                break
            sent -= len(head)
            waiting.popleft()
        return True

    def _relieve(self) -> None:
        if self._overfull and self.queued <= self.low:
            self._overfull = False
            if not self._closing:
                self._tell(self.owner.drained)

    def _add_queued(self, count: int) -> None:
        self.queued += count
        if self.queued > self.high and not self._overfull and not self._closing:
            self._overfull = True
            self._tell(self.owner.overfull)

    # -- state

    def _tell(self, call: Callable[[], None]) -> None:
        """Calls the owner from within somebody else's write or flush, who must not get its exception."""
        try:
            call()
        except Exception as error:  # belongs to the task that owns the connection
            self.on_error(error)

    def _gone(self) -> None:
        """The peer is gone while nothing is read. The poller reports that whatever it was asked for, without end."""
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._lose(OSError(code, os.strerror(code)))
        elif self._blocked:
            self._lose(OSError(errno.EPIPE, os.strerror(errno.EPIPE)))
        else:
            # A unix socket whose peer closed it in good order. What the peer sent before waits in the kernel and is
            # read when the owner resumes; a write before that finds the connection broken.
            self._want(self._mask | EDGE)

    def _close_sent(self) -> None:
        """Closes with nothing left to send.

        A connection that is closed with input unread is reset, and the reset may overtake the last answer (RFC 1122,
        4.2.2.13): what is here already is read before.
        """
        if not self.eof:
            with contextlib.suppress(OSError):  # nothing there, or the peer is gone
                for _ in range(UNREAD_RECEIVES):
                    if not self.sock.recv(RECEIVE_BYTES):
                        break
        self._drop()
        self.lane.close(self.sock)

    def _want(self, mask: int) -> None:
        if mask != self._mask and not self.closed:
            self._mask = mask
            self.lane.modify(self.sock.fileno(), mask)

    def _lose(self, error: OSError) -> None:
        closing = self._closing
        self._drop()
        self.lane.close(self.sock)
        if not closing:
            self._tell(lambda: self.owner.lost(error))

    def _drop(self) -> None:
        self.closed = True
        self._reading = False
        self._blocked = False
        self._out.clear()
        self._waiting.clear()
        self.queued = 0
