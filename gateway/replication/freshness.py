"""Which members are fresh enough for a read: lag in time from positions, and the choice of members that cover a token.

Lag needs no clock on the servers and no heartbeat writes. `LagClock` keeps recent (time, primary position) samples;
a replica is as current as the newest sample that its applied position covers, and its lag is the age of that sample.
Samples carry the time when the primary was asked, because its answer holds at least everything up to then; so lag is
never underestimated. A member that is no longer observed grows older all by itself.

When the primary stops answering there are no new samples and everybody's lag would grow. The clock is frozen then: lag
stays what it was at the last sample, and who reads can see that it is frozen (SQL.md, Failure).

All times are seconds on one monotonic clock (trio.current_time()). Nothing here does IO.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from gateway.replication.position import Position

# At the default check_interval of 100 ms this is 100 s of a primary that is written to all the time; beyond that
# samples are thinned, so that the horizon has no end and only old lags get coarser (and never smaller than they are).
LAG_SAMPLES = 1024


class LagClock:
    """When the primary was where: bounded samples of its position, each one covering the one before."""

    __slots__ = ("_capacity", "_frozen_at", "_positions", "_times")

    def __init__(self, capacity: int = LAG_SAMPLES) -> None:
        """`capacity`: how many samples are kept, at least 4."""
        self._capacity = max(capacity, 4)
        self._times: list[float] = []
        self._positions: list[Position] = []
        self._frozen_at: float | None = None

    def __len__(self) -> int:
        return len(self._times)

    @property
    def frozen_at(self) -> float | None:
        """The time of the last sample, while the primary does not answer; None while it does."""
        return self._frozen_at

    @property
    def newest(self) -> Position | None:
        """The primary's position as it was last seen."""
        return self._positions[-1] if self._positions else None

    def sample(self, sent_at: float, position: Position) -> None:
        """The primary answered `position` to a question that was sent at `sent_at`. Thaws a frozen clock.

        A position that does not cover the one before is another history: what was sampled before says nothing about it
        and is forgotten. An answer that arrives after the answer to a later question is ignored.
        """
        if self._times and sent_at < self._times[-1]:
            return
        self._frozen_at = None
        if self._positions:
            before = self._positions[-1]
            if position == before:
                # Nothing was written: whoever has this position is current up to the later time.
                self._times[-1] = sent_at
                return
            if not position.covers(before):
                self.reset()
        self._times.append(sent_at)
        self._positions.append(position)
        if len(self._times) > self._capacity:
            self._thin()

    def freeze(self) -> None:
        """The primary stopped answering: from now on time stands still at the last sample, until the next one."""
        if self._frozen_at is None and self._times:
            self._frozen_at = self._times[-1]

    def reset(self) -> None:
        """Forget everything: another server is primary, and positions before say nothing about its history."""
        self._times.clear()
        self._positions.clear()
        self._frozen_at = None

    def current_as_of(self, applied: Position) -> float | None:
        """The latest known time of which `applied` contains every write; None if it contains no sample."""
        positions = self._positions
        if not positions:
            return None
        if applied.covers(positions[-1]):
            return self._times[-1]
        # Samples grow, so those that are covered are a prefix; find its end.
        low, high = 0, len(positions) - 1
        while low < high:
            middle = (low + high) // 2
            if applied.covers(positions[middle]):
                low = middle + 1
            else:
                high = middle
        return self._times[low - 1] if low else None

    def lag(self, applied: Position, now: float) -> float | None:
        """Age in seconds of the newest sample that `applied` covers; None if it is further behind than is known."""
        as_of = self.current_as_of(applied)
        if as_of is None:
            return None
        return (now if self._frozen_at is None else self._frozen_at) - as_of

    def _thin(self) -> None:
        """Drop every second sample of the older half, never its newest. Gaps make lag larger, not smaller."""
        half = len(self._times) // 2
        self._times[:half] = self._times[(half + 1) % 2 : half : 2]
        self._positions[:half] = self._positions[(half + 1) % 2 : half : 2]


# ---------------------------------------------------------------- what was seen of a member


@dataclass(frozen=True, slots=True)
class ReplicationState:
    """SHOW REPLICA STATUS (SHOW SLAVE STATUS), as far as it decides whether the member may serve reads."""

    io_running: str  # Replica_IO_Running: "Yes", "No", "Connecting", "Preparing"
    sql_running: str  # Replica_SQL_Running: "Yes" or "No"
    source: str  # host:port of the server that it replicates from
    io_error: str = ""  # Last_IO_Error
    sql_error: str = ""  # Last_SQL_Error
    filters: str = ""  # Replicate_* settings that keep something out: positions lie then
    received: str = ""  # what it has received but perhaps not applied: Retrieved_Gtid_Set, Gtid_IO_Pos


@dataclass(frozen=True, slots=True)
class Observation:
    """What one look at a SQL member found. Its position holds at `sent_at` and later, not before."""

    member: str
    sent_at: float  # when the question was sent
    position: Position  # everything that is applied (and visible to reads) there
    read_only: bool
    super_read_only: bool  # always False on MariaDB, which has none
    replication: ReplicationState | None  # None: it replicates from nobody
    server_id: int
    server_uuid: str  # "" on MariaDB
    version: str
    started_at: float  # seconds since the epoch, from Uptime: another value is another start of the server
    bound: Position | None = None  # nothing beyond it was visible before `sent_at`; None if that is not known
    generation: int = 0  # grows whenever the observer connects anew: the server may have come back older

    @property
    def is_writable(self) -> bool:
        """Whether it takes writes from ordinary accounts."""
        return not (self.read_only or self.super_read_only)

    @property
    def replication_running(self) -> bool:
        """Whether both replication threads run, the receiving one connected."""
        state = self.replication
        return state is not None and state.io_running == "Yes" and state.sql_running == "Yes"


def replica_fault(observation: Observation, *, without_source: bool = False) -> str | None:
    """Why a member must not serve as a replica, whatever its lag; None if it may.

    `without_source`: the primary answers nobody, so that no replica can be connected to it.
    """
    state = observation.replication
    if state is None:
        return "does not replicate from anybody"
    if state.sql_running != "Yes":
        return f"replication is stopped: {state.sql_error or 'its applier thread does not run'}"
    if state.io_running != "Yes" and not without_source:
        return f"replication is not connected to {state.source}: {state.io_error or state.io_running}"
    if state.filters:
        return f"replication is filtered ({state.filters}), so its position does not say what it has"
    return None


# ---------------------------------------------------------------- what the router sees


class Role(Enum):
    """What a member is in its group at this epoch."""

    PRIMARY = "primary"
    REPLICA = "replica"


@dataclass(frozen=True, slots=True)
class MemberView:
    """One member as of one snapshot."""

    name: str
    role: Role
    fault: str | None = None  # why it serves nothing, in words
    position: Position | None = None
    observed_at: float | None = None  # when the question was sent whose answer is `position`
    current_as_of: float | None = None  # LagClock.current_as_of(position)
    weight: int = 1
    backup: bool = False
    bound: Position | None = None  # see Observation
    generation: int = 0

    @property
    def healthy(self) -> bool:
        return self.fault is None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A group as it was last seen: immutable, one for all decisions until the next observation."""

    group: str
    epoch: int  # grows by one with every change of the primary
    taken_at: float
    members: tuple[MemberView, ...]  # in the order of the configuration
    frozen_at: float | None = None  # the primary has not answered since: LagClock.frozen_at
    primary: MemberView | None = field(init=False)
    replicas: tuple[MemberView, ...] = field(init=False)  # regular ones first, then backups
    by_name: dict[str, MemberView] = field(init=False, repr=False, hash=False, compare=False)

    def __post_init__(self) -> None:
        replicas = [member for member in self.members if member.role is Role.REPLICA]
        primary = next((member for member in self.members if member.role is Role.PRIMARY), None)
        object.__setattr__(self, "primary", primary)
        object.__setattr__(self, "replicas", tuple(sorted(replicas, key=lambda member: member.backup)))
        object.__setattr__(self, "by_name", {member.name: member for member in self.members})

    def lag(self, member: MemberView, now: float) -> float | None:
        """Seconds that the member is behind; None if unknown."""
        if member.current_as_of is None:
            return None
        return (now if self.frozen_at is None else self.frozen_at) - member.current_as_of


class Cause(Enum):
    """Why a member does not serve a read. Only BEHIND_TOKEN and LATE pass with a little waiting."""

    FAULT = "fault"
    UNKNOWN_POSITION = "unknown position"
    LATE = "late"
    BEHIND_TOKEN = "behind token"
    NO_WEIGHT = "weight 0"
    BACKUP = "backup"


class Rejection(NamedTuple):
    """One replica that does not serve the read, and why."""

    member: MemberView
    cause: Cause
    lag: float | None = None  # seconds, where the cause is LATE
    max_lag: float | None = None

    @property
    def reason(self) -> str:
        """In words. Not made before somebody asks: reads are routed more often than explained."""
        name = self.member.name
        if self.cause is Cause.FAULT:
            return f"{name} {self.member.fault}"
        if self.cause is Cause.LATE:
            behind = "longer than is known" if self.lag is None else f"{self.lag:.3f} s"
            return f"{name} is {behind} behind, {self.max_lag:g} s are allowed"
        if self.cause is Cause.BEHIND_TOKEN:
            return f"{name} has not applied yet what this session wrote or saw"
        if self.cause is Cause.NO_WEIGHT:
            return f"{name} has weight 0"
        if self.cause is Cause.BACKUP:
            return f"{name} is a backup, and others can serve"
        return f"{name} has not been observed yet"


class Candidates(NamedTuple):
    """The replicas for one read. `ready` may serve it now; `waitable` lack only the token, so a wait may help."""

    ready: tuple[MemberView, ...]
    waitable: tuple[MemberView, ...]
    rejected: tuple[Rejection, ...]


def replicas_for(snapshot: Snapshot, token: Position | None, max_lag: float, now: float) -> Candidates:
    """The replicas that are healthy, within `max_lag` seconds, and known to cover `token` (None: nothing to cover).

    Backups are ready only if no regular replica is. Both lists are in the order of the configuration; the choice among
    equals is the router's. Called for every read: one subtraction and one `covers` per replica.
    """
    ready: list[MemberView] = []
    waitable: list[MemberView] = []
    rejected: list[Rejection] = []
    time = now if snapshot.frozen_at is None else snapshot.frozen_at
    for member in snapshot.replicas:
        if member.backup and ready and not ready[0].backup:
            rejected.append(Rejection(member, Cause.BACKUP))
        elif member.fault is not None:
            rejected.append(Rejection(member, Cause.FAULT))
        elif member.weight == 0:
            rejected.append(Rejection(member, Cause.NO_WEIGHT))
        elif member.position is None:
            rejected.append(Rejection(member, Cause.UNKNOWN_POSITION))
        elif member.current_as_of is None or time - member.current_as_of > max_lag:
            lag = None if member.current_as_of is None else time - member.current_as_of
            rejected.append(Rejection(member, Cause.LATE, lag, max_lag))
        elif token is None or member.position.covers(token):
            ready.append(member)
        else:
            waitable.append(member)
            rejected.append(Rejection(member, Cause.BEHIND_TOKEN))
    return Candidates(tuple(ready), tuple(waitable), tuple(rejected))
