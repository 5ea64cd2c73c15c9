"""What one command line of the text protocol asks for: a table by verb of pure functions from words to a request.

Texts of errors are memcached 1.6.18's, where the newest differs it is noted; both are compared with in the tests. Two
things are stricter than a server: control bytes (1.6.18 ends the line at a NUL, so that gateway and server would see
different keys), and numbers that do not fit their field (1.6.18 cuts an expiry to 32 bits without a word).

What goes on to a server is written anew from the parsed words, so that gateway and server cannot see different
requests in odd spacing, missing carriage returns or words that a server ignores.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from gateway.protocol.memcached.request import KEY_BYTES_MAX, Rejected, Request

ERROR: Final = b"ERROR\r\n"
BAD_FORMAT: Final = b"CLIENT_ERROR bad command line format\r\n"
BAD_EXPTIME: Final = b"CLIENT_ERROR invalid exptime argument\r\n"
BAD_DELTA: Final = b"CLIENT_ERROR invalid numeric delta argument\r\n"
BAD_DELETE: Final = b"CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n"
BAD_CHUNK: Final = b"CLIENT_ERROR bad data chunk\r\n"
TOO_LARGE: Final = b"SERVER_ERROR object too large for cache\r\n"
TOO_LONG: Final = b"CLIENT_ERROR line too long\r\n"  # a server closes without a word
META_LATER: Final = b"CLIENT_ERROR meta commands are not supported by this gateway, use the classic text protocol\r\n"

MANAGEMENT: Final = frozenset(
    {b"watch", b"slabs", b"lru", b"lru_crawler", b"cache_memlimit", b"shutdown", b"misbehave"}
    | {b"extstore", b"refresh_certs"}
)
"""Verbs that manage a server; what they answer may have no end, so they cannot be sent over a shared connection."""

_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")
_VALUE_BYTES_PROTOCOL: Final = 2**31 - 3  # INT_MAX - 2 in proto_text.c: more is not even read as a size
_NOREPLY: Final = b"noreply"

Parsed = tuple[Request | Rejected, int]
"""A request and how many bytes of value follow its line, CR LF included: 0 for none. A store's request has its line
in `raw` only; what follows a rejected one is to be swallowed."""


def parse_line(line: bytes) -> Parsed:
    """What a line, given without its end, asks for. Never raises: what cannot be understood is rejected."""
    words = [word for word in line.split(b" ") if word]
    if not words:
        return Rejected(ERROR, reason="empty line"), 0
    parser = _PARSERS.get(words[0])
    if parser is None:
        if words[-1].startswith(b"HTTP/"):
            return Rejected(b"", close=True, reason="HTTP request"), 0  # as a server does
        return Rejected(ERROR, reason="unknown command"), 0
    parsed = parser(words)
    if _CONTROL.search(line):
        return Rejected(BAD_FORMAT, reason="control byte in a command line"), parsed[1]
    return parsed


def unsigned(word: bytes, bits: int) -> int | None:
    """The number that the word is, or None if it is none or does not fit."""
    if len(word) > 20 or not word.isdigit():
        return None
    number = int(word)
    return number if number < 1 << bits else None


def signed32(word: bytes) -> int | None:
    """An expiry: negative ones are allowed, they mean expired."""
    digits = word[1:] if word[:1] in (b"-", b"+") else word
    if len(digits) > 10 or not digits.isdigit():
        return None
    number = int(word)
    return number if -(1 << 31) <= number < 1 << 31 else None


def _refuse(answer: bytes, reason: str, noreply: bool = False) -> Parsed:
    """`noreply` hides errors too, once the line had a fitting number of words, as it does at a server."""
    return Rejected(b"" if noreply else answer, reason=reason), 0


def _store(words: list[bytes]) -> Parsed:
    verb = words[0]
    plain = 6 if verb == b"cas" else 5
    size = unsigned(words[4], 31) if len(words) > 4 else None
    if size is not None and size > _VALUE_BYTES_PROTOCOL:
        size = None
    # Where the size is understood the value is swallowed with a bad line, as the newest memcached does. 1.6.18 would
    # take the value for commands.
    follows = 0 if size is None else size + 2
    if not plain <= len(words) <= plain + 1:
        return Rejected(ERROR, reason="wrong number of words"), follows
    noreply = words[-1] == _NOREPLY
    key, flags, exptime = words[1], unsigned(words[2].removeprefix(b"+"), 32), signed32(words[3])
    cas = unsigned(words[5], 64) if plain == 6 else 0
    if len(key) > KEY_BYTES_MAX or flags is None or exptime is None or size is None or cas is None:
        return Rejected(b"" if noreply else BAD_FORMAT, reason="bad store line"), follows
    raw = b" ".join(words[:plain]) + b"\r\n"
    return Request(verb, (key,), raw, flags, exptime, len(raw), cas, 0, noreply), follows


def _get(words: list[bytes]) -> Parsed:
    if len(words) < 2:
        return _refuse(ERROR, "get without a key")
    keys = tuple(words[1:])
    if max(map(len, keys)) > KEY_BYTES_MAX:
        return _refuse(BAD_FORMAT, "key too long")
    return Request(words[0], keys, b" ".join(words) + b"\r\n"), 0


def _get_and_touch(words: list[bytes]) -> Parsed:
    if len(words) < 3:
        return _refuse(BAD_FORMAT, "gat without a key")  # as the newest; 1.6.18 answers END to `gat 0`
    exptime = signed32(words[1])
    if exptime is None:
        return _refuse(BAD_EXPTIME, "bad expiry")
    keys = tuple(words[2:])
    if max(map(len, keys)) > KEY_BYTES_MAX:
        return _refuse(BAD_FORMAT, "key too long")
    return Request(words[0], keys, b" ".join(words) + b"\r\n", exptime=exptime), 0


def _touch(words: list[bytes]) -> Parsed:
    if not 3 <= len(words) <= 4:
        return _refuse(ERROR, "wrong number of words")
    noreply = words[-1] == _NOREPLY
    if len(words[1]) > KEY_BYTES_MAX:
        return _refuse(BAD_FORMAT, "key too long", noreply)
    exptime = signed32(words[2])
    if exptime is None:
        return _refuse(BAD_EXPTIME, "bad expiry", noreply)
    return Request(b"touch", (words[1],), b" ".join(words[:3]) + b"\r\n", exptime=exptime, noreply=noreply), 0


def _arithmetic(words: list[bytes]) -> Parsed:
    if not 3 <= len(words) <= 4:
        return _refuse(ERROR, "wrong number of words")
    noreply = words[-1] == _NOREPLY
    if len(words[1]) > KEY_BYTES_MAX:
        return _refuse(BAD_FORMAT, "key too long", noreply)
    delta = unsigned(words[2], 64)
    if delta is None:
        return _refuse(BAD_DELTA, "bad delta", noreply)
    return Request(words[0], (words[1],), b" ".join(words[:3]) + b"\r\n", delta=delta, noreply=noreply), 0


def _delete(words: list[bytes]) -> Parsed:
    if not 2 <= len(words) <= 4:
        return _refuse(ERROR, "wrong number of words")
    # `delete k 0` was a delay once, and old PHP clients still send it.
    rest = words[2:]
    noreply = bool(rest) and rest[-1] == _NOREPLY
    if rest not in ([], [b"0"], [_NOREPLY], [b"0", _NOREPLY]):
        return _refuse(BAD_DELETE, "delete with a delay", noreply)
    if len(words[1]) > KEY_BYTES_MAX:
        return _refuse(BAD_FORMAT, "key too long", noreply)
    return Request(b"delete", (words[1],), b"delete " + words[1] + b"\r\n", noreply=noreply), 0


def _flush_all(words: list[bytes]) -> Parsed:
    if len(words) > 3:
        return _refuse(ERROR, "wrong number of words")
    noreply = words[-1] == _NOREPLY
    delay = signed32(words[1]) if len(words) > (2 if noreply else 1) else 0
    if delay is None:
        return _refuse(BAD_EXPTIME, "bad delay", noreply)
    # The delay is a timer in the gateway, never forwarded.
    return Request(b"flush_all", (), b"flush_all\r\n", exptime=delay, noreply=noreply), 0


def _verbosity(words: list[bytes]) -> Parsed:
    if not 2 <= len(words) <= 3:
        return _refuse(ERROR, "wrong number of words")
    noreply = words[-1] == _NOREPLY
    if unsigned(words[1], 32) is None:
        return _refuse(BAD_FORMAT, "bad level", noreply)
    return Request(b"verbosity", (), b" ".join(words[:2]) + b"\r\n", noreply=noreply, arguments=(words[1],)), 0


def _bare(words: list[bytes]) -> Parsed:
    return Request(words[0], (), b" ".join(words) + b"\r\n", arguments=tuple(words[1:])), 0


def _meta(words: list[bytes]) -> Parsed:
    size = unsigned(words[2], 31) if words[0] == b"ms" and len(words) > 2 else None
    return Rejected(META_LATER, reason="meta command"), 0 if size is None or size > _VALUE_BYTES_PROTOCOL else size + 2


_PARSERS: Final[dict[bytes, Callable[[list[bytes]], Parsed]]] = {
    **dict.fromkeys((b"set", b"add", b"replace", b"append", b"prepend", b"cas"), _store),
    **dict.fromkeys((b"get", b"gets"), _get),
    **dict.fromkeys((b"gat", b"gats"), _get_and_touch),
    **dict.fromkeys((b"incr", b"decr"), _arithmetic),
    b"touch": _touch,
    b"delete": _delete,
    b"flush_all": _flush_all,
    b"verbosity": _verbosity,
    **dict.fromkeys((b"stats", b"version", b"quit", b"mn", *MANAGEMENT), _bare),
    **dict.fromkeys((b"mg", b"ms", b"md", b"ma", b"me"), _meta),
}
