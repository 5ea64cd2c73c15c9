"""What the demo's clients have in common: a thread, a bounded rate, a tally of what was seen, and the first failure.

A client knows what it wrote, and holds every read against that. What it finds wrong is raised as Violation, with the
request and what came of it; any other exception of its drivers is a failure, too: nothing may fail that a client does.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field

from gateway.errors import GatewayError


class Violation(GatewayError):
    """A read was stale or wrong, or a request went where it must not go."""


@dataclass(slots=True)
class Tally:
    """What one client has seen: `reads` and `writes` by server id, and by name how often each check `held`."""

    reads: Counter[int] = field(default_factory=Counter)
    writes: Counter[int] = field(default_factory=Counter)
    held: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Adds what another client has seen, whose thread may be at it: dict() copies at once, update() would not."""
        self.reads.update(dict(other.reads))
        self.writes.update(dict(other.writes))
        self.held.update(dict(other.held))


class Client(ABC):
    """One client of the gateway in a thread of its own: `step` at most every `pause` seconds until it is stopped.

    `failure` is what ended it before that, in words, `failed_at` when (time.monotonic).
    """

    def __init__(self, name: str, pause: float) -> None:
        self.name = name
        self.tally = Tally()
        self.failure: str | None = None
        self.failed_at = 0.0
        self._pause = pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @abstractmethod
    def connect(self) -> None:
        """Opens what `step` uses."""

    @abstractmethod
    def step(self) -> None:
        """A few requests. Raises Violation for what is wrong."""

    @abstractmethod
    def close(self) -> None:
        """Closes what is open; called once, also if `connect` failed."""

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Asks it to end after the step that it is in."""
        self._stop.set()

    def join(self, timeout: float) -> None:
        """Waits until it has ended; a client that has not by then has a failure."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._fail(f"did not end within {timeout:g} s: a request of it got no answer")

    def _run(self) -> None:
        try:
            try:
                self.connect()
                while not self._stop.is_set():
                    began = time.monotonic()
                    self.step()
                    self._stop.wait(max(0.0, self._pause - (time.monotonic() - began)))
            finally:
                self.close()
        except Exception as error:  # where a task of the program ends: told to the person who runs it
            self._fail(str(error) if isinstance(error, Violation) else f"{type(error).__name__}: {error}")

    def _fail(self, words: str) -> None:
        if self.failure is None:
            self.failure, self.failed_at = words, time.monotonic()


def check(held: bool, tally: Tally, name: str, words: str) -> None:
    """Counts a check that held; raises Violation with `words` for one that did not."""
    if not held:
        raise Violation(f"{name}: {words}")
    tally.held[name] += 1
