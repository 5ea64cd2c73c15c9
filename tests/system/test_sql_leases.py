"""What once cost a place in the pool, or sent a write to a replica: each found by reading, and held here."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pymysql
import pytest
from gateways import SqlGateway, rows, shared_gateway, value
from pymysql.constants import CLIENT

from gateway.demo.mysql_servers import MysqlGroup
from gateway.demo.stack import Stack
from gateway.protocol.mysql.commands import PING

pytestmark = pytest.mark.servers


@pytest.fixture
def single(sql_group: MysqlGroup, session_stack: Stack, shared_gateways: dict[str, SqlGateway]) -> Iterator[SqlGateway]:
    """A gateway with one connection per server."""
    settings = 'pool = {size = 1, min_idle = 0, acquire_timeout = "500ms"}'
    name = f"single {sql_group.primary.flavor}"
    yield from shared_gateway(name, sql_group, session_stack, shared_gateways, settings=settings)


def test_dropping_the_current_database_costs_nobody_a_connection(single: SqlGateway) -> None:
    with single.connect() as one:
        rows(one, "CREATE TABLE kept (id INT PRIMARY KEY)")
        rows(one, "DROP DATABASE shop")
        rows(one, "CREATE DATABASE shop")
        with pytest.raises(pymysql.err.MySQLError, match=r"[Nn]o database"):
            rows(one, "INSERT INTO kept VALUES (1)")
        rows(one, "USE shop")
        rows(one, "CREATE TABLE again (id INT PRIMARY KEY)")
    with single.connect() as other:
        rows(other, "INSERT INTO again VALUES (1)")
        assert value(other, "SELECT COUNT(*) FROM again") == 1


def test_a_connection_is_taken_over_whatever_its_session_has_set(single: SqlGateway) -> None:
    with single.connect() as one, single.connect() as other:
        rows(one, "CREATE TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, v INT)")
        rows(one, "SET sql_select_limit = 0")
        rows(one, "INSERT INTO t (v) VALUES (1)")
        rows(other, "INSERT INTO t (v) VALUES (2)")
        rows(other, "INSERT INTO t (v) VALUES (3)")
        rows(one, "SET sql_select_limit = 100")
        assert value(one, "SELECT LAST_INSERT_ID()") == 1
        assert value(other, "SELECT LAST_INSERT_ID()") == 3


def test_a_write_before_a_read_only_transaction_is_carried_out(single: SqlGateway) -> None:
    with single.connect(client_flag=CLIENT.MULTI_STATEMENTS) as one:
        rows(one, "CREATE TABLE t (id INT PRIMARY KEY)")
        with one.cursor() as cursor:
            cursor.execute("INSERT INTO t VALUES (1); START TRANSACTION READ ONLY")
            while cursor.nextset():
                pass
        rows(one, "COMMIT")
        assert value(one, "SELECT COUNT(*) FROM t") == 1


def sent_until_refused(sock: socket.socket) -> int:
    """Bytes of PING that a connection takes within 20 s before it takes no more."""
    sent = 0
    deadline = time.monotonic() + 20
    with contextlib.suppress(TimeoutError):
        while time.monotonic() < deadline:
            sent += sock.send(PING * 10_000)
    return sent


def test_a_client_that_reads_nothing_is_read_no_further(single: SqlGateway) -> None:
    with single.connect() as one:
        sock: socket.socket = one._sock  # type: ignore[attr-defined]  # the wire is the point
        sock.settimeout(0.2)
        assert sent_until_refused(sock) < 64 << 20  # what kernels hold, and no more
    with single.connect() as other:
        assert value(other, "SELECT 1") == 1
