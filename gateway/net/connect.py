"""Opens connections to servers, and lets a task hold a dialogue on one until it is handed to its owner."""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

import trio

from gateway.net.endpoint import Endpoint, Owner
from gateway.net.lane import Lane
from gateway.net.layers import Layer, add_layer

UNREAD_LIMIT_BYTES: Final = 1 << 20  # what a peer may send ahead of the dialogue


async def connect_tcp(host: str, port: int) -> socket.socket:
    """A connected, non-blocking socket to the first address of `host` that answers. Raises OSError.

    The caller bounds the time.
    """
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    last: OSError | None = None
    for family, kind, proto, _, address in found:
        try:
            return await _connect(socket.socket(family, kind, proto), address)
        except OSError as error:
            last = error
    raise last or OSError(f"{host} has no address")


async def connect_unix(path: str) -> socket.socket:
    """A connected, non-blocking socket to the unix socket at `path`. Raises OSError."""
    return await _connect(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), path)


async def _connect(sock: socket.socket, address: object) -> socket.socket:
    try:
        sock.setblocking(False)
        code = sock.connect_ex(address)  # type: ignore[arg-type]  # a tuple or a path, by the socket's family
        if code == errno.EINPROGRESS:
            await trio.lowlevel.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return sock


class Conversation:
    """A dialogue on one endpoint, awaited by one task: log-ins and questions. Owns the endpoint meanwhile.

    It is a new one for a socket, or one that is taken from its owner.
    """

    def __init__(self, lane: Lane, sock: socket.socket | Endpoint, unread_limit: int = UNREAD_LIMIT_BYTES) -> None:
        self._lane = lane
        self._unread_limit = unread_limit
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._error: Exception | None = None
        self._ended = False
        self._lot = trio.lowlevel.ParkingLot()
        if isinstance(sock, Endpoint):
            self.endpoint = sock
            sock.owner = self
        else:
            self.endpoint = Endpoint(lane, sock, self)

    async def receive(self) -> bytes:
        """What the peer sent since the last call; b"" once it ended. Raises OSError when the connection is lost."""
        while not self._unread:
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            await self._lot.park()
        chunk = self._unread[0] if len(self._unread) == 1 else b"".join(self._unread)
        self._unread.clear()
        self._unread_bytes = 0
        self.endpoint.resume_reading()
        return chunk

    def put_back(self, chunk: bytes) -> None:
        """Returns what was received and not used: the next `receive` begins with it."""
        if chunk:
            self._unread.insert(0, chunk)
            self._unread_bytes += len(chunk)

    def write(self, chunk: bytes) -> None:
        self.endpoint.write(chunk)

    def add_layer(self, layer: Layer, received: bytes = b"") -> None:
        """Goes on through `layer`, also with what was received and not read; `received` was read and belongs there."""
        unread = b"".join((received, *self._unread))
        self._unread.clear()
        self._unread_bytes = 0
        self.endpoint.resume_reading()  # the layer may need more than was held before it says anything
        add_layer(self.endpoint, layer, unread)

    def hand_over(self, owner: Owner) -> bytes:
        """Makes `owner` the endpoint's owner; returns what was received and not read. Raises OSError if it is lost.

        An owner whose peer has ended already is told so in the next batch, when it has seen what is returned here.
        """
        if self._error is not None:
            raise self._error
        self.endpoint.owner = owner
        unread = b"".join(self._unread)
        self._unread.clear()
        self._unread_bytes = 0
        self.endpoint.resume_reading()
        if self._ended:
            self._lane.again(lambda: None if self.endpoint.closed else owner.ended(), self.endpoint)
        return unread

    def close(self) -> None:
        """Ends the dialogue; what was written is sent as far as the kernel takes it."""
        self.endpoint.close()

    def _wake(self) -> None:
        self._lot.unpark_all()
        self._lane.woke = True

    def received(self, chunk: bytes) -> None:
        self._unread.append(chunk)
        self._unread_bytes += len(chunk)
        if self._unread_bytes > self._unread_limit:
            self.endpoint.pause_reading()
        self._wake()

    def ended(self) -> None:
        self._ended = True
        self._wake()

    def lost(self, error: OSError) -> None:
        self._error = error
        self._wake()

    def overfull(self) -> None:
        """A dialogue writes little and waits for the answer: nothing to pause."""

    def drained(self) -> None:
        """See overfull."""

    def expired(self) -> None:
        self.lost(TimeoutError("no answer in time"))

    def raised(self, error: Exception) -> None:
        self._error = error
        self._wake()
