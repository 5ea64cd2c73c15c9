"""Framing: what is encoded is read back, however it is chunked, and what is too large or out of order is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.mysql.constants import MAX_PAYLOAD
from gateway.protocol.mysql.packets import (
    PacketError,
    PacketReader,
    lenenc_bytes,
    lenenc_int,
    packet,
    packets_in,
    payload_of,
    read_lenenc_bytes,
    read_lenenc_int,
    read_nul_bytes,
)

LIMIT = 64 << 20


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(edges)]


@given(st.integers(0, 2**64 - 1), st.binary(max_size=5))
def test_an_integer_is_read_back_with_the_offset_behind_it(value: int, behind: bytes) -> None:
    encoded = lenenc_int(value)
    assert read_lenenc_int(b"?" + encoded + behind, 1) == (value, 1 + len(encoded))


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (250, "fa"),
        (251, "fcfb00"),
        (0xFFFF, "fcffff"),
        (0x10000, "fd000001"),
        (0xFFFFFF, "fdffffff"),
        (0x1000000, "fe0000000100000000"),
    ],
)
def test_an_integer_has_the_shortest_form(value: int, encoded: str) -> None:
    assert lenenc_int(value).hex() == encoded


@given(st.binary(max_size=70_000))
def test_a_string_is_read_back(value: bytes) -> None:
    encoded = lenenc_bytes(value)
    assert read_lenenc_bytes(encoded, 0) == (value, len(encoded))


@pytest.mark.parametrize("broken", [b"", b"\xfb", b"\xff", b"\xfc\x01", b"\xfe1234567", b"\x03ab"])
def test_a_string_that_is_cut_or_has_no_length_is_malformed(broken: bytes) -> None:
    with pytest.raises(PacketError):
        read_lenenc_bytes(broken, 0)


def test_a_string_without_its_nul_ends_with_the_packet() -> None:
    assert read_nul_bytes(b"ab\0cd", 0) == (b"ab", 3)
    assert read_nul_bytes(b"ab\0cd", 3) == (b"cd", 5)
    assert read_nul_bytes(b"ab", 2) == (b"", 2)


def test_a_whole_packet_comes_back_as_the_object_that_went_in() -> None:
    data = packet(0, b"\x03SELECT 1")
    assert PacketReader(limit=LIMIT).feed(data)[0] is data


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), st.lists(st.integers(0, 300), max_size=8))
def test_any_chunking_gives_the_same_messages(payloads: list[bytes], cuts: list[int]) -> None:
    messages = [packet(0, payload) for payload in payloads]
    reader = PacketReader(limit=LIMIT)
    read = [message for chunk in chunks(b"".join(messages), cuts) for message in reader.feed(chunk)]
    assert read == messages
    assert [payload_of(message) for message in read] == payloads
    assert reader.held == 0


@pytest.mark.parametrize("size", [MAX_PAYLOAD - 1, MAX_PAYLOAD, MAX_PAYLOAD + 1, 2 * MAX_PAYLOAD])
def test_a_large_message_is_split_and_put_together_again(size: int) -> None:
    payload = b"\x03" + bytes(size - 1)
    raw = packet(0, payload)
    assert packets_in(raw) == size // MAX_PAYLOAD + 1
    assert len(raw) == size + 4 * packets_in(raw)
    reader = PacketReader(limit=LIMIT)
    read = [m for at in range(0, len(raw), 1 << 20) for m in reader.feed(raw[at : at + (1 << 20)])]
    assert read == [raw]
    assert payload_of(read[0]) == payload
    assert reader.feed(packet(0, b"\x0e")) == [packet(0, b"\x0e")]


def test_a_message_over_the_limit_is_refused_by_its_header() -> None:
    reader = PacketReader(limit=1000)
    assert reader.feed(packet(0, bytes(1000))) == [packet(0, bytes(1000))]
    with pytest.raises(PacketError) as caught:
        reader.feed(packet(0, bytes(1001))[:4])
    assert (caught.value.code, caught.value.sqlstate) == (1153, "08S01")


def test_a_split_message_over_the_limit_is_refused() -> None:
    reader = PacketReader(limit=MAX_PAYLOAD + 10)
    reader.feed(packet(0, bytes(MAX_PAYLOAD))[:-4])
    with pytest.raises(PacketError, match="bigger"):
        reader.feed(b"\x0b\x00\x00\x01")


@pytest.mark.parametrize("raw", [packet(1, b"\x0e"), packet(255, b"\x03x")])
def test_a_command_that_does_not_begin_with_sequence_id_0_is_refused(raw: bytes) -> None:
    with pytest.raises(PacketError) as caught:
        PacketReader(limit=LIMIT).feed(raw)
    assert (caught.value.code, caught.value.sqlstate) == (1156, "08S01")


def test_a_continuation_out_of_order_is_refused() -> None:
    first, second = packet(0, bytes(MAX_PAYLOAD))[:-4], packet(2, b"x")
    reader = PacketReader(limit=LIMIT)
    assert reader.feed(first) == []
    with pytest.raises(PacketError, match="out of order"):
        reader.feed(second)


def test_an_empty_command_is_refused() -> None:
    with pytest.raises(PacketError):
        PacketReader(limit=LIMIT).feed(packet(0, b""))


def test_what_is_held_can_be_handed_to_another_reader() -> None:
    first, second = PacketReader(limit=LIMIT), PacketReader(limit=LIMIT)
    raw = packet(0, b"\x03SELECT 1")
    assert first.feed(raw[:7]) == []
    assert second.feed(first.take_held() + raw[7:]) == [raw]
    assert first.held == 0
