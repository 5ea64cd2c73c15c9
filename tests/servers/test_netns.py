"""A memcached in a network namespace can be cut off without being told, and remembers its clients meanwhile."""

from __future__ import annotations

import socket

import pytest
from netns import NamespacedMemcached

pytestmark = pytest.mark.servers


def connect(server: NamespacedMemcached, timeout: float = 10.0) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=timeout)


def test_the_server_sees_the_clients_own_address(memcached_in_namespace: NamespacedMemcached) -> None:
    with connect(memcached_in_namespace) as client:
        host, port = client.getsockname()
        assert host == memcached_in_namespace.client_address
        client.sendall(b"stats conns\r\n")
        answer = client.recv(65536)
        assert f"addr tcp:{host}:{port}".encode() in answer


def test_a_cut_is_silent_and_bytes_sent_into_it_arrive_after_heal(memcached_in_namespace: NamespacedMemcached) -> None:
    server = memcached_in_namespace
    with connect(server) as client:
        client.sendall(b"version\r\n")
        assert client.recv(100).startswith(b"VERSION")
        server.cut()
        client.sendall(b"set k 0 0 1\r\nv\r\n")
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.recv(100)
        server.heal()
        client.settimeout(30.0)
        assert client.recv(100) == b"STORED\r\n"


def test_nobody_connects_through_a_cut(memcached_in_namespace: NamespacedMemcached) -> None:
    memcached_in_namespace.cut()
    with pytest.raises(TimeoutError):
        connect(memcached_in_namespace, timeout=0.3)


def test_a_reset_into_a_cut_leaves_the_connection_known_to_the_server(
    memcached_in_namespace: NamespacedMemcached,
) -> None:
    server = memcached_in_namespace
    client = connect(server)
    client.sendall(b"version\r\n")
    assert client.recv(100).startswith(b"VERSION")
    address = "{}:{}".format(*client.getsockname()).encode()
    server.cut()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    server.heal()
    with connect(server) as other:
        other.sendall(b"stats conns\r\n")
        assert address in other.recv(65536)
