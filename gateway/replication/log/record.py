"""One entry of the log: what a write did to a key, as a full state that can be applied again without harm."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final, NewType

import msgspec

from gateway.protocol.memcached import encoder
from gateway.protocol.memcached.request import Request
from gateway.routing.kv import remaining

Offset = NewType("Offset", int)

OVERHEAD_BYTES: Final = 400  # what a record costs in memory beside key and value: objects and references (measured)


class RecordKind(Enum):
    """What happened to the key."""

    STORE = "store"
    DELETE = "delete"
    TOUCH = "touch"
    FLUSH = "flush"  # of all keys


class Record(msgspec.Struct, gc=False, eq=False):
    """`deadline` is on the gateway's monotonic clock (`kv.deadline`), for STORE and TOUCH. `raw` is a set that can be
    forwarded as it is, b"" where it has to be written. `owners` are the followers whose servers own the key, `at` when
    it was accepted (monotonic, seconds), `size` what it counts in memory, `sync` who waits until all owners have it."""

    kind: RecordKind
    key: bytes
    at: float
    owners: tuple[Any, ...]
    raw: bytes = b""
    value: bytes = b""
    flags: int = 0
    deadline: float = 0.0
    size: int = OVERHEAD_BYTES
    offset: Offset = Offset(0)
    sync: Any = None

    def request(self, now: float, clock_offset: float) -> Request:
        """What applies it to a server whose Unix time is `clock_offset` ahead of `now`'s clock."""
        kind = self.kind
        if kind is RecordKind.STORE:
            if self.raw:
                return Request(b"set", (self.key,), self.raw)
            exptime = remaining(self.deadline, now, clock_offset)
            if exptime is not None:
                return encoder.store(self.key, self.value, self.flags, exptime)
        elif kind is RecordKind.TOUCH:
            exptime = remaining(self.deadline, now, clock_offset)
            if exptime is not None:
                return encoder.touch(self.key, exptime)
        elif kind is RecordKind.FLUSH:
            return encoder.FLUSH_ALL
        return encoder.delete(self.key)
