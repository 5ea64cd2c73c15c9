"""The compressed protocol as a machine that turns bytes into bytes: zlib and zstd, for clients and for servers.

A compressed packet has a header of seven bytes, the length of what follows, a sequence id of its own, and the length
that it has when decompressed, or 0 if it was not compressed; then a piece of the stream of ordinary packets, cut anywhere
(https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_compression_packet.html). `CompressionLayer` is a
`net.layers.Layer`: `inbound` takes what came from the wire, `outbound` what goes there.

What a peer may do to us. Some hundred bytes may stand for 16 MiB, so nothing is decompressed further than its owner
takes it: at most PIECE_BYTES at a time, one compressed packet after the other, the next only when the owner reads
on. What a packet holds must be what its header says, to the byte, and its header must not say more than `limit`.

Sequence ids. Both sides count one sequence: the compressed packets of a command from 0, those of its reply go on from
there. They are not checked here, since those of the packets inside are; but peers check ours, so towards a server every
command must begin a compressed packet with 0: the layer follows the ordinary packets that it is given.
"""

from __future__ import annotations

import sys
import zlib
from functools import cache
from typing import Final

from gateway.protocol.mysql.constants import MAX_PAYLOAD, Capability, ErrorCode
from gateway.protocol.mysql.packets import HEADER, PacketError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESSED_HEADER: Final = 7  # bytes: length (3), sequence id (1), length when decompressed (3)
SMALLEST: Final = 50  # bytes; MIN_COMPRESS_LENGTH of the servers: less is sent as it is
PIECE_BYTES: Final = 131_072  # given to the owner at once, and compressed into one packet at most
ZLIB_LEVEL: Final = 1  # the servers take 6, which is three times the time for a tenth less bytes
ZSTD_LEVEL: Final = 3  # the servers' default; a client says its own in the handshake
ZSTD_LEVELS: Final = range(1, 7)  # of the 22 that a client may name: a piece at level 22 takes 100 ms, at 6 2 ms
LEAST_COST: Final = 256  # bytes that a packet counts at least, of those given to the owner at once
WINDOW_LOG: Final = 24  # zstd: a packet has at most 16 MiB, no window need be larger (2**24 bytes)

_ZLIB: Final = int(Capability.COMPRESS)
_ZSTD: Final = int(Capability.ZSTD_COMPRESSION_ALGORITHM)


class _ZlibStream:
    """One compressed packet being decompressed piece by piece."""

    def __init__(self, data: bytes) -> None:
        self._object = zlib.decompressobj()
        self._rest = data

    def read(self, size: int) -> bytes:
        """At most `size` bytes; b"" at the end, or where it goes on behind the end of the data."""
        try:
            piece = self._object.decompress(self._rest, size)
        except zlib.error as error:
            raise malformed(str(error)) from error
        self._rest = self._object.unconsumed_tail
        return piece

    @property
    def is_whole(self) -> bool:
        """Whether all data was used, and nothing is missing."""
        return self._object.eof and not self._object.unused_data


class _ZstdStream:
    """The same for zstd."""

    def __init__(self, data: bytes) -> None:
        self._object = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG})
        self._rest = data

    def read(self, size: int) -> bytes:
        if self._object.eof:
            return b""
        try:
            piece = self._object.decompress(self._rest, size)
        except zstd.ZstdError as error:
            raise malformed(str(error)) from error
        self._rest = b""  # it keeps what it did not use
        return piece

    @property
    def is_whole(self) -> bool:
        return self._object.eof and not self._object.unused_data


@cache
def _zstd_compressor(level: int) -> zstd.ZstdCompressor:
    """One for all connections: it has some MiB, and keeps nothing between two frames."""
    return zstd.ZstdCompressor(level)


def malformed(what: str) -> PacketError:
    """The servers' error for what cannot be decompressed."""
    return PacketError(f"Couldn't uncompress communication packet ({what})", ErrorCode.UNCOMPRESS)


def algorithm_of(capabilities: int) -> int:
    """The one that holds where these capabilities were agreed on, 0 for none: zlib goes before zstd, as in servers."""
    return capabilities & _ZLIB or capabilities & _ZSTD


class CompressionLayer:
    """The compressed protocol on one connection; see the module, and `net.layers.Layer`.

    `algorithm` is Capability.COMPRESS or ZSTD_COMPRESSION_ALGORITHM; `level` zstd's, brought into ZSTD_LEVELS.
    `towards_server`: the peer is a server. `limit` is the most that one compressed packet may hold, in bytes.
    """

    __slots__ = (
        "_algorithm",
        "_buffer",
        "_last_plain",
        "_left",
        "_level",
        "_limit",
        "_plain_head",
        "_plain_left",
        "_received",
        "_sequence",
        "_stream",
        "_towards_server",
    )

    open: Final = True
    over: Final = False
    wants_to_send: Final = False

    def __init__(
        self, algorithm: int, *, towards_server: bool, level: int = ZSTD_LEVEL, limit: int = MAX_PAYLOAD
    ) -> None:
        self._algorithm = algorithm
        self._level = min(max(level, ZSTD_LEVELS[0]), ZSTD_LEVELS[-1])
        self._limit = min(limit, MAX_PAYLOAD)
        self._towards_server = towards_server
        self._buffer = bytearray()  # from the wire
        self._stream: _ZlibStream | _ZstdStream | None = None
        self._left = 0  # bytes that the packet at hand has still to yield
        self._sequence = 0  # of the next compressed packet, whoever sends it
        # Where the stream of ordinary packets is that goes out to a server:
        self._plain_head = b""  # of a header that was cut off
        self._plain_left = 0  # bytes of the packet at hand
        self._last_plain = 0  # sequence id of the last one
        self._received = True  # the peer has sent something since

    # -- from the wire

    @property
    def holding(self) -> bool:
        if self._stream is not None:
            return True
        buffer = self._buffer
        return len(buffer) >= COMPRESSED_HEADER and len(buffer) >= COMPRESSED_HEADER + self._length

    @property
    def _length(self) -> int:
        return int.from_bytes(self._buffer[:3], "little")

    def inbound(self, wire: bytes) -> bytes:
        """What the next compressed packets hold, up to PIECE_BYTES. Raises PacketError."""
        buffer = self._buffer
        buffer += wire
        pieces: list[bytes] = []
        room = PIECE_BYTES
        while room > 0:
            if self._stream is not None:
                piece = self._read(room)
            elif not self.holding:
                if len(buffer) >= COMPRESSED_HEADER:
                    self._check_header()
                break
            else:
                piece = self._begin_packet()
            pieces.append(piece)
            room -= max(len(piece), LEAST_COST)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _check_header(self) -> int:
        """The length when decompressed, of the packet at the buffer's start."""
        size = int.from_bytes(self._buffer[4:COMPRESSED_HEADER], "little")
        if max(size, self._length) > self._limit:
            raise PacketError("Got a packet bigger than 'max_allowed_packet' bytes", ErrorCode.PACKET_TOO_LARGE)
        if size and not self._length:
            raise malformed("nothing is there")
        return size

    def _begin_packet(self) -> bytes:
        """Takes a packet off the buffer: what it holds, if it is not compressed; else b"", and a stream to read."""
        size = self._check_header()
        end = COMPRESSED_HEADER + self._length
        self._sequence = self._buffer[3] + 1
        self._received = True
        data = bytes(memoryview(self._buffer)[COMPRESSED_HEADER:end])
        del self._buffer[:end]
        if not size:
            return data
        self._stream = _ZlibStream(data) if self._algorithm == _ZLIB else _ZstdStream(data)
        self._left = size
        return b""

    def _read(self, room: int) -> bytes:
        stream = self._stream
        assert stream is not None
        # One byte more than there should be would show that there is more.
        piece = stream.read(min(room, self._left + 1))
        self._left -= len(piece)
        if self._left < 0:
            raise malformed("longer than its header says")
        if self._left == 0:
            if stream.read(1) or not stream.is_whole:
                raise malformed("not as long as its header says")
            self._stream = None
        elif not piece:
            raise malformed("shorter than its header says")
        return piece

    def ended(self) -> None:
        """The packets inside tell whether something is missing."""

    # -- to the wire

    def outbound(self, plain: bytes) -> bytes:
        """Compressed packets that hold `plain`."""
        if not plain:
            return b""
        if not self._towards_server:
            return self._compressed(plain)
        parts: list[bytes] = []
        start = 0
        for at in self._commands_in(plain):
            if at > start:
                parts.append(self._compressed(plain[start:at]))
                start = at
            self._sequence = 0
        parts.append(self._compressed(plain[start:]))
        return b"".join(parts)

    def _compressed(self, plain: bytes) -> bytes:
        parts: list[bytes] = []
        for start in range(0, len(plain), PIECE_BYTES):
            piece = plain[start : start + PIECE_BYTES]
            size = len(piece)
            packed = piece
            if size >= SMALLEST:
                packed = (
                    zlib.compress(piece, ZLIB_LEVEL)
                    if self._algorithm == _ZLIB
                    else _zstd_compressor(self._level).compress(piece, zstd.ZstdCompressor.FLUSH_FRAME)
                )
            if len(packed) >= size:
                packed, size = piece, 0
            parts += (
                len(packed).to_bytes(3, "little"),
                bytes((self._sequence & 0xFF,)),
                size.to_bytes(3, "little"),
                packed,
            )
            self._sequence += 1
        return b"".join(parts)

    def _commands_in(self, plain: bytes) -> list[int]:
        """Offsets in `plain` where a command begins: a packet with the sequence id 0 that goes on with no file.

        A header that is cut off by the end of `plain` is completed by the next one: such a command begins there, late
        by at most three bytes, which have gone out in the packet before. So whoever writes must write commands whole;
        only a file's packets may be cut.
        """
        found: list[int] = []
        at, size = 0, len(plain)
        while True:
            step = min(self._plain_left, size - at)
            at += step
            self._plain_left -= step
            if at == size:
                return found
            head = self._plain_head + plain[at : at + HEADER - len(self._plain_head)]
            if len(head) < HEADER:
                self._plain_head = head
                return found
            if head[3] == 0 and not self._plain_head and (self._received or self._last_plain != 0xFF):
                found.append(at)
            self._received = False
            self._last_plain = head[3]
            at += HEADER - len(self._plain_head)
            self._plain_head = b""
            self._plain_left = int.from_bytes(head[:3], "little")

    def farewell(self) -> bytes:
        return b""
