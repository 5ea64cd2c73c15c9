"""A bounded map from text to operation, with next to no bookkeeping on a hit.

A cache has two generations of plain dictionaries: a hit in the young one costs a lookup, a hit in the old one moves the
entry, and when the young one is full it becomes the old one. That keeps what is used and is bounded in entries and
bytes, without bookkeeping on a hit.
"""

from __future__ import annotations

from gateway.routing.operation import SqlOperation


class Cache:
    """A bounded map from text to operation with two generations."""

    __slots__ = ("_bytes", "_limit", "_old", "_size", "young")

    def __init__(self, entries: int, size: int) -> None:
        self._limit = max(1, entries // 2)
        self._size = size // 2
        self._bytes = 0
        self.young: dict[bytes, SqlOperation] = {}
        self._old: dict[bytes, SqlOperation] = {}

    def __len__(self) -> int:
        return len(self.young) + len(self._old)

    def old(self, key: bytes) -> SqlOperation | None:
        """The entry of the old generation, which it moves to the young one; None if there is none."""
        operation = self._old.pop(key, None)
        if operation is not None:
            self.put(key, operation)
        return operation

    def put(self, key: bytes, operation: SqlOperation) -> None:
        self._bytes += len(key)
        if len(self.young) >= self._limit or self._bytes > self._size:
            self._old = self.young
            self.young = {}
            self._bytes = len(key)
        self.young[key] = operation

    def clear(self) -> None:
        self.young.clear()
        self._old.clear()
        self._bytes = 0
