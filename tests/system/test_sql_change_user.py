"""COM_CHANGE_USER: the whole log-in again on the same connection, and nothing left of who one was before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mysql.connector
import pymysql
import pytest
from backend_accounts import REMOTE, account, administrator, ends
from change_user import ask_to_change, change_user, finish_change
from gateways import GatewayMaker, SqlGateway, rows, shared_gateway, value

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


# ---------------------------------------------------------------- the same way in as a log-in


def refused_change(connection: Any, account: Account, **more: Any) -> int:
    """The error number; the connection is closed then."""
    with pytest.raises(pymysql.MySQLError) as error:
        change_user(connection, account, **more)
    with pytest.raises(pymysql.MySQLError):
        value(connection, "SELECT 1")
    return int(error.value.args[0])


def test_limits_and_defaults_are_the_new_user_s_and_the_old_one_has_room_again(
    gateways: GatewayMaker, small: SqlGateway
) -> None:
    gateway = gateways(
        small.group,
        users=(
            f'[{{name = "{APP.user}", password = "{APP.password}", max_connections = 2}}, '
            f'{{name = "{OTHER.user}", password = "{OTHER.password}", max_connections = 1, database = "sbtest", '
            'consistency = "strong", read_only = true}]'
        ),
    )
    one, two = gateway.open(), gateway.open()
    with pytest.raises(pymysql.MySQLError) as full:
        gateway.open()
    assert full.value.args[0] == 1226
    change_user(one, OTHER)
    assert value(one, "SELECT DATABASE()") == "sbtest"
    value(one, "SELECT COUNT(*) FROM information_schema.TABLES")
    assert dict(rows(one, "SHOW GATEWAY LAST ROUTE"))["consistency"] == "strong"
    with pytest.raises(pymysql.MySQLError, match="the user is read_only"):
        rows(one, "CREATE TABLE t (a INT)")
    with gateway.connect():  # in the place that is free now
        with pytest.raises(pymysql.MySQLError) as full:
            gateway.open("sbtest", OTHER)
        assert full.value.args[0] == 1226
        assert refused_change(two, OTHER) == 1226
    change_user(one, OTHER)  # its own session is not in its way
    gateway.wait_until(lambda: gateway.figures["sessions"] == 1, "the others have gone")
    change_user(one, APP, "shop")
    rows(one, "CREATE TABLE t (a INT)")
    with gateway.connect("sbtest", OTHER) as three:
        assert value(three, "SELECT 1") == 1
    one.close()


def test_a_guess_counts_as_one_at_the_door_and_a_blocked_address_changes_no_user(
    gateways: GatewayMaker, small: SqlGateway
) -> None:
    gateway = gateways(small.group, users=(APP, OTHER), listener='log_in_failures = {max = 3, block = "60s"}')
    guessing: list[Any] = [gateway.open(bind_address="127.0.0.3") for _ in range(5)]
    change_user(guessing[4], OTHER, "sbtest")  # who succeeds is forgiven
    for connection in guessing[:3]:
        assert refused_change(connection, Account(OTHER.user, "guess")) == 1045
    assert refused_change(guessing[3], OTHER) == 1129
    with pytest.raises(pymysql.MySQLError) as blocked:
        gateway.open(bind_address="127.0.0.3")
    assert blocked.value.args[0] == 1129
    assert value(guessing[4], "SELECT CURRENT_USER()") == f"{OTHER.user}@%"  # who is in already stays
    guessing[4].close()
    with gateway.connect() as elsewhere:
        change_user(elsewhere, OTHER, "sbtest")
    assert gateway.figures["denied_log_ins"] == 3


def test_who_does_not_end_a_change_of_users_is_cut_off_and_counts_as_a_failure(
    gateways: GatewayMaker, small: SqlGateway
) -> None:
    gateway = gateways(
        small.group, listener='handshake_timeout = "1s"\nlog_in_failures = {max = 1, block = "60s"}', users=(APP, OTHER)
    )
    connection: Any = gateway.open(bind_address="127.0.0.3")
    ask_to_change(connection, OTHER)
    gateway.wait_until(lambda: gateway.figures["sessions"] == 0, "it was cut off")
    with pytest.raises(pymysql.MySQLError) as blocked:
        gateway.open(bind_address="127.0.0.3")
    assert blocked.value.args[0] == 1129


CACHING: Any = {"plugin": b"caching_sha2_password"}


def test_whom_the_primary_accepts_may_be_changed_to(backend: SqlGateway, user: Account) -> None:
    with (
        administrator(backend.group) as administrating,
        backend.connect("shop", administrating) as admin,
        account(backend.group, user="b_other") as other,
        backend.connect("shop", user) as one,
    ):
        for _ in range(2):  # the full path, then the short one
            change_user(one, other, "shop", **CACHING)
            assert value(one, "SELECT CURRENT_USER()") == "b_other@%"
        rows(admin, "DROP USER 'b_user'@'%'")  # who it no longer is
        assert value(one, "SELECT CURRENT_USER()") == "b_other@%"
        rows(admin, "DROP USER 'b_other'@'%'")
        backend.wait_until(lambda: backend.figures["sessions"] == 1, "the session has ended with its user")
        ends(one)


def test_who_changes_users_is_not_ended_with_the_user_that_it_was(backend: SqlGateway, user: Account) -> None:
    with (
        administrator(backend.group) as administrating,
        backend.connect("shop", administrating) as admin,
        account(backend.group, user="b_other") as other,
        backend.connect("shop", user) as one,
    ):
        change_user(one, other, "shop", **CACHING)
        change_user(one, user, "shop", **CACHING)
        asked = ask_to_change(one, other, "shop", **CACHING)
        before = backend.log.read_text().count("credential dropped")
        rows(admin, "DROP USER 'b_user'@'%'")
        backend.wait_until(
            lambda: backend.log.read_text().count("credential dropped") > before, "the old user may not log in any more"
        )
        finish_change(one, asked)
        assert value(one, "SELECT CURRENT_USER()") == "b_other@%"


def test_every_guard_of_a_log_in_is_one_of_a_change_of_users(backend: SqlGateway, user: Account) -> None:
    group = backend.group
    with (
        account(group, user="b_local", host="127.0.0.1") as local,
        account(group, user="b_empty", via="BY ''") as empty,
        account(group, user="b_tls", more="REQUIRE SSL") as tls,
    ):
        with backend.connect("shop", user) as one:
            change_user(one, local, "shop", **CACHING)
        anywhere: list[tuple[Account, int]] = [
            (empty, 1045),
            (Account(empty.user, ""), 1045),
            (Account(user.user, "wrong"), 1045),
            (Account("b_nobody", "pw"), 1045),
            (tls, 1251),
        ]
        for wanted, code in anywhere:
            assert refused_change(backend.open("shop", user), wanted, **CACHING) == code
        remote = [backend.open("shop", user, bind_address=REMOTE) for _ in range(3)]
        assert refused_change(remote[0], local, **CACHING) == 1045
        with account(group, user="b_elsewhere", host=REMOTE) as elsewhere:
            assert refused_change(remote[1], elsewhere, **CACHING) == 1045  # who the server would not take it for
        with account(group, user="", host=REMOTE):
            assert refused_change(remote[2], user, **CACHING) == 1045
