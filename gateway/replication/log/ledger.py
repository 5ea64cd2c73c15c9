"""The account of every accepted write for one replica server.

accepted = applied + superseded + covered by snapshot + pending + dropped(reason). Each is counted where it happens:
accepted when a client's write was answered and logged, applied when the server acknowledged it, dropped where it is
dropped, pending is the index's number of logged marks. Nothing here is the difference of others, so that the equation
can fail, and is worth checking.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum

from gateway.replication.log.pending import PendingIndex


class Dropped(Enum):
    """Why a record was not applied. Values are what a person reads."""

    REFUSED = "refused by the replica, its key deleted there"
    NEEDS_RESYNC = "the replica needs a full resync"


class Ledger:
    """One replica server's account; `pending` reads its index."""

    __slots__ = ("_pending", "accepted", "applied", "covered", "dropped", "superseded")

    def __init__(self, pending: PendingIndex) -> None:
        self._pending = pending
        self.accepted = 0
        self.applied = 0
        self.superseded = 0
        self.covered = 0  # by a snapshot
        self.dropped: Counter[Dropped] = Counter()

    @property
    def pending(self) -> int:
        return self._pending.logged

    @property
    def balance(self) -> int:
        """What is missing on the right side of the equation: 0, or the account is wrong."""
        dropped = sum(self.dropped.values())
        return self.accepted - self.applied - self.superseded - self.covered - self.pending - dropped

    def status(self) -> dict[str, object]:
        """As `stats ledger` and `gateway status --json` show it."""
        return {
            "accepted": self.accepted,
            "applied": self.applied,
            "superseded": self.superseded,
            "covered_by_snapshot": self.covered,
            "pending": self.pending,
            "dropped": {
                reason.value: count for reason, count in sorted(self.dropped.items(), key=lambda x: x[0].value)
            },
            "balance": self.balance,
        }
