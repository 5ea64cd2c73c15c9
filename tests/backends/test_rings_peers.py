"""Keys that are stored through twemproxy and libmemcached are on the servers that the ring names."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from gateway.backends.rings import RingServer, build_ring
from gateway.demo.servers import MemcachedServer, Twemproxy, start_all
from gateway.demo.stack import Stack

pytestmark = pytest.mark.servers

KEYS = [b"user:%d:%d" % (number * 7919, number) for number in range(4900)] + [
    f"schl\u00fcssel-\u00e9\u4e16-{number}".encode() for number in range(200)
]


def talk(host: str, port: int, data: bytes, ends: int, end: bytes) -> bytes:
    """Sends all, little enough for the socket's buffers, and reads until `end` was seen so often."""
    got = b""
    with socket.create_connection((host, port), timeout=30.0) as connection:
        connection.sendall(data)
        while got.count(end) < ends:
            chunk = connection.recv(65_536)
            assert chunk, "closed"
            got += chunk
    return got


def store_all(host: str, port: int) -> None:
    for batch in _batches():
        data = b"".join(b"set %b 0 0 1\r\nx\r\n" % key for key in batch)
        talk(host, port, data, len(batch), b"STORED\r\n")


def _batches() -> Iterator[list[bytes]]:
    for at in range(0, len(KEYS), 100):
        yield KEYS[at : at + 100]


def found_on(servers: list[MemcachedServer]) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for index, server in enumerate(servers):
        for batch in _batches():
            answer = talk(server.host, server.port, b"get " + b" ".join(batch) + b"\r\n", 1, b"END\r\n")
            for line in answer.split(b"\r\n"):
                if line.startswith(b"VALUE "):
                    key = line.split(b" ")[1]
                    assert key not in found
                    found[key] = index
    return found


class ConfiguredTwemproxy(Twemproxy):
    """With a distribution, a hash and weights."""

    def __init__(
        self, stack: Stack, servers: list[MemcachedServer], distribution: str, hash: str, weights: list[int]
    ) -> None:
        super().__init__(stack, servers)
        self.distribution = distribution
        self.hash = hash
        self.weights = weights

    def prepare(self) -> None:
        lines = ["pool:", f"  listen: {self.address}", f"  hash: {self.hash}", f"  distribution: {self.distribution}"]
        lines += ["  auto_eject_hosts: false", "  servers:"]
        lines += [f"    - {server.address}:{weight}" for server, weight in zip(self.servers, self.weights, strict=True)]
        self.configuration.write_text("\n".join(lines) + "\n")


EQUAL = [1, 1, 1, 1]
UNEQUAL = [50, 100, 7, 33]
CASES = [
    ("ketama", "fnv1a_64", "fnv1a_64", EQUAL),
    ("ketama", "fnv1a_64", "fnv1a_64", UNEQUAL),
    ("ketama", "md5", "md5", UNEQUAL),
    ("ketama", "one_at_a_time", "one_at_a_time", EQUAL),
    ("ketama", "crc32a", "crc32", EQUAL),
    ("modula", "crc32", "crc32_15", UNEQUAL),
    ("modula", "fnv1_64", "fnv1_64", EQUAL),
    ("modula", "fnv1_32", "fnv1_32", UNEQUAL),
    ("modula", "fnv1a_32", "fnv1a_32", UNEQUAL),
]


@pytest.mark.parametrize(
    ("distribution", "their_hash", "key_hash", "weights"), CASES, ids=lambda part: "-".join(map(str, [part]))
)
def test_keys_land_where_twemproxy_puts_them(
    stack: Stack, distribution: str, their_hash: str, key_hash: str, weights: list[int]
) -> None:
    servers = [MemcachedServer(stack) for _ in weights]
    start_all(servers)
    proxy = ConfiguredTwemproxy(stack, servers, distribution, their_hash, weights)
    proxy.start()
    store_all(proxy.host, proxy.port)
    ring = build_ring(
        distribution,
        key_hash,
        [RingServer(server.host, server.port, weight=weight) for server, weight in zip(servers, weights, strict=True)],
    )
    found = found_on(servers)
    assert len(found) == len(KEYS)
    assert {key: ring.server_for(key) for key in KEYS} == found


@pytest.mark.parametrize("weights", [EQUAL, UNEQUAL])
def test_keys_land_where_libmemcached_puts_them(stack: Stack, weights: list[int]) -> None:
    pylibmc = pytest.importorskip("pylibmc")
    servers = [MemcachedServer(stack) for _ in weights]
    start_all(servers)
    client = pylibmc.Client(
        [f"{server.address}:{weight}" for server, weight in zip(servers, weights, strict=True)],
        behaviors={"ketama_weighted": True},
    )
    for key in KEYS:
        assert client.set(key, "x")
    client.disconnect_all()
    ring = build_ring(
        "ketama",
        "md5",
        [RingServer(server.host, server.port, weight=weight) for server, weight in zip(servers, weights, strict=True)],
    )
    assert {key: ring.server_for(key) for key in KEYS} == found_on(servers)
