"""Decodes the replies to the gateway's own statements: the rows of a text-protocol result set, or the error.

For short answers to questions that the gateway asks (positions, health, catalogue); what clients ask for is never
decoded (`replies`). It reads both forms of a reply, with and without DEPRECATE_EOF: a packet of five bytes that
begins with 0xFE is an EOF in either, and a longer one that does and is no row over 16 MiB is an OK.
"""

from __future__ import annotations

from enum import Enum, auto
from functools import lru_cache
from typing import Final

from gateway.protocol.mysql.constants import MAX_PAYLOAD, Collation, Status
from gateway.protocol.mysql.greeting import text
from gateway.protocol.mysql.ok_packet import STATE_CHANGED, ServerError, parse_eof, parse_err, parse_ok
from gateway.protocol.mysql.packets import (
    HEADER,
    PacketError,
    PacketReader,
    payload_of,
    read_fixed,
    read_int,
    read_lenenc_bytes,
    read_lenenc_int,
)

Row = tuple[str | bytes | None, ...]

RESULT_LIMIT: Final = 64 << 20  # bytes of one reply; a catalogue of 100,000 tables is about 20 MiB

_MORE_RESULTS: Final = int(Status.MORE_RESULTS_EXISTS)
_EOF_LENGTH: Final = 5  # bytes
_FIXED_FIELDS: Final = 12  # bytes: collation, display length, type, flags, decimals, filler
_COLUMN_KEPT: Final = 256  # bytes of the longest definition that is kept: no server's answer may fill the memory
_BYTES_TYPES: Final = frozenset((0x0F, 0x10, 0xF9, 0xFA, 0xFB, 0xFC, 0xFD, 0xFE, 0xFF))
# FIELD_TYPE VARCHAR, BIT, the BLOBs, VAR_STRING, STRING, GEOMETRY: with the collation "binary" they are bytes.
# Numbers and times have that collation too, and are text.


class _Wait(Enum):
    """What the next packet is."""

    HEAD = auto()  # OK, ERR or the number of columns
    COLUMN = auto()
    ROW = auto()  # or EOF or OK


class ResultReader:
    """Reads the reply to one COM_QUERY (or COM_INIT_DB, COM_PING ...).

        reader = ResultReader()
        while not reader.done:
            reader.feed(await conversation.receive())

    Valid once `done`: `columns` (names), `kinds` (their FIELD_TYPEs) and `rows` of the last result set, empty if there
    was none; `error`, the ERR or None; `status` flags and `warnings` of the last OK or EOF; `leftover`, what came
    behind the reply. Values are text as the server prints them, bytes for columns of binary strings, None for NULL.
    `limit` bounds the bytes of the reply.
    """

    __slots__ = (
        "_binary",
        "_expected",
        "_reader",
        "_room",
        "_seen_eof",
        "_wait",
        "columns",
        "done",
        "error",
        "kinds",
        "leftover",
        "rows",
        "status",
        "warnings",
    )

    def __init__(self, limit: int = RESULT_LIMIT) -> None:
        self._reader = PacketReader(limit=limit, sequence=None, minimum=1)
        self._room = limit
        self._wait = _Wait.HEAD
        self._expected = 0
        self._binary: list[bool] = []
        self._seen_eof = False
        self.columns: list[str] = []
        self.kinds: list[int] = []
        self.rows: list[Row] = []
        self.error: ServerError | None = None
        self.status = 0
        self.warnings = 0
        self.done = False
        self.leftover = b""

    def feed(self, data: bytes) -> None:
        """Take what the server sent. Raises PacketError for what is no reply, or is larger than `limit`."""
        self._room -= len(data)
        messages = self._reader.feed(data)
        for at, message in enumerate(messages, 1):
            self._take(payload_of(message), whole=len(message) < HEADER + MAX_PAYLOAD)
            if self.done:
                self.leftover = b"".join(messages[at:]) + self._reader.take_held()
                return
        if self._room < 0:
            raise PacketError("result of a statement of the gateway's own is too large")

    def _take(self, payload: bytes, *, whole: bool) -> None:
        first = payload[0]
        if first == 0xFF:
            self.error = parse_err(payload)
            self.done = True
        elif self._wait is _Wait.COLUMN:
            self._add_column(payload)
        elif first == 0xFE and whole:
            self._on_end(payload)
        elif self._wait is _Wait.ROW:
            self.rows.append(self._row(payload))
        elif first == 0x00:
            self._finish_result(parse_ok(payload).status, parse_ok(payload).warnings)
        else:
            self._expected, end = read_lenenc_int(payload, 0)
            if end != len(payload):
                raise PacketError(f"number of columns in a packet of {len(payload)} bytes")
            self.columns, self.kinds, self.rows, self._binary, self._seen_eof = [], [], [], [], False
            self._wait = _Wait.COLUMN

    def _add_column(self, payload: bytes) -> None:
        name, kind, binary = (_known_column if len(payload) <= _COLUMN_KEPT else _column)(payload)
        self.columns.append(name)
        self.kinds.append(kind)
        self._binary.append(binary)
        if len(self.columns) == self._expected:
            self._wait = _Wait.ROW

    def _on_end(self, payload: bytes) -> None:
        if len(payload) != _EOF_LENGTH:
            ok = parse_ok(payload)
            self._finish_result(ok.status, ok.warnings)
            return
        warnings, status = parse_eof(payload)
        if self._wait is _Wait.ROW and not self._seen_eof:
            self._seen_eof = True  # the one behind the columns
        else:
            self._finish_result(status, warnings)

    def _finish_result(self, status: int, warnings: int) -> None:
        self.status = status & ~STATE_CHANGED
        self.warnings = warnings
        self._wait = _Wait.HEAD
        self.done = not status & _MORE_RESULTS

    def _row(self, payload: bytes) -> Row:
        values: list[str | bytes | None] = []
        at = 0
        for binary in self._binary:
            if payload[at : at + 1] == b"\xfb":
                values.append(None)
                at += 1
                continue
            value, at = read_lenenc_bytes(payload, at)
            values.append(value if binary else value.decode("utf-8", "replace"))
        if at != len(payload):
            raise PacketError(f"row of {len(payload)} bytes has more than its {len(values)} columns")
        return tuple(values)


def _column(payload: bytes) -> tuple[str, int, bool]:
    """Name and FIELD_TYPE of a column, and whether its values are bytes. Raises PacketError."""
    at = 0
    for _ in range(4):  # catalogue, database, table, original table
        _, at = read_lenenc_bytes(payload, at)
    name, at = read_lenenc_bytes(payload, at)
    _, at = read_lenenc_bytes(payload, at)  # original name
    # MariaDB's extended metadata stands here, where agreed on: the fields of fixed length are found from the end.
    at = max(at + 1, len(payload) - _FIXED_FIELDS)
    collation, at = read_int(payload, at, 2)
    _, at = read_fixed(payload, at, 4)  # display length
    kind, at = read_int(payload, at, 1)
    return text(name), kind, collation == Collation.BINARY and kind in _BYTES_TYPES


_known_column: Final = lru_cache(maxsize=512)(_column)
"""The questions are few and asked for ever: most of what an idle gateway did was to read the same columns anew."""
