"""What the gateway answers itself: version, statistics of the pool and its own, refusals of management verbs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import trio

from gateway.protocol.memcached.reply import Code, Reply
from gateway.protocol.memcached.request import Request
from gateway.topology.memcached_servers import PrimaryServer

if TYPE_CHECKING:
    from gateway.sessions.memcached import MemcachedService

END: Final = b"END\r\n"

# What does not add up over servers, from doc/protocol.txt: how the pool's value comes from the servers'.
_SMALLEST: Final = frozenset({b"uptime", b"accepting_conns"})
_LARGEST: Final = frozenset({b"time", b"hash_power_level", b"hash_is_expanding", b"pointer_size"})
_FIRST: Final = frozenset({b"pid", b"version", b"libevent"})
_POOL_STATS: Final = frozenset({b"", b"items", b"slabs", b"settings"})


async def answer_locally(service: MemcachedService, request: Request) -> bytes:
    """The whole answer to a local or management verb."""
    if request.verb == b"version":
        return _version(service)
    if request.verb == b"stats":
        return await _stats(service, request.arguments)
    verb = request.verb.decode("latin-1")
    return f"SERVER_ERROR {verb} is not allowed through this gateway: ask the server itself\r\n".encode()


def _version(service: MemcachedService) -> bytes:
    for server in service.topology.primary:
        if server.link.greeting is not None:
            return f"VERSION {server.link.greeting.version}\r\n".encode()
    return b"SERVER_ERROR no server of the primary pool was reached yet\r\n"


async def _stats(service: MemcachedService, arguments: tuple[bytes, ...]) -> bytes:
    what = arguments[0] if arguments else b""
    if len(arguments) <= 1:
        if what in _POOL_STATS:
            return await _pool_stats(service, what)
        status = service.topology.status()
        if what == b"gateway":
            own = {key: value for key, value in status.items() if key not in ("primary", "replicas")}
            return _lines(_flat({**service.figures(), **own}))
        if what == b"members":
            return _lines(_flat(_members(status)))
        if what == b"ledger":
            ledgers = {
                f"{server.pool}:{server.name}": server.follower.ledger.status() for server in service.topology.replicas
            }
            return _lines(_flat(ledgers))
    return b"CLIENT_ERROR use stats, stats items, slabs, settings, gateway, members or ledger\r\n"


def _members(status: dict[str, object]) -> dict[str, object]:
    """Pools and servers by name, without their ledgers."""
    found: dict[str, object] = {}
    primary, replicas = status["primary"], status["replicas"]
    assert isinstance(primary, dict)
    assert isinstance(replicas, list)
    for pool in (primary, *replicas):
        for server in pool["servers"]:
            shown = {key: value for key, value in server.items() if key not in ("server", "ledger")}
            found[f"{pool['pool']}:{server['server']}"] = shown
    return found


def _flat(tree: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Leaves of nested dictionaries, their names joined by colons."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            name = str(key).replace(" ", "_").replace(",", "")
            yield from _flat(value, f"{prefix}:{name}" if prefix else name)
    else:
        yield prefix, tree


def _lines(pairs: Iterator[tuple[str, object]]) -> bytes:
    return b"".join(f"STAT {name} {'-' if value is None else value}\r\n".encode() for name, value in pairs) + END


class _Part:
    """One server's statistics."""

    __slots__ = ("ended", "reply")

    writes = False

    def __init__(self) -> None:
        self.reply: Reply | None = None
        self.ended = trio.Event()

    def answered(self, reply: Reply) -> None:
        self.reply = reply
        self.ended.set()

    def lost(self, reason: str) -> None:
        self.ended.set()


async def _pool_stats(service: MemcachedService, what: bytes) -> bytes:
    servers: list[PrimaryServer] = [server for server in service.topology.primary if server.connection is not None]
    if not servers:
        return b"SERVER_ERROR no server of the primary pool is reachable\r\n"
    parts = [_Part() for _ in servers]
    question = Request(b"stats", (), b"stats" + (b" " + what if what else b"") + b"\r\n")

    def send() -> None:
        for server, part in zip(servers, parts, strict=True):
            if server.connection is not None:
                server.connection.send(question, part)
            else:
                part.lost("not connected")

    service.lane.batch(send)
    for part in parts:
        await part.ended.wait()
    answers = [part.reply.stats() for part in parts if part.reply is not None and part.reply.code is Code.STATS]
    total: dict[bytes, bytes] = {}
    for answer in answers[:1] if what == b"settings" else answers:
        for name, value in answer.items():
            total[name] = add_up(name, total[name], value) if name in total else value
    return b"".join(b"STAT %b %b\r\n" % pair for pair in total.items()) + END


def add_up(name: bytes, one: bytes, other: bytes) -> bytes:
    """The value of a statistic for two servers together."""
    if name in _FIRST:
        return one
    try:
        if name in _SMALLEST:
            return b"%d" % min(int(one), int(other))
        if name in _LARGEST:
            return b"%d" % max(int(one), int(other))
        if b"." in one or b"." in other:
            return b"%.6f" % (float(one) + float(other))
        return b"%d" % (int(one) + int(other))
    except ValueError:
        return one
