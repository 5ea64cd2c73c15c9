"""The cursor that applies the log to one replica server, over a connection that somebody else keeps.

It sends the records whose keys its server owns, pipelined and in order, and counts one as applied when the server's
answer says so. What was sent and not acknowledged stays in `window`, and is sent again, in order, when the connection
comes back: every record is a full state, and its key stays pending until the acknowledgement, so that a repetition does
no harm. This needs that nothing of the lost connection arrives afterwards (the link fences) and that the server still
has what it acknowledged (the same process).

A record that the server refuses, say for lack of memory, is replaced by a delete of its key and is dropped only when
that was acknowledged; the replica then misses and the primary is asked. The delete is sent again after a lost
connection too, never the record: a newer one of the same key may have been applied meanwhile.

States, and what leads from one to another (`TRANSITIONS`):

    connecting -------> catching-up -------> streaming
        |                 ^     |                |
        |                 |     v                |
        +----------> disconnected <--------------+
        |                 |
        +-------> needs-full-resync <--- from all
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol

from gateway.protocol.memcached import encoder
from gateway.protocol.memcached.reply import Code, Reply
from gateway.protocol.memcached.request import Request
from gateway.replication.log.backlog import Backlog
from gateway.replication.log.ledger import Dropped, Ledger
from gateway.replication.log.pending import PendingIndex
from gateway.replication.log.record import Offset, Record, RecordKind

SHIPMENT_RECORDS: Final = 512  # per batch of the lane: some 2 ms
SHIPMENT_BYTES: Final = 4_194_304
WINDOW_RECORDS: Final = 4096  # sent and not acknowledged


class FollowerState(Enum):
    """How a follower stands to its server. Values are what status shows."""

    CONNECTING = "connecting"
    CATCHING_UP = "catching-up"
    STREAMING = "streaming"
    DISCONNECTED = "disconnected"
    NEEDS_FULL_RESYNC = "needs-full-resync"


_S: Final = FollowerState
TRANSITIONS: Final[dict[FollowerState, frozenset[FollowerState]]] = {
    _S.CONNECTING: frozenset({_S.CATCHING_UP, _S.DISCONNECTED, _S.NEEDS_FULL_RESYNC}),
    _S.CATCHING_UP: frozenset({_S.STREAMING, _S.DISCONNECTED, _S.NEEDS_FULL_RESYNC}),
    _S.STREAMING: frozenset({_S.DISCONNECTED, _S.NEEDS_FULL_RESYNC}),
    _S.DISCONNECTED: frozenset({_S.CATCHING_UP, _S.NEEDS_FULL_RESYNC}),
    _S.NEEDS_FULL_RESYNC: frozenset(),  # full resync is not part of this version
}
CONNECTED: Final = frozenset({_S.CATCHING_UP, _S.STREAMING})

_APPLIED: Final = frozenset({Code.STORED, Code.DELETED, Code.NOT_FOUND, Code.TOUCHED, Code.OK})


class Carrier(Protocol):
    """The connection, as far as a follower needs it."""

    @property
    def full(self) -> bool: ...

    def send(self, request: Request, waiter: Follower) -> None: ...

    def fail(self, reason: str) -> None: ...


class _Repair:
    """A delete that stands for a refused record."""

    __slots__ = ("record",)

    def __init__(self, record: Record) -> None:
        self.record = record


class Follower:
    """One replica server's cursor, pending index and ledger. All calls are synchronous.

    `clock` is the gateway's monotonic time in seconds. `schedule` runs a call when the current batch of the lane ends.
    `changed` is called after every change of state, and when a flush is finished.
    """

    writes = True  # its requests change the server
    shipment_records = SHIPMENT_RECORDS
    window_records = WINDOW_RECORDS

    def __init__(
        self,
        name: str,
        log: Backlog,
        *,
        clock: Callable[[], float],
        schedule: Callable[[Callable[[], None]], None],
        changed: Callable[[], None],
        hard_limit: int,
    ) -> None:
        self.name = name
        self.log = log
        self.pending = PendingIndex()
        self.ledger = Ledger(self.pending)
        self.state = FollowerState.CONNECTING
        self.reason: str | None = None  # of the state, in words
        self.sent = log.offset  # the last record that was looked at
        self.window: deque[Record | _Repair | None] = deque()  # sent and not answered; None is a ping
        self.owed_bytes = 0  # size of all records accepted for it and neither applied nor dropped
        self.over_soft_since: float | None = None
        self.acknowledged_at = clock()  # when the server answered last
        self.partial_resyncs = 0
        self.clock_offset = 0.0
        self._clock = clock
        self._schedule = schedule
        self._changed = changed
        self._hard_limit = hard_limit
        self._carrier: Carrier | None = None
        self._scheduled = False
        self._repairs = 0  # in the window
        self._goal = 0  # the offset to acknowledge before it counts as streaming

    # -- where it is

    @property
    def applied_offset(self) -> int:
        """Up to here its server has everything that it owns."""
        first = self._first_unfinished()
        return self.log.offset if first is None else first.offset - 1

    def lag(self, now: float) -> float:
        """How long the oldest record that it lacks has been accepted, in seconds; 0 where it lacks none."""
        first = self._first_unfinished()
        return 0.0 if first is None else max(0.0, now - first.at)

    def _first_unfinished(self) -> Record | None:
        if not self.pending.logged:
            return None
        first: Record | None = None
        for entry in self.window:
            if type(entry) is Record:
                first = entry
                break  # the records of the window are in order
        if self._repairs:
            for entry in self.window:
                if isinstance(entry, _Repair) and (first is None or entry.record.offset < first.offset):
                    first = entry.record
        if first is not None:
            return first
        return next((record for record in self._unsent() if self in record.owners), None)

    def _unsent(self) -> list[Record]:
        return self.log.after(self.sent, len(self.log))

    # -- accepting

    def accept(self, record: Record) -> None:
        """A record of this server's was appended; its mark is counted as logged by the caller."""
        self.ledger.accepted += 1
        if self.state is FollowerState.NEEDS_FULL_RESYNC:
            self._drop(record, Dropped.NEEDS_RESYNC)
            return
        self.owed_bytes += record.size
        if self.owed_bytes > self._hard_limit and self._carrier is not None:
            self.need_resync("it is further behind than replica_buffer_limit.hard")
        elif not self._scheduled:
            self._ship_soon()

    # -- the connection

    def connected(self, carrier: Carrier, clock_offset: float) -> None:
        """Goes on over a new connection to the same process, which nothing of the old one can reach any more."""
        if self.state is FollowerState.NEEDS_FULL_RESYNC:
            return
        if self.state is FollowerState.DISCONNECTED:
            self.partial_resyncs += 1
        self._carrier = carrier
        self.clock_offset = clock_offset
        self.acknowledged_at = self._clock()
        if not self.pending.logged:
            self.sent = self.log.offset
        again = [entry for entry in self.window if entry is not None]
        self.window.clear()
        self._goal = self.log.offset
        self._enter(FollowerState.CATCHING_UP, None)
        now = self._clock()
        for entry in sorted(again, key=lambda entry: type(entry) is Record):  # repairs first, else as it was
            self._send(entry, now)
        self.ship()

    def disconnected(self, reason: str) -> None:
        """The connection is gone; `window` is kept to be sent again."""
        self._carrier = None
        if self.state in CONNECTED or self.state is FollowerState.CONNECTING:
            self._enter(FollowerState.DISCONNECTED, reason)

    def need_resync(self, reason: str) -> None:
        """Gives up: nothing that it lacks will be applied. Its server serves no reads from here on."""
        if self.state is FollowerState.NEEDS_FULL_RESYNC:
            return
        unfinished = [entry.record if isinstance(entry, _Repair) else entry for entry in self.window]
        lacking = [record for record in unfinished if record is not None]
        lacking += [record for record in self._unsent() if self in record.owners]
        self.window.clear()
        self._repairs = 0
        carrier, self._carrier = self._carrier, None
        self._enter(FollowerState.NEEDS_FULL_RESYNC, reason)
        for record in lacking:
            self._drop(record, Dropped.NEEDS_RESYNC)
        self.owed_bytes = 0
        if carrier is not None:
            carrier.fail("the follower needs a full resync")

    def ping(self, request: Request) -> None:
        """Asks a server that owes nothing, so that its silence is noticed."""
        if self._carrier is not None and not self.window:
            self.window.append(None)
            self._carrier.send(request, self)

    def _enter(self, state: FollowerState, reason: str | None) -> None:
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"{self.name}: {self.state.value} cannot become {state.value}")
        self.state = state
        self.reason = reason
        self._changed()

    def cutting(self, upto: int) -> None:
        """The log is about to drop its records up to this offset, which no connected follower lacks."""
        if self.state is FollowerState.NEEDS_FULL_RESYNC:
            return
        first = self._first_unfinished()
        if first is not None and first.offset <= upto:
            self.need_resync("what it lacks has left the backlog")
        elif self.sent < upto:
            self.sent = Offset(upto)  # all of them were others'

    # -- shipping

    def ship(self) -> None:
        """Sends what was appended since, as far as the connection takes it."""
        self._scheduled = False
        carrier = self._carrier
        if carrier is None:
            return
        window = self.window
        room = min(self.shipment_records, self.window_records - len(window))
        left = SHIPMENT_BYTES
        now = self._clock()
        for record in self.log.after(self.sent, SHIPMENT_RECORDS):
            if room <= 0 or left <= 0 or carrier.full:
                break
            self.sent = record.offset
            if self in record.owners:
                window.append(record)
                carrier.send(record.request(now, self.clock_offset), self)
                room -= 1
                left -= record.size
        # With a full window an acknowledgement goes on, with a full connection its `drained`.
        if self.sent < self.log.offset and len(window) < self.window_records and not carrier.full:
            self._ship_soon()
        if self.state is FollowerState.CATCHING_UP:
            self._look_whether_caught_up()

    def _ship_soon(self) -> None:
        if not self._scheduled and self._carrier is not None:
            self._scheduled = True
            self._schedule(self.ship)

    def _send(self, entry: Record | _Repair, now: float) -> None:
        assert self._carrier is not None
        self.window.append(entry)
        if isinstance(entry, _Repair):
            self._carrier.send(encoder.delete(entry.record.key), self)
        else:
            self._carrier.send(entry.request(now, self.clock_offset), self)

    def answered(self, reply: Reply) -> None:
        entry = self.window.popleft()
        self.acknowledged_at = self._clock()
        if type(entry) is Record:
            if reply.code in _APPLIED:
                self.ledger.applied += 1
                self._finish(entry)
                if entry.sync is not None:
                    entry.sync.applied()
            elif entry.kind is RecordKind.FLUSH:
                self.window.appendleft(entry)
                self.need_resync(f"it refused a flush: {reply.line.decode(errors='replace')}")
                return
            else:
                self._repairs += 1
                self._send(_Repair(entry), self._clock())
        elif isinstance(entry, _Repair):
            if reply.code in _APPLIED:
                self._repairs -= 1
                self._drop(entry.record, Dropped.REFUSED)
                self.owed_bytes -= entry.record.size
            else:
                self.window.appendleft(entry)
                assert self._carrier is not None
                self._carrier.fail(f"it refused a delete: {reply.line.decode(errors='replace')}")
                return
        if self.sent < self.log.offset and len(self.window) == self.window_records // 2:
            self._ship_soon()
        if self.state is FollowerState.CATCHING_UP:
            self._look_whether_caught_up()

    def lost(self, reason: str) -> None:
        """Nothing to do for each record: `disconnected` was called, and `window` still has it."""

    def _look_whether_caught_up(self) -> None:
        if self._carrier is not None and (not self.pending.logged or self.applied_offset >= self._goal):
            self._enter(FollowerState.STREAMING, None)

    def _finish(self, record: Record) -> None:
        self.owed_bytes -= record.size
        if record.kind is RecordKind.FLUSH:
            self.pending.finish_flush()
            self._changed()
        else:
            self.pending.finish(record.key)

    def _drop(self, record: Record, why: Dropped) -> None:
        self.ledger.dropped[why] += 1
        if record.kind is RecordKind.FLUSH:
            self.pending.finish_flush()
            self._changed()
        else:
            self.pending.finish(record.key)
        if record.sync is not None:
            record.sync.failed(why.value)
