"""What a memcached server answered: a code, and the bytes as they came."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

import msgspec


class Code(IntEnum):
    """What kind of answer it is; classic and meta forms of the same answer keep their own codes."""

    STORED = 1
    NOT_STORED = 2
    EXISTS = 3
    NOT_FOUND = 4
    DELETED = 5
    TOUCHED = 6
    OK = 7
    RESET = 8  # stats reset
    NUMBER = 9  # incr and decr: the line is the new value
    VALUES = 10  # at least one VALUE block, then END
    MISS = 11  # END at once
    STATS = 12  # STAT lines, then END
    VERSION = 13
    HD = 20  # meta: done
    VA = 21  # meta: value follows
    EN = 22  # meta: mg missed
    NF = 23  # meta: not found
    NS = 24  # meta: not stored
    EX = 25  # meta: CAS differs
    MN = 26  # meta: no-op
    ME = 27  # meta: debug line of me
    ERROR = 40  # what came is not a command to this server
    CLIENT_ERROR = 41
    SERVER_ERROR = 42


class Value(NamedTuple):
    """One VALUE block taken apart; `cas` is None without one."""

    key: bytes
    flags: int
    value: bytes
    cas: int | None


class Reply(msgspec.Struct, frozen=True, gc=False):
    """One whole answer: `raw` has all of its bytes, the ends of lines included."""

    code: Code
    raw: bytes

    @property
    def failed(self) -> bool:
        """Whether it is ERROR, CLIENT_ERROR or SERVER_ERROR."""
        return self.code >= Code.ERROR

    @property
    def line(self) -> bytes:
        """The first line, without its end."""
        return self.raw[: self.raw.index(b"\r\n")]

    @property
    def number(self) -> int:
        """The new value of an incr or decr. Only for Code.NUMBER."""
        return int(self.line)

    def values(self) -> list[Value]:
        """The VALUE blocks taken apart, in the server's order. Only for VALUES and MISS."""
        return [
            Value(match[1], int(match[2]), self.raw[start : end - 2], int(match[4]) if match[4] else None)
            for match, start, end in _blocks(self.raw)
        ]

    def blocks(self) -> list[tuple[bytes, bytes]]:
        """Key and whole VALUE block (header, value, CR LF) of each hit, in the server's order; END is left out."""
        return [(match[1], self.raw[match.start() : end]) for match, _, end in _blocks(self.raw)]

    def stats(self) -> dict[bytes, bytes]:
        """Name and value of each STAT line. Only for STATS."""
        pairs = (line.split(b" ", 2) for line in self.raw.split(b"\r\n") if line.startswith(b"STAT "))
        return {pair[1]: pair[2] if len(pair) > 2 else b"" for pair in pairs}

    def meta_flags(self) -> dict[bytes, bytes]:
        """The flags of a meta answer by letter, with what follows it: {b"c": b"12", b"W": b""}."""
        words = self.line.split()
        return {word[:1]: word[1:] for word in words[2 if self.code is Code.VA else 1 :]}

    @property
    def meta_value(self) -> bytes:
        """The value of a VA answer."""
        return self.raw[self.raw.index(b"\r\n") + 2 : -2]


# How a server writes the header of a value. Flags are 32 bits, the size below 2^31, the CAS 64 bits.
VALUE_HEADER: Final = re.compile(rb"VALUE ([^\x00-\x20\x7f]{1,250}) (\d{1,10}) (\d{1,10})(?: (\d{1,20}))?\r\n")


def _blocks(raw: bytes) -> list[tuple[re.Match[bytes], int, int]]:
    """Of each VALUE block: its header, where its value begins, where the block ends."""
    found = []
    at = 0
    while match := VALUE_HEADER.match(raw, at):
        start = match.end()
        at = start + int(match[3]) + 2
        found.append((match, start, at))
    return found


def merge_blocks(keys: Sequence[bytes], blocks: Mapping[bytes, bytes]) -> bytes:
    """The answer to a get of `keys` from the blocks of several servers: the client's order, doubles twice."""
    return b"".join([blocks[key] for key in keys if key in blocks]) + b"END\r\n"
