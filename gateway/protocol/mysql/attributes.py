"""Query attributes: the named values that a client may send along with COM_QUERY and COM_STMT_EXECUTE.

With CLIENT_QUERY_ATTRIBUTES every COM_QUERY begins with a number of parameters, a number of parameter sets (1), and if
there are parameters with their NULL bitmap, types, names and values; the statement stands behind them
(https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_com_query.html). COM_STMT_EXECUTE has the attributes
behind the statement's own parameters, in the same bitmap and the same lists
(https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_com_stmt_execute.html).

Pure functions over bytes. What the gateway needs is where things end: a value is skipped by the length of its type.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from gateway.protocol.mysql.constants import Command, ErrorCode
from gateway.protocol.mysql.packets import (
    HEADER,
    PacketError,
    PacketReader,
    packet,
    payload_of,
    read_fixed,
    read_int,
    read_lenenc_bytes,
    read_lenenc_int,
)

_QUERY: Final = int(Command.QUERY)
_NONE: Final = b"\0\x01"  # no parameters, one set of them

PARAMETER_COUNT_AVAILABLE: Final = 0x08
"""Flag of COM_STMT_EXECUTE: the number of parameters is written, also where the statement itself has none."""

ATTRIBUTES_LIMIT: Final = 65_535
"""Most attributes of one command: the servers' limit for the parameters of a statement (ER_PS_MANY_PARAM)."""

# Bytes of a value by its type's number (enum_field_types); what is missing here is length-encoded.
_WIDTHS: Final = {
    0x01: 1,  # TINY
    0x02: 2,  # SHORT
    0x03: 4,  # LONG
    0x04: 4,  # FLOAT
    0x05: 8,  # DOUBLE
    0x06: 0,  # NULL
    0x08: 8,  # LONGLONG
    0x09: 4,  # INT24
    0x0D: 2,  # YEAR
}
# DATE, TIME, DATETIME, TIMESTAMP and their kin: one byte of length, then as much.
_TIMES: Final = frozenset((0x07, 0x0A, 0x0B, 0x0C, 0x0E, 0x11, 0x12, 0x13))
_TIME_LENGTHS: Final = frozenset((0, 4, 7, 8, 11, 12, 13))


class Parameter(NamedTuple):
    """One bound parameter as it was announced: the two bytes of its type (number, unsigned flag), and its name."""

    type: bytes
    name: bytes


class AttributedQuery(bytes):
    """A COM_QUERY without its attributes, so that whoever reads the statement need not know of them.

    `original` is the command as the client sent it, which is what the server gets.
    """

    original: bytes


def with_no_attributes(raw: bytes) -> bytes:
    """Return a command in the form that a server expects which has agreed on query attributes."""
    if raw[HEADER] != _QUERY:
        return raw
    payload = payload_of(raw)
    return packet(raw[3], payload[:1] + _NONE + payload[1:])


def without_attributes(raw: bytes) -> bytes:
    """Return a client's command as if it had no attributes: an `AttributedQuery` for COM_QUERY. Raises PacketError.

    `raw` is a message as `PacketReader` returned it, from a client that has agreed on query attributes.
    """
    if raw[HEADER] != _QUERY:
        return raw
    if raw[HEADER + 1 : HEADER + 3] == _NONE and len(raw) < 0xFFFFFF:
        plain = AttributedQuery((len(raw) - HEADER - 2).to_bytes(3, "little") + raw[3 : HEADER + 1] + raw[HEADER + 3 :])
    else:
        payload = payload_of(raw)
        plain = AttributedQuery(packet(raw[3], payload[:1] + payload[end_of_attributes(payload, 1) :]))
    plain.original = raw
    return plain


def as_sent(raw: bytes) -> bytes:
    """Return a command as its client sent it."""
    return raw.original if isinstance(raw, AttributedQuery) else raw


def as_expected(raw: bytes) -> bytes:
    """Return a command as a server reads it that has agreed on query attributes."""
    return raw.original if isinstance(raw, AttributedQuery) else with_no_attributes(raw)


class AttributedReader(PacketReader):
    """The reader of commands for a client that has agreed on query attributes: see `without_attributes`."""

    __slots__ = ()

    def feed(self, data: bytes) -> list[bytes]:
        return [without_attributes(message) for message in super().feed(data)]


def end_of_attributes(payload: bytes, at: int) -> int:
    """Return the offset of the statement in the payload of COM_QUERY; `at` is that of the first count.

    Raises PacketError.
    """
    count, at = read_lenenc_int(payload, at)
    sets, at = read_lenenc_int(payload, at)
    if sets != 1 or count > ATTRIBUTES_LIMIT:
        raise PacketError(f"{count} query attributes in {sets} sets")
    if not count:
        return at
    nulls, at = read_fixed(payload, at, (count + 7) // 8)
    bound, at = read_int(payload, at, 1)
    if bound != 1:
        raise PacketError("query attributes without their types")
    parameters, at = read_parameters(payload, at, count, named=True)
    return skip_values(payload, at, parameters, nulls)


def read_parameters(payload: bytes, at: int, count: int, *, named: bool) -> tuple[list[Parameter], int]:
    """Return `count` announced types (`named`: each with a name) and the offset behind them. Raises PacketError."""
    found: list[Parameter] = []
    for _ in range(count):
        kind, at = read_fixed(payload, at, 2)
        name = b""
        if named:
            name, at = read_lenenc_bytes(payload, at)
        found.append(Parameter(kind, name))
    return found, at


def skip_values(payload: bytes, at: int, parameters: list[Parameter], nulls: bytes) -> int:
    """Return the offset behind the values of `parameters`; a bit in `nulls` says that there is none.

    Raises PacketError.
    """
    for number, parameter in enumerate(parameters):
        if not nulls[number >> 3] >> (number & 7) & 1:
            at = skip_value(payload, at, parameter.type[0])
    return at


def skip_value(payload: bytes, at: int, kind: int) -> int:
    """Return the offset behind a value in the binary format, of the type with this number. Raises PacketError."""
    width = _WIDTHS.get(kind)
    if width is not None:
        return read_fixed(payload, at, width)[1]
    if kind in _TIMES:
        length, at = read_int(payload, at, 1)
        if length not in _TIME_LENGTHS:
            raise PacketError(f"date or time of {length} bytes")
        return read_fixed(payload, at, length)[1]
    length, at = read_lenenc_int(payload, at)
    if at + length > len(payload):
        raise PacketError(f"packet ends within a value of {length} bytes")
    return at + length


class Execution(NamedTuple):
    """The parts of COM_STMT_EXECUTE's payload behind its fixed fields (command, statement id, flags, iterations).

    `total` is the number of parameters, those of the statement first and attributes behind them. `types` is None where
    the client did not send them anew. `values` is the offset of the first value.
    """

    total: int
    nulls: bytes
    types: list[Parameter] | None
    values: int


def read_execution(payload: bytes, parameters: int, *, with_attributes: bool) -> Execution:
    """Return what COM_STMT_EXECUTE of a statement with so many `parameters` says of them. Raises PacketError.

    `with_attributes`: query attributes were agreed on, which changes the format for every execution.
    """
    flags, at = read_int(payload, 5, 1)
    _, at = read_fixed(payload, at, 4)  # iterations, always 1
    count = parameters
    if with_attributes:
        if not parameters and not flags & PARAMETER_COUNT_AVAILABLE:
            return Execution(0, b"", None, at)
        count, at = read_lenenc_int(payload, at)
        if not parameters <= count <= ATTRIBUTES_LIMIT:
            raise PacketError(f"{count} parameters for a statement that has {parameters}", ErrorCode.MALFORMED_PACKET)
    if not count:
        return Execution(0, b"", None, at)
    nulls, at = read_fixed(payload, at, (count + 7) // 8)
    bound, at = read_int(payload, at, 1)
    types = None
    if bound:
        types, at = read_parameters(payload, at, count, named=with_attributes)
    return Execution(count, nulls, types, at)
