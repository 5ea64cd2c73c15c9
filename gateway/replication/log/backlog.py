"""The log: the records of a group in order, numbered by offset, kept in memory within a budget.

A run id names the timeline; the offset is that of the last record, 0 before the first. `budget` bytes are kept although
all have applied them, so that a follower whose connection broke can go on from its offset; a connected follower that is
behind holds the log further (its own limit is its follower's business).

Records are kept in one list whose head is cut off in large steps, since cutting costs as much as what is left.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final

from gateway.replication.log.record import Offset, Record
from gateway.replication.position import LogPosition

TRIM_SHARE: Final = 16  # one sixteenth of the budget is cut off at a time


class Backlog:
    """Records `first` to `offset`, both included; empty while first > offset."""

    __slots__ = (
        "_cutting",
        "_holding",
        "_records",
        "_trim_above",
        "budget",
        "byte_count",
        "first",
        "offset",
        "run_id",
        "trimmed",
    )

    def __init__(self, budget: int, holding: Callable[[], int], cutting: Callable[[int], None]) -> None:
        """`budget` in bytes; `holding` gives the offset after which connected followers still need everything;
        `cutting` is told the offset up to which records are about to be cut off."""
        self.budget = budget
        self._trim_above = budget
        self.run_id = new_run_id()
        self.offset = Offset(0)
        self.first = Offset(1)
        self.byte_count = 0
        self.trimmed = 0  # records
        self._records: list[Record] = []
        self._holding = holding
        self._cutting = cutting

    @property
    def position(self) -> LogPosition:
        return LogPosition(self.run_id, self.offset)

    def __len__(self) -> int:
        return len(self._records)

    def append(self, record: Record) -> None:
        """Gives the record its offset; cuts off what exceeds the budget without it."""
        if self.byte_count > self._trim_above:
            self._trim()  # before, since the followers do not know of the new one yet
        self.offset = record.offset = Offset(self.offset + 1)
        self._records.append(record)
        self.byte_count += record.size

    def after(self, offset: int, limit: int) -> list[Record]:
        """At most `limit` records that follow `offset`. LookupError if some of them are kept no more."""
        at = offset + 1 - self.first
        if at < 0:
            raise LookupError(f"offset {offset + 1} is not in the backlog, which begins at {self.first}")
        return self._records[at : at + limit]

    def _trim(self) -> None:
        target = self.budget - self.budget // TRIM_SHARE
        held = self._holding() - self.first + 1
        count = freed = 0
        for record in self._records:
            if count >= held or self.byte_count - freed <= target:
                break
            freed += record.size
            count += 1
        if count:
            self._cutting(self.first + count - 1)
            del self._records[:count]
            self.first = Offset(self.first + count)
            self.byte_count -= freed
            self.trimmed += count
        # Held by a follower, it is not tried again for every record.
        self._trim_above = max(self.budget, self.byte_count + self.budget // TRIM_SHARE)

    def begin_timeline(self) -> None:
        """A new run id: what was applied of the old one says nothing about what the primary has now."""
        self.run_id = new_run_id()
        self.first = Offset(self.offset + 1)
        self.byte_count = 0
        self._trim_above = self.budget
        self.trimmed += len(self._records)
        self._records.clear()


def new_run_id() -> str:
    """40 hexadecimal digits, as Redis has them."""
    return secrets.token_hex(20)
