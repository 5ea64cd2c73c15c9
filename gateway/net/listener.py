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
EXHAUSTED_PAUSE_SECONDS: Final = 0.25  # without a free descriptor accept() would fail again at once

log = structlog.get_logger(__name__)


def bind_tcp(host: str, port: int) -> list[socket.socket]:
    """Listening sockets for every address that `host` stands for. Port 0 is allowed for one address only."""
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, proto, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind, proto)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
            sock.setblocking(False)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return sockets


def bind_unix(path: str, mode: int = 0o600) -> socket.socket:
    """A listening unix socket at `path`; a socket that a dead process left there is replaced."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                probe.connect(path)
            except OSError:
                os.unlink(path)
            else:
                raise ConfigError(f"another process listens on {path}")
            finally:
                probe.close()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o777 & ~mode)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ConfigError(f"cannot listen on {path}: {error.strerror or error}") from error
    return sock


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
    ) -> None:
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
        lane.attach(sock.fileno(), self, READ)

    @property
    def address(self) -> object:
        return self._sock.getsockname()

    def close(self) -> None:
        """Stops accepting; connections that are open go on."""
        self._lane.close(self._sock)

    def on_event(self, mask: int) -> None:
        for _ in range(ACCEPTS_PER_BATCH):
            try:
                client, _address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    log.error("no descriptor or memory for another connection", listener=self.name, error=str(error))
                    self._lane.modify(self._sock.fileno(), 0)
                    self.deadline = self._lane.now + EXHAUSTED_PAUSE_SECONDS
                    return
                continue  # the client has gone meanwhile (ECONNABORTED and its kin, accept(2))
            client.setblocking(False)
            if self.open >= self.limit:
                self.refused += 1
                with contextlib.suppress(OSError):  # a client that has gone need not be told
                    client.send(self._refusal())
                client.close()
                continue
            self.open += 1
            self.accepted += 1
            self._lane.woke = True
            self._nursery.start_soon(self._own, client, name=f"{self.name} session")

    async def _own(self, client: socket.socket) -> None:
        try:
            await self._serve(client)
        finally:
            self.open -= 1
            if client.fileno() >= 0:
                self._lane.close(client)

    def on_deadline(self) -> None:
        self._lane.modify(self._sock.fileno(), READ)

    def on_error(self, error: Exception) -> None:
        log.error("accepting failed", listener=self.name, exc_info=error)
