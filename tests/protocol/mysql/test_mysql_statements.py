"""COM_STMT_EXECUTE is rewritten exactly: ids exchanged, types found and put in, values left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.mysql.attributes import read_execution
from gateway.protocol.mysql.commands import statement_id_of
from gateway.protocol.mysql.packets import PacketError, packet, packets_in, payload_of
from gateway.protocol.mysql.statements import (
    bound_types,
    close_statement,
    fits_types,
    merged_types,
    prepare,
    with_statement_id,
    with_types,
)

TYPE = st.sampled_from([b"\x08\0", b"\x08\x80", b"\xfd\0", b"\x06\0", b"\x05\0"])


def execution(
    parameters: int, types: bytes | None, values: bytes, *, attributed: bool, names: tuple[bytes, ...] = ()
) -> bytes:
    """A COM_STMT_EXECUTE of statement 7; `names` of the attributes behind the parameters, all of type NULL."""
    total = parameters + len(names)
    body = b"\x17\x07\0\0\0\0\x01\0\0\0"
    if not total:
        return packet(0, body)
    if attributed:
        body += bytes((total,))
    body += bytes((total + 7) // 8) + (b"\0" if types is None else b"\x01")
    if types is not None:
        pairs = [types[at : at + 2] for at in range(0, len(types), 2)]
        behind = b"\0" if attributed else b""
        body += b"".join(pair + behind for pair in pairs)
        body += b"".join(b"\x06\0" + bytes((len(name),)) + name for name in names)
    return packet(0, body + values)


def test_the_commands_of_the_gateways_own() -> None:
    assert prepare(b"SELECT 1") == b"\x09\0\0\0\x16SELECT 1"
    assert close_statement(258) == b"\x05\0\0\0\x19\x02\x01\0\0"


@given(st.lists(TYPE, max_size=20), st.binary(max_size=40), st.integers(0, 2**32 - 1), st.booleans())
def test_types_that_were_sent_are_found_and_those_that_were_not_are_put_in(
    kinds: list[bytes], values: bytes, number: int, attributed: bool
) -> None:
    types = b"".join(kinds)
    count = len(kinds)
    bound = execution(count, types, values, attributed=attributed)
    relying = execution(count, None, values, attributed=attributed)
    assert bound_types(bound, count, attributed=attributed) == (types if count else None)
    assert bound_types(relying, count, attributed=attributed) is None
    if count:
        assert with_types(relying, count, types, attributed=attributed) == bound
    renamed = with_statement_id(bound, number)
    assert statement_id_of(renamed) == number
    assert with_statement_id(renamed, 7) == bound


def test_attributes_stand_behind_the_parameters() -> None:
    raw = execution(2, b"\x08\0\xfd\0", b"12345678\x01x", attributed=True, names=(b"trace", b""))
    assert bound_types(raw, 2, attributed=True) == b"\x08\0\xfd\0"
    assert read_execution(payload_of(raw), 2, with_attributes=True).total == 4
    relying = execution(2, None, b"12345678\x01x", attributed=True, names=(b"trace",))
    with pytest.raises(PacketError):  # whose types nobody knows
        with_types(relying, 2, b"\x08\0\xfd\0", attributed=True)


@given(st.binary(max_size=30), st.integers(0, 9), st.booleans())
def test_any_bytes_are_read_or_refused(body: bytes, parameters: int, attributed: bool) -> None:
    raw = packet(0, b"\x17" + body)
    try:
        types = bound_types(raw, parameters, attributed=attributed)
        if types is None and parameters:
            with_types(raw, parameters, b"\x08\0" * parameters, attributed=attributed)
    except PacketError:
        pass


def test_a_command_that_would_need_another_packet_is_refused() -> None:
    limit = (1 << 24) - 1
    raw = execution(1, None, b"x" * (limit - 12 - 1), attributed=False)
    assert packets_in(raw) == 1
    with pytest.raises(PacketError, match="another packet"):
        with_types(raw, 1, b"\xfd\0")
    long = execution(1, None, b"x" * (limit + 5), attributed=False)
    assert packets_in(long) == 2
    assert with_types(long, 1, b"\xfd\0") == execution(1, b"\xfd\0", b"x" * (limit + 5), attributed=False)


def test_nulls_fit_any_type_and_take_on_what_comes_later() -> None:
    ran = b"\x08\0\x06\0"
    assert fits_types(ran, b"\x08\0\x08\0")
    assert fits_types(ran, b"\x06\0\xfd\0")
    assert not fits_types(ran, b"\x08\x80\x06\0")
    assert merged_types(ran, b"\x06\0\xfd\0") == b"\x08\0\xfd\0"
    assert merged_types(ran, ran) == ran
