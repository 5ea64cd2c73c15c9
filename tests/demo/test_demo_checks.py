"""The demo's checks can fail: each client notices what it must, and a server that differs is told."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.demo.cache import CacheClient, compare, connect
from gateway.demo.clients import Client, Violation
from gateway.demo.gateway_process import GatewayServer
from gateway.demo.mysql_servers import MysqlGroup
from gateway.demo.servers import MemcachedPools, MemcachedServer
from gateway.demo.shop import Shopper, open_shop

pytestmark = pytest.mark.servers


@pytest.fixture
def shop(mariadb_group: MysqlGroup) -> MysqlGroup:
    mariadb_group.primary.query("DROP USER IF EXISTS report")
    open_shop(mariadb_group)
    return mariadb_group


def direct(port: int, cache_port: int = 0) -> GatewayServer:
    """Where a client connects to: a server itself instead of a gateway."""
    return cast(GatewayServer, SimpleNamespace(host="127.0.0.1", port=port, cache_port=cache_port))


def test_a_shopper_is_content_with_the_primary_itself(shop: MysqlGroup) -> None:
    shopper = Shopper(1, 0.0, direct(shop.primary.port))
    shopper.connect()
    shopper.step()
    shopper.step()
    shopper.close()
    assert shopper.tally.held["reads after writes are never stale"] == 8
    assert set(shopper.tally.reads) == {1}


@pytest.mark.parametrize(
    ("meddling", "violation"),
    [
        ("BEFORE UPDATE ON shop.customers FOR EACH ROW SET NEW.visits = 0", "never stale"),
        ("BEFORE UPDATE ON shop.accounts FOR EACH ROW SET NEW.balance = OLD.balance", "balances"),
        ("BEFORE INSERT ON shop.orders FOR EACH ROW SET NEW.total = 1", "never stale"),
        ("BEFORE INSERT ON shop.orders FOR EACH ROW SET NEW.customer = 2", "never stale"),
        ("AFTER INSERT ON shop.orders FOR EACH ROW UPDATE shop.products SET price = 1", "what was asked for"),
    ],
)
def test_a_shopper_notices_what_is_not_as_written(shop: MysqlGroup, meddling: str, violation: str) -> None:
    shopper = Shopper(1, 0.0, direct(shop.primary.port))
    shopper.connect()
    shopper.step()
    shop.primary.query(f"CREATE TRIGGER shop.meddle {meddling}")
    with pytest.raises(Violation, match=violation):
        shopper.step()
    shopper.close()


def test_a_balance_from_a_replica_is_a_violation(shop: MysqlGroup) -> None:
    shopper = Shopper(1, 0.0, direct(shop.replicas[0].port))
    shopper.connect()
    with pytest.raises(Violation, match="a replica served it"):
        shopper._balance_is_exact()
    shopper.close()


def test_a_cache_client_is_content_with_a_server_itself(memcached_servers: list[MemcachedServer]) -> None:
    client = CacheClient(1, 0.0, direct(0, memcached_servers[0].port))
    client.connect()
    for _ in range(20):
        client.step()
    client.close()
    assert client.tally.held["memcached reads after writes are never stale"] == 20 * 7


def test_a_cache_client_notices_an_old_value(memcached_servers: list[MemcachedServer]) -> None:
    server = memcached_servers[0]
    client = CacheClient(1, 0.0, direct(0, server.port))
    client.connect()
    client.step()
    meddler = connect(server.host, server.port)
    for key in client.values:
        meddler.set(key, b"old")
    meddler.close()
    with pytest.raises(Violation, match="b'old' instead of"):
        client._look_around()
    client.close()


def test_pools_that_differ_are_told_key_by_key(memcached_pools: MemcachedPools) -> None:
    clients: dict[str, list[Any]] = {
        pool: [connect(server.host, server.port) for server in servers] for pool, servers in memcached_pools.items()
    }
    master, slave = clients["master"], clients["slave"]
    for key in ("same", "stale", "missing", "twice"):
        master[0].set(key, b"new")
    slave[0].set("same", b"new")
    slave[1].set("stale", b"old")
    slave[1].set("twice", b"new")
    slave[2].set("twice", b"new")
    slave[2].set("deleted", b"left over")
    slave[2].set("frag:1", b"left over")
    master[1].set("frag:1", b"local")
    values = {"same": b"new", "stale": b"new", "missing": b"new", "twice": b"new", "deleted": None, "frag:1": b"local"}
    differing = compare(memcached_pools, values)
    for servers in clients.values():
        for client in servers:
            client.close()
    assert [words.split(" instead")[0] for words in differing] == [
        "pool slave has b'old' for stale",
        "pool slave has nothing for missing",
        "pool slave has b'new', b'new' for twice",
        "pool slave has b'left over' for deleted",
        "pool slave has b'left over' for frag:1",
    ]


class Failing(Client):
    """Fails in its second step."""

    def __init__(self) -> None:
        super().__init__("failing", 0.0)
        self.steps = 0
        self.closed = threading.Event()

    def connect(self) -> None:
        """Nothing to open."""

    def step(self) -> None:
        self.steps += 1
        if self.steps == 2:
            raise ConnectionResetError("gone")

    def close(self) -> None:
        self.closed.set()


def test_an_exception_of_a_driver_is_a_failure_and_ends_the_client() -> None:
    client = Failing()
    client.start()
    assert client.closed.wait(10.0)
    client.join(10.0)
    assert client.steps == 2
    assert client.failure == "ConnectionResetError: gone"
    assert client.failed_at > 0
