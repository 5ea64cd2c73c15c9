"""What a rule file says, as plain structs: rules that are tried in order, and the tests beside them.

The structs are the files' schema (gateway/toml_struct.py reads them). They say nothing about how a rule is applied:
`load` refuses what makes no sense, `compile` turns rules into fast decisions, `policy` combines them with hints and the
listener's defaults.
"""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

import msgspec

from gateway.toml_struct import Seconds

Names: TypeAlias = str | tuple[str, ...]  # one pattern, or several of which one must fit
KindName: TypeAlias = Literal["read", "write", "transaction", "session", "unknown"]
Side: TypeAlias = Literal["primary", "replica"]
Level: TypeAlias = Literal["eventual", "bounded", "session", "strong"]
Mode: TypeAlias = Literal["sync", "async", "none"]


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """When a rule applies: every key that is given must fit. Names take the wildcards * ? [...].

    `tables` are "table" or "database.table", `columns` "table.column" or "database.table.column"; both ignore case,
    and a name without a database fits in every database. A column also fits where it cannot be excluded: `*` of
    a table whose columns nobody knows, a statement that could not be understood. `client` is an address or a network.
    """

    protocol: Literal["mysql", "memcached"] | None = None
    listener: Names | None = None
    user: Names | None = None
    client: Names | None = None
    kind: KindName | tuple[KindName, ...] | None = None
    # mysql
    database: Names | None = None  # the session's own
    statement: Names | None = None  # "select", "insert", "create table", ...
    tables: Names | None = None
    columns: Names | None = None
    functions: Names | None = None
    without_where: bool | None = None
    # memcached
    key: Names | None = None

    SQL_KEYS: ClassVar[tuple[str, ...]] = ("database", "statement", "tables", "columns", "functions", "without_where")
    KEY_KEYS: ClassVar[tuple[str, ...]] = ("key",)


class RouteAction(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request goes; what is None stays as the listener says. Times in seconds."""

    to: Side | None = None
    consistency: Level | None = None
    max_lag: Seconds | None = None
    timeout: Seconds | None = None  # how long the statement may run before it is ended
    freshness_wait: Seconds | None = None


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One [[rule]]: `route` and `replicate` may stand together, `block` stands alone."""

    name: str
    match: Match = Match()
    route: RouteAction | None = None
    block: str | None = None  # refuses the request with this message
    replicate: Mode | None = None  # memcached: how a write gets to the replicas
    place: str = ""  # file:line, for people

    HIDDEN: ClassVar[tuple[str, ...]] = ("place",)


class Expect(msgspec.Struct, frozen=True, kw_only=True):
    """What a test expects; what is None is not compared. `rule = ""` expects that no rule decides."""

    to: Side | None = None
    rule: str | None = None
    consistency: Level | None = None
    max_lag: Seconds | None = None
    timeout: Seconds | None = None
    freshness_wait: Seconds | None = None
    replicate: Mode | None = None
    block: bool | str | None = None  # true: refused, whatever the message
    kind: KindName | None = None


class Test(msgspec.Struct, frozen=True, kw_only=True):
    """One [[test]]: a statement (`sql`) or a command line (`command`), who sends it, and what comes of it."""

    sql: str | None = None
    command: str | None = None
    protocol: Literal["mysql", "memcached"] | None = None  # told by sql or command
    listener: str | None = None  # the first of its protocol
    user: str = ""
    client: str = "127.0.0.1"
    database: str | None = None
    expect: Expect
    place: str = ""  # file:line, for people

    HIDDEN: ClassVar[tuple[str, ...]] = ("place",)
    __test__: ClassVar[bool] = False  # pytest must not collect it


class RuleFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the rules folder, in its own order."""

    file: str
    rules: tuple[Rule, ...] = ()
    tests: tuple[Test, ...] = ()
