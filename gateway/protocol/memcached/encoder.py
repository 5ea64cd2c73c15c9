"""Writes the requests that the gateway itself sends to memcached servers, and splits a client's over several servers.

All of them work on 1.6.18, but for `E` (a CAS of the gateway's own), which came with about 1.6.27: older servers answer
`CLIENT_ERROR invalid flag`. Quiet forms are never used: every request has one answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.protocol.memcached.request import Request

NO_OP: Final = Request(b"mn", (), b"mn\r\n")
VERSION: Final = Request(b"version", (), b"version\r\n")
STATS: Final = Request(b"stats", (), b"stats\r\n")
FLUSH_ALL: Final = Request(b"flush_all", (), b"flush_all\r\n")


def get(keys: Sequence[bytes], verb: bytes = b"get") -> Request:
    """`verb` get or gets: a part of a client's multiget, or a fetch of the gateway's own."""
    return Request(verb, tuple(keys), verb + b" " + b" ".join(keys) + b"\r\n")


def get_and_touch(keys: Sequence[bytes], exptime: int, verb: bytes = b"gat") -> Request:
    """`verb` gat or gats, with an expiry as the server is to understand it."""
    return Request(verb, tuple(keys), b"%b %d %b\r\n" % (verb, exptime, b" ".join(keys)), exptime=exptime)


def split(request: Request, keys: Sequence[bytes]) -> Request:
    """The part of a multiget (get, gets, gat, gats) that asks for these keys only."""
    if request.verb in (b"gat", b"gats"):
        return get_and_touch(keys, request.exptime, request.verb)
    return get(keys, request.verb)


def touch(key: bytes, exptime: int) -> Request:
    """Sets a new expiry, without the value."""
    return Request(b"touch", (key,), b"touch %b %d\r\n" % (key, exptime), exptime=exptime)


def delete(key: bytes) -> Request:
    """An unconditional delete."""
    return Request(b"delete", (key,), b"delete %b\r\n" % key)


def store(key: bytes, value: bytes, flags: int, exptime: int) -> Request:
    """An unconditional store by classic `set`."""
    line = b"set %b %d %d %d\r\n" % (key, flags, exptime, len(value))
    return Request(b"set", (key,), b"%b%b\r\n" % (line, value), flags, exptime, len(line))


def meta_get(key: bytes, flags: bytes = b"v f t c") -> Request:
    """`mg`. The answer's flags: t is the seconds left (-1 for never), f the client's flags, c the CAS, s the size.

    The default fetches what is needed to ship a value: it counts as no read of the client's only with `u`, which
    still takes a win token (KV.md).
    """
    return Request(b"mg", (key,), b"mg %b %b\r\n" % (key, flags), arguments=tuple(flags.split()))


def meta_touch(key: bytes, exptime: int) -> Request:
    """`mg` with T alone: a new expiry without the value; HD or EN."""
    return meta_get(key, b"T%d" % exptime)


def meta_store(
    key: bytes,
    value: bytes,
    flags: int,
    exptime: int,
    *,
    mode: bytes = b"S",
    compare: int | None = None,
    cas: int | None = None,
    return_cas: bool = False,
) -> Request:
    """`ms`. `mode` S set, E add, A append, P prepend, R replace; `compare` the CAS that the item must have (EX where it
    has another, NF where it is gone); `cas` the one to give it (newer servers only); `return_cas` asks for it."""
    words = [b"ms", key, b"%d" % len(value), b"F%d" % flags, b"T%d" % exptime]
    if mode != b"S":
        words.append(b"M" + mode)
    words += _cas_words(compare, cas, return_cas)
    line = b" ".join(words) + b"\r\n"
    raw = b"%b%b\r\n" % (line, value)
    return Request(b"ms", (key,), raw, flags, exptime, len(line), compare or 0, 0, False, tuple(words[3:]))


def meta_delete(key: bytes, *, compare: int | None = None, cas: int | None = None) -> Request:
    """`md`: HD, NF, or EX where `compare` is another CAS. `cas` marks the deletion with one (newer servers only)."""
    words = [b"md", key, *_cas_words(compare, cas, False)]
    return Request(b"md", (key,), b" ".join(words) + b"\r\n", cas=compare or 0, arguments=tuple(words[2:]))


def meta_arithmetic(
    key: bytes, delta: int, *, decrement: bool = False, cas: int | None = None, flags: bytes = b"v t c"
) -> Request:
    """`ma`, by default with the new value, the seconds left and the CAS in the answer."""
    words = [b"ma", key, b"D%d" % delta, b"MD" if decrement else b"MI", *flags.split()]
    words += _cas_words(None, cas, False)
    return Request(b"ma", (key,), b" ".join(words) + b"\r\n", delta=delta, arguments=tuple(words[2:]))


def _cas_words(compare: int | None, cas: int | None, return_cas: bool) -> list[bytes]:
    words = []
    if compare is not None:
        words.append(b"C%d" % compare)
    if cas is not None:
        words.append(b"E%d" % cas)
    if return_cas:
        words.append(b"c")
    return words
