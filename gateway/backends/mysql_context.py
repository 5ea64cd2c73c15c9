"""What a statement captures from its session when it is prepared, and how a connection is lent that for a moment.

A statement that was prepared in db1 reads db1 after USE db2; the same holds for sql_mode and character sets, and on
MySQL for whatever its resolver folds into the statement: precision of a division, length of a GROUP_CONCAT, types of
user variables (seen on 9.7). The *context* is that part of a session's state, as a state of its own.
"""

from __future__ import annotations

from typing import Final

from gateway.backends.mysql_state import Arming, State, assignments_sql, state_of
from gateway.protocol.mysql.commands import init_db, query
from gateway.routing.operation import Scope

CAPTURED: Final = frozenset(
    {
        "big_tables",
        "block_encryption_mode",
        "character_set_client",
        "character_set_connection",
        "character_set_filesystem",
        "character_set_results",
        "collation_connection",
        "default_collation_for_utf8mb4",
        "default_storage_engine",
        "default_tmp_storage_engine",
        "default_week_format",
        "div_precision_increment",
        "explicit_defaults_for_timestamp",
        "group_concat_max_len",
        "lc_time_names",
        "optimizer_switch",
        "sql_auto_is_null",
        "sql_mode",
        "sql_select_limit",
        "time_zone",
        "windowing_use_high_precision",
    }
)
"""Session variables that a server may read while it prepares. Each has a global value, so that DEFAULT is possible."""

_CHARACTER_SETS: Final = frozenset(
    {"character_set_client", "character_set_connection", "character_set_results", "collation_connection"}
)


def context_of(state: State, user_variables: frozenset[str]) -> State:
    """The part of a state that a statement captures which names these user variables (lower case, without @)."""
    kept = tuple(
        one
        for one in state.assignments
        if one.scope is Scope.NAMES
        or (one.scope is Scope.SESSION and one.name in CAPTURED)
        or (one.scope is Scope.USER and one.name.lower() in user_variables)
    )
    return state_of(state.database, state.collation, kept)


_KEPT: Final = (
    "sql_mode",
    "character_set_client",
    "character_set_connection",
    "character_set_results",
    "collation_connection",
    "time_zone",
    "div_precision_increment",
    "group_concat_max_len",
    "lc_time_names",
    "default_week_format",
    "sql_select_limit",
)
"""What is put away while a context is lent to a connection of which nobody knows what is set on it."""


def lend(wanted: State, selected: str | None, arming: Arming) -> tuple[list[bytes], list[bytes]]:
    """The commands to a context and back, for a connection that a session is pinned to: it is in no known state.

    What is set is put away in user variables of the connection, which are unset again.
    """
    variables = [f"@gateway_{name}" for name in _KEPT]
    there = [
        query("SET " + ", ".join(f"{kept} = @@session.{name}" for kept, name in zip(variables, _KEPT, strict=True)))
    ]
    if wanted.database is not None and wanted.database != selected:
        there.append(init_db(wanted.database))
    back = [init_db(selected)] if len(there) > 1 and selected is not None else []
    there += _set(wanted, set(_KEPT) - _CHARACTER_SETS, arming)
    back += [
        query("SET " + ", ".join(f"SESSION {name} = {kept}" for kept, name in zip(variables, _KEPT, strict=True))),
        query("SET " + ", ".join(f"{kept} = NULL" for kept in variables)),
    ]
    return there, back


def switch(current: State, wanted: State, arming: Arming) -> list[bytes]:
    """The commands that lead from one context to another, each answered by one OK, without a reset.

    A reset would drop what was prepared. So what only `current` has set gets the value that a reset would give it, and
    what `wanted` has set is set in its order. A database stays selected where `wanted` has none.
    """
    if current is wanted:
        return []
    commands = []
    if wanted.database is not None and wanted.database != current.database:
        commands.append(init_db(wanted.database))
    if current.assignments == wanted.assignments and current.collation == wanted.collation:
        return commands
    variables = {one.name for one in current.assignments if one.scope is Scope.SESSION} - _CHARACTER_SETS
    kept = {one.name for one in wanted.assignments if one.scope is Scope.USER}
    gone = sorted({one.name for one in current.assignments if one.scope is Scope.USER} - kept)
    commands += [query(f"SET @`{name.replace('`', '``')}` = NULL") for name in gone]
    return commands + _set(wanted, variables, arming)


def _set(wanted: State, variables: set[str], arming: Arming) -> list[bytes]:
    """What sets these variables and the character sets as a reset does, then all of a context in its order.

    First, because what the values of the context mean may depend on them.
    """
    names = arming.collations.get(wanted.collation)
    commands = [query(f"SET NAMES {names[0]} COLLATE {names[1]}" if names else "SET NAMES DEFAULT")]
    commands += [query(f"SET SESSION {name} = DEFAULT") for name in sorted(variables)]
    return commands + assignments_sql(wanted.assignments, mariadb=arming.mariadb)
