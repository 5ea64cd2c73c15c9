"""What the memcached codecs and rings cost: microseconds per request decoded, reply decoded and key placed.

python benchmarks/memcached_codec.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

from gateway.backends.rings import CachedRing, RingServer, build_ring
from gateway.protocol.memcached.decoder import RequestDecoder
from gateway.protocol.memcached.reply_decoder import ReplyDecoder
from gateway.protocol.memcached.request import Request
from gateway.routing.kv import classify

PIPELINED: Final = 200  # requests per chunk: about what 32 busy connections put into one batch of a shared connection
ROUNDS: Final = 300
BEST_OF: Final = 5
KEYS: Final = [b"user:%012d" % number for number in range(PIPELINED)]
VALUE: Final = b"v" * 100


def measure(name: str, count: int, work: Callable[[], object]) -> None:
    """Prints the best of some runs, which other programs disturbed least."""
    best = float("inf")
    for _ in range(BEST_OF):
        started = time.perf_counter()
        for _ in range(ROUNDS):
            work()
        best = min(best, (time.perf_counter() - started) / ROUNDS / count)
    print(f"{name:<44} {best * 1e6:7.3f} us")


def requests(name: str, parts: list[bytes]) -> list[Request]:
    chunk = b"".join(parts)
    decoder = RequestDecoder()
    measure(f"decode {name}", len(parts), lambda: decoder.decode(chunk))
    return [message for message in decoder.decode(chunk) if isinstance(message, Request)]


def replies(name: str, asked: list[Request], parts: list[bytes]) -> None:
    chunk = b"".join(parts)
    decoder = ReplyDecoder()

    def work() -> None:
        decoder.expected.extend(asked)
        assert len(decoder.decode(chunk)) == len(asked)

    measure(f"decode reply {name}", len(asked), work)


def place_all(place: Callable[[bytes], int]) -> None:
    for key in KEYS:
        place(key)


def main() -> None:
    """Prints the table."""
    print(f"{PIPELINED} pipelined, values of {len(VALUE)} bytes, best of {BEST_OF}")
    gets = requests("get k", [b"get %b\r\n" % key for key in KEYS])
    sets = requests("set k", [b"set %b 0 300 %d\r\n%b\r\n" % (key, len(VALUE), VALUE) for key in KEYS])
    requests("set k noreply", [b"set %b 0 300 %d noreply\r\n%b\r\n" % (key, len(VALUE), VALUE) for key in KEYS])
    requests("delete k", [b"delete %b\r\n" % key for key in KEYS])
    requests("incr k 1", [b"incr %b 1\r\n" % key for key in KEYS])
    ten = requests("get of ten keys", [b"get " + b" ".join(KEYS[:10]) + b"\r\n"] * 20)
    replies("miss", gets, [b"END\r\n"] * PIPELINED)
    blocks = [b"VALUE %b 0 %d\r\n%b\r\n" % (key, len(VALUE), VALUE) for key in KEYS]
    replies("hit", gets, [block + b"END\r\n" for block in blocks])
    replies("STORED", sets, [b"STORED\r\n"] * PIPELINED)
    replies("hits of ten keys", ten, [b"".join(blocks[:10]) + b"END\r\n"] * len(ten))
    measure("classify", PIPELINED, lambda: [classify(request) for request in gets])
    servers = [RingServer(f"10.0.0.{number}") for number in range(1, 6)]
    for hash, key_hash in (
        ("ketama", "fnv1a_64"),
        ("ketama", "md5"),
        ("ketama", "one_at_a_time"),
        ("jump", "fnv1a_64"),
        ("rendezvous", "crc32"),
        ("modula", "crc32"),
    ):
        ring = build_ring(hash, key_hash, servers)
        assert isinstance(ring, CachedRing)
        measure(f"place by {hash} {key_hash}, not cached", PIPELINED, partial(place_all, ring.place))
    server_for = ring.server_for
    measure("place, cached", PIPELINED, partial(place_all, server_for))


if __name__ == "__main__":
    main()
