"""Takes a memcached server's bytes apart into replies, each held against the request that it answers.

A pipelined connection is shared by many sessions, so that one reply too many or too few would give every later session
somebody else's value. Therefore a reply is accepted only if its shape, its words and its keys fit the request at the
head of the queue; anything else is a ProtocolError, after which the connection is closed and the keys of all requests
that are still waiting are doubtful.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Final

from gateway.errors import ProtocolError
from gateway.protocol.memcached.reply import VALUE_HEADER, Code, Reply
from gateway.protocol.memcached.request import Request

LINE_BYTES_MAX: Final = 8192  # no server writes a longer line: keys have 250 bytes, a stat's value some hundreds
STATS_BYTES_MAX: Final = 16_777_216  # `stats items`, `stats conns` of ten thousand connections
REPLY_VALUE_BYTES_MAX: Final = 1_073_741_824  # memcached -I goes up to 1 GiB

_META_CODES: Final = {b"HD": Code.HD, b"EN": Code.EN, b"NF": Code.NF, b"NS": Code.NS, b"EX": Code.EX, b"VA": Code.VA}
_STORE_LINES: Final = {
    b"STORED": Code.STORED,
    b"NOT_STORED": Code.NOT_STORED,
}
_LINES: Final[dict[bytes, dict[bytes, Code]]] = {
    **dict.fromkeys((b"set", b"add", b"replace", b"append", b"prepend"), _STORE_LINES),
    b"cas": {b"STORED": Code.STORED, b"EXISTS": Code.EXISTS, b"NOT_FOUND": Code.NOT_FOUND},
    b"delete": {b"DELETED": Code.DELETED, b"NOT_FOUND": Code.NOT_FOUND},
    b"touch": {b"TOUCHED": Code.TOUCHED, b"NOT_FOUND": Code.NOT_FOUND},
    b"incr": {b"NOT_FOUND": Code.NOT_FOUND},
    b"decr": {b"NOT_FOUND": Code.NOT_FOUND},
    b"flush_all": {b"OK": Code.OK},
    b"verbosity": {b"OK": Code.OK},
    b"mn": {b"MN": Code.MN},
    b"stats": {b"END": Code.STATS, b"RESET": Code.RESET, b"OK": Code.OK},
    b"version": {},
    b"me": {b"EN": Code.EN},
}
_META: Final[dict[bytes, frozenset[bytes]]] = {
    b"mg": frozenset({b"HD", b"VA", b"EN", b"NF"}),  # NF: with E or a vivify that lost, newer servers only
    b"ms": frozenset({b"HD", b"NS", b"EX", b"NF"}),
    b"md": frozenset({b"HD", b"EX", b"NF"}),
    b"ma": frozenset({b"HD", b"VA", b"NS", b"EX", b"NF"}),
}
_VALUES: Final = frozenset({b"get", b"gets", b"gat", b"gats"})
_ERRORS: Final = ((b"SERVER_ERROR", Code.SERVER_ERROR), (b"CLIENT_ERROR", Code.CLIENT_ERROR), (b"ERROR", Code.ERROR))
_META_HEADER: Final = re.compile(rb"VA (\d{1,10})(?: [^\x00-\x20\x7f]+)* *\r\n")

_header = VALUE_HEADER.match
_MISS: Final = Reply(Code.MISS, b"END\r\n")
_STORED: Final = Reply(Code.STORED, b"STORED\r\n")


class ReplyDecoder:
    """The replies of one server connection. Put every request into `expected` when its bytes are queued for it."""

    __slots__ = ("_at", "_blocks", "_key_at", "_need", "_pieces", "_size", "expected")

    def __init__(self) -> None:
        self.expected: deque[Request] = deque()
        # Of the reply at the head, if it has begun:
        self._blocks: list[bytes] = []  # whole VALUE blocks or STAT lines that are known already,
        self._pieces: list[bytes] = []  # what came after them, not joined until it can be whole, so that a large
        self._need = 0  # value in many chunks is copied once: so many bytes are needed for that,
        self._size = 0  # and so many are there
        self._at = 0  # how many of the bytes in hand are whole blocks, while scanning
        self._key_at = 0  # the first of the request's keys that the next VALUE block may have

    @property
    def buffered(self) -> int:
        """Bytes kept of a reply that is not whole yet."""
        return self._size + sum(map(len, self._blocks))

    def decode(self, chunk: bytes) -> list[Reply]:
        """All replies that end within this chunk, in the order of `expected`, from which their requests are taken.

        Raises ProtocolError for a reply that does not fit its request, or that nothing asked for. Replies before it
        in the same chunk are lost with it, as is the connection: their requests are to be treated as unanswered too.
        """
        found: list[Reply] = []
        if self._size:
            self._pieces.append(chunk)
            self._size += len(chunk)
            if self._size < self._need:
                return found
            data = b"".join(self._pieces)
            self._pieces = []
            self._size = 0
        else:
            data = chunk
        expected = self.expected
        end = len(data)
        at = 0
        while at < end:
            if not expected:
                raise ProtocolError(f"the server answered although nothing was asked: {data[at : at + 60]!r}")
            request = expected[0]
            verb = request.verb
            if verb == b"get" and len(request.keys) == 1:
                if data.startswith(b"END\r\n", at):
                    reply, stop = _MISS, at + 5
                else:
                    match = _header(data, at)
                    if match is not None:
                        stop = match.end() + int(match[3]) + 7
                        if stop <= end:
                            if match[1] != request.keys[0] or not data.startswith(b"\r\nEND\r\n", stop - 7):
                                raise _unfit(request, data, at)
                            reply = Reply(Code.VALUES, data[at:stop])
                        else:
                            self._keep(data, at, stop - at)
                            return found
                    else:
                        stop = self._slow(request, data, at, found)
                        if not stop:
                            return found
                        at = stop
                        continue
            elif verb == b"set" and data.startswith(b"STORED\r\n", at):
                reply, stop = _STORED, at + 8
            else:
                stop = self._slow(request, data, at, found)
                if not stop:
                    return found
                at = stop
                continue
            expected.popleft()
            found.append(reply)
            at = stop
        return found

    def _slow(self, request: Request, data: bytes, at: int, found: list[Reply]) -> int:
        """Where the reply at `at` ends, having put it into `found`; 0 if it is not whole, having kept it."""
        verb = request.verb
        if verb in _VALUES:
            code, stop = self._scan_values(request, data, at)
        elif verb == b"stats":
            code, stop = self._scan_stats(request, data, at)
        else:
            code, stop = self._scan_line(request, data, at)
        if code is None:
            if self._at:
                self._blocks.append(data[at : at + self._at])
                at += self._at
                stop -= self._at
                self._at = 0
            self._keep(data, at, stop)
            return 0
        # A server that fails in the middle has nothing but its error to say.
        raw = data[at + self._at : stop] if code >= Code.ERROR else data[at:stop]
        if self._blocks:
            if code < Code.ERROR:
                raw = b"".join((*self._blocks, raw))
            self._blocks.clear()
        self._at = self._key_at = 0
        self.expected.popleft()
        found.append(Reply(code, raw))
        return stop

    def _keep(self, data: bytes, at: int, need: int) -> None:
        rest = data[at:]
        if need > REPLY_VALUE_BYTES_MAX:
            raise ProtocolError(f"the server announces a reply of {need} bytes, more than memcached can hold")
        self._pieces = [rest]
        self._size = len(rest)
        self._need = need

    def _scan_line(self, request: Request, data: bytes, at: int) -> tuple[Code | None, int]:
        """Code and end of a reply; None and how many bytes it has at least, if it is not whole."""
        line_end = _line_end(request, data, at)
        if line_end < 0:
            return None, 0
        line = data[at:line_end]
        verb = request.verb
        meta = _META.get(verb)
        if meta is not None:
            word = line.partition(b" ")[0]
            if word in meta:
                if word != b"VA":
                    return _META_CODES[word], line_end + 2
                match = _META_HEADER.match(data, at)
                if match is None:
                    raise _unfit(request, data, at)
                stop = match.end() + int(match[1]) + 2
                if stop > len(data):
                    return None, stop - at
                if not data.startswith(b"\r\n", stop - 2):
                    raise _unfit(request, data, at)
                return Code.VA, stop
        else:
            codes = _LINES.get(verb)
            if codes is None:
                raise ProtocolError(f"{verb!r} cannot be sent over a shared connection: its answer has no known end")
            code = codes.get(line)
            if code is None:
                if line.isdigit() and verb in (b"incr", b"decr") and len(line) <= 20:
                    code = Code.NUMBER
                elif verb == b"version" and line.startswith(b"VERSION "):
                    code = Code.VERSION
                elif verb == b"me" and line.startswith(b"ME "):
                    code = Code.ME
            if code is not None:
                return code, line_end + 2
        return _error(request, data, at, line), line_end + 2

    def _scan_values(self, request: Request, data: bytes, at: int) -> tuple[Code | None, int]:
        block = at
        keys = request.keys
        while True:
            match = _header(data, block)
            if match is None:
                line_end = _line_end(request, data, block)
                if line_end < 0:
                    return None, 0
                line = data[block:line_end]
                if line == b"END":
                    return Code.VALUES if block > at or self._blocks else Code.MISS, line_end + 2
                return _error(request, data, block, line), line_end + 2
            try:
                self._key_at = keys.index(match[1], self._key_at) + 1
            except ValueError:
                raise _unfit(request, data, block) from None
            stop = match.end() + int(match[3]) + 2
            if stop > len(data):
                self._key_at -= 1
                return None, stop - at
            if not data.startswith(b"\r\n", stop - 2):
                raise _unfit(request, data, block)
            block = stop
            self._at = block - at

    def _scan_stats(self, request: Request, data: bytes, at: int) -> tuple[Code | None, int]:
        line_at = at
        while True:
            line_end = _line_end(request, data, line_at)
            if line_end < 0:
                if self.buffered > STATS_BYTES_MAX:
                    raise ProtocolError(f"the server's statistics have no end within {STATS_BYTES_MAX} bytes")
                return None, 0
            if not data.startswith((b"STAT ", b"ITEM ", b"PREFIX "), line_at):
                line = data[line_at:line_end]
                code = _LINES[b"stats"].get(line)
                if code is None or (line != b"END" and (line_at > at or self._blocks)):
                    code = _error(request, data, line_at, line)
                return code, line_end + 2
            line_at = line_end + 2
            self._at = line_at - at


def _line_end(request: Request, data: bytes, at: int) -> int:
    """Where the CR LF of the line at `at` is, -1 if it did not come yet."""
    line_end = data.find(b"\r\n", at, at + LINE_BYTES_MAX)
    if line_end < 0 and len(data) - at >= LINE_BYTES_MAX:
        raise _unfit(request, data, at)
    return line_end


def _error(request: Request, data: bytes, at: int, line: bytes) -> Code:
    for word, code in _ERRORS:
        if line == word or line.startswith((word + b" ", word + b":")):
            return code
    raise _unfit(request, data, at)


def _unfit(request: Request, data: bytes, at: int) -> ProtocolError:
    return ProtocolError(f"the server's answer does not fit {request.raw[:60]!r}: {data[at : at + 60]!r}")
