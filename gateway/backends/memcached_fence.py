"""Makes sure that nothing which was written to a lost connection can still be carried out by its server.

A write whose connection was lost may lie in a kernel or in a relay, and be carried out after newer ones: closing by RST
throws away what this machine holds, not what others do. So nothing is written to a server until it no longer lists the
old connection in `stats conns`. What that takes:

- A connection is written to only after the server has answered on it: before that it may be in the server's accept
  queue, in no list, and its bytes with it.
- The address by which the server knows the connection is learned from the server, since a relay or NAT between shows
  another one than ours: of all connections, the one that runs `stats conns` is in the state conn_parse_cmd. Others may
  be in it at the same moment, so it is asked until one is left.
- Another process (pid and start time from `stats`) has no connection of the old one.
- After a partition the reset itself was lost, and a server that has nothing to send never learns of it: its side stays
  open until TCP keep-alive, after two hours by default. A SYN from the very same local address makes its kernel answer
  with a challenge ACK (RFC 5961, 4.2), to which our kernel, that knows nothing of it, answers with the reset that was
  lost. So while the old connection is listed, its local address knocks.
"""

from __future__ import annotations

import re
import socket
from typing import Final, NamedTuple

import trio

from gateway.errors import ProtocolError
from gateway.net.connect import Conversation
from gateway.protocol.memcached.encoder import STATS
from gateway.protocol.memcached.reply import Code, Reply
from gateway.protocol.memcached.reply_decoder import ReplyDecoder
from gateway.protocol.memcached.request import Request

STATS_CONNS: Final = Request(b"stats", (), b"stats conns\r\n", arguments=(b"conns",))
LEARNING_ROUNDS: Final = 20  # each leaves out who was busy by chance
POLL_SECONDS: Final = 0.05
POLL_SECONDS_MAX: Final = 0.5
KNOCK_AFTER_POLLS: Final = 3  # a live server closes a reset connection at once
KNOCK_SECONDS: Final = 0.2  # a knock is given up before TCP repeats its SYN after 1 s

_CONN: Final = re.compile(rb"STAT (\d+):(addr|state) (.*)")
_RUNNING: Final = b"conn_parse_cmd"


class Instance(NamedTuple):
    """One process of a server: both numbers from `stats`. Start time in Unix seconds of the server's own clock."""

    pid: int
    started: int


class Greeting(NamedTuple):
    """What a server said of itself when it was connected."""

    instance: Instance
    version: str
    items: int
    clock_offset: float  # the server's Unix time minus the gateway's monotonic time, seconds
    seen: bytes | None  # how the server knows this connection; None if that was not asked, or could not be learned


class Footprint(NamedTuple):
    """A lost connection whose bytes may still be on their way."""

    instance: Instance
    seen: bytes
    local: object  # the local socket address it had
    peer: object


class Enquiry:
    """Questions to a server on a connection that nobody else uses yet."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._decoder = ReplyDecoder()
        self._replies: list[Reply] = []

    async def ask(self, request: Request) -> Reply:
        """The answer. Raises OSError or ProtocolError; the caller bounds the time."""
        self._decoder.expected.append(request)
        self._conversation.write(request.raw)
        while not self._replies:
            chunk = await self._conversation.receive()
            if not chunk:
                raise ConnectionResetError("closed by the server")
            self._replies = self._decoder.decode(chunk)
        return self._replies.pop()

    async def greet(self, *, learn: bool) -> Greeting:
        """Which process it is and how it knows us (where `learn` asks for that)."""
        reply = await self.ask(STATS)
        if reply.code is not Code.STATS:
            raise ProtocolError(f"no memcached: `stats` is answered by {reply.line[:60]!r}")
        stats = reply.stats()
        try:
            now = int(stats[b"time"])
            instance = Instance(int(stats[b"pid"]), now - int(stats[b"uptime"]))
            items = int(stats[b"curr_items"])
        except (KeyError, ValueError):
            raise ProtocolError("no memcached: `stats` lacks pid, time, uptime or curr_items") from None
        version = stats.get(b"version", b"unknown").decode("latin-1")
        return Greeting(instance, version, items, now - trio.current_time(), await self.learn() if learn else None)

    async def learn(self) -> bytes | None:
        """How the server knows this connection; None if it cannot be told apart."""
        candidates: set[bytes] | None = None
        for _ in range(LEARNING_ROUNDS):
            running = {seen for seen, state in (await self.connections()).items() if state == _RUNNING}
            candidates = running if candidates is None else candidates & running
            if len(candidates) < 2:
                break
        return candidates.pop() if candidates and len(candidates) == 1 else None

    async def connections(self) -> dict[bytes, bytes]:
        """State of all connections that the server has, by address and descriptor: no two that are open have both
        the same, whatever lies between or is used again."""
        reply = await self.ask(STATS_CONNS)
        if reply.code is not Code.STATS:
            raise ProtocolError(f"`stats conns` is answered by {reply.line[:60]!r}")
        found: dict[bytes, dict[bytes, bytes]] = {}
        for line in reply.raw.split(b"\r\n"):
            match = _CONN.fullmatch(line)
            if match:
                found.setdefault(match[1], {})[match[2]] = match[3]
        return {
            b"%b fd %b" % (conn[b"addr"], fd): conn.get(b"state", b"") for fd, conn in found.items() if b"addr" in conn
        }

    async def wait_until_gone(self, footprints: list[Footprint], greeting: Greeting, patience: float) -> None:
        """Returns when the server has none of these connections any more. Raises TooSlowError when it is silent for
        `patience` seconds, OSError and ProtocolError; it may be asked again on another connection."""
        left = [
            footprint
            for footprint in footprints
            # Where this connection has an old one's address and descriptor, the server has closed the old one.
            if footprint.instance == greeting.instance and footprint.seen != greeting.seen
        ]
        polls = 0
        pause = POLL_SECONDS
        while left:
            with trio.fail_after(patience):
                listed = await self.connections()
            left = [footprint for footprint in left if footprint.seen in listed]
            if left:
                polls += 1
                if polls >= KNOCK_AFTER_POLLS:
                    for footprint in left:
                        await knock(footprint)
                await trio.sleep(pause)
                pause = min(pause * 2, POLL_SECONDS_MAX)


async def knock(footprint: Footprint) -> None:
    """Sends a SYN from a lost connection's own address, so that the server's kernel finds out that it is lost.

    It fails harmlessly: if the address is in use again or was not an internet address, or nothing answers.
    """
    if not isinstance(footprint.local, tuple):
        return
    family = socket.AF_INET6 if len(footprint.local) == 4 else socket.AF_INET
    with trio.socket.socket(family, socket.SOCK_STREAM) as sock, trio.move_on_after(KNOCK_SECONDS):
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            await sock.bind(footprint.local)
            await sock.connect(footprint.peer)
        except OSError:
            return
