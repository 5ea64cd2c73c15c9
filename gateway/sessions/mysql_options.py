"""COM_SET_OPTION: a client switches multi-statements on or off after its log-in.

Off is a protection against injected statements, so it is never only remembered: the session's connections are of the
pools without the capability from then on, and what it keeps of the old ones (a transaction, an insert id) is switched
at the server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.errors import BackendRefused
from gateway.protocol.mysql import answers
from gateway.protocol.mysql.commands import argument_of
from gateway.protocol.mysql.constants import Capability, ErrorCode, sqlstate_of

if TYPE_CHECKING:
    from gateway.sessions.mysql_task import CommandTask

_MULTI_STATEMENTS: Final = int(Capability.MULTI_STATEMENTS)
_ON: Final = 0  # enum_mysql_set_option
_OFF: Final = 1


async def set_option(task: CommandTask, raw: bytes) -> None:
    """Carries the command out and answers it. Raises what a server would, and Unavailable."""
    argument = argument_of(raw)
    if len(argument) < 2:
        raise server_says(ErrorCode.MALFORMED_PACKET, "Malformed communication packet.")
    option = int.from_bytes(argument[:2], "little")
    if option not in (_ON, _OFF):
        raise server_says(ErrorCode.UNKNOWN_COMMAND, "Unknown command")
    session = task.session
    capabilities = session.credentials.capabilities & ~_MULTI_STATEMENTS
    if option == _ON:
        capabilities |= _MULTI_STATEMENTS
    if capabilities != session.credentials.capabilities:
        credentials = session.credentials.with_capabilities(capabilities)
        session.credentials = credentials
        held = session.held
        for connection in {held, session.residue.writer, session.residue.last} - {None}:
            assert connection is not None
            pool = session.topology.members[connection.member].pool
            if connection is held or pool.take_bound(connection, session):
                await task.confirm(connection, connection.command(raw))
                connection.credentials = credentials
                if connection is held:
                    connection.taker = session
                else:
                    pool.give_back(connection)
    session.endpoint.write(answers.end(1, capabilities=session.capabilities, status=session.kept.status))


def server_says(code: int, message: str) -> BackendRefused:
    """The error that every server gives to such a command, without asking one."""
    return BackendRefused(message, code, sqlstate_of(code))
