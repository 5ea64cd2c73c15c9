"""The users of the configuration: limits, defaults, read-only users, rotation by SIGHUP, and who is kept out early."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pymysql
import pytest
from gateways import Connection, GatewayMaker, SqlGateway, rows, value
from pymysql.constants import COMMAND

from gateway.demo.mysql_servers import APP, Account, MysqlGroup
from gateway.demo.stack import Stack

pytestmark = pytest.mark.servers

USERS = f"""[
  {{name = "app", password = "{APP.password}"}},
  {{name = "u_limited", password = "pw", max_connections = 2}},
  {{name = "u_reader", password = "pw", read_only = true, database = "shop", consistency = "strong"}},
]"""
LIMITED, READER = Account("u_limited", "pw"), Account("u_reader", "pw")


@contextlib.contextmanager
def accounts(group: MysqlGroup, *names: Account) -> Iterator[None]:
    """Accounts on the servers, with all rights on `shop`."""
    try:
        for account in names:
            group.primary.query(f"CREATE USER '{account.user}'@'%' IDENTIFIED BY '{account.password}'")
            group.primary.query(f"GRANT ALL ON shop.* TO '{account.user}'@'%'")
        group.wait_caught_up()
        yield
    finally:
        for account in names:
            group.primary.query(f"DROP USER IF EXISTS '{account.user}'@'%'")


def refused(gateway: SqlGateway, account: Account, database: str | None = "shop", **more: Any) -> tuple[Any, ...]:
    with pytest.raises(pymysql.MySQLError) as error, gateway.connect(database, account, **more):
        pass
    found: tuple[Any, ...] = error.value.args
    return found


def test_limits_and_defaults_of_users(gateways: GatewayMaker, sql_group: MysqlGroup) -> None:
    with accounts(sql_group, LIMITED, READER):
        gateway = gateways(sql_group, users=USERS)
        with gateway.connect(None, LIMITED), gateway.connect(None, LIMITED) as second:
            code, text = refused(gateway, LIMITED)
            assert code == 1226
            assert "User 'u_limited' has exceeded the 'max_user_connections' resource (current value: 2)" in text
            with gateway.connect() as other:
                assert value(other, "SELECT 1") == 1
            second.close()
            gateway.wait_until(lambda: gateway.figures["sessions"] == 1, "the session has ended")
            with gateway.connect(None, LIMITED) as third:
                assert value(third, "SELECT DATABASE()") is None
        with gateway.connect(None, READER) as one:
            assert value(one, "SELECT DATABASE()") == "shop"
            value(one, "SELECT COUNT(*) FROM information_schema.TABLES")
            assert dict(rows(one, "SHOW GATEWAY LAST ROUTE"))["consistency"] == "strong"
        with gateway.connect("shop") as one:
            value(one, "SELECT 1")
            assert dict(rows(one, "SHOW GATEWAY LAST ROUTE"))["consistency"] == "session"


def test_a_read_only_user_s_writes_never_reach_a_server(gateways: GatewayMaker, sql_group: MysqlGroup) -> None:
    with accounts(sql_group, READER):
        gateway = gateways(sql_group, users=USERS)
        sql_group.primary.query("CREATE TABLE shop.t (a INT PRIMARY KEY)")
        sql_group.primary.query("INSERT INTO shop.t VALUES (1)")
        sql_group.wait_caught_up()
        before = sql_group.primary.position()
        with gateway.connect(None, READER) as one:
            for sql in (
                "INSERT INTO t VALUES (2)",
                "SELECT * FROM t FOR UPDATE",
                "CREATE TABLE other (a INT)",
                "CREATE TEMPORARY TABLE other (a INT)",
                "/* gateway: primary */ DELETE FROM t",
                "LOCK TABLES t WRITE",
                "SET GLOBAL max_connections = 7",
            ):
                with pytest.raises(pymysql.MySQLError) as error:
                    rows(one, sql)
                assert error.value.args[0] == 1290, sql
                assert "the user is read_only" in error.value.args[1]
                with pytest.raises(pymysql.MySQLError) as error:
                    prepare(one, sql)
                assert error.value.args[0] == 1290, sql
            assert rows(one, "SELECT a FROM t") == [(1,)]
            one.begin()
            assert rows(one, "SELECT a FROM t") == [(1,)]
            with pytest.raises(pymysql.MySQLError):
                rows(one, "UPDATE t SET a = 3")
            one.commit()
            assert value(one, "SELECT @@transaction_isolation" if is_mysql(sql_group) else "SELECT @@tx_isolation")
        assert sql_group.primary.position() == before
        assert gateway.member(sql_group.primary)["writes"] == 3  # SET autocommit, BEGIN and COMMIT


def prepare(connection: Any, sql: str) -> None:
    connection._execute_command(COMMAND.COM_STMT_PREPARE, sql)
    connection._read_packet()


def is_mysql(group: MysqlGroup) -> bool:
    return group.primary.flavor == "mysql"


def reload(gateway: SqlGateway, log_line: str) -> None:
    """Sends SIGHUP and waits until the gateway says that it has done it."""
    seen = gateway.log.read_text().count(log_line)
    assert gateway.process is not None
    gateway.process.signal(signal.SIGHUP)
    gateway.wait_until(lambda: gateway.log.read_text().count(log_line) > seen, "reloaded")


ROTATED = Account("u_rotated", "old")


def change_password(group: MysqlGroup, password: str) -> None:
    group.primary.query(f"ALTER USER 'u_rotated'@'%' IDENTIFIED BY '{password}'")
    group.wait_caught_up()


def open_connections(group: MysqlGroup, user: str) -> int:
    return int(
        group.primary.query("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER = %s", (user,))[0][0]
    )


def test_a_password_is_changed_without_a_restart(gateways: GatewayMaker, sql_group: MysqlGroup, tmp_path: Path) -> None:
    secret, old = tmp_path / "password", tmp_path / "old"
    secret.write_text("old\n")
    old.write_text("old\n")
    users = f'[{{name = "u_rotated", password = {{file = "{secret}"}}, old_password = {{file = "{old}"}}}}]'
    new = Account("u_rotated", "new")
    with accounts(sql_group, ROTATED):
        gateway = gateways(sql_group, users=users, settings="pool = {min_idle = 0}")
        with gateway.connect("shop", ROTATED) as one:
            rows(one, "CREATE TABLE t (a INT PRIMARY KEY)")
            one.begin()
            rows(one, "INSERT INTO t VALUES (1)")
            before = value(one, "SELECT CONNECTION_ID() > 0")
            assert before
            # Both passwords are good before the servers know the new one, and after.
            secret.write_text("new\n")
            reload(gateway, "rules reloaded")
            for account in (ROTATED, new):
                with gateway.connect("shop", account) as two:
                    assert value(two, "SELECT 1") == 1
            change_password(sql_group, "new")
            reload(gateway, "rules reloaded")
            for account in (ROTATED, new):
                with gateway.connect("shop", account) as two:
                    rows(two, "CREATE TABLE IF NOT EXISTS other (a INT)")  # at the primary, by a new connection
            one.commit()  # its transaction was not disturbed
            rows(one, "INSERT INTO t VALUES (2)")
            assert value(one, "SELECT COUNT(*) FROM t") == 2
        old.write_text("new\n")
        reload(gateway, "rules reloaded")
        assert refused(gateway, ROTATED)[0] == 1045
        with gateway.connect("shop", new) as one:
            assert value(one, "SELECT COUNT(*) FROM t") == 2


def test_connections_of_an_old_password_are_not_given_out_again(
    gateways: GatewayMaker, sql_group: MysqlGroup, tmp_path: Path
) -> None:
    secret = tmp_path / "password"
    secret.write_text("old\n")
    with accounts(sql_group, ROTATED):
        gateway = gateways(
            sql_group,
            users=f'[{{name = "u_rotated", password = {{file = "{secret}"}}}}]',
            settings="pool = {min_idle = 0}",
        )
        with gateway.connect("shop", ROTATED) as one:
            rows(one, "CREATE TABLE t (a INT PRIMARY KEY)")
            one.begin()
            rows(one, "INSERT INTO t VALUES (1)")
            leased = {row[0] for row in threads(sql_group, "u_rotated")}
            change_password(sql_group, "new")
            secret.write_text("new")
            reload(gateway, "rules reloaded")
            gateway.wait_until(lambda: open_connections(sql_group, "u_rotated") == 1, "idle connections are closed")
            rows(one, "INSERT INTO t VALUES (2)")
            assert {row[0] for row in threads(sql_group, "u_rotated")} <= leased
            one.commit()
            rows(one, "INSERT INTO t VALUES (3)")
            assert not {row[0] for row in threads(sql_group, "u_rotated")} & leased
            assert refused(gateway, ROTATED)[0] == 1045


def threads(group: MysqlGroup, user: str) -> list[tuple[Any, ...]]:
    return group.primary.query("SELECT ID FROM information_schema.PROCESSLIST WHERE USER = %s", (user,))


def test_passwords_of_the_environment_change_by_naming_another_variable(
    gateways: GatewayMaker, sql_group: MysqlGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process sees its environment as it was when it began."""
    monkeypatch.setenv("U_ROTATED_OLD", "old")
    monkeypatch.setenv("U_ROTATED_NEW", "new")
    with accounts(sql_group, ROTATED):
        gateway = gateways(sql_group, users='[{name = "u_rotated", password = {env = "U_ROTATED_OLD"}}]')
        with gateway.connect("shop", ROTATED) as one:
            change_password(sql_group, "new")
            text = gateway.config_file.read_text()
            gateway.config_file.write_text(text.replace("U_ROTATED_OLD", "U_ROTATED_NEW"))
            reload(gateway, "rules reloaded")
            rows(one, "CREATE TABLE t (a INT)")  # by a connection with the new one
            assert refused(gateway, ROTATED)[0] == 1045
            with gateway.connect("shop", Account("u_rotated", "new")) as two:
                assert value(two, "SELECT COUNT(*) FROM t") == 0


def test_who_waits_to_be_let_in_and_is_no_longer_listed_stays_outside(
    gateways: GatewayMaker, sql_group: MysqlGroup
) -> None:
    with accounts(sql_group, LIMITED), ThreadPoolExecutor(1) as thread:
        gateway = gateways(sql_group, users=USERS, settings="pool = {size = 1, min_idle = 0}")
        with gateway.connect() as busy:
            rows(busy, "CREATE TABLE t (a INT)")
            busy.begin()
            rows(busy, "INSERT INTO t VALUES (1)")
            waiting = thread.submit(gateway.open, "shop", LIMITED)
            gateway.wait_until(
                lambda: gateway.member(sql_group.primary)["connections"]["waiting"] == 1,
                "it waits for the one connection, to be proved",
            )
            text = gateway.config_file.read_text()
            gateway.config_file.write_text(
                text.replace('{name = "u_limited", password = "pw", max_connections = 2},', "")
            )
            reload(gateway, "rules reloaded")
            busy.commit()
            with pytest.raises(pymysql.MySQLError) as error:
                waiting.result()
            assert error.value.args[0] == 1045


def test_of_those_who_come_at_once_as_many_as_may_come_in_over_all_listeners(
    gateways: GatewayMaker, sql_group: MysqlGroup, stack: Stack
) -> None:
    second = stack.folder / "second.sock"
    more = f'[[listener]]\nname = "second"\nprotocol = "mysql"\nlisten = "unix:{second}"\ngroup = "orders"'
    with accounts(sql_group, LIMITED), ThreadPoolExecutor(8) as threads_, contextlib.ExitStack() as opened:
        gateway = gateways(sql_group, users=USERS, settings=more)

        def come(number: int) -> int:
            try:
                place: dict[str, Any] = {"unix_socket": str(second)} if number % 2 else {}
                opened.enter_context(gateway.connect("shop", LIMITED, **place))
            except pymysql.MySQLError as error:
                return int(error.args[0])
            return 0

        assert sorted(threads_.map(come, range(8))) == [0, 0] + [1226] * 6


def test_a_user_that_is_no_longer_listed_ends_between_transactions(
    gateways: GatewayMaker, sql_group: MysqlGroup
) -> None:
    with accounts(sql_group, LIMITED):
        gateway = gateways(sql_group, users=USERS)
        with (
            gateway.connect("shop", LIMITED) as idle,
            gateway.connect("shop", LIMITED) as busy,
            gateway.connect() as app,
        ):
            rows(busy, "CREATE TABLE t (a INT PRIMARY KEY)")
            busy.begin()
            rows(busy, "INSERT INTO t VALUES (1)")
            text = gateway.config_file.read_text()
            gateway.config_file.write_text(
                text.replace('{name = "u_limited", password = "pw", max_connections = 2},', "")
            )
            reload(gateway, "rules reloaded")
            assert refused(gateway, LIMITED)[0] == 1045
            gateway.wait_until(lambda: gateway.figures["sessions"] == 2, "the idle session has ended")
            rows(busy, "INSERT INTO t VALUES (2)")
            busy.commit()
            ends_with_a_word(idle)
            ends_with_a_word(busy)
            assert value(app, "SELECT COUNT(*) FROM t") == 2


def ends_with_a_word(connection: Connection) -> None:
    with pytest.raises(pymysql.MySQLError) as error:
        rows(connection, "SELECT 1")
    assert error.value.args[0] in (1045, 2006, 2013)


def test_a_file_that_is_wrong_changes_nothing(gateways: GatewayMaker, mariadb_group: MysqlGroup) -> None:
    gateway = gateways(mariadb_group)
    gateway.expected.append("nothing was reloaded")
    text = gateway.config_file.read_text()
    for broken in ("users = 5", 'users = [{name = "app", password = {file = "nowhere"}}]'):
        lines = [broken if line.startswith("users") else line for line in text.splitlines()]
        gateway.config_file.write_text("\n".join(lines))
        reload(gateway, "nothing was reloaded")
        with gateway.connect() as one:
            assert value(one, "SELECT 1") == 1


# ---------------------------------------------------------------- strangers


def hear(sock: socket.socket) -> bytes:
    """What comes until the other side closes."""
    sock.settimeout(20.0)
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := sock.recv(65536):
            found += chunk
    return found


def test_an_address_that_guesses_is_blocked_and_others_are_not(
    gateways: GatewayMaker, mariadb_group: MysqlGroup
) -> None:
    gateway = gateways(mariadb_group, listener='log_in_failures = {max = 3, window = "60s", block = "2s"}')
    wrong = Account(APP.user, "wrong")
    for _ in range(2):
        assert refused(gateway, wrong, bind_address="127.0.0.3")[0] == 1045
    with gateway.connect(bind_address="127.0.0.3"):
        pass  # a success forgets them
    for _ in range(3):
        assert refused(gateway, wrong, bind_address="127.0.0.3")[0] == 1045
    code, text = refused(gateway, APP, bind_address="127.0.0.3")
    assert code == 1129
    assert text.startswith("Host '127.0.0.3' is blocked because of many connection errors; try again in ")
    with gateway.connect() as one:
        assert value(one, "SELECT 1") == 1
    assert gateway.figures["refused_while_blocked"] == 1
    gateway.wait_until(lambda: comes_in(gateway), "the block has ended")


def comes_in(gateway: SqlGateway) -> bool:
    with contextlib.suppress(pymysql.OperationalError), gateway.connect(bind_address="127.0.0.3"):
        return True
    return False


def test_a_connection_that_closes_without_a_word_is_no_failure(
    gateways: GatewayMaker, mariadb_group: MysqlGroup
) -> None:
    gateway = gateways(mariadb_group, listener="log_in_failures = {max = 2}")
    for _ in range(6):
        with socket.create_connection((gateway.host, gateway.port)) as probe:
            assert probe.recv(1) != b""
    gateway.wait_until(lambda: gateway.figures["unauthenticated"] == 0, "the probes have ended")
    with gateway.connect() as one:
        assert value(one, "SELECT 1") == 1


def test_who_does_not_log_in_is_cut_off_and_counts_as_a_failure(
    gateways: GatewayMaker, mariadb_group: MysqlGroup
) -> None:
    gateway = gateways(
        mariadb_group, listener='handshake_timeout = "300ms"\nlog_in_failures = {max = 2, block = "60s"}'
    )
    for _ in range(2):
        with socket.create_connection((gateway.host, gateway.port)) as silent:
            assert len(hear(silent)) < 200  # the greeting, and the end
    assert refused(gateway, APP)[0] == 1129


def test_nobody_sends_more_than_64_kib_before_logging_in(gateways: GatewayMaker, mariadb_group: MysqlGroup) -> None:
    gateway = gateways(mariadb_group)
    with socket.create_connection((gateway.host, gateway.port)) as talker:
        talker.recv(4096)
        with contextlib.suppress(ConnectionError):
            talker.sendall((65_537).to_bytes(3, "little") + b"\x01")
        assert b"max_allowed_packet" in hear(talker)


def test_silent_strangers_lose_their_places_to_newcomers(gateways: GatewayMaker, mariadb_group: MysqlGroup) -> None:
    gateway = gateways(
        mariadb_group, listener='max_unauthenticated = 5\nhandshake_timeout = "60s"\nlog_in_failures = {max = 0}'
    )
    with contextlib.ExitStack() as open_sockets:
        silent = [open_sockets.enter_context(socket.create_connection((gateway.host, gateway.port))) for _ in range(12)]
        gateway.wait_until(lambda: gateway.figures["unauthenticated"] == 5, "as many as may have been greeted")
        for greeted in silent[:5]:
            assert greeted.recv(1) != b""
        silent[11].settimeout(0.2)
        with pytest.raises(TimeoutError):
            silent[11].recv(1)  # waits, not even greeted
        with gateway.connect() as one:
            assert value(one, "SELECT 1") == 1
        assert hear(silent[0]) != b""


def test_many_who_come_at_once_are_all_let_in(gateways: GatewayMaker, mariadb_group: MysqlGroup) -> None:
    gateway = gateways(mariadb_group, listener="max_unauthenticated = 4")
    with contextlib.ExitStack() as open_connections:
        connections = [open_connections.enter_context(gateway.connect("shop", defer_connect=True)) for _ in range(40)]
        for connection in connections:
            connection.connect()
        assert sum(value(connection, "SELECT 1") for connection in connections) == 40
