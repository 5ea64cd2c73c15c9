"""MariaDB's ed25519: the gateway logs in to accounts of it: listed users, the monitor, and `users = "backend"`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from backend_accounts import REMOTE, account, comes_in, refused
from gateways import GatewayMaker, rows, value

from gateway.demo import programs
from gateway.demo.mysql_servers import MONITOR, Account, MysqlGroup, mysql_group
from gateway.demo.stack import Stack

pytestmark = pytest.mark.servers


def via(password: str) -> str:
    return f"VIA ed25519 USING PASSWORD('{password}')"


@pytest.fixture(scope="module")
def group() -> Iterator[MysqlGroup]:
    """Servers with the plugin, whose monitor is an account of it."""
    plugins = programs.mariadb_plugin_folder("auth_ed25519")
    options = [f"--plugin-dir={plugins}", "--plugin-load-add=auth_ed25519"]
    with Stack() as stack:
        found = mysql_group(stack, "mariadb", replicas=1, options=options)
        found.primary.query(f"ALTER USER '{MONITOR.user}'@'%' IDENTIFIED {via(MONITOR.password)}")
        found.wait_caught_up()
        yield found


def test_listed_users_and_the_monitor_have_accounts_of_it(gateways: GatewayMaker, group: MysqlGroup) -> None:
    users = (Account("b_user", "pw"), Account("b_other", "not what the server has"))
    with account(group, via=via("pw")) as user, account(group, user="b_other", via=via("pw")):
        gateway = gateways(group, users=users)
        with gateway.connect("shop", user) as one:
            rows(one, "CREATE OR REPLACE TABLE t (a INT)")
            rows(one, "INSERT INTO t VALUES (7)")
            group.wait_caught_up()
            assert rows(one, "SELECT a, CURRENT_USER() FROM t") == [(7, "b_user@%")]
        assert gateway.member(group.replicas[0])["reads"] > 0
        code, text = refused(gateway, users[1])
        assert (code, "Access denied for user 'b_other'" in text) == (1045, True)


def test_whom_the_primary_accepts_by_it_comes_in(gateways: GatewayMaker, group: MysqlGroup) -> None:
    gateway = gateways(group, users='"backend"', listener="log_in_failures = {max = 0}")
    with account(group, via=via("pw")) as user:
        for wrong in (Account("b_user", "wrong"), Account("b_user", "")):
            assert refused(gateway, wrong)[0] == 1045
        for client in ({}, {"bind_address": REMOTE}, {}):
            comes_in(gateway, user, **client)
        for wrong in (Account("b_user", "wrong"), Account("b_user", "")):
            assert refused(gateway, wrong)[0] == 1045
        program = programs.debian("mariadb", "mariadb-client")
        place = [f"--host={gateway.host}", f"--port={gateway.port}", "--protocol=tcp", "--user=b_user", "--skip-ssl"]
        done = subprocess.run(
            [*program.command, "--no-defaults", *place, "--password=pw", "-Ne", "SELECT CURRENT_USER()", "shop"],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert (done.returncode, done.stdout) == (0, "b_user@%\n"), done.stderr
        group.primary.query(f"ALTER USER 'b_user'@'%' IDENTIFIED {via('new')}")
        group.wait_caught_up()
        assert refused(gateway, user)[0] == 1045
        comes_in(gateway, Account("b_user", "new"))


@pytest.mark.parametrize("password", ["", "pw"])
def test_an_account_of_it_without_a_password_lets_nobody_in(
    gateways: GatewayMaker, group: MysqlGroup, password: str
) -> None:
    gateway = gateways(group, users='"backend"')
    with account(group, via="VIA ed25519 USING PASSWORD('')"):
        assert refused(gateway, Account("b_user", password))[0] == 1045


def test_an_account_of_it_or_another_plugin_takes_the_password(gateways: GatewayMaker, group: MysqlGroup) -> None:
    gateway = gateways(group, users='"backend"')
    with account(group, via=f"VIA unix_socket OR {via('pw').removeprefix('VIA ')}") as user:
        comes_in(gateway, user)
        with gateway.connect("shop", user) as one:
            assert value(one, "SELECT 1") == 1
