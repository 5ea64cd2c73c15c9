"""Lag from positions, against a naive model; and which replicas serve which read."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.replication.freshness import (
    Cause,
    LagClock,
    MemberView,
    Observation,
    ReplicationState,
    Role,
    Snapshot,
    replica_fault,
    replicas_for,
)
from gateway.replication.position import LogPosition, MariadbGtidPosition, MysqlGtidSet

UUID = "3e11fa47-71ca-11e1-9e33-c80aa9429562"


def at(seq: int) -> MariadbGtidPosition:
    return MariadbGtidPosition.parse(f"0-1-{seq}")


# ---------------------------------------------------------------- the clock


def test_lag_is_the_age_of_the_newest_sample_that_is_covered() -> None:
    clock = LagClock()
    assert clock.lag(at(1), 0.0) is None
    for time, seq in [(10.0, 100), (11.0, 110), (12.0, 120)]:
        clock.sample(time, at(seq))
    assert clock.lag(at(120), 12.5) == 0.5
    assert clock.lag(at(119), 12.5) == 1.5
    assert clock.lag(at(500), 12.5) == 0.5
    assert clock.lag(at(100), 12.5) == 2.5
    assert clock.lag(at(99), 12.5) is None


def test_an_idle_primary_makes_nobody_late() -> None:
    clock = LagClock()
    for tick in range(10_000):
        clock.sample(tick * 0.1, at(7))
    assert clock.lag(at(7), 1000.0) == pytest.approx(0.1)
    assert len(clock) == 1


def test_the_clock_stands_still_while_the_primary_is_silent() -> None:
    clock = LagClock()
    clock.sample(10.0, at(100))
    clock.sample(11.0, at(110))
    assert clock.frozen_at is None
    clock.freeze()
    assert clock.frozen_at == 11.0
    assert clock.lag(at(100), 5000.0) == 1.0
    assert clock.lag(at(110), 5000.0) == 0.0
    clock.sample(60.0, at(120))
    assert clock.frozen_at is None
    assert clock.lag(at(110), 61.0) == 50.0


def test_another_history_forgets_the_samples_before() -> None:
    clock = LagClock()
    clock.sample(10.0, MysqlGtidSet.parse(f"{UUID}:1-100"))
    clock.sample(11.0, MysqlGtidSet.parse(f"{UUID}:1-90"))
    assert clock.lag(MysqlGtidSet.parse(f"{UUID}:1-95"), 12.0) == 1.0
    assert clock.newest == MysqlGtidSet.parse(f"{UUID}:1-90")
    clock.reset()
    assert clock.newest is None


def test_an_answer_that_comes_late_changes_nothing() -> None:
    clock = LagClock()
    clock.sample(10.0, at(100))
    clock.sample(9.0, at(90))
    assert clock.lag(at(100), 10.0) == 0.0


steps = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=60)


@given(steps, st.integers(0, 200), st.integers(4, 12))
def test_lag_equals_the_naive_model_and_thinning_only_overestimates(
    moves: list[tuple[int, int]], applied: int, capacity: int
) -> None:
    whole, thinned = LagClock(), LagClock(capacity)
    time, offset = 0.0, 1
    samples: list[tuple[float, int]] = []
    for wait, writes in moves:
        time, offset = time + wait, offset + writes
        samples.append((time, offset))
        whole.sample(time, LogPosition("run", offset))
        thinned.sample(time, LogPosition("run", offset))
    covered = [sent for sent, reached in samples if reached <= applied]
    expected = time + 1 - covered[-1] if covered else None
    position = LogPosition("run", applied)
    assert whole.lag(position, time + 1) == expected
    assert len(thinned) <= capacity
    coarse = thinned.lag(position, time + 1)
    assert expected is not None or coarse is None
    assert expected is None or coarse is None or coarse >= expected
    assert applied < offset or coarse == expected, "who has everything is never late"


def test_thinning_keeps_recent_lags_exact_for_any_length_of_history() -> None:
    clock = LagClock(capacity=64)
    for tick in range(100_000):
        clock.sample(float(tick), LogPosition("run", tick))
    for behind in range(30):
        assert clock.lag(LogPosition("run", 99_999 - behind), 99_999.0) == behind
    lag = clock.lag(LogPosition("run", 50_000), 99_999.0)
    assert lag is None or lag >= 49_999


# ---------------------------------------------------------------- observations

RUNNING = ReplicationState(io_running="Yes", sql_running="Yes", source="127.0.0.1:3306")
SEEN = Observation("r1", 1.0, at(5), True, False, RUNNING, 2, "", "10.11.6-MariaDB", 0.0)


def test_who_is_writable_and_who_replicates() -> None:
    assert not SEEN.is_writable
    assert not replace(SEEN, read_only=False, super_read_only=True).is_writable
    assert replace(SEEN, read_only=False).is_writable
    assert SEEN.replication_running
    assert replica_fault(SEEN) is None


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (None, "does not replicate from anybody"),
        (replace(RUNNING, sql_running="No", sql_error="Duplicate entry"), "replication is stopped: Duplicate entry"),
        (replace(RUNNING, sql_running="No"), "replication is stopped: its applier thread does not run"),
        (replace(RUNNING, io_running="Connecting"), "replication is not connected to 127.0.0.1:3306: Connecting"),
        (replace(RUNNING, filters="Replicate_Do_DB=a"), "replication is filtered (Replicate_Do_DB=a)"),
    ],
)
def test_a_replica_that_cannot_be_trusted_says_why(state: ReplicationState | None, words: str) -> None:
    fault = replica_fault(replace(SEEN, replication=state))
    assert fault is not None
    assert fault.startswith(words)


# ---------------------------------------------------------------- candidates

PRIMARY = MemberView("p", Role.PRIMARY, position=at(120), observed_at=12.0, current_as_of=12.0)


def replica(name: str, seq: int, as_of: float | None, **more: object) -> MemberView:
    return MemberView(name, Role.REPLICA, None, at(seq), 12.0, as_of, **more)  # type: ignore[arg-type]


def snapshot(*replicas: MemberView, frozen_at: float | None = None) -> Snapshot:
    return Snapshot("orders", 1, 12.0, (PRIMARY, *replicas), frozen_at)


def names(members: tuple[MemberView, ...]) -> list[str]:
    return [member.name for member in members]


def test_replicas_within_lag_that_cover_the_token_are_ready() -> None:
    group = snapshot(replica("a", 120, 12.0), replica("b", 110, 11.5), replica("c", 100, 10.0))
    found = replicas_for(group, at(115), 1.0, 12.2)
    assert names(found.ready) == ["a"]
    assert names(found.waitable) == ["b"]
    assert [(each.member.name, each.cause) for each in found.rejected] == [("b", Cause.BEHIND_TOKEN), ("c", Cause.LATE)]
    assert found.rejected[1].reason == "c is 2.200 s behind, 1 s are allowed"
    assert names(replicas_for(group, None, 1.0, 12.2).ready) == ["a", "b"]
    assert names(replicas_for(group, None, 5.0, 12.2).ready) == ["a", "b", "c"]


def test_a_member_that_is_no_longer_observed_becomes_late_by_itself() -> None:
    group = snapshot(replica("a", 120, 12.0))
    assert names(replicas_for(group, None, 1.0, 13.0).ready) == ["a"]
    assert names(replicas_for(group, None, 1.0, 13.1).ready) == []


def test_lag_is_frozen_while_the_primary_is_silent() -> None:
    group = snapshot(replica("a", 120, 12.0), replica("b", 90, 9.0), frozen_at=12.0)
    found = replicas_for(group, None, 1.0, 500.0)
    assert names(found.ready) == ["a"]
    assert found.rejected[0].reason == "b is 3.000 s behind, 1 s are allowed"
    assert group.lag(group.by_name["b"], 500.0) == 3.0


def test_backups_serve_only_when_the_others_cannot() -> None:
    backup = replica("z", 120, 12.0, backup=True)
    found = replicas_for(snapshot(backup, replica("a", 120, 12.0)), None, 1.0, 12.0)
    assert names(found.ready) == ["a"]
    assert found.rejected[0].reason == "z is a backup, and others can serve"
    found = replicas_for(snapshot(backup, replica("a", 100, 5.0)), None, 1.0, 12.0)
    assert names(found.ready) == ["z"]
    two = replicas_for(snapshot(backup, replica("y", 120, 12.0, backup=True)), None, 1.0, 12.0)
    assert names(two.ready) == ["z", "y"]


def test_what_serves_nothing_says_why() -> None:
    group = snapshot(
        replace(replica("a", 120, 12.0), fault="does not answer"),
        replica("b", 120, 12.0, weight=0),
        MemberView("c", Role.REPLICA),
        replica("d", 1, None),
    )
    found = replicas_for(group, None, 1.0, 12.0)
    assert found.ready == ()
    assert [each.reason for each in found.rejected] == [
        "a does not answer",
        "b has weight 0",
        "c has not been observed yet",
        "d is longer than is known behind, 1 s are allowed",
    ]
    assert [member.healthy for member in group.replicas] == [False, True, True, True]


def test_a_snapshot_knows_its_primary_and_its_replicas_in_order() -> None:
    group = snapshot(replica("z", 1, 1.0, backup=True), replica("a", 1, 1.0))
    assert group.primary is PRIMARY
    assert names(group.replicas) == ["a", "z"]
    assert Snapshot("g", 1, 0.0, ()).primary is None
    assert group.lag(MemberView("c", Role.REPLICA), 1.0) is None
