"""GET DIAGNOSTICS where no connection at the primary can carry it out: what it would store is set by value instead.

The statement before may have run at a replica, or its connection may have gone to another session, or the gateway may
have answered it. What is known of its conditions (`mysql_residue`) is put in a SET of literals, which runs anywhere and
follows the session; the conditions stay as they were, as they do after GET DIAGNOSTICS.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gateway.backends.pool import what_is_left
from gateway.errors import BackendRefused, ProtocolError
from gateway.protocol.mysql.commands import query
from gateway.protocol.mysql.constants import Command
from gateway.routing.sql_asks import Diagnosed, diagnosed
from gateway.sessions.mysql_residue import Captured, settle, what_is_known

if TYPE_CHECKING:
    from gateway.sessions.mysql import MysqlSession


async def as_assignment(session: MysqlSession, raw: bytes) -> tuple[bytes, Captured] | None:
    """The SET that does what a GET DIAGNOSTICS of this session would do, and what stays known behind it.

    None where a connection at the primary can still be asked, or where not enough is known.
    """
    if raw[4] != Command.QUERY:
        return None
    asked = diagnosed(*session.prepared.text_and_reading(raw))
    if asked is None:
        return None
    await settle(session)
    known = await _known(session)
    if known is None or known.warnings is None:
        return None
    values = _values(asked, known)
    if values is None:
        return None
    names = [f"@`{name.replace('`', '``')}`" for name, _ in asked.items]
    return query("SET " + ", ".join(f"{name} = {value}" for name, value in zip(names, values, strict=True))), known


async def _known(session: MysqlSession) -> Captured | None:
    residue = session.residue
    captured = residue.captured
    if captured is not None and captured.first and captured.at == session.commands:
        return captured
    last = residue.last
    if last is None or last.last_session is not session or last.leased:
        return what_is_known(session)
    pool = session.topology.members[last.member].pool
    if not last.arming.replica or not pool.take_bound(last, session):
        return None
    try:
        left = await what_is_left(last)
    except (OSError, BackendRefused, ProtocolError):
        last.close()
        return None
    last.tainted = True
    pool.give_back(last)
    sqlstates = tuple(left.sqlstates)
    return Captured(session.commands, left.warnings, -1, left.found_rows, first=True, sqlstates=sqlstates)


def _values(asked: Diagnosed, known: Captured) -> list[str] | None:
    """The literals for the items, None if one of them is not known."""
    assert known.warnings is not None
    told: dict[str, str | None] = {}
    if asked.condition is None:
        told["NUMBER"] = str(len(known.warnings))
        if known.row_count is not None:
            told["ROW_COUNT"] = str(known.row_count)
    else:
        if not 1 <= asked.condition <= len(known.warnings):
            return None
        _, code, message = known.warnings[asked.condition - 1]
        told["MYSQL_ERRNO"] = str(int(code or 0))
        told["MESSAGE_TEXT"] = _text(message)
        if asked.condition <= len(known.sqlstates):
            told["RETURNED_SQLSTATE"] = _text(known.sqlstates[asked.condition - 1])
    values = [told.get(item) for _, item in asked.items]
    return [value for value in values if value is not None] if None not in values else None


def _text(value: str | bytes | None) -> str | None:
    """The literal for a text, None for one whose bytes depend on what the session has set."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""
    plain = text.isascii() and text.isprintable() and "\\" not in text
    return "'" + text.replace("'", "''") + "'" if plain else None


def still_known(session: MysqlSession, known: Captured) -> None:
    """The SET has run: what was known before it is what the next question is about."""
    session.residue.captured = replace(known, at=session.commands, first=True)
    session.rules_version = -1  # declines the next command: it may ask
