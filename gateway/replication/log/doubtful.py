"""The writes of one primary server whose outcome nobody knows, until their keys were read again.

Their marks stay in the pending indexes, which keeps reads of these keys at the primary. When a fenced connection has
read a key again, the result becomes a record: it takes one mark of each owner over, the others are settled.
"""

from __future__ import annotations

from collections import Counter

from gateway.replication.log.follower import Follower


class DoubtfulKeys:
    """Doubtful keys with the owners of each lost write."""

    __slots__ = ("_lost", "ever")

    def __init__(self) -> None:
        self._lost: dict[bytes, list[tuple[Follower, ...]]] = {}
        self.ever = 0  # writes

    def __len__(self) -> int:
        return len(self._lost)

    def keys_now(self) -> list[bytes]:
        """A copy: the keys as they are at this moment."""
        return list(self._lost)

    def add(self, key: bytes, owners: tuple[Follower, ...]) -> None:
        """A dispatched write, with a mark at each owner, was lost."""
        self.ever += 1
        if owners:
            for owner in owners:
                owner.pending.doubt(key)
            self._lost.setdefault(key, []).append(owners)

    def owners(self, key: bytes) -> tuple[Follower, ...]:
        """All who have a mark of the key."""
        return tuple(dict.fromkeys(owner for owners in self._lost.get(key, ()) for owner in owners))

    def resolve(self, key: bytes) -> tuple[Follower, ...]:
        """The key was read again: settles all of its marks but one for each owner, which the record takes over."""
        marks = Counter(owner for owners in self._lost.pop(key, ()) for owner in owners)
        for owner, count in marks.items():
            for _ in range(count - 1):
                owner.pending.settle_doubt(key)
        return tuple(marks)

    def settle(self) -> None:
        """The server's process is gone and its keys with it: there is nothing to know any more."""
        for key in self.keys_now():
            for owner in self.resolve(key):
                owner.pending.settle_doubt(key)
