"""Reads the SQL corpus; tests/corpus/sql/README.md describes its format."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.routing.fingerprint import Reading
from gateway.routing.operation import Kind, PinCause

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


_NAMED = {"LF": "\n", "CR": "\r", "TAB": "\t", "VT": "\v", "FF": "\f", "NUL": "\0"}
_CHARACTER = re.compile(r"<(?:(LF|CR|TAB|VT|FF|NUL)|U\+([0-9A-F]+))>")


def unescape(line: str) -> bytes:
    return _CHARACTER.sub(lambda match: _NAMED.get(match[1]) or chr(int(match[2], 16)), line).encode()


def load(folder: Path = CORPUS) -> list[Entry]:
    entries = []
    for path in sorted(folder.glob("*.txt")):
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
