"""The compressed protocol as a machine that turns bytes into bytes: zlib and zstd, for clients and for servers.

A compressed packet has a header of seven bytes, the length of what follows, a sequence id of its own, and the length
that it has when decompressed, or 0 if it was not compressed; then a piece of the stream of ordinary packets, cut
anywhere
(https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_compression_packet.html). `CompressionLayer` is a
`net.layers.Layer`: `inbound` takes what came from the wire, `outbound` what goes there.

What a peer may do to us. Some hundred bytes may stand for 16 MiB, so nothing is decompressed further than its owner
takes it: at most PIECE_BYTES at a time, one compressed packet after the other, the next only when the owner reads
on. What a packet holds must be what its header says, to the byte, and its header must not say more than `limit`.

Sequence ids. Compressed packets are numbered on their own: a reply's go on where those of its command ended. Ours do,
for clients that check it. Theirs are not checked: those of the packets inside are. But a server numbers even the
packets inside its reply from where the *compressed* packets of the command ended (tried). So towards a server every
ordinary packet is one compressed packet with the same number, and replies are what they would be without compression.
Packets of 16 MiB - 1 do not fit; their last bytes go in front of the next. A command whose last packet is less than
5 bytes smaller needs one compressed packet more: its reply is numbered by `packets_ahead` more.

What is compressed is at most PIECE_BYTES at once, since others wait meanwhile. The header of a longer packet says what
it came to, so it is compressed piece by piece and sent when it is whole; if its first piece hardly shrinks, it goes as
it is.
"""

from __future__ import annotations

import sys
import zlib
from functools import cache
from typing import Final

from gateway.protocol.mysql.constants import MAX_PAYLOAD, Capability, ErrorCode
from gateway.protocol.mysql.packets import HEADER, TOO_LARGE, PacketError

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
LEAST_SAVED: Final = 8_192  # bytes of the first piece; what does not shrink in 16 MiB grows by less (5 bytes in 16 KiB)
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


def _header(length: int, sequence: int, size: int) -> bytes:
    return length.to_bytes(3, "little") + bytes((sequence & 0xFF,)) + size.to_bytes(3, "little")


def malformed(what: str) -> PacketError:
    """The servers' error for what cannot be decompressed."""
    return PacketError(f"Couldn't uncompress communication packet ({what})", ErrorCode.UNCOMPRESS)


def algorithm_of(capabilities: int) -> int:
    """The one that holds where these capabilities were agreed on, 0 for none: zlib goes before zstd, as in servers."""
    return capabilities & _ZLIB or capabilities & _ZSTD


def packets_ahead(size: int) -> int:
    """How many compressed packets more than ordinary ones a command to a server takes, of `size` with all headers."""
    return -(-size // MAX_PAYLOAD) - (size // (HEADER + MAX_PAYLOAD) + 1)


class _LongPacket:
    """One compressed packet to a server in the making: `size` bytes, `left` of which have not come yet."""

    def __init__(self, algorithm: int, level: int, size: int, sequence: int) -> None:
        self._packer: zlib._Compress | zstd.ZstdCompressor = (
            zlib.compressobj(ZLIB_LEVEL) if algorithm == _ZLIB else zstd.ZstdCompressor(level)
        )
        self._packed: list[bytes] = []
        self._size = size
        self._sequence = sequence
        self.left = size

    def add(self, piece: bytes) -> None:
        self._packed.append(self._packer.compress(piece))
        self.left -= len(piece)

    def whole(self) -> list[bytes]:
        self._packed.append(self._packer.flush())
        return [_header(sum(map(len, self._packed)), self._sequence, self._size), *self._packed]


class CompressionLayer:
    """The compressed protocol on one connection; see the module, and `net.layers.Layer`.

    `algorithm` is Capability.COMPRESS or ZSTD_COMPRESSION_ALGORITHM; `level` zstd's, brought into ZSTD_LEVELS.
    `towards_server`: the peer is a server. `limit` is the most that one compressed packet may hold, in bytes.
    """

    __slots__ = (
        "_algorithm",
        "_buffer",
        "_carry",
        "_left",
        "_level",
        "_limit",
        "_long",
        "_pending",
        "_plain_left",
        "_raw_left",
        "_sequence",
        "_stream",
        "_tail",
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
        self._plain_left = 0  # the same of one that is not compressed, which need not be there whole
        self._sequence = 0  # of the next compressed packet, whoever sends it
        # Where the stream of ordinary packets is that goes out to a server:
        self._pending = b""  # the beginning of a packet, until its first piece is there
        self._long: _LongPacket | None = None
        self._raw_left = 0  # bytes of a compressed packet that goes out as it is, its header first
        self._carry = 0  # bytes that did not fit into the compressed packet before
        self._tail = 0  # the same, where no other packet follows that could have them

    # -- from the wire

    @property
    def holding(self) -> bool:
        buffer = self._buffer
        if self._stream is not None or self._plain_left:
            return self._stream is not None or bool(buffer)
        if len(buffer) < COMPRESSED_HEADER:
            return False
        return not self._size or len(buffer) >= COMPRESSED_HEADER + self._length

    @property
    def _size(self) -> int:
        return int.from_bytes(self._buffer[4:COMPRESSED_HEADER], "little")

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
            elif self._plain_left:
                piece = bytes(memoryview(buffer)[: min(self._plain_left, room)])
                if not piece:
                    break
                del buffer[: len(piece)]
                self._plain_left -= len(piece)
            elif len(buffer) < COMPRESSED_HEADER or not self._begin_packet():
                break
            else:
                piece = b""
            pieces.append(piece)
            room -= max(len(piece), LEAST_COST)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _begin_packet(self) -> bool:
        """Takes the header of the next packet, and what is compressed whole; False if that is not all there."""
        length, size = self._length, self._size
        if max(size, length) > self._limit:
            raise PacketError(TOO_LARGE, ErrorCode.PACKET_TOO_LARGE)
        if size and not length:
            raise malformed("nothing is there")
        end = COMPRESSED_HEADER + (length if size else 0)
        if len(self._buffer) < end:
            return False
        self._sequence = self._buffer[3] + 1
        data = bytes(memoryview(self._buffer)[COMPRESSED_HEADER:end])
        del self._buffer[:end]
        if size:
            self._stream = _ZlibStream(data) if self._algorithm == _ZLIB else _ZstdStream(data)
            self._left = size
        else:
            self._plain_left = length
        return True

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
        return self._by_packet(plain) if self._towards_server else self._by_piece(plain)

    def _by_piece(self, plain: bytes) -> bytes:
        parts: list[bytes] = []
        for start in range(0, len(plain), PIECE_BYTES):
            parts += self._packed(plain[start : start + PIECE_BYTES], self._sequence)
            self._sequence += 1
        return b"".join(parts)

    def _by_packet(self, plain: bytes) -> bytes:
        """Each ordinary packet as one compressed packet with the same sequence id."""
        if self._pending:
            plain = self._pending + plain
            self._pending = b""
        parts: list[bytes] = []
        at, size = 0, len(plain)
        while at < size:
            if self._raw_left:
                step = min(self._raw_left, size - at)
                parts.append(plain[at : at + step])
                self._raw_left -= step
                at += step
                continue
            if self._long is not None:
                step = min(self._long.left, size - at)
                self._long.add(plain[at : at + step])
                at += step
                if not self._long.left:
                    parts += self._long.whole()
                    self._long = None
                continue
            if self._tail:
                parts.append(_header(self._tail, self._sequence, 0))
                self._raw_left, self._tail = self._tail, 0
                continue
            header = at + self._carry
            if size < header + HEADER:
                self._pending = plain[at:]
                break
            length, sequence = int.from_bytes(plain[header : header + 3], "little"), plain[header + 3]
            whole = self._carry + HEADER + length
            body = min(whole, MAX_PAYLOAD)
            if size < at + min(body, PIECE_BYTES):
                self._pending = plain[at:]
                break
            self._carry = whole - body
            if body <= PIECE_BYTES:
                parts += self._packed(plain[at : at + body], sequence)
                at += body
            elif len(self._packed(plain[at : at + PIECE_BYTES], 0)[1]) > PIECE_BYTES - LEAST_SAVED:
                parts.append(_header(body, sequence, 0))
                self._raw_left = body
            else:
                self._long = _LongPacket(self._algorithm, self._level, body, sequence)
            if length < MAX_PAYLOAD:  # no other goes on from here
                self._tail, self._carry = self._carry, 0
                self._sequence = sequence + 1
        return b"".join(parts)

    def _packed(self, plain: bytes, sequence: int) -> tuple[bytes, bytes]:
        """Header and body of one compressed packet."""
        size = len(plain)
        if size >= SMALLEST:
            packed = (
                zlib.compress(plain, ZLIB_LEVEL)
                if self._algorithm == _ZLIB
                else _zstd_compressor(self._level).compress(plain, zstd.ZstdCompressor.FLUSH_FRAME)
            )
            if len(packed) < size:
                return _header(len(packed), sequence, size), packed
        return _header(size, sequence, 0), plain

    def farewell(self) -> bytes:
        return b""
