"""Query attributes: where they end, and that what remains is the command."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.protocol.mysql.attributes import (
    PARAMETER_COUNT_AVAILABLE,
    AttributedReader,
    Parameter,
    as_expected,
    as_sent,
    end_of_attributes,
    read_execution,
    skip_values,
    with_no_attributes,
    without_attributes,
)
from gateway.protocol.mysql.commands import PING, argument_of, query
from gateway.protocol.mysql.packets import PacketError, lenenc_bytes, lenenc_int, packet

# (type number, its value in the binary format); None: NULL
VALUES = st.one_of(
    st.tuples(st.just(0x08), st.binary(min_size=8, max_size=8)),
    st.tuples(st.just(0x01), st.binary(min_size=1, max_size=1)),
    st.tuples(st.just(0x02), st.binary(min_size=2, max_size=2)),
    st.tuples(st.just(0x05), st.binary(min_size=8, max_size=8)),
    st.tuples(st.sampled_from([0xFD, 0xFE, 0xFC, 0x0F, 0xF6, 0xF5]), st.binary(max_size=300).map(lenenc_bytes)),
    st.tuples(
        st.sampled_from([0x0A, 0x0C, 0x07, 0x0B]),
        st.sampled_from([0, 4, 7, 8, 11, 12]).flatmap(
            lambda size: st.binary(min_size=size, max_size=size).map(lambda value: bytes((len(value),)) + value)
        ),
    ),
    st.tuples(st.sampled_from([0x06, 0x08, 0xFD]), st.none()),
)
ATTRIBUTES = st.lists(st.tuples(st.binary(max_size=20), VALUES), max_size=20)


def encoded(attributes: list[tuple[bytes, tuple[int, bytes | None]]]) -> bytes:
    """Nulls, bind flag, types with names, values."""
    nulls = bytearray((len(attributes) + 7) // 8)
    for number, (_, (_, value)) in enumerate(attributes):
        if value is None:
            nulls[number >> 3] |= 1 << (number & 7)
    types = b"".join(bytes((kind, 0)) + lenenc_bytes(name) for name, (kind, _) in attributes)
    return bytes(nulls) + b"\x01" + types + b"".join(value or b"" for _, (_, value) in attributes)


def command(attributes: list[tuple[bytes, tuple[int, bytes | None]]], statement: bytes) -> bytes:
    head = lenenc_int(len(attributes)) + b"\x01"
    return packet(0, b"\x03" + head + (encoded(attributes) if attributes else b"") + statement)


@given(ATTRIBUTES, st.binary(max_size=100))
@example([], b"SELECT 1")
def test_the_statement_stands_behind_the_attributes(
    attributes: list[tuple[bytes, tuple[int, bytes | None]]], statement: bytes
) -> None:
    raw = command(attributes, statement)
    plain = without_attributes(raw)
    assert plain == query(statement)
    assert argument_of(plain) == statement
    assert as_sent(plain) == raw
    assert as_expected(plain) == raw
    assert AttributedReader(limit=1 << 20).feed(raw + raw) == [plain, plain]


@given(ATTRIBUTES.filter(bool), st.data())
def test_cut_attributes_are_malformed(
    attributes: list[tuple[bytes, tuple[int, bytes | None]]], data: st.DataObject
) -> None:
    raw = command(attributes, b"")
    size = data.draw(st.integers(6, len(raw) - 1))
    with pytest.raises(PacketError):
        without_attributes(packet(0, raw[4:size]))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_statement_or_malformed(rest: bytes) -> None:
    try:
        plain = without_attributes(packet(0, b"\x03" + rest))
    except PacketError:
        return
    assert rest.endswith(argument_of(plain))


@pytest.mark.parametrize(
    "payload",
    [
        b"\x03",
        b"\x03\x00",
        b"\x03\x00\x02SELECT 1",  # two sets
        b"\x03\x01\x01\x00\x00\x08\x00\x01a" + bytes(8),  # types are not announced
        b"\x03\xfe" + b"\xff" * 8 + b"\x01",
        b"\x03\xfd\xff\xff\xff\x01" + bytes(100),
        b"\x03\x01\x01\x00\x01\xfd\x00\x00\xfe" + b"\xff" * 8,
        b"\x03\x01\x01\x00\x01\x0c\x00\x00\x05" + bytes(5),
    ],
)
def test_what_no_client_sends_is_malformed(payload: bytes) -> None:
    with pytest.raises(PacketError):
        without_attributes(packet(0, payload))


def test_other_commands_and_own_ones_have_none() -> None:
    assert without_attributes(PING) is PING
    assert as_expected(PING) is PING
    assert with_no_attributes(query("SET @a = 1")) == packet(0, b"\x03\x00\x01SET @a = 1")
    assert argument_of(without_attributes(with_no_attributes(query("SELECT 1")))) == b"SELECT 1"
    assert as_expected(query("SELECT 1")) == with_no_attributes(query("SELECT 1"))


@pytest.mark.parametrize("size", [0xFFFFFF - 4, 0xFFFFFF - 3, 0xFFFFFF - 2, 0xFFFFFF - 1, 0xFFFFFF])
def test_statements_around_16_mib_lose_nothing(size: int) -> None:
    statement = b"x" * size
    raw = with_no_attributes(query(statement))
    plain = without_attributes(raw)
    assert plain == query(statement)
    assert as_expected(plain) == raw


@given(ATTRIBUTES, st.integers(0, 3), st.booleans())
def test_the_parameters_of_an_execution_are_read(
    attributes: list[tuple[bytes, tuple[int, bytes | None]]], own: int, anew: bool
) -> None:
    own = min(own, len(attributes))
    fixed = b"\x17\x01\0\0\0" + bytes((PARAMETER_COUNT_AVAILABLE,)) + b"\x01\0\0\0"
    payload = fixed + lenenc_int(len(attributes)) + (encoded(attributes) if attributes else b"")
    found = read_execution(payload, own, with_attributes=True)
    assert found.total == len(attributes)
    if attributes:
        assert found.types == [Parameter(bytes((kind, 0)), name) for name, (kind, _) in attributes]
        assert skip_values(payload, found.values, found.types, found.nulls) == len(payload)


def test_an_execution_without_the_capability_has_no_count_and_no_names() -> None:
    payload = b"\x17\x01\0\0\0\0\x01\0\0\0" + b"\x02\x01\x08\0\x08\0" + bytes(8)
    found = read_execution(payload, 2, with_attributes=False)
    assert found.total == 2
    assert found.nulls == b"\x02"
    assert found.types == [Parameter(b"\x08\0", b"")] * 2
    assert skip_values(payload, found.values, found.types, found.nulls) == len(payload)
    again = read_execution(payload[:10] + b"\x02\0" + bytes(8), 2, with_attributes=False)
    assert again.types is None
    assert again.values == 12
    assert read_execution(payload[:10], 0, with_attributes=False).total == 0
    assert read_execution(payload[:10], 0, with_attributes=True).total == 0
    with pytest.raises(PacketError):
        read_execution(payload[:10] + b"\x01" + bytes(20), 2, with_attributes=True)


def test_end_of_attributes_is_an_offset_in_the_payload() -> None:
    assert end_of_attributes(b"\x03\x00\x01SELECT 1", 1) == 3
