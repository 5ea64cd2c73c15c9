"""The PROXY protocol with HAProxy in front: whose address counts, and who is not believed."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any, Final

import pymysql
import pytest
from certificates import Authority
from gateways import SqlGateway, rows, value

from gateway.demo.mysql_servers import APP, MysqlGroup
from gateway.demo.servers import Haproxy
from gateway.demo.stack import Stack
from gateway.net.proxy_protocol import SIGNATURE

pytestmark = pytest.mark.servers

CLIENT: Final = "127.0.0.5"
OPTIONS: Final = "send-proxy-v2 proxy-v2-options crc32c,unique-id check check-send-proxy inter 100ms"
RULE: Final = (
    '[[rule]]\nname = "not from there"\nmatch = {protocol = "mysql", client = "127.0.0.5/32", statement = "delete"}\n'
    'block = "no deleting from there"\n'
)
HEADER: Final = SIGNATURE + b"\x21\x11" + struct.pack(">H4s4sHH", 12, socket.inet_aton(CLIENT), bytes(4), 1, 2)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def started() -> Iterator[list[SqlGateway]]:
    gateways: list[SqlGateway] = []
    yield gateways
    for gateway in gateways:
        gateway.end()


@pytest.fixture
def proxied(
    started: list[SqlGateway], session_stack: Stack, mariadb_group: MysqlGroup, authority: Authority
) -> Iterator[SqlGateway]:
    """A gateway that believes 127.0.0.1, with TLS for those who want it; shared by the tests of this module."""
    if not started:
        own = authority.issue("gateway", "127.0.0.1")
        listener = (
            'proxy_protocol_from = ["127.0.0.1/32", "::1/128"]\nhandshake_timeout = "700ms"\n'
            f'tls = {{cert = "{own.cert}", key = "{own.key}"}}'
        )
        started.append(SqlGateway(session_stack, mariadb_group, listener=listener, rules=RULE))
        started[0].start()
    started[0].wait_serving()
    yield started[0]
    assert started[0].faults() == []


def connect(host: str, port: int, **more: Any) -> Any:
    """From 127.0.0.5, as whoever is not believed."""
    settings = {"user": APP.user, "password": APP.password, "database": "shop", "autocommit": True, **more}
    return pymysql.connect(host=host, port=port, bind_address=CLIENT, connect_timeout=10, read_timeout=20, **settings)


@pytest.mark.parametrize("tls", [False, True])
def test_the_clients_address_counts_behind_haproxy(
    stack: Stack, proxied: SqlGateway, authority: Authority, tls: bool
) -> None:
    haproxy = Haproxy(stack, proxied, options=OPTIONS)
    haproxy.start()
    how: dict[str, Any] = {"ssl": {"ca": str(authority.cert)}} if tls else {"ssl_disabled": True}
    with contextlib.closing(connect(haproxy.host, haproxy.port, **how)) as one:
        assert (one._sock.__class__.__name__ == "SSLSocket") is tls
        rows(one, "CREATE TABLE t (a INT)")
        with pytest.raises(pymysql.MySQLError, match="no deleting from there"):
            rows(one, "DELETE FROM t")
        assert value(one, "SELECT COUNT(*) FROM t") == 0
    with pytest.raises(pymysql.OperationalError, match=rf"for user 'app'@'{CLIENT}'"):
        connect(haproxy.host, haproxy.port, **{**how, "password": "wrong"})
    proxied.wait_until(lambda: f'"client": "{CLIENT}"' in proxied.log.read_text(), "the log names the client")
    with contextlib.closing(
        pymysql.connect(host=haproxy.host, port=haproxy.port, user=APP.user, password=APP.password, **how)
    ) as other:
        rows(other, "DELETE FROM shop.t")


def dial(gateway: SqlGateway, source: str) -> socket.socket:
    return socket.create_connection((gateway.host, gateway.port), timeout=10.0, source_address=(source, 0))


def answer_of(client: socket.socket) -> bytes:
    """Until the gateway closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := client.recv(10_000):
            found += chunk
    return found


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", b"version 1"),
        (b"\x20\0\0\1", b"no PROXY protocol header"),
        (HEADER[:12] + b"\x31" + HEADER[13:], b"version 3"),
        (HEADER[:14] + b"\xff\xff", b"more than 4096"),
    ],
)
def test_a_broken_header_is_refused_and_logged(proxied: SqlGateway, sent: bytes, told: bytes) -> None:
    with dial(proxied, "127.0.0.1") as client:
        client.sendall(sent)
        assert told in answer_of(client)
    assert told.decode() in proxied.log.read_text()


def test_a_header_that_is_missing_or_slow_is_cut_off(proxied: SqlGateway) -> None:
    for sent in (b"", SIGNATURE, HEADER[:-1]):
        with dial(proxied, "127.0.0.1") as client:
            started = time.monotonic()
            client.sendall(sent)
            assert answer_of(client) == b"", "no greeting before the header"
            assert 0.4 < time.monotonic() - started < 5.0


def test_a_whole_header_in_pieces_is_a_header(proxied: SqlGateway) -> None:
    with dial(proxied, "127.0.0.1") as client:
        for byte in HEADER:
            client.sendall(bytes((byte,)))
        assert client.recv(10_000)[4] == 10


def test_a_header_from_elsewhere_is_not_believed(proxied: SqlGateway) -> None:
    with dial(proxied, CLIENT) as client:
        assert client.recv(10_000)[4] == 10, "greeted at once"
        client.sendall(HEADER)
        assert b"outside of proxy_protocol_from" in answer_of(client)
    assert "outside of proxy_protocol_from" in proxied.log.read_text()
    with contextlib.closing(connect(proxied.host, proxied.port)) as one:
        assert value(one, "SELECT 1") == 1


def test_somebody_who_only_looks_whether_the_port_is_open_is_no_trouble(proxied: SqlGateway) -> None:
    before = proxied.log.read_text().count("a client was refused")
    for _ in range(5):
        with dial(proxied, "127.0.0.1") as client:
            client.shutdown(socket.SHUT_WR)
            assert answer_of(client) == b""
    assert proxied.log.read_text().count("a client was refused") == before
