"""COM_STMT_* over a PyMySQL connection, packet by packet: what drivers do, and what they could do.

statement = prepare(connection, "SELECT ?, ?")
statement.execute(1, "text")            # [[1, b"text"]]
statement.execute(1, "text", bind=False)    # new-params-bound = 0: the server knows the types
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import pymysql.connections
from pymysql.constants import COMMAND, FIELD_TYPE, SERVER_STATUS

Connection: TypeAlias = "pymysql.connections.Connection[Any]"  # not generic at run time
Value = int | float | str | bytes | None
Row = list[Value]

READ_ONLY_CURSOR: Final = 1  # CURSOR_TYPE_READ_ONLY
SEND_LONG_DATA: Final = 0x18
_FIXED: Final = {
    FIELD_TYPE.TINY: "<b",
    FIELD_TYPE.SHORT: "<h",
    FIELD_TYPE.YEAR: "<h",
    FIELD_TYPE.LONG: "<i",
    FIELD_TYPE.INT24: "<i",
    FIELD_TYPE.LONGLONG: "<q",
    FIELD_TYPE.FLOAT: "<f",
    FIELD_TYPE.DOUBLE: "<d",
}


def send(connection: Connection, command: int, payload: bytes) -> None:
    """Sends one command whose reply, if any, is somebody else's to read."""
    connection._execute_command(command, payload)  # type: ignore[attr-defined]  # the wire is the point


def receive(connection: Connection) -> bytes:
    """The payload of the next packet. Raises pymysql.MySQLError for an ERR."""
    packet: bytes = connection._read_packet().get_all_data()  # type: ignore[no-untyped-call]
    return packet


def parameter_type(value: Value) -> int:
    """The type that `execute` announces for a value."""
    if value is None:
        return FIELD_TYPE.NULL
    if isinstance(value, int):
        return FIELD_TYPE.LONGLONG
    if isinstance(value, float):
        return FIELD_TYPE.DOUBLE
    return FIELD_TYPE.VAR_STRING if isinstance(value, str) else FIELD_TYPE.BLOB


def encode(value: Value) -> bytes:
    if value is None:
        return b""
    if isinstance(value, int):
        return struct.pack("<q", value)
    if isinstance(value, float):
        return struct.pack("<d", value)
    text = value.encode() if isinstance(value, str) else value
    if len(text) < 251:
        return bytes((len(text),)) + text
    if len(text) < 1 << 16:
        return b"\xfc" + len(text).to_bytes(2, "little") + text
    return b"\xfe" + len(text).to_bytes(8, "little") + text


@dataclass
class Statement:
    """A prepared statement of one connection. `status`, `warnings`, `affected`, `insert_id` are of the last reply."""

    connection: Connection
    id: int
    columns: int
    parameters: int
    names: list[str] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    status: int = 0
    warnings: int = 0
    affected: int = 0
    insert_id: int = 0
    long: frozenset[int] = frozenset()

    def payload(self, values: tuple[Value, ...], *, bind: bool = True, cursor: int = 0) -> bytes:
        """What COM_STMT_EXECUTE carries."""
        body = self.id.to_bytes(4, "little") + bytes((cursor,)) + b"\x01\0\0\0"
        if self.parameters:
            nulls = bytearray((self.parameters + 7) // 8)
            for at, value in enumerate(values):
                if value is None and at not in self.long:
                    nulls[at // 8] |= 1 << at % 8
            body += bytes(nulls) + bytes((int(bind),))
            if bind:
                for at, value in enumerate(values):
                    kind = FIELD_TYPE.BLOB if at in self.long else parameter_type(value)
                    body += kind.to_bytes(2, "little")
            body += b"".join(encode(value) for at, value in enumerate(values) if at not in self.long)
        return body

    def execute(self, *values: Value, bind: bool = True, cursor: int = 0) -> list[Row]:
        """The rows of the last result set that has any; all results are read. Raises pymysql.MySQLError."""
        send(self.connection, COMMAND.COM_STMT_EXECUTE, self.payload(values, bind=bind, cursor=cursor))
        self.long = frozenset()
        return self.read()

    def read(self) -> list[Row]:
        """Reads a whole reply to COM_STMT_EXECUTE."""
        found: list[Row] = []
        while True:
            rows = self._result()
            found = rows if rows is not None else found
            if not self.status & SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS:
                return found

    def _result(self) -> list[Row] | None:
        first = self._packet()
        if first[0] == 0x00:
            self._ok(first)
            return None
        self.names, self.types = [], []
        for _ in range(first[0]):
            self._column(self._packet())
        self._eof(self._packet())
        if self.status & SERVER_STATUS.SERVER_STATUS_CURSOR_EXISTS:
            return []
        return self._rows()

    def _rows(self) -> list[Row]:
        rows = []
        while (packet := self._packet())[0] != 0xFE:
            rows.append(self._row(packet))
        self._eof(packet)
        return rows

    def fetch(self, count: int) -> list[Row]:
        """COM_STMT_FETCH."""
        send(self.connection, 0x1C, self.id.to_bytes(4, "little") + count.to_bytes(4, "little"))
        return self._rows()

    def send_long(self, parameter: int, chunk: bytes) -> None:
        """COM_STMT_SEND_LONG_DATA, which has no reply."""
        send(self.connection, SEND_LONG_DATA, self.id.to_bytes(4, "little") + parameter.to_bytes(2, "little") + chunk)
        self.long |= {parameter}

    def reset(self) -> None:
        """COM_STMT_RESET."""
        send(self.connection, 0x1A, self.id.to_bytes(4, "little"))
        self._ok(self._packet())
        self.long = frozenset()

    def close(self) -> None:
        """COM_STMT_CLOSE, which has no reply."""
        send(self.connection, 0x19, self.id.to_bytes(4, "little"))

    def _packet(self) -> bytes:
        return receive(self.connection)

    def _ok(self, packet: bytes) -> None:
        self.affected, at = lenenc(packet, 1)
        self.insert_id, at = lenenc(packet, at)
        self.status, self.warnings = struct.unpack_from("<HH", packet, at)

    def _eof(self, packet: bytes) -> None:
        assert packet[0] == 0xFE
        self.warnings, self.status = struct.unpack_from("<HH", packet, 1)

    def _column(self, packet: bytes) -> None:
        at = 0
        texts = []
        for _ in range(6):
            size, at = lenenc(packet, at)
            texts.append(packet[at : at + size])
            at += size
        self.names.append(texts[4].decode("utf-8", "replace"))
        self.types.append(packet[at + 1 + 2 + 4])

    def _row(self, packet: bytes) -> Row:
        count = len(self.types)
        nulls = packet[1 : 1 + (count + 9) // 8]
        at = 1 + len(nulls)
        row: Row = []
        for index, kind in enumerate(self.types):
            if nulls[(index + 2) // 8] >> (index + 2) % 8 & 1:
                row.append(None)
            elif kind in _FIXED:
                row.append(struct.unpack_from(_FIXED[kind], packet, at)[0])
                at += struct.calcsize(_FIXED[kind])
            else:
                size, at = lenenc(packet, at)
                row.append(packet[at : at + size])
                at += size
        return row


def lenenc(packet: bytes, at: int) -> tuple[int, int]:
    """A length-encoded integer and the offset behind it."""
    first = packet[at]
    if first < 251:
        return first, at + 1
    width = {0xFC: 2, 0xFD: 3, 0xFE: 8}[first]
    return int.from_bytes(packet[at + 1 : at + 1 + width], "little"), at + 1 + width


def prepare(connection: Connection, sql: str | bytes) -> Statement:
    """COM_STMT_PREPARE. Raises pymysql.MySQLError."""
    send(connection, COMMAND.COM_STMT_PREPARE, sql.encode() if isinstance(sql, str) else sql)
    packet = receive(connection)
    assert packet[0] == 0
    number, columns, parameters, warnings = struct.unpack_from("<IHHxH", packet, 1)
    for count in (parameters, columns):
        for _ in range(count + 1 if count else 0):
            receive(connection)
    return Statement(connection, number, columns, parameters, warnings=warnings)
