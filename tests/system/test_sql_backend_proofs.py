"""`users = "backend"`: how long a proof holds, what makes it void, and what ends with it."""

from __future__ import annotations

import contextlib
from typing import Any

import pymysql
import pytest
from backend_accounts import REMOTE, account, administrator, comes_in, ends, is_mysql, refused, threads
from gateways import Connection, GatewayMaker, SqlGateway, rows, value
from pymysql.constants import CLIENT, COMMAND

from gateway.demo.mysql_servers import Account, MysqlGroup

pytestmark = pytest.mark.servers


def test_a_changed_password_counts_from_the_next_log_in_on(
    backend: SqlGateway, sql_group: MysqlGroup, user: Account
) -> None:
    comes_in(backend, user)
    sql_group.primary.query("ALTER USER 'b_user'@'%' IDENTIFIED BY 'new'")  # past the gateway
    sql_group.wait_caught_up()
    assert refused(backend, user)[0] == 1045
    for _ in range(2):
        comes_in(backend, Account(user.user, "new"))
    assert refused(backend, user)[0] == 1045


def test_two_passwords_of_mysql_are_good_at_once(backend: SqlGateway, sql_group: MysqlGroup, user: Account) -> None:
    if not is_mysql(sql_group):
        pytest.skip("MariaDB has no RETAIN CURRENT PASSWORD")
    comes_in(backend, user)
    sql_group.primary.query("ALTER USER 'b_user'@'%' IDENTIFIED BY 'new' RETAIN CURRENT PASSWORD")
    sql_group.wait_caught_up()
    for _ in range(2):
        comes_in(backend, user)
        comes_in(backend, Account(user.user, "new"))
    sql_group.primary.query("ALTER USER 'b_user'@'%' DISCARD OLD PASSWORD")
    sql_group.wait_caught_up()
    assert refused(backend, user)[0] == 1045
    comes_in(backend, Account(user.user, "new"))


def test_a_credential_is_proved_again_and_dropped_with_its_connections_and_sessions(
    gateways: GatewayMaker, backend: SqlGateway, sql_group: MysqlGroup
) -> None:
    gateway = gateways(sql_group, users='"backend"', settings='proof_interval = "200ms"')
    with account(sql_group, user="b_proved") as user:
        with gateway.connect("shop", user) as idle, gateway.connect("shop", user) as busy:
            rows(busy, "CREATE TABLE t (a INT PRIMARY KEY)")
            rows(idle, "INSERT INTO t VALUES (0)")
            busy.begin()
            rows(busy, "INSERT INTO t VALUES (1)")
            assert len(threads(sql_group, user.user)) > 1
            change = f"ALTER USER '{user.user}'@'%' IDENTIFIED BY 'new'"
            sql_group.primary.query(change)  # past the gateway, and no log-in follows
            gateway.wait_until(lambda: gateway.figures["sessions"] == 1, "the idle session has ended")
            gateway.wait_until(lambda: len(threads(sql_group, user.user)) == 1, "the idle connections are closed")
            rows(busy, "INSERT INTO t VALUES (2)")
            busy.commit()
            ends(idle)
            ends(busy)
        gateway.wait_until(lambda: not threads(sql_group, user.user), "nothing is left of it")
        with gateway.connect("shop", Account(user.user, "new")) as one:
            assert value(one, "SELECT COUNT(*) FROM t") == 3


def test_account_statements_through_the_gateway_count_at_once(
    backend: SqlGateway, sql_group: MysqlGroup, user: Account
) -> None:
    with (
        administrator(sql_group) as administrating,
        backend.connect("shop", administrating) as admin,
        backend.connect("shop", user) as one,
    ):
        for statement in (
            "GRANT SELECT ON sbtest.* TO 'b_user'@'%'",
            "REVOKE SELECT ON sbtest.* FROM 'b_user'@'%'",
            "FLUSH PRIVILEGES",
            "ALTER USER 'b_user'@'%' PASSWORD EXPIRE NEVER",
        ):
            rows(one, "CREATE TABLE IF NOT EXISTS t (a INT)")
            before = threads(sql_group)
            assert before
            rows(admin, statement)
            backend.wait_until(lambda before=before: not threads(sql_group) & before, f"{statement}: closed")  # type: ignore[misc]
            assert value(one, "SELECT 1") == 1
        rows(admin, "DROP USER 'b_user'@'%'")
        backend.wait_until(lambda: backend.figures["sessions"] == 1, "the dropped user's session has ended")
        ends(one)
        assert refused(backend, user)[0] == 1045
        assert value(admin, "SELECT 1") == 1


@pytest.mark.parametrize(
    "statement",
    ["DROP USER 'b_user'@'%', 'b_nobody'@'%'", "DROP USER 'b_user'@'%'; SELECT * FROM nowhere", "COM_REFRESH"],
)
def test_an_account_statement_counts_where_it_is_not_plain(
    backend: SqlGateway, sql_group: MysqlGroup, user: Account, statement: str
) -> None:
    """Of one that fails half-way, MariaDB has carried out the first half."""
    if statement == "COM_REFRESH" and is_mysql(sql_group):
        pytest.skip("MySQL 9 has no COM_REFRESH")
    with (
        administrator(sql_group) as administrating,
        backend.connect("shop", user) as one,
        backend.connect("shop", administrating, client_flag=CLIENT.MULTI_STATEMENTS) as admin,
    ):
        if statement == "COM_REFRESH":
            sql_group.primary.query("DROP USER 'b_user'@'%'")
            command: Any = admin
            command._execute_command(COMMAND.COM_REFRESH, b"\x01")
            command._read_packet()
        else:
            fails_in_the_end(admin, statement)
        if sql_group.primary.query("SELECT 1 FROM mysql.user WHERE User = 'b_user'"):
            assert is_mysql(sql_group)  # which has undone all of it
            assert value(one, "SELECT 1") == 1
        else:
            backend.wait_until(lambda: backend.figures["sessions"] == 1, "the dropped user's session has ended")
            ends(one)


def fails_in_the_end(connection: Connection, statements: str) -> None:
    def run() -> None:
        with connection.cursor() as cursor:
            cursor.execute(statements)
            while cursor.nextset():
                pass

    with pytest.raises(pymysql.MySQLError):
        run()


def test_a_proof_that_holds_no_longer_ends_its_own_sessions_only(backend: SqlGateway, sql_group: MysqlGroup) -> None:
    """Not those of an account of the same name and password: in front of a client from elsewhere, it is another's."""
    with (
        administrator(sql_group) as administrating,
        backend.connect("shop", administrating) as admin,
        account(sql_group, host="127.0.0.1") as user,
        backend.connect("shop", user) as own,
        account(sql_group, host="%"),
    ):
        sql_group.primary.query("DROP USER 'b_user'@'127.0.0.1'")  # past the gateway, which has its proof still
        with backend.connect("shop", user, bind_address=REMOTE) as other:
            rows(admin, "GRANT SELECT ON sbtest.* TO 'b_user'@'%'")
            backend.wait_until(lambda: backend.figures["sessions"] == 2, "the session of the dropped account has ended")
            ends(own)
            assert value(other, "SELECT CURRENT_USER()") == "b_user@%"


@pytest.mark.parametrize(
    "change",
    ["IDENTIFIED BY 'new'", "ACCOUNT LOCK", "PASSWORD EXPIRE", "IDENTIFIED WITH", "DROP"],
)
def test_whatever_makes_a_credential_no_good_ends_its_sessions(
    gateways: GatewayMaker, backend: SqlGateway, sql_group: MysqlGroup, change: str
) -> None:
    gateway = gateways(sql_group, users='"backend"', settings='proof_interval = "200ms"')
    with account(sql_group, user="b_proved") as user, gateway.connect("shop", user):
        name = f"'{user.user}'@'%'"
        if change == "DROP":
            sql_group.primary.query(f"DROP USER {name}")
        elif change == "IDENTIFIED WITH":  # what the proof of a password cannot answer
            plugin = "sha256_password BY 'new'" if is_mysql(sql_group) else "unix_socket"
            sql_group.primary.query(f"ALTER USER {name} IDENTIFIED WITH {plugin}")
        else:
            sql_group.primary.query(f"ALTER USER {name} {change}")
        gateway.wait_until(lambda: gateway.figures["sessions"] == 0, "the session has ended")


def test_a_server_that_has_no_room_ends_no_session(
    gateways: GatewayMaker, backend: SqlGateway, sql_group: MysqlGroup
) -> None:
    gateway = gateways(sql_group, users='"backend"', settings='proof_interval = "200ms"\npool = {min_idle = 0}')
    with (
        account(sql_group, user="b_proved", more="WITH MAX_USER_CONNECTIONS 6") as user,
        contextlib.ExitStack() as room,
    ):
        one = room.enter_context(gateway.connect("shop", user))
        rows(one, "CREATE TABLE t (a INT)")
        one.begin()
        rows(one, "INSERT INTO t VALUES (1)")

        def refused_again() -> bool:
            with contextlib.suppress(pymysql.OperationalError):  # there is no more room
                room.enter_context(sql_group.primary.connect(user))
            return "not proved again" in gateway.log.read_text()

        gateway.wait_until(refused_again, "a log-in was refused for want of room")
        assert "max_user_connections" in gateway.log.read_text()
        one.commit()
        assert value(one, "SELECT 1 FOR UPDATE") == 1


def test_a_replica_that_does_not_know_an_account_ends_no_session(
    gateways: GatewayMaker, backend: SqlGateway, sql_group: MysqlGroup
) -> None:
    gateway = gateways(sql_group, users='"backend"', settings='proof_interval = "200ms"')
    name = "'b_unknown'@'%'"

    def at_primary(*statements: str) -> None:
        """Past the binary log: as on replicas that are late."""
        with sql_group.primary.admin() as root:
            for statement in ("SET sql_log_bin = 0", *statements):
                rows(root, statement)

    at_primary(f"CREATE USER {name} IDENTIFIED BY 'pw'", f"GRANT ALL ON shop.* TO {name}")
    try:
        with gateway.connect("shop", Account("b_unknown", "pw")) as one:
            sql_group.primary.pause()
            gateway.wait_until(
                lambda: "Access denied for user 'b_unknown'" in gateway.log.read_text(), "a replica was asked"
            )
            sql_group.primary.resume()
            gateway.wait_serving()
            rows(one, "CREATE TABLE t (a INT)")
    finally:
        sql_group.primary.resume()
        at_primary(f"DROP USER {name}")


def test_rows_of_accounts_are_read_as_they_are(
    gateways: GatewayMaker, backend: SqlGateway, sql_group: MysqlGroup
) -> None:
    """A server whose connections begin with autocommit off would show the same rows for ever."""
    sql_group.primary.query("SET GLOBAL autocommit = 0")
    try:
        gateway = gateways(sql_group, users='"backend"')
        assert refused(gateway, Account("b_user", "pw"))[0] == 1045
        with account(sql_group) as user:
            comes_in(gateway, user)
    finally:
        sql_group.primary.query("SET GLOBAL autocommit = 1")
