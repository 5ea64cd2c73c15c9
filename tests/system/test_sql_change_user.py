"""COM_CHANGE_USER: the whole log-in again on the same connection, and nothing left of who one was before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mysql.connector
import pymysql
import pymysql._auth
import pytest
from gateways import SqlGateway, rows, shared_gateway, value

from gateway.demo.mysql_servers import APP, Account, MysqlFamilyServer, MysqlGroup
from gateway.demo.stack import Stack

pytestmark = pytest.mark.servers

OTHER = Account("changed", "changed-secret")


@pytest.fixture
def small(sql_group: MysqlGroup, session_stack: Stack, shared_gateways: dict[str, SqlGateway]) -> Iterator[SqlGateway]:
    """Two users, and two connections per server."""
    sql_group.primary.query(f"CREATE USER IF NOT EXISTS {OTHER.user}@'%' IDENTIFIED BY '{OTHER.password}'")
    sql_group.primary.query(f"GRANT ALL ON sbtest.* TO {OTHER.user}@'%'")
    sql_group.wait_caught_up()
    yield from shared_gateway(
        f"change {sql_group.primary.flavor}",
        sql_group,
        session_stack,
        shared_gateways,
        settings='pool = {size = 2, acquire_timeout = "2s"}',
        users=(APP, OTHER),
    )


def change_user(
    connection: Any, account: Account, database: str = "", plugin: bytes = b"mysql_native_password", collation: int = 45
) -> None:
    """As libmysqlclient does it: the answer to the old nonce first, then to whatever is asked."""
    answer = pymysql._auth.scramble_native_password(account.password.encode(), connection.salt)
    connection.user, connection.password = account.user.encode(), account.password.encode()
    connection._next_seq_id = 0
    connection.write_packet(
        b"\x11" + account.user.encode() + b"\0" + bytes([len(answer)]) + answer + database.encode() + b"\0"
        + collation.to_bytes(2, "little") + plugin + b"\0\x00"
    )  # fmt: skip
    packet = connection._read_packet()
    while not packet.is_ok_packet():
        assert packet.is_auth_switch_request()
        packet.read_uint8()
        name = packet.read_string()
        packet = connection._process_auth(name, packet)


def test_everything_is_as_after_a_log_in(small: SqlGateway) -> None:
    connection: Any = small.open()
    try:
        thread = value(connection, "SELECT CONNECTION_ID()")
        rows(connection, "CREATE TABLE t (a INT PRIMARY KEY)")
        rows(connection, "SET @a = 5, time_zone = '+03:00'")
        rows(connection, "SET NAMES latin1")
        connection.begin()
        rows(connection, "INSERT INTO t VALUES (1)")
        rows(connection, "CREATE TEMPORARY TABLE tmp (a INT)")
        rows(connection, "SELECT GET_LOCK('mine', 0)")
        assert rows(connection, "SHOW GATEWAY PINS") != []
        change_user(connection, OTHER, "sbtest")
        assert rows(connection, "SHOW GATEWAY PINS") == []
        assert rows(connection, "SELECT CURRENT_USER(), DATABASE(), @a, @@time_zone = '+03:00'") == [
            (f"{OTHER.user}@%", "sbtest", None, 0)
        ]
        assert value(connection, "SELECT @@character_set_client") == "utf8mb4"
        assert value(connection, "SELECT CONNECTION_ID()") == thread
        with pytest.raises(pymysql.MySQLError) as refused:
            rows(connection, "SELECT * FROM shop.t")
        assert refused.value.args[0] == 1142
        with small.connect() as another:
            rows(another, "INSERT INTO t VALUES (1)")  # would wait for the lock of the open transaction
            another.begin()
            assert value(another, "SELECT GET_LOCK('mine', 0)") == 1
            with pytest.raises(pymysql.MySQLError):
                rows(another, "SELECT * FROM tmp")
        change_user(connection, APP)
        assert rows(connection, "SELECT CURRENT_USER(), DATABASE()") == [(f"{APP.user}@%", None)]
    finally:
        connection.close()


@pytest.mark.parametrize("plugin", [b"mysql_native_password", b"caching_sha2_password", b"dialog"])
def test_every_plugin_is_verified_with_a_fresh_nonce(small: SqlGateway, plugin: bytes) -> None:
    connection: Any = small.open()
    try:
        change_user(connection, OTHER, "sbtest", plugin)
        assert value(connection, "SELECT CURRENT_USER()") == f"{OTHER.user}@%"
        change_user(connection, OTHER, "sbtest", plugin)
        assert value(connection, "SELECT DATABASE()") == "sbtest"
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("account", "database", "code"),
    [
        (Account(OTHER.user, "wrong"), "sbtest", 1045),
        (Account("nobody", "x"), "", 1045),
        (OTHER, "nowhere", 1044),
        (APP, "nowhere", 1044),
    ],
)
def test_failure_is_told_and_ends_the_connection(small: SqlGateway, account: Account, database: str, code: int) -> None:
    connection: Any = small.open()
    connection.begin()
    with pytest.raises(pymysql.MySQLError) as refused:
        change_user(connection, account, database)
    assert refused.value.args[0] in (code, 1049)
    with pytest.raises(pymysql.MySQLError):
        value(connection, "SELECT 1")
    small.wait_until(lambda: small.figures["in_transaction_or_pinned"] == 0, "its transaction has ended")


def answer_nothing(connection: Any) -> None:
    packet = connection._read_packet()
    assert packet.is_auth_switch_request()
    connection.write_packet(b"")
    connection._read_packet()


def test_a_client_that_says_nothing_of_a_plugin_or_half_a_packet_is_refused(small: SqlGateway) -> None:
    for payload in (b"\x11", b"\x11app\0\xff", b"\x11app\0\x05abc"):
        connection: Any = small.open()
        connection._next_seq_id = 0
        connection.write_packet(payload)
        with pytest.raises(pymysql.MySQLError):
            answer_nothing(connection)
        with pytest.raises(pymysql.MySQLError):
            value(connection, "SELECT 1")


def test_the_connector_changes_users_as_with_a_server(small: SqlGateway) -> None:
    def changed(server: SqlGateway | MysqlFamilyServer) -> list[Any]:
        connection: Any = mysql.connector.connect(
            host=server.host, port=server.port, user=APP.user, password=APP.password, database="shop", use_pure=True,
            ssl_disabled=True, charset="utf8mb4", collation="utf8mb4_general_ci",
        )  # fmt: skip
        try:
            connection.cmd_change_user(OTHER.user, OTHER.password, "sbtest", 45)
            cursor = connection.cursor()
            cursor.execute("SELECT CURRENT_USER(), DATABASE(), @@autocommit")
            return list(cursor.fetchall())
        finally:
            connection.close()

    assert changed(small) == changed(small.group.primary) == [(f"{OTHER.user}@%", "sbtest", 0)]
