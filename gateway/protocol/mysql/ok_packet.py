"""OK, EOF and ERR packets as plain values, and the filter that makes a server's OK packet fit its client.

A backend connection always has SESSION_TRACK, and the gateway arms trackers of its own for positions: GTIDs on MySQL
(session_track_gtids), the variable last_gtid on MariaDB (session_track_system_variables). A client must see neither
unless it asked itself, and a client without SESSION_TRACK must see no state at all
(https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_ok_packet.html).

The info string is length-encoded whether or not SESSION_TRACK is agreed on, whatever the manual says (tried on MySQL
9.7 and MariaDB 10.11), so leaving the state away needs nothing but the flag cleared.

With trackers armed every write carries state, and with session_track_gtids=ALL_GTIDS every read does: hence the short
cut for what nearly always is in it, one GTID entry, and tuples instead of frozen dataclasses, which cost
nearly three times as much to make.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

from gateway.protocol.mysql.constants import Status, Tracked
from gateway.protocol.mysql.greeting import text
from gateway.protocol.mysql.packets import (
    PacketError,
    lenenc_bytes,
    lenenc_int,
    read_int,
    read_lenenc_bytes,
    read_lenenc_int,
)

STATE_CHANGED = int(Status.SESSION_STATE_CHANGED)

_LAST_GTID = b"last_gtid"
_LAST_GTID_ENTRY = b"\x09last_gtid"
_GTIDS = int(Tracked.GTIDS)
_VARIABLES = int(Tracked.SYSTEM_VARIABLES)
_SHORT = Struct("<BBBHHB").unpack_from  # header, affected rows, insert id, status, warnings, length of info


@dataclass(frozen=True, slots=True)
class ServerError:
    """What an ERR packet says."""

    code: int
    sqlstate: str
    message: str


class SessionChanges(NamedTuple):
    """What the state trackers of a server reported with one reply; None and empty mean "not reported".

    `gtids` is MySQL's (the statement's own GTID or the whole applied set, as session_track_gtids is set), `last_gtid`
    MariaDB's. `variables` holds the other system variables, names as the server writes them, the last value of each.
    """

    database: str | None = None
    variables: tuple[tuple[str, str], ...] = ()
    gtids: str | None = None
    last_gtid: str | None = None
    transaction_characteristics: str | None = None
    transaction_state: str | None = None
    state_changed: bool = False

    def then(self, later: SessionChanges) -> SessionChanges:
        """Return these changes with those of a later result of the same reply on top."""
        return SessionChanges(
            database=self.database if later.database is None else later.database,
            variables=tuple((dict(self.variables) | dict(later.variables)).items()),
            gtids=later.gtids or self.gtids,
            last_gtid=later.last_gtid or self.last_gtid,
            transaction_characteristics=_later(self.transaction_characteristics, later.transaction_characteristics),
            transaction_state=_later(self.transaction_state, later.transaction_state),
            state_changed=self.state_changed or later.state_changed,
        )


def _later(first: str | None, second: str | None) -> str | None:
    return first if second is None else second


class OkPacket(NamedTuple):
    """What an OK packet says. `state` is the session state information, undecoded."""

    affected_rows: int
    insert_id: int
    status: int
    warnings: int
    info: bytes = b""
    state: bytes = b""


def parse_err(payload: bytes) -> ServerError:
    """Parse the payload of an ERR packet (first byte 0xFF). Raises PacketError."""
    code, at = read_int(payload, 1, 2)
    sqlstate = "HY000"
    if payload[at : at + 1] == b"#":
        sqlstate = payload[at + 1 : at + 6].decode("ascii", "replace")
        at += 6
    return ServerError(code, sqlstate, payload[at:].decode("utf-8", "replace"))


def parse_ok(payload: bytes) -> OkPacket:
    """Parse the payload of an OK packet (first byte 0x00 or 0xFE). Raises PacketError."""
    size = len(payload)
    if size > 8:  # all lengths in one byte, with state: what a write answers
        _, affected_rows, insert_id, status, warnings, length = _SHORT(payload)
        at = 9 + length
        if affected_rows < 0xFB and insert_id < 0xFB and length < 0xFB and at < size and status & STATE_CHANGED:
            entries = payload[at - 1]
            if entries < 0xFB and at + entries == size:
                return OkPacket(affected_rows, insert_id, status, warnings, payload[8 : at - 1], payload[at:])
    affected_rows, at = read_lenenc_int(payload, 1)
    insert_id, at = read_lenenc_int(payload, at)
    status, at = read_int(payload, at, 2)
    warnings, at = read_int(payload, at, 2)
    info = state = b""
    if at < len(payload):
        info, at = read_lenenc_bytes(payload, at)
    if status & STATE_CHANGED and at < len(payload):
        state, at = read_lenenc_bytes(payload, at)
    return OkPacket(affected_rows, insert_id, status, warnings, info, state)


def encode_ok(header: int, ok: OkPacket) -> bytes:
    """Return the payload of an OK packet; `header` is 0x00 or 0xFE. The flag for state is set as `state` demands."""
    status = ok.status | STATE_CHANGED if ok.state else ok.status & ~STATE_CHANGED
    tail = b""
    if ok.state:
        tail = lenenc_bytes(ok.info) + lenenc_bytes(ok.state)
    elif ok.info:
        tail = lenenc_bytes(ok.info)
    return b"".join(
        (
            bytes((header,)),
            lenenc_int(ok.affected_rows),
            lenenc_int(ok.insert_id),
            status.to_bytes(2, "little"),
            ok.warnings.to_bytes(2, "little"),
            tail,
        )
    )


def only_position(state: bytes) -> SessionChanges | None:
    """Return what `state` says if it is one short entry with MySQL's GTIDs or MariaDB's last_gtid, and nothing else.

    None for everything else, malformed bytes included: `read_state` tells then.
    """
    size = len(state)
    if size < 4 or state[1] >= 0xFB or state[1] + 2 != size:
        return None
    if state[0] == _GTIDS and state[3] + 4 == size:
        return SessionChanges(None, (), str(state[4:], "utf-8", "surrogateescape"))
    if state.startswith(_LAST_GTID_ENTRY, 2) and size > 12 and state[0] == _VARIABLES and state[12] + 13 == size:
        return SessionChanges(None, (), None, str(state[13:], "utf-8", "surrogateescape"))
    return None


def read_state(state: bytes, *, keep_positions: bool, keep_schema: bool = True) -> tuple[SessionChanges, bytes]:
    """Decode session state information; return it, and its bytes without positions (or with, if `keep_positions`).

    Without `keep_schema` they are without the selected database, too.

    Entries of a type that is not known here are kept. Raises PacketError.
    """
    found: dict[int, str] = {}
    variables: dict[str, str] = {}
    last_gtid: str | None = None
    kept: list[bytes] = []
    at = 0
    while at < len(state):
        start = at
        kind = state[at]
        entry, at = read_lenenc_bytes(state, at + 1)
        whole = state[start:at]
        if kind == Tracked.SYSTEM_VARIABLES:
            pairs = _read_pairs(entry)
            variables.update((text(name), text(value)) for name, value in pairs)
            if any(name == _LAST_GTID for name, _ in pairs):
                last_gtid = variables.pop("last_gtid")
                rest = b"".join(lenenc_bytes(n) + lenenc_bytes(v) for n, v in pairs if n != _LAST_GTID)
                if not keep_positions:
                    whole = bytes((kind,)) + lenenc_bytes(rest) if rest else b""
        elif kind == Tracked.GTIDS:
            found[kind] = text(read_lenenc_bytes(entry, 1)[0])  # in front is the encoding, always 0
            if not keep_positions:
                whole = b""
        elif kind == Tracked.STATE_CHANGE:
            found[kind] = text(entry[-1:])  # one byte, with no length of its own (tried), whatever the manual says
        elif kind in _STRINGS:
            found[kind] = text(read_lenenc_bytes(entry, 0)[0])
            if kind == Tracked.SCHEMA and not keep_schema:
                whole = b""
        kept.append(whole)
    changes = SessionChanges(
        database=found.get(Tracked.SCHEMA),
        variables=tuple(variables.items()),
        gtids=found.get(Tracked.GTIDS),
        last_gtid=last_gtid,
        transaction_characteristics=found.get(Tracked.TRANSACTION_CHARACTERISTICS),
        transaction_state=found.get(Tracked.TRANSACTION_STATE),
        state_changed=Tracked.STATE_CHANGE in found,
    )
    return changes, b"".join(kept)


_STRINGS = frozenset((Tracked.SCHEMA, Tracked.TRANSACTION_CHARACTERISTICS, Tracked.TRANSACTION_STATE))


def _read_pairs(entry: bytes) -> list[tuple[bytes, bytes]]:
    pairs: list[tuple[bytes, bytes]] = []
    at = 0
    while at < len(entry):
        name, at = read_lenenc_bytes(entry, at)
        value, at = read_lenenc_bytes(entry, at)
        pairs.append((name, value))
    return pairs


def is_eof(payload: bytes) -> bool:
    """Say whether a payload is an EOF packet: 0xFE would begin a length of 8 bytes in a longer one."""
    return payload[:1] == b"\xfe" and len(payload) < 9


def parse_eof(payload: bytes) -> tuple[int, int]:
    """Return warnings and status flags of an EOF packet. Raises PacketError."""
    if len(payload) != 5:
        raise PacketError(f"EOF packet of {len(payload)} bytes instead of 5")
    return int.from_bytes(payload[1:3], "little"), int.from_bytes(payload[3:5], "little")
