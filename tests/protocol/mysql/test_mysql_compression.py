"""The compressed protocol: what goes in comes out, bombs do not go off, and what is malformed is said to be."""

from __future__ import annotations

import random
import sys
import time
import tracemalloc
import zlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.protocol.mysql.commands import PING, query
from gateway.protocol.mysql.compression import (
    COMPRESSED_HEADER,
    PIECE_BYTES,
    SMALLEST,
    CompressionLayer,
    algorithm_of,
    packets_ahead,
)
from gateway.protocol.mysql.constants import Capability, ErrorCode
from gateway.protocol.mysql.packets import PacketError, packet, packets_in

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ZLIB = int(Capability.COMPRESS)
ZSTD = int(Capability.ZSTD_COMPRESSION_ALGORITHM)
BOTH = pytest.mark.parametrize("algorithm", [ZLIB, ZSTD], ids=["zlib", "zstd"])
ALGORITHMS = st.sampled_from([ZLIB, ZSTD])


def layer(algorithm: int, *, towards_server: bool = False, limit: int = 0xFFFFFF) -> CompressionLayer:
    return CompressionLayer(algorithm, towards_server=towards_server, limit=limit)


def drained(one: CompressionLayer, wire: bytes) -> bytes:
    """All that `inbound` gives, asked again while it holds something."""
    found = [one.inbound(wire)]
    while one.holding:
        found.append(one.inbound(b""))
        assert len(found[-1]) <= PIECE_BYTES
    return b"".join(found)


def compressed(algorithm: int, data: bytes) -> bytes:
    return zlib.compress(data) if algorithm == ZLIB else zstd.compress(data)


def wire_packet(body: bytes, size: int, sequence: int = 0) -> bytes:
    return len(body).to_bytes(3, "little") + bytes((sequence,)) + size.to_bytes(3, "little") + body


def packets_of(wire: bytes) -> list[tuple[int, int, int]]:
    """(length, sequence id, length when decompressed) of each compressed packet."""
    found = []
    at = 0
    while at < len(wire):
        length = int.from_bytes(wire[at : at + 3], "little")
        found.append((length, wire[at + 3], int.from_bytes(wire[at + 4 : at + 7], "little")))
        at += COMPRESSED_HEADER + length
    assert at == len(wire)
    return found


@given(
    ALGORITHMS,
    st.booleans(),
    st.lists(st.one_of(st.binary(max_size=400), st.integers(0, 300_000).map(lambda size: b"ab" * size)), max_size=6),
    st.lists(st.integers(1, 200_000), min_size=1, max_size=8),
)
@settings(max_examples=80)
def test_what_goes_in_comes_out(algorithm: int, to_server: bool, payloads: list[bytes], cuts: list[int]) -> None:
    ours, theirs = layer(algorithm, towards_server=to_server), layer(algorithm, towards_server=not to_server)
    plain = b"".join(packet(number, payload) for number, payload in enumerate(payloads))
    wire = b""
    at = 0
    for cut in [*cuts, len(plain)]:  # as it was written: in any pieces
        wire += ours.outbound(plain[at : at + cut])
        at += cut
    packets_of(wire)
    found, at = b"", 0
    while at < len(wire):  # as it arrives: in any other
        size = cuts[at % len(cuts)]
        found += drained(theirs, wire[at : at + size])
        at += size
    assert found == plain


@BOTH
def test_small_packets_and_what_does_not_shrink_are_sent_as_they_are(algorithm: int) -> None:
    ours = layer(algorithm)
    assert ours.outbound(b"x" * (SMALLEST - 1)) == wire_packet(b"x" * (SMALLEST - 1), 0)
    noise = random.Random(1).randbytes(1000)
    assert layer(algorithm).outbound(noise) == wire_packet(noise, 0)
    [(length, _, size)] = packets_of(layer(algorithm).outbound(b"x" * 1000))
    assert length < 100
    assert size == 1000
    assert ours.outbound(b"") == b""


@BOTH
def test_replies_go_on_counting_where_the_command_ended(algorithm: int) -> None:
    ours = layer(algorithm)
    for sequence in range(3):
        drained(ours, wire_packet(b"part of a command", 0, sequence))
    reply = ours.outbound(b"z" * 300_000)
    assert [sequence for _, sequence, _ in packets_of(reply)] == [3, 4, 5]
    endless = ours.outbound(b"z" * (PIECE_BYTES * 300))
    assert all((second - first) % 256 == 1 for (_, first, _), (_, second, _) in pairwise(packets_of(endless)))


@BOTH
def test_every_packet_to_a_server_is_one_compressed_packet_with_its_number(algorithm: int) -> None:
    client = layer(algorithm, towards_server=True)
    commands = [query(b"SET NAMES utf8mb4"), PING, query(b"SELECT '" + b"y" * 100_000 + b"'"), packet(7, b"z" * 100)]
    wire = client.outbound(b"".join(commands))
    assert [sequence for _, sequence, _ in packets_of(wire)] == [0, 0, 0, 7]
    assert [size > 0 for _, _, size in packets_of(wire)] == [False, False, True, True]
    assert drained(layer(algorithm), wire) == b"".join(commands)


@BOTH
@pytest.mark.parametrize(
    ("size", "piece"),
    [
        (200_000, 100_003),
        ((16 << 20) - 10, PIECE_BYTES),
        (0xFFFFFF, PIECE_BYTES),
        ((17 << 20) + 5, 1 << 26),
        (0xFFFFFF * 2 + 9, PIECE_BYTES),
    ],
)
def test_a_long_command_passes_as_it_is_in_as_many_packets(algorithm: int, size: int, piece: int) -> None:
    client = layer(algorithm, towards_server=True)
    command = packet(0, b"\x03" + bytes(size - 1))
    wire = b"".join(client.outbound(command[at : at + piece]) for at in range(0, len(command), piece))
    wire += client.outbound(PING)
    sequences = [sequence for _, sequence, _ in packets_of(wire)]
    assert sequences == [*range(size // 0xFFFFFF + 1), 0]
    assert drained(layer(algorithm), wire) == command + PING


@BOTH
def test_a_last_packet_that_does_not_fit_needs_one_more(algorithm: int) -> None:
    client = layer(algorithm, towards_server=True)
    for size in (0xFFFFFF - 3, 0xFFFFFF - 1):
        command = packet(0, bytes(size))
        wire = client.outbound(command) + client.outbound(PING)
        assert [sequence for _, sequence, _ in packets_of(wire)] == [0, 1, 0]
        assert drained(layer(algorithm), wire) == command + PING


@BOTH
@pytest.mark.parametrize("size", [PIECE_BYTES - 4, PIECE_BYTES, 3_000_000, 0xFFFFFF - 4, 0xFFFFFF, 0xFFFFFF * 2 - 7])
def test_a_long_command_is_compressed_if_it_shrinks(algorithm: int, size: int) -> None:
    noise = random.Random(size).randbytes(size)
    for payload, shrinks in ((b"line of text\n" * (size // 13 + 1), True), (noise, False), (noise[:200_000], False)):
        client = layer(algorithm, towards_server=True)
        command = packet(0, payload[:size])
        wire = b"".join(
            client.outbound(command[at : at + PIECE_BYTES]) for at in range(0, len(command), PIECE_BYTES)
        ) + client.outbound(PING)
        assert (len(wire) < len(command) / 2) == shrinks
        assert len(wire) < len(command) + 100
        assert drained(layer(algorithm), wire) == command + PING
        ahead = packets_ahead(len(command))
        assert len(packets_of(wire)) == packets_in(command) + ahead + 1
        assert ahead == (len(command) == 2 * 0xFFFFFF + 1)


@BOTH
@given(st.lists(st.integers(0, 400_000), min_size=1, max_size=5), st.lists(st.integers(1, 200_000), min_size=1))
@settings(max_examples=30)
def test_packets_may_be_cut_anywhere(algorithm: int, sizes: list[int], cuts: list[int]) -> None:
    client, server = layer(algorithm, towards_server=True), layer(algorithm)
    plain = b"".join(packet(number, b"line\n" * (size // 5)) for number, size in enumerate(sizes))
    wire, at, turn = b"", 0, 0
    while at < len(plain):
        wire += client.outbound(plain[at : at + cuts[turn % len(cuts)]])
        at += cuts[turn % len(cuts)]
        turn += 1
    assert [sequence for _, sequence, _ in packets_of(wire)] == list(range(len(sizes)))
    assert drained(server, wire) == plain


# ---------------------------------------------------------------- what a peer may do to us


@BOTH
def test_a_bomb_is_taken_piece_by_piece(algorithm: int) -> None:
    zeros = bytes(0xFFFFFF)
    one = wire_packet(compressed(algorithm, zeros), len(zeros))
    assert len(one) < 20_000
    ours = layer(algorithm)
    tracemalloc.start()
    try:
        taken = len(ours.inbound(one * 20))  # 320 MiB when decompressed
        for _ in range(40):
            assert ours.holding
            began = time.perf_counter()
            taken += len(ours.inbound(b""))
            assert time.perf_counter() - began < 0.1
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert 41 * PIECE_BYTES >= taken > 30 * PIECE_BYTES


@BOTH
def test_a_flood_of_tiny_packets_is_taken_in_turns(algorithm: int) -> None:
    ours = layer(algorithm)
    wire = wire_packet(b"", 0) * 9000 + wire_packet(b"x", 0) * 9000
    assert len(ours.inbound(wire)) < 600
    assert ours.holding
    assert drained(ours, b"") == b"x" * 9000


@BOTH
@pytest.mark.parametrize("claimed", [1, 999, 1001, 0xFFFFFF])
def test_a_length_that_is_not_true_is_malformed(algorithm: int, claimed: int) -> None:
    with pytest.raises(PacketError) as caught:
        drained(layer(algorithm), wire_packet(compressed(algorithm, b"x" * 1000), claimed))
    assert (caught.value.code, caught.value.sqlstate) == (ErrorCode.UNCOMPRESS, "08S01")


@BOTH
@pytest.mark.parametrize("kind", ["cut", "trailing", "twice", "empty", "noise", "other"])
def test_what_cannot_be_decompressed_is_malformed(algorithm: int, kind: str) -> None:
    good = compressed(algorithm, bytes(range(256)) * 4)
    body = {
        "cut": good[:-5],
        "trailing": good + b"more",
        "twice": good + good,
        "empty": b"",
        "noise": b"noise" * 10,
        "other": compressed(ZLIB + ZSTD - algorithm, bytes(1024)),
    }[kind]
    with pytest.raises(PacketError) as caught:
        drained(layer(algorithm), wire_packet(body, 1024))
    assert caught.value.code == ErrorCode.UNCOMPRESS


@BOTH
def test_a_packet_over_the_limit_is_refused_by_its_header(algorithm: int) -> None:
    for wire in (wire_packet(b"", 1001)[:3] + b"\0" + (1001).to_bytes(3, "little"), b"\xff\xff\xff\0\0\0\0"):
        with pytest.raises(PacketError) as caught:
            layer(algorithm, limit=1000).inbound(wire)
        assert caught.value.code in (ErrorCode.PACKET_TOO_LARGE, ErrorCode.UNCOMPRESS)
    assert drained(layer(algorithm, limit=1000), wire_packet(b"x" * 1000, 0)) == b"x" * 1000


def test_a_zstd_frame_with_a_huge_window_is_malformed() -> None:
    options = {int(zstd.CompressionParameter.window_log): 27, int(zstd.CompressionParameter.content_size_flag): 0}
    compressor = zstd.ZstdCompressor(options=options)
    frame = compressor.compress(bytes(1000)) + compressor.flush()
    with pytest.raises(PacketError):
        drained(layer(ZSTD), wire_packet(frame, 1000))


@given(ALGORITHMS, st.binary(max_size=2000), st.data())
@settings(max_examples=150)
def test_mutations_are_decompressed_or_malformed(algorithm: int, plain: bytes, data: st.DataObject) -> None:
    wire = bytearray(layer(algorithm).outbound(plain * 3 + b"some text " * 20))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(wire) - 1))
        how = data.draw(st.integers(0, 2))
        if how == 0:
            wire[at] ^= 1 << data.draw(st.integers(0, 7))
        elif how == 1 and len(wire) > 10:
            del wire[at]
        else:
            wire.insert(at, data.draw(st.integers(0, 255)))
    ours = layer(algorithm)
    try:
        drained(ours, bytes(wire))
    except PacketError:
        return
    drained(ours, b"")


@given(ALGORITHMS, st.binary(max_size=300))
def test_any_bytes_are_packets_or_malformed(algorithm: int, wire: bytes) -> None:
    try:
        drained(layer(algorithm), wire)
    except PacketError:
        return


def test_zlib_goes_before_zstd() -> None:
    assert algorithm_of(ZLIB | ZSTD) == ZLIB
    assert algorithm_of(ZSTD | 1) == ZSTD
    assert algorithm_of(1) == 0
