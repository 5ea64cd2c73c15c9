"""Follows a reply whose packets a compressing server numbers too high, and gives its client the numbers it expects.

See `compression`: a command of 16 MiB less 2 to 4 bytes takes one compressed packet more than ordinary ones.
"""

from __future__ import annotations

from gateway.protocol.mysql.packets import HEADER
from gateway.protocol.mysql.replies import ReplyTracker


class RenumberedTracker(ReplyTracker):
    """A tracker of which `begin` is told how many numbers `ahead` the reply is."""

    __slots__ = ("_ahead", "_body", "_head")

    def __init__(self, client_capabilities: int) -> None:
        self._ahead = 0
        self._head = 0  # bytes seen of the header of the packet at hand
        self._body = 0  # bytes still to come of the packet at hand; while its header comes, its length so far
        super().__init__(client_capabilities)

    def begin(self, command: int, sequence: int = 1, ahead: int = 0) -> None:
        self._ahead = ahead
        self._head = self._body = 0
        super().begin(command, sequence + ahead)

    def feed(self, data: bytes) -> bytes:
        answer = super().feed(data)
        return self._renumber(answer) if self._ahead and answer else answer

    def _renumber(self, answer: bytes) -> bytes:
        out = bytearray(answer)
        at, size = 0, len(out)
        while at < size:
            if self._head == HEADER:
                step = min(self._body, size - at)
                self._body -= step
                at += step
                if not self._body:
                    self._head = 0
                continue
            if self._head < HEADER - 1:
                self._body |= out[at] << (8 * self._head)
            else:
                out[at] = (out[at] - self._ahead) & 0xFF
            self._head += 1
            at += 1
            if self._head == HEADER and not self._body:
                self._head = 0
        return bytes(out)
