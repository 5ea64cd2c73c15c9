"""Accounts as the primary has them: rows of mysql.user or mysql.global_priv, which one a client gets, and what bars it.

Nothing here asks a server; backend_users.py does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha1
from typing import Any, Final

from gateway.protocol.mysql import auth
from gateway.protocol.mysql.constants import ED25519, NATIVE_PASSWORD
from gateway.topology.host_patterns import fits, specificity

MYSQL_COLUMNS: Final = (
    "Host, User, plugin, authentication_string, account_locked, password_expired, ssl_type, User_attributes, "
    "password_last_changed"
)
MARIADB_COLUMNS: Final = "Host, User, Priv"

# What proves nothing: no hash, or that of the empty password, which IDENTIFIED BY PASSWORD '*...' can have put there.
_OF_NO_PASSWORD: Final = frozenset({"", f"*{sha1(sha1(b'').digest()).hexdigest().upper()}"})
_NATIVE_HASH: Final = re.compile(r"\*[0-9A-Fa-f]{40}")
_TLS_NEEDED: Final = {"": "", "ANY": "any", "X509": "certificate", "SPECIFIED": "certificate"}
_MARIADB_TLS: Final = {1: "any", 2: "certificate", 3: "certificate"}  # enum SSL_type of MariaDB's sql_acl.h
# What MariaDB calls a server's plugin, and what its clients answer with.
_CLIENT_PLUGINS: Final = {"ed25519": ED25519, "": NATIVE_PASSWORD}


@dataclass(frozen=True, slots=True)
class Account:
    """One account. `plugin` is what a client answers with, `stored` the hash of mysql_native_password, where it is.

    `stamp` is the whole row: two equal ones let the same people in. `tls`: "", "any" or "certificate".
    """

    user: str
    host: str
    plugin: str
    stored: bytes | None = field(default=None, repr=False)
    passwordless: bool = False
    factors: int = 1
    tls: str = ""
    stamp: str = field(default="", repr=False)

    @property
    def name(self) -> str:
        """As CURRENT_USER() tells it."""
        return f"{self.user}@{self.host}"

    def obstacle(self, *, encrypted: bool) -> str | None:
        """Why nobody comes in by this account through a gateway, whatever the password, in words; None if nothing."""
        if not self.user:
            return "anonymous accounts may not come in through the gateway"
        if self.passwordless:
            return "accounts with an empty password may not come in through the gateway"
        if self.factors > 1:
            return "it has more than one factor of authentication, and the gateway can pass on the first only"
        if self.tls == "certificate":
            return "it requires a client certificate, which the gateway cannot pass on"
        if self.tls and not encrypted:
            return "it requires TLS"
        return auth.obstacle(self.plugin)


def mysql_account(row: Iterable[str]) -> Account:
    """An account from the MYSQL_COLUMNS of a row of mysql.user; NULL is ""."""
    host, user, plugin, string, _locked, _expired, ssl_type, attributes, *_ = values = list(row)
    more = _object(attributes)
    second = more.get("multi_factor_authentication")
    return Account(
        user,
        host,
        plugin or NATIVE_PASSWORD,
        _stored(plugin, string),
        passwordless=string.upper() in _OF_NO_PASSWORD,
        factors=1 + (len(second) if isinstance(second, list) else 0),
        tls=_TLS_NEEDED.get(ssl_type, "certificate"),
        stamp="\0".join(values),
    )


def mariadb_account(row: Iterable[str]) -> Account | None:
    """An account from the MARIADB_COLUMNS of a row of mysql.global_priv; None for a role.

    Where it may authenticate in several ways (`IDENTIFIED VIA a OR b`) the first that the gateway has counts, and one
    without a password bars it.
    """
    host, user, text = values = list(row)
    priv = _object(text)
    if priv.get("is_role"):
        return None
    ways = [way or priv for way in priv.get("auth_or") or [{}] if isinstance(way, dict)]  # {}: what stands outside
    found = [(str(way.get("plugin") or ""), str(way.get("authentication_string") or "")) for way in ways]
    passwordless = any(
        plugin in ("", NATIVE_PASSWORD, "ed25519") and string.upper() in _OF_NO_PASSWORD for plugin, string in found
    )
    usable = [(plugin, string) for plugin, string in found if _is_usable(plugin, string)]
    others = [way for way in found if way[0] not in ("", NATIVE_PASSWORD)]
    plugin, string = (usable or others or found)[0]
    return Account(
        user,
        host,
        _CLIENT_PLUGINS.get(plugin, plugin),
        _stored(plugin, string),
        passwordless=passwordless,
        tls=_MARIADB_TLS.get(priv.get("ssl_type") or 0, ""),
        stamp="\0".join(values),
    )


def _is_usable(plugin: str, string: str) -> bool:
    if plugin in ("", NATIVE_PASSWORD):  # MariaDB's root has the hash "invalid" beside unix_socket
        return _NATIVE_HASH.fullmatch(string) is not None
    return auth.obstacle(_CLIENT_PLUGINS.get(plugin, plugin)) is None


def _stored(plugin: str, string: str) -> bytes | None:
    if plugin in ("", NATIVE_PASSWORD) and _NATIVE_HASH.fullmatch(string):
        return bytes.fromhex(string[1:])
    return None


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def account_of(accounts: Iterable[Account], user: str, hosts: Iterable[str], *, mariadb: bool) -> Account | None:
    """The account that a server takes for `user` from a client that is known by these addresses and names.

    The anonymous account counts as any user's; where its Host is more specific it comes first, as on the server.
    """
    known = tuple(hosts)
    candidates = [
        account
        for account in accounts
        if account.user in ("", user) and any(fits(account.host, host, mariadb=mariadb) for host in known)
    ]
    return min(candidates, key=lambda account: (specificity(account.host), not account.user), default=None)


def missing_grant(mariadb: bool, account: str) -> str:
    """The statement that lets the monitor, `account` as CURRENT_USER() tells it, read the accounts."""
    user, _, host = account.rpartition("@")
    return f"GRANT SELECT ON mysql.{'global_priv' if mariadb else 'user'} TO '{user}'@'{host}'"
