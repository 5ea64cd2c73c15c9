"""Framing of the MySQL protocol: packets, length-encoded values, and the reader that puts a peer's packets together.

A packet is three bytes of payload length, one byte of sequence id, and the payload. A payload of 16 MiB - 1 or more is
split; a packet of exactly 16 MiB - 1 is always continued, if need be by an empty one
(https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_packets.html).

Every command passes through `PacketReader.feed`, so it has a first branch for what nearly always happens: one whole
packet in one recv, which is returned as the very bytes object that came in and can be forwarded as it is.
"""

from __future__ import annotations

from gateway.errors import ProtocolError
from gateway.protocol.mysql.constants import MAX_PAYLOAD, ErrorCode, sqlstate_of

HEADER = 4  # bytes: payload length (3), sequence id (1)

BEFORE_LOGIN_LIMIT = 64 * 1024  # bytes a peer may send in one packet before it is authenticated (SQL.md, Wire)


TOO_LARGE = "Got a packet bigger than 'max_allowed_packet' bytes"  # the servers' own words for 1153


class PacketError(ProtocolError):
    """Bytes that the MySQL protocol does not allow; `code` and `sqlstate` are for the ERR before the close."""

    def __init__(self, message: str, code: int = ErrorCode.MALFORMED_PACKET) -> None:
        super().__init__(message)
        self.code = int(code)
        self.sqlstate = sqlstate_of(code)


def packet(sequence: int, payload: bytes) -> bytes:
    """Return `payload` as one packet, or as many as it needs, numbered from `sequence` (modulo 256)."""
    if len(payload) < MAX_PAYLOAD:
        return len(payload).to_bytes(3, "little") + bytes((sequence & 0xFF,)) + payload
    parts: list[bytes] = []
    for start in range(0, len(payload) + 1, MAX_PAYLOAD):
        part = payload[start : start + MAX_PAYLOAD]
        parts += (len(part).to_bytes(3, "little"), bytes((sequence & 0xFF,)), part)
        sequence += 1
    return b"".join(parts)


def payload_of(raw: bytes) -> bytes:
    """Return the payload of one message as `PacketReader` returned it: headers removed, split packets joined."""
    if len(raw) < HEADER + MAX_PAYLOAD:
        return raw[HEADER:]
    step = HEADER + MAX_PAYLOAD
    return b"".join(raw[start + HEADER : start + step] for start in range(0, len(raw), step))


def packets_in(raw: bytes) -> int:
    """Return how many packets one message consists of: the reply to it begins with this sequence id."""
    return len(raw) // (HEADER + MAX_PAYLOAD) + 1


def lenenc_int(value: int) -> bytes:
    """Encode a length-encoded integer (0 to 2**64 - 1)."""
    if value < 0xFB:
        return bytes((value,))
    if value < 1 << 16:
        return b"\xfc" + value.to_bytes(2, "little")
    if value < 1 << 24:
        return b"\xfd" + value.to_bytes(3, "little")
    return b"\xfe" + value.to_bytes(8, "little")


def lenenc_bytes(value: bytes) -> bytes:
    """Encode a length-encoded string."""
    return lenenc_int(len(value)) + value


def read_lenenc_int(data: bytes, at: int) -> tuple[int, int]:
    """Return the length-encoded integer at offset `at` and the offset after it. Raises PacketError."""
    if at >= len(data):
        raise PacketError("packet ends where an integer should be")
    first = data[at]
    if first < 0xFB:
        return first, at + 1
    width = _WIDTHS.get(first)
    if width is None:
        raise PacketError(f"0x{first:02x} is not the first byte of an integer")
    end = at + 1 + width
    if end > len(data):
        raise PacketError("packet ends within an integer")
    return int.from_bytes(data[at + 1 : end], "little"), end


_WIDTHS = {0xFC: 2, 0xFD: 3, 0xFE: 8}


def read_lenenc_bytes(data: bytes, at: int) -> tuple[bytes, int]:
    """Return the length-encoded string at offset `at` and the offset after it. Raises PacketError."""
    length, start = read_lenenc_int(data, at)
    end = start + length
    if end > len(data):
        raise PacketError(f"packet ends within a string of {length} bytes")
    return data[start:end], end


def read_fixed(data: bytes, at: int, length: int) -> tuple[bytes, int]:
    """Return `length` bytes at offset `at` and the offset after them. Raises PacketError."""
    end = at + length
    if end > len(data):
        raise PacketError(f"packet ends within a field of {length} bytes")
    return data[at:end], end


def read_int(data: bytes, at: int, width: int) -> tuple[int, int]:
    """Return the little-endian integer of `width` bytes at offset `at` and the offset after it. Raises PacketError."""
    field, end = read_fixed(data, at, width)
    return int.from_bytes(field, "little"), end


def read_nul_bytes(data: bytes, at: int) -> tuple[bytes, int]:
    """Return the string up to the next NUL and the offset after it.

    A string that ends with its packet instead is accepted, as servers do: some clients omit the last NUL.
    """
    end = data.find(0, at)
    if end < 0:
        return data[at:], max(at, len(data))
    return data[at:end], end + 1


class PacketReader:
    """Puts a peer's packets together: fed with what arrives, returns the messages that are complete.

    A message is returned raw, with its header or headers, so that it can be forwarded as it came: `raw[3]` is the
    sequence id of its first packet, `raw[4]` the first byte of its payload, `payload_of(raw)` its payload.

    `limit` is the largest payload in bytes (max_allowed_packet; BEFORE_LOGIN_LIMIT before a client is authenticated);
    it is enforced when a header arrives, before the bytes are kept. `sequence` is the id that every message must
    begin with (0 for commands), None where the caller checks it. `minimum` is the smallest payload in bytes: 1 for
    commands, so that `raw[4]` is always there.

    >>> reader = PacketReader(limit=64 << 20)
    >>> reader.feed(b"\\x01\\x00\\x00\\x00\\x0e")
    [b'\\x01\\x00\\x00\\x00\\x0e']
    """

    __slots__ = ("_buffer", "_end", "_minimum", "_sequence", "_size", "limit")

    def __init__(self, *, limit: int, sequence: int | None = 0, minimum: int = 1) -> None:
        self.limit = limit
        self._sequence = sequence
        self._minimum = minimum
        self._buffer = bytearray()
        self._end = 0  # where the next header of the unfinished message begins in the buffer
        self._size = 0  # payload bytes of the unfinished message, as far as its headers are known

    @property
    def held(self) -> int:
        """Bytes of an unfinished message that are kept; 0 between messages."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Take what arrived; return every message that is now complete, oldest first.

        Raises PacketError for a message that is too large (1153), out of order (1156) or too short (1835); the reader
        is of no use afterwards.
        """
        if not self._buffer and len(data) > HEADER:
            length = data[0] | data[1] << 8 | data[2] << 16
            if length + 4 == len(data) and data[3] == self._sequence and length <= self.limit and length != 0xFFFFFF:
                return [data]
        return self._feed(data)

    def take_held(self) -> bytes:
        """Return and forget the bytes of an unfinished message, so that another reader can go on with them."""
        held = bytes(self._buffer)
        self._buffer.clear()
        self._end = self._size = 0
        return held

    def _feed(self, data: bytes) -> list[bytes]:
        buffer = self._buffer
        buffer += data
        messages: list[bytes] = []
        start = 0  # of the message at hand
        end = self._end
        while end + HEADER <= len(buffer):
            length = int.from_bytes(buffer[end : end + 3], "little")
            self._check(buffer[end + 3], start, end, length)
            if end + HEADER + length > len(buffer):
                break
            end += HEADER + length
            if length == MAX_PAYLOAD:
                self._size += length
                continue
            messages.append(bytes(memoryview(buffer)[start:end]))
            self._size = 0
            start = end
        if start:
            del buffer[:start]
        self._end = end - start
        return messages

    def _check(self, sequence: int, start: int, end: int, length: int) -> None:
        if end > start:
            expected: int | None = (self._buffer[start + 3] + (end - start) // (HEADER + MAX_PAYLOAD)) & 0xFF
        else:
            expected = self._sequence
            if length < self._minimum:
                raise PacketError(f"packet of {length} bytes where at least {self._minimum} were expected")
        if expected is not None and sequence != expected:
            raise PacketError(
                f"Got packets out of order: {sequence} where {expected} was expected", ErrorCode.PACKETS_OUT_OF_ORDER
            )
        if self._size + length > self.limit:
            raise PacketError(TOO_LARGE, ErrorCode.PACKET_TOO_LARGE)
