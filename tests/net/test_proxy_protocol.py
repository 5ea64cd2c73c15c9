"""Proves whose word is taken for whom: headers of every family, cut anywhere, and every way to get one wrong."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Iterator

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from gateway.net.connect import Conversation
from gateway.net.lane import Lane
from gateway.net.proxy_protocol import (
    LIMIT_BYTES,
    SIGNATURE,
    ProxyHeader,
    ProxyProtocol,
    ProxyProtocolError,
    ProxyReader,
    crc32c,
    is_proxy_header,
)


def header(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + bytes((0x20 | command, family)) + struct.pack(">H", len(body)) + body


V4 = socket.inet_aton("192.0.2.7") + socket.inet_aton("10.0.0.1") + struct.pack(">HH", 40_000, 3306)
V6 = socket.inet_pton(socket.AF_INET6, "2001:db8::7") + bytes(16) + struct.pack(">HH", 40_000, 3306)
MAPPED = socket.inet_pton(socket.AF_INET6, "::ffff:192.0.2.7") + bytes(16) + struct.pack(">HH", 40_000, 3306)
UNIX = b"/run/client.sock".ljust(108, b"\0") * 2


def extension(kind: int, value: bytes) -> bytes:
    return struct.pack(">BH", kind, len(value)) + value


def with_checksum(body: bytes, wrong: int = 0) -> bytes:
    whole = header(1, 0x11, body + extension(3, bytes(4)))
    return whole[:-4] + struct.pack(">I", crc32c(whole) ^ wrong)


@pytest.mark.parametrize(
    ("sent", "source"),
    [
        (header(1, 0x11, V4), "192.0.2.7"),
        (header(1, 0x21, V6), "2001:db8::7"),
        (header(1, 0x21, MAPPED), "192.0.2.7"),
        (header(1, 0x31, UNIX), ""),
        (
            header(1, 0x11, V4 + extension(2, b"db.example") + extension(0xEA, b"vpce-1") + extension(4, b"")),
            "192.0.2.7",
        ),
        (with_checksum(V4), "192.0.2.7"),
        (with_checksum(V4 + extension(5, b"unique")), "192.0.2.7"),
        (header(0, 0x00, b""), None),
        (header(0, 0x11, V4), None),
        (header(0, 0x00, b"whatever"), None),
        (header(1, 0x00, b""), None),
    ],
)
@pytest.mark.parametrize("cut", [1, 13, 10_000])
def test_a_header_names_its_client_and_leaves_what_follows(sent: bytes, source: str | None, cut: int) -> None:
    reader = ProxyReader()
    data = sent + b"MYSQL"
    for at in range(0, len(data), cut):
        found = reader.feed(data[at : at + cut])
        if found is not None:
            assert found.source == source
            assert sent + found.leftover == data[: at + cut]
            return
    raise AssertionError("never whole")


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"PROXY TCP4 192.0.2.7 10.0.0.1 40000 3306\r\n", "version 1"),
        (b"PROX", "version 1"),
        (b"\x20\0\0\1", "no PROXY protocol header"),
        (SIGNATURE[:-1] + b"X", "no PROXY protocol header"),
        (SIGNATURE + b"\x11\x11\0\x0c", "version 1, not 2"),
        (header(2, 0x11, V4), "unknown command 2"),
        (header(1, 0x12, V4), "no stream"),
        (header(1, 0x11, V4[:11]), "ends within its addresses"),
        (header(1, 0x11, V4 + b"\x01"), "ends within an extension"),
        (header(1, 0x11, V4 + b"\x01\0\x05abcd"), "ends within an extension"),
        (header(1, 0x11, V4 + extension(3, b"")), "checksum is wrong"),
        (with_checksum(V4, wrong=1), "checksum is wrong"),
        (SIGNATURE + b"\x21\x11" + struct.pack(">H", LIMIT_BYTES), "more than 4096"),
    ],
)
def test_a_wrong_header_is_refused_as_soon_as_it_is_seen(sent: bytes, words: str) -> None:
    with pytest.raises(ProxyProtocolError, match=words):
        ProxyReader().feed(sent)


def test_nothing_is_held_beyond_a_header() -> None:
    reader = ProxyReader()
    assert reader.feed(SIGNATURE + b"\x21\x11" + struct.pack(">H", LIMIT_BYTES - 16)) is None
    assert reader.feed(V4) is None
    found = reader.feed(bytes(LIMIT_BYTES))
    assert found is not None
    assert len(found.leftover) == 16 + len(V4)


@given(st.binary(max_size=300), st.integers(1, 50))
def test_any_bytes_give_a_header_or_the_error(data: bytes, cut: int) -> None:
    for start in (b"", SIGNATURE, SIGNATURE + b"\x21\x11"):
        reader = ProxyReader()
        try:
            for at in range(0, len(start + data), cut):
                found = reader.feed((start + data)[at : at + cut])
                assert found is None or isinstance(found, ProxyHeader)
                if found is not None:
                    break
        except ProxyProtocolError:
            continue


def test_the_checksum_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the catalogue of CRC algorithms
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


def test_a_mysql_client_is_not_taken_for_a_header() -> None:
    assert is_proxy_header(header(1, 0x11, V4))
    assert is_proxy_header(b"PROXY TCP4 ")
    assert not is_proxy_header(b"\x20\0\0\1")


@pytest.mark.parametrize(
    ("peer", "expected"),
    [("10.1.2.3", True), ("11.1.2.3", False), ("fd00::1", True), ("fe80::1%eth0", True), ("::1", False), ("", False)],
)
def test_headers_are_expected_of_the_networks_only(peer: str, expected: bool) -> None:
    networks = ProxyProtocol(["10.0.0.0/8", "fd00::/8", "fe80::/10"])
    assert networks.expected_of(peer) is expected
    assert not ProxyProtocol([]).expected_of(peer)


@pytest.fixture
async def lane(nursery: trio.Nursery) -> AsyncIterator[Lane]:
    lane = Lane()
    nursery.start_soon(lane.run)
    yield lane
    nursery.cancel_scope.cancel()


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, peer = socket.socketpair()
    with ours, peer:
        yield ours, peer


async def test_a_dialogue_goes_on_behind_the_header(lane: Lane, sockets: tuple[socket.socket, socket.socket]) -> None:
    conversation = Conversation(lane, sockets[0])
    sockets[1].sendall(header(1, 0x11, V4) + b"MY")
    await wait_all_tasks_blocked()
    assert await ProxyProtocol([]).client_behind(conversation, "127.0.0.1") == "192.0.2.7"
    sockets[1].sendall(b"SQL")
    await wait_all_tasks_blocked()
    assert await conversation.receive() == b"MYSQL"
    conversation.close()


async def test_a_balancer_that_speaks_for_itself_is_the_client(
    lane: Lane, sockets: tuple[socket.socket, socket.socket]
) -> None:
    conversation = Conversation(lane, sockets[0])
    sockets[1].sendall(header(0, 0, b""))
    assert await ProxyProtocol([]).client_behind(conversation, "127.0.0.1") == "127.0.0.1"
    conversation.close()


async def test_an_end_before_and_within_a_header(lane: Lane, sockets: tuple[socket.socket, socket.socket]) -> None:
    conversation = Conversation(lane, sockets[0])
    sockets[1].shutdown(socket.SHUT_WR)
    assert await ProxyProtocol([]).client_behind(conversation, "127.0.0.1") is None
    conversation.close()
    ours, peer = socket.socketpair()
    conversation = Conversation(lane, ours)
    with peer:
        peer.sendall(SIGNATURE)
        peer.shutdown(socket.SHUT_WR)
        with pytest.raises(ProxyProtocolError, match="ends early"):
            await ProxyProtocol([]).client_behind(conversation, "127.0.0.1")
    conversation.close()
