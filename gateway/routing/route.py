"""Where an operation goes and why: computed once, immutable; nothing after it looks at the request again."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Target(Enum):
    """The side of a group that an operation goes to."""

    PRIMARY = "primary"
    REPLICA = "replica"


class Consistency(Enum):
    """What a read is promised to see (docs: consistency)."""

    EVENTUAL = "eventual"
    BOUNDED = "bounded"
    SESSION = "session"
    STRONG = "strong"


@dataclass(frozen=True, slots=True)
class Policy:
    """What rules, hint and listener say about one operation, before any member is looked at.

    Times in seconds. `timeout` is None for no limit. `block` is the message that refuses the request.
    """

    target: Target
    consistency: Consistency
    max_lag: float
    freshness_wait: float
    timeout: float | None
    rule: str | None
    block: str | None
    reason: str
