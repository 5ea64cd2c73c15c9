"""The demo's memcached clients: each keeps what it wrote, holds every read against it, and the pools in the end."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pymemcache.client.base import Client as MemcacheClient

from gateway.demo.clients import Client, check
from gateway.demo.gateway_process import GatewayServer
from gateway.demo.servers import MemcachedPools, Server

KEYS: Final = 40
"""Of each kind and client: few, so that writes and reads of a key follow each other."""

LOCAL_PREFIX: Final = "frag:"
"""Keys that rules/20-cache.toml keeps at the primary."""

ANSWER_SECONDS: Final = 30
FRESH: Final = "memcached reads after writes are never stale"


def connect(host: str, port: int) -> Any:
    """A pymemcache client; `noreply` only where it is asked for."""
    return MemcacheClient(
        (host, port), connect_timeout=ANSWER_SECONDS, timeout=ANSWER_SECONDS, no_delay=True, default_noreply=False
    )


class CacheClient(Client):
    """Keeps carts (asynchronous), log-ins (synchronous by a rule), profiles (by the prefix "+") and page fragments
    (at the primary only). Nobody else writes its keys; `values` has what each must hold, None for deleted ones."""

    def __init__(self, number: int, pause: float, gateway: GatewayServer) -> None:
        super().__init__(f"cache client {number}", pause)
        self.values: dict[str, bytes | None] = {}
        self._gateway = gateway
        self._number = number
        self._random = random.Random(number)
        self._client: Any = None

    def connect(self) -> None:
        self._client = connect(self._gateway.host, self._gateway.cache_port)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def step(self) -> None:
        self._store()
        self._count()
        self._append_or_delete()
        self._look_around()

    def _key(self, kind: str) -> str:
        return f"{kind}:{self._number}:{self._random.randrange(KEYS)}"

    def _wrote(self, key: str, value: bytes | None) -> None:
        self.values[key] = value

    def _reads_back(self, key: str) -> None:
        found, wanted = self._client.get(key), self.values.get(key)
        check(found == wanted, self.tally, FRESH, f"{key} is {_short(found)} instead of {_short(wanted)}")

    def _store(self) -> None:
        for kind in ("cart", "login", "+profile", "frag"):
            key = self._key(kind)
            value = self._random.randbytes(self._random.randint(1, 1000))
            stored = self._client.set(key, value, noreply=kind == "cart" and self._random.random() < 0.5)
            check(stored is True, self.tally, "memcached writes are stored", f"set of {key} gave {stored!r}")
            self._wrote(key, value)
            self._reads_back(key)

    def _count(self) -> None:
        key = self._key("views")
        before = self.values.get(key)
        if before is None:
            self._client.add(key, b"0")
            self._wrote(key, b"0")
        after = self._client.incr(key, 3)
        wanted = int(before or b"0") + 3
        check(after == wanted, self.tally, "memcached writes are stored", f"incr of {key} gave {after}, not {wanted}")
        self._wrote(key, str(wanted).encode())
        self._reads_back(key)

    def _append_or_delete(self) -> None:
        key = self._key("cart")
        before = self.values.get(key)
        if before is not None and self._random.random() < 0.3:
            self._client.delete(key)
            self._wrote(key, None)
        elif before is not None and len(before) < 2000:
            self._client.append(key, b"+1")
            self._wrote(key, before + b"+1")
        self._reads_back(key)

    def _look_around(self) -> None:
        keys = self._random.sample(sorted(self.values), min(10, len(self.values)))
        found = self._client.get_many(keys)
        wanted = {key: value for key in keys if (value := self.values[key]) is not None}
        words = f"get of {', '.join(keys)}: {_differences(found, wanted)}"
        check(found == wanted, self.tally, FRESH, words)


def cache_clients(gateway: GatewayServer) -> list[CacheClient]:
    """The memcached clients: about 500 requests a second together."""
    return [CacheClient(number, 0.06, gateway) for number in (1, 2)]


def compare(pools: MemcachedPools, values: Mapping[str, bytes | None]) -> list[str]:
    """Asks the servers themselves for every key that was ever written: what differs from `values`, in words.

    A key that is not there must be on no server; one that is there on exactly one of each pool, but keys that the rules
    keep at the primary on none of the replica pool.
    """
    differing: list[str] = []
    for pool, servers in pools.items():
        found = _contents(servers, sorted(values))
        for key, value in values.items():
            local = key.startswith(LOCAL_PREFIX) and pool != "master"
            wanted = [] if value is None or local else [value]
            if found[key] != wanted:
                have = ", ".join(map(_short, found[key])) or "nothing"
                differing.append(f"pool {pool} has {have} for {key} instead of {_short(None if local else value)}")
    return differing


def _contents(servers: Iterable[Server], keys: Sequence[str]) -> dict[str, list[bytes]]:
    contents: dict[str, list[bytes]] = {key: [] for key in keys}
    for server in servers:
        client = connect(server.host, server.port)
        try:
            for first in range(0, len(keys), 100):
                for key, value in client.get_many(keys[first : first + 100]).items():
                    contents[key].append(value)
        finally:
            client.close()
    return contents


def _short(value: bytes | None) -> str:
    if value is None:
        return "nothing"
    return f"{value!r}" if len(value) <= 20 else f"{value[:20]!r}... ({len(value)} bytes)"


def _differences(found: Mapping[str, bytes], wanted: Mapping[str, bytes]) -> str:
    keys = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
    return "; ".join(f"{key} is {_short(found.get(key))} instead of {_short(wanted.get(key))}" for key in keys)
