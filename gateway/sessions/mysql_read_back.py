"""Asks the connection of a pinned session what a statement came to, so that the pin can end at once.

`SET sql_mode = CONCAT(@@sql_mode, ',...')` has run, and must not run again elsewhere: its value is asked for on the
very connection, and follows the session as a literal does. In the same way RELEASE_LOCK() ends the pin of a named lock
if the server says that none of the session's is held any more.

What is read back has to come to the same value as a literal, its type, character set and collation included. A user
variable is an integer, a decimal, a double or a string (servers keep dates as strings); of a decimal its text tells the
scale, and servers print a double so that it reads back the same. Whatever else comes, or is too long, stays pinned; so
do strings that are malformed in their character set, of which servers take no literal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio

from gateway.backends.mysql import MysqlConnection
from gateway.backends.mysql_state import assignments_sql
from gateway.backends.mysql_trackers import as_asked
from gateway.errors import BackendRefused, ProtocolError
from gateway.protocol.mysql.results import Row
from gateway.routing.operation import Assignment, Kind, PinCause, Scope, SqlOperation
from gateway.routing.sql_set import TRACKERS
from gateway.sessions.mysql_residue import Captured
from gateway.sessions.mysql_state import IN_TRANSACTION

if TYPE_CHECKING:
    from gateway.sessions.mysql import MysqlSession

LONGEST_BYTES: Final = 4096
"""Of a value that is carried over; a longer one stays where it is."""

_INTEGERS: Final = frozenset((1, 2, 3, 8, 9))  # FIELD_TYPE TINY, SHORT, LONG, LONGLONG, INT24
_DECIMALS: Final = frozenset((0, 246))
_DOUBLES: Final = frozenset((4, 5))
_STRINGS: Final = frozenset((15, 249, 250, 251, 252, 253, 254))
_NULLS: Final = (
    (_INTEGERS, "CAST(NULL AS SIGNED)"),
    (_DECIMALS, "NULL + 0.0"),
    (_DOUBLES, "NULL + 0e0"),
    (range(256), "NULL"),
)  # NULL has a type, too
_NAME: Final = re.compile(r"[a-z0-9_]+")
_PLAIN: Final = re.compile(r"[ !#-&(-\[\]-~]*")  # printable ASCII without quotes and backslash


async def after_exchange(session: MysqlSession, operation: SqlOperation, pinned_before: frozenset[PinCause]) -> None:
    """What is still to be asked once a statement has run and its client was answered."""
    held = session.held
    if held is None:
        return
    kept = session.kept
    session.hear()
    new = kept.pins.keys() - pinned_before
    with trio.CancelScope(shield=True):  # the statement has been answered: no KILL QUERY can mean it any more
        if operation.read_back and new:
            await _read_back(session, held, operation, frozenset(new))
            session.hear()
        elif "release_lock" in operation.functions and PinCause.NAMED_LOCK in kept.pins:
            await _look_for_locks(session, held)
    if session.held is held and not kept.pins and not kept.status & IN_TRANSACTION:
        session.held = None
        session.give_back(held)


async def _ask(session: MysqlSession, held: MysqlConnection, sql: str) -> tuple[list[Row], list[int]] | None:
    """A question on a connection that stays with its session; None if it cannot be answered."""
    try:
        return await held.ask_with_kinds(sql)
    except BackendRefused:
        return None
    except (OSError, ProtocolError) as error:
        held.close()
        session.backend_lost(held, error)
        return None
    finally:
        held.taker = session


async def _read_back(
    session: MysqlSession, held: MysqlConnection, operation: SqlOperation, new: frozenset[PinCause]
) -> None:
    mariadb = held.arming.mariadb
    sql = session.prepared.text_and_reading(session.raw)[0]
    warnings: list[Row] = []
    if held.warned:
        shown = await _ask(session, held, "SHOW WARNINGS LIMIT 1024")
        warnings = shown[0] if shown is not None else []
    columns = ", ".join(_columns(one, mariadb=mariadb) for one in operation.read_back)
    answer = await _ask(session, held, f"SELECT {columns} LIMIT 1")
    row_count = None if operation.kind is Kind.UNKNOWN else 0
    session.residue.captured = Captured(session.commands, warnings, row_count, None, first=True)
    session.rules_version = -1  # declines the next command: it may ask about this statement
    if answer is None:
        return
    ((row,), kinds) = answer
    made: list[Assignment] = []
    foreign: list[str] = []  # beyond ASCII
    at = 0
    for one in operation.read_back:
        width = 4 if one.scope is Scope.USER else 1
        value = (_user_value if one.scope is Scope.USER else _system_value)(row[at : at + width], kinds[at])
        if value is None:
            return
        if one.scope is Scope.USER and value.startswith("_") and not bytes.fromhex(str(row[at + 1])).isascii():
            foreign.append(value)
        made.append(as_asked(Assignment(one.scope, one.name, value), sql))
        at += width
    if foreign and await _ask(session, held, f"SELECT {', '.join(foreign)} LIMIT 1") is None:
        return
    session.kept.know(held, tuple(made))
    tracked = tuple(one for one in made if one.name in TRACKERS)
    if tracked and not await _arm(session, held, tracked):
        return
    for cause in new:
        session.kept.pins.pop(cause, None)


async def _arm(session: MysqlSession, held: MysqlConnection, tracked: tuple[Assignment, ...]) -> bool:
    """Has the gateway's own trackers on again beside those that the client has just set; False if that fails."""
    try:
        await held.acknowledge(assignments_sql(tracked, mariadb=held.arming.mariadb))
    except (OSError, ProtocolError, BackendRefused) as error:
        held.close()
        session.backend_lost(held, error)
        return False
    finally:
        held.taker = session
    return True


def _columns(one: Assignment, *, mariadb: bool) -> str:
    if one.scope is Scope.USER:
        name = f"@`{one.name.replace('`', '``')}`"
        return f"{name}, HEX({name}), CHARSET({name}), COLLATION({name})"
    name = "tx_isolation" if mariadb and one.name == "transaction_isolation" else one.name
    return f"@@session.{name}"


def _system_value(row: Sequence[str | bytes | None], kind: int) -> str | None:
    value = row[0]
    if value is None:
        return "NULL"
    if isinstance(value, bytes) or len(value) > LONGEST_BYTES:
        return None
    if kind in _INTEGERS or kind in _DECIMALS or kind in _DOUBLES:
        return value
    return f"'{value}'" if kind in _STRINGS and _PLAIN.fullmatch(value) else None


def _user_value(row: Sequence[str | bytes | None], kind: int) -> str | None:
    value, hexadecimal, charset, collation = row
    if value is None:
        return next(null for kinds, null in _NULLS if kind in kinds)
    if len(value) > LONGEST_BYTES or not isinstance(hexadecimal, str):
        return None
    if kind in _INTEGERS or kind in _DECIMALS:
        return value if isinstance(value, str) else None
    if kind in _DOUBLES:
        return None if isinstance(value, bytes) else value if "e" in value else f"{value}e0"
    if kind not in _STRINGS or not isinstance(charset, str) or not isinstance(collation, str):
        return None
    if not _NAME.fullmatch(charset) or not _NAME.fullmatch(collation):
        return None
    literal = f"0x{hexadecimal}" if hexadecimal else "''"
    return f"_{charset} {literal} COLLATE {collation}"


async def _look_for_locks(session: MysqlSession, held: MysqlConnection) -> None:
    """Ends the pin of the named locks if none is held any more."""
    names = session.kept.pins[PinCause.NAMED_LOCK].names
    if not names:
        return
    questions = ", ".join(f"IS_USED_LOCK('{name}') <=> CONNECTION_ID()" for name in sorted(names))
    answer = await _ask(session, held, f"SELECT {questions} LIMIT 1")
    if answer is not None and all(value == "0" for value in answer[0][0]):
        del session.kept.pins[PinCause.NAMED_LOCK]
