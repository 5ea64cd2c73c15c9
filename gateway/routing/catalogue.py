"""What the primary says of its views, stored functions and procedures, triggers and foreign keys: plain data, and who
could see it.

A catalogue is used only as far as the account that read it could see: INFORMATION_SCHEMA hides what one has no right
to, and empty would look like safe (SQL.md, Classification). So every lookup distinguishes *there is none* from *nobody
knows*: `Sight` says in which databases views, routines and triggers show themselves at all.

Names of tables and databases are compared as the server does, by lower_case_table_names; names of routines and columns
without their case. Base tables are not listed: in a database whose views are all known, what is no view is a table.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from gateway.routing.functions import words
from gateway.routing.operation import Column, Kind, SqlOperation, Table, TransactionEffect

SYSTEM_SCHEMAS: Final = frozenset(["information_schema", "performance_schema", "sys"])
"""Their views are the server's own. performance_schema and sys are read at the primary anyway."""


HIDDEN_COLUMNS: Final = frozenset(["_rowid", "my_row_id", "row_start", "row_end"])
"""Columns that may be asked for where INFORMATION_SCHEMA shows none: a key's other name, MySQL's generated invisible
primary key, MariaDB's system versioning. `*` does not stand for them."""

# ---------------------------------------------------------------- what there is


@dataclass(frozen=True, slots=True)
class View:
    """A view; `definition` is its SELECT as the server prints it, "" where nobody may see it.

    `columns` are the names of its columns, None where they are those that the definition gives its results: MySQL
    prints what a list of columns behind the view's name renames as it was (tried).
    """

    table: Table
    definition: str
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Routine:
    """A stored function or procedure. `declared` is its SQL_DATA_ACCESS, `deterministic` as declared: claims, no proof.

    `body` is "" where nobody may see it or it is no SQL.
    """

    name: Table
    function: bool
    body: str
    sql_mode: str
    parameters: tuple[str, ...]
    declared: str
    deterministic: bool


@dataclass(frozen=True, slots=True)
class Trigger:
    """A trigger of `table`; `event` is INSERT, UPDATE or DELETE."""

    name: str
    table: Table
    event: str
    body: str
    sql_mode: str


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """Rows of `child` refer to `parent`; the rules are CASCADE, SET NULL, SET DEFAULT, RESTRICT or NO ACTION."""

    child: Table
    parent: Table
    on_delete: str
    on_update: str


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything that was read. `loadable` are the names of loadable functions, None if nobody may see them.

    `columns` are the names, lower case, of all columns of the tables that rules on columns may be about.
    """

    views: tuple[View, ...] = ()
    routines: tuple[Routine, ...] = ()
    triggers: tuple[Trigger, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    loadable: frozenset[str] | None = frozenset()
    columns: Mapping[Table, frozenset[str]] = field(default_factory=dict)


NOTHING: Final = Contents()


# ---------------------------------------------------------------- who could see it


_GRANT: Final = re.compile(
    r"(GRANT|REVOKE) (.+?) ON (?:(TABLE|FUNCTION|PROCEDURE|PACKAGE BODY|PACKAGE) )?"
    r"(\*|`(?:[^`]|``)*`|[^\s.]+)\.(\*|`(?:[^`]|``)*`|\S+) (?:TO|FROM) ",
    re.DOTALL,
)
_ON_TABLES: Final = frozenset(
    [*words("SELECT INSERT UPDATE DELETE CREATE DROP REFERENCES INDEX ALTER TRIGGER"), "CREATE VIEW", "SHOW VIEW"]
)
"""Any of these shows the names of tables and views in INFORMATION_SCHEMA."""
_ALL: Final = "ALL PRIVILEGES"


def _unquoted(name: str) -> str:
    return name[1:-1].replace("``", "`") if name[:1] == "`" else name


def _like(pattern: str) -> re.Pattern[str]:
    """A database's name in a GRANT: a pattern of LIKE."""
    pieces = re.findall(r"\\.|.", pattern, re.DOTALL)
    known = {"%": ".*", "_": "."}
    return re.compile("".join(known.get(piece) or re.escape(piece[-1]) for piece in pieces), re.DOTALL | re.IGNORECASE)


class Grants:
    """The rights of one account, from the rows of SHOW GRANTS."""

    def __init__(self, rows: Iterable[str], *, literal_names: bool = False) -> None:
        """`literal_names`: MySQL's partial_revokes is on, so that % and _ in the name of a database mean themselves."""
        self.everywhere: set[str] = set()
        self._patterns: list[tuple[re.Pattern[str], set[str]]] = []
        self._revoked: defaultdict[str, set[str]] = defaultdict(set)
        self._tables: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        for row in rows:
            match = _GRANT.match(row)
            if match is None or match[3] not in (None, "TABLE"):
                continue  # a role, PROXY, or the right to one routine
            privileges = {name.strip().upper() for name in match[2].split(",") if "(" not in name}
            database, table = _unquoted(match[4]), match[5]
            if match[1] == "REVOKE":
                self._revoked[database.lower()] |= privileges
            elif match[4] == "*":
                self.everywhere |= privileges
            elif table == "*":
                pattern = re.compile(re.escape(database)) if literal_names else _like(database)
                self._patterns.append((pattern, privileges))
            else:
                self._tables[database.lower(), _unquoted(table).lower()] |= privileges

    def global_(self, privilege: str) -> bool:
        return bool({privilege, _ALL} & self.everywhere)

    def on(self, database: str, *privileges: str) -> bool:
        """Whether the account has one of the rights for all of a database."""
        wanted = {*privileges, _ALL}
        if wanted & (self.everywhere - self._revoked.get(database.lower(), set())):
            return _ALL not in self.everywhere or not set(privileges) <= self._revoked.get(database.lower(), set())
        return any(wanted & rights for pattern, rights in self._patterns if pattern.fullmatch(database))

    def on_table(self, database: str, table: str, privilege: str) -> bool:
        return self.on(database, privilege) or bool({privilege, _ALL} & self._tables[database, table])

    @property
    def has_databases(self) -> bool:
        """Whether there are rights to single databases."""
        return any(_ON_TABLES & rights or _ALL in rights for _, rights in self._patterns)


@dataclass(frozen=True, slots=True)
class Sight:
    """In which databases what the catalogue says is all that there is.

    `witnessed`: the names of views come from the accounts that read them, which see each view that they may read.
    """

    grants: Grants
    mariadb: bool
    version: tuple[int, int]
    account: str  # as GRANT names it
    witnessed: bool = False

    def views(self, database: str) -> bool:
        return self.witnessed or self.grants.on(database, *_ON_TABLES)

    def routines(self, database: str) -> bool:
        """Whether routines show themselves with their bodies."""
        grants = self.grants
        if self.mariadb:
            return grants.on_table("mysql", "proc", "SELECT") or (
                self.version >= (11, 3) and grants.on(database, "SHOW CREATE ROUTINE")
            )
        return grants.global_("SHOW_ROUTINE") or (grants.global_("SELECT") and grants.on(database, "SELECT"))

    def triggers(self, database: str) -> bool:
        return self.grants.on(database, "TRIGGER")

    def columns(self, database: str) -> bool:
        """Whether a table shows all of its columns, and not only those that the account has a right to."""
        return self.grants.on(database, "SELECT")

    def missing(self) -> list[str]:
        """The GRANT statements that let the account see everything; rights to single databases are respected."""
        grants = self.grants
        found: list[str] = []
        wanted = [right for right in ("SELECT", "SHOW VIEW", "TRIGGER") if not grants.global_(right)]
        if wanted and not grants.has_databases:
            found.append(f"GRANT {', '.join(wanted)} ON *.* TO {self.account}")
        if found and "SELECT" in wanted:
            return found  # with SELECT everywhere comes the rest
        if not self.routines("\0"):
            if not self.mariadb:
                found.append(f"GRANT SHOW_ROUTINE ON *.* TO {self.account}")
            elif self.version >= (11, 3):
                found.append(f"GRANT SHOW CREATE ROUTINE ON *.* TO {self.account}")
            else:
                found.append(f"GRANT SELECT ON mysql.proc TO {self.account}")
        if not grants.on_table("mysql", "func", "SELECT"):
            found.append(f"GRANT SELECT ON mysql.func TO {self.account}")
        return found


# ---------------------------------------------------------------- the catalogue


class Catalogue:
    """What is known of one group's schema at one time. Immutable.

    `version` grows with every reading that found something else. `stale` says why it must not be relied on at the
    moment: DDL was seen, and it was not read since. `problem` says why there is none at all.
    """

    def __init__(
        self,
        contents: Contents = NOTHING,
        sight: Sight | None = None,
        *,
        version: int = 0,
        ignore_case: bool = False,
        problem: str | None = None,
        stale: bool = False,
    ) -> None:
        self.contents = contents
        self.sight = sight
        self.version = version
        self.ignore_case = ignore_case
        self.problem = problem
        self.stale = stale
        self.views = {self.key(view.table): view for view in contents.views}
        self.functions = {self._routine_key(one.name): one for one in contents.routines if one.function}
        self.procedures = {self._routine_key(one.name): one for one in contents.routines if not one.function}
        self.triggers: defaultdict[Table, list[Trigger]] = defaultdict(list)
        for trigger in contents.triggers:
            self.triggers[self.key(trigger.table)].append(trigger)
        self.children: defaultdict[Table, list[ForeignKey]] = defaultdict(list)
        for foreign_key in contents.foreign_keys:
            self.children[self.key(foreign_key.parent)].append(foreign_key)
        self._columns = {self.key(table): names for table, names in contents.columns.items()}
        self.remembered: dict[object, object] = {}  # what sql_resolve found out of definitions

    @property
    def complete(self) -> bool:
        """Whether views, routines, triggers and foreign keys of every database are known, and not out of date."""
        return not self.reasons

    @property
    def reasons(self) -> list[str]:
        """Why it is not complete."""
        if self.problem is not None or self.sight is None:
            return [self.problem or "the catalogue has not been read yet"]
        found = ["DDL was seen, and the catalogue has not been read since"] if self.stale else []
        return found + [f"the monitor account lacks a right: {statement}" for statement in self.sight.missing()]

    def outdated(self) -> Catalogue:
        """The same, not to be relied on."""
        return self._with(stale=True)

    def trusted(self) -> Catalogue:
        """The same, found to be up to date."""
        return self._with(stale=False)

    def _with(self, *, stale: bool) -> Catalogue:
        other = copy.copy(self)
        other.stale = stale
        return other

    def key(self, table: Table) -> Table:
        """A table's name as it is compared; it has a database."""
        if not self.ignore_case:
            return Table(table.name, table.database)
        return Table(table.name.lower(), table.database.lower() if table.database else None)

    def _routine_key(self, name: Table) -> Table:
        database = name.database or ""
        # Beyond ASCII a server folds other letters than Python does: there a name is found only as it was made.
        folded = name.name.lower() if name.name.isascii() else name.name
        return Table(folded, database.lower() if self.ignore_case else database)

    def expanded(self, columns: frozenset[Column], database: str | None) -> frozenset[Column]:
        """The columns of a statement with `*` as the columns that it stands for, without those that no table has.

        A name without a table before it is ascribed to every table that it could belong to. What is not known stays.
        """
        if not self._columns or self.stale or self.sight is None:
            return columns
        found: set[Column] = set()
        for column in columns:
            table = column.table
            known = None
            if table is not None and (home := table.database or database) is not None and self.sight.columns(home):
                known = self._columns.get(self.key(Table(table.name, home)))
            if known is None or column.name.lower() in HIDDEN_COLUMNS:
                found.add(column)
            elif column.name == "*":
                found.update(Column(name, table) for name in known)
            elif column.name.lower() in known or not (column.name.isascii() and all(map(str.isascii, known))):
                found.add(column)  # beyond ASCII a server may fold letters in another way
        return frozenset(found)

    def function(self, name: Table) -> Routine | None:
        return self.functions.get(self._routine_key(name))

    def procedure(self, name: Table) -> Routine | None:
        return self.procedures.get(self._routine_key(name))

    def status(self) -> dict[str, object]:
        """What `gateway status` prints."""
        contents = self.contents
        return {
            "version": self.version,
            "complete": self.complete,
            "why_not": self.reasons,
            "views": len(contents.views),
            "routines": len(contents.routines),
            "triggers": len(contents.triggers),
            "foreign_keys": len(contents.foreign_keys),
        }


# ---------------------------------------------------------------- what changes it


class SchemaChange(Enum):
    """What a statement may do to the catalogue."""

    NONE = "none"
    PERHAPS = "perhaps"  # nothing that is seen, but it may run DDL inside: look soon
    TABLES = "tables"  # columns, foreign keys and triggers of a table; no name becomes or stops being a view
    DEFINITIONS = "definitions"  # views, routines, or what names mean


_HARMLESS: Final = words(
    """
    select with values table insert replace update delete use show savepoint lock unlock load handler get kill flush
    analyze optimize repair check cache purge xa start stop release describe desc explain deallocate prepare help
    signal do checksum backup reset binlog field statistics
    """
)
"""First words of statements that never change the schema."""
_PERHAPS: Final = frozenset(["call", "execute", "grant", "revoke", "prepared", "set"])
_TRANSACTIONS: Final = frozenset(["begin", "commit", "rollback"])
_TABLES: Final = frozenset(
    ["create table", "drop table", "truncate table", "create index", "drop index", "create sequence", "drop sequence"]
)


def schema_change(operation: SqlOperation) -> SchemaChange:
    """What a statement that was carried out may have done to the catalogue: doubt means DEFINITIONS."""
    if operation.kind in (Kind.READ, Kind.TRANSACTION, Kind.SESSION):
        return SchemaChange.NONE
    changes = {_change_of(part, operation) for part in operation.statement.split("; ")}
    for change in (SchemaChange.DEFINITIONS, SchemaChange.TABLES, SchemaChange.PERHAPS):
        if change in changes:
            return change
    return SchemaChange.NONE


def _change_of(statement: str, operation: SqlOperation) -> SchemaChange:
    if statement in _TABLES:
        temporary = operation.temporary_tables and operation.transaction is TransactionEffect.NONE
        return SchemaChange.NONE if temporary else SchemaChange.TABLES
    first = statement.partition(" ")[0]
    if first in _HARMLESS:
        return SchemaChange.NONE
    if first in _TRANSACTIONS and operation.multi:
        return SchemaChange.NONE  # by itself it is understood, unless it is a compound statement
    if first in _PERHAPS:
        return SchemaChange.PERHAPS
    return SchemaChange.DEFINITIONS


def unqualified(tables: Sequence[Table], database: str | None) -> tuple[Table, ...]:
    """The tables with the database that they are in; without one, none has it."""
    return tuple(Table(table.name, table.database or database) for table in tables)
