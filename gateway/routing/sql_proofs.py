"""What following names to their definitions yields: proofs, what a statement reads in the end, and how far to go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from gateway.routing.operation import Column, PinCause, Table

DEFINITIONS: Final = 32
"""Most views, routines and triggers that one statement is followed through; 2 to 5 ms each at first (measured)."""
DEFINITIONS_BYTES: Final = 64 * 1024
"""Most bytes of all their definitions."""
UNOPENED: Final = f"needs more than {DEFINITIONS} definitions, or {DEFINITIONS_BYTES // 1024} KiB of them, to be known"


class Definitions:
    """Those that one statement has needed so far: each once, by what it is remembered as and its size in bytes."""

    __slots__ = ("_bytes", "_opened")

    def __init__(self) -> None:
        self._opened: set[tuple[object, int]] = set()
        self._bytes = 0

    def opens(self, definition: tuple[object, int]) -> bool:
        """Whether this one may be needed, too."""
        if definition in self._opened:
            return True
        if len(self._opened) >= DEFINITIONS or self._bytes + definition[1] > DEFINITIONS_BYTES:
            return False
        self._opened.add(definition)
        self._bytes += definition[1]
        return True


@dataclass(frozen=True, slots=True)
class Proof:
    """What reading a view or calling a function does, through everything that it uses in turn.

    `problem` says why it is not proven to only read, None if it is. `outputs` are the base columns behind each column
    of a view, lower case, and `always` those behind all of them; None where that is not told apart.
    """

    problem: str | None = None
    pin: PinCause | None = None
    primary: str | None = None  # only the primary can answer
    reads: frozenset[Table] = frozenset()
    columns: frozenset[Column] = frozenset()
    functions: frozenset[str] = frozenset()
    whole: bool = True  # False: it may read more than that
    outputs: Mapping[str, frozenset[Column]] | None = None
    always: frozenset[Column] = frozenset()
    opened: frozenset[tuple[object, int]] = frozenset()  # the definitions that it rests on, each with its bytes
    given_up: bool = False  # more definitions were needed than one statement may open: not to be remembered


@dataclass(slots=True)
class Reads:
    """What a statement reads in the end. The first problem counts."""

    problem: str | None = None
    pin: PinCause | None = None
    primary: str | None = None
    reads: dict[Table, None] = field(default_factory=dict)
    columns: set[Column] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)
    whole: bool = True
    writes_whole: bool = True
    opened: set[tuple[object, int]] = field(default_factory=set)
    given_up: bool = False

    def blame(self, problem: str | None, pin: PinCause | None) -> None:
        self.problem = self.problem or problem
        self.pin = self.pin or pin

    def take(self, proof: Proof, columns: Iterable[Column]) -> None:
        self.blame(proof.problem, proof.pin)
        self.primary = self.primary or proof.primary
        self.reads.update(dict.fromkeys(proof.reads))
        self.columns.update(columns)
        self.functions.update(proof.functions)
        self.whole = self.whole and proof.whole
        self.opened |= proof.opened
        self.given_up = self.given_up or proof.given_up


TOO_MANY: Final = Proof(UNOPENED, whole=False, given_up=True)


def unproven(problem: str) -> Proof:
    """Of a function that nothing can be proven of."""
    return Proof(problem, pin=PinCause.PROCEDURE, whole=False)
