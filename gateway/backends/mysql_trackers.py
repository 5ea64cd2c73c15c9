"""The state trackers of a session: what its client has asked for, what a server is set to, and what the client hears.

The gateway follows positions and databases by trackers of its own (`mysql_state.Arming`). They stay on whatever a
client sets: a server is set to what both want, and of its replies the client gets what it asked for. Unless it asks, a
client has the servers' defaults: databases, and no positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.routing.operation import Assignment

if TYPE_CHECKING:
    from gateway.backends.mysql_state import State

_OFF: Final = frozenset({"0", "OFF", "FALSE"})


class Heard(NamedTuple):
    """What of a reply's session state the client gets, beside all that the gateway does not ask for itself."""

    positions: bool = False
    schema: bool = True


def heard(state: State, *, mariadb: bool) -> Heard:
    """What the client of a session in this state has asked for."""
    schema = state.value_of("session_track_schema")
    if mariadb:
        listed = _names(state.value_of("session_track_system_variables") or "")
        positions = "last_gtid" in listed or "*" in listed
    else:
        positions = _plain(state.value_of("session_track_gtids") or "OFF") not in _OFF
    return Heard(positions, schema is None or _plain(schema) not in _OFF)


def at_server(name: str, value: str, *, mariadb: bool) -> str:
    """What a server is set to where a client has set a tracker to `value`, which is SQL text."""
    if name == "session_track_schema":
        return "1"
    if name == "session_track_gtids" and _plain(value) in _OFF:
        return "'OWN_GTID'"
    if name == "session_track_system_variables" and mariadb:
        listed = _names(value)
        if "last_gtid" not in listed and "*" not in listed:
            return f"'{','.join([*listed, 'last_gtid'])}'"
    return value


def as_asked(one: Assignment, sql: bytes) -> Assignment:
    """A value that was read back after `sql` set it, without what it has from the value that the server was set to."""
    if one.name != "session_track_system_variables" or b"@@" not in sql or b"last_gtid" in sql.lower():
        return one
    listed = ",".join(name for name in _names(one.value) if name != "last_gtid")
    return Assignment(one.scope, one.name, f"'{listed}'")


def _plain(value: str) -> str:
    return value.strip("'\"").upper()


def _names(value: str) -> list[str]:
    return [name for part in value.strip("'\"").lower().split(",") if (name := part.strip())]
