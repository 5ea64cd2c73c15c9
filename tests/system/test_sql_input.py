"""Bad input at the SQL port: random and mutated bytes, slow and silent clients, too many of them, huge packets."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Final

import pymysql
import pytest
from gateways import GatewayMaker, SqlGateway, rows, value

from gateway.demo.mysql_servers import APP, MysqlGroup
from gateway.protocol.mysql.client_handshake import ClientHandshake
from gateway.protocol.mysql.handshake import Connected, Send

pytestmark = pytest.mark.servers

STREAMS: Final = 1000


@pytest.fixture
def guarded(gateways: GatewayMaker, mariadb_group: MysqlGroup) -> Iterator[SqlGateway]:
    """A gateway whose other client is served all the time."""
    gateway = gateways(
        mariadb_group,
        listener='handshake_timeout = "700ms"\nmax_allowed_packet = "1MiB"',
        settings="pool = {size = 8}",
    )
    over = threading.Event()
    problems: list[str] = []

    def other_client() -> None:
        try:
            with gateway.connect(read_timeout=10) as connection:
                rows(connection, "CREATE TABLE IF NOT EXISTS guard (a INT)")
                while not over.is_set():
                    assert value(connection, "SELECT 1 + COUNT(*) FROM guard") == 1
                    rows(connection, "DELETE FROM guard")
                    over.wait(0.01)
        except Exception as error:
            problems.append(repr(error))

    guard = threading.Thread(target=other_client)
    guard.start()
    yield gateway
    over.set()
    guard.join(30.0)
    assert not guard.is_alive()
    assert problems == []


def packet(sequence: int, payload: bytes) -> bytes:
    return struct.pack("<I", len(payload))[:3] + bytes([sequence]) + payload


def connect(gateway: SqlGateway, timeout: float = 5.0) -> socket.socket:
    client = socket.create_connection((gateway.host, gateway.port), timeout=timeout)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def log_in(client: socket.socket) -> bytes:
    """Logs in; the bytes that the client sent."""
    handshake = ClientHandshake(user=APP.user, password=APP.password, capabilities=0, collation=45)
    sent = b""
    while True:
        for event in handshake.feed(client.recv(65536)):
            match event:
                case Send(reply):
                    client.sendall(reply)
                    sent += reply
                case Connected():
                    return sent


COMMANDS: Final = [
    packet(0, b"\x03SELECT 1"),
    packet(0, b"\x03SELECT * FROM guard WHERE a = 'x'"),
    packet(0, b"\x03INSERT INTO nowhere VALUES (1)"),
    packet(0, b"\x03SET @a = 1, NAMES utf8"),
    packet(0, b"\x03BEGIN"),
    packet(0, b"\x02shop"),
    packet(0, b"\x0e"),
    packet(0, b"\x16SELECT ?, ?"),
    packet(0, b"\x17\x01\0\0\0\0\x01\0\0\0\0\x01\x08\0\x08\0" + b"\0" * 16),
    packet(0, b"\x18\x01\0\0\0\0\0data"),
    packet(0, b"\x19\x01\0\0\0"),
    packet(0, b"\x1a\x01\0\0\0"),
    packet(0, b"\x1c\x01\0\0\0\x01\0\0\0"),
    packet(0, b"\x04guard\0"),
    packet(0, b"\x09"),
    packet(0, b"\x1b\x01\0"),
    packet(0, b"\x1f"),
    packet(0, b"\x11app\0\0shop\0"),
    packet(0, b"\x12"),
    packet(0, b"\x0c\x01\0\0\0"),
]


def mutated(choose: random.Random, stream: bytes) -> bytes:
    """Some bytes changed, doubled, cut out or added."""
    data = bytearray(stream)
    for _ in range(choose.randrange(1, 6)):
        at = choose.randrange(len(data)) if data else 0
        how = choose.randrange(6)
        if how == 0 and data:
            data[at] = choose.randrange(256)
        elif how == 1 and data:
            data[at] ^= 1 << choose.randrange(8)
        elif how == 2:
            del data[at : at + choose.randrange(1, 8)]
        elif how == 3:
            data[at:at] = choose.randbytes(choose.randrange(1, 8))
        elif how == 4:
            data[at:at] = data[at : at + 30]
        else:
            del data[at:]
    return bytes(data)


def drain(client: socket.socket) -> bytes:
    """What comes until the other side closes or is silent."""
    received = b""
    with contextlib.suppress(OSError):
        while chunk := client.recv(65536):
            received += chunk
            if len(received) > 1 << 20:
                break
    return received


def test_a_thousand_bad_streams_hurt_nobody(guarded: SqlGateway) -> None:
    choose = random.Random(1)
    with connect(guarded) as client:
        valid = log_in(client)
    for number in range(STREAMS):
        with connect(guarded) as client:
            if number % 2 == 0:
                client.recv(65536)
                stream = choose.randbytes(choose.randrange(1, 200)) if number % 8 == 0 else mutated(choose, valid)
            else:
                log_in(client)
                commands = b"".join(choose.choices(COMMANDS, k=choose.randrange(1, 5)))
                stream = choose.randbytes(choose.randrange(1, 200)) if number % 8 == 1 else mutated(choose, commands)
            with contextlib.suppress(OSError):  # closed by the gateway while it was sent
                for at in range(0, len(stream), 50):
                    client.sendall(stream[at : at + 50])
                client.shutdown(socket.SHUT_WR)
            client.settimeout(5.0)
            drain(client)
    guarded.wait_until(lambda: guarded.figures["connections"] <= 1, "every connection has ended")
    assert guarded.figures["in_transaction_or_pinned"] == 0


def test_a_half_closing_client_gets_its_answers(guarded: SqlGateway) -> None:
    with connect(guarded) as client:
        log_in(client)
        client.sendall(packet(0, b"\x03SELECT 'first'") + packet(0, b"\x03SELECT 'second'"))
        client.shutdown(socket.SHUT_WR)
        answer = drain(client)
    assert b"first" in answer
    assert b"second" in answer


def test_a_silent_client_is_closed_after_the_handshake_timeout(guarded: SqlGateway) -> None:
    clients = [connect(guarded) for _ in range(20)]
    began = time.monotonic()
    for client in clients[:10]:
        client.sendall(b"\x20\x00\x00\x01" + b"\x85")  # the beginning of a response, and nothing more
    for client in clients:
        drain(client)
        assert time.monotonic() - began < 5.0
        client.close()


def test_a_packet_that_is_too_long_is_told(guarded: SqlGateway) -> None:
    with connect(guarded) as client:
        log_in(client)
        client.sendall(packet(0, b"\x03SELECT '" + b"x" * (2 << 20) + b"'"))
        assert struct.pack("<H", 1153) in drain(client)[:16]


def test_too_many_connections_are_told(gateways: GatewayMaker, mariadb_group: MysqlGroup) -> None:
    gateway = gateways(mariadb_group, listener="max_connections = 3")
    with contextlib.ExitStack() as clients:
        connections = [clients.enter_context(gateway.connect()) for _ in range(3)]
        with pytest.raises(pymysql.OperationalError) as refused, gateway.connect():
            pass
        assert refused.value.args[0] == 1040
        connections[0].close()
        gateway.wait_until(lambda: gateway.figures["connections"] == 2, "one has left")
        with gateway.connect() as another:
            assert value(another, "SELECT 1") == 1
    assert gateway.figures["refused_connections"] == 1


def test_a_large_result_streams_to_a_slow_reader_in_little_memory(
    gateways: GatewayMaker, mariadb_group: MysqlGroup
) -> None:
    gateway = gateways(mariadb_group)
    rows_wanted, width = 300, 1 << 20
    statement = (
        f"SELECT REPEAT('x', {width}) FROM (WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n "
        + (f"WHERE i < {rows_wanted}) SELECT i FROM n) AS many")
    )
    for server in mariadb_group.servers:
        server.query("SET GLOBAL max_allowed_packet = 67108864")
    with gateway.connect() as other, connect(gateway, timeout=60.0) as client:
        log_in(client)
        before = gateway.memory_bytes()
        client.sendall(packet(0, b"\x03" + statement.encode()))
        received = peak = 0
        while received < rows_wanted * width:
            received += len(client.recv(1 << 16 if received < 4 << 20 else 1 << 20))
            if received < 4 << 20:
                assert value(other, "SELECT 1") == 1  # meanwhile the reader is slow
            peak = max(peak, gateway.memory_bytes())
        assert peak - before < 24 << 20
