"""What a client's command is: its first byte, and the fields that the gateway looks at.

A command stays the raw bytes that `PacketReader` returned; nothing here copies more than it must.
"""

from __future__ import annotations

from typing import Final

from gateway.protocol.mysql.constants import MAX_PAYLOAD, Command
from gateway.protocol.mysql.greeting import raw as encoded
from gateway.protocol.mysql.greeting import text
from gateway.protocol.mysql.packets import HEADER, PacketError, packet, payload_of

_FIRST_ARGUMENT: Final = HEADER + 1  # offset: behind packet header and command byte
_ONE_PACKET: Final = HEADER + MAX_PAYLOAD  # bytes; from here on a command consists of several packets

CURSOR_TYPE_NO_CURSOR: Final = 0  # enum_cursor_type in COM_STMT_EXECUTE's flags; anything else opens a cursor

RESET_CONNECTION: Final = packet(0, bytes((Command.RESET_CONNECTION,)))
PING: Final = packet(0, bytes((Command.PING,)))
QUIT: Final = packet(0, bytes((Command.QUIT,)))


def command_of(raw: bytes) -> int:
    """Return the command byte of a message; it may be none of `Command`."""
    return raw[HEADER]


def argument_of(raw: bytes) -> bytes:
    """Return what follows the command byte: the statement of COM_QUERY and COM_STMT_PREPARE, as sent."""
    return raw[_FIRST_ARGUMENT:] if len(raw) < _ONE_PACKET else payload_of(raw)[1:]


def database_of(raw: bytes) -> str:
    """Return the database that COM_INIT_DB selects."""
    return text(argument_of(raw))


def statement_id_of(raw: bytes) -> int:
    """Return the statement id of COM_STMT_EXECUTE, _FETCH, _RESET, _CLOSE, _SEND_LONG_DATA. Raises PacketError."""
    if len(raw) < _FIRST_ARGUMENT + 4:
        raise PacketError(f"command 0x{raw[HEADER]:02x} of {len(raw) - HEADER} bytes has no statement id")
    return int.from_bytes(raw[_FIRST_ARGUMENT : _FIRST_ARGUMENT + 4], "little")


def thread_id_of(raw: bytes) -> int:
    """Return the thread id of COM_PROCESS_KILL. Raises PacketError."""
    if len(raw) < _FIRST_ARGUMENT + 4:
        raise PacketError("COM_PROCESS_KILL without a thread id")
    return int.from_bytes(raw[_FIRST_ARGUMENT : _FIRST_ARGUMENT + 4], "little")


def cursor_type_of(raw: bytes) -> int:
    """Return the flags byte of COM_STMT_EXECUTE: which cursor it opens. Raises PacketError."""
    if len(raw) < _FIRST_ARGUMENT + 5:
        raise PacketError("COM_STMT_EXECUTE without flags")
    return raw[_FIRST_ARGUMENT + 4]


def query(statement: str | bytes) -> bytes:
    """Return COM_QUERY, as packets ready to be sent."""
    return packet(0, b"\x03" + (encoded(statement) if isinstance(statement, str) else statement))


def init_db(database: str) -> bytes:
    """Return COM_INIT_DB, as a packet ready to be sent."""
    return packet(0, b"\x02" + encoded(database))
