"""Follows the reply to a command through the bytes of its server, and says where it ends, without decoding rows.

Every byte that a server sends to a client passes through `ReplyTracker.feed`, so this module is written for speed
first, and the rest follows from what is fast in CPython: one call per chunk, not per packet; a chunk that needs no
change is returned as the same object; a packet costs its header and its first byte.

A reply is a walk over packets, and what the next packet may be is the phase:

    FIRST   OK, ERR, EOF (COM_SET_OPTION), LOCAL INFILE, or the number of columns of a result set
    PREPARE the header of COM_STMT_PREPARE's reply, or ERR
    STRING  COM_STATISTICS: any one packet
    PARAMS  the definitions of a prepared statement's parameters
    SKIP    packets that are only counted: definitions of columns, and the EOF behind them
    COLUMNS the EOF behind the columns of COM_STMT_EXECUTE: with a cursor it ends the reply
    ROWS    rows (definitions, for COM_FIELD_LIST) until EOF, OK with the header 0xFE, or ERR
    DIRECT  the first packet of a reply that begins with rows: COM_STMT_FETCH, COM_FIELD_LIST
    END     nothing more
    FILE    nothing, until the client has sent the file that was asked for

Only packets of control (OK, ERR, EOF, headers, parameters) are looked into and therefore kept until they are whole; of
any other one at most its first five bytes are held back, so memory is bounded whatever the size of the reply. Rows of
16 MiB and more continue in further packets, whose first byte means nothing.

The metadata of the last result set is remembered as it came (the prefix): a session that asks the same question
again, as most do, gets the same bytes in front of its rows, and one comparison replaces the walk over them. That is
exact: the walk depends on nothing but those bytes, the kind of command and the capabilities. Of a reply with one row
and one column it saves a third.

OK packets carry session state that the client must not see in full; `ok_packet` says what and why. One without state,
the usual case, passes as it is. Sequence ids never change: a packet is rewritten, never added or removed.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final

from gateway.protocol.mysql.constants import MAX_PAYLOAD, Capability, Command, ErrorCode, Status
from gateway.protocol.mysql.greeting import text
from gateway.protocol.mysql.ok_packet import (
    STATE_CHANGED,
    ServerError,
    SessionChanges,
    encode_ok,
    only_position,
    parse_eof,
    parse_err,
    parse_ok,
    read_state,
)
from gateway.protocol.mysql.packets import PacketError, packet, read_lenenc_int

_FIRST: Final = 0
_PREPARE: Final = 1
_STRING: Final = 2
_SKIP: Final = 3
_COLUMNS: Final = 4
_ROWS: Final = 5
_DIRECT: Final = 6
_END: Final = 7
_FILE: Final = 8
_PARAMS: Final = 9

_MORE_RESULTS: Final = int(Status.MORE_RESULTS_EXISTS)
_CURSOR: Final = int(Status.CURSOR_EXISTS)
_DEPRECATE_EOF: Final = int(Capability.DEPRECATE_EOF)
_SESSION_TRACK: Final = int(Capability.SESSION_TRACK)
_LOCAL_FILES: Final = int(Capability.LOCAL_FILES)
_EXECUTE: Final = int(Command.STMT_EXECUTE)
_SHORTEST_ROW: Final = 9  # bytes of a row that begins with 0xFE: anything shorter is an EOF packet
_EOF_LENGTH: Final = 5  # bytes
_SHORTEST_OK: Final = 7  # bytes
_PREPARED_LENGTH: Final = 12  # bytes
_PREFIX_LIMIT: Final = 4096  # bytes; the metadata of some 60 columns
_NOT_PLAIN: Final = _MORE_RESULTS | STATE_CHANGED
_ENDED_BY_OK: Final = (_ROWS, _FIRST)
_STATE_HIGH: Final = STATE_CHANGED >> 8

_HEAD: Final = Struct("<IB").unpack_from  # length and sequence id in one, first byte: a quarter faster than indexing
_SHORT_OK: Final = Struct("<BBBHH").unpack_from  # header, affected rows, insert id, status, warnings
_OK_PACKET: Final = Struct("<IBBBHH").unpack_from  # a whole one: length and sequence id, then as above
_EOF: Final = Struct("<HH").unpack_from  # warnings, status
_EOF_PACKET: Final = Struct("<IBHH").unpack_from  # a whole one: length and sequence id, header, then as above
_DEFINITION_END: Final = 6  # bytes: type, flags (2), decimals, filler (2) end every definition
_VECTOR: Final = 0xF2  # MYSQL_TYPE_VECTOR
_PREPARED: Final = Struct("<IHHxH").unpack_from  # statement id, columns, parameters, warnings

_BEGIN: Final = [_FIRST] * 256
_BEGIN[Command.STMT_PREPARE] = _PREPARE
_BEGIN[Command.STATISTICS] = _STRING
_BEGIN[Command.FIELD_LIST] = _DIRECT
_BEGIN[Command.STMT_FETCH] = _DIRECT
_BEGIN[Command.STMT_CLOSE] = _END
_BEGIN[Command.STMT_SEND_LONG_DATA] = _END
_BEGIN[Command.QUIT] = _END


class ReplyTracker:
    """Walks the replies to one client's commands; reused for all of them, whichever backend serves each.

        tracker.begin(command)
        while not tracker.done:
            client.write(tracker.feed(await backend.receive()))
        what_belongs_to_the_next_reply = tracker.leftover

    `client_capabilities` are those agreed on with the client; DEPRECATE_EOF must be the same on the backend connection,
    and the backend connection must have SESSION_TRACK.

    Valid once `done` (a reply without an OK or EOF leaves the numbers as they were):

    done            the reply is complete; at once after `begin` for commands that have none
    leftover        bytes of the last chunk behind the reply's end
    status          Status flags of the last OK or EOF. An ERR has none: look at `error` first
    warnings        of the last OK or EOF
    rows            of the last result set
    affected_rows   of the last OK
    insert_id       of the last OK
    error           what the ERR packet said, or None
    refused         the ERR packet is the whole reply: nothing of it was returned before the ERR itself
    changes         what state trackers reported, over all results of the reply; None if nothing
    told            False: `error`, `changes` and what is listed below are as `begin` left them
    statement_id, columns, parameters   of COM_STMT_PREPARE's reply; None for others
    takes_vectors   one of the parameters is a VECTOR (MySQL 9)
    infile          name of the file that the server asks the client for; the reply goes on after the client sent it,
                    and `file_sent` was called; `infile_at` is the sequence id of the request

    `keep_positions` and `keep_schema` are the caller's to set: whether the client asked itself for GTIDs or last_gtid,
    and for its database, so that they are not filtered out. So is `statement_told`: the id by which the client is to
    know the statement that COM_STMT_PREPARE makes. `on_file` is called with the name when a server asks for a file, and
    raises PacketError to refuse.
    """

    __slots__ = (
        "_begun",
        "_binary",
        "_continued",
        "_deprecate_eof",
        "_held",
        "_need",
        "_phase",
        "_prefix",
        "_remaining",
        "_sequence",
        "_skip",
        "_state_wanted",
        "_then",
        "_with_files",
        "affected_rows",
        "changes",
        "columns",
        "done",
        "error",
        "infile",
        "infile_at",
        "insert_id",
        "keep_positions",
        "keep_schema",
        "leftover",
        "on_file",
        "parameters",
        "refused",
        "rows",
        "statement_id",
        "statement_told",
        "status",
        "takes_vectors",
        "told",
        "warnings",
    )

    def __init__(self, client_capabilities: int) -> None:
        self._deprecate_eof = bool(client_capabilities & _DEPRECATE_EOF)
        self._state_wanted = bool(client_capabilities & _SESSION_TRACK)
        self._with_files = bool(client_capabilities & _LOCAL_FILES)
        self._held = bytearray()
        self._prefix = b""
        self._binary = False
        self.keep_positions = False
        self.keep_schema = True
        self.statement_told: int | None = None
        self.on_file: Callable[[str], None] | None = None
        self.status = self.warnings = self.affected_rows = self.insert_id = self.rows = 0
        self.leftover = b""
        self._skip = 0
        self._remaining = 0
        self._then = _END
        self._continued = False
        self._need = 0
        self.told = True
        self.begin(Command.QUIT)

    def begin(self, command: int, sequence: int = 1) -> None:
        """Expect the reply to `command`, beginning with sequence id `sequence` (`packets_in(raw)` of the command)."""
        self._phase = phase = _BEGIN[command]
        binary = command == _EXECUTE
        if binary is not self._binary:
            self._binary = binary
            self._prefix = b""
        self._sequence = sequence & 0xFF
        self._begun = False
        self.done = phase == _END
        if self.told:  # what else a walk uses is as new at a reply's end
            self._forget()

    def _forget(self) -> None:
        self.told = False
        self.error: ServerError | None = None
        self.refused = False
        self.changes: SessionChanges | None = None
        self.statement_id: int | None = None
        self.columns: int | None = None
        self.parameters: int | None = None
        self.takes_vectors = False
        self.infile: str | None = None
        self.infile_at = 0

    def feed(self, data: bytes) -> bytes:
        """Take what the server sent; return what to send to the client, b"" while a packet's head is incomplete.

        Returns `data` itself where all of it belongs to the reply and nothing changes. Raises PacketError for bytes
        that are no reply to the command: the backend connection is then of no use.
        """
        if self._held:
            self._held += data
            if len(self._held) < self._need:
                return b""
            data = bytes(self._held)
            self._held.clear()
        elif not self._begun and self._is_known(data):
            return data
        at = self._skip
        if at:
            if at > len(data):
                self._skip = at - len(data)
                return data
            self._skip = 0
        return self._walk(data, at)

    def _is_known(self, data: bytes) -> bool:
        """Whether this is a whole reply of one row at most behind the prefix, with a plain end: a lookup by key."""
        prefix = self._prefix
        if not prefix or not data.startswith(prefix) or prefix[3] != self._sequence or self._phase != _FIRST:
            return False
        at, size = len(prefix), len(data)
        if size - at < _EOF_LENGTH + 4 or size > MAX_PAYLOAD:
            return False
        word, first = _HEAD(data, at)
        rows = 0
        if first < 0xFE:
            rows = 1
            at += (word & 0xFFFFFF) + 4
        if self._deprecate_eof:
            if at != size - _SHORTEST_OK - 4:
                return False
            word, first, affected_rows, insert_id, status, warnings = _OK_PACKET(data, at)
            if word & 0xFFFFFF != _SHORTEST_OK or affected_rows >= 0xFB or insert_id >= 0xFB:
                return False
        elif at == size - _EOF_LENGTH - 4:
            word, first, warnings, status = _EOF_PACKET(data, at)
            if word & 0xFFFFFF != _EOF_LENGTH:
                return False
            affected_rows, insert_id = self.affected_rows, self.insert_id
        else:
            return False
        if first != 0xFE or status & _NOT_PLAIN:
            return False
        self.affected_rows, self.insert_id = affected_rows, insert_id
        self.warnings, self.status = warnings, status
        self.rows = rows
        self._phase = _END
        self._begun = self.done = True
        self.leftover = b""
        return True

    def _walk(self, data: bytes, at: int) -> bytes:
        """Go through the packets of `data` from offset `at`, which is the start of a packet.

        The bytes up to `sent` are in `out` already: those before a packet that was rewritten, and its new form.
        """
        size = len(data)
        last = size - 5  # a packet that begins behind it does not show its header and first byte
        phase = self._phase
        sent = 0
        out: list[bytes] | None = None
        rows = self.rows
        head = -1  # where the result set at hand begins, if its metadata may become the prefix
        while phase != _END:
            if at > last:
                break
            if phase == _ROWS:
                if self._continued:
                    length = _HEAD(data, at)[0] & 0xFFFFFF
                    self._continued = length == MAX_PAYLOAD
                    at += length + 4
                    continue
                while at <= last:
                    word, first = _HEAD(data, at)
                    word &= 0xFFFFFF
                    if first >= 0xFE or word == 0xFFFFFF:
                        break
                    rows += 1
                    at += word + 4
                else:
                    continue
                if word == MAX_PAYLOAD:  # also where the first byte is 0xFE: the row begins with a value over 16 MiB
                    self._continued = True
                    rows += 1
                    at += word + 4
                    continue
                if first == 0xFE and not self._deprecate_eof and word >= _SHORTEST_ROW:
                    rows += 1
                    at += word + 4
                    continue
            elif phase == _SKIP:
                remaining = self._remaining
                while remaining and at <= last:
                    word = _HEAD(data, at)[0] & 0xFFFFFF
                    if word == MAX_PAYLOAD:
                        raise PacketError("definition of 16 MiB")
                    at += word + 4
                    remaining -= 1
                self._remaining = remaining
                if not remaining:
                    phase = self._phase = self._then
                    rows = 0
                    if phase == _ROWS and head >= 0 and at <= size and at - head <= _PREFIX_LIMIT:
                        self._prefix = data[head:at]
                continue
            elif phase == _FIRST and not self._begun:
                prefix = self._prefix
                if prefix and data.startswith(prefix, at) and prefix[3] == self._sequence:
                    self._begun = True
                    phase = self._phase = _ROWS
                    rows = 0
                    at += len(prefix)
                    continue
                head = at
            word, first = _HEAD(data, at)
            length = word & 0xFFFFFF
            if not self._begun and word >> 24 != self._sequence:
                raise PacketError(
                    f"reply begins with packet {word >> 24} where {self._sequence} was expected",
                    ErrorCode.PACKETS_OUT_OF_ORDER,
                )
            if phase == _DIRECT:
                phase = self._phase = _ROWS
                if first < 0xFE:
                    self._begun = True
                    continue
            end = at + 4 + length
            if phase == _STRING and first != 0xFF:
                at = end
                phase = self._phase = _END
                break
            # Nearly every reply ends here; what is not plain about it is left to _on_control.
            if length == _SHORTEST_OK and end <= size and first == (0xFE if phase == _ROWS else 0x00):
                _, affected_rows, insert_id, status, warnings = _SHORT_OK(data, at + 4)
                if not status & _NOT_PLAIN and affected_rows < 0xFB and insert_id < 0xFB and phase in _ENDED_BY_OK:
                    self.affected_rows = affected_rows
                    self.insert_id = insert_id
                    self.warnings = warnings
                    self.status = status
                    self._phase = _END
                    at = end
                    break
            elif length == _EOF_LENGTH and phase == _ROWS and end <= size and first == 0xFE:
                warnings, status = _EOF(data, at + 5)
                if not status & _NOT_PLAIN:
                    self.warnings = warnings
                    self.status = status
                    self._phase = _END
                    at = end
                    break
            if length == MAX_PAYLOAD or not length:
                raise PacketError(f"packet of {length} bytes where OK, ERR or EOF should be")
            if end > size:
                break
            new = self._on_control(phase, first, data[at + 4 : end])
            if first == 0xFB and self._phase == _FILE:
                self.infile_at = word >> 24
            if new is not None:
                out = out or []
                out += (data[sent:at], packet(word >> 24, new))
                sent = end
            at = end
            if phase == _COLUMNS and self._phase == _ROWS and head >= 0 and at - head <= _PREFIX_LIMIT:
                self._prefix = data[head:at]
            phase = self._phase
        self.rows = rows
        return self._pause(data, at, sent, out)

    def _pause(self, data: bytes, at: int, sent: int, out: list[bytes] | None) -> bytes:
        """Leave the walk at offset `at`: behind the reply, within a packet, or before one that is not all there."""
        size = len(data)
        if at > size:
            self._skip = at - size
            at = size
        elif self._phase == _END:
            self.done = True
            self.leftover = data[at:]
        elif at < size:
            if size - at == 4 and data[at : at + 3] == b"\0\0\0" and not self._continued:
                raise PacketError("empty packet in a reply")
            # From five bytes on it is a packet of control, of which every byte is needed.
            self._need = 5 if size - at < 5 else 4 + (_HEAD(data, at)[0] & 0xFFFFFF)
            self._held += data[at:]
        if out is not None:
            out.append(data[sent:at])
            return b"".join(out)
        return data if at == size else data[:at]

    def _on_control(self, phase: int, first: int, payload: bytes) -> bytes | None:
        """Take a packet of control and set the next phase; return its payload anew if the client must not see it."""
        lone = not self._begun
        self._begun = self.told = True
        if phase == _FILE:
            raise PacketError("server answers before it has the file that it asked for")
        if first == 0xFF:
            self.error = parse_err(payload)
            self.refused = lone
            self._phase = _END
            return None
        if phase == _PARAMS:
            self._on_parameter(payload)
            return None
        if phase == _PREPARE:
            self._on_prepared(first, payload)
            told = self.statement_told
            return None if told is None else b"".join((b"\0", told.to_bytes(4, "little"), payload[5:]))
        if first == 0xFE:
            if len(payload) == _EOF_LENGTH:
                return self._on_eof(phase, payload)
            if phase != _COLUMNS:
                return self._on_ok(payload)
        elif phase == _FIRST:
            if first == 0x00:
                return self._on_ok(payload)
            if first == 0xFB:
                self._on_infile(payload)
            else:
                self._on_columns(payload)
            return None
        raise PacketError(f"packet beginning with 0x{first:02x} in phase {phase} of a reply")

    def _on_columns(self, payload: bytes) -> None:
        columns, end = read_lenenc_int(payload, 0)
        if end != len(payload):
            raise PacketError(f"number of columns in a packet of {len(payload)} bytes")
        self._phase = _SKIP
        self._remaining = columns
        self._then = _ROWS
        if not self._deprecate_eof:
            if self._binary:
                self._then = _COLUMNS
            else:
                self._remaining += 1

    def _on_prepared(self, first: int, payload: bytes) -> None:
        if first != 0x00 or len(payload) < _PREPARED_LENGTH:
            raise PacketError(f"reply to COM_STMT_PREPARE begins with 0x{first:02x}, {len(payload)} bytes")
        self.statement_id, columns, parameters, self.warnings = _PREPARED(payload, 1)
        self.columns = columns
        self.parameters = parameters
        if parameters:
            self._remaining = parameters
            self._phase = _PARAMS
        else:
            self._skip_definitions()

    def _on_parameter(self, payload: bytes) -> None:
        if len(payload) < _DEFINITION_END:
            raise PacketError(f"definition of a parameter in {len(payload)} bytes")
        if payload[-_DEFINITION_END] == _VECTOR:
            self.takes_vectors = True
        self._remaining -= 1
        if not self._remaining:
            self._skip_definitions()

    def _skip_definitions(self) -> None:
        """What is left of COM_STMT_PREPARE's reply: the columns, and the EOF behind each kind of definitions."""
        columns, parameters = self.columns or 0, self.parameters or 0
        eofs = 0 if self._deprecate_eof else (columns > 0) + (parameters > 0)
        self._remaining = columns + eofs
        self._then = _END
        self._phase = _SKIP if self._remaining else _END

    def _on_infile(self, payload: bytes) -> None:
        self.infile = text(payload[1:])
        if not self._with_files:
            raise PacketError("server asks for a local file, which was not offered to it")
        if self.on_file is not None:
            self.on_file(self.infile)
        self._phase = _FILE

    def file_sent(self) -> None:
        """The client has sent the last packet of the file: its outcome is what comes next."""
        if self._phase == _FILE:
            self._phase = _FIRST

    def _on_eof(self, phase: int, payload: bytes) -> bytes | None:
        self.warnings, status = parse_eof(payload)
        if phase == _COLUMNS and not status & _CURSOR:
            self._phase = _ROWS
        else:
            self._finish_result(status & ~STATE_CHANGED)
        # An EOF has no room for state: with the flag set, a client would look for some behind it.
        return payload[:3] + (status & ~STATE_CHANGED).to_bytes(2, "little") if status & STATE_CHANGED else None

    def _on_ok(self, payload: bytes) -> bytes | None:
        if len(payload) >= _SHORTEST_OK and payload[1] < 0xFB and payload[2] < 0xFB and not payload[4] & _STATE_HIGH:
            _, self.affected_rows, self.insert_id, status, self.warnings = _SHORT_OK(payload)
            self._finish_result(status)
            return None
        ok = parse_ok(payload)
        self.affected_rows = ok.affected_rows
        self.insert_id = ok.insert_id
        self.warnings = ok.warnings
        self._finish_result(ok.status & ~STATE_CHANGED)
        if not ok.status & STATE_CHANGED:
            return None
        state = ok.state
        changes = only_position(state)
        if changes is not None:
            kept = state if self.keep_positions else b""
        else:
            changes, kept = read_state(state, keep_positions=self.keep_positions, keep_schema=self.keep_schema)
        self.changes = changes if self.changes is None else self.changes.then(changes)
        if not self._state_wanted:
            kept = b""
        if kept and kept == state:
            return None
        if not kept and not ok.info and payload[1] < 0xFB and payload[2] < 0xFB:
            # What encode_ok would return, made faster: the same packet up to the info, but for one bit.
            return payload[:4] + bytes((payload[4] & ~_STATE_HIGH,)) + payload[5:7]
        return encode_ok(payload[0], ok._replace(state=kept))

    def _finish_result(self, status: int) -> None:
        self.status = status
        self._phase = _FIRST if status & _MORE_RESULTS else _END
