"""Records become requests, the backlog keeps its budget, synchronous answers come once, statistics add up."""

from __future__ import annotations

import math

import pytest

from gateway.replication.log.backlog import Backlog
from gateway.replication.log.follower import Follower
from gateway.replication.log.pending import PendingIndex
from gateway.replication.log.record import Record, RecordKind
from gateway.replication.log.synchronous import SyncWait, SyncWaits

NOW = 1000.0
SERVER_CLOCK = 1_800_000_000.0 - NOW  # its Unix time minus ours


def store(deadline: float, raw: bytes = b"") -> Record:
    return Record(RecordKind.STORE, b"k", NOW, (), raw, b"value", 7, deadline)


@pytest.mark.parametrize(
    ("record", "request_bytes"),
    [
        (store(math.inf, b"set k 7 0 5\r\nvalue\r\n"), b"set k 7 0 5\r\nvalue\r\n"),
        (store(math.inf), b"set k 7 0 5\r\nvalue\r\n"),
        (store(NOW + 60), b"set k 7 60 5\r\nvalue\r\n"),
        (store(NOW + 60.9), b"set k 7 60 5\r\nvalue\r\n"),
        (store(NOW + 0.5), b"delete k\r\n"),
        (store(NOW - 5), b"delete k\r\n"),
        (store(-math.inf), b"delete k\r\n"),
        (store(NOW + 86400 * 40), b"set k 7 %d 5\r\nvalue\r\n" % (1_800_000_000 + 86400 * 40)),
        (Record(RecordKind.DELETE, b"k", NOW, ()), b"delete k\r\n"),
        (Record(RecordKind.TOUCH, b"k", NOW, (), deadline=NOW + 10), b"touch k 10\r\n"),
        (Record(RecordKind.TOUCH, b"k", NOW, (), deadline=math.inf), b"touch k 0\r\n"),
        (Record(RecordKind.TOUCH, b"k", NOW, (), deadline=NOW - 1), b"delete k\r\n"),
        (Record(RecordKind.FLUSH, b"", NOW, ()), b"flush_all\r\n"),
    ],
)
def test_record_becomes_the_request_that_repeats_its_effect(record: Record, request_bytes: bytes) -> None:
    assert record.request(NOW, SERVER_CLOCK).raw == request_bytes


def test_what_waits_to_be_shipped_gets_less_time_to_live() -> None:
    assert store(NOW + 60).request(NOW + 20, SERVER_CLOCK).exptime == 40


def sized(size: int) -> Record:
    return Record(RecordKind.DELETE, b"k", NOW, (), size=size)


def test_backlog_keeps_its_budget_and_cuts_in_large_steps() -> None:
    cuts: list[int] = []
    log = Backlog(1600, lambda: log.offset, cuts.append)
    for _ in range(1000):
        log.append(sized(10))
    assert log.byte_count == sum(record.size for record in log.after(log.first - 1, 1000)) <= 1610
    assert log.byte_count >= 1490
    assert log.first + len(log) == log.offset + 1
    assert cuts == sorted(cuts)
    assert len(cuts) < 1000 / 8
    with pytest.raises(LookupError):
        log.after(log.first - 2, 1)


def test_connected_follower_holds_the_backlog() -> None:
    held = 3
    log = Backlog(100, lambda: held, lambda upto: None)
    for _ in range(200):
        log.append(sized(10))
    assert log.first == 4
    assert len(log) == 197
    held = 200
    for _ in range(20):
        log.append(sized(10))
    assert log.first == 201  # what it still holds is over the budget by itself


def test_new_timeline_keeps_the_offset_and_nothing_else() -> None:
    log = Backlog(100, lambda: 0, lambda upto: None)
    log.append(sized(10))
    before = log.position
    log.begin_timeline()
    assert log.offset == 1
    assert len(log) == 0
    assert not log.position.covers(before)
    assert len(log.run_id) == 40


def follower(log: Backlog, hard_limit: int = 1000) -> Follower:
    return Follower(
        "f",
        log,
        clock=lambda: NOW,
        schedule=lambda ship: None,
        changed=lambda: None,
        hard_limit=hard_limit,
    )


def test_lag_is_the_age_of_the_oldest_record_that_is_lacking() -> None:
    log = Backlog(10_000, lambda: 0, lambda upto: None)
    one, other = follower(log), follower(log)
    for at, owner in ((NOW - 5, other), (NOW - 3, one), (NOW - 1, one)):
        owner.pending.dispatch(b"k")
        record = Record(RecordKind.DELETE, b"k", at, (owner,))
        log.append(record)
        owner.pending.log()
        owner.accept(record)
    assert one.lag(NOW) == 3.0
    assert other.lag(NOW) == 5.0
    assert (one.applied_offset, other.applied_offset) == (1, 0)


def test_synchronous_answer_comes_once() -> None:
    ends: list[str | None] = []
    waits = SyncWaits()
    first, second, third = (SyncWait(2, NOW + number, ends.append) for number in (1, 2, 3))
    for wait in (first, second, third):
        waits.add(wait)
    second.applied()
    second.applied()
    assert ends == [None]
    waits.expire(NOW + 1)
    first.applied()
    first.applied()
    assert ends == [None, "it was not applied within sync_timeout"]
    third.failed("cut off")
    waits.expire(NOW + 9)
    assert ends == [None, "it was not applied within sync_timeout", "cut off"]
    assert len(waits) == 0
    assert waits.timed_out == 1


def test_marks_of_one_key_are_counted() -> None:
    index = PendingIndex()
    index.dispatch(b"k")
    index.dispatch(b"k")
    index.settle(b"k")
    assert index.counts == {b"k": 1}
    index.doubt(b"k")
    assert (index.dispatched, index.doubtful, index.logged) == (0, 1, 0)
    index.dispatch_doubtful()
    index.log()
    assert index.marks == index.logged == 1
    index.finish(b"k")
    assert index.counts == {}
