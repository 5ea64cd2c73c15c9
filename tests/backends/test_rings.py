"""Rings place keys as published vectors, other implementations and arithmetic say."""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymemcache.client.murmur3 import murmur3_32 as pymemcache_murmur3
from pymemcache.client.rendezvous import RendezvousHash

from gateway.backends import rings
from gateway.backends.key_hashes import KEY_HASHES, crc32_15, fnv1_32, fnv1a_32, murmur3_32, one_at_a_time
from gateway.backends.rings import CachedRing, OneServer, RingServer, build_ring, jump_bucket
from gateway.errors import ConfigError

FIVE = [RingServer(f"10.0.0.{number}", 11211 + number, id=number) for number in range(1, 6)]
KEYS = [b"key:%d" % number for number in range(3000)]


def places(hash: str, key_hash: str, servers: list[RingServer]) -> list[int]:
    server_for = build_ring(hash, key_hash, servers).server_for
    return [server_for(key) for key in KEYS]


# Published: the FNV reference's test vectors (isthe.com/chongo/src/fnv/test_fnv.c), the CRC catalogue's check value,
# Wikipedia's for Jenkins's one-at-a-time, SMHasher's for murmur3.
def test_key_hashes_give_published_values() -> None:
    assert fnv1a_32(b"foobar") == 0xBF9CF968
    assert fnv1_32(b"foobar") == 0x31F0B262
    assert KEY_HASHES["fnv1_64"](b"foobar") == 0x340D8765A4DDA9C2 & 0xFFFFFFFF
    assert KEY_HASHES["fnv1a_64"](b"foobar") == 0x85944171F73967E8 & 0xFFFFFFFF
    assert KEY_HASHES["crc32"](b"123456789") == 0xCBF43926
    assert crc32_15(b"123456789") == 0xCBF43926 >> 16 & 0x7FFF
    assert KEY_HASHES["md5"](b"") == int.from_bytes(bytes.fromhex("d41d8cd9"), "little")
    assert one_at_a_time(b"a") == 0xCA2E9442
    assert one_at_a_time(b"The quick brown fox jumps over the lazy dog") == 0x519E91F5
    assert murmur3_32(b"", 1) == 0x514E28B7
    assert murmur3_32(b"test", 0x9747B28C) == 0x704B81DC
    assert murmur3_32(b"Hello, world!", 0x9747B28C) == 0x24884CBA


def test_bytes_from_0x80_on_are_negative_as_in_c() -> None:
    # what `(uint32_t) (char) 0xc3` gives on x86, by hand
    assert fnv1a_32(b"\xc3") == (0x811C9DC5 ^ 0xFFFFFFC3) * 0x01000193 & 0xFFFFFFFF
    assert fnv1_32(b"\xc3") == (0x811C9DC5 * 0x01000193 & 0xFFFFFFFF) ^ 0xFFFFFFC3


@given(st.binary(max_size=300))
def test_every_key_hash_is_a_32_bit_number(key: bytes) -> None:
    for key_hash in KEY_HASHES.values():
        assert 0 <= key_hash(key) < 1 << 32


@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_murmur3_is_pymemcaches(text: str) -> None:
    assert murmur3_32(text.encode()) == pymemcache_murmur3(text)  # type: ignore[no-untyped-call]  # no types


# Published with most ports of the paper's code (ClickHouse's 00580_consistent_hashing_functions, rust-jumphash).
@pytest.mark.parametrize(
    ("key", "buckets", "bucket"),
    [(1, 1, 0), (42, 57, 43), (256, 1024, 520), (0xDEAD10CC, 1, 0), (0xDEAD10CC, 666, 361)],
)
def test_jump_gives_published_values(key: int, buckets: int, bucket: int) -> None:
    assert jump_bucket(key, buckets) == bucket


def test_jump_moves_only_what_a_new_bucket_takes() -> None:
    for key in range(500):
        before = jump_bucket(key, 1)
        assert before == 0
        for buckets in range(2, 40):
            after = jump_bucket(key, buckets)
            assert after in (before, buckets - 1)
            before = after


def test_rendezvous_is_pymemcaches() -> None:
    names = [f"{server.host}:{server.port}" for server in FIVE]
    theirs = RendezvousHash(names)  # type: ignore[no-untyped-call]  # no types
    expected = [names.index(theirs.get_node(key.decode())) for key in KEYS]  # type: ignore[no-untyped-call]
    assert places("rendezvous", "crc32", FIVE) == expected


def kvproxy_by_the_book(servers: list[RingServer], key: bytes) -> int:
    """The definition, without a ring: the server with the least point that is not below the key's."""
    points = sorted(
        (zlib.crc32(f"{server.id}-{i}".encode()), index)
        for index, server in enumerate(servers)
        for i in range(server.weight)
    )
    wanted = zlib.crc32(key)
    return next((index for point, index in points if point >= wanted), points[0][1])


def test_kvproxy_places_by_the_crc_of_id_and_number() -> None:
    servers = [
        RingServer("127.0.0.1", 11212, 1, 50),
        RingServer("127.0.0.1", 11213, 2, 100),
        RingServer("127.0.0.1", 11214, 3, 50),
    ]
    assert places("kvproxy", "crc32", servers) == [kvproxy_by_the_book(servers, key) for key in KEYS]


def test_kvproxy_gives_a_shared_point_to_the_address_that_sorts_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KEY_HASHES, "crc32", lambda key: len(key))
    servers = [RingServer("b", 1, 1), RingServer("a", 1, 2)]
    assert rings.kvproxy(servers, len)(b"abc") == 0
    assert rings.kvproxy(servers[::-1], len)(b"abc") == 1


def test_ketama_names_a_server_without_the_default_port() -> None:
    digest = hashlib.md5(b"10.0.0.1-0").digest()
    point = int.from_bytes(digest[4:8], "little")
    place = rings.ketama([RingServer("10.0.0.1"), RingServer("10.0.0.2")], lambda _: point)
    assert place(b"any") == 0
    named = rings.ketama([RingServer("x"), RingServer("y", name="10.0.0.1")], lambda _: point)
    assert named(b"any") == 1


def test_weights_take_their_share() -> None:
    heavy = [RingServer("a", id=1, weight=100), RingServer("b", id=2, weight=300)]
    for hash, key_hash in (("ketama", "md5"), ("kvproxy", "crc32"), ("modula", "md5")):
        share = Counter(places(hash, key_hash, heavy))[1] / len(KEYS)
        assert 0.6 < share < 0.9, hash


@pytest.mark.parametrize("hash", [*rings.HASHES])
@pytest.mark.parametrize("key_hash", ["fnv1a_64", "md5", "crc32", "one_at_a_time"])
def test_every_server_gets_keys_and_the_cache_changes_nothing(hash: str, key_hash: str) -> None:
    servers = [RingServer(server.host, server.port, server.id, 40) for server in FIVE]
    ring = build_ring(hash, key_hash, servers)
    assert isinstance(ring, CachedRing)
    first = [ring.server_for(key) for key in KEYS]
    assert first == [ring.server_for(key) for key in KEYS] == [ring.place(key) for key in KEYS]
    assert set(first) == set(range(5))


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rings, "CACHED_KEYS", 10)
    ring = build_ring("ketama", "md5", FIVE)
    cached = ring.server_for.__self__  # type: ignore[attr-defined]  # a dictionary's bound look-up
    for key in KEYS[:100]:
        ring.server_for(key)
        assert len(cached) <= 10


def test_one_server_owns_all() -> None:
    ring = build_ring("ketama", "fnv1a_64", FIVE[:1])
    assert isinstance(ring, OneServer)
    assert {ring.server_for(key) for key in KEYS} == {0}


@pytest.mark.parametrize(
    ("hash", "key_hash", "servers", "message"),
    [
        ("ketama", "md5", [], "at least one server"),
        ("keta", "md5", FIVE, 'hash = "keta" is not known; use one of ketama, kvproxy'),
        ("ketama", "sha", FIVE, 'key_hash = "sha" is not known; use one of fnv1a_64'),
        ("ketama", "md5", [RingServer("a", weight=0)], "must be at least 1"),
        ("jump", "md5", [RingServer("a"), RingServer("b", weight=2)], "knows no weights"),
        ("kvproxy", "crc32", [RingServer("a"), RingServer("b")], "its own"),
    ],
)
def test_what_cannot_be_built_says_why(hash: str, key_hash: str, servers: list[RingServer], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_ring(hash, key_hash, servers)
