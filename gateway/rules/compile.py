"""Compiles rule files into an immutable `RuleSet` that decides fast: the first rule that matches, or none.

What depends on the connection only (listener, user, client's address) is decided once per connection: `sql_rules` and
`key_rules` give the rules that are left for it, and connections for which the same rules are left share them. Where no
rule is left, a request costs nothing.

A reload makes a new RuleSet; sessions keep theirs until they take the new one.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from gateway.routing.operation import Column, Kind, SqlOperation, Table
from gateway.rules.load import listed, protocols
from gateway.rules.model import Names, Rule, RuleFile

_SqlTest: TypeAlias = Callable[[SqlOperation, str | None], bool]
_KINDS: Final = {kind.value: kind for kind in Kind}
_WILD: Final = re.compile(r"[*?\[]")
_ANY_COLUMN: Final = frozenset(["*", "_rowid"])
"""What stands for columns that are not named; `_rowid` is an integer primary key (MySQL manual, CREATE INDEX)."""


# ---------------------------------------------------------------- patterns


def _folded(name: str) -> str:
    """A name without its case, as a server compares names or more coarsely: to MySQL `İ` is an `i` (tried)."""
    return name.casefold().replace("i\N{COMBINING DOT ABOVE}", "i")


def _pattern(names: Names | None, *, ignore_case: bool = False) -> Callable[[str], bool] | None:
    """A test for one name, or None where everything fits."""
    if names is None:
        return None
    given = [_folded(name) if ignore_case else name for name in listed(names)]
    exact = frozenset(name for name in given if not _WILD.search(name))
    wild = [re.compile(fnmatch.translate(name)) for name in given if _WILD.search(name)]

    def fits(name: str) -> bool:
        folded = _folded(name) if ignore_case else name
        return folded in exact or any(each.match(folded) is not None for each in wild)

    return fits


def _networks(names: Names | None) -> Callable[[str], bool] | None:
    if names is None:
        return None
    networks = [ipaddress.ip_network(name) for name in listed(names)]

    def fits(client: str) -> bool:
        try:
            address = ipaddress.ip_address(client)
        except ValueError:
            return False  # a unix socket has no address and is in no network
        return any(address in network for network in networks)

    return fits


@dataclass(frozen=True, slots=True)
class _Name:
    """A pattern of one table or column: what is None fits everything."""

    database: Callable[[str], bool] | None
    table: Callable[[str], bool]
    column: Callable[[str], bool] | None

    def fits_table(self, table: Table, current: str | None) -> bool:
        if not self.table(table.name):
            return False
        database = table.database if table.database is not None else current
        # Without any database nothing says that it is another one.
        return self.database is None or database is None or self.database(database)

    def fits_column(self, column: Column, operation: SqlOperation, current: str | None) -> bool:
        assert self.column is not None
        if column.name.lower() not in _ANY_COLUMN and not self.column(column.name):
            return False
        if column.table is not None:
            return self.fits_table(column.table, current)
        tables = operation.reads + operation.writes
        complete = operation.tables_complete and tables
        return not complete or any(self.fits_table(table, current) for table in tables)


def _names(given: Names, *, columns: bool) -> list[_Name]:
    found: list[_Name] = []
    for name in listed(given):
        parts: list[str | None] = [*name.split(".")]
        column = parts.pop() if columns else None
        table = parts.pop()
        database = parts.pop() if parts else None
        tests = [_pattern(part, ignore_case=True) for part in (database, table, column)]
        assert tests[1] is not None
        found.append(_Name(tests[0], tests[1], tests[2]))
    return found


# ---------------------------------------------------------------- one rule


@dataclass(frozen=True, slots=True)
class _Connection:
    """The part of a match that one connection answers for good."""

    listener: Callable[[str], bool] | None
    user: Callable[[str], bool] | None
    client: Callable[[str], bool] | None

    def fits(self, listener: str, user: str, client: str) -> bool:
        return (
            (self.listener is None or self.listener(listener))
            and (self.user is None or self.user(user))
            and (self.client is None or self.client(client))
        )


@dataclass(frozen=True, slots=True)
class _SqlRule:
    rule: Rule
    connection: _Connection
    tests: tuple[_SqlTest, ...]

    def fits(self, operation: SqlOperation, database: str | None) -> bool:
        return all(test(operation, database) for test in self.tests)


def _sql_tests(rule: Rule) -> tuple[_SqlTest, ...]:
    """The cheap tests come first."""
    match = rule.match
    tests: list[_SqlTest] = []
    if match.kind is not None:
        kinds = frozenset(_KINDS[kind] for kind in listed(match.kind))
        tests.append(lambda operation, _: operation.kind in kinds)
    if match.without_where is not None:
        without_where = match.without_where
        tests.append(lambda operation, _: operation.without_where is without_where)
    statement = _pattern(match.statement, ignore_case=True)
    if statement is not None:
        tests.append(lambda operation, _: statement(operation.statement))
    database = _pattern(match.database)
    if database is not None:
        tests.append(lambda _, current: current is not None and database(current))
    function = _pattern(match.functions, ignore_case=True)
    if function is not None:
        tests.append(lambda operation, _: any(function(name) for name in operation.functions))
    if match.tables is not None:
        tables = _names(match.tables, columns=False)
        tests.append(
            lambda operation, current: any(
                name.fits_table(table, current) for name in tables for table in operation.reads + operation.writes
            )
        )
    if match.columns is not None:
        columns = _names(match.columns, columns=True)
        tests.append(lambda operation, current: _touches(columns, operation, current))
    return tuple(tests)


def _touches(columns: Sequence[_Name], operation: SqlOperation, current: str | None) -> bool:
    if operation.kind is Kind.UNKNOWN or not operation.columns_complete:
        return True  # nothing is known about it, or about a view that it reads, so that no column can be excluded
    return any(name.fits_column(column, operation, current) for name in columns for column in operation.columns)


@dataclass(frozen=True, slots=True)
class _KeyRule:
    """Keys are bytes; almost all patterns are a prefix or a whole key, which need no regular expression."""

    rule: Rule
    connection: _Connection
    kinds: frozenset[Kind]
    all_keys: bool
    prefixes: tuple[bytes, ...]
    exact: frozenset[bytes]
    wild: tuple[re.Pattern[bytes], ...]

    def fits(self, kind: Kind, key: bytes) -> bool:
        return kind in self.kinds and (
            self.all_keys
            or key.startswith(self.prefixes)
            or key in self.exact
            or any(each.match(key) is not None for each in self.wild)
        )


def _key_rule(rule: Rule, connection: _Connection) -> _KeyRule:
    kinds = frozenset(_KINDS[kind] for kind in listed(rule.match.kind)) or frozenset({Kind.READ, Kind.WRITE})
    prefixes: list[bytes] = []
    exact: list[bytes] = []
    wild: list[re.Pattern[bytes]] = []
    for name in listed(rule.match.key):
        if not _WILD.search(name):
            exact.append(name.encode())
        elif name.endswith("*") and not _WILD.search(name[:-1]):
            prefixes.append(name[:-1].encode())
        else:
            # latin-1 maps bytes to characters one to one, so that ? and [...] mean bytes.
            translated = fnmatch.translate(name.encode().decode("latin-1"))
            wild.append(re.compile(translated.encode("latin-1")))
    return _KeyRule(
        rule, connection, kinds, rule.match.key is None, tuple(prefixes), frozenset(exact), tuple(wild)
    )  # fmt: skip


# ---------------------------------------------------------------- all rules


@dataclass(frozen=True, slots=True, eq=False)
class SqlRules:
    """The rules that are left for one kind of connection; false if none is."""

    _rules: tuple[_SqlRule, ...]

    def __bool__(self) -> bool:
        return bool(self._rules)

    def first(self, operation: SqlOperation, database: str | None) -> Rule | None:
        """The rule that decides; `database` is the session's own."""
        for rule in self._rules:
            if rule.fits(operation, database):
                return rule.rule
        return None


class KeyRules:
    """The key rules that are left for one kind of connection; false if none is."""

    __slots__ = ("_exact", "_prefixes", "_rules", "some_stay_local")

    def __init__(self, rules: tuple[_KeyRule, ...]) -> None:
        self._rules = rules
        anything = any(rule.all_keys or rule.wild for rule in rules)
        # Most keys concern no rule, and one startswith with all prefixes finds that out.
        self._prefixes = (b"",) if anything else tuple(prefix for rule in rules for prefix in rule.prefixes)
        self._exact = frozenset(key for rule in rules for key in rule.exact)
        self.some_stay_local = any(rule.rule.replicate == "none" for rule in rules)
        """Whether any of them keeps keys from being replicated."""

    def __bool__(self) -> bool:
        return bool(self._rules)

    def concern(self, key: bytes) -> bool:
        """False if no rule can match the key, whatever the request is."""
        return key.startswith(self._prefixes) or key in self._exact

    def first(self, kind: Kind, key: bytes) -> Rule | None:
        """The rule that decides for one key of a request of that kind (READ or WRITE)."""
        for rule in self._rules:
            if rule.fits(kind, key):
                return rule.rule
        return None


class RuleSet:
    """All rules of a folder, compiled. Immutable but for what it remembers."""

    __slots__ = ("_key_rules", "_shared_keys", "_shared_sql", "_sql_rules", "rules")

    def __init__(self, files: Iterable[RuleFile] = ()) -> None:
        """`files` in the order in which they are tried, without problems (see load)."""
        self.rules: tuple[Rule, ...] = tuple(rule for file in files for rule in file.rules)
        sql: list[_SqlRule] = []
        keys: list[_KeyRule] = []
        for rule in self.rules:
            match = rule.match
            connection = _Connection(_pattern(match.listener), _pattern(match.user), _networks(match.client))
            fits = protocols(match)
            if "mysql" in fits and rule.replicate is None:
                sql.append(_SqlRule(rule, connection, _sql_tests(rule)))
            if "memcached" in fits:
                keys.append(_key_rule(rule, connection))
        self._sql_rules = tuple(sql)
        self._key_rules = tuple(keys)
        # Bounded by the number of subsets of rules that connections have in practice, not by users or addresses.
        self._shared_sql: dict[tuple[int, ...], SqlRules] = {}
        self._shared_keys: dict[tuple[int, ...], KeyRules] = {}

    @property
    def column_tables(self) -> frozenset[tuple[str | None, str]]:
        """Patterns of the tables, each with one of its database or None, that rules on columns are about."""
        found: set[tuple[str | None, str]] = set()
        for rule in self.rules:
            for name in listed(rule.match.columns):
                *database, table, _ = name.split(".")
                found.add((database[0] if database else None, table))
        return frozenset(found)

    @property
    def has_sql_rules(self) -> bool:
        return bool(self._sql_rules)

    @property
    def has_key_rules(self) -> bool:
        return bool(self._key_rules)

    def sql_rules(self, listener: str, user: str, client: str) -> SqlRules:
        """What is left for a connection; the same object for connections with the same rules."""
        fitting = tuple(
            index for index, rule in enumerate(self._sql_rules) if rule.connection.fits(listener, user, client)
        )
        shared = self._shared_sql.get(fitting)
        if shared is None:
            shared = self._shared_sql[fitting] = SqlRules(tuple(self._sql_rules[index] for index in fitting))
        return shared

    def key_rules(self, listener: str, user: str, client: str) -> KeyRules:
        """What is left for a connection; the same object for connections with the same rules."""
        fitting = tuple(
            index for index, rule in enumerate(self._key_rules) if rule.connection.fits(listener, user, client)
        )
        shared = self._shared_keys.get(fitting)
        if shared is None:
            shared = self._shared_keys[fitting] = KeyRules(tuple(self._key_rules[index] for index in fitting))
        return shared

    def sql(self, operation: SqlOperation, user: str, database: str | None, client: str, listener: str) -> Rule | None:
        """The rule that decides for one statement. Sessions keep `sql_rules` instead of asking here."""
        return self.sql_rules(listener, user, client).first(operation, database) if self._sql_rules else None

    def key(self, kind: Kind, key: bytes, user: str, listener: str, client: str) -> Rule | None:
        """The rule that decides for one key. Sessions keep `key_rules` instead of asking here."""
        return self.key_rules(listener, user, client).first(kind, key) if self._key_rules else None


NO_RULES: Final = RuleSet()
