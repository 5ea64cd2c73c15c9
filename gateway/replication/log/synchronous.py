"""Answers that wait until every replica pool has applied the record, at most for a while."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

STILL_SHIPPED: Final = "stored at the primary, still being shipped"


class SyncWait:
    """Counts the replicas that have a write. `done` is called once: with None, or with why it is not everywhere."""

    __slots__ = ("_done", "_missing", "deadline")

    def __init__(self, missing: int, deadline: float, done: Callable[[str | None], None]) -> None:
        """`missing` acknowledgements are awaited until `deadline` (monotonic, seconds)."""
        self._missing = missing
        self._done: Callable[[str | None], None] | None = done
        self.deadline = deadline

    @property
    def over(self) -> bool:
        return self._done is None

    def applied(self) -> None:
        self._missing -= 1
        if not self._missing:
            self._end(None)

    def failed(self, reason: str) -> None:
        self._end(reason)

    def _end(self, reason: str | None) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(reason)


class SyncWaits:
    """All that wait; their deadlines come in the order in which they were added."""

    __slots__ = ("_waits", "timed_out")

    def __init__(self) -> None:
        self._waits: deque[SyncWait] = deque()
        self.timed_out = 0

    def __len__(self) -> int:
        return len(self._waits)

    def add(self, wait: SyncWait) -> None:
        self._waits.append(wait)

    def expire(self, now: float) -> None:
        """Ends what is past its deadline, and forgets what has ended."""
        waits = self._waits
        while waits and (waits[0].over or waits[0].deadline <= now):
            wait = waits.popleft()
            if not wait.over:
                self.timed_out += 1
                wait.failed("it was not applied within sync_timeout")
