"""`users = "backend"` with TLS on both sides: how a password is named inside it, and accounts that require it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pymysql._auth
import pytest
from backend_accounts import account, comes_in, may_read_accounts, refused
from certificates import Authority, Certificate
from gateways import rows, value
from tls_gateways import TlsGateway, TlsGroup

from gateway.demo.mysql_servers import MONITOR, Account
from gateway.demo.stack import Stack

pytestmark = pytest.mark.servers


@pytest.fixture
def gateway(stack: Stack, tls_group: TlsGroup, authority: Authority, certificate: Certificate) -> Iterator[TlsGateway]:
    group = tls_group.group
    group.primary.query(f"GRANT {may_read_accounts(group)} TO '{MONITOR.user}'@'%'")
    group.wait_caught_up()
    found = TlsGateway(
        stack, tls_group, authority, certificate, users='"backend"', listener="log_in_failures = {max = 0}"
    )
    found.start()
    found.wait_serving()
    yield found
    found.end()


@pytest.fixture
def keys_asked_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many RSA keys this process's clients have been given to encrypt a password with."""
    count = 0
    original: Callable[[bytes, bytes, bytes], bytes] = pymysql._auth.sha2_rsa_encrypt

    def counted(password: bytes, salt: bytes, public_key: bytes) -> bytes:
        nonlocal count
        count += 1
        return original(password, salt, public_key)

    monkeypatch.setattr("pymysql._auth.sha2_rsa_encrypt", counted)
    return lambda: count


def test_who_proves_a_password_inside_tls_comes_in(
    gateway: TlsGateway, tls_group: TlsGroup, keys_asked_for: Callable[[], int]
) -> None:
    """The full path sends it as it is there; the servers let the account in by TLS only, the gateway too."""
    with account(tls_group.group, more="REQUIRE SSL") as user:
        for wrong in (Account(user.user, "wrong"), Account(user.user, ""), Account("b_nobody", "pw")):
            assert refused(gateway, wrong)[0] == 1045
        for _ in range(2):  # the full path, then the short one
            comes_in(gateway, user)
            with gateway.connect("shop", user) as one:
                rows(one, "CREATE TABLE IF NOT EXISTS t (a INT)")
                assert rows(one, "SHOW SESSION STATUS LIKE 'Ssl_cipher'")[0][1]
        assert refused(gateway, Account(user.user, "wrong"))[0] == 1045
        code, text = refused(gateway, user, ssl_disabled=True)
        assert (code, "it requires TLS" in text) == (1251, True)
    assert keys_asked_for() == 0


@pytest.mark.parametrize("requirement", ["REQUIRE X509", "REQUIRE SUBJECT '/CN=somebody'"])
def test_an_account_that_requires_a_client_certificate_is_refused(
    gateway: TlsGateway, tls_group: TlsGroup, requirement: str
) -> None:
    with account(tls_group.group, more=requirement) as user:
        code, text = refused(gateway, user)
        assert (code, "requires a client certificate" in text) == (1251, True)


def test_without_tls_on_the_way_in_the_password_is_encrypted(
    gateway: TlsGateway, tls_group: TlsGroup, keys_asked_for: Callable[[], int]
) -> None:
    mysql = tls_group.group.primary.flavor == "mysql"
    with account(tls_group.group) as user:
        for _ in range(2):
            comes_in(gateway, user, ssl_disabled=True)
        assert keys_asked_for() == (1 if mysql else 0)  # once: then it is known. MariaDB's are mysql_native_password
        with gateway.connect("shop", user) as one:
            assert value(one, "SELECT 1") == 1
