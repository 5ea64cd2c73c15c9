"""Commands longer than somebody takes: the client reads error 1153, and what was not carried out is known not to be."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import mysql.connector
import pymysql
import pytest
from gateways import SqlGateway, rows, shared_gateway, value
from wire_client import NEW, WireClient

from gateway.demo.mysql_servers import APP, MysqlGroup
from gateway.demo.stack import Stack
from gateway.protocol.mysql import commands
from gateway.protocol.mysql.constants import Capability

pytestmark = pytest.mark.servers

MIB = 1 << 20


@pytest.fixture
def narrow(sql_group: MysqlGroup, session_stack: Stack, shared_gateways: dict[str, SqlGateway]) -> Iterator[SqlGateway]:
    """Servers that take less than 1 MiB behind a gateway that takes 4 MiB."""
    before = sql_group.primary.query("SELECT @@global.max_allowed_packet")[0][0]
    for server in sql_group.servers:
        server.query(f"SET GLOBAL max_allowed_packet = {MIB}")
    try:
        yield from shared_gateway(
            f"narrow {sql_group.primary.flavor}",
            sql_group,
            session_stack,
            shared_gateways,
            listener='max_allowed_packet = "4MiB"',
            settings="pool = {size = 2, min_idle = 0}",
        )
    finally:
        for server in sql_group.servers:
            server.query(f"SET GLOBAL max_allowed_packet = {before}")


def of_length(length: int, head: str, tail: str) -> str:
    """A statement whose command has `length` bytes."""
    return head + "x" * (length - 1 - len(head) - len(tail)) + tail


@pytest.mark.parametrize("length", [MIB - 1, MIB, MIB + 1, 3 * MIB])
def test_what_is_too_long_for_the_server_is_a_known_refusal(narrow: SqlGateway, length: int) -> None:
    with narrow.connect() as one:
        rows(one, "CREATE TABLE IF NOT EXISTS t (a INT PRIMARY KEY AUTO_INCREMENT, b LONGTEXT)")
        for begun in (False, True):
            if begun:
                one.begin()
            rows(one, "DELETE FROM t")
            for statement in (
                of_length(length, "INSERT INTO t (b) VALUES ('", "')"),
                of_length(length, "SELECT LENGTH('", "')"),
            ):
                if length < MIB:
                    rows(one, statement)
                    continue
                with pytest.raises(pymysql.OperationalError) as refused:
                    rows(one, statement)
                assert refused.value.args == (1153, "Got a packet bigger than 'max_allowed_packet' bytes")
                assert [row[1] for row in rows(one, "SHOW WARNINGS")] == [1153]
            assert value(one, "SELECT COUNT(*) FROM t") == (length < MIB)
            if begun:
                one.commit()


def test_the_rest_of_what_is_too_long_for_the_gateway_is_read(narrow: SqlGateway) -> None:
    for length in (4 * MIB + 1, 5 * MIB, 16 * MIB - 1, 16 * MIB, 40 * MIB):
        with narrow.connect() as one, pytest.raises(pymysql.OperationalError) as refused:
            rows(one, of_length(length, "SELECT LENGTH('", "')"))
        assert refused.value.args[0] == 1153, length
    assert int(narrow.figures["sessions"]) == 0


@pytest.mark.parametrize("capabilities", [NEW, NEW | int(Capability.COMPRESS)], ids=["plain", "compressed"])
def test_the_connection_ends_behind_it(narrow: SqlGateway, capabilities: int) -> None:
    with WireClient(narrow, capabilities=capabilities) as one:
        one.rows("BEGIN")
        error = one.error(commands.query(of_length(6 * MIB, "SELECT LENGTH('", "')")))
        assert error is not None
        assert (error.code, error.sqlstate) == (1153, "08S01")
        assert one.is_closed()
    narrow.wait_until(lambda: int(narrow.figures["sessions"]) == 0, "the session has ended")
    assert int(narrow.figures["in_transaction_or_pinned"]) == 0


def test_a_client_that_stops_in_the_middle_of_it_is_let_go(narrow: SqlGateway) -> None:
    with WireClient(narrow) as one:
        one.sock.sendall(commands.query(of_length(6 * MIB, "SELECT LENGTH('", "')"))[: 5 * MIB])
    narrow.wait_until(lambda: int(narrow.figures["sessions"]) == 0, "the session has ended")


def test_a_prepared_statement_s_long_value_is_a_known_refusal(narrow: SqlGateway) -> None:
    connection: Any = mysql.connector.connect(
        host=narrow.host, port=narrow.port, user=APP.user, password=APP.password, database="shop",
        use_pure=True, ssl_disabled=True, collation="utf8mb4_general_ci",
    )  # fmt: skip
    with contextlib.closing(connection):
        cursor = connection.cursor(prepared=True)
        for length in (MIB - 100, 2 * MIB, 5):
            if length < MIB:
                cursor.execute("SELECT LENGTH(%s)", ("x" * length,))
                assert cursor.fetchall() == [(length,)]
            else:
                with pytest.raises(mysql.connector.Error) as refused:
                    cursor.execute("SELECT LENGTH(%s)", ("x" * length,))
                assert refused.value.errno in (1153, 1105)
