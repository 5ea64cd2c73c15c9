"""What a session may read, decided without servers: members, looks and replies are plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from gateway.replication.freshness import MemberView, Role, Snapshot
from gateway.replication.position import MariadbGtidPosition, Position
from gateway.routing.route import Consistency, Policy, Target
from gateway.sessions.mysql_freshness import Freshness
from gateway.topology.mysql import Topology


@dataclass
class Member:
    name: str
    in_flight: int = 0
    reads: int = 0
    config: Any = field(default_factory=lambda: SimpleNamespace(weight=1))
    observer: Any = field(default_factory=lambda: SimpleNamespace(generation=1))


class Group:
    """A primary p and two replicas a and b, as far as Freshness looks at them. Positions are offsets in one domain."""

    def __init__(self) -> None:
        self.epoch = 1
        self.primary = "p"
        self.identity = SimpleNamespace(mariadb=True)
        self.epoch_position = at(1)
        self.members = {name: Member(name) for name in "pab"}
        self.config = SimpleNamespace(reads_without_primary="serve")
        self.look(1.0, p=1, a=1, b=1)

    def look(self, when: float, **offsets: int) -> None:
        """Everybody was looked at at `when`."""
        views = tuple(
            MemberView(
                name,
                Role.PRIMARY if name == self.primary else Role.REPLICA,
                None,
                at(offsets[name]),
                when,
                when,
                bound=at(offsets[name]),
                generation=self.members[name].observer.generation,
            )
            for name in "pab"
        )
        self.snapshot = Snapshot("g", self.epoch, when, views)

    def session(self) -> Freshness:
        return Freshness(cast(Topology, self))


def at(offset: int) -> Position:
    return MariadbGtidPosition.parse(f"0-1-{offset}")


def policy(consistency: Consistency) -> Policy:
    return Policy(Target.REPLICA, consistency, 100.0, 0.05, None, None, None, "a read")


SESSION = policy(Consistency.SESSION)
EVENTUAL = policy(Consistency.EVENTUAL)


def test_a_reply_without_a_position_binds_to_its_member_until_a_later_look() -> None:
    group = Group()
    session = group.session()
    session.saw("a", 2.0)
    chosen = session.choose_now(SESSION, 2.0)
    assert chosen is not None
    assert chosen.name == "a"
    group.members["a"].in_flight = 1
    group.look(3.0, p=5, a=5, b=4)
    chosen = session.choose_now(SESSION, 3.0)
    assert chosen is not None
    assert chosen.name == "a"  # b does not have what a may have shown
    group.look(4.0, p=5, a=5, b=5)
    chosen = session.choose_now(SESSION, 4.0)
    assert chosen is not None
    assert chosen.name == "b"


def test_an_eventual_read_does_not_forget_what_the_primary_showed() -> None:
    group = Group()
    group.look(1.0, p=10, a=5, b=5)
    session = group.session()
    session.saw("p", 2.0)
    assert session.choose_now(SESSION, 2.0) is None
    careless = session.choose_now(EVENTUAL, 2.1)
    assert careless is not None
    session.saw(careless.name, 2.1)
    assert session.choose_now(SESSION, 2.2) is None


def test_a_replica_that_came_back_older_is_not_believed_about_what_it_showed() -> None:
    group = Group()
    group.look(1.0, p=10, a=9, b=5)
    session = group.session()
    session.saw("a", 2.0)
    group.members["a"].observer.generation += 1
    group.look(3.0, p=10, a=5, b=5)
    assert session.choose_now(SESSION, 3.0) is None
    group.look(4.0, p=10, a=10, b=5)
    chosen = session.choose_now(SESSION, 4.0)
    assert chosen is not None
    assert chosen.name == "a"


def test_a_write_is_read_where_it_was_applied() -> None:
    group = Group()
    session = group.session()
    session.wrote("p", "0-1-7")
    assert session.choose_now(SESSION, 2.0) is None
    group.look(3.0, p=8, a=6, b=7)
    chosen = session.choose_now(SESSION, 3.0)
    assert chosen is not None
    assert chosen.name == "b"


def test_a_new_epoch_begins_where_its_primary_was() -> None:
    group = Group()
    session = group.session()
    session.wrote("p", "0-1-7")
    group.epoch, group.primary, group.epoch_position = 2, "a", at(6)
    group.look(3.0, p=7, a=6, b=5)
    chosen = session.choose_now(SESSION, 3.0)
    assert chosen is not None
    assert chosen.name == "p"  # as a replica of a, it has where the epoch began
