"""What became of the tests of one run, and where two runs of the same suite differ.

An outcome has a status (passed, failed, error, skipped, expected failure, unexpected success) and the text of what was
wrong, of which the first line is enough to tell two faults apart.
"""

from __future__ import annotations

import fnmatch
import json
import re
import tomllib
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

GOOD: Final = frozenset({"passed", "expected failure"})
PASSABLE: Final = GOOD | {"skipped"}

# What differs between two runs although nothing does: addresses of objects, ports, ids of connections, durations.
_CHANCE: Final = re.compile(r"0x[0-9a-f]+|\b\d{4,}\b|\b\d+\.\d+ ?s\b|\bpt_[0-9a-f]+\b")


@dataclass(frozen=True)
class Outcome:
    """What became of one test."""

    status: str
    text: str = ""

    @property
    def line(self) -> str:
        """The first line of the text."""
        return self.text.strip().partition("\n")[0][:300]


@dataclass(frozen=True)
class Difference:
    """A test that ended otherwise through the gateway; None: it was not run at all. `reason` explains a known one."""

    test: str
    direct: Outcome | None
    through: Outcome | None
    reason: str | None = None


@dataclass(frozen=True)
class Known:
    """A difference that has its reason: patterns (fnmatch) of the suite, the server and the test."""

    suite: str
    test: str
    reason: str
    server: str = "*"
    through: str = "*"

    def explains(self, suite: str, server: str, through: str, test: str) -> bool:
        """Whether it is about this test."""
        pairs = ((suite, self.suite), (server, self.server), (through, self.through), (test, self.test))
        return all(fnmatch.fnmatchcase(value, pattern) for value, pattern in pairs)


def read_known(path: Path) -> list[Known]:
    """The known differences, from TOML."""
    return [Known(**entry) for entry in tomllib.loads(path.read_text()).get("known", [])]


def read_outcomes(path: Path) -> dict[str, Outcome]:
    """The outcomes by test: from JUnit's XML, or from lines of JSON. Empty if the suite wrote nothing."""
    if not path.exists():
        return {}
    text = path.read_text(errors="replace")
    return _from_junit(text) if text.lstrip().startswith("<") else _from_json_lines(text)


def _from_junit(text: str) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    for case in ElementTree.fromstring(text).iter("testcase"):
        outcome = Outcome("passed")
        for kind, status in (("error", "error"), ("failure", "failed"), ("skipped", "skipped")):
            element = case.find(kind)
            if element is not None:
                if status == "skipped" and element.get("type") == "pytest.xfail":
                    status = "expected failure"
                outcome = Outcome(status, element.get("message") or element.text or "")
                break
        name = f"{case.get('classname')}::{case.get('name')}"
        if name not in found or found[name].status in GOOD:  # a test and an error of its tear-down are two cases
            found[name] = outcome
    return found


def _from_json_lines(text: str) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    for line in text.splitlines():
        each = json.loads(line)
        if each["test"] not in found or found[each["test"]].status in GOOD:
            found[each["test"]] = Outcome(each["status"], each["text"])
    return found


def counts(outcomes: dict[str, Outcome]) -> Counter[str]:
    """How many ended how."""
    return Counter(outcome.status for outcome in outcomes.values())


def differences(direct: dict[str, Outcome], through: dict[str, Outcome]) -> list[Difference]:
    """The tests whose status differs, or that fail with another first line."""
    found = []
    for test in sorted(direct.keys() | through.keys()):
        one, other = direct.get(test), through.get(test)
        if one is None or other is None or one.status != other.status or _told(one) != _told(other):
            found.append(Difference(test, one, other))
    return found


def _told(outcome: Outcome) -> str:
    return "" if outcome.status in PASSABLE else _CHANCE.sub("#", outcome.line)
