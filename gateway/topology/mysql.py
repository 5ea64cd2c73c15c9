"""A MySQL group: its members as they were last seen, who is the primary, and the snapshot that routes are made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog
import trio

from gateway.backends.mysql import Credentials
from gateway.backends.mysql_server import MysqlServer
from gateway.backends.mysql_state import Arming
from gateway.backends.pool import MemberPool
from gateway.backends.statements import statements_per_connection
from gateway.config import Member, MysqlGroup, User
from gateway.net.lane import Lane
from gateway.protocol.mysql.constants import Capability
from gateway.replication.freshness import LagClock, MemberView, Observation, Role, Snapshot, replica_fault
from gateway.replication.observe import Observer, ServerIdentity, monitor_credentials
from gateway.replication.position import Position
from gateway.tls_settings import backend_tls
from gateway.topology.catalogue import CatalogueObserver

COMPRESSION: Final = {
    "off": 0,
    "zlib": int(Capability.COMPRESS),
    "zstd": int(Capability.ZSTD_COMPRESSION_ALGORITHM),
}
MAINTENANCE_SECONDS: Final = 1.0
FIRST_LOOK_SECONDS: Final = 1.0  # how long a start waits for every member's first answer
FIRST_CATALOGUE_SECONDS: Final = 5.0  # and for the catalogue, without which all reads go to the primary

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class SqlMember:
    """One server of the group. `in_flight`, `served` and `errors` are counted by the sessions."""

    config: Member
    pool: MemberPool
    observer: Observer = field(init=False)
    identity: ServerIdentity | None = None
    in_flight: int = 0
    served: Counter[str] = field(default_factory=Counter)  # by reason
    reads: int = 0
    writes: int = 0
    failed_at: float | None = None  # Trio's clock; None while it answers

    @property
    def name(self) -> str:
        return self.config.name


def _witnesses(users: Sequence[User]) -> list[Credentials]:
    """Accounts that can tell which names are views to them, with each password that may be theirs."""
    return [monitor_credentials(user.name, password) for user in users for password in user.passwords()]


class Topology:
    """The members of one group and what is known of them.

    `primary` is the name of the primary or None; `epoch` grows with every change of it, and `epoch_position` is where
    the primary was when the epoch began: a session that read in an earlier epoch must not read behind it.
    """

    def __init__(self, lane: Lane, config: MysqlGroup, password: str) -> None:
        self.config = config
        self.name = config.name
        self.primary: str | None = None
        self.epoch = 0
        self.epoch_position: Position | None = None
        self.trouble: str | None = None  # why there is no primary, or what a person has to look at
        self.clock = LagClock()
        self._mariadb: bool | None = None  # which of the two families the group's first server was
        self._strays: set[str] = set()  # seen writable beside the primary
        self.members: dict[str, SqlMember] = {}
        self.tls = backend_tls(config.backend_tls) if config.backend_tls is not None else None
        self.has_replicas = len(config.members) > 1
        self._changed = trio.Event()
        self._first_look = True  # nobody is the primary before all have had the time to say that they are
        for member in config.members:
            limit = min(config.pool.size, member.max_connections or config.pool.size)
            server = MysqlServer(member.address, self.tls, COMPRESSION[config.backend_compression])
            pool = MemberPool(lane, member.name, server, config.pool, limit)
            known = SqlMember(member, pool)
            known.observer = Observer(
                lane,
                member.name,
                server,
                monitor_credentials(config.monitor.user, password),
                interval=config.check_interval,
                patience=config.failure_detection,
                seen=self._seen,
                failed=self._failed,
            )
            self.members[member.name] = known
        self.catalogue = CatalogueObserver(
            lane,
            config.name,
            monitor_credentials(config.monitor.user, password),
            _witnesses(() if config.users == "backend" else config.users),
            source=self._catalogue_source,
            members_changed=self.changed,
        )
        self.primary_member: SqlMember | None = None  # the primary, if it answers
        self.snapshot = self._take_snapshot(0.0)

    def use_users(self, users: Sequence[User]) -> None:
        """Others may log in now, to whom other names may be views."""
        self.catalogue.use_witnesses(_witnesses(users))

    def _catalogue_source(self) -> MysqlServer | None:
        """The primary. Before anything is known of the schema any member will do; later a replica may be behind."""
        member = self.primary_member
        if member is None and self.catalogue.catalogue.sight is None and not self._first_look:
            member = next((one for one in self.members.values() if one.observer.last is not None), None)
        return member.pool.server if member is not None else None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Observes and maintains until cancelled. Started once every member has answered or failed once."""
        try:
            async with trio.open_nursery() as nursery:
                for member in self.members.values():
                    nursery.start_soon(member.observer.run, name=f"observe {member.name}")
                with trio.move_on_after(FIRST_LOOK_SECONDS):
                    for member in self.members.values():
                        while member.observer.last is None and member.observer.failure == "has not answered yet":
                            await self.changed()
                self._first_look = False
                self._choose_primary()
                self._publish(trio.current_time())
                nursery.start_soon(self.catalogue.run, name=f"catalogue of {self.name}")
                if any(member.observer.last is not None for member in self.members.values()):
                    with trio.move_on_after(FIRST_CATALOGUE_SECONDS):
                        await self.catalogue.first.wait()
                task_status.started()
                while True:
                    await trio.sleep(MAINTENANCE_SECONDS)
                    for member in self.members.values():
                        await member.pool.maintain()
        finally:
            for member in self.members.values():
                member.pool.close_all()

    async def changed(self) -> None:
        """Waits for the next snapshot."""
        await self._changed.wait()

    @property
    def identity(self) -> ServerIdentity | None:
        """What the primary says of itself, or else any member that was ever seen."""
        known = [self.members[self.primary]] if self.primary else []
        return next((member.identity for member in [*known, *self.members.values()] if member.identity), None)

    @property
    def oldest_version(self) -> tuple[int, int]:
        """(major, minor) of the oldest server seen, (0, 0) if none was: what a text means must hold on all of them."""
        versions = [member.identity.version.split(".") for member in self.members.values() if member.identity]
        return min(((int(numbers[0]), int(numbers[1])) for numbers in versions), default=(0, 0))

    @property
    def capabilities(self) -> int:
        """The capabilities that all servers seen have in common; 0 if none was."""
        known = [member.identity.capabilities for member in self.members.values() if member.identity]
        common = known[0] if known else 0
        for capabilities in known:
            common &= capabilities
        return common

    def replicas_within(self, max_lag: float, now: float) -> int:
        """How many replicas are healthy and at most `max_lag` seconds behind."""
        snapshot = self.snapshot
        lags = (snapshot.lag(view, now) for view in snapshot.replicas if view.fault is None)
        return sum(lag is not None and lag <= max_lag for lag in lags)

    # -- what observers say

    def _seen(self, identity: ServerIdentity, observation: Observation) -> None:
        member = self.members[observation.member]
        if self._mariadb is None:
            self._mariadb = identity.mariadb
        elif self._mariadb is not identity.mariadb:
            kinds = ("MariaDB", "MySQL") if identity.mariadb else ("MySQL", "MariaDB")
            member.observer.refuse(f"is a {kinds[0]} server in a group of {kinds[1]} servers")
            self._publish(observation.sent_at)
            return
        if member.identity != identity:
            restarted = member.identity is not None
            member.identity = identity
            pool = member.pool
            pool.statement_limit = statements_per_connection(identity.max_prepared_statements, pool.limit)
            if restarted:
                log.info("server answers again", group=self.name, member=member.name, version=identity.version)
                member.pool.close_idle()
        member.failed_at = None
        if observation.replication is not None:
            self._strays.discard(observation.member)
        self._choose_primary()
        if observation.member == self.primary:
            self._sample(observation)
        self._publish(observation.sent_at)

    def _sample(self, observation: Observation) -> None:
        """The primary was seen."""
        self.clock.sample(observation.sent_at, observation.position)
        if self.epoch_position is None:
            self.epoch_position = observation.position

    def _failed(self, name: str, failure: str, silent: bool) -> None:
        """`silent`: it did not answer in time, rather than that something answered or ended the connection."""
        member = self.members[name]
        if member.failed_at is None:
            member.failed_at = trio.current_time()
        view = self.snapshot.by_name[name]
        if view.fault != failure:
            log.warning("member does not answer", group=self.name, member=name, error=failure)
        if silent and name != self.primary:
            member.pool.close_all(failure)  # who waits there for the answer to a read asks somebody else
        else:
            member.pool.close_idle()
        if name == self.primary:
            self.clock.freeze()
        self._publish(trio.current_time())

    def _choose_primary(self) -> None:
        """The one member that takes writes and replicates from nobody, or the one that the configuration names."""
        if self._first_look:
            return
        fixed = self.config.primary
        if fixed != "auto":
            chosen: str | None = str(fixed)
            self.trouble = None
        elif self.config.failover == "off" and self.primary is not None:
            chosen = self.primary
        else:
            writable = [
                member.name
                for member in self.members.values()
                if (seen := member.observer.last) is not None and seen.is_writable and seen.replication is None
            ]
            if len(writable) == 1:
                stays = self._may_come_back(self.primary) or self._is_stray(writable[0])
                chosen = self.primary if stays else writable[0]
                if chosen == writable[0]:
                    self.trouble = None
            elif not writable:
                chosen = self.primary
                last = self.members[chosen].observer.last if chosen else None
                self.trouble = (
                    None if last is None else f"{chosen} is read-only or replicates, and nobody else is writable"
                )
                if last is not None:
                    chosen = None
            else:
                # Two that take writes: the one with the epoch stays, the other gets nothing.
                chosen = self.primary if self.primary in writable else None
                self._strays.update(name for name in writable if name != chosen)
                self.trouble = f"more than one server is writable: {', '.join(writable)}"
        if chosen != self.primary:
            log.warning("primary", group=self.name, primary=chosen, before=self.primary, trouble=self.trouble)
            self.primary = chosen
            if chosen is None:
                self.clock.freeze()
                return
            self.epoch += 1
            self.epoch_position = None
            self.catalogue.distrust()  # another server may have another schema
            self.clock.reset()
            last = self.members[chosen].observer.last
            if last is not None:
                self._sample(last)
            for member in self.members.values():
                if member.name != chosen:  # whoever still writes there would write into another history
                    member.pool.give_up_primary()

    def _is_stray(self, name: str) -> bool:
        """Whether a writable server was seen beside the primary, and has not followed nor caught up with it since."""
        if name not in self._strays:
            return False
        last, newest = self.members[name].observer.last, self.clock.newest
        return last is None or newest is None or not last.position.covers(newest)

    def _may_come_back(self, name: str | None) -> bool:
        """Whether a primary failed so lately that nobody takes its place yet."""
        failed_at = self.members[name].failed_at if name is not None else None
        return failed_at is not None and trio.current_time() - failed_at < self.config.failure_detection

    def _publish(self, now: float) -> None:
        self.snapshot = self._take_snapshot(now)
        primary = self.snapshot.primary
        self.primary_member = self.members[primary.name] if primary is not None and primary.fault is None else None
        for view in self.snapshot.members:
            self._arm(self.members[view.name], view.role)
        self._changed.set()
        self._changed = trio.Event()

    def _arm(self, member: SqlMember, role: Role) -> None:
        identity = member.identity
        if identity is None:
            return
        arming = member.pool.arming
        replica = role is Role.REPLICA
        if arming is None or (arming.mariadb, arming.replica) != (identity.mariadb, replica):
            member.pool.arming = Arming(identity.mariadb, replica, identity.collations)
            member.pool.close_idle()  # they are armed for the other role

    def _take_snapshot(self, now: float) -> Snapshot:
        return Snapshot(
            group=self.name,
            epoch=self.epoch,
            taken_at=now,
            members=tuple(self._views()),
            frozen_at=self.clock.frozen_at,
        )

    def _views(self) -> Iterator[MemberView]:
        for member in self.members.values():
            seen = member.observer.last
            role = Role.PRIMARY if member.name == self.primary else Role.REPLICA
            fault = member.observer.failure
            if seen is not None:
                fault = self._primary_fault(seen) if role is Role.PRIMARY else self._replica_fault(seen)
            yield MemberView(
                name=member.name,
                role=role,
                fault=fault,
                position=seen.position if seen else None,
                observed_at=seen.sent_at if seen else None,
                bound=seen.bound if seen else None,
                generation=member.observer.generation,
                current_as_of=self.clock.current_as_of(seen.position) if seen else None,
                weight=member.config.weight,
                backup=member.config.backup,
            )

    def _replica_fault(self, seen: Observation) -> str | None:
        # That it is not connected to a primary which does not answer anybody is no fault of its own.
        return replica_fault(seen, without_source=self.clock.frozen_at is not None)

    def _primary_fault(self, seen: Observation) -> str | None:
        return None if seen.is_writable else "is configured as the primary, but read-only"

    # -- what people see

    def status(self, now: float) -> dict[str, object]:
        """The group as plain values: what `gateway status` and SHOW GATEWAY MEMBERS print. Lag in milliseconds."""
        snapshot = self.snapshot
        members = []
        for view in snapshot.members:
            member = self.members[view.name]
            lag = snapshot.lag(view, now) if view.role is Role.REPLICA else None
            members.append(
                {
                    "name": view.name,
                    "role": view.role.value,
                    "fault": view.fault,
                    "lag_ms": None if lag is None else round(max(lag, 0.0) * 1000),
                    "position": str(view.position) if view.position is not None else None,
                    "version": member.identity.version if member.identity else None,
                    "reads": member.reads,
                    "writes": member.writes,
                    "in_flight": member.in_flight,
                    "connections": {
                        "open": member.pool.opened,
                        "in_use": member.pool.in_use,
                        "waiting": member.pool.waiting,
                        "limit": member.pool.limit,
                        "resets": member.pool.resets,
                        "replays": member.pool.replays,
                    },
                    "weight": view.weight,
                    "backup": view.backup,
                }
            )
        return {
            "engine": "mysql",
            "catalogue": self.catalogue.catalogue.status(),
            "primary": self.primary,
            "epoch": self.epoch,
            "trouble": self.trouble,
            "lag_frozen": snapshot.frozen_at is not None,
            "members": members,
        }
