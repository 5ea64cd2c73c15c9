"""Replies that the gateway makes itself: OK, ERR, EOF and result sets, as whole packets ready to be sent.

Each takes the sequence id of its first packet: 1 for the reply to a command.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gateway.protocol.mysql.constants import Capability, Collation, Status, sqlstate_of
from gateway.protocol.mysql.greeting import raw
from gateway.protocol.mysql.packets import lenenc_bytes, lenenc_int, packet

_DEPRECATE_EOF = int(Capability.DEPRECATE_EOF)
_EXTENDED_METADATA = int(Capability.MARIADB_EXTENDED_METADATA)
_AUTOCOMMIT = int(Status.AUTOCOMMIT)
_INTEGERS = {3: 4, 8: 8}  # LONG, LONGLONG: bytes of a value in the binary protocol
_VAR_STRING = 0xFD  # FIELD_TYPE.VAR_STRING
_COLUMN_LENGTH = 1024  # characters; what a client may reserve for display
_MESSAGE_LIMIT = 512  # bytes; MYSQL_ERRMSG_SIZE: clients keep no more

Value = str | bytes | int | float | None


@dataclass(frozen=True, slots=True)
class Column:
    """How a column of a result set is announced: `kind` is its FIELD_TYPE, `length` in characters for display."""

    name: str
    kind: int = _VAR_STRING
    length: int = _COLUMN_LENGTH
    flags: int = 0
    collation: int = int(Collation.UTF8MB4_GENERAL_CI)
    decimals: int = 0

    def encode(self, capabilities: int) -> bytes:
        """Return the payload of its definition."""
        name = lenenc_bytes(raw(self.name))
        return b"".join(
            (
                b"\x03def",
                b"\0\0\0",  # schema, table, original table: none
                name,
                # A name of its own belongs to a column of a table, and what the gateway makes is none.
                b"\0",
                b"\0" if capabilities & _EXTENDED_METADATA else b"",  # none
                b"\x0c",  # length of what follows
                self.collation.to_bytes(2, "little"),
                self.length.to_bytes(4, "little"),
                bytes((self.kind,)),
                self.flags.to_bytes(2, "little"),
                bytes((self.decimals, 0, 0)),
            )
        )


def ok(
    sequence: int = 1,
    *,
    affected_rows: int = 0,
    insert_id: int = 0,
    status: int = _AUTOCOMMIT,
    warnings: int = 0,
    message: str = "",
    header: int = 0x00,
) -> bytes:
    """Return an OK packet without session state. `header` is 0xFE where it ends a result set under DEPRECATE_EOF."""
    return packet(
        sequence,
        bytes((header,))
        + lenenc_int(affected_rows)
        + lenenc_int(insert_id)
        + status.to_bytes(2, "little")
        + warnings.to_bytes(2, "little")
        + (lenenc_bytes(raw(message)) if message else b""),
    )


def err(sequence: int, code: int, message: str, sqlstate: str | None = None, *, protocol_41: bool = True) -> bytes:
    """Return an ERR packet; `sqlstate` None means the one of `code`. Clients before 4.1 know no SQLSTATE."""
    state = b"#" + (sqlstate or sqlstate_of(code)).encode("ascii") if protocol_41 else b""
    return packet(sequence, b"\xff" + code.to_bytes(2, "little") + state + raw(message)[:_MESSAGE_LIMIT])


def eof(sequence: int, *, status: int = _AUTOCOMMIT, warnings: int = 0) -> bytes:
    """Return an EOF packet, for clients without DEPRECATE_EOF."""
    return packet(sequence, b"\xfe" + warnings.to_bytes(2, "little") + status.to_bytes(2, "little"))


def end(sequence: int, *, capabilities: int, status: int = _AUTOCOMMIT) -> bytes:
    """Return the EOF that answers COM_SET_OPTION and COM_DEBUG, as a client of these `capabilities` reads it."""
    if capabilities & _DEPRECATE_EOF:
        return ok(sequence, status=status, header=0xFE)
    return eof(sequence, status=status)


def resultset(
    columns: Sequence[str | Column],
    rows: Iterable[Sequence[Value]],
    *,
    capabilities: int,
    sequence: int = 1,
    status: int = _AUTOCOMMIT,
    warnings: int = 0,
    binary: bool = False,
) -> bytes:
    """Return a whole result set, in the form that a client of these `capabilities` reads.

    A column that is given by its name alone is one of strings. `binary`: as the reply to COM_STMT_EXECUTE.
    """
    described = [Column(column) if isinstance(column, str) else column for column in columns]
    parts = [packet(sequence, lenenc_int(len(columns)))]
    for column in described:
        sequence += 1
        parts.append(packet(sequence, column.encode(capabilities)))
    if not capabilities & _DEPRECATE_EOF:
        sequence += 1
        parts.append(eof(sequence, status=status, warnings=warnings))
    for row in rows:
        sequence += 1
        parts.append(packet(sequence, _binary_row(described, row) if binary else b"".join(map(_value, row))))
        sequence += len(parts[-1]) >> 24  # a row over 16 MiB takes several packets
    if capabilities & _DEPRECATE_EOF:
        parts.append(ok(sequence + 1, status=status, warnings=warnings, header=0xFE))
    else:
        parts.append(eof(sequence + 1, status=status, warnings=warnings))
    return b"".join(parts)


def _binary_row(columns: Sequence[Column], row: Sequence[Value]) -> bytes:
    nulls = bytearray((len(row) + 9) // 8)
    values = []
    for at, (column, value) in enumerate(zip(columns, row, strict=True), 2):
        width = _INTEGERS.get(column.kind)
        if value is None:
            nulls[at >> 3] |= 1 << (at & 7)
        elif width is not None:
            values.append((int(value) & ((1 << 8 * width) - 1)).to_bytes(width, "little"))
        else:
            values.append(_value(value))
    return b"".join((b"\0", nulls, *values))


def _value(value: Value) -> bytes:
    if value is None:
        return b"\xfb"
    if isinstance(value, str):
        return lenenc_bytes(raw(value))
    if isinstance(value, bytes):
        return lenenc_bytes(value)
    return lenenc_bytes(str(value).encode("ascii"))
