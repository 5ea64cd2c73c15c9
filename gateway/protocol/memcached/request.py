"""What a memcached client asked for, or the gateway asks a server: one type for classic, meta and binary."""

from __future__ import annotations

from typing import Final

import msgspec

KEY_BYTES_MAX: Final = 250  # memcached.h KEY_MAX_LENGTH
VALUE_BYTES_MAX: Final = 1_048_576  # memcached -I, 1 MiB by default; counts key and header too, so a bit less fits


class Request(msgspec.Struct, frozen=True, gc=False):
    """One whole, well-formed request.

    `verb` is lower case (b"get"). `keys` has one key but for multigets (several) and key-less verbs (none). `raw` is
    what goes to a server: the bytes as they came, except that ` noreply` is taken out (the gateway wants every answer)
    and odd spacing is made plain. `value_at` is where the value begins in `raw`, which then ends with it and CR LF; 0
    where there is none. `exptime` is as the client gave it: 0 never, negative expired, up to 30 days in seconds from
    now, beyond that a Unix time; flush_all has its delay in it. `delta` is incr's and decr's, `cas` the one to compare.
    `arguments` are the words after a local or management verb, or the flags of a meta one.
    """

    verb: bytes
    keys: tuple[bytes, ...]
    raw: bytes
    flags: int = 0
    exptime: int = 0
    value_at: int = 0
    cas: int = 0
    delta: int = 0
    noreply: bool = False
    arguments: tuple[bytes, ...] = ()

    @property
    def key(self) -> bytes:
        """The first key. IndexError where the verb has none."""
        return self.keys[0]

    @property
    def value(self) -> bytes:
        """The value of a store, copied out of `raw`; b"" where the verb has none."""
        return self.raw[self.value_at : -2] if self.value_at else b""


class Rejected(msgspec.Struct, frozen=True, gc=False):
    """A request that is not carried out, with the bytes that its client is told.

    `answer` is b"" where `noreply` hides it. `delete` is a key whose old value a real server would have deleted, as it
    does when a set is too large: the session deletes it everywhere. With `close` the connection is closed after the
    answer: nothing that follows can be understood, and the decoder yields nothing more.
    """

    answer: bytes
    delete: bytes | None = None
    close: bool = False
    reason: str = ""  # in words, for the log and counters
