"""Which keys a replica server may lack: pending from the dispatch of a write until its result was applied there.

Each unfinished write holds one *mark* on its key. `counts` is looked into for every read of a replica and is therefore
one plain dictionary, for all three reasons to keep a read away:

- dispatched: handed to the primary's connection, not answered;
- doubtful: its connection was lost before the answer; the mark stays until the key was read again;
- logged: a record that this server has not applied.

The numbers of each are counted where a mark changes its state, so that their sum can be held against `counts`.
"""

from __future__ import annotations


class PendingIndex:
    """The marks of one replica server. `flushes` are unfinished flushes, which keep all reads away."""

    __slots__ = ("counts", "dispatched", "doubtful", "flushes", "logged")

    def __init__(self) -> None:
        self.counts: dict[bytes, int] = {}
        self.dispatched = 0
        self.doubtful = 0
        self.logged = 0  # records, flushes among them
        self.flushes = 0

    def dispatch(self, key: bytes) -> None:
        """A write of the key is handed to the primary's connection."""
        counts = self.counts
        counts[key] = counts.get(key, 0) + 1
        self.dispatched += 1

    def settle(self, key: bytes) -> None:
        """The answer of a dispatched write says that nothing happened to the key."""
        self.dispatched -= 1
        self._release(key)

    def doubt(self, key: bytes) -> None:
        """A dispatched write was lost."""
        self.dispatched -= 1
        self.doubtful += 1

    def settle_doubt(self, key: bytes) -> None:
        """A doubtful write needs no record of its own: another one has the key's state."""
        self.doubtful -= 1
        self._release(key)

    def log(self) -> None:
        """A dispatched write was answered and its record appended."""
        self.dispatched -= 1
        self.logged += 1

    def dispatch_doubtful(self) -> None:
        """A doubtful key was read again: its mark is a dispatched write's from here on, whose answer came."""
        self.doubtful -= 1
        self.dispatched += 1

    def finish(self, key: bytes) -> None:
        """A record was applied, or dropped together with whatever made reading the key safe."""
        self.logged -= 1
        self._release(key)

    def log_flush(self) -> None:
        """A flush's record was appended; `flushes` has counted it since its dispatch."""
        self.logged += 1

    def finish_flush(self) -> None:
        self.logged -= 1
        self.flushes -= 1

    def _release(self, key: bytes) -> None:
        counts = self.counts
        left = counts[key] - 1
        if left:
            counts[key] = left
        else:
            del counts[key]

    @property
    def marks(self) -> int:
        """All marks, from the index itself: equals dispatched + doubtful + logged but for the flushes among these."""
        return sum(self.counts.values())
