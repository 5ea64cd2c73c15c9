"""`users = "backend"`: who the primary accepts may come in, and every guard around that."""

from __future__ import annotations

import contextlib
import subprocess
from typing import Any

import mysql.connector
import pymysql
import pymysql.connections
import pytest
from backend_accounts import REMOTE, account, comes_in, is_mysql, may_read_accounts, refused
from gateways import GatewayMaker, SqlGateway, rows, value

from gateway.demo import programs
from gateway.demo.mysql_servers import MONITOR, Account, MysqlGroup

pytestmark = pytest.mark.servers


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


def test_an_anonymous_account_lets_nobody_in_by_whatever_name(backend: SqlGateway, sql_group: MysqlGroup) -> None:
    with account(sql_group, user="", host="%"):
        with sql_group.primary.connect(Account("b_nobody", "pw")):
            pass  # the server would
        for wanted in (Account("b_nobody", "pw"), Account("", "pw"), Account("b_nobody", "")):
            for client in ({}, {"bind_address": REMOTE}):
                assert refused(backend, wanted, **client)[0] == 1045


def test_every_kind_of_refusal_counts_against_the_address(
    gateways: GatewayMaker, backend: SqlGateway, sql_group: MysqlGroup, user: Account
) -> None:
    gateway = gateways(sql_group, users='"backend"', listener='log_in_failures = {max = 2, block = "60s"}')
    with (
        account(sql_group, user="b_local", host="127.0.0.%") as taken,
        account(sql_group, user="b_local", host="127.0.0.1"),
    ):
        kinds = {
            "127.0.0.11": Account(user.user, "wrong"),
            "127.0.0.12": Account("b_nobody", "pw"),
            "127.0.0.13": Account(user.user, ""),
            "127.0.0.14": taken,  # for somebody else, by the server
        }
        for address, kind in kinds.items():
            for _ in range(2):
                assert refused(gateway, kind, bind_address=address)[0] == 1045
            assert refused(gateway, user, bind_address=address)[0] == 1129
    comes_in(gateway, user)


def test_who_is_unknown_is_asked_as_much_as_who_is_wrong(
    backend: SqlGateway, user: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bytes] = []
    original: Any = pymysql.connections.Connection._read_packet

    def read(connection: Any, *arguments: Any) -> Any:
        packet = original(connection, *arguments)
        heard.append(packet.get_all_data()[:2])
        return packet

    monkeypatch.setattr(pymysql.connections.Connection, "_read_packet", read)
    transcripts = []
    for wrong in (Account("b_nobody", "pw"), Account(user.user, "wrong")):
        heard.clear()
        assert refused(backend, wrong)[0] == 1045
        transcripts.append(list(heard))
    assert transcripts[0] == transcripts[1]


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
