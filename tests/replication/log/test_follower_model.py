"""Whatever is interleaved, a readable key is never stale, the ledger adds up, and the replica ends as the primary is.

The model has a primary (a dictionary behind one pipelined connection), two replica servers of which each owns some
keys, and everything that can happen between: answers late or lost (carried out or not), keys read again, connections
cut with any part of what was sent carried out, refused stores, a small backlog.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.protocol.memcached.reply import Code, Reply
from gateway.protocol.memcached.request import Request
from gateway.replication.log.backlog import Backlog
from gateway.replication.log.doubtful import DoubtfulKeys
from gateway.replication.log.follower import CONNECTED, TRANSITIONS, Follower, FollowerState
from gateway.replication.log.ledger import Dropped
from gateway.replication.log.record import Offset, Record, RecordKind

KEYS = [b"a", b"b", b"c", b"d"]
STREAMING = FollowerState.STREAMING


class FakeCarrier:
    """A connection of a follower: requests wait in it until they are delivered."""

    def __init__(self, server: ReplicaModel) -> None:
        self.server = server
        self.queue: deque[Request] = deque()
        self.alive = True

    @property
    def full(self) -> bool:
        return len(self.queue) >= 3

    def send(self, request: Request, waiter: Follower) -> None:
        assert self.alive
        self.queue.append(request)

    def fail(self, reason: str) -> None:
        self.alive = False
        self.server.carrier = None
        self.server.follower.disconnected(reason)


class ReplicaModel:
    """A replica server: its data, and the connection of its follower."""

    def __init__(self, log: Backlog) -> None:
        self.due: deque[Callable[[], None]] = deque()
        self.items: dict[bytes, bytes] = {}
        self.refuse = 0  # so many of the next stores
        self.carrier: FakeCarrier | None = None
        self.follower = Follower(
            "replica",
            log,
            clock=lambda: 100.0,
            schedule=self.due.append,
            changed=lambda: None,
            hard_limit=1 << 30,
        )
        self.follower.shipment_records = 2
        self.follower.window_records = 4

    def ship(self) -> None:
        """What the end of the lane's batches does."""
        while self.due:
            self.due.popleft()()

    def carry_out(self, request: Request) -> Reply:
        if request.verb == b"set":
            if self.refuse:
                self.refuse -= 1
                self.items.pop(request.key, None)
                return Reply(Code.SERVER_ERROR, b"SERVER_ERROR out of memory storing object\r\n")
            self.items[request.key] = request.value
            return Reply(Code.STORED, b"STORED\r\n")
        if request.verb == b"delete":
            found = self.items.pop(request.key, None) is not None
            return Reply(Code.DELETED, b"DELETED\r\n") if found else Reply(Code.NOT_FOUND, b"NOT_FOUND\r\n")
        if request.verb == b"flush_all":
            self.items.clear()
            return Reply(Code.OK, b"OK\r\n")
        raise AssertionError(request)

    def readable(self, key: bytes) -> bool:
        pending = self.follower.pending
        return self.follower.state is STREAMING and not pending.flushes and key not in pending.counts


@dataclass
class PrimaryWrite:
    """A write on its way: None deletes."""

    key: bytes
    value: bytes | None
    owners: tuple[Follower, ...] = field(default_factory=tuple)


class LogMachine(RuleBasedStateMachine):
    budget = 1 << 30

    def __init__(self) -> None:
        super().__init__()
        self.log = Backlog(self.budget, self.held, self.cutting)
        self.replicas = [ReplicaModel(self.log), ReplicaModel(self.log)]
        self.primary: dict[bytes, bytes] = {}
        self.on_the_way: deque[PrimaryWrite] = deque()
        self.doubtful = DoubtfulKeys()
        self.counter = 0

    def held(self) -> int:
        followers = [replica.follower for replica in self.replicas]
        offsets = [follower.applied_offset for follower in followers if follower.state in CONNECTED]
        return min(offsets, default=self.log.offset)

    def cutting(self, upto: int) -> None:
        for replica in self.replicas:
            replica.follower.cutting(upto)

    def owner(self, key: bytes) -> ReplicaModel:
        return self.replicas[KEYS.index(key) % 2]

    def append(self, record: Record) -> None:
        self.log.append(record)
        for owner in record.owners:
            owner.pending.log()
            owner.accept(record)

    def record(self, key: bytes, owners: tuple[Follower, ...]) -> Record:
        value = self.primary.get(key)
        if value is None:
            return Record(RecordKind.DELETE, key, 99.0, owners, size=10)
        return Record(RecordKind.STORE, key, 99.0, owners, value=value, deadline=float("inf"), size=10)

    # -- the primary

    @rule(key=st.sampled_from(KEYS), delete=st.booleans())
    def dispatch(self, key: bytes, delete: bool) -> None:
        self.counter += 1
        owners = (self.owner(key).follower,)
        owners[0].pending.dispatch(key)
        self.on_the_way.append(PrimaryWrite(key, None if delete else b"%d" % self.counter, owners))

    @precondition(lambda self: self.on_the_way)
    @rule(nothing=st.booleans())
    def answer(self, nothing: bool) -> None:
        write = self.on_the_way.popleft()
        if nothing:  # as an add that found the key
            write.owners[0].pending.settle(write.key)
            return
        self.carry_out(write)
        self.append(self.record(write.key, write.owners))

    def carry_out(self, write: PrimaryWrite) -> None:
        if write.value is None:
            self.primary.pop(write.key, None)
        else:
            self.primary[write.key] = write.value

    @precondition(lambda self: self.on_the_way)
    @rule(carried_out=st.integers(0, 3))
    def lose_primary(self, carried_out: int) -> None:
        """The connection is lost: some of its writes are carried out, all before another connection is used."""
        for write in list(self.on_the_way)[:carried_out]:
            self.carry_out(write)
        for write in self.on_the_way:
            self.doubtful.add(write.key, write.owners)
        self.on_the_way.clear()

    @precondition(lambda self: len(self.doubtful) > 0)
    @rule()
    def read_again(self) -> None:
        for key in self.doubtful.keys_now():
            if any(write.key == key for write in self.on_the_way):
                continue  # the answers before it come first
            owners = self.doubtful.resolve(key)
            for owner in owners:
                owner.pending.dispatch_doubtful()
            self.append(self.record(key, owners))

    @precondition(lambda self: not self.on_the_way)
    @rule()
    def flush(self) -> None:
        self.primary.clear()
        followers = tuple(replica.follower for replica in self.replicas)
        for follower in followers:
            follower.pending.flushes += 1
        record = Record(RecordKind.FLUSH, b"", 99.0, followers, size=10)
        self.log.append(record)
        for follower in followers:
            follower.pending.log_flush()
            follower.accept(record)

    # -- the replicas

    @rule(which=st.integers(0, 1))
    def connect(self, which: int) -> None:
        replica = self.replicas[which]
        if replica.carrier is None and replica.follower.state is not FollowerState.NEEDS_FULL_RESYNC:
            replica.carrier = FakeCarrier(replica)
            replica.follower.connected(replica.carrier, 0.0)

    @rule(which=st.integers(0, 1), count=st.integers(1, 6))
    def deliver(self, which: int, count: int) -> None:
        replica = self.replicas[which]
        for _ in range(count):
            carrier = replica.carrier
            if carrier is None or not carrier.queue:
                break
            was_full = carrier.full
            replica.follower.answered(replica.carry_out(carrier.queue.popleft()))
            if was_full and not carrier.full and replica.carrier is carrier:
                replica.follower.ship()  # the connection is drained
        replica.ship()

    @rule(which=st.integers(0, 1), carried_out=st.integers(0, 5))
    def cut(self, which: int, carried_out: int) -> None:
        replica = self.replicas[which]
        carrier = replica.carrier
        if carrier is not None:
            for request in list(carrier.queue)[:carried_out]:
                replica.carry_out(request)  # the answer is lost
            carrier.fail("cut")

    @rule(which=st.integers(0, 1), count=st.integers(1, 2))
    def refuse(self, which: int, count: int) -> None:
        self.replicas[which].refuse = count

    @rule(key=st.sampled_from(KEYS))
    def evict(self, key: bytes) -> None:
        self.owner(key).items.pop(key, None)

    # -- what must hold

    @invariant()
    def no_readable_key_is_stale(self) -> None:
        for key in KEYS:
            replica = self.owner(key)
            if replica.readable(key) and key in replica.items:
                assert replica.items[key] == self.primary.get(key)

    @invariant()
    def account_is_right(self) -> None:
        for replica in self.replicas:
            follower = replica.follower
            pending = follower.pending
            assert follower.ledger.balance == 0
            # flushes are logged, and hold no mark
            assert pending.marks == pending.dispatched + pending.doubtful + pending.logged - pending.flushes
            assert follower.owed_bytes >= 0
            assert (follower.owed_bytes == 0) == (not pending.logged)

    def teardown(self) -> None:
        """All is healed: the replicas become what the primary is."""
        while self.on_the_way:
            self.answer(False)
        if len(self.doubtful):
            self.read_again()
        for which, replica in enumerate(self.replicas):
            replica.refuse = 0
            self.connect(which)
            replica.ship()
            while replica.carrier is not None and replica.carrier.queue:
                self.deliver(which, 100)
            follower = replica.follower
            if follower.state is FollowerState.NEEDS_FULL_RESYNC:
                assert follower.ledger.dropped[Dropped.NEEDS_RESYNC] or not follower.ledger.accepted
                continue
            assert follower.state is STREAMING
            assert follower.pending.counts == {}
            assert follower.applied_offset == self.log.offset
            assert follower.pending.flushes == 0
        for key in KEYS:
            replica = self.owner(key)
            if replica.follower.state is STREAMING and key in replica.items:
                assert replica.items[key] == self.primary.get(key)


class SmallBacklogMachine(LogMachine):
    """Followers that stay away are cut off."""

    budget = 60


TestLog = LogMachine.TestCase
TestLog.settings = settings(max_examples=120, stateful_step_count=60)
TestSmallBacklog = SmallBacklogMachine.TestCase
TestSmallBacklog.settings = settings(max_examples=120, stateful_step_count=60)


def test_refused_record_is_not_sent_again_over_a_newer_one() -> None:
    log = Backlog(1 << 20, lambda: 0, lambda upto: None)
    replica = ReplicaModel(log)
    follower = replica.follower

    def write(value: bytes) -> None:
        follower.pending.dispatch(b"k")
        record = Record(RecordKind.STORE, b"k", 99.0, (follower,), value=value, deadline=float("inf"), size=10)
        log.append(record)
        follower.pending.log()
        follower.accept(record)

    def deliver() -> None:
        assert replica.carrier is not None
        follower.answered(replica.carry_out(replica.carrier.queue.popleft()))

    def connect() -> FakeCarrier:
        replica.carrier = FakeCarrier(replica)
        follower.connected(replica.carrier, 0.0)
        return replica.carrier

    carrier = connect()
    write(b"old")
    write(b"new")
    replica.ship()
    replica.refuse = 1
    deliver()  # the old one is refused: a delete is behind the new one
    deliver()
    assert replica.items == {b"k": b"new"}
    assert follower.applied_offset == 0
    carrier.fail("cut before the delete")
    assert [request.raw for request in connect().queue] == [b"delete k\r\n"]
    assert not replica.readable(b"k")
    deliver()
    assert follower.state is STREAMING
    assert follower.pending.counts == {}
    assert replica.items == {}
    assert follower.ledger.status() == {
        "accepted": 2,
        "applied": 1,
        "superseded": 0,
        "covered_by_snapshot": 0,
        "pending": 0,
        "dropped": {"refused by the replica, its key deleted there": 1},
        "balance": 0,
    }


def test_every_state_has_its_transitions() -> None:
    assert set(TRANSITIONS) == set(FollowerState)
    for states in TRANSITIONS.values():
        assert states <= set(FollowerState)
    assert not TRANSITIONS[FollowerState.NEEDS_FULL_RESYNC]


def test_a_transition_that_is_not_in_the_table_is_an_error() -> None:
    replica = ReplicaModel(Backlog(1000, lambda: 0, lambda upto: None))
    replica.carrier = FakeCarrier(replica)
    replica.follower.connected(replica.carrier, 0.0)
    with pytest.raises(RuntimeError, match="streaming cannot become catching-up"):
        replica.follower.connected(replica.carrier, 0.0)


def test_offsets_are_numbered_from_one() -> None:
    log = Backlog(1000, lambda: 0, lambda upto: None)
    records = [Record(RecordKind.DELETE, b"k", 0.0, (), size=1) for _ in range(3)]
    for record in records:
        log.append(record)
    assert [record.offset for record in records] == [Offset(1), Offset(2), Offset(3)]
    assert log.after(1, 10) == records[1:]
    assert str(log.position) == f"{log.run_id}:3"
