"""What one SQL session must not read behind, and the choice of a replica that it may read.

A session carries a *token*, the positions of its writes, and the member that it *saw* last: a reply without a position
(a read, a write that changed nothing) may have shown anything that this member had by then. Until a look at that
member that was begun after the reply gives an upper bound, the session may read only there or at the primary, which has
everything; after it, that bound is in the token and any member that covers it will do (SQL.md, Positions).
"""

from __future__ import annotations

from typing import Final

import trio

from gateway.replication.freshness import MemberView, Snapshot, replicas_for
from gateway.replication.position import MariadbGtidPosition, MysqlGtidSet, Position
from gateway.routing.route import Consistency, Policy
from gateway.topology.mysql import SqlMember, Topology

REBALANCE_SECONDS: Final = 1.0  # how often a busy session may look whether another replica is less busy
TOKEN_INTERVALS: Final = 32  # gaps between a session's own writes, before its token is rounded up
NO_REPLICAS: Final = "the group has no replicas"
NO_REPLICA: Final = "no replica serves"
PAUSES_SECONDS: Final = (0.0005, 0.008)  # between looks at replicas that somebody waits for, doubling


class _Seen:
    """When a member last answered without a position, and which run of observation it was in then."""

    __slots__ = ("at", "generation")

    def __init__(self, at: float, generation: int) -> None:
        self.at = at
        self.generation = generation


class Freshness:
    """The token of one session, and what follows from it."""

    __slots__ = (
        "_balanced_at",
        "_choice",
        "_policy",
        "_seen",
        "_snapshot",
        "_topology",
        "epoch",
        "hopeless",
        "token",
    )

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._snapshot: Snapshot | None = None
        self._policy: Policy | None = None
        self._choice: SqlMember | None = None
        self._balanced_at = 0.0
        self.epoch = topology.epoch
        self.token: Position | None = None
        self.hopeless: str | None = None  # why no replica can serve the read that was asked about, however it waits
        self._seen: dict[str, _Seen] = {}  # members that answered without a position, until an upper bound is known

    # -- what replies say

    def saw(self, member: str, now: float) -> None:
        """A reply without a position came from `member`; `now` is not before it came, by Trio's clock."""
        seen = self._seen.get(member)
        if seen is not None:
            seen.at = now
            return
        self._snapshot = None
        if member == self._topology.primary:
            self._seen.clear()  # what a replica showed, the primary had
        self._seen[member] = _Seen(now, self._topology.members[member].observer.generation)

    def wrote(self, member: str, gtid: str) -> None:
        """A reply told the position of a write."""
        self._snapshot = None
        snapshot = self._topology.snapshot
        if snapshot.epoch != self.epoch and member == self._topology.primary:
            self._enter_epoch(snapshot)  # now: what is added belongs to the new history
        token = self.token
        if token is None:
            identity = self._topology.identity
            token = MariadbGtidPosition({}) if identity is not None and identity.mariadb else MysqlGtidSet({})
        token = token.add(gtid)
        if isinstance(token, MysqlGtidSet) and token.interval_count > TOKEN_INTERVALS:
            primary = self._topology.snapshot.primary
            if primary is not None and primary.position is not None and primary.position.covers(token):
                token = primary.position  # asks a little more of a replica, and has no gaps
        self.token = token
        if self.epoch == snapshot.epoch and self._one_history(member):
            self._seen.clear()  # what was shown before was committed before this write

    def _one_history(self, member: str) -> bool:
        """Whether a write's own position implies all that was committed before it: commit order within one domain.

        MySQL's replicas keep the commit order by default since 8.0.27; MariaDB's do within a domain.
        """
        position = self._topology.snapshot.by_name[member].position
        if isinstance(position, MariadbGtidPosition):
            return len(position.domains) == 1
        return isinstance(position, MysqlGtidSet)

    # -- choosing

    def choose_now(self, policy: Policy, now: float) -> SqlMember | None:
        """The replica for a read, None where nothing can be said without waiting."""
        snapshot = self._topology.snapshot
        if snapshot is self._snapshot and policy is self._policy:
            return self._choice
        self._snapshot, self._policy = snapshot, policy
        self._choice = self._choose(snapshot, policy, now)
        return self._choice

    def _choose(self, snapshot: Snapshot, policy: Policy, now: float) -> SqlMember | None:
        self.hopeless = None
        bound = policy.consistency is Consistency.SESSION
        if snapshot.frozen_at is not None and self._refuses_without_primary(policy):
            return None
        if bound:
            self._resolve(snapshot)
        candidates = replicas_for(snapshot, self.token if bound else None, policy.max_lag, now)
        ready = candidates.ready
        if not ready:
            if not candidates.waitable:
                self.hopeless = NO_REPLICA
            return None
        least = self._least_busy(ready)
        if not bound or not self._seen:
            self._balanced_at = now
            return least
        for view in ready:
            if view.name in self._seen and len(self._seen) == 1:
                member = self._topology.members[view.name]
                if member.in_flight > least.in_flight + 1 and now - self._balanced_at > REBALANCE_SECONDS:
                    return None  # a look at its present replica may free it for the other one
                return member
        return None

    def _is_frozen(self) -> bool:
        return self._topology.snapshot.frozen_at is not None

    def _refuses_without_primary(self, policy: Policy) -> bool:
        """Whether lag that stands still, since no primary answers, is too little to go by."""
        refuses = self._topology.config.reads_without_primary == "refuse"
        return refuses or policy.consistency is Consistency.BOUNDED

    def _resolve(self, snapshot: Snapshot) -> None:
        if snapshot.epoch != self.epoch:
            self._enter_epoch(snapshot)
        for name, seen in list(self._seen.items()):
            view = snapshot.by_name[name]
            if view.bound is None or view.observed_at is None or view.observed_at <= seen.at:
                continue
            if view.generation != seen.generation:
                # It may have come back older than it was: only the primary is known to have what it showed.
                primary = self._topology.primary
                if primary is not None and primary != name:
                    self.saw(primary, snapshot.taken_at)
                    return
                seen.generation = view.generation
                continue
            self.token = view.bound if self.token is None else self.token.merge(view.bound)
            del self._seen[name]

    def _enter_epoch(self, snapshot: Snapshot) -> None:
        """There is another primary: what the session had counts no more, but it must not read behind the new start."""
        start = self._topology.epoch_position
        if self.token is None and not self._seen:
            self.epoch = snapshot.epoch
        elif start is not None:
            self.token, self.epoch = start, snapshot.epoch
            primary = snapshot.primary.name if snapshot.primary is not None else None
            self._seen = {name: seen for name, seen in self._seen.items() if name == primary}
        elif snapshot.primary is not None:
            self.saw(snapshot.primary.name, trio.current_time())

    def _least_busy(self, ready: tuple[MemberView, ...]) -> SqlMember:
        members = self._topology.members
        best = members[ready[0].name]
        for view in ready[1:]:
            member = members[view.name]
            if member.in_flight * best.config.weight < best.in_flight * member.config.weight or (
                member.in_flight * best.config.weight == best.in_flight * member.config.weight
                and member.reads * best.config.weight < best.reads * member.config.weight
            ):
                best = member
        return best

    def _nearest(self, waitable: tuple[MemberView, ...]) -> SqlMember:
        """Who is likely to have what is waited for first; of equals, who is least busy."""
        furthest = max(view.current_as_of or 0.0 for view in waitable)
        return self._least_busy(tuple(view for view in waitable if (view.current_as_of or 0.0) == furthest))

    async def choose(self, policy: Policy) -> tuple[SqlMember | None, str]:
        """The replica for a read after waiting at most `freshness_wait`, or None; and in words why."""
        started = trio.current_time()
        deadline = started + policy.freshness_wait
        pause = 0.0
        while True:
            now = trio.current_time()
            member = self.choose_now(policy, now)
            if member is not None:
                waited = f", after {1000 * (now - started):.1f} ms" if now > started else ""
                frozen = ", by lag as it was when the primary last answered" if self._is_frozen() else ""
                return member, f"{policy.reason}{waited}{frozen}"
            if self._is_frozen() and self._refuses_without_primary(policy):
                return None, "no primary answers, so that nobody knows how far behind a replica is"
            bound = policy.consistency is Consistency.SESSION
            candidates = replicas_for(self._topology.snapshot, self.token if bound else None, policy.max_lag, now)
            if not (candidates.ready or candidates.waitable):
                reasons = "; ".join(rejection.reason for rejection in candidates.rejected)
                return None, f"{NO_REPLICA}: {reasons}"
            if now >= deadline:
                return None, f"no replica had what this session saw within {1000 * policy.freshness_wait:.0f} ms"
            with trio.move_on_at(deadline):
                if bound and self._seen:
                    name, seen = next(iter(self._seen.items()))
                    if not await self._topology.members[name].observer.seen_after(seen.at):
                        return None, f"{name}, which this session read last, does not answer"
                    self._resolve(self._topology.snapshot)
                    if self._seen.get(name) is seen:
                        return None, f"{name}, which this session read last, does not tell what it may have shown"
                    self._balanced_at = now
                    self._snapshot = None
                    continue
                await trio.sleep(pause)
                pause = min(max(pause * 2, PAUSES_SECONDS[0]), PAUSES_SECONDS[1])
                await self._nearest(candidates.waitable).observer.seen_after(now)
            self._snapshot = None
