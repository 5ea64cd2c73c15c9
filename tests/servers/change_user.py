"""COM_CHANGE_USER as libmysqlclient sends it, over a PyMySQL connection, which has none of its own."""

from __future__ import annotations

from typing import Any

import pymysql._auth

from gateway.demo.mysql_servers import Account


def change_user(
    connection: Any, account: Account, database: str = "", plugin: bytes = b"mysql_native_password", collation: int = 45
) -> None:
    """The answer to the old nonce first, then to whatever is asked. Raises what the server refuses with."""
    finish_change(connection, ask_to_change(connection, account, database, plugin, collation))


def ask_to_change(
    connection: Any, account: Account, database: str = "", plugin: bytes = b"mysql_native_password", collation: int = 45
) -> Any:
    """Sends the command; returns the packet that answers it."""
    answer = pymysql._auth.scramble_native_password(account.password.encode(), connection.salt)
    connection.user, connection.password = account.user.encode(), account.password.encode()
    connection._next_seq_id = 0
    connection.write_packet(
        b"\x11" + account.user.encode() + b"\0" + bytes([len(answer)]) + answer + database.encode() + b"\0"
        + collation.to_bytes(2, "little") + plugin + b"\0\x00"
    )  # fmt: skip
    return connection._read_packet()


def finish_change(connection: Any, packet: Any) -> None:
    """Answers what is asked until there is the OK."""
    while not packet.is_ok_packet():
        assert packet.is_auth_switch_request()
        packet.read_uint8()
        name = packet.read_string()
        packet = connection._process_auth(name, packet)
