"""Takes a memcached client's bytes apart into requests, however they are cut into chunks.

A `get` of one key and a plain `set` that arrive whole are matched by one regular expression and copied once; everything
else goes through `lines`. A value that arrives in pieces is collected in a list and joined once, so that its cost grows
with its size only. A value over the limit is counted past, never kept.

State is what was not finished by the last chunk, one of: nothing, the beginning of a line, a store whose value is on
its way, a rejected request whose value is being swallowed, closed.
"""

from __future__ import annotations

import re
import struct
from typing import Final

from gateway.protocol.memcached.lines import BAD_CHUNK, TOO_LARGE, TOO_LONG, parse_line
from gateway.protocol.memcached.request import VALUE_BYTES_MAX, Rejected, Request

Message = Request | Rejected

LINE_BYTES_MAX: Final = 2048  # proto_text.c: a longer line without an end closes the connection,
MULTIGET_BYTES_MAX: Final = 1_048_576  # but for multigets, which have no limit there: 4,000 of the longest keys here
SMALL_BYTES: Final = 4096  # pieces of a value below this are packed together, so that tiny ones cannot cost much more

# Bytes that no key may have are control bytes and space (protocol.txt). 9 digits fit every field that they are for.
_WHOLE: Final = re.compile(
    rb"(?:get ([^\x00-\x20\x7f]{1,250})|set ([^\x00-\x20\x7f]{1,250}) (\d{1,9}) (\d{1,9}) (\d{1,9}))\r\n"
).match
_MULTIGET: Final = re.compile(rb" {0,100}(?:get|gets|gat|gats) ")
_BINARY_REQUEST: Final = 0x80
_BINARY_HEADER: Final = struct.Struct("!BBHBBHIIQ")  # protocol_binary.txt: magic ... cas, 24 bytes
_BINARY_UNKNOWN_COMMAND: Final = 0x81
_BINARY_LATER: Final = b"The binary protocol is not supported by this gateway, use the classic text protocol"


class RequestDecoder:
    """The requests of one client connection. `value_limit` is the largest value in bytes that is taken."""

    __slots__ = ("_closed", "_line", "_missing", "_pieces", "_rejected", "_started", "_store", "_value_limit")

    def __init__(self, value_limit: int = VALUE_BYTES_MAX) -> None:
        self._value_limit = value_limit
        self._line = bytearray()  # the beginning of a line; never has a line feed in it
        self._store: Request | None = None  # whose value is on its way, with
        self._pieces: list[bytes | bytearray] = []  # its line and what came of the value, and
        self._rejected: Rejected | None = None  # or: whose value is being swallowed, with
        self._missing = 0  # how many bytes are still to come, CR LF included
        self._started = False
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether nothing more will be decoded, after a `Rejected` that closes."""
        return self._closed

    @property
    def idle(self) -> bool:
        """Whether the last request ended with the last chunk: nothing is begun."""
        return not (self._line or self._store or self._rejected)

    @property
    def buffered(self) -> int:
        """Bytes kept of a request that is not whole yet."""
        return len(self._line) + sum(map(len, self._pieces))

    def decode(self, chunk: bytes) -> list[Message]:
        """All requests that end within this chunk, in order. Never raises."""
        found: list[Message] = []
        if self._closed or not chunk:
            return found
        if not self._started:
            if chunk[0] == _BINARY_REQUEST or self._line:
                return self._refuse_binary(chunk)
            self._started = True
        if self._store is None and self._rejected is None:
            if self._line:
                if b"\n" not in chunk:
                    self._keep_line(chunk, found)
                    return found
                chunk = bytes(self._line) + chunk
                self._line.clear()
            self._decode(chunk, 0, found)
        elif self._missing > len(chunk):
            self._missing -= len(chunk)
            if self._store is not None:
                self._keep_piece(chunk)
        else:
            end = self._missing
            self._finish_value(chunk[:end] if self._store is not None else b"", found)
            self._decode(chunk, end, found)
        return found

    def _decode(self, data: bytes, at: int, found: list[Message]) -> None:
        size = len(data)
        limit = self._value_limit
        while at < size:
            match = _WHOLE(data, at)
            if match is not None:
                if match.lastindex == 1:
                    raw, key = match.group(0, 1)
                    found.append(Request(b"get", (key,), raw))
                    at = match.end()
                    continue
                start = match.end()
                key, flags, exptime, length = match.group(2, 3, 4, 5)
                end = start + int(length)
                if end + 2 <= size and data.startswith(b"\r\n", end) and end - start <= limit:
                    raw = data[at : end + 2]
                    found.append(Request(b"set", (key,), raw, int(flags), int(exptime), start - at))
                    at = end + 2
                    continue
            newline = data.find(b"\n", at)
            if newline < 0:
                self._keep_line(data[at:], found)
                return
            if newline - at > LINE_BYTES_MAX and not self._long_line_allowed(data[at : newline + 1]):
                self._close(TOO_LONG, "line too long", found)
                return
            line = data[at : newline - 1 if data[newline - 1] == 13 and newline > at else newline]
            at = self._decode_line(line, data, newline + 1, found)
            if self._closed:
                return

    def _decode_line(self, line: bytes, data: bytes, at: int, found: list[Message]) -> int:
        """Where the request ends that begins with the line; its value begins at `at`."""
        message, follows = parse_line(line)
        if type(message) is Rejected:
            if not follows:
                found.append(message)
                self._closed = message.close
                return at
            self._rejected = message
        else:
            assert type(message) is Request
            if not follows:
                found.append(message)
                return at
            if follows - 2 > self._value_limit:
                self._rejected = too_large(message)
            else:
                self._store = message
                self._pieces = [message.raw]
        self._missing = follows
        end = at + follows
        if end > len(data):
            self._missing = end - len(data)
            if self._store is not None and at < len(data):
                self._keep_piece(data[at:])
            return len(data)
        self._finish_value(data[at:end] if self._store is not None else b"", found)
        return end

    def _finish_value(self, last: bytes, found: list[Message]) -> None:
        self._missing = 0
        store, rejected = self._store, self._rejected
        self._store = self._rejected = None
        if rejected is not None:
            found.append(rejected)
        elif store is not None:
            self._pieces.append(last)
            raw = b"".join(self._pieces)
            self._pieces = []
            if raw.endswith(b"\r\n", store.value_at):
                found.append(
                    Request(
                        store.verb,
                        store.keys,
                        raw,
                        store.flags,
                        store.exptime,
                        store.value_at,
                        store.cas,
                        0,
                        store.noreply,
                    )
                )
            else:
                found.append(Rejected(b"" if store.noreply else BAD_CHUNK, reason="value without its end"))

    def _keep_piece(self, piece: bytes) -> None:
        last = self._pieces[-1]
        if len(piece) >= SMALL_BYTES:
            self._pieces.append(piece)
        elif type(last) is bytearray and len(last) < 16 * SMALL_BYTES:
            last += piece
        else:
            self._pieces.append(bytearray(piece))

    def _keep_line(self, piece: bytes, found: list[Message]) -> None:
        self._line += piece
        if len(self._line) > LINE_BYTES_MAX and not self._long_line_allowed(self._line):
            self._close(TOO_LONG, "line too long", found)

    @staticmethod
    def _long_line_allowed(line: bytes | bytearray) -> bool:
        return len(line) <= MULTIGET_BYTES_MAX and _MULTIGET.match(line) is not None

    def _close(self, answer: bytes, reason: str, found: list[Message]) -> None:
        self._closed = True
        self._line.clear()
        found.append(Rejected(answer, close=True, reason=reason))

    def _refuse_binary(self, chunk: bytes) -> list[Message]:
        self._line += chunk
        if len(self._line) < _BINARY_HEADER.size:
            return []
        _, opcode, _, _, _, _, _, opaque, _ = _BINARY_HEADER.unpack_from(self._line)
        header = _BINARY_HEADER.pack(0x81, opcode, 0, 0, 0, _BINARY_UNKNOWN_COMMAND, len(_BINARY_LATER), opaque, 0)
        found: list[Message] = []
        self._close(header + _BINARY_LATER, "binary protocol", found)
        return found


def too_large(request: Request) -> Rejected:
    """What a server does with a value over its limit: only a `set` deletes the old one (tried on 1.6.18)."""
    return Rejected(
        b"" if request.noreply else TOO_LARGE,
        delete=request.keys[0] if request.verb == b"set" else None,
        reason="value too large",
    )
