"""A MySQL client over a blocking socket that shows what no driver shows: packets as they are, capabilities as wanted.

with WireClient(server_or_gateway, capabilities=NEW) as client:
    client.ask("SELECT 1").rows
    client.reply(raw_command)
"""

from __future__ import annotations

import socket
from typing import Final

from gateway.demo.mysql_servers import APP
from gateway.demo.servers import Server
from gateway.protocol.mysql import commands
from gateway.protocol.mysql.attributes import with_no_attributes
from gateway.protocol.mysql.client_handshake import ClientHandshake
from gateway.protocol.mysql.compression import CompressionLayer, algorithm_of
from gateway.protocol.mysql.constants import Capability
from gateway.protocol.mysql.handshake import Connected, Send
from gateway.protocol.mysql.ok_packet import ServerError
from gateway.protocol.mysql.replies import ReplyTracker
from gateway.protocol.mysql.results import ResultReader

TIMEOUT: Final = 20.0  # seconds for one answer; a test that reaches it has failed

OLD: Final = int(
    Capability.LONG_PASSWORD
    | Capability.LONG_FLAG
    | Capability.PROTOCOL_41
    | Capability.TRANSACTIONS
    | Capability.MULTI_RESULTS
    | Capability.PS_MULTI_RESULTS
)
"""What a client of MySQL 5.0 has."""
NEW: Final = OLD | int(Capability.MULTI_STATEMENTS | Capability.SESSION_TRACK | Capability.DEPRECATE_EOF)


class WireClient:
    """A client that has logged in. `capabilities` are those agreed on, `offered` those of the greeting."""

    def __init__(
        self,
        server: Server,
        *,
        user: str = APP.user,
        password: str = APP.password,
        database: str | None = "shop",
        capabilities: int = NEW,
        attributes: dict[str, str] | None = None,
    ) -> None:
        self.sock = socket.create_connection((server.host, server.port), TIMEOUT)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.layer: CompressionLayer | None = None
        handshake = ClientHandshake(
            user=user, password=password, database=database, capabilities=capabilities, attributes=attributes
        )
        connected: Connected | None = None
        try:
            while connected is None:
                for event in handshake.feed(self.receive()):
                    if isinstance(event, Send):
                        self.sock.sendall(event.data)
                    elif isinstance(event, Connected):
                        connected = event
        except BaseException:
            self.sock.close()
            raise
        self.offered = connected.greeting.capabilities
        self.capabilities = connected.capabilities
        algorithm = algorithm_of(connected.capabilities)
        self.layer = CompressionLayer(algorithm, towards_server=True) if algorithm else None

    def __enter__(self) -> WireClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def receive(self) -> bytes:
        data = b""
        while not data:
            if self.layer is None or not self.layer.holding:
                wire = self.sock.recv(65536)
                assert wire, "the server closed the connection"
                data = wire if self.layer is None else self.layer.inbound(wire)
            else:
                data = self.layer.inbound(b"")
        return data

    def send(self, raw: bytes) -> None:
        """Sends a command; a COM_QUERY gets the form that was agreed on."""
        if self.capabilities & Capability.QUERY_ATTRIBUTES:
            raw = with_no_attributes(raw)
        self.sock.sendall(raw if self.layer is None else self.layer.outbound(raw))

    def reply(self, raw: bytes, sequence: int = 1) -> bytes:
        """Sends a command; returns the whole reply as it came, whatever it is."""
        self.send(raw)
        return self.read_reply(raw[4], sequence)

    def read_reply(self, command: int, sequence: int = 1) -> bytes:
        self.tracker = ReplyTracker(self.capabilities)
        self.tracker.keep_positions = True
        self.tracker.begin(command, sequence)
        received = b""
        while not self.tracker.done:
            received += self.tracker.feed(self.receive())
        assert self.tracker.leftover == b""
        return received

    def ask(self, statement: str | bytes) -> ResultReader:
        """The last result of a statement."""
        self.send(commands.query(statement))
        reader = ResultReader(1 << 30)
        while not reader.done:
            reader.feed(self.receive())
        assert reader.leftover == b""
        return reader

    def rows(self, statement: str | bytes) -> list[tuple[str | bytes | None, ...]]:
        found = self.ask(statement)
        assert found.error is None, found.error
        return found.rows

    def error(self, raw: bytes) -> ServerError | None:
        """What the reply to a command says is wrong, None if nothing."""
        self.reply(raw)
        return self.tracker.error

    def is_closed(self) -> bool:
        """Whether the other side ends the connection, now or within the time limit."""
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True
