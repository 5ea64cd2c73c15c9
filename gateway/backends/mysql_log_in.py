"""Opens connections to MySQL servers: log-in with each password that may hold, TLS, compression, and the arming."""

from __future__ import annotations

import os
import platform
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from gateway.backends.mysql import Credentials, Home, MysqlConnection
from gateway.backends.mysql_server import MysqlServer
from gateway.backends.mysql_state import Arming
from gateway.errors import BackendRefused, ProtocolError, Unavailable
from gateway.net.connect import Conversation, connect_tcp, connect_unix
from gateway.net.lane import Lane
from gateway.protocol.mysql.attributes import with_no_attributes
from gateway.protocol.mysql.auth import Password
from gateway.protocol.mysql.client_handshake import ClientHandshake
from gateway.protocol.mysql.commands import query
from gateway.protocol.mysql.compression import CompressionLayer
from gateway.protocol.mysql.constants import Capability, ErrorCode
from gateway.protocol.mysql.handshake import Connected, Send, StartTls
from gateway.protocol.mysql.results import ResultReader

# Per batch; results are larger than requests. Not less: one allocation of this size lets glibc raise its thresholds,
# where with 64 KiB it gives the heap's top back and takes it again at every turn (16 threads: 39 us a query, not 35).
BACKEND_RECEIVE_BYTES: Final = 131_072
CONNECT_SECONDS: Final = 5.0  # to be connected, authenticated and armed

# Without these, replies or requests would not have the form that the client was promised.
SHAPING_REPLIES: Final = int(
    Capability.DEPRECATE_EOF | Capability.QUERY_ATTRIBUTES | Capability.MARIADB_EXTENDED_METADATA
)

# performance_schema.session_connect_attrs: the gateway's, not a client's, since connections serve one after another.
ATTRIBUTES: Final = {
    "program_name": "rw-gateway",
    "_client_name": "rw-gateway",
    "_pid": str(os.getpid()),
    "_os": platform.system(),
    "_platform": platform.machine(),
}

_ABOUT_CONNECTION: Final = query("SELECT CURRENT_ROLE(), CAST(@@max_allowed_packet AS CHAR)")


def _as_set_role(role: str | bytes | None, *, mariadb: bool) -> str:
    """What CURRENT_ROLE() says, as SET ROLE takes it: MySQL's are a list of quoted names, or NONE (tried)."""
    if isinstance(role, bytes):
        role = role.decode("utf-8", "surrogateescape")
    if role is None:
        return "NONE"
    return f"`{role.replace('`', '``')}`" if mariadb else role


async def connect(
    lane: Lane, server: MysqlServer, home: Home, member: str, credentials: Credentials, arming: Arming
) -> MysqlConnection:
    """Connects, logs in and arms. Raises BackendRefused (the server said no) or Unavailable (nobody answered)."""
    with log_in_errors(server):
        conversation, connected = await log_in(lane, server, credentials, with_attributes=True)
        try:
            if lacking := credentials.capabilities & SHAPING_REPLIES & ~connected.capabilities:
                raise ProtocolError(f"the server lacks {Capability(lacking)!r}, which was agreed on with the client")
            commands = [arming.fresh(), _ABOUT_CONNECTION]
            if connected.capabilities & Capability.QUERY_ATTRIBUTES:
                commands = [with_no_attributes(command) for command in commands]
            ((role, max_packet),) = (await ask(conversation, commands))[1].rows
            connection = MysqlConnection(
                conversation.endpoint,
                home,
                member,
                credentials,
                arming,
                connected,
                role=_as_set_role(role, mariadb=arming.mariadb),
                max_packet=int(max_packet or 0),
            )
            connection.endpoint.receive_bytes = BACKEND_RECEIVE_BYTES
            conversation.hand_over(connection)
        except BaseException:
            conversation.close()
            raise
        return connection


@contextmanager
def log_in_errors(server: MysqlServer) -> Iterator[None]:
    """Bounds the time for connecting, and raises Unavailable for whatever is not the server's refusal."""
    try:
        with trio.fail_after(CONNECT_SECONDS):
            yield
    except trio.TooSlowError:
        raise Unavailable(f"{server} did not let the gateway log in within {CONNECT_SECONDS:g} s") from None
    except (OSError, ProtocolError) as error:
        raise Unavailable(f"cannot connect to {server}: {error}") from error


async def log_in(
    lane: Lane, server: MysqlServer, credentials: Credentials, *, with_attributes: bool = False
) -> tuple[Conversation, Connected]:
    """An authenticated dialogue. Raises BackendRefused, OSError, ProtocolError; the caller bounds the time.

    `with_attributes`: the caller writes COM_QUERY with query attributes, if the credentials have that capability.
    """
    capabilities = credentials.capabilities
    if not with_attributes:
        capabilities &= ~int(Capability.QUERY_ATTRIBUTES)
    passwords = credentials.passwords.to_try
    refused: BackendRefused | None = None
    for password in passwords:
        try:
            found = await _log_in(lane, server, credentials, password, capabilities)
        except BackendRefused as error:
            if error.code != ErrorCode.ACCESS_DENIED:
                raise
            refused = refused or error
        else:
            if refused is not None and credentials.passwords.to_try == passwords:
                credentials.passwords.to_try = (password, *(other for other in passwords if other != password))
            return found
    assert refused is not None
    raise refused


async def _log_in(
    lane: Lane, server: MysqlServer, credentials: Credentials, password: Password, capabilities: int
) -> tuple[Conversation, Connected]:
    address = server.address
    sock = await (connect_unix(address.path) if address.path else connect_tcp(address.host, address.port))
    conversation = Conversation(lane, sock)
    try:
        handshake = ClientHandshake(
            user=credentials.user,
            password=password,
            capabilities=capabilities | server.compression,
            collation=credentials.collation,
            attributes=ATTRIBUTES,
            tls=server.wants_tls,
            secure=server.is_local,
        )
        while True:
            events = deque(handshake.feed(await _more(conversation)))
            while events:
                match events.popleft():
                    case Send(reply):
                        conversation.write(reply)
                    case StartTls():
                        conversation.add_layer(server.tls_layer())
                        events.extend(handshake.secured())
                    case Connected() as connected:
                        if server.compression:
                            _compress(conversation, connected, server.compression)
                        return conversation, connected
    except BaseException:
        conversation.close()
        raise


def _compress(conversation: Conversation, connected: Connected, algorithm: int) -> None:
    if not connected.capabilities & algorithm:
        name = "zlib" if algorithm == Capability.COMPRESS else "zstd"
        raise ProtocolError(f"the server does not offer {name}, which backend_compression asks for")
    conversation.add_layer(CompressionLayer(algorithm, towards_server=True), connected.leftover)


async def ask(conversation: Conversation, commands: list[bytes]) -> list[ResultReader]:
    """The results of several pipelined commands. Raises BackendRefused, OSError; then the dialogue is over."""
    conversation.write(b"".join(commands))
    answers: list[ResultReader] = []
    chunk = b""
    for _ in commands:
        reader = ResultReader()
        while not reader.done:
            reader.feed(chunk or await _more(conversation))
            chunk = b""
        if reader.error is not None:
            raise BackendRefused(reader.error.message, reader.error.code, reader.error.sqlstate)
        chunk = reader.leftover
        answers.append(reader)
    return answers


async def _more(conversation: Conversation) -> bytes:
    chunk = await conversation.receive()
    if not chunk:
        raise ConnectionResetError("the server closed the connection")
    return chunk
