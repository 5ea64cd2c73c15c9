"""The decoder sees what real memcacheds see: the same streams to both, the same answers and the same framing."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest

from gateway.demo.servers import MemcachedServer
from gateway.demo.stack import Stack
from gateway.protocol.memcached import encoder
from gateway.protocol.memcached.decoder import RequestDecoder
from gateway.protocol.memcached.reply import Code, Reply
from gateway.protocol.memcached.reply_decoder import ReplyDecoder
from gateway.protocol.memcached.request import Rejected, Request

pytestmark = pytest.mark.servers

VERSIONS = ["debian", "newest"]


class Connection:
    """A blocking connection; `raw` sends bytes and reads up to a fence, `ask` sends requests and decodes replies."""

    def __init__(self, server: MemcachedServer) -> None:
        self.socket = socket.create_connection((server.host, server.port), timeout=20.0)
        self.decoder = ReplyDecoder()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def raw(self, data: bytes) -> bytes:
        """All that the server answers to it, or what it said before it closed."""
        endless = len(data) > 2048 and b"\n" not in data
        self.socket.sendall(data if endless else data + b"version\r\n")
        got = b""
        while not (b"VERSION " in got and got.endswith(b"\r\n")):
            chunk = self.socket.recv(65_536)
            if not chunk:
                return got + b"<closed>"
            got += chunk
        return got[: got.rindex(b"VERSION ")]

    def ask(self, *requests: Request) -> list[Reply]:
        self.decoder.expected.extend(requests)
        self.socket.sendall(b"".join(request.raw for request in requests))
        found: list[Reply] = []
        while self.decoder.expected:
            found += self.decoder.decode(self.socket.recv(65_536))
        return found


@pytest.fixture(scope="module", params=VERSIONS)
def server(session_stack: Stack, request: pytest.FixtureRequest) -> Iterator[MemcachedServer]:
    server = MemcachedServer(session_stack, version=request.param)
    server.start()
    yield server
    server.kill()


def through(data: bytes, server: MemcachedServer) -> bytes:
    """What a client would be told if a gateway forwarded each request to the server and waited for its reply."""
    told = b""
    with Connection(server) as connection:
        for message in RequestDecoder().decode(data):
            if isinstance(message, Rejected):
                told += message.answer
                if message.delete is not None:
                    connection.ask(encoder.delete(message.delete))
                if message.close:
                    told += b"<closed>"
            else:
                (reply,) = connection.ask(message)
                told += b"" if message.noreply else reply.raw
    return told


V = b"x" * 1_200_000
SAME_ON_BOTH = [
    b"set k 1 0 3\r\nabc\r\nget k\r\n",
    b"set k 1 0 3 noreply\r\nabc\r\nget k\r\n",
    b"add k 0 0 1\r\nx\r\nadd k 0 0 1 noreply\r\nx\r\nreplace no 0 0 1\r\nx\r\nreplace no 0 0 1 noreply\r\nx\r\n",
    b"set k 0 0 1\r\nb\r\nappend k 0 0 1\r\nc\r\nprepend k 5 5 1\r\na\r\nappend no 0 0 1 noreply\r\nx\r\nget k\r\n",
    b"set n 0 0 2\r\n10\r\nincr n 5\r\ndecr n 100\r\nincr n 1 noreply\r\nget n\r\nincr no 1\r\n",
    b"set k 0 0 1\r\nx\r\nincr k 1\r\nincr k 1 noreply\r\n",
    b"set k 0 0 1\r\nx\r\ntouch k 10\r\ntouch no 10\r\ntouch k 0 noreply\r\ngat 0 k no\r\n",
    b"cas no 0 0 1 5\r\nx\r\ncas no 0 0 1 5 noreply\r\nx\r\n",
    b"delete no\r\ndelete no noreply\r\nset k 0 0 0\r\n\r\ndelete k\r\nget k\r\n",
    b"set k 0 -1 1\r\nx\r\nget k\r\n",
    b"get a b c\r\nget  a  b\r\n",
    b"flush_all\r\nflush_all noreply\r\nflush_all x\r\nverbosity 0\r\nverbosity x\r\nverbosity 0 noreply\r\n",
    b"incr k x\r\nincr k x noreply\r\ntouch k x\r\ntouch k x noreply\r\n",
    b"incr k -1\r\nincr k 18446744073709551616\r\ngat x k\r\n",
    b"set k 0 0 -1\r\nGET k\r\nbogus\r\n",
    b"set k +1 +9 1\r\nx\r\nget k\r\n",
    b"set k 0 0 1 word\r\nx\r\ntouch k 0 word\r\nget k\r\n",
    b"set " + b"k" * 250 + b" 0 0 1\r\nx\r\nget " + b"k" * 250 + b"\r\n",
    b"set k 0 0 1\r\nx\r\nset k 0 0 1200000\r\n" + V + b"\r\nget k\r\n",
    b"set k 0 0 1\r\nx\r\nset k 0 0 1200000 noreply\r\n" + V + b"\r\nget k\r\n",
    b"set k 0 0 1\r\nx\r\nadd k 0 0 1200000\r\n" + V + b"\r\nget k\r\n",
    b"set k 0 0 1\r\nx\r\nreplace k 0 0 1200000\r\n" + V + b"\r\nget k\r\n",
    b"set k 0 0 1\r\nx\r\nappend k 0 0 1200000\r\n" + V + b"\r\nget k\r\n",
    b"set k 0 0 1\r\nx\r\ncas k 0 0 1200000 1\r\n" + V + b"\r\nget k\r\n",
    b"x" * 3000,
    b" " * 3000,
    b"GET / HTTP/1.1\r\n",
]


@pytest.mark.parametrize("data", SAME_ON_BOTH, ids=lambda data: data[:30].decode())
def test_a_client_is_told_what_the_server_would_tell_it(server: MemcachedServer, data: bytes) -> None:
    with Connection(server) as direct:
        direct.ask(encoder.FLUSH_ALL)
        expected = direct.raw(data)
        if not expected.endswith(b"<closed>"):
            direct.ask(encoder.FLUSH_ALL)
    told = through(data, server)
    # A server closes without a word where the line has no end; the gateway says why first.
    assert told.removeprefix(b"CLIENT_ERROR line too long\r\n") == expected


# The two versions differ here; the gateway answers as one of them, and swallows a value whose size it understood.
DIFFERENT = [
    (b"set k x 0 1\r\nx\r\n", "newest"),
    (b"set " + b"k" * 251 + b" 0 0 2\r\nmn\r\n", "newest"),
    (b"get " + b"k" * 251 + b"\r\n", "debian"),  # 1.6.45 sends an empty line after the error
    (b"get\r\n", "debian"),
    (b"get \r\n", "debian"),
    (b"gat 0\r\n", "newest"),
    (b"set k 0 0\r\n", "debian"),
    (b"verbosity\r\n", "debian"),
    (b"\r\n", "debian"),
    (b"\n", "debian"),
    (b"delete k 5\r\n", "debian"),
    (b"  get k\r\n", "debian"),
    (b"set k 0 0 3\r\nabcdef\r\n", "debian"),
    (b"set k 0 0 3 noreply\r\nabcde", "debian"),
    (b"set k 0 0 noreply\r\n", "debian"),
    (b"mn\n", "debian"),
    (b"set k 0 0 +1\r\n", "newest"),
    (b"bogus noreply\r\n", "debian"),
]


@pytest.mark.parametrize(("data", "version"), DIFFERENT, ids=lambda part: repr(part)[:30])
def test_where_versions_differ_the_gateway_is_like_one(stack: Stack, data: bytes, version: str) -> None:
    server = MemcachedServer(stack, version="newest" if version == "newest" else "debian")
    server.start()
    with Connection(server) as direct:
        expected = direct.raw(data)
    assert through(data, server) == expected


def test_random_streams_of_good_and_bad_lines_are_told_the_same(server: MemcachedServer) -> None:
    draw = random.Random(20)
    parts = [data for data in SAME_ON_BOTH if len(data) < 1000 and b"HTTP" not in data]
    for _ in range(60):
        data = b"".join(draw.choices(parts, k=6))
        with Connection(server) as direct:
            direct.ask(encoder.FLUSH_ALL)
            expected = direct.raw(data)
            direct.ask(encoder.FLUSH_ALL)
        assert through(data, server) == expected


def test_requests_of_the_gateways_own(server: MemcachedServer) -> None:
    with Connection(server) as connection:
        stored, fetched, missed = connection.ask(
            encoder.meta_store(b"k", b"abc", 7, 100, return_cas=True), encoder.meta_get(b"k"), encoder.meta_get(b"no")
        )
        assert (stored.code, fetched.code, missed.code) == (Code.HD, Code.VA, Code.EN)
        flags = fetched.meta_flags()
        cas = int(flags[b"c"])
        assert stored.meta_flags() == {b"c": flags[b"c"]}
        assert (fetched.meta_value, flags[b"f"], flags[b"t"] in (b"100", b"99")) == (b"abc", b"7", True)
        codes = [
            reply.code
            for reply in connection.ask(
                encoder.meta_store(b"k", b"d", 0, 0, mode=b"A", compare=cas + 1),
                encoder.meta_store(b"k", b"d", 0, 0, mode=b"A", compare=cas),
                encoder.meta_store(b"no", b"d", 0, 0, mode=b"A"),
                encoder.meta_store(b"no", b"d", 0, 0, compare=5),
                encoder.meta_store(b"k", b"d", 0, 0, mode=b"E"),
                encoder.meta_touch(b"k", 50),
                encoder.meta_touch(b"no", 50),
                encoder.meta_delete(b"k", compare=1),
                encoder.meta_delete(b"k"),
                encoder.meta_delete(b"k"),
                encoder.store(b"n", b"10", 0, 0),
                encoder.meta_arithmetic(b"n", 5),
                encoder.meta_arithmetic(b"n", 1, decrement=True),
                encoder.meta_arithmetic(b"no", 1),
                encoder.touch(b"n", 10),
                encoder.get_and_touch([b"n", b"no"], 10),
                encoder.get([b"no", b"n"], b"gets"),
                encoder.delete(b"n"),
                encoder.STATS,
                encoder.VERSION,
                encoder.NO_OP,
            )
        ]
    assert codes == [
        *(Code.EX, Code.HD, Code.NS, Code.NF, Code.NS),
        *(Code.HD, Code.EN, Code.EX, Code.HD, Code.NF),
        *(Code.STORED, Code.VA, Code.VA, Code.NF, Code.TOUCHED, Code.VALUES, Code.VALUES, Code.DELETED),
        *(Code.STATS, Code.VERSION, Code.MN),
    ]


def test_a_cas_of_the_gateways_own_needs_a_newer_server(stack: Stack) -> None:
    answers = []
    for version in ("debian", "newest"):
        server = MemcachedServer(stack, version="newest" if version == "newest" else "debian")
        server.start()
        with Connection(server) as connection:
            answers.append(connection.ask(encoder.meta_store(b"k", b"v", 0, 0, cas=77, return_cas=True))[0].raw)
    assert answers == [b"CLIENT_ERROR invalid flag\r\n", b"HD c77\r\n"]
