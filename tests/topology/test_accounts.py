"""Accounts from the rows of the servers' tables, which one a client gets, and what keeps one out."""

from __future__ import annotations

import json
import sys
from hashlib import sha1

import pytest

from gateway.protocol.mysql import auth
from gateway.protocol.mysql.constants import CACHING_SHA2_PASSWORD, ED25519, NATIVE_PASSWORD
from gateway.topology.accounts import Account, account_of, mariadb_account, missing_grant, mysql_account

STORED = sha1(sha1(b"secret").digest()).digest()
OF_NO_PASSWORD = "*BE1BDEC0AA74B4DCB079943E70528096CCA985F8"  # PASSWORD('') as MySQL 5.7 knew it, of no bytes
HASH = "*" + STORED.hex().upper()


def mysql(
    plugin: str = CACHING_SHA2_PASSWORD, string: str = "$A$005$x", tls: str = "", more: str = "", host: str = "%"
) -> Account:
    return mysql_account([host, "app", plugin, string, "N", "N", tls, more, "2026-01-01"])


def mariadb(host: str = "%", **priv: object) -> Account | None:
    return mariadb_account([host, "app", json.dumps(priv)])


def obstacle(account: Account | None, encrypted: bool = False) -> str:
    assert account is not None
    return account.obstacle(encrypted=encrypted) or ""


def test_rows_of_mysql() -> None:
    assert mysql(NATIVE_PASSWORD, HASH).stored == STORED
    assert mysql().stored is None
    assert obstacle(mysql()) == obstacle(mysql(NATIVE_PASSWORD, HASH)) == obstacle(mysql("sha256_password")) == ""
    assert mysql() != mysql(string="$A$005$y")  # whatever changes in the row makes it another account
    assert "empty password" in obstacle(mysql(string=""))
    assert "empty password" in obstacle(mysql(NATIVE_PASSWORD, OF_NO_PASSWORD))
    assert "auth_socket cannot be used" in obstacle(mysql("auth_socket"))
    assert "more than one factor" in obstacle(mysql(more='{"multi_factor_authentication": [{"plugin": "x"}]}'))
    assert obstacle(mysql(more='{"metadata": {}}')) == obstacle(mysql(more="no JSON")) == ""


def test_accounts_that_require_tls() -> None:
    assert obstacle(mysql(tls="ANY")) == "it requires TLS"
    assert obstacle(mysql(tls="ANY"), encrypted=True) == ""
    for kind in ("X509", "SPECIFIED", "of a later version"):
        assert "client certificate" in obstacle(mysql(tls=kind), encrypted=True)
    assert obstacle(mariadb(plugin=NATIVE_PASSWORD, authentication_string=HASH, ssl_type=1)) == "it requires TLS"
    assert "certificate" in obstacle(mariadb(plugin=NATIVE_PASSWORD, authentication_string=HASH, ssl_type=3))


def test_rows_of_mariadb() -> None:
    plain = mariadb(access=0, plugin=NATIVE_PASSWORD, authentication_string=HASH, ssl_type=0)
    assert plain is not None
    assert (plain.stored, plain.plugin, obstacle(plain)) == (STORED, NATIVE_PASSWORD, "")
    assert plain != mariadb(access=0, plugin=NATIVE_PASSWORD, authentication_string=HASH, ssl_type=0, x=1)
    assert "empty password" in obstacle(mariadb(access=0))
    assert "empty password" in obstacle(mariadb(plugin=NATIVE_PASSWORD, authentication_string=OF_NO_PASSWORD.lower()))
    assert "empty password" in obstacle(mariadb(plugin=NATIVE_PASSWORD, authentication_string=""))
    assert "unix_socket cannot be used" in obstacle(mariadb(plugin="unix_socket"))
    assert "pam cannot be used" in obstacle(mariadb(plugin="pam", authentication_string="mariadb"))
    assert "parsec cannot be used" in obstacle(mariadb(plugin="parsec", authentication_string="P0:x:y"))
    assert mariadb(is_role=True) is None
    ed25519 = mariadb(plugin="ed25519", authentication_string="x" * 43)
    assert ed25519 is not None
    assert (ed25519.plugin, ed25519.stored, obstacle(ed25519)) == (ED25519, None, "")


def test_without_pynacl_an_account_of_ed25519_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    account = mariadb(plugin="ed25519", authentication_string="x" * 43)
    monkeypatch.setitem(sys.modules, "nacl", None)  # as if it were not installed
    monkeypatch.setattr("pymysql._auth._nacl_bindings", False)
    assert obstacle(account) == (
        "it uses client_ed25519, which needs PyNaCl in the gateway: pip install 'rw-gateway[ed25519]'"
    )
    with pytest.raises(auth.PluginError, match=r"needs PyNaCl in the gateway: pip install 'rw-gateway\[ed25519\]'"):
        auth.answer(ED25519, "secret", b"x" * 20)


def test_an_account_of_mariadb_with_several_ways_in() -> None:
    root = mariadb(plugin=NATIVE_PASSWORD, authentication_string="invalid", auth_or=[{}, {"plugin": "unix_socket"}])
    assert "unix_socket cannot be used" in obstacle(root)
    either = mariadb(
        plugin="unix_socket", auth_or=[{}, {"plugin": NATIVE_PASSWORD, "authentication_string": HASH}], access=1
    )
    assert either is not None
    assert (either.plugin, either.stored, obstacle(either)) == (NATIVE_PASSWORD, STORED, "")
    open_too = mariadb(plugin=NATIVE_PASSWORD, authentication_string=HASH, auth_or=[{}, {"plugin": NATIVE_PASSWORD}])
    assert "empty password" in obstacle(open_too)


def account(user: str, host: str) -> Account:
    return Account(user, host, CACHING_SHA2_PASSWORD)


def taken(accounts: list[Account], *hosts: str, user: str = "app") -> str | None:
    found = account_of(accounts, user, hosts, mariadb=False)
    return None if found is None else found.name


def test_the_most_specific_account_that_fits_is_taken() -> None:
    accounts = [account("app", host) for host in ("%", "192.0.2.%", "192.0.2.7", "localhost", "192.0.2.0/24")]
    accounts.append(account("other", "192.0.2.9"))
    assert taken(accounts, "192.0.2.7") == "app@192.0.2.7"
    assert taken(accounts, "192.0.2.9") == "app@192.0.2.0/24"
    assert taken(accounts, "198.51.100.1") == "app@%"
    assert taken(accounts, "localhost", "127.0.0.1") == "app@localhost"
    assert taken(accounts[1:], "198.51.100.1") is None
    assert taken(accounts, "192.0.2.7", user="other") is None


def test_a_more_specific_anonymous_account_comes_first_as_on_the_server() -> None:
    accounts = [account("", "192.0.2.7"), account("app", "%")]
    assert taken(accounts, "192.0.2.7") == "@192.0.2.7"
    assert taken(accounts, "192.0.2.8") == "app@%"
    assert "anonymous" in obstacle(accounts[0])
    assert taken([account("", "%"), account("app", "%")], "192.0.2.7") == "app@%"


@pytest.mark.parametrize(("mariadb", "table"), [(True, "global_priv"), (False, "user")])
def test_the_grant_that_is_missing_is_told_as_a_statement(mariadb: bool, table: str) -> None:
    assert missing_grant(mariadb, "gateway@10.0.0.%") == f"GRANT SELECT ON mysql.{table} TO 'gateway'@'10.0.0.%'"
