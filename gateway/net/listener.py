"""Binds, accepts in the lane, and keeps the number of connections of one listener within its limit."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio

from gateway.errors import ConfigError
from gateway.net.lane import READ, Lane

BACKLOG: Final = 1024
ACCEPTS_PER_BATCH: Final = 64
PAUSE_SECONDS: Final = 0.25  # without a free descriptor accept() would fail again at once
UNREAD_BYTES: Final = 65_536

# What accept(2) says of the one connection that it took off the queue; the next one may be well.
_OF_ONE_CLIENT: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
    }
)
_NOT_ON_THIS_MACHINE: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})

log = structlog.get_logger(__name__)


def bind_tcp(host: str, port: int) -> list[socket.socket]:
    """Listening sockets for every address that `host` stands for. Port 0 is allowed for one address only.

    An address that this machine does not have (`localhost` is often ::1 too, where IPv6 is switched off) is left out
    while another one is left. Raises ConfigError.
    """
    if not 0 <= port <= 65_535:  # getaddrinfo keeps the lower 16 bits of it
        raise ConfigError(f"cannot listen on {host}:{port}: a port is a number from 0 to 65535")
    sockets: list[socket.socket] = []
    left_out: OSError | None = None
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, proto, _, address in dict.fromkeys(found):
            try:
                sockets.append(_listen(family, proto, address))
            except OSError as error:
                if error.errno not in _NOT_ON_THIS_MACHINE:
                    raise
                left_out = error
        if left_out is not None and not sockets:
            raise left_out
    except (OSError, UnicodeError) as error:  # UnicodeError: a host that cannot be a name
        for sock in sockets:
            sock.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}") from error
    return sockets


def _listen(family: int, proto: int, address: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def bind_unix(path: str, mode: int = 0o600) -> socket.socket:
    """A listening unix socket at `path`; a socket that a dead process left there is replaced."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.stat(path).st_mode):
                if _is_served(path):
                    raise ConfigError(f"another process listens on {path}")
                os.unlink(path)
        before = os.umask(0o777 & ~mode)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise ConfigError(f"cannot listen on {path}: {error.strerror or error}") from error
        raise
    return sock


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            return True  # its backlog is full
    return True


class Acceptor:
    """One listening socket in the lane; every accepted connection gets a task of its own in `nursery`.

    Over `limit` connections a client is sent `refusal()` and closed. `open` counts the connections being served.
    """

    def __init__(
        self,
        lane: Lane,
        sock: socket.socket,
        nursery: trio.Nursery,
        serve: Callable[[socket.socket], Awaitable[None]],
        *,
        name: str,
        limit: int,
        refusal: Callable[[], bytes],
        room: Callable[[], int] | None = None,
    ) -> None:
        """`room` says how many connections may be accepted now; the others wait in the kernel's queue (`resume`)."""
        self.deadline = math.inf
        self.name = name
        self.limit = limit
        self.open = 0
        self.accepted = 0
        self.refused = 0
        self._lane = lane
        self._sock = sock
        self._nursery = nursery
        self._serve = serve
        self._refusal = refusal
        self._room = room
        self._paused = False
        self._begun = 0  # of those accepted, how many tasks have had their first turn
        lane.attach(sock.fileno(), self, READ)

    @property
    def address(self) -> object:
        return self._sock.getsockname()

    def close(self) -> None:
        """Stops accepting; connections that are open go on."""
        self._paused = False
        self._lane.close(self._sock)

    def on_event(self, mask: int) -> None:
        room = ACCEPTS_PER_BATCH
        if self._room is not None:
            room = self._room() - (self.accepted - self._begun)
        if room <= 0:
            self._pause()
            return
        for _ in range(min(room, ACCEPTS_PER_BATCH)):
            try:
                client, _address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    log.error("no descriptor or memory for another connection", listener=self.name, error=str(error))
                    self._pause()
                    return
                if error.errno in _OF_ONE_CLIENT:
                    continue
                raise
            try:
                client.setblocking(False)
                if self.open >= self.limit:
                    self._refuse(client)
                    client.close()
                    continue
                self._nursery.start_soon(self._own, client, name=f"{self.name} session")
            except BaseException:
                client.close()
                raise
            self.open += 1
            self.accepted += 1
            self._lane.woke = True

    def _refuse(self, client: socket.socket) -> None:
        self.refused += 1
        refusal = self._refusal()
        with contextlib.suppress(OSError):  # a client that has gone need not be told
            client.send(refusal)
            client.recv(UNREAD_BYTES)  # closed with input unread it would be reset, and might not see the refusal

    async def _own(self, client: socket.socket) -> None:
        """Where a session ends, and with it its exceptions: they hurt no other session."""
        self._begun += 1
        try:
            try:
                await self._serve(client)
            except* Exception as errors:
                log.error("a session failed", listener=self.name, exc_info=errors)
            await self._lane.lingered(client)
        finally:
            self.open -= 1
            self._lane.close(client)

    def _pause(self) -> None:
        self._paused = True
        self._lane.modify(self._sock.fileno(), 0)
        self.deadline = self._lane.now + PAUSE_SECONDS

    def resume(self) -> None:
        """There is room again."""
        if self._paused:
            self.deadline = math.inf
            self.on_deadline()

    def on_deadline(self) -> None:
        self._paused = False
        self._lane.modify(self._sock.fileno(), READ)

    def on_error(self, error: Exception) -> None:
        log.error("accepting failed", listener=self.name, exc_info=error)
        self._pause()  # the client that could not be served still waits, and would be announced without end
