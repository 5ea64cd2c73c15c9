"""COM_STMT_* as the gateway needs them: statement ids exchanged, parameter types found and inserted, nothing decoded.

A COM_STMT_EXECUTE is, behind header and command byte: statement id (4), flags (1), iteration count (4), and for
statements with parameters a NULL bitmap, new-params-bound (1), if that is 1 the types (2 each), then the values
(https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_com_stmt_execute.html). Where query attributes were
agreed on (`attributed`), the number of parameters stands in front of the bitmap, and a name behind each type; see
`attributes`.
"""

from __future__ import annotations

from typing import Final

from gateway.protocol.mysql.attributes import read_execution
from gateway.protocol.mysql.constants import Command
from gateway.protocol.mysql.packets import HEADER, PacketError, packet, packets_in, payload_of

LAST_PREPARED: Final = 0xFFFFFFFF  # MariaDB's clients: the statement of the COM_STMT_PREPARE before
TYPE_BYTES: Final = 2  # per parameter: type, and 0x80 for unsigned
NULL_TYPE: Final = 6  # MYSQL_TYPE_NULL

_ID: Final = HEADER + 1  # offsets
_FLAGS: Final = _ID + 4
_BITMAP: Final = _FLAGS + 1 + 4
_LENENC: Final = 0xFB  # from here on a length-encoded integer has more than one byte
_PREPARE: Final = bytes((Command.STMT_PREPARE,))
_CLOSE: Final = bytes((Command.STMT_CLOSE,))


def prepare(statement: bytes) -> bytes:
    """Return COM_STMT_PREPARE, as packets ready to be sent."""
    return packet(0, _PREPARE + statement)


def close_statement(statement_id: int) -> bytes:
    """Return COM_STMT_CLOSE, which has no reply."""
    return packet(0, _CLOSE + statement_id.to_bytes(4, "little"))


def with_statement_id(raw: bytes, statement_id: int) -> bytes:
    """Return a command with another statement id in it."""
    return raw[:_ID] + statement_id.to_bytes(4, "little") + raw[_FLAGS:]


def bound_types(raw: bytes, parameters: int, *, attributed: bool = False) -> bytes | None:
    """Return the types that a COM_STMT_EXECUTE carries, None if it relies on those of an execution before.

    Raises PacketError, for `attributed` ones.
    """
    if attributed and parameters:
        return _bound_attributed(raw, parameters)
    at = _BITMAP + (parameters + 7) // 8
    if not parameters or len(raw) <= at or raw[at] != 1:
        return None
    return raw[at + 1 : at + 1 + TYPE_BYTES * parameters]


def _bound_attributed(raw: bytes, parameters: int) -> bytes | None:
    at = _BITMAP + 1 + (parameters + 7) // 8
    if parameters < _LENENC and len(raw) > at and raw[_BITMAP] == parameters:  # no attribute, as nearly always
        if raw[at] == 0:
            return None
        region = bytearray(raw[at + 1 : at + 1 + parameters * (TYPE_BYTES + 1)])
        if region[TYPE_BYTES :: TYPE_BYTES + 1] == bytes(parameters):  # no names
            del region[TYPE_BYTES :: TYPE_BYTES + 1]
            return bytes(region)
    execution = read_execution(payload_of(raw), parameters, with_attributes=True)
    if execution.types is None:
        return None
    return b"".join(one.type for one in execution.types[:parameters])


def with_types(raw: bytes, parameters: int, types: bytes, *, attributed: bool = False) -> bytes:
    """Return a COM_STMT_EXECUTE that relies on earlier types with `types` inserted. Raises PacketError.

    The reply is numbered on from the command's packets, so a command must not come to need more of them.
    """
    at = _BITMAP + (parameters + 7) // 8
    if len(raw) <= at:
        raise PacketError("COM_STMT_EXECUTE without its parameters")
    payload = payload_of(raw)
    at -= HEADER
    if attributed:
        execution = read_execution(payload, parameters, with_attributes=True)
        if execution.types is not None or execution.total != parameters:
            raise PacketError("query attributes without their types")
        at = execution.values - 1
        types = b"".join(types[one : one + TYPE_BYTES] + b"\0" for one in range(0, len(types), TYPE_BYTES))
    new = packet(raw[3], b"".join((payload[:at], b"\x01", types, payload[at + 1 :])))
    if packets_in(new) != packets_in(raw):
        raise PacketError("COM_STMT_EXECUTE that comes to need another packet for its parameter types")
    return new


def fits_types(ran: bytes, types: bytes) -> bool:
    """Whether parameters of these types leave what was derived from `ran` as it is: equal, but for NULLs in either."""
    for at in range(0, len(types), TYPE_BYTES):
        if types[at] != NULL_TYPE and ran[at] != NULL_TYPE and types[at : at + 2] != ran[at : at + 2]:
            return False
    return True


def merged_types(ran: bytes, types: bytes) -> bytes:
    """Return `ran` with its NULLs replaced by what `types` has there."""
    merged = bytearray(ran)
    for at in range(0, len(ran), TYPE_BYTES):
        if merged[at] == NULL_TYPE:
            merged[at : at + 2] = types[at : at + 2]
    return bytes(merged)
