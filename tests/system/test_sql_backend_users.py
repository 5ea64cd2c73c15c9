"""`users = "backend"`: who the primary accepts may come in, and every guard around that."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from typing import Any

import mysql.connector
import pymysql
import pytest
from gateways import Connection, GatewayMaker, SqlGateway, rows, shared_gateway, value

from gateway.demo import programs
from gateway.demo.mysql_servers import MONITOR, Account, MysqlGroup
from gateway.demo.stack import Stack

pytestmark = pytest.mark.servers

REMOTE = "127.0.0.2"
"""Where a client comes from that is not this machine to the gateway, nor to a server: no account of localhost fits."""


def is_mysql(group: MysqlGroup) -> bool:
    return group.primary.flavor == "mysql"


def may_read_accounts(group: MysqlGroup) -> str:
    return f"SELECT ON mysql.{'user' if is_mysql(group) else 'global_priv'}"


@pytest.fixture
def backend(
    sql_group: MysqlGroup, session_stack: Stack, shared_gateways: dict[str, SqlGateway]
) -> Iterator[SqlGateway]:
    """A gateway that lets in whom the primary accepts; the monitor may read the accounts."""
    sql_group.primary.query(f"GRANT {may_read_accounts(sql_group)} TO '{MONITOR.user}'@'%'")
    sql_group.wait_caught_up()
    name = f"backend users of {sql_group.primary.flavor}"
    yield from shared_gateway(
        name, sql_group, session_stack, shared_gateways, users='"backend"', listener="log_in_failures = {max = 0}"
    )


@pytest.fixture
def user(sql_group: MysqlGroup) -> Iterator[Account]:
    """An account from anywhere, with all rights on `shop`."""
    with account(sql_group) as made:
        yield made


@contextlib.contextmanager
def account(
    group: MysqlGroup, *, user: str = "b_user", host: str = "%", via: str = "BY 'pw'", more: str = ""
) -> Iterator[Account]:
    name = f"'{user}'@'{host}'"
    group.primary.query(f"CREATE USER {name} IDENTIFIED {via} {more}")
    group.primary.query(f"GRANT ALL ON shop.* TO {name}")
    group.wait_caught_up()
    try:
        yield Account(user, "pw")
    finally:
        group.primary.query(f"DROP USER IF EXISTS {name}")
        group.wait_caught_up()


def comes_in(gateway: SqlGateway, account: Account, **more: Any) -> None:
    with gateway.connect("shop", account, **more) as one:
        assert value(one, "SELECT CURRENT_USER()").startswith("b_user@")


def refused(gateway: SqlGateway, account: Account, **more: Any) -> tuple[Any, ...]:
    with pytest.raises(pymysql.MySQLError) as error, gateway.connect("shop", account, **more):
        pass
    found: tuple[Any, ...] = error.value.args
    return found


# ---------------------------------------------------------------- who comes in


def test_whom_the_primary_accepts_comes_in_with_nothing_listed(backend: SqlGateway, user: Account) -> None:
    clients: list[dict[str, Any]] = [{}, {"bind_address": REMOTE}]
    for _ in range(3):  # the full path, then the short one
        for client in clients:
            with backend.connect("shop", user, **client) as one:
                rows(one, "CREATE TABLE IF NOT EXISTS t (a INT)")
                assert value(one, "SELECT CURRENT_USER()") == "b_user@%"
    for wrong in (Account("b_user", "wrong"), Account("b_user", ""), Account("b_nobody", "pw")):
        assert refused(backend, wrong)[0] == refused(backend, wrong, bind_address=REMOTE)[0] == 1045


def test_other_clients_come_in_too(backend: SqlGateway, sql_group: MysqlGroup, user: Account) -> None:
    place = [f"--host={backend.host}", f"--port={backend.port}", "--protocol=tcp", "--user=b_user", "--password=pw"]
    if is_mysql(sql_group):
        client = programs.unstable("bin/mysql", "mysql-client")
        options = ["--get-server-public-key", "--ssl-mode=DISABLED"]
    else:
        client = programs.debian("mariadb", "mariadb-client")
        options = ["--skip-ssl"]
    for _ in range(2):
        done = subprocess.run(
            [*client.command, "--no-defaults", *options, *place, "-Ne", "SELECT 42", "shop"],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr
    for _ in range(2):
        connection = mysql.connector.connect(
            host=backend.host,
            port=backend.port,
            user="b_user",
            password="pw",
            use_pure=True,
            ssl_disabled=not is_mysql(sql_group),
        )
        connection.close()


def test_a_client_of_mysql_9_comes_in_to_an_account_of_native_password(
    backend: SqlGateway, mariadb_group: MysqlGroup
) -> None:
    if is_mysql(backend.group):
        pytest.skip("MySQL 9 has no mysql_native_password")
    client = programs.unstable("bin/mysql", "mysql-client")
    with account(mariadb_group) as user:
        options = ["--no-defaults", "--get-server-public-key", "--ssl-mode=DISABLED"]
        place = [f"--host={backend.host}", f"--port={backend.port}", "--protocol=tcp", f"--user={user.user}"]
        for password, code in (("pw", 0), ("wrong", 1)):
            done = subprocess.run(
                [*client.command, *options, *place, f"--password={password}", "-Ne", "SELECT 42"],
                capture_output=True,
                text=True,
                timeout=30,
            )
            assert done.returncode == code, done.stderr


# ---------------------------------------------------------------- from where


@pytest.mark.parametrize(
    ("host", "local", "remote"),
    [
        ("127.0.0.%", True, True),
        ("127.0.0.0/255.255.255.0", True, True),
        ("127.0.0._", True, True),
        ("127.0.0.1", True, False),  # a loopback-only account
        ("localhost", False, False),  # on servers that resolve no names TCP is never localhost
        (REMOTE, False, False),  # the server would not take the gateway for it
        ("10.%", False, False),
    ],
)
def test_the_client_s_own_address_has_to_fit_the_account(
    backend: SqlGateway, sql_group: MysqlGroup, host: str, local: bool, remote: bool
) -> None:
    with account(sql_group, host=host) as user:
        for fits, client in ((local, {}), (remote, {"bind_address": REMOTE})):
            if fits:
                comes_in(backend, user, **client)
            else:
                assert refused(backend, user, **client)[0] == 1045


def test_nobody_gets_the_account_that_is_meant_for_the_gateway_s_own_address(
    backend: SqlGateway, sql_group: MysqlGroup
) -> None:
    with account(sql_group, host="127.0.0.1") as own, account(sql_group, host="%"):
        comes_in(backend, own)
        code, text = refused(backend, own, bind_address=REMOTE)  # the same password, and other rights
        assert code == 1045
        assert "takes the gateway's connections for b_user@127.0.0.1" in text


def test_a_more_specific_anonymous_account_bars_the_way_as_on_the_server(
    backend: SqlGateway, sql_group: MysqlGroup, user: Account
) -> None:
    anonymous = f"''@'{REMOTE}'"
    sql_group.primary.query(f"CREATE USER {anonymous} IDENTIFIED BY 'pw'")
    sql_group.wait_caught_up()
    try:
        comes_in(backend, user)
        assert refused(backend, user, bind_address=REMOTE)[0] == 1045
        assert refused(backend, Account("", "pw"), bind_address=REMOTE)[0] == 1045
    finally:
        sql_group.primary.query(f"DROP USER {anonymous}")
        sql_group.wait_caught_up()
    comes_in(backend, user, bind_address=REMOTE)


# ---------------------------------------------------------------- which accounts


def test_an_empty_password_lets_nobody_in(backend: SqlGateway, sql_group: MysqlGroup) -> None:
    with account(sql_group, via="BY ''") as user:
        for password in ("", "pw"):
            for client in ({}, {"bind_address": REMOTE}):
                assert refused(backend, Account(user.user, password), **client)[0] == 1045


def test_a_locked_and_an_expired_account_are_refused_in_the_server_s_words(
    backend: SqlGateway, sql_group: MysqlGroup, user: Account
) -> None:
    comes_in(backend, user)  # and the proof of it is remembered
    for change, undo in (
        ("ACCOUNT LOCK", "ACCOUNT UNLOCK"),
        ("PASSWORD EXPIRE", "IDENTIFIED BY 'pw'"),
    ):
        sql_group.primary.query(f"ALTER USER 'b_user'@'%' {change}")
        sql_group.wait_caught_up()
        code = refused(backend, user)[0]
        assert code in (3118, 4151, 1862, 1820), (change, code)
        sql_group.primary.query(f"ALTER USER 'b_user'@'%' {undo}")
        sql_group.wait_caught_up()
        comes_in(backend, user)


def test_a_plugin_that_cannot_be_used_is_named(backend: SqlGateway, sql_group: MysqlGroup) -> None:
    plugin = "mysql_no_login" if is_mysql(sql_group) else "unix_socket"
    with sql_group.primary.admin() as root:
        rows(root, "SET sql_log_bin = 0")  # the replicas have not the plugin
        if is_mysql(sql_group):
            rows(root, f"INSTALL PLUGIN {plugin} SONAME '{plugin}.so'")
        try:
            rows(root, f"CREATE USER b_user IDENTIFIED {'WITH' if is_mysql(sql_group) else 'VIA'} {plugin}")
            for password in ("pw", ""):
                code, text = refused(backend, Account("b_user", password))
                assert code == (1045 if is_mysql(sql_group) else 1251)
                assert is_mysql(sql_group) or f"plugin {plugin} cannot be used through the gateway" in text
        finally:
            rows(root, "DROP USER IF EXISTS b_user")
            if is_mysql(sql_group):
                rows(root, f"UNINSTALL PLUGIN {plugin}")


def test_an_account_that_requires_tls_is_refused_without(backend: SqlGateway, sql_group: MysqlGroup) -> None:
    with account(sql_group, more="REQUIRE SSL") as user:
        code, text = refused(backend, user, ssl_disabled=True)
        assert (code, "it requires TLS" in text) == (1251, True)


def test_an_account_of_sha256_password_comes_in(backend: SqlGateway, sql_group: MysqlGroup) -> None:
    if not is_mysql(sql_group):
        pytest.skip("MariaDB has no sha256_password")
    with account(sql_group, via="WITH sha256_password BY 'pw'") as user:
        comes_in(backend, user)
        comes_in(backend, user)


# ---------------------------------------------------------------- what changes


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


def threads(group: MysqlGroup, name: str = "b_user") -> set[int]:
    found = group.primary.query("SELECT ID FROM information_schema.PROCESSLIST WHERE USER = %s", (name,))
    return {row[0] for row in found}


def ends(connection: Connection) -> None:
    with pytest.raises(pymysql.MySQLError) as error:
        rows(connection, "SELECT 1")
    assert error.value.args[0] in (1045, 2006, 2013)


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
    sql_group.primary.query("CREATE USER 'b_admin'@'%' IDENTIFIED BY 'pw'")
    sql_group.primary.query("GRANT ALL ON *.* TO 'b_admin'@'%' WITH GRANT OPTION")
    sql_group.wait_caught_up()
    try:
        with backend.connect("shop", Account("b_admin", "pw")) as admin:
            for statement in (
                "GRANT SELECT ON sbtest.* TO 'b_user'@'%'",
                "REVOKE SELECT ON sbtest.* FROM 'b_user'@'%'",
                "FLUSH PRIVILEGES",
                "ALTER USER 'b_user'@'%' PASSWORD EXPIRE NEVER",
            ):
                with backend.connect("shop", user) as one:
                    rows(one, "CREATE TABLE IF NOT EXISTS t (a INT)")
                    before = threads(sql_group)
                    assert before
                    rows(admin, statement)
                    backend.wait_until(lambda before=before: not threads(sql_group) & before, f"{statement}: closed")  # type: ignore[misc]
                comes_in(backend, user)
        with backend.connect("shop", Account("b_admin", "pw")) as admin, backend.connect("shop", user) as one:
            assert value(one, "SELECT 1") == 1
            rows(admin, "DROP USER 'b_user'@'%'")
            backend.wait_until(lambda: backend.figures["sessions"] == 1, "the dropped user's session has ended")
            ends(one)
            assert refused(backend, user)[0] == 1045
            assert value(admin, "SELECT 1") == 1
    finally:
        sql_group.primary.query("DROP USER 'b_admin'@'%'")
        sql_group.wait_caught_up()


def test_a_right_that_the_monitor_lacks_is_named(gateways: GatewayMaker, sql_group: MysqlGroup, user: Account) -> None:
    right = may_read_accounts(sql_group)
    with contextlib.suppress(pymysql.MySQLError):  # granted by another test
        sql_group.primary.query(f"REVOKE {right} FROM '{MONITOR.user}'@'%'")
    sql_group.primary.query(f"REVOKE SELECT ON *.* FROM '{MONITOR.user}'@'%'")
    sql_group.wait_caught_up()
    try:
        gateway = gateways(sql_group, users='"backend"')
        gateway.expected.append("nobody can log in")
        code, text = refused(gateway, user)
        grant = f"GRANT {right} TO 'gateway'@'%'"
        assert (code, grant in text) == (1105, True)
        gateway.wait_until(lambda: grant in gateway.log.read_text(), "the log names it, too")
        sql_group.primary.query(grant)
        comes_in(gateway, user)
    finally:
        sql_group.primary.query(f"GRANT SELECT ON *.* TO '{MONITOR.user}'@'%'")
        sql_group.wait_caught_up()
