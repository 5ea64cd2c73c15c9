"""Log-ins to real servers over TLS and unix sockets: whom the gateway trusts, and what it is not talked out of."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
from certificates import Authority

from gateway.backends.mysql import Credentials
from gateway.backends.mysql_log_in import ask, log_in, log_in_errors
from gateway.backends.mysql_server import MysqlServer
from gateway.config import Address, BackendTls
from gateway.demo.mysql_servers import APP, MysqlFamilyServer, MysqlGroup
from gateway.errors import BackendRefused, Unavailable
from gateway.net.lane import Lane
from gateway.protocol.mysql.commands import query
from gateway.replication.observe import texts
from gateway.tls_settings import backend_tls

pytestmark = pytest.mark.servers


@pytest.fixture
async def lane(nursery: trio.Nursery) -> AsyncIterator[Lane]:
    lane = Lane()
    nursery.start_soon(lane.run)
    yield lane
    assert len(lane) == 0, "a descriptor stayed registered"
    nursery.cancel_scope.cancel()


@pytest.fixture
def mysql(mysql9_group: MysqlGroup) -> Iterator[MysqlFamilyServer]:
    """MySQL 9, which has made its own certificates, with nobody's password in its cache."""
    server = mysql9_group.primary
    server.query("CREATE USER x509@'%' IDENTIFIED BY 'x509-secret' REQUIRE X509")
    server.query("CREATE USER sha256@'%' IDENTIFIED WITH sha256_password BY 'sha256-secret'")
    server.query("FLUSH PRIVILEGES")
    yield server
    server.query("DROP USER x509, sha256")


def at(server: MysqlFamilyServer, tls: BackendTls | None, host: str = "127.0.0.1") -> MysqlServer:
    return MysqlServer(Address(host, server.port), backend_tls(tls) if tls is not None else None)


async def cipher(lane: Lane, server: MysqlServer, user: str = APP.user, password: str = APP.password) -> str:
    """The cipher of a connection, as the server has it."""
    with log_in_errors(server):
        conversation, _ = await log_in(lane, server, Credentials(user, password, 0, 45))
    (answer,) = await ask(conversation, [query("SHOW SESSION STATUS LIKE 'Ssl_cipher'")])
    conversation.close()
    return texts(answer)[0][1]


def authority_of(server: MysqlFamilyServer) -> Path:
    return server.datadir / "ca.pem"


@pytest.mark.parametrize("user", ["app", "sha256"])
async def test_the_full_path_over_tls(lane: Lane, mysql: MysqlFamilyServer, user: str) -> None:
    server = at(mysql, BackendTls(ca=authority_of(mysql), verify="ca"))
    assert await cipher(lane, server, user, f"{user}-secret")
    assert await cipher(lane, server, user, f"{user}-secret")
    with pytest.raises(BackendRefused) as refused:
        await cipher(lane, server, user, "wrong")
    assert refused.value.code == 1045


@pytest.mark.parametrize("user", ["app", "sha256"])
async def test_the_full_path_without_tls(lane: Lane, mysql: MysqlFamilyServer, user: str) -> None:
    assert await cipher(lane, at(mysql, None), user, f"{user}-secret") == ""


async def test_the_full_path_over_a_unix_socket_with_and_without_tls_elsewhere(
    lane: Lane, mysql: MysqlFamilyServer
) -> None:
    for tls in (None, BackendTls(ca=authority_of(mysql))):
        mysql.query("FLUSH PRIVILEGES")
        files = backend_tls(tls) if tls is not None else None
        assert await cipher(lane, MysqlServer(Address("", 0, str(mysql.socket)), files)) == ""


async def test_without_verification_anybody_is_believed(lane: Lane, mysql: MysqlFamilyServer) -> None:
    assert await cipher(lane, at(mysql, BackendTls(verify=False)))


async def test_a_certificate_that_names_no_host_is_refused(lane: Lane, mysql: MysqlFamilyServer) -> None:
    with pytest.raises(Unavailable, match=r"the certificate is not trusted: IP address mismatch, .*'127\.0\.0\.1'"):
        await cipher(lane, at(mysql, BackendTls(ca=authority_of(mysql))))
    with pytest.raises(Unavailable, match=r"the certificate is not trusted: Hostname mismatch, .*'localhost'"):
        await cipher(lane, at(mysql, BackendTls(ca=authority_of(mysql)), host="localhost"))


async def test_another_authority_is_refused(lane: Lane, mysql: MysqlFamilyServer, tmp_path: Path) -> None:
    other = Authority(tmp_path)
    for verify in (True, "ca"):
        with pytest.raises(Unavailable, match="the certificate is not trusted: self-signed certificate in"):
            await cipher(lane, at(mysql, BackendTls(ca=other.cert, verify=verify)))
    with pytest.raises(Unavailable, match="the certificate is not trusted: "):
        await cipher(lane, at(mysql, BackendTls()))  # the system's


async def test_an_account_that_wants_the_gateways_own_certificate(lane: Lane, mysql: MysqlFamilyServer) -> None:
    ca = authority_of(mysql)
    own = BackendTls(ca=ca, verify="ca", cert=mysql.datadir / "client-cert.pem", key=mysql.datadir / "client-key.pem")
    assert await cipher(lane, at(mysql, own), "x509", "x509-secret")
    with pytest.raises(BackendRefused) as refused:
        await cipher(lane, at(mysql, BackendTls(ca=ca, verify="ca")), "x509", "x509-secret")
    assert refused.value.code == 1045


async def test_a_server_without_tls_is_never_talked_to_in_plain(lane: Lane, mariadb_group: MysqlGroup) -> None:
    """MariaDB 10.11 has no certificates of its own."""
    with pytest.raises(BackendRefused, match="offers no TLS, which backend_tls asks for"):
        await cipher(lane, at(mariadb_group.primary, BackendTls(verify=False)))
    assert await cipher(lane, at(mariadb_group.primary, None)) == ""
