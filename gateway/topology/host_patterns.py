"""The Host part of accounts: which client addresses a pattern fits, and which of several accounts a server takes.

As MySQL and MariaDB do it (https://dev.mysql.com/doc/refman/8.4/en/connection-access.html): rows are sorted, the most
specific Host first, and among equal Hosts the named user before the anonymous one; the first that fits is the account.
Names are not resolved: a pattern of host names fits no address, as on a server with skip_name_resolve.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

LOCALHOST = "localhost"  # a connection by unix socket, or from this name


@lru_cache(maxsize=4096)
def _like(pattern: str) -> re.Pattern[str]:
    """A LIKE pattern: `%` any text, `_` one character, a backslash takes the meaning of the next one away."""
    parts: list[str] = []
    characters = iter(pattern)
    for character in characters:
        if character == "%":
            parts.append(".*")
        elif character == "_":
            parts.append(".")
        else:
            parts.append(re.escape(next(characters, "\\") if character == "\\" else character))
    return re.compile("".join(parts), re.IGNORECASE | re.DOTALL)


def fits(pattern: str, host: str, *, mariadb: bool) -> bool:
    """Whether the Host `pattern` of an account fits a client at `host`, an address or a name.

    MySQL knows `198.51.100.0/24` since 8.0.23, MariaDB only `198.51.100.0/255.255.255.0`.
    """
    if pattern in ("", "%"):
        return True
    base, slash, mask = pattern.partition("/")
    if slash:
        return _in_network(base, mask, host, mariadb=mariadb)
    return _like(pattern).fullmatch(host) is not None


def _in_network(base: str, mask: str, host: str, *, mariadb: bool) -> bool:
    try:
        address = ipaddress.ip_address(host)
        network = ipaddress.ip_address(base)
        if "." in mask:
            bits = int(ipaddress.IPv4Address(mask))
        elif mariadb:
            return False
        else:
            bits = int(ipaddress.ip_network(f"{base}/{mask}", strict=False).netmask)
    except ValueError:
        return False
    # `base` has to be what remains under the mask: 198.51.100.5/255.255.255.0 fits nobody.
    return address.version == network.version and int(address) & bits == int(network)


def specificity(pattern: str) -> tuple[int, int]:
    """The order in which a server tries patterns: sorted ascending, the most specific comes first."""
    wildcard = re.search(r"(?<!\\)[%_]", pattern)
    if not pattern:
        return (4, 0)
    if pattern == "%":
        return (3, 0)
    if wildcard is not None:
        return (2, -wildcard.start())  # the later the first wildcard, the more specific
    _, slash, mask = pattern.partition("/")
    return (0 if not slash else 1, 1 if "." in mask else 0)
