"""What has been set on a MySQL connection, by value, and the commands that bring it from one state to another.

The state of a session follows it from connection to connection: database, collation, and the assignments of SET whose
values are literals. A state is interned, so that two states are equal exactly if they are the same object, and finding
a connection that needs nothing is a dictionary lookup.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

from gateway.backends.mysql_trackers import at_server
from gateway.protocol.mysql.commands import RESET_CONNECTION, init_db, query
from gateway.routing.operation import Assignment, Scope

SERVERS_OWN: Final = 0
"""Stands for the character set and collation that a server gives to connections that ask for none."""


ABOUT_THE_SERVER: Final = frozenset({"performance_schema", "sys", "information_schema", "mysql"})


class State:
    """Database (None: none selected), collation id of the log-in, and assignments in the order they were made."""

    __slots__ = ("__weakref__", "assignments", "collation", "database", "stays_at_primary")

    def __init__(self, database: str | None, collation: int, assignments: tuple[Assignment, ...]) -> None:
        self.database = database
        self.collation = collation
        self.assignments = assignments
        # Why a session in this state keeps even proven reads at the primary, in words; None if it need not.
        self.stays_at_primary: str | None = None
        if database is not None and database.lower() in ABOUT_THE_SERVER:
            self.stays_at_primary = f"{database} speaks of the server that is asked"
        elif "SERIALIZABLE" in (self.value_of("transaction_isolation") or self.value_of("tx_isolation") or "").upper():
            self.stays_at_primary = "isolation level SERIALIZABLE: reads take locks"

    def with_database(self, database: str) -> State:
        return state_of(database, self.collation, self.assignments)

    def with_assignments(self, made: tuple[Assignment, ...]) -> State:
        """The state after `made`: a later assignment to the same variable replaces the earlier one.

        What says how texts are read (sql_mode, character sets) stays for as long as a value stands behind it that was
        read so: replayed in this order, every value means what it meant.
        """
        kept = list(self.assignments)
        for one in made:
            kept = [other for other in kept if _is_context(other) or not _replaces(one, other)]
            kept.append(one)
        # Only the last of the contexts that stand between two values can matter.
        needed: list[Assignment] = []
        later: list[Assignment] = []
        for one in reversed(kept):
            if not _is_context(one):
                if _depends_on_context(one):
                    later.clear()
            elif any(_replaces(after, one) for after in later):
                continue
            else:
                later.append(one)
            needed.append(one)
        return state_of(self.database, self.collation, tuple(reversed(needed)))

    def value_of(self, name: str) -> str | None:
        """The SQL text last assigned to a session variable, None if the session never set it."""
        for one in reversed(self.assignments):
            if one.scope is Scope.SESSION and one.name == name:
                return one.value
        return None


def _replaces(new: Assignment, old: Assignment) -> bool:
    if new.scope is old.scope:
        return new.name == old.name or new.scope is Scope.NAMES
    # SET NAMES sets these three; one set afterwards stays behind it in the order.
    return new.scope is Scope.NAMES and old.scope is Scope.SESSION and old.name in _SET_BY_NAMES


_SET_BY_NAMES: Final = frozenset(
    {"character_set_client", "character_set_connection", "character_set_results", "collation_connection"}
)

_CONTEXT: Final = _SET_BY_NAMES | {"sql_mode"}


def _is_context(one: Assignment) -> bool:
    """Whether it changes what the texts of later assignments mean."""
    return one.scope is Scope.NAMES or (one.scope is Scope.SESSION and one.name in _CONTEXT)


def _depends_on_context(one: Assignment) -> bool:
    """Whether its text may mean something else under another sql_mode, or its value be of another character set."""
    text = one.value
    quoted = "'" in text or '"' in text
    return quoted and (one.scope is Scope.USER or '"' in text or "\\" in text or not text.isascii())


_interned: WeakValueDictionary[tuple[str | None, int, tuple[Assignment, ...]], State] = WeakValueDictionary()


def state_of(database: str | None, collation: int, assignments: tuple[Assignment, ...] = ()) -> State:
    """The one State object with these values."""
    key = (database, collation, assignments)
    state = _interned.get(key)
    if state is None:
        state = _interned[key] = State(database, collation, assignments)
    return state


@dataclass(frozen=True, slots=True)
class Arming:
    """What every connection to a member is set to before it serves: position tracking and the second fence.

    The second fence is transaction_read_only on replicas: it refuses DML, DDL and locking reads with 1792 even for
    users whom read_only lets write (SQL.md, The rule). `collations` maps ids of the server to (charset, collation).
    """

    mariadb: bool
    replica: bool
    collations: Mapping[int, tuple[str, str]]

    def settings(self) -> list[str]:
        tracked = (
            # the server's own default, and the position of each write
            "session_track_system_variables='autocommit,character_set_client,character_set_connection,"
            "character_set_results,time_zone,last_gtid'"
            if self.mariadb
            else "session_track_gtids='OWN_GTID'"
        )
        if not self.replica:
            return [tracked]
        return ["tx_read_only=1"] if self.mariadb else ["transaction_read_only=1"]

    def fresh(self) -> bytes:
        """The command that arms a connection that has just logged in."""
        return query("SET SESSION " + ", SESSION ".join(self.settings()))

    def after_reset(self, collation: int) -> bytes:
        """The same after COM_RESET_CONNECTION, which also forgets the character set of the log-in.

        A collation that the server does not know was ignored at log-in, and is here; SERVERS_OWN is none of them.
        """
        names = self.collations.get(collation)
        if names is None:
            return self.fresh()
        return query(f"SET NAMES {names[0]} COLLATE {names[1]}, SESSION " + ", SESSION ".join(self.settings()))


def commands_to(
    current: State | None, selected: str | None, wanted: State, arming: Arming, role: str | None = None
) -> list[bytes] | None:
    """The commands that bring a connection to `wanted`, each answered by one OK; [] if it is there already.

    `current` is None where the connection has to be reset first; `selected` is the database selected on it. None means
    that no commands can do it: nothing un-selects a database. `role` is what SET ROLE has to set behind the reset,
    which leaves roles alone (tried), and None where nothing has changed it.
    """
    if current is wanted:
        return []
    if wanted.database is None and selected is not None:
        return None
    commands: list[bytes] = []
    to_make = None
    if current is not None and current.collation == wanted.collation:
        to_make = _missing(wanted.assignments, current.assignments)
    if to_make is None:
        commands += [RESET_CONNECTION, arming.after_reset(wanted.collation)]
        if role is not None:
            commands.append(query(f"SET ROLE {role}"))
        to_make = wanted.assignments
    if wanted.database is not None and wanted.database != selected:
        commands.append(init_db(wanted.database))
    commands += assignments_sql(to_make, mariadb=arming.mariadb)
    return commands


def _missing(wanted: tuple[Assignment, ...], current: tuple[Assignment, ...]) -> tuple[Assignment, ...] | None:
    """What has to be assigned after `current` to come to `wanted`, in order; None if that takes a reset.

    `wanted` has to begin as `current` does, but for values that are assigned once more later in it.
    """
    at = 0
    skipped: list[Assignment] = []
    for one in current:
        if at < len(wanted) and wanted[at] == one:
            at += 1
        elif _is_context(one):
            return None
        else:
            skipped.append(one)
    again = {(one.scope, one.name) for one in wanted[at:]}
    return wanted[at:] if all((one.scope, one.name) in again for one in skipped) else None


def assignments_sql(assignments: tuple[Assignment, ...], *, mariadb: bool) -> list[bytes]:
    """SET commands for the assignments, in order; SET NAMES stands alone, and sql_mode last in its command.

    MariaDB has transaction_isolation since 11.1 only, and tx_isolation in all versions; MySQL has lost the latter.
    """
    commands: list[bytes] = []
    row: list[str] = []
    for one in assignments:
        if one.scope is Scope.NAMES:
            if row:
                commands.append(query("SET " + ", ".join(row)))
                row = []
            commands.append(query(f"SET {one.name.upper()} {one.value}"))
        elif one.scope is Scope.USER:
            row.append(f"@`{one.name.replace('`', '``')}` = {one.value}")
        else:
            name = "tx_isolation" if mariadb and one.name == "transaction_isolation" else one.name
            row.append(f"SESSION {name} = {at_server(name, one.value, mariadb=mariadb)}")
            if _is_context(one):  # a command is read as a whole under what holds before it
                commands.append(query("SET " + ", ".join(row)))
                row = []
    if row:
        commands.append(query("SET " + ", ".join(row)))
    return commands
