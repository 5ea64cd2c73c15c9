"""Reads hints: `/* gateway: primary */`, `/* gateway: replica, max_lag=5s, consistency=eventual */`."""

from __future__ import annotations

import re
from typing import Final

from gateway.routing.operation import NO_HINT, Hint
from gateway.routing.route import Consistency, Target

HINT_BYTES: Final = 512
"""Longest hint that is read, in bytes; a longer one is a problem that the client hears of."""

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_TARGETS: Final = frozenset(target.value for target in Target)
_LEVELS: Final = frozenset(level.value for level in Consistency)


def _seconds(text: str) -> float | None:
    match = _DURATION.fullmatch(text)
    return float(match[1]) * _SECONDS[match[2]] if match else None


def parse_hint(texts: tuple[str, ...]) -> Hint:
    """The hint that the comments of one text make together; `texts` are what follows `gateway:` in each.

    What is not understood sets `problem`; the hint then says nothing else, so that no half of it is obeyed.
    """
    if not texts:
        return NO_HINT
    to: str | None = None
    consistency: str | None = None
    times: dict[str, float] = {}
    for text in texts:
        if len(text) > HINT_BYTES:
            return Hint(problem=f"a hint may have {HINT_BYTES} bytes")
        for part in (piece.strip() for piece in text.split(",")):
            key, equals, value = (side.strip() for side in part.partition("="))
            if not equals and key in _TARGETS:
                if to not in (None, key):
                    return Hint(problem="hint asks for both primary and replica")
                to = key
            elif key == "consistency" and value in _LEVELS:
                consistency = value
            elif key in ("max_lag", "freshness_wait") and (seconds := _seconds(value)) is not None:
                times[key] = seconds
            else:
                return Hint(problem=f"hint not understood: {part!r}")
    return Hint(to, consistency, times.get("max_lag"), times.get("freshness_wait"))
