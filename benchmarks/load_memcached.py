"""A memcached load: gets and sets 9:1 of 100-byte values, over one or many connections, each some requests deep.

    python benchmarks/load_memcached.py HOST PORT --connections 32 --depth 1 --seconds 4

It stores every key first, writes the line `ready`, waits for a line on standard input, and ends with one JSON object
on standard output. One thread drives all connections from one epoll; requests and the lengths of their answers are
made beforehand, so that little but two system calls is spent per request. An answer that has not exactly the expected
length, or does not begin and end as it must, ends the run with an error.

Latency is from the send of a connection's requests to the last byte of their answers: at a depth of 16, of all 16.
"""

from __future__ import annotations

import argparse
import json
import random
import select
import socket
import sys
import time
from array import array
from typing import Final, NamedTuple

KEYS: Final = 10_000
VALUE_BYTES: Final = 100
SETS_OF_TEN: Final = 1
WARM_UP: Final = 0.5
"""Seconds before the measured part: connections, caches and the peer's own warm-up."""

BATCHES: Final = 4096
"""How many different requests (or 16 of them) are made; prime to nothing in the peers' hashing."""


class LoadError(Exception):
    """The peer answered something else than it must."""


class Batch(NamedTuple):
    """What one connection sends at once, and what must come back: its length and its first bytes."""

    request: bytes
    answer_bytes: int
    answer_begins: bytes


def key(number: int) -> bytes:
    """Keys of one length that differ at their front, where every hash spreads them."""
    return b"%05d:gateway:benchmark" % number


def make_batches(depth: int) -> list[Batch]:
    """Requests with a fixed seed: the same for every peer."""
    chance = random.Random(1)
    value = bytes(chance.choices(b"abcdefghijklmnopqrstuvwxyz", k=VALUE_BYTES))
    batches = []
    turn = 0
    for _ in range(BATCHES):
        request, answer, begins = b"", 0, b""
        for _ in range(depth):
            name = key(chance.randrange(KEYS))
            turn += 1
            if turn % 10 < SETS_OF_TEN:
                request += b"set %b 0 0 %d\r\n%b\r\n" % (name, VALUE_BYTES, value)
                answer += len(b"STORED\r\n")
                begins = begins or b"STORED\r\n"
            else:
                request += b"get %b\r\n" % name
                begins = begins or b"VALUE %b 0 %d\r\n" % (name, VALUE_BYTES)
                answer += len(b"VALUE %b 0 %d\r\n" % (name, VALUE_BYTES)) + VALUE_BYTES + len(b"\r\nEND\r\n")
        batches.append(Batch(request, answer, begins))
    chance.shuffle(batches)
    return batches


def store_all(address: tuple[str, int]) -> None:
    """Stores every key through the peer, so that no get misses."""
    with socket.create_connection(address, timeout=30) as connection, connection.makefile("rb") as answers:
        for first in range(0, KEYS, 100):
            sets = [
                b"set %b 0 0 %d\r\n%b\r\n" % (key(number), VALUE_BYTES, b"x" * VALUE_BYTES)
                for number in range(first, first + 100)
            ]
            connection.sendall(b"".join(sets))
            for _ in sets:
                answer = answers.readline()
                if answer != b"STORED\r\n":
                    raise LoadError(f"set was answered {answer!r}")


class Connection:
    """One connection with one batch on its way."""

    __slots__ = ("batch", "received", "sent_at", "socket")

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.batch = Batch(b"", 0, b"")
        self.received = b""
        self.sent_at = 0

    def send(self, batch: Batch, now: int) -> None:
        """Sends a batch; the kernel takes it whole since nothing else is on its way."""
        self.batch = batch
        self.sent_at = now
        if self.socket.send(batch.request) != len(batch.request):
            raise LoadError("the socket took a part of a request only")

    def complete(self, chunk: bytes) -> bool:
        """Whether the batch is answered with this; LoadError where the answer is wrong."""
        if self.received:
            chunk = self.received + chunk
        batch = self.batch
        if len(chunk) < batch.answer_bytes:
            if not chunk or chunk[-7:] == b"ERROR\r\n" or chunk[:3] == b"END":
                raise LoadError(f"{batch.request[:60]!r} was answered {chunk[:200]!r}")
            self.received = chunk
            return False
        if len(chunk) != batch.answer_bytes or not chunk.startswith(batch.answer_begins) or chunk[-2:] != b"\r\n":
            raise LoadError(f"{batch.request[:60]!r} was answered {chunk[:200]!r}")
        self.received = b""
        return True


def run(address: tuple[str, int], connections: int, depth: int, seconds: float) -> dict[str, object]:
    """Drives the load; requests in all and in the measured part, its seconds, and its percentiles in us."""
    batches = make_batches(depth)
    epoll = select.epoll()
    by_descriptor: dict[int, Connection] = {}
    for _ in range(connections):
        connection = Connection(address)
        by_descriptor[connection.socket.fileno()] = connection
        epoll.register(connection.socket.fileno(), select.EPOLLIN)
    clock = time.perf_counter_ns
    latencies = array("Q")
    turn = 0
    for connection in by_descriptor.values():
        connection.send(batches[turn % BATCHES], clock())
        turn += 1
    begin = clock() + int(WARM_UP * 1e9)
    end = begin + int(seconds * 1e9)
    now = measured_from = 0
    while now < end:
        for descriptor, _ in epoll.poll():
            connection = by_descriptor[descriptor]
            if not connection.complete(connection.socket.recv(262144)):
                continue
            now = clock()
            if now > begin:
                if not measured_from:
                    measured_from = now
                latencies.append(now - connection.sent_at)
            connection.send(batches[turn % BATCHES], now)
            turn += 1
    elapsed = (now - measured_from) / 1e9
    for connection in by_descriptor.values():
        connection.socket.close()
    epoll.close()
    ordered = sorted(latencies)
    return {
        "requests": turn * depth,
        "requests_per_second": (len(ordered) - 1) * depth / elapsed,
        "p50_us": ordered[len(ordered) // 2] / 1e3,
        "p95_us": ordered[int(len(ordered) * 0.95)] / 1e3,
        "p99_us": ordered[int(len(ordered) * 0.99)] / 1e3,
    }


def main() -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description="memcached load, gets and sets 9:1")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    address = (options.host, options.port)
    try:
        store_all(address)
        print("ready", flush=True)
        sys.stdin.readline()
        print(json.dumps(run(address, options.connections, options.depth, options.seconds)), flush=True)
    except (LoadError, OSError) as error:
        print(f"load_memcached: {address[0]}:{address[1]}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
