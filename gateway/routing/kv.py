"""What memcached verbs are, what their answers did to a key, and until when a value lives.

The table is KV.md's "memcached: protocols", the effects its "Ship results, by effect". Everything here is pure.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Final

from gateway.protocol.memcached.lines import MANAGEMENT
from gateway.protocol.memcached.reply import Code, Reply
from gateway.protocol.memcached.request import Request
from gateway.routing.operation import Effect, KeyOperation, Kind

RELATIVE_SECONDS_MAX: Final = 60 * 60 * 24 * 30  # memcached.c REALTIME_MAXDELTA: more is a Unix time


class Outcome(Enum):
    """What an answer did to the key. It is what the log records, whatever the client was told."""

    NOTHING = "nothing"
    STORED = "stored"  # value, flags and expiry are the request's
    CHANGED = "changed"  # only the server knows the value now: to be fetched, and a miss is a delete
    DELETED = "deleted"  # is not there now
    TOUCHED = "touched"  # has the request's expiry, and the value that it had
    FLUSHED = "flushed"  # all keys of the server
    DOUBTFUL = "doubtful"  # nobody knows: read at the primary only until it was read again


def _read(verb: bytes) -> KeyOperation:
    return KeyOperation(Kind.READ, verb.decode())


def _write(verb: bytes, effect: Effect) -> KeyOperation:
    return KeyOperation(Kind.WRITE, verb.decode(), effect)


def _local(verb: bytes) -> KeyOperation:
    return KeyOperation(Kind.SESSION, verb.decode())


LOCAL: Final = frozenset({b"version", b"stats", b"quit", b"verbosity"}) | MANAGEMENT
"""Verbs that the gateway answers itself; those of MANAGEMENT it refuses unless the listener allows them."""

KEY_OPERATIONS: Final[dict[bytes, KeyOperation]] = {
    **{verb: _read(verb) for verb in (b"get", b"gets", b"mg", b"me", b"mn")},
    **{verb: _write(verb, Effect.STORE) for verb in (b"set", b"add", b"replace", b"cas", b"ms")},
    **{verb: _write(verb, Effect.CHANGE) for verb in (b"append", b"prepend", b"incr", b"decr", b"ma")},
    **{verb: _write(verb, Effect.DELETE) for verb in (b"delete", b"md")},
    **{verb: _write(verb, Effect.TOUCH) for verb in (b"touch", b"gat", b"gats")},
    b"flush_all": _write(b"flush_all", Effect.FLUSH),
    **{verb: _local(verb) for verb in sorted(LOCAL)},
}
"""By verb, for all verbs of text. Meta verbs whose flags decide are here in their plain form; `classify` looks at
flags."""

_MG_TOUCH: Final = KeyOperation(Kind.WRITE, "mg", Effect.TOUCH)
_MG_CHANGE: Final = KeyOperation(Kind.WRITE, "mg", Effect.CHANGE)  # N and R hand out a win: the item itself changes
_MS_CHANGE: Final = KeyOperation(Kind.WRITE, "ms", Effect.CHANGE)  # append and prepend
_MD_CHANGE: Final = KeyOperation(Kind.WRITE, "md", Effect.CHANGE)  # I and x leave an item behind
_UNKNOWN: Final = KeyOperation(Kind.UNKNOWN, "unknown")

_STORE_OPCODES: Final = (0x01, 0x02, 0x03, 0x11, 0x12, 0x13)
_CHANGE_OPCODES: Final = (0x05, 0x06, 0x0E, 0x0F, 0x15, 0x16, 0x19, 0x1A)
BINARY_OPERATIONS: Final[dict[int, KeyOperation]] = {
    **{opcode: KeyOperation(Kind.READ, f"0x{opcode:02x}") for opcode in (0x00, 0x09, 0x0C, 0x0D)},
    **{opcode: KeyOperation(Kind.WRITE, f"0x{opcode:02x}", Effect.STORE) for opcode in _STORE_OPCODES},
    **{opcode: KeyOperation(Kind.WRITE, f"0x{opcode:02x}", Effect.CHANGE) for opcode in _CHANGE_OPCODES},
    **{opcode: KeyOperation(Kind.WRITE, f"0x{opcode:02x}", Effect.DELETE) for opcode in (0x04, 0x14)},
    **{opcode: KeyOperation(Kind.WRITE, f"0x{opcode:02x}", Effect.FLUSH) for opcode in (0x08, 0x18)},
    **{opcode: KeyOperation(Kind.WRITE, f"0x{opcode:02x}", Effect.TOUCH) for opcode in (0x1C, 0x1D, 0x1E, 0x23, 0x24)},
    **{
        opcode: KeyOperation(Kind.SESSION, f"0x{opcode:02x}")
        for opcode in (0x07, 0x17, 0x0A, 0x0B, 0x10, 0x20, 0x21, 0x22)
    },
}
"""By opcode of the binary protocol (protocol_binary.h)."""


def classify(request: Request) -> KeyOperation:
    """What the request is: by its verb, and for meta verbs by their flags. Verbs that are not known are UNKNOWN."""
    verb = request.verb
    operation = KEY_OPERATIONS.get(verb, _UNKNOWN)
    if verb[:1] != b"m" or not request.arguments:
        return operation
    letters = {word[:1] for word in request.arguments}
    if verb == b"mg":
        if letters & {b"N", b"R", b"E"}:
            return _MG_CHANGE
        return _MG_TOUCH if b"T" in letters else operation
    if verb == b"ms":
        modes = {word[1:].upper() for word in request.arguments if word[:1] == b"M"}
        changes = bool(modes & {b"A", b"P", b"APPEND", b"PREPEND"}) or b"I" in letters
        return _MS_CHANGE if changes else operation
    if verb == b"md":
        return _MD_CHANGE if letters & {b"I", b"x"} else operation
    return operation


_O: Final = Outcome
_OUTCOMES: Final[dict[tuple[bytes, Code], Outcome]] = {
    (b"set", Code.STORED): _O.STORED,
    (b"add", Code.STORED): _O.STORED,
    (b"add", Code.NOT_STORED): _O.NOTHING,
    (b"replace", Code.STORED): _O.STORED,
    (b"replace", Code.NOT_STORED): _O.DELETED,
    (b"cas", Code.STORED): _O.STORED,
    (b"cas", Code.EXISTS): _O.NOTHING,
    (b"cas", Code.NOT_FOUND): _O.DELETED,
    (b"append", Code.STORED): _O.CHANGED,
    # Also the answer where the value is there and would grow too large (tried on 1.6.18 and 1.6.45): a fetch tells.
    (b"append", Code.NOT_STORED): _O.CHANGED,
    (b"prepend", Code.STORED): _O.CHANGED,
    (b"prepend", Code.NOT_STORED): _O.CHANGED,
    (b"incr", Code.NUMBER): _O.CHANGED,
    (b"incr", Code.NOT_FOUND): _O.DELETED,
    (b"decr", Code.NUMBER): _O.CHANGED,
    (b"decr", Code.NOT_FOUND): _O.DELETED,
    (b"delete", Code.DELETED): _O.DELETED,
    (b"delete", Code.NOT_FOUND): _O.DELETED,
    (b"touch", Code.TOUCHED): _O.TOUCHED,
    (b"touch", Code.NOT_FOUND): _O.DELETED,
    (b"gat", Code.VALUES): _O.TOUCHED,
    (b"gat", Code.MISS): _O.DELETED,
    (b"gats", Code.VALUES): _O.TOUCHED,
    (b"gats", Code.MISS): _O.DELETED,
    (b"flush_all", Code.OK): _O.FLUSHED,
}
"""What each answer of a write means for its key. A pair that is not here is doubtful."""


def effect_of(request: Request, reply: Reply) -> Outcome:
    """What happened to the request's key at the server that gave this reply; for a read always NOTHING.

    A multiget by gat is to be split by key first: its reply speaks of several keys at once.
    """
    outcome = _OUTCOMES.get((request.verb, reply.code))
    if outcome is not None:
        return outcome
    operation = classify(request)
    if operation.kind is Kind.READ or operation.kind is Kind.SESSION:
        return Outcome.NOTHING
    code = reply.code
    if code is Code.CLIENT_ERROR or code is Code.ERROR:
        # Refused before anything was done: a value that is no number, flush_all not allowed. But a server that did not
        # understand a store's line takes the value for commands (1.6.18), and then anything may have happened.
        return Outcome.DOUBTFUL if request.value_at else Outcome.NOTHING
    if code is Code.SERVER_ERROR:
        return _after_server_error(request, reply.raw)
    return _meta_outcome(request, operation, code)


def effects_of(request: Request, reply: Reply) -> list[tuple[bytes, Outcome]]:
    """Of each key of the request what happened to it; as `effect_of`, but for a gat of several keys too."""
    if reply.code is Code.VALUES and len(request.keys) > 1 and classify(request).effect is Effect.TOUCH:
        hits = {key for key, _ in reply.blocks()}
        return [(key, Outcome.TOUCHED if key in hits else Outcome.DELETED) for key in dict.fromkeys(request.keys)]
    outcome = effect_of(request, reply)
    return [(key, outcome) for key in dict.fromkeys(request.keys)]


def _after_server_error(request: Request, line: bytes) -> Outcome:
    """A value that found no room: set and ms delete the old one, so that nothing stale stays; the others leave it."""
    if not line.startswith((b"SERVER_ERROR object too large for cache", b"SERVER_ERROR out of memory storing object")):
        return Outcome.DOUBTFUL
    if request.verb in (b"set", b"ms"):
        return Outcome.DELETED
    return Outcome.NOTHING if request.value_at else Outcome.DOUBTFUL


def _meta_outcome(request: Request, operation: KeyOperation, code: Code) -> Outcome:
    verb = request.verb
    if code is Code.EX:
        return Outcome.NOTHING
    if code is Code.NF or code is Code.EN:
        return Outcome.DELETED
    if code is Code.NS:
        # An add that found the key; an append or replace that missed, or found no room.
        return Outcome.CHANGED if verb == b"ms" else Outcome.DOUBTFUL
    if code is not Code.HD and code is not Code.VA:
        return Outcome.DOUBTFUL
    if verb == b"ms":
        return Outcome.STORED if operation.effect is Effect.STORE else Outcome.CHANGED
    if verb == b"ma":
        return Outcome.CHANGED
    if verb == b"md" and operation.effect is Effect.DELETE:
        return Outcome.DELETED
    if verb == b"mg" and operation.effect is Effect.TOUCH:
        return Outcome.TOUCHED
    return Outcome.DOUBTFUL  # stale items and win tokens live on one server (KV.md)


def deadline(exptime: int, now: float, server_clock_offset: float) -> float:
    """The time on the gateway's monotonic clock, in seconds, at which an item given `exptime` now is gone for sure.

    `math.inf` for never, `-math.inf` for already expired (negative). `server_clock_offset` is the server's Unix time
    minus the gateway's monotonic time: an absolute expiry is a time of the server's own clock, whatever ours says.
    """
    if exptime == 0:
        return math.inf
    if exptime < 0:
        return -math.inf
    if exptime <= RELATIVE_SECONDS_MAX:
        return now + exptime
    return exptime - server_clock_offset


def remaining(deadline: float, now: float, server_clock_offset: float) -> int | None:
    """The exptime that gives an item stored now this deadline; 0 for never, None where it is to be deleted instead.

    Rounded down to whole seconds, and a server counts from the beginning of its current second: the item is never
    served past its deadline, and is gone up to two seconds before it. A replica's miss is asked again at the primary,
    so early costs a round trip while late would be a stale read. Over 30 days it is a Unix time of the server that
    `server_clock_offset` belongs to (as for `deadline`), because that server would read it so.
    """
    if deadline == math.inf:
        return 0
    seconds = math.floor(deadline - now) if deadline > now else 0
    if seconds < 1:
        return None
    if seconds <= RELATIVE_SECONDS_MAX:
        return seconds
    return math.floor(deadline + server_clock_offset)
