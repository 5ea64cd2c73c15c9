"""More of what is fuzzed (see fuzz_targets): log-ins, commands, compression, PROXY headers, memcached both ways.

However the bytes are cut, the same comes out; nothing but an error of the protocol is raised; what goes out comes back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Final

from known_users import KnownUsers

from gateway.errors import ProtocolError
from gateway.net.proxy_protocol import SIGNATURE, ProxyHeader, ProxyReader
from gateway.protocol.memcached.decoder import RequestDecoder
from gateway.protocol.memcached.reply_decoder import ReplyDecoder
from gateway.protocol.memcached.request import Request
from gateway.protocol.mysql.attributes import AttributedReader, as_expected, as_sent, read_execution
from gateway.protocol.mysql.auth import PasswordKey
from gateway.protocol.mysql.commands import statement_id_of
from gateway.protocol.mysql.compression import PIECE_BYTES, CompressionLayer
from gateway.protocol.mysql.constants import CACHING_SHA2_PASSWORD, Capability
from gateway.protocol.mysql.greeting import HandshakeResponse
from gateway.protocol.mysql.handshake import LoggedIn
from gateway.protocol.mysql.packets import PacketError, packet, payload_of
from gateway.protocol.mysql.statements import bound_types, fits_types, merged_types, with_types

CAPABILITIES: Final = int(
    Capability.PROTOCOL_41
    | Capability.SECURE_CONNECTION
    | Capability.PLUGIN_AUTH
    | Capability.PLUGIN_AUTH_LENENC_CLIENT_DATA
    | Capability.CONNECT_WITH_DB
    | Capability.CONNECT_ATTRS
)
ALGORITHMS: Final = (int(Capability.COMPRESS), int(Capability.ZSTD_COMPRESSION_ALGORITHM))
HELD_LIMIT: Final = 1 << 20  # bytes that one compressed packet may hold
NONCE: Final = b"abcdefghijklmnopqrst"
KEY: Final = PasswordKey.generate()


def pieces(data: bytes, seed: int) -> list[bytes]:
    """The data cut into pieces of varying small lengths."""
    found = []
    at = 0
    while at < len(data):
        seed = (seed * 1_103_515_245 + 12_345) & 0x7FFFFFFF
        length = 1 + (seed >> 16) % 7
        found.append(data[at : at + length])
        at += length
    return found


def server_handshake(data: bytes) -> None:
    """What a client may say before it is let in: whoever does not know the password never is."""
    for parts in ([data], pieces(data, 1)):
        role = KnownUsers(
            {"app": "secret"},
            connection_id=1,
            server_version="9.7.0",
            capabilities=CAPABILITIES,
            host="192.0.2.1",
            key=KEY,
            nonce=NONCE,
        )
        events = [event for part in parts for event in role.feed(part)]
        assert not any(isinstance(event, LoggedIn) for event in events)
    for capabilities in (0, CAPABILITIES):
        with contextlib.suppress(PacketError):
            HandshakeResponse.parse_change_user(data, capabilities)


def attributes(data: bytes) -> None:
    """Commands of a client that has agreed on query attributes: the statement is found, and the command is kept."""

    def read(parts: Iterable[bytes]) -> list[bytes] | None:
        reader = AttributedReader(limit=1 << 20)
        try:
            return [message for part in parts for message in reader.feed(part)]
        except PacketError:
            return None

    whole = read([data])
    chunked = read(pieces(data, 1))
    assert whole == chunked or whole is None or chunked is None
    for message in whole or ():
        assert as_sent(message) in data
        assert as_expected(message)
    if data:
        for with_attributes in (False, True):
            with contextlib.suppress(PacketError):
                read_execution(data, data[0] % 20, with_attributes=with_attributes)


def statements(data: bytes) -> None:
    """COM_STMT_EXECUTE: types that are put in are found again."""
    if not data:
        return
    parameters = data[0] % 20
    raw = packet(0, b"\x17" + data[1:])
    for attributed in (False, True):
        with contextlib.suppress(PacketError):
            statement_id_of(raw)
            told = bound_types(raw, parameters, attributed=attributed)
            types = b"\xfd\0" * parameters
            if parameters and told is None:
                assert bound_types(with_types(raw, parameters, types, attributed=attributed), parameters,
                                   attributed=attributed) == types  # fmt: skip
            elif told is not None and len(told) == len(types):
                assert fits_types(told, merged_types(told, told))


def compression(data: bytes) -> None:
    """From the wire: bounded, and the same however it is cut. To the wire: what went in comes out."""
    if len(data) < 2:
        return
    algorithm, body = ALGORITHMS[data[0] & 1], data[1:]

    def unpack(parts: Iterable[bytes], *, towards_server: bool) -> bytes | None:
        layer = CompressionLayer(algorithm, towards_server=towards_server, limit=HELD_LIMIT)
        plain = b""
        try:
            for part in parts:
                got = layer.inbound(part)
                while got or layer.holding:
                    assert len(got) <= PIECE_BYTES + 1
                    plain += got
                    assert len(plain) <= HELD_LIMIT * len(body)
                    before, got = layer.holding, layer.inbound(b"")
                    assert got or not before or not layer.holding
        except PacketError:
            return None
        return plain

    whole, chunked = unpack([body], towards_server=False), unpack(pieces(body, 1), towards_server=False)
    assert whole == chunked
    for towards_server, plain in ((False, body), (True, packet(0, body) + packet(1, body * 9))):
        out = CompressionLayer(algorithm, towards_server=towards_server, limit=HELD_LIMIT)
        wire = [out.outbound(part) for part in (plain[: len(plain) // 2], plain[len(plain) // 2 :])]
        assert unpack(wire, towards_server=not towards_server) == plain


def proxy(data: bytes) -> None:
    """A PROXY header is found, or refused, however it arrives."""

    def read(parts: list[bytes]) -> tuple[str | None, bytes] | str | None:
        reader = ProxyReader()
        try:
            for number, part in enumerate(parts):
                header: ProxyHeader | None = reader.feed(part)
                if header is not None:
                    return header.source, header.leftover + b"".join(parts[number + 1 :])
        except ProtocolError:
            return "refused"
        return None

    assert read([data]) == read(pieces(data, 1))


def memcached_requests(data: bytes) -> None:
    """A client's bytes: the same requests however they are cut, and what goes on to a server is read as was meant."""

    def read(parts: list[bytes]) -> tuple[list[object], bool, int]:
        decoder = RequestDecoder(value_limit=1024)
        found: list[object] = [message for part in parts for message in decoder.decode(part)]
        return found, decoder.closed, decoder.buffered

    whole = read([data])
    chunked = read(pieces(data, 1))
    assert whole[:2] == chunked[:2]
    assert whole[2] <= len(data) + 64
    for message in whole[0]:
        if isinstance(message, Request) and message.verb != b"flush_all":
            again = RequestDecoder(value_limit=1024).decode(message.raw)
            assert len(again) == 1
            assert isinstance(again[0], Request)
            assert (again[0].verb, again[0].keys, again[0].raw) == (message.verb, message.keys, message.raw)


def memcached_replies(data: bytes) -> None:
    """A server's bytes, held against what was asked: `questions NUL replies`."""
    asked, _, answers = data.partition(b"\0")
    requests = [message for message in RequestDecoder(value_limit=1024).decode(asked) if isinstance(message, Request)]

    def read(parts: list[bytes]) -> list[object] | None:
        decoder = ReplyDecoder()
        decoder.expected.extend(requests)
        try:
            found: list[object] = [reply for part in parts for reply in decoder.decode(part)]
        except ProtocolError:
            return None
        assert decoder.buffered <= len(answers)
        return found

    whole, chunked = read([answers]), read(pieces(answers, 1))
    assert whole == chunked


PEER_TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "server_handshake": server_handshake,
    "attributes": attributes,
    "statements": statements,
    "compression": compression,
    "proxy": proxy,
    "memcached_requests": memcached_requests,
    "memcached_replies": memcached_replies,
}

_RESPONSE: Final = HandshakeResponse(
    "app", b"x" * 32, CAPABILITIES, "shop", CACHING_SHA2_PASSWORD, attributes={"a": "b"}
).encode()
_ZLIB: Final = CompressionLayer(ALGORITHMS[0], towards_server=False).outbound(b"\x01" * 200)
_ZSTD: Final = CompressionLayer(ALGORITHMS[1], towards_server=False).outbound(b"\x01" * 200)
_ATTRIBUTED: Final = packet(0, b"\x03\x02\x01\x00\x01\xfe\0\x01a\x08\0\x01b\x03xyz" + bytes(8) + b"SELECT 1")
_EXECUTE: Final = b"\x01\0\0\0\0\x01\0\0\0\0\x01\x03\0\x05\0\0\0"
PEER_SAMPLES: Final[dict[str, list[bytes]]] = {
    "server_handshake": [packet(1, _RESPONSE), packet(1, _RESPONSE) + packet(3, b"\x02") + packet(5, b"x" * 20)],
    "attributes": [packet(0, b"\x03\0\x01SELECT 1"), _ATTRIBUTED, payload_of(_ATTRIBUTED), b"\x17" + _EXECUTE],
    "statements": [b"\x01" + _EXECUTE, b"\x02\x01\0\0\0\0\x01\0\0\0\x02\0\x01\x03\0\0\xfd\0\0"],
    "compression": [b"\0" + _ZLIB, b"\x01" + _ZSTD, b"\0" + b"\x03\0\0\0\0\0\0abc" + _ZLIB],
    "proxy": [
        SIGNATURE + b"\x21\x11\0\x0c\x01\x02\x03\x04\x05\x06\x07\x08\0\x50\x1f\x90rest",
        SIGNATURE + b"\x21\x11\0\x13\x01\x02\x03\x04\x05\x06\x07\x08\0\x50\x1f\x90\x03\0\x04abcd",
        SIGNATURE + b"\x20\0\0\0",
    ],
    "memcached_requests": [
        b"get a\r\nset b 0 0 3 noreply\r\nabc\r\ngets a b c\r\ngat 5 a\r\n",
        b"incr a 5\r\ncas a 1 2 3 4\r\nxyz\r\ntouch a 1\r\nflush_all 5 noreply\r\nstats\r\nmg a v\r\nquit\r\n",
        b"set big 0 0 5000\r\n" + b"x" * 5000 + b"\r\nset a 0 0 1\r\nxx\r\ndelete a 0\r\n",
        b"\x80\0" + bytes(30),
    ],
    "memcached_replies": [
        b"get a\r\nset b 0 0 1\r\nx\r\ngets a b\r\nincr a 1\r\n\0VALUE a 0 3\r\nabc\r\nEND\r\nSTORED\r\n"
        b"VALUE b 1 2 99\r\nxy\r\nEND\r\n17\r\n",
        b"stats\r\nversion\r\ndelete a\r\n\0STAT pid 1\r\nSTAT b c\r\nEND\r\nVERSION 1.6\r\nNOT_FOUND\r\n",
        b"get a\r\ntouch a 1\r\n\0END\r\nSERVER_ERROR out of memory\r\n",
    ],
}
