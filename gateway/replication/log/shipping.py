"""When followers ship: as soon as the lane has nothing else to do, at the latest after some batches.

Under load that saves a send and a receive for each replica server and batch, which cost more than all that Python does
for a record (docs/decisions). Without load it delays nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gateway.net.lane import Lane

BATCHES_MAX: Final = 16  # some 3 ms under load


class Shipping:
    """The followers of a group that have something to ship."""

    __slots__ = ("_events", "_lane", "_ships", "_waited")

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._ships: list[Callable[[], None]] = []
        self._waited = 0  # batches
        self._events = 0  # that the lane had served by the last of them

    def soon(self, ship: Callable[[], None]) -> None:
        """Calls `ship` once, within a batch."""
        self._ships.append(ship)
        if len(self._ships) == 1:
            self._waited = 0
            self._events = self._lane.events
            self._lane.again(self._look)

    def _look(self) -> None:
        events = self._lane.events
        if events != self._events and self._waited < BATCHES_MAX:
            self._waited += 1
            self._events = events
            self._lane.again(self._look)
            return
        ships, self._ships = self._ships, []
        for ship in ships:
            ship()
