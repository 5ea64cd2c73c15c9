"""Where a key lives: placement of keys on servers as twemproxy, libmemcached, kvproxy and pymemcache do it.

A cache that was filled through one of them is found again only if every key goes to the same server, so each placement
here repeats its model exactly: the names that are hashed, 32-bit floats, signed characters, and what happens on ties.

| hash | model | a server's name | weight |
| --- | --- | --- | --- |
| ketama | twemproxy, libmemcached's weighted ketama (with key_hash md5) | "host:port", "host" on port 11211 | yes |
| kvproxy | kvproxy (with key_hash crc32) | its id | yes |
| modula | twemproxy | as ketama; only for the order | yes |
| jump | Lamping and Veach, arXiv:1406.2294 | its place in the list | no |
| rendezvous | pymemcache's RendezvousHash; its own hash of the key | "host:port" | no |
"""

from __future__ import annotations

import ctypes
import hashlib
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec

from gateway.backends.key_hashes import KEY_HASHES, murmur3_32
from gateway.errors import ConfigError

CACHED_KEYS: Final = 65_536  # about 12 MiB with keys of 30 bytes; hashing 20 bytes costs 2 us, a hit 0.05 us
DEFAULT_PORT: Final = 11211  # ketama leaves it out of a server's name, for compatibility with libmemcached
POINTS_PER_SERVER: Final = 160  # nc_ketama.c, MEMCACHED_POINTS_PER_SERVER_KETAMA
POINTS_PER_HASH: Final = 4  # an MD5 has four points


class RingServer(msgspec.Struct, frozen=True):
    """A server as placement sees it. `name` overrides what is hashed for ketama and rendezvous (twemproxy's
    "host:port:weight name")."""

    host: str
    port: int = DEFAULT_PORT
    id: int = 0
    weight: int = 1
    name: str | None = None


class Ring(Protocol):
    """A fixed set of servers; immutable but for its cache."""

    @property
    def server_for(self) -> Callable[[bytes], int]:
        """The place in the list of servers of the one that owns the key."""


class OneServer:
    """All keys live on the only server."""

    __slots__ = ()

    @staticmethod
    def server_for(_key: bytes) -> int:
        return 0


class _Places(dict[bytes, int]):
    """A bounded cache in front of a placement: emptied when it is full, which costs less than order would."""

    __slots__ = ("_place",)

    def __init__(self, place: Callable[[bytes], int]) -> None:
        super().__init__()
        self._place = place

    def __missing__(self, key: bytes) -> int:
        if len(self) >= CACHED_KEYS:
            self.clear()
        place = self[key] = self._place(key)
        return place


class CachedRing:
    """A placement with its cache. `server_for` is a dictionary's own look-up, so that a hit runs no Python code."""

    __slots__ = ("place", "server_for")

    def __init__(self, place: Callable[[bytes], int]) -> None:
        self.place = place
        self.server_for: Callable[[bytes], int] = _Places(place).__getitem__


def build_ring(hash: str, key_hash: str, servers: Sequence[RingServer]) -> Ring:
    """The ring of a pool. `hash` and `key_hash` as in gateway.toml (`HASHES`, `KEY_HASHES`); raises ConfigError."""
    if not servers:
        raise ConfigError("a pool needs at least one server")
    if hash not in HASHES:
        raise ConfigError(f'hash = "{hash}" is not known; use one of {", ".join(HASHES)}')
    if key_hash not in KEY_HASHES:
        raise ConfigError(f'key_hash = "{key_hash}" is not known; use one of {", ".join(KEY_HASHES)}')
    for server in servers:
        if server.weight < 1:
            raise ConfigError(f"weight = {server.weight} of {server.host}:{server.port}: must be at least 1")
    if hash in ("jump", "rendezvous") and len({server.weight for server in servers}) > 1:
        raise ConfigError(f'hash = "{hash}" knows no weights; give all servers the same, or use ketama')
    if hash == "kvproxy" and len({server.id for server in servers}) < len(servers):
        raise ConfigError('hash = "kvproxy" places servers by id; give each server of the pool its own')
    place = HASHES[hash](servers, KEY_HASHES[key_hash])
    return OneServer() if len(servers) == 1 else CachedRing(place)


KeyHash = Callable[[bytes], int]
Place = Callable[[bytes], int]


def ketama(servers: Sequence[RingServer], key_hash: KeyHash) -> Place:
    """As nc_ketama.c and libmemcached's hosts.cc: points per server in proportion to weight, by MD5 of "name-i"."""
    total = sum(server.weight for server in servers)
    points: list[tuple[int, int]] = []
    for index, server in enumerate(servers):
        name = _name(server)
        for i in range(_ketama_points(server.weight, total, len(servers)) // POINTS_PER_HASH):
            digest = hashlib.md5(f"{name}-{i}".encode(), usedforsecurity=False).digest()
            points += [(int.from_bytes(digest[at : at + 4], "little"), index) for at in range(0, 16, 4)]
    return _continuum(points, key_hash)


def _name(server: RingServer) -> str:
    return server.name or (server.host if server.port == DEFAULT_PORT else f"{server.host}:{server.port}")


def _ketama_points(weight: int, total: int, servers: int) -> int:
    # Every step is rounded to a float, as C does: 33 % of 160 points would come out otherwise now and then.
    share = _float32(_float32(weight) / _float32(total))
    points = _float32(_float32(_float32(share * POINTS_PER_SERVER) / POINTS_PER_HASH) * servers)
    return int(_float32(points + 0.0000000001)) * POINTS_PER_HASH


def _float32(number: float) -> float:
    return ctypes.c_float(number).value


def kvproxy(servers: Sequence[RingServer], key_hash: KeyHash) -> Place:
    """As kvproxy's hash.cpp: CRC32 of "id-i", as many points as the weight. Of two servers with the same point the
    one whose "host:port" sorts last keeps it, since kvproxy fills a map in that order."""
    crc32 = KEY_HASHES["crc32"]
    owners: dict[int, int] = {}
    for index in sorted(range(len(servers)), key=lambda at: f"{servers[at].host}:{servers[at].port}"):
        server = servers[index]
        owners.update((crc32(b"%d-%d" % (server.id, i)), index) for i in range(server.weight))
    return _continuum(list(owners.items()), key_hash)


def _continuum(points: list[tuple[int, int]], key_hash: KeyHash) -> Place:
    """The owner of the first point not below the key's hash; past the last point, of the first."""
    points = sorted(points)
    values = [value for value, _ in points]
    owners = [owner for _, owner in points]
    owners.append(owners[0])

    def place(key: bytes) -> int:
        return owners[bisect_left(values, key_hash(key))]

    return place


def modula(servers: Sequence[RingServer], key_hash: KeyHash) -> Place:
    """As nc_modula.c: the hash modulo the sum of the weights.

    twemproxy sorts the servers of a pool by their names, short ones first (nc_conf.c, when it looks for doubles), so
    that their order in the file does not count. libmemcached's modula goes by that order, and is not this.
    """
    order = sorted(range(len(servers)), key=lambda index: (len(_name(servers[index])), _name(servers[index])))
    slots = [index for index in order for _ in range(servers[index].weight)]

    def place(key: bytes) -> int:
        return slots[key_hash(key) % len(slots)]

    return place


def jump(servers: Sequence[RingServer], key_hash: KeyHash) -> Place:
    """Jump consistent hash, arXiv:1406.2294, figure 1, of the key's hash."""
    count = len(servers)

    def place(key: bytes) -> int:
        return jump_bucket(key_hash(key), count)

    return place


def jump_bucket(key: int, buckets: int) -> int:
    """The bucket of a 64-bit key."""
    bucket, following = -1, 0
    while following < buckets:
        bucket = following
        key = (key * 2862933555777941757 + 1) & 0xFFFF_FFFF_FFFF_FFFF
        following = int((bucket + 1) * ((1 << 31) / ((key >> 33) + 1)))
    return bucket


def rendezvous(servers: Sequence[RingServer], key_hash: KeyHash) -> Place:
    """As pymemcache's RendezvousHash: the highest murmur3 of "host:port-key". `key_hash` is not used. On a tie the
    name that sorts last wins, as there."""
    del key_hash
    names = [(server.name or f"{server.host}:{server.port}").encode() for server in servers]

    def place(key: bytes) -> int:
        return max(range(len(names)), key=lambda index: (murmur3_32(names[index] + b"-" + key), names[index]))

    return place


HASHES: Final[dict[str, Callable[[Sequence[RingServer], KeyHash], Place]]] = {
    "ketama": ketama,
    "kvproxy": kvproxy,
    "jump": jump,
    "rendezvous": rendezvous,
    "modula": modula,
}
