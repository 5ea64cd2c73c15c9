"""memcached, Redis, twemproxy, HAProxy and MySQL Router start, stop, pause and come back at the same address."""

from __future__ import annotations

import socket

import pymysql
import pytest

from gateway.demo.mysql_servers import APP, MysqlGroup, MysqlRouter
from gateway.demo.servers import Haproxy, MemcachedPools, MemcachedServer, RedisServer, Server, Twemproxy
from gateway.demo.stack import ServerFailedError, Stack

pytestmark = pytest.mark.servers


def ask(server: Server, request: bytes, timeout: float = 10.0) -> bytes:
    with socket.create_connection((server.host, server.port), timeout=timeout) as connection:
        connection.sendall(request)
        return connection.recv(4096)


@pytest.mark.parametrize("version", ["debian", "newest"])
def test_memcached_serves_and_comes_back_empty_at_its_address(stack: Stack, version: str) -> None:
    server = MemcachedServer(stack, version="newest" if version == "newest" else "debian")
    server.start()
    address = server.address
    assert ask(server, b"set k 0 0 1\r\nv\r\n") == b"STORED\r\n"
    server.kill()
    with pytest.raises(ConnectionRefusedError):
        ask(server, b"get k\r\n")
    server.start()
    assert server.address == address
    assert ask(server, b"get k\r\n") == b"END\r\n"


def test_the_newest_memcached_has_what_debians_lacks(stack: Stack) -> None:
    server = MemcachedServer(stack, version="newest")
    server.start()
    assert ask(server, b"ms k 1 E77 c\r\nv\r\n").startswith(b"HD c77")


def test_a_paused_server_takes_bytes_and_answers_after_it_resumes(memcached_servers: list[MemcachedServer]) -> None:
    server = memcached_servers[0]
    server.pause()
    with socket.create_connection((server.host, server.port), timeout=0.2) as connection:
        connection.sendall(b"set k 0 0 1\r\nv\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(100)
        server.resume()
        connection.settimeout(10.0)
        assert connection.recv(100) == b"STORED\r\n"


def test_a_server_whose_port_was_taken_gets_another(stack: Stack) -> None:
    server = MemcachedServer(stack)
    wanted = server.port
    with socket.create_server((server.host, wanted)):
        server.start()
    assert server.port != wanted
    assert ask(server, b"version\r\n").startswith(b"VERSION")


def test_a_server_that_cannot_start_says_why(stack: Stack) -> None:
    server = MemcachedServer(stack, options=["--no-such-option"])
    with pytest.raises(ServerFailedError, match="no-such-option"):
        server.start()


def test_starting_a_running_server_is_an_error(memcached_servers: list[MemcachedServer]) -> None:
    with pytest.raises(ServerFailedError, match="runs already"):
        memcached_servers[0].start()


def test_a_memcached_group_has_its_pools(memcached_pools: MemcachedPools) -> None:
    assert {pool: len(servers) for pool, servers in memcached_pools.items()} == {"master": 2, "slave": 3}
    servers = [server for pool in memcached_pools.values() for server in pool]
    assert len({server.address for server in servers}) == 5
    for server in servers:
        assert ask(server, b"version\r\n").startswith(b"VERSION 1.")


def test_twemproxy_shards_over_its_servers(stack: Stack, memcached_servers: list[MemcachedServer]) -> None:
    proxy = Twemproxy(stack, memcached_servers)
    proxy.start()
    for number in range(50):  # at the front: FNV1a-64 puts keys that differ at their end next to each other
        assert ask(proxy, b"set %d-key 0 0 1\r\nv\r\n" % number) == b"STORED\r\n"
    held = [ask(server, b"stats\r\n").split(b"STAT curr_items ")[1].split(b"\r\n")[0] for server in memcached_servers]
    assert sum(map(int, held)) == 50
    assert b"0" not in held


def test_haproxy_passes_tcp_through(stack: Stack, memcached_servers: list[MemcachedServer]) -> None:
    proxy = Haproxy(stack, memcached_servers[0])
    proxy.start()
    assert ask(proxy, b"set k 0 0 1\r\nv\r\n") == b"STORED\r\n"
    assert b"VALUE k" in ask(memcached_servers[0], b"get k\r\n")


def test_a_redis_replica_follows(stack: Stack) -> None:
    primary = RedisServer(stack)
    primary.start()
    replica = RedisServer(stack, replica_of=primary)
    replica.start()
    assert b"role:slave" in ask(replica, b"INFO replication\r\n")


def test_mysql_router_passes_the_protocol_through(stack: Stack, mariadb_group: MysqlGroup) -> None:
    router = MysqlRouter(stack, mariadb_group.primary)
    router.start()
    connection = pymysql.connect(host=router.host, port=router.port, user=APP.user, password=APP.password)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT @@server_id")
            assert cursor.fetchone() == (1,)
    finally:
        connection.close()
