"""Counts the failed log-ins of each client address, and says which addresses are blocked for how long."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import Final

from gateway.config import LogInFailures

ADDRESSES_REMEMBERED: Final = 10_000  # about 2 MB; the address that was longest quiet is forgotten first
IPV6_PREFIX: Final = 64  # bits: what one customer is given at least, and can choose addresses from


class _Count:
    __slots__ = ("began", "blocked_until", "failures")

    def __init__(self, began: float) -> None:
        self.began = began
        self.failures = 0
        self.blocked_until = 0.0


class FailureRate:
    """The failures of one listener's clients. Times are of Trio's clock, in seconds. "" (a unix socket) never fails."""

    def __init__(self, settings: LogInFailures) -> None:
        self._settings = settings
        self._counts: OrderedDict[str, _Count] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def blocked_for(self, address: str, now: float) -> float:
        """How many seconds nobody from this address is listened to any more; 0 if it is not blocked."""
        count = self._counts.get(_network(address)) if self._counts else None
        return max(count.blocked_until - now, 0.0) if count is not None else 0.0

    def failed(self, address: str, now: float) -> bool:
        """Counts a failed log-in; True if it was the one too many, from which on the address is blocked."""
        if not address or not self._settings.max:
            return False
        network = _network(address)
        count = self._counts.get(network)
        if count is None or now - count.began > self._settings.window:
            count = self._counts[network] = _Count(now)
        self._counts.move_to_end(network)
        if len(self._counts) > ADDRESSES_REMEMBERED:
            self._counts.popitem(last=False)
        count.failures += 1
        if count.failures < self._settings.max:
            return False
        count.failures = 0
        count.began = count.blocked_until = now + self._settings.block
        return True

    def succeeded(self, address: str) -> None:
        """Forgets the failures of an address from which somebody has come in."""
        if self._counts:
            self._counts.pop(_network(address), None)


def _network(address: str) -> str:
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((found, IPV6_PREFIX), strict=False))
