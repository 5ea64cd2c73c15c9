"""What serves the memcached connections of one listener, and counts what they did."""

from __future__ import annotations

import socket
from dataclasses import dataclass, fields
from typing import Final

import structlog

from gateway.config import Listener
from gateway.net.lane import Lane
from gateway.rules.compile import RuleSet
from gateway.sessions.memcached_session import MemcachedSession
from gateway.topology.memcached import MemcachedTopology

REFUSAL: Final = b"SERVER_ERROR too many connections\r\n"

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Reasons:
    """How many keys were read where, and why there."""

    replica: int = 0  # nothing is pending for the key
    pending: int = 0  # at the primary: a write of it has not been applied at the replica yet, or is doubtful
    not_readable: int = 0  # at the primary: the replica is not connected, not in step, or being flushed
    cas: int = 0  # at the primary: gets
    rule: int = 0  # at the primary: by a rule
    configured: int = 0  # at the primary: read_from, or no replica pool serves
    missed: int = 0  # at the primary after a replica that missed


class MemcachedService:
    """What serves the connections of one listener."""

    def __init__(self, lane: Lane, listener: Listener, topology: MemcachedTopology, rules: RuleSet) -> None:
        self.lane = lane
        self.listener = listener
        self.topology = topology
        self.rules = rules
        self.sessions: set[MemcachedSession] = set()
        self.reasons = Reasons()
        self.rejected = 0
        self.over_budget = 0

    async def serve(self, sock: socket.socket) -> None:
        """Owns one client's connection until it ends."""
        try:
            session = MemcachedSession(self, sock)
        except OSError:
            return  # it has gone already
        self.sessions.add(session)
        try:
            await session.run()
        except Exception as error:
            log.error("a session failed", listener=self.listener.name, exc_info=error)
        finally:
            self.sessions.discard(session)
            session.close()

    def refusal(self) -> bytes:
        """What a client over max_connections is told."""
        return REFUSAL

    def use_rules(self, rules: RuleSet) -> None:
        """From the next request on."""
        self.rules = rules
        self.topology.rules_changed()
        for session in self.sessions:
            session.take_rules()

    def end_idle(self) -> None:
        """Closes the connections on which nothing is under way; within a batch."""
        for session in list(self.sessions):
            session.end_if_idle()

    def figures(self) -> dict[str, object]:
        """Counters of the listener, as plain values."""
        return {
            "listener": self.listener.name,
            "group": self.topology.name,
            "sessions": len(self.sessions),
            "reads": {field.name: getattr(self.reasons, field.name) for field in fields(Reasons)},
            "rejected_requests": self.rejected,
            "closed_over_budget": self.over_budget,
        }
