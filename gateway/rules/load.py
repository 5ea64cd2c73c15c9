"""Reads the rules folder and refuses what makes no sense, each problem with its file and line.

A rule can only ever make a request safer by itself, so one that could send a write to a replica is an error here, not
something that is ignored later.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from gateway.errors import ConfigError
from gateway.rules.model import Match, Names, Rule, RuleFile, Test
from gateway.toml_lines import Place
from gateway.toml_struct import Reader, read_document


def read_rules(folder: Path) -> tuple[tuple[RuleFile, ...], list[ConfigError]]:
    """The rule files in name order, and everything that is wrong with them; a folder that is not there has no rules."""
    files: list[RuleFile] = []
    problems: list[ConfigError] = []
    names: dict[str, str] = {}
    if folder.exists() and not folder.is_dir():
        return (), [ConfigError("is not a folder of rule files", str(folder))]
    for path in sorted(folder.glob("*.toml")):
        try:
            reader = Reader(read_document(path))
        except ConfigError as error:
            problems.append(error)
            continue
        files.append(_read_file(reader, names))
        problems += reader.problems
    return tuple(files), problems


def load_rules(folder: Path) -> tuple[RuleFile, ...]:
    """The rule files; ConfigError for the first problem."""
    files, problems = read_rules(folder)
    if problems:
        raise problems[0]
    return files


def _read_file(reader: Reader, names: dict[str, str]) -> RuleFile:
    """`names`: the rules that there are already -> their place; grows."""
    document = reader.document
    reader.refuse_unknown(document.tables, ["rule", "test"], ())
    rules: list[Rule] = []
    for place, table in _tables(reader, "rule"):
        rule = reader.struct(Rule, table, place)
        if rule is None:
            continue
        rule = msgspec.structs.replace(rule, place=f"{document.file}:{document.line(place)}")
        if rule.name in names:
            reader.report((*place, "name"), f'there is a rule "{rule.name}" already, at {names[rule.name]}')
        names.setdefault(rule.name, rule.place)
        for at, message in _rule_problems(rule, place):
            reader.report(at, f'rule "{rule.name}": {message}')
        rules.append(rule)
    tests: list[Test] = []
    for place, table in _tables(reader, "test"):
        test = reader.struct(Test, table, place)
        if test is None:
            continue
        for at, message in _test_problems(test, place):
            reader.report(at, f"test: {message}")
        tests.append(msgspec.structs.replace(test, place=f"{document.file}:{document.line(place)}"))
    return RuleFile(file=document.file, rules=tuple(rules), tests=tuple(tests))


def _tables(reader: Reader, name: str) -> Iterator[tuple[Place, Any]]:
    tables = reader.document.tables.get(name, [])
    if not isinstance(tables, list):
        reader.report((name,), f"{name} must be written as [[{name}]], once for each")
        return
    for index, table in enumerate(tables):
        yield (name, index), table


# ---------------------------------------------------------------- rules


def protocols(match: Match) -> frozenset[str]:
    """The protocols that a match can fit; empty if its keys contradict each other."""
    fits = {"mysql", "memcached"} if match.protocol is None else {match.protocol}
    if any(getattr(match, key) is not None for key in Match.SQL_KEYS):
        fits.discard("memcached")
    if any(getattr(match, key) is not None for key in Match.KEY_KEYS):
        fits.discard("mysql")
    return frozenset(fits)


def listed(names: Names | None) -> tuple[str, ...]:
    """One pattern or several, as several; nothing for None."""
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else names


def _rule_problems(rule: Rule, place: Place) -> Iterator[tuple[Place, str]]:
    match, route = rule.match, rule.route
    at_match: Place = (*place, "match")
    fits = protocols(match)
    if not rule.name.strip():
        yield (*place, "name"), "it needs a name, by which explain and tests call it"
    if not fits:
        yield at_match, f"these keys never fit together: {', '.join(_given(match))}"
        return
    yield from _match_problems(match, at_match)
    if rule.block is None and route is None and rule.replicate is None:
        yield place, "it does nothing: give it route, block or replicate"
    if rule.block is not None and not (route is None and rule.replicate is None):
        yield (*place, "block"), "block stands alone: a request that is refused goes nowhere"
    if rule.block is not None and not rule.block.strip():
        yield (*place, "block"), "block is the message that the client gets; it must not be empty"
    if route is not None:
        yield from _route_problems(rule, fits, (*place, "route"))
    if rule.replicate is not None:
        yield from _replicate_problems(rule, fits, (*place, "replicate"))


def _given(match: Match) -> list[str]:
    return [key for key in match.__struct_fields__ if getattr(match, key) is not None]


def _match_problems(match: Match, place: Place) -> Iterator[tuple[Place, str]]:
    for key in _given(match):
        value = getattr(match, key)
        if value == () or (isinstance(value, tuple) and "" in value) or value == "":
            yield (*place, key), f"{key} is empty and would never fit"
    for client in listed(match.client):
        try:
            ipaddress.ip_network(client)
        except ValueError as error:
            yield (*place, "client"), f"client must be an address or a network: {error}"
    for key, least, most in (("tables", 1, 2), ("columns", 2, 3)):
        for name in listed(getattr(match, key)):
            parts = name.split(".")
            if not least <= len(parts) <= most or not all(parts):
                form = "table or database.table" if key == "tables" else "table.column or database.table.column"
                yield (*place, key), f'"{name}" in {key} must be {form}'
    if match.protocol == "memcached" or match.key is not None:
        for kind in listed(match.kind):
            if kind not in ("read", "write"):
                yield (*place, "kind"), f'memcached has no kind "{kind}", only read and write'


def _route_problems(rule: Rule, fits: frozenset[str], place: Place) -> Iterator[tuple[Place, str]]:
    route = rule.route
    assert route is not None
    given = [key for key in route.__struct_fields__ if getattr(route, key) is not None]
    if not given:
        yield place, "route is empty"
    if route.to == "replica" and listed(rule.match.kind) != ("read",):
        yield (
            (*place, "to"),
            'a write must never go to a replica: add kind = "read" to its match, or route it to the primary',
        )
    if route.to == "replica" and route.consistency == "strong":
        yield (*place, "consistency"), "strong reads go to the primary, so this cannot go to a replica"
    if route.to == "primary":
        for key in ("max_lag", "freshness_wait"):
            if key in given:
                yield (*place, key), f"{key} means nothing at the primary"
        if route.consistency not in (None, "strong"):
            yield (*place, "consistency"), "the primary is never behind: consistency means nothing there"
    if "memcached" in fits:
        for key in given:
            if key != "to":
                how = 'add protocol = "mysql" to its match' if "mysql" in fits else "memcached requests have none"
                yield (*place, key), f"{key} is for mysql: {how}"


def _replicate_problems(rule: Rule, fits: frozenset[str], place: Place) -> Iterator[tuple[Place, str]]:
    if fits != {"memcached"}:
        yield place, 'replicate is for memcached: add protocol = "memcached" to its match'
    if listed(rule.match.kind) == ("read",):
        yield place, "a read is not replicated; replicate needs a rule that matches writes"
    if rule.replicate == "none":
        for key in ("user", "client"):
            if getattr(rule.match, key) is not None:
                # Reads of other clients would go to replicas, which miss this write for ever.
                yield place, f'replicate = "none" must depend on the key alone, not on {key}: others read the same key'
        if rule.route is not None and rule.route.to == "replica":
            yield place, "keys that are not replicated are read at the primary"


# ---------------------------------------------------------------- tests


def _test_problems(test: Test, place: Place) -> Iterator[tuple[Place, str]]:
    if (test.sql is None) == (test.command is None):
        yield place, "give either sql or command"
    elif test.sql is not None and test.protocol not in (None, "mysql"):
        yield (*place, "protocol"), f"sql is not {test.protocol}"
    elif test.command is not None and test.protocol not in (None, "memcached"):
        yield (*place, "protocol"), f"a command is not {test.protocol}"
    expect = test.expect
    if all(getattr(expect, key) is None for key in expect.__struct_fields__):
        yield (*place, "expect"), "it expects nothing"
    try:
        ipaddress.ip_address(test.client)
    except ValueError as error:
        yield (*place, "client"), f"client must be an address: {error}"
    if test.command is not None:
        for key in ("consistency", "max_lag", "timeout", "freshness_wait"):
            if getattr(expect, key) is not None:
                yield (*place, "expect", key), f"a command has no {key}"
    elif test.sql is not None and expect.replicate is not None:
        yield (*place, "expect", "replicate"), "sql has no replicate"
