"""Every statement of the corpus has the class that its heading says, cold and from the caches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.routing.fingerprint import Reading
from gateway.routing.operation import Kind, PinCause, SqlOperation, TransactionEffect
from gateway.routing.sql import Classifier

CORPUS = Path(__file__).parent.parent / "corpus" / "sql"
MODES = {
    "ansi": {"ansi_quotes": True},
    "nbe": {"no_backslash_escapes": True},
    "ignore-space": {"ignore_space": True},
    "oracle": {"oracle_mode": True},
    "latin1": {"utf8": False},
    "gbk": {"utf8": False, "unsafe_charset": True},
}
PINS = {cause.name.lower().replace("_", "-"): cause for cause in PinCause}


@dataclass(frozen=True)
class Entry:
    place: str
    kind: Kind
    replica: bool
    flags: tuple[str, ...]
    sql: bytes
    readings: tuple[Reading, ...]


def unescape(line: str) -> bytes:
    return line.replace("<LF>", "\n").replace("<TAB>", "\t").replace("<NUL>", "\0").encode()


def load() -> list[Entry]:
    entries = []
    for path in sorted(CORPUS.glob("*.txt")):
        heading: list[str] | None = None
        lines = path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines, 1):
            after_heading = number > 1 and lines[number - 2].startswith("= ")
            if line.startswith("= ") and len(line.split()) > 2:
                heading = line.split()[1:]
                continue
            if line.startswith("# ") and not line.startswith(("# DELETE", "# first line", "# only")):
                continue
            if heading is None or (not line and not after_heading):
                continue
            kind, target, *flags = heading
            modes: dict[str, Any] = {}
            for flag in flags:
                modes.update(MODES.get(flag, {}))
            servers = [server for server in ("mysql", "mariadb") if server in flags] or ["mysql", "mariadb"]
            readings = tuple(Reading(mariadb=server == "mariadb", **modes) for server in servers)
            place = f"{path.stem}:{number}"
            entries.append(Entry(place, Kind(kind), target == "replica", tuple(flags), unescape(line), readings))
    return entries


ENTRIES = load()


def goes_to_replica(operation: SqlOperation) -> bool:
    return operation.kind is Kind.READ and operation.needs_primary is None and not operation.last_connection


def expected(entry: Entry) -> dict[str, object]:
    values = {flag.partition(":")[0]: flag.partition(":")[2] for flag in entry.flags}
    return {
        "pin": PINS[values["pin"]] if "pin" in values else None,
        "unpin": PINS[values["unpin"]] if "unpin" in values else None,
        "transaction": TransactionEffect(values["tx"]) if "tx" in values else TransactionEffect.NONE,
        "last_connection": "last" in values,
        "multi": "multi" in values,
        "chain": "chain" in values,
        "release": "release" in values,
        "found_rows": "found-rows" in values,
        "without_where": "no-where" in values,
    }


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.place)
def test_a_statement_has_the_class_of_its_heading(entry: Entry) -> None:
    for reading in entry.readings:
        operation = Classifier().classify(entry.sql, reading)
        assert (operation.kind, goes_to_replica(operation)) == (entry.kind, entry.replica), operation
        if "?" not in entry.flags:
            assert {name: getattr(operation, name) for name in expected(entry)} == expected(entry), operation


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len({entry.sql for entry in ENTRIES}) >= 800


def test_one_classifier_for_all_gives_the_same_classes_as_one_for_each() -> None:
    """Whatever the caches hold from other statements, the class stays."""
    shared = Classifier()
    for reading in dict.fromkeys(reading for entry in ENTRIES for reading in entry.readings):
        alone = {entry.sql: Classifier().classify(entry.sql, reading) for entry in ENTRIES if reading in entry.readings}
        for _ in range(2):
            for sql, operation in alone.items():
                assert shared.classify(sql, reading) == operation, sql
