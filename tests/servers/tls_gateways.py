"""Groups whose servers have TLS, and gateways with TLS on both sides before them, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority, Certificate
from gateways import Connection, SqlGateway

from gateway.demo.mysql_servers import APP, MONITOR, Account, MysqlGroup, mysql_group
from gateway.demo.stack import Stack


@dataclass(frozen=True)
class TlsGroup:
    """`backend_tls` is what a gateway before it is told."""

    group: MysqlGroup
    backend_tls: str

    def require(self, requirement: str) -> None:
        """Lets the accounts that the gateway uses in by TLS only ("SSL"), or by whatever there is ("NONE")."""
        for account in (APP, MONITOR):
            self.group.primary.query(f"ALTER USER '{account.user}'@'%' REQUIRE {requirement}")
        self.group.wait_caught_up()


def mariadb_with_tls(stack: Stack, authority: Authority, replicas: int = 2) -> TlsGroup:
    """MariaDB 10.11 makes no certificates for itself."""
    own = authority.issue("mariadb", "127.0.0.1", "localhost")
    options = [
        f"--ssl-ca={authority.cert}",
        f"--ssl-cert={own.cert}",
        f"--ssl-key={own.key}",
        "--max-allowed-packet=64M",
    ]
    group = mysql_group(stack, "mariadb", replicas=replicas, name="tls-mariadb", options=options)
    return TlsGroup(group, f'{{ca = "{authority.cert}"}}')


def mysql_with_tls(group: MysqlGroup) -> TlsGroup:
    """MySQL does: in the data folder, of which all servers here have a copy. They name no host."""
    return TlsGroup(group, f'{{ca = "{group.primary.datadir / "ca.pem"}", verify = "ca"}}')


class TlsGateway(SqlGateway):
    """A gateway with TLS on both sides, whose clients use it."""

    def __init__(
        self,
        stack: Stack,
        tls_group: TlsGroup,
        authority: Authority,
        certificate: Certificate,
        *,
        tls: str = "",
        listener: str = "",
        settings: str = "",
        users: tuple[Account, ...] | str = (APP,),
        rules: str = "",
        general: str = "",
    ) -> None:
        own = f'tls = {{cert = "{certificate.cert}", key = "{certificate.key}"{tls}}}\n'
        super().__init__(
            stack,
            tls_group.group,
            listener=own + listener,
            settings=f"backend_tls = {tls_group.backend_tls}\n{settings}",
            users=users,
            rules=rules,
            general=general,
        )
        self.ca: Path = authority.cert

    def open(
        self, database: str | None = "shop", account: Account = APP, *, autocommit: bool | None = True, **more: Any
    ) -> Connection:
        tls = {} if "ssl_disabled" in more or "ssl" in more else {"ssl": {"ca": str(self.ca)}}
        return super().open(database, account, autocommit=autocommit, **tls, **more)


@pytest.fixture(scope="module")
def module_stack() -> Iterator[Stack]:
    with Stack() as own:
        yield own


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Certificate:
    return authority.issue("gateway", "127.0.0.1", "localhost")


@pytest.fixture(scope="module")
def mariadb_tls(module_stack: Stack, authority: Authority) -> TlsGroup:
    return mariadb_with_tls(module_stack, authority)


@pytest.fixture(params=["mariadb", "mysql9"])
def tls_group(request: pytest.FixtureRequest) -> TlsGroup:
    """Each of the two in turn."""
    if request.param == "mysql9":
        shared: MysqlGroup = request.getfixturevalue("mysql9_group")
        return mysql_with_tls(shared)
    found: TlsGroup = request.getfixturevalue("mariadb_tls")
    found.group.make_whole()
    return found
