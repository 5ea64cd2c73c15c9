"""Runs one statement on a real server and says what it did, from everything that the server tells.

No single witness knows all (SQL.md: the session tracker misses most), so several are heard: the GTID position,
which any logged write moves; the counters Com_*, the server's own name for what ran; session and user variables,
the database, the insert id and the transaction flag afterwards; named and row locks, asked for from another
connection; table locks, by a table that could no more be read; files in the folder that INTO OUTFILE may write to;
and what the server says to the same statement in a READ ONLY session.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pymysql
import pymysql.connections
from pymysql.constants import CLIENT, SERVER_STATUS

from gateway.demo.mysql_servers import MysqlFamilyServer
from gateway.routing.fingerprint import Reading
from gateway.routing.functions import words
from gateway.routing.operation import Kind, PinCause, Scope, SqlOperation, TransactionEffect

REFUSED_AS_WRITE: Final = frozenset((1290, 1792, 1836))
TABLES_ARE_LOCKED: Final = 1100  # ER_TABLE_NOT_LOCKED: LOCK TABLES is in force, and this table is not among them

_VOLATILE: Final = re.compile(
    r"timestamp|pseudo_thread_id|rand_seed[12]|gtid_.*|last_gtid|insert_id|last_insert_id|identity|warning_count"
    r"|error_count|statement_id|in_transaction|.*_executed|innodb_.*"
)
_SET_BY_NAMES: Final = frozenset(
    {"character_set_client", "character_set_connection", "character_set_results", "collation_connection"}
)
_READ_COUNTERS: Final = re.compile(
    r"Com_(select|show_.*|checksum|help|explain_other|stmt_reprepare|admin_commands|empty_query"
    r"|set_option)"  # PyMySQL's own SETs are counted, too: what a SET does is seen in the variables
)
_STRING: Final = re.compile(rb"'((?:[^'\\]|\\.|'')*)'|\"([^\"\\]*)\"")
_USER_VARIABLE: Final = re.compile(rb"@([A-Za-z0-9_$]+)|@[`'\"]([^`'\"]+)[`'\"]")

COLUMNS: Final = (
    "id INT NOT NULL AUTO_INCREMENT PRIMARY KEY, a INT, b INT, c INT, d INT, e INT, f INT, g INT, h INT, n INT, x INT, "
    "y INT, z INT, parent INT, w INT, k INT, name VARCHAR(50), created DATETIME, doc LONGTEXT, p GEOMETRY, q GEOMETRY, "
    "INDEX i (a), INDEX i1 (b), FULLTEXT (name), FULLTEXT (doc)"
)
DATABASES: Final = ("shop", "db", "db1", "db2", "a")
TABLES: Final = ("t", "u", "v", "users", "sbtest1", "posts")
STORED: Final = words(
    """
    evil my_func stored_function initcap to_json count max now lower rank lag median against columns of point md5
    row_number linestring to_number lıke caſe valueſ ıf ın oﬀset unıon uſing ındex ſome exiſts dıv rowſ ﬁeld aſcii
    """
) | {"wee\N{KELVIN SIGN}", "ran\N{KELVIN SIGN}", "lower\N{NO-BREAK SPACE}", "count$", "1count", "count`"}
"""Stored functions that write, some of them with the names of built-ins, keywords and what other databases have, or
with names whose upper or lower case is that of a keyword or built-in."""


@dataclass(frozen=True)
class Evidence:
    """What a statement did. `error` is its number, 0 for none; the rest is what differs from a fresh session."""

    error: int
    refused_as_write: bool
    wrote: bool  # the log grew
    commands: frozenset[str]  # Com_* counters that moved and are no reads
    variables: frozenset[str]  # session variables that changed
    user_variables: frozenset[str]
    database: str | None  # the selected one, if it changed
    insert_id: bool
    in_transaction: bool
    autocommit_off: bool
    named_locks: frozenset[str]
    table_locks: bool
    row_locks: bool
    files: frozenset[str]

    def against_read(self) -> list[str]:
        """What a proven read may not have done."""
        found = {
            "the log grew": self.wrote,
            "refused in a READ ONLY session": self.refused_as_write,
            f"ran {sorted(self.commands)}": self.commands,
            f"set {sorted(self.variables)}": self.variables,
            f"assigned @{sorted(self.user_variables)}": self.user_variables,
            f"selected {self.database}": self.database,
            "set LAST_INSERT_ID()": self.insert_id,
            "opened a transaction": self.in_transaction,
            f"took {sorted(self.named_locks)}": self.named_locks,
            "locked tables": self.table_locks,
            "locked rows": self.row_locks,
            f"wrote {sorted(self.files)}": self.files,
        }
        return [what for what, is_so in found.items() if is_so]

    def against(self, operation: SqlOperation) -> list[str]:
        """What the operation does not tell of what was done to the session: the gateway would lose it, or leak it."""
        if operation.kind is Kind.READ and operation.pin is None:
            return self.against_read()
        if operation.pin is not None:
            return []
        told = {one.name for one in operation.assignments if one.scope is Scope.SESSION}
        told_variables = {one.name for one in operation.assignments if one.scope is Scope.USER}
        if any(one.scope is Scope.NAMES for one in operation.assignments):
            told |= _SET_BY_NAMES
        if told & _SET_BY_NAMES:
            told |= _SET_BY_NAMES  # a collation comes with its character set
        if {"transaction_isolation", "tx_isolation"} & told:
            told |= {"transaction_isolation", "tx_isolation"}
        variables = self.variables - told
        if operation.database is not None or self.database is not None:
            variables -= {"character_set_database", "collation_database"}
        effect = operation.transaction
        opens = effect is TransactionEffect.BEGIN or effect is TransactionEffect.BEGIN_READ_ONLY or operation.chain
        locks = self.named_locks if operation.unpin is not PinCause.NAMED_LOCK else frozenset()
        found = {
            f"set {sorted(variables)}": variables,
            f"assigned @{sorted(self.user_variables - told_variables)}": self.user_variables - told_variables,
            f"selected {self.database}": self.database and not operation.database,
            "opened a transaction": self.in_transaction
            and not opens
            and not self.autocommit_off
            and not operation.multi,
            f"took {sorted(locks)}": locks,
            "locked tables": self.table_locks,
        }
        return [what for what, is_so in found.items() if is_so]


def _text(value: str | bytes) -> str:
    """What a session shows is bytes to PyMySQL once it has set its character set to binary."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


class Oracle:
    """Statements on one server, each in a fresh session whose database is `shop`."""

    def __init__(self, server: MysqlFamilyServer, files: Path) -> None:
        self.server = server
        self.files = files
        self.mariadb = server.flavor == "mariadb"
        version = server.query("SELECT VERSION()")[0][0].split(".")
        self.version = (int(version[0]), int(version[1]))
        self.read_only = "tx_read_only" if self.mariadb else "transaction_read_only"
        self._watcher = self._connect()
        self._run(self._watcher, "SET SESSION lock_wait_timeout = 1")  # seconds; NOWAIT is about rows only
        self._make_schema()
        with self._session() as fresh:
            self._fresh_variables = self._variables(fresh)

    def reading(self, **modes: Any) -> Reading:
        """How this server reads texts."""
        return Reading(mariadb=self.mariadb, version=self.version, **modes)

    def close(self) -> None:
        self._watcher.close()

    def _connect(self) -> pymysql.connections.Connection[Any]:
        return pymysql.connect(
            unix_socket=str(self.server.socket),
            user="root",
            autocommit=True,
            charset="utf8mb4",
            database="shop",
            client_flag=CLIENT.MULTI_STATEMENTS,
            read_timeout=30,
            ssl_disabled=True,  # PyMySQL would make a TLS context for each session, of 20 ms
        )

    @contextlib.contextmanager
    def _session(self) -> Iterator[pymysql.connections.Connection[Any]]:
        connection = self._connect()
        try:
            yield connection
        finally:
            connection.close()

    def _make_schema(self) -> None:
        run = self._run
        run(self._watcher, "SET GLOBAL log_bin_trust_function_creators = 1")
        for database in DATABASES:
            run(self._watcher, f"CREATE DATABASE IF NOT EXISTS {database}")
            run(self._watcher, f"CREATE TABLE IF NOT EXISTS {database}.log (what VARCHAR(80))")
            for name in STORED:
                quoted = name.replace("`", "``")
                run(
                    self._watcher,
                    f"CREATE FUNCTION {database}.`{quoted}`(v VARCHAR(200)) RETURNS INT DETERMINISTIC "
                    f"MODIFIES SQL DATA BEGIN INSERT INTO {database}.log VALUES ('{name}'); RETURN 1; END",
                )
            if self.mariadb:
                run(self._watcher, f"CREATE SEQUENCE {database}.s")
        if self.mariadb:
            run(self._watcher, "CREATE TABLE shop.next_by_default (a INT, n INT DEFAULT (NEXT VALUE FOR shop.s))")
            run(self._watcher, "INSERT INTO shop.next_by_default (a) VALUES (1)")
        run(self._watcher, "CREATE TABLE shop.sentinel (a INT)")
        run(self._watcher, "CREATE VIEW shop.view1 AS SELECT id, a FROM shop.t")
        run(self._watcher, "CREATE PROCEDURE shop.p() BEGIN INSERT INTO log VALUES ('p'); SET @a = 5; END")
        self.refill()

    def refill(self) -> None:
        """Makes the tables anew, with rows in them, so that what depends on rows happens."""
        for database in DATABASES:
            for table in TABLES:
                self._run(self._watcher, f"DROP TABLE IF EXISTS {database}.{table}")
                self._run(self._watcher, f"CREATE TABLE {database}.{table} ({COLUMNS})")
                self._run(
                    self._watcher,
                    f"INSERT INTO {database}.{table} (a, b, c, d, n, name, doc, created) VALUES "
                    "(1, 2, 3, 4, 5, 'x', '[1]', NOW()), (2, 2, 1, 1, 6, 'y', '{\"a\": 1}', NOW())",
                )

    def _run(
        self, connection: pymysql.connections.Connection[Any], sql: bytes | str
    ) -> tuple[int, list[tuple[Any, ...]]]:
        """Error number, and the rows of the first result."""
        with connection.cursor() as cursor:
            try:
                cursor.execute(sql)
                rows = list(cursor.fetchall())
                while cursor.nextset():
                    cursor.fetchall()
            except pymysql.MySQLError as error:
                return int(error.args[0] or 2013), []
            except (UnicodeDecodeError, ValueError, KeyError):  # PyMySQL cannot show the result: it ran
                return 0, []
        return 0, rows

    def _variables(self, connection: pymysql.connections.Connection[Any]) -> Mapping[str, str]:
        return {_text(name): _text(value) for name, value in self._run(connection, "SHOW SESSION VARIABLES")[1]}

    def _position(self) -> str:
        name = "@@gtid_binlog_pos" if self.mariadb else "@@gtid_executed"
        return str(self._run(self._watcher, f"SELECT {name}")[1][0][0])

    def _held_locks(self, sql: bytes) -> frozenset[str]:
        names = {(one or other).decode("utf-8", "replace")[:60] for one, other in _STRING.findall(sql)}
        held = set()
        for name in names - {""}:
            _, rows = self._run(self._watcher, f"SELECT IS_USED_LOCK('{pymysql.converters.escape_string(name)}')")
            if rows and rows[0][0] is not None:
                held.add(name)
        return frozenset(held)

    def _set_user_variables(self, connection: pymysql.connections.Connection[Any], sql: bytes) -> frozenset[str]:
        names = sorted(
            {(plain or quoted).decode("utf-8", "replace").lower() for plain, quoted in _USER_VARIABLE.findall(sql)}
        )
        if not names:
            return frozenset()
        _, rows = self._run(connection, "SELECT " + ", ".join(f"@`{name}`" for name in names))
        values = rows[0] if rows else ()
        return frozenset(name for name, value in zip(names, values, strict=False) if value is not None)

    def observe(self, sql: bytes, *, sql_mode: str = "", is_read: bool = False) -> Evidence:
        """Runs a statement in a fresh session. `is_read` says that more may be tried: it is run several times."""
        with self._session() as session:
            fresh = self._fresh_variables
            if sql_mode:
                self._run(session, f"SET sql_mode = '{sql_mode}'")
                fresh = self._variables(session)
            before = self._position()
            files = set(self.files.iterdir())
            error, _ = self._run(session, sql)
            status = int(getattr(session, "server_status", 0))  # of PyMySQL, which its types do not know
            _, counters = self._run(session, "SHOW SESSION STATUS LIKE 'Com\\_%'")
            moved = {_text(name) for name, count in counters if int(count)}
            commands = {name for name in moved if not _READ_COUNTERS.fullmatch(name)}
            after = self._variables(session)
            variables = {
                name for name, value in after.items() if value != fresh.get(name) and not _VOLATILE.fullmatch(name)
            }
            user_variables = self._set_user_variables(session, sql)
            _, rows = self._run(session, "SELECT DATABASE(), LAST_INSERT_ID() LIMIT 1")
            database, insert_id = rows[0] if rows else ("shop", 0)  # none where the statement ended the session
            database = _text(database)
            table_locks = self._run(session, "SELECT 1 FROM shop.sentinel LIMIT 1")[0] == TABLES_ARE_LOCKED
            locks = self._held_locks(sql)
            wrote = self._position() != before
            refused = row_locks = False
            if is_read and not error:
                refused, row_locks = self._try_as_read(session, sql)
            return Evidence(
                error,
                refused,
                wrote,
                frozenset(commands - {"Com_begin", "Com_commit"} if is_read else commands),
                frozenset(variables),
                user_variables,
                database if database != "shop" else None,
                bool(insert_id),
                bool(status & SERVER_STATUS.SERVER_STATUS_IN_TRANS),
                after.get("autocommit") == "OFF",
                locks,
                table_locks,
                row_locks,
                frozenset(file.name for file in set(self.files.iterdir()) - files),
            )

    def _others_must_wait(self) -> bool:
        return self._run(self._watcher, "SELECT t.id FROM shop.t, shop.u FOR UPDATE NOWAIT")[0] != 0

    def _try_as_read(self, session: pymysql.connections.Connection[Any], sql: bytes) -> tuple[bool, bool]:
        self._run(session, "BEGIN")
        self._run(session, sql)
        locked = self._others_must_wait()
        self._run(session, "COMMIT")
        locked = locked and not self._others_must_wait()  # else it is a session that has not quite ended yet
        self._run(session, f"SET SESSION {self.read_only} = 1")
        refused = self._run(session, sql)[0] in REFUSED_AS_WRITE
        return refused, locked
