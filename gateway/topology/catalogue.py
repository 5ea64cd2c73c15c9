"""Reads the catalogue of a group from its primary: at the start, after DDL that passed, and at a low rate.

One connection of the monitor account's. A look asks for counts and checksums first, and reads again what they say has
changed. After a statement that changes what names mean the catalogue is *stale* from the statement's end until it was
looked at again, which sessions may wait for (`settled`); after one that only changes tables it is looked at soon.

Where the monitor account may not see the names of views, the accounts of the group's users are asked for them: who may
read a view sees its name in INFORMATION_SCHEMA. Nothing is then known of what is in the views.
"""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Final

import structlog
import trio

from gateway.backends.mysql import Credentials
from gateway.backends.mysql_log_in import ask, log_in, log_in_errors
from gateway.backends.mysql_server import MysqlServer
from gateway.errors import BackendRefused, ProtocolError, Unavailable
from gateway.net.connect import Conversation
from gateway.net.lane import Lane
from gateway.protocol.mysql.commands import query
from gateway.protocol.mysql.results import ResultReader
from gateway.routing.catalogue import (
    Catalogue,
    Contents,
    ForeignKey,
    Grants,
    Routine,
    SchemaChange,
    Sight,
    Trigger,
    View,
    schema_change,
)
from gateway.routing.operation import SqlOperation, Table

REFRESH_SECONDS: Final = 30.0  # between looks; DDL past the gateway is seen so late
SOON_SECONDS: Final = 1.0  # between looks because of DDL on tables, GRANT and CALL
SETTLE_SECONDS: Final = 2.0  # how long a session waits for the look that DDL made necessary
READ_SECONDS: Final = 30.0  # for one look; 2,000 tables and 500 views take 0.3 s (docs/decisions/catalogue.md)
RETRY_SECONDS: Final = (0.1, 10.0)  # doubling, after a failure
MOST_OF_A_KIND: Final = 50_000  # more of one kind are not read, and then nothing is known of it
DEFINITION_CHARACTERS: Final = 16_384  # longer ones are not fetched: twice what is parsed
COLUMNS: Final = "columns"  # the kind that rules ask for
WITNESSES: Final = 32  # accounts that are asked for the names of views

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of thing: what is selected of it, from where. The first column is its database."""

    columns: tuple[str, ...]
    source: str

    @property
    def _where(self) -> str:
        return (
            f"FROM {self.source} {'AND' if ' WHERE ' in self.source else 'WHERE'} "
            f"{self.columns[0]} NOT IN ('information_schema', 'performance_schema', 'sys')"
        )

    def select(self) -> str:
        return f"SELECT {', '.join(self.columns)} {self._where} LIMIT {MOST_OF_A_KIND + 1}"

    def checksum(self) -> str:
        """One row that is another one when anything has changed, but for one chance in 2^60 or so."""
        row = f"CONCAT_WS(CHAR(31), {', '.join(f'IFNULL({column}, 0)' for column in self.columns)})"
        return (
            "SELECT COUNT(*), SUM(CRC32(x)), BIT_XOR(CRC32(REVERSE(x))), SUM(LENGTH(x)) "
            f"FROM (SELECT {row} AS x {self._where}) AS q"
        )


def _short(column: str) -> str:
    return f"IF(CHAR_LENGTH({column}) > {DEFINITION_CHARACTERS}, '', {column})"


KINDS: Final = {
    "views": _Kind(("TABLE_SCHEMA", "TABLE_NAME", _short("VIEW_DEFINITION")), "information_schema.VIEWS"),
    "view_columns": _Kind(
        ("c.TABLE_SCHEMA", "c.TABLE_NAME", "c.ORDINAL_POSITION", "c.COLUMN_NAME"),
        "information_schema.COLUMNS AS c JOIN information_schema.VIEWS AS v "
        "ON v.TABLE_SCHEMA = c.TABLE_SCHEMA AND v.TABLE_NAME = c.TABLE_NAME",
    ),
    "routines": _Kind(
        (
            "ROUTINE_SCHEMA",
            "ROUTINE_NAME",
            "ROUTINE_TYPE",
            f"IF(ROUTINE_BODY='SQL' AND IFNULL(EXTERNAL_LANGUAGE, 'SQL')='SQL', {_short('ROUTINE_DEFINITION')}, '')",
            "SQL_MODE",
            "SQL_DATA_ACCESS",
            "IS_DETERMINISTIC",
        ),
        "information_schema.ROUTINES WHERE ROUTINE_TYPE IN ('FUNCTION', 'PROCEDURE')",
    ),
    "parameters": _Kind(
        ("SPECIFIC_SCHEMA", "SPECIFIC_NAME", "ROUTINE_TYPE", "PARAMETER_NAME"),
        "information_schema.PARAMETERS WHERE PARAMETER_NAME IS NOT NULL",
    ),
    "triggers": _Kind(
        (
            "EVENT_OBJECT_SCHEMA",
            "EVENT_OBJECT_TABLE",
            "TRIGGER_NAME",
            "EVENT_MANIPULATION",
            _short("ACTION_STATEMENT"),
            "SQL_MODE",
        ),
        "information_schema.TRIGGERS",
    ),
    "foreign_keys": _Kind(
        (
            "CONSTRAINT_SCHEMA",
            "TABLE_NAME",
            "UNIQUE_CONSTRAINT_SCHEMA",
            "REFERENCED_TABLE_NAME",
            "DELETE_RULE",
            "UPDATE_RULE",
        ),
        "information_schema.REFERENTIAL_CONSTRAINTS",
    ),
}


def _like(pattern: str) -> str:
    """A LIKE pattern, as the text of an SQL string, that fits at least what a pattern of a rule fits (any case)."""
    found = ""
    for piece in re.findall(r"\[!?\]?[^\]]*\]|.", pattern.lower(), re.DOTALL):
        if piece == "*":
            found += "%"
        elif piece.isascii() and (piece.isalnum() or piece in "_$-"):
            found += piece
        else:
            found += "_"  # what is quoted or folded differently by somebody
    return found


def columns_kind(tables: Iterable[tuple[str | None, str]]) -> _Kind:
    """The columns of the tables that fit one of the patterns (see RuleSet.column_tables)."""
    conditions = [
        f"(LOWER(TABLE_NAME) LIKE '{_like(table)}'"
        + (f" AND LOWER(TABLE_SCHEMA) LIKE '{_like(database)}')" if database is not None else ")")
        for database, table in sorted(tables, key=str)
    ]
    source = f"information_schema.COLUMNS WHERE ({' OR '.join(conditions)})"
    return _Kind(("TABLE_SCHEMA", "TABLE_NAME", "COLUMN_NAME"), source)


_OF_MYSQL: Final = ("view_columns",)  # MariaDB's definitions tell them, and asking would open every table there

Rows = Sequence[Sequence[str]]


def _texts(result: ResultReader) -> list[list[str]]:
    return [
        [value.decode("utf-8", "replace") if isinstance(value, bytes) else value or "" for value in row]
        for row in result.rows
    ]


class CatalogueObserver:
    """Keeps `catalogue`, and tells whoever watches it of every new one."""

    def __init__(
        self,
        lane: Lane,
        group: str,
        credentials: Credentials,
        witnesses: Sequence[Credentials],
        *,
        source: Callable[[], MysqlServer | None],
        members_changed: Callable[[], Awaitable[None]],
    ) -> None:
        """`source` is the server to ask, the primary if there is one; `members_changed` waits for news of the group."""
        self.catalogue = Catalogue()
        self.first = trio.Event()  # set when it was read, or could not be
        self.reads = 0  # looks that read something anew
        self._lane = lane
        self._group = group
        self._credentials = credentials
        self._witnesses = witnesses
        self._source = source
        self._members_changed = members_changed
        self._watchers: list[Callable[[Catalogue], None]] = []
        self._kinds = dict(KINDS)
        self._column_tables: frozenset[tuple[str | None, str]] = frozenset()
        self._rows: dict[str, Rows] = {}
        self._sums: dict[str, list[str]] = {}
        self._rights: Rights | None = None  # as a connection before the one at hand told them
        self._seen: object = None  # what was read beside the rows
        self._unpublished = False
        self._distrusted = 0  # grows with everything that makes the catalogue stale
        self._wanted = trio.Event()
        self._urgent = trio.Event()
        self._settled = trio.Event()
        self._read_at = 0.0
        self._said: object = None

    def watch(self, watcher: Callable[[Catalogue], None]) -> None:
        """Calls `watcher` with the catalogue, now and whenever there is another one."""
        self._watchers.append(watcher)
        watcher(self.catalogue)

    def use_witnesses(self, witnesses: Sequence[Credentials]) -> None:
        """Other accounts are to be asked for the names of views."""
        self._witnesses = witnesses
        self.distrust()

    def use_column_tables(self, tables: frozenset[tuple[str | None, str]]) -> None:
        """Rules on columns are about these tables, whose columns have to be known."""
        if tables == self._column_tables:
            return
        self._column_tables = tables
        self._kinds = {**KINDS, COLUMNS: columns_kind(tables)} if tables else dict(KINDS)
        self._sums.pop(COLUMNS, None)
        self._rows.pop(COLUMNS, None)
        self._unpublished = True
        if self.catalogue.sight is not None:
            self.distrust()

    # ---------------------------------------------------------------- what makes it stale

    def seen(self, operation: SqlOperation) -> None:
        """A statement was carried out, or may have been."""
        change = schema_change(operation)
        if change is SchemaChange.DEFINITIONS or (change is SchemaChange.TABLES and self._may_have_columns(operation)):
            self.distrust()
        elif change is not SchemaChange.NONE:
            self._wanted.set()

    def _may_have_columns(self, operation: SqlOperation) -> bool:
        """Whether a table may be another one now whose columns have to be known."""
        patterns = [table.casefold() for _, table in self._column_tables]
        return bool(patterns) and (
            not operation.writes
            or any(fnmatchcase(table.name.casefold(), pattern) for table in operation.writes for pattern in patterns)
        )

    def distrust(self) -> None:
        """Nothing of the catalogue is to be relied on before it was read again."""
        self._distrusted += 1
        if not self.catalogue.stale:
            self._settled = trio.Event()
            self._publish(self.catalogue.outdated())
        self._wanted.set()
        self._urgent.set()

    async def settled(self) -> bool:
        """Waits until the catalogue is not stale, a little while; whether it is not."""
        with trio.move_on_after(SETTLE_SECONDS):
            while self.catalogue.stale:
                await self._settled.wait()
        return not self.catalogue.stale

    def _publish(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        if not catalogue.stale:
            self._settled.set()
        for watcher in self._watchers:
            watcher(catalogue)

    # ---------------------------------------------------------------- reading

    async def run(self) -> None:
        """Reads until cancelled."""
        wait = RETRY_SECONDS[0]
        while True:
            server = self._source()
            if server is None:
                await self._members_changed()
                continue
            try:
                await self._follow(server)
                wait = RETRY_SECONDS[0]
            except (Unavailable, BackendRefused, OSError, ProtocolError, trio.TooSlowError) as error:
                self._fail(error)
                with trio.move_on_after(wait * (0.5 + random.random())):
                    await self._urgent.wait()
                    self._urgent = trio.Event()  # one attempt at once, and no more
                wait = min(wait * 2, RETRY_SECONDS[1])

    def _fail(self, error: Exception) -> None:
        self._sums.clear()  # read everything next time
        what = str(error) or "no answer in time"
        if self._said != what:
            self._said = what
            log.warning("the catalogue could not be read", group=self._group, error=what)
        if self.catalogue.sight is None:
            self._publish(Catalogue(problem=f"it could not be read: {what}", stale=self.catalogue.stale))
        self.first.set()

    async def _follow(self, server: MysqlServer) -> None:
        """Reads from one server as long as it is the one to ask."""
        with log_in_errors(server):
            conversation, connected = await log_in(self._lane, server, self._credentials)
        try:
            self._sums.clear()
            while self._source() is server:
                self._wanted, self._urgent = trio.Event(), trio.Event()
                with trio.fail_after(READ_SECONDS):
                    rights = await ask_rights(conversation, mariadb="MariaDB" in connected.greeting.server_version)
                    if rights != self._rights:
                        self._rights = rights
                        return  # a connection keeps the global rights that it began with: only the next one has these
                    await self._read(conversation, server, rights)
                self.first.set()
                with trio.move_on_after(REFRESH_SECONDS):
                    await self._wanted.wait()
                if not self.catalogue.stale:
                    with trio.move_on_at(self._read_at + SOON_SECONDS):
                        await self._urgent.wait()
        finally:
            conversation.close()

    async def _read(self, conversation: Conversation, server: MysqlServer, rights: Rights) -> None:
        distrusted = self._distrusted
        self._read_at = trio.current_time()
        kinds = self._kinds
        names = await self._changed(conversation, kinds, mariadb=rights.sight.mariadb)
        answers = await ask(conversation, [query(kinds[name].select()) for name in names]) if names else []
        if kinds is not self._kinds:
            self._sums.clear()  # rules were changed meanwhile, and something else is to be asked
            return
        for name, answer in zip(names, answers, strict=True):
            self._rows[name] = _texts(answer)
            self._unpublished = True
        loadable = await self._loadable(conversation, rights)
        witnessed = None if rights.sight.views("\0") else await self._ask_witnesses(server)
        seen = (rights.rows, rights.ignore_case, loadable, witnessed)
        if seen != self._seen:
            self._seen = seen
            self._unpublished = True
        if self._distrusted != distrusted:  # DDL ended while this was asked, which may have seen it or not
            self._wanted.set()
            self._urgent.set()
        elif self._unpublished:
            self._unpublished = False
            self.reads += 1
            self._publish(self._made(rights, loadable, witnessed))
            self._tell()
        elif self.catalogue.stale:
            self._publish(self.catalogue.trusted())

    def _made(self, rights: Rights, loadable: frozenset[str] | None, witnessed: tuple[Table, ...] | None) -> Catalogue:
        version = self.catalogue.version + 1
        for name, rows in self._rows.items():
            if len(rows) > MOST_OF_A_KIND and name != COLUMNS:  # of which `*` then stays what it is
                return Catalogue(version=version, problem=f"there are more than {MOST_OF_A_KIND} {name}")
        contents = contents_of(self._rows, loadable, witnessed or (), mariadb=rights.sight.mariadb)
        sight = rights.sight if witnessed is None else replace(rights.sight, witnessed=True)
        return Catalogue(contents, sight, version=version, ignore_case=rights.ignore_case)

    async def _changed(self, conversation: Conversation, kinds: Mapping[str, _Kind], *, mariadb: bool) -> list[str]:
        """The kinds of which something has changed since the last time this was asked."""
        names = [name for name in sorted(kinds) if not (mariadb and name in _OF_MYSQL)]
        sums = [_texts(sums)[0] for sums in await ask(conversation, [query(kinds[name].checksum()) for name in names])]
        found = [name for name, sum_ in zip(names, sums, strict=True) if self._sums.get(name) != sum_]
        self._sums = dict(zip(names, sums, strict=True))
        return found

    async def _loadable(self, conversation: Conversation, rights: Rights) -> frozenset[str] | None:
        """The names of loadable functions, None if the account may not see them."""
        if not rights.sight.grants.on_table("mysql", "func", "SELECT"):
            return None
        questions = ["SELECT name FROM mysql.func"]
        if not rights.sight.mariadb and rights.sight.grants.on("performance_schema", "SELECT"):
            questions.append("SELECT UDF_NAME FROM performance_schema.user_defined_functions")  # components' too
        answers = await ask(conversation, [query(question) for question in questions])
        return frozenset(name.lower() for answer in answers for (name,) in _texts(answer))

    async def _ask_witnesses(self, server: MysqlServer) -> tuple[Table, ...] | None:
        """The views that the group's users may read; None if they are too many or not known."""
        if not self._witnesses or len(self._witnesses) > WITNESSES:
            return None
        found: dict[Table, None] = {}
        for credentials in self._witnesses:
            try:
                with log_in_errors(server):
                    conversation, _ = await log_in(self._lane, server, credentials)
            except BackendRefused:
                continue  # who is not let in reads nothing through the gateway either
            try:
                (names,) = await ask(conversation, [query(_VIEWS_SEEN)])
            finally:
                conversation.close()
            found.update((Table(name, database), None) for database, name in _texts(names))
        return tuple(sorted(found, key=lambda table: (table.database or "", table.name)))

    def _tell(self) -> None:
        reasons = self.catalogue.reasons
        if self._said == reasons:
            return
        self._said = reasons
        if self.catalogue.complete:
            log.info("catalogue read", group=self._group, **_counts(self.catalogue))
            return
        missing = self.catalogue.sight.missing() if self.catalogue.sight is not None else []
        log.warning(
            "the monitor account does not see the whole catalogue: what it does not see stays at the primary",
            group=self._group,
            missing=missing,
            **_counts(self.catalogue),
        )


_VIEWS_SEEN: Final = (
    "SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES WHERE TABLE_TYPE = 'VIEW' "
    "AND TABLE_SCHEMA NOT IN ('information_schema', 'performance_schema', 'sys')"
)


def _counts(catalogue: Catalogue) -> dict[str, int]:
    contents = catalogue.contents
    return {
        "views": len(contents.views),
        "routines": len(contents.routines),
        "triggers": len(contents.triggers),
        "foreign_keys": len(contents.foreign_keys),
    }


# ---------------------------------------------------------------- rights


@dataclass(frozen=True, slots=True)
class Rights:
    """What the account may see on one server, and how that compares names. `rows` are its grants as they stand."""

    sight: Sight = field(compare=False)
    ignore_case: bool
    rows: tuple[str, ...]


async def ask_rights(conversation: Conversation, *, mariadb: bool) -> Rights:
    """The rights of the account that is logged in. Raises BackendRefused, OSError."""
    revokes = "0" if mariadb else "@@global.partial_revokes"
    (own,) = await ask(
        conversation,
        [query(f"SELECT @@global.lower_case_table_names, CURRENT_USER(), CURRENT_ROLE(), VERSION(), {revokes}")],
    )
    case, user, role, version, literal = _texts(own)[0]
    with_roles = "" if mariadb or role in ("", "NONE") else f" FOR CURRENT_USER() USING {role}"
    (grants,) = await ask(conversation, [query(f"SHOW GRANTS{with_roles}")])
    rows = tuple(row[0] for row in _texts(grants))
    numbers = version.split(".")
    name, _, host = user.rpartition("@")
    sight = Sight(
        Grants(rows, literal_names=literal not in ("0", "OFF")),
        mariadb,
        (int(numbers[0]), int(numbers[1])),
        f"'{name}'@'{host}'",
    )
    return Rights(sight, case != "0", rows)


async def missing_grants(lane: Lane, server: MysqlServer, credentials: Credentials) -> list[str]:
    """The GRANT statements that an account lacks on a server. Raises BackendRefused, Unavailable."""
    with log_in_errors(server):
        conversation, connected = await log_in(lane, server, credentials)
        try:
            rights = await ask_rights(conversation, mariadb="MariaDB" in connected.greeting.server_version)
        finally:
            conversation.close()
    return rights.sight.missing()


# ---------------------------------------------------------------- rows


def contents_of(
    rows: Mapping[str, Rows], loadable: frozenset[str] | None, witnessed: Iterable[Table], *, mariadb: bool
) -> Contents:
    """What the rows of all kinds say, with the views that only witnesses see."""
    parameters: dict[tuple[str, str, str], list[str]] = {}
    for database, routine, type_, parameter in rows.get("parameters", ()):
        parameters.setdefault((database, routine, type_), []).append(parameter)
    columns: dict[Table, dict[int, str]] = {}
    for database, view, position, column in rows.get("view_columns", ()):
        columns.setdefault(Table(view, database), {})[int(position)] = column
    views = []
    for database, name, text in rows.get("views", ()):
        table = Table(name, database)
        named = columns.get(table, {})
        views.append(View(table, text, None if mariadb else tuple(named[position] for position in sorted(named))))
    seen = {view.table for view in views}
    views += [View(table, "") for table in witnessed if table not in seen]
    return Contents(
        views=tuple(views),
        routines=tuple(
            Routine(
                Table(name, database),
                type_ == "FUNCTION",
                body,
                mode,
                tuple(parameters.get((database, name, type_), ())),
                access,
                deterministic == "YES",
            )
            for database, name, type_, body, mode, access, deterministic in rows.get("routines", ())
        ),
        triggers=tuple(
            Trigger(name, Table(table, database), event, body, mode)
            for database, table, name, event, body, mode in rows.get("triggers", ())
        ),
        foreign_keys=tuple(
            ForeignKey(Table(child, database), Table(parent, parents), on_delete, on_update)
            for database, child, parents, parent, on_delete, on_update in rows.get("foreign_keys", ())
        ),
        loadable=loadable,
        columns=_columns(rows.get(COLUMNS, ())),
    )


def _columns(rows: Rows) -> dict[Table, frozenset[str]]:
    if len(rows) > MOST_OF_A_KIND:
        return {}
    found: dict[Table, set[str]] = {}
    for database, table, column in rows:
        found.setdefault(Table(table, database), set()).add(column.lower())
    return {table: frozenset(names) for table, names in found.items()}
