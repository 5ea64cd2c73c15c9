"""Reads to its end, and drops, a command that was refused for its length, so that its client reads why.

A client that sends a long command reads nothing before it has sent all of it. Were its connection closed meanwhile, it
would see a broken connection in the place of error 1153. So the rest is received into nothing, then the error is
written, numbered behind the last packet, and the connection is closed, as servers do. That is bounded, by
DISCARD_SECONDS and DISCARD_BYTES.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from gateway.protocol.mysql.constants import MAX_PAYLOAD
from gateway.protocol.mysql.packets import HEADER, PacketError

if TYPE_CHECKING:
    from gateway.sessions.mysql import MysqlSession

DISCARD_SECONDS: Final = 30.0  # net_read_timeout of the servers, which is for each read there
DISCARD_BYTES: Final = 1 << 30  # the most that max_allowed_packet can be


class Discarding:
    """The owner of a client's endpoint from the refusal to the end. `unread`: what of the command came already."""

    def __init__(self, session: MysqlSession, error: PacketError, unread: bytes) -> None:
        self._session = session
        self._error = error
        self._packets = 0  # of the command so far
        self._head = bytearray()
        self._left = 0  # bytes of the packet at hand
        self._continued = True  # another packet of the command follows
        self._room = DISCARD_BYTES
        session.endpoint.owner = self
        session.endpoint.deadline = trio.current_time() + DISCARD_SECONDS
        self.received(unread)

    def received(self, chunk: bytes) -> None:
        self._room -= len(chunk)
        at, size = 0, len(chunk)
        while at < size:
            if self._left:
                step = min(self._left, size - at)
                self._left -= step
                at += step
                continue
            head = self._head
            taken = min(HEADER - len(head), size - at)
            head += chunk[at : at + taken]
            at += taken
            if len(head) == HEADER:
                self._packets = self._packets + 1 if self._continued else 1
                self._left = int.from_bytes(head[:3], "little")
                self._continued = self._left == MAX_PAYLOAD
                head.clear()
        if self._room < 0 or not (self._left or self._continued or self._head):
            self._end()

    def _end(self) -> None:
        session, error = self._session, self._error
        session.endpoint.owner = session.client
        session.client.end_with(error.code, str(error), error.sqlstate, sequence=self._packets)

    def ended(self) -> None:
        self._end()

    def expired(self) -> None:
        self._end()

    def lost(self, error: OSError) -> None:
        self._session.client.lost(error)

    def raised(self, error: Exception) -> None:
        self._session.client.requests.fail(error)

    def overfull(self) -> None:
        """What waits for the client is the end of its session, and bounded by time."""

    def drained(self) -> None:
        """See `overfull`."""
