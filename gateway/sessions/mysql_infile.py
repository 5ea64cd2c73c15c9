"""LOAD DATA LOCAL: the client's file on its way to the server, through a session that reads no commands meanwhile.

A server asks for a file by a packet 0xFB in the reply; the client answers with the file's packets and an empty one, and
only then the reply goes on. While the file is under way a `FileStream` stands in the session's place on both sides: it
is the owner of the client's endpoint and the taker of the backend connection. It keeps nothing: bytes pass as they
came, as fast as the server reads.

A client sends all of its file whatever happens at the server, so when something does, the rest is read and thrown away,
and the error is told where the client looks for it: behind the empty packet.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from gateway.backends.mysql import MysqlConnection
from gateway.errors import BackendRefused, ProtocolError, Refused
from gateway.protocol.mysql.commands import argument_of
from gateway.protocol.mysql.constants import MAX_PAYLOAD, Command
from gateway.protocol.mysql.greeting import raw as encoded
from gateway.protocol.mysql.ok_packet import parse_err
from gateway.protocol.mysql.packets import BEFORE_LOGIN_LIMIT, HEADER, PacketError, PacketReader, payload_of
from gateway.routing.sql_files import local_files

if TYPE_CHECKING:
    from gateway.sessions.mysql import MysqlSession

SILENCE_SECONDS: Final = 60.0  # between two pieces of a file; the servers' net_read_timeout is 30 s


class WantedFiles:
    """Which files the statement at hand may still be asked for. One that is named once may be sent once."""

    def __init__(self, session: MysqlSession) -> None:
        self._session = session
        self._raw = b""
        self._names: list[bytes] = []

    def __call__(self, name: str) -> None:
        """A server asks for the file `name` (`ReplyTracker.on_file`). Raises PacketError if it may not."""
        session = self._session
        raw, connection = session.raw, session.connection
        if raw is not self._raw:
            self._raw = raw
            self._names = local_files(argument_of(raw), session.kept.reading) if raw[HEADER] == Command.QUERY else []
        wanted = encoded(name)
        if wanted not in self._names or connection is None:
            raise PacketError("the server asked for a file that the statement does not name; it was not given")
        self._names.remove(wanted)
        # At the batch's end: the rest of what the server sent at once is still to be read.
        session.service.lane.after_batch(partial(_begin, session, connection))


def _begin(session: MysqlSession, connection: MysqlConnection) -> None:
    if session.connection is connection and not session.endpoint.closed and not connection.endpoint.closed:
        FileStream(session, connection, session.file_asked_for())


class FileStream:
    """One file on its way. `sequence` is the id of the last packet, at first of the server's request."""

    def __init__(self, session: MysqlSession, connection: MysqlConnection, sequence: int) -> None:
        self.sequence = sequence
        self._changed: bytearray | None = None  # the chunk at hand, where it cannot pass as it came
        self._session = session
        self._connection = connection
        self._head = bytearray()
        self._left = 0  # bytes of the packet at hand
        self._continued = False  # by the next packet: it was of full length
        self._failure: Callable[[], None] | None = None
        self._refusal = PacketReader(limit=BEFORE_LOGIN_LIMIT, sequence=None)
        early = session.begin_file()
        session.endpoint.owner = self
        connection.taker = self
        connection.source = session.endpoint
        session.endpoint.deadline = trio.current_time() + SILENCE_SECONDS
        if early:
            self.received(early)

    # -- the client's side

    def received(self, chunk: bytes) -> None:
        self._changed = None
        at = self._end_in(chunk)
        if self._failure is None:
            passed = chunk if self._changed is None else bytes(self._changed)
            self._connection.endpoint.send(passed if at is None else passed[:at])
        if at is None:
            self._session.endpoint.deadline = self._session.service.lane.now + SILENCE_SECONDS
        else:
            self._end(chunk[at:])

    def _end_in(self, chunk: bytes) -> int | None:
        """Where in `chunk` the file ends; None if it goes on."""
        at, size = 0, len(chunk)
        while True:
            if self._left:
                step = min(self._left, size - at)
                at += step
                self._left -= step
            if at == size:
                return None
            head = self._head
            taken = min(HEADER - len(head), size - at)
            head += chunk[at : at + taken]
            at += taken
            if len(head) < HEADER:
                return None
            length = int.from_bytes(head[:3], "little")
            self.sequence = (self.sequence + 1) & 0xFF
            if head[3] != self.sequence:  # a client that compresses may count something else
                self._changed = self._changed or bytearray(chunk)
                self._changed[at - 1] = self.sequence
            head.clear()
            if not length and not self._continued:
                return at
            self._continued = length == MAX_PAYLOAD
            self._left = length

    def _end(self, behind: bytes) -> None:
        """The file is whole; the reply goes on. `behind`: what the client sent after it."""
        session, connection = self._session, self._connection
        session.endpoint.owner = session.client
        connection.source = None
        session.endpoint.resume_reading()
        if self._failure is None:
            connection.taker = session
            session.file_sent()
        else:
            session.answer_at = self.sequence + 1
            self._failure()
        if behind and not session.endpoint.closed:
            session.client.received(behind)

    def ended(self) -> None:
        self.lost(ConnectionResetError("the client left in the middle of its file"))

    def lost(self, error: OSError) -> None:
        self._connection.source = None
        self._session.endpoint.owner = self._session.client
        self._session.client.lost(error)

    def overfull(self) -> None:
        self._session.client.overfull()

    def drained(self) -> None:
        self._session.client.drained()

    def expired(self) -> None:
        endpoint = self._session.endpoint
        if endpoint.reading:
            endpoint.reset()
            self.lost(TimeoutError(f"the client has sent nothing of its file for {SILENCE_SECONDS:g} s"))
        else:  # it is the server that does not read
            endpoint.deadline = trio.current_time() + SILENCE_SECONDS

    def raised(self, error: Exception) -> None:
        self._session.client.raised(error)

    # -- the server's side

    def reply(self, chunk: bytes) -> None:
        """The server does not want the rest. What it would do with that nobody knows: its connection is of no use."""
        connection = self._connection
        try:
            messages = self._refusal.feed(chunk)
            if not messages:
                return
            payload = payload_of(messages[0])
            if payload[0] != 0xFF:
                raise PacketError(f"packet beginning with 0x{payload[0]:02x} before the file was sent")
            said = parse_err(payload)
            error: Exception = BackendRefused(said.message, said.code, said.sqlstate)
        except ProtocolError as malformed:
            error = malformed
        connection.taker = None
        connection.close()
        self.backend_lost(connection, error)

    def backend_lost(self, connection: MysqlConnection, error: Exception) -> None:
        if isinstance(error, BackendRefused):
            # Not as a server's refusal: that of a write would have it sent once more, and half of the file is gone.
            error = Refused(str(error), code=error.code, sqlstate=error.sqlstate)
        self._fail(partial(self._session.backend_lost, connection, error))

    def prelude_refused(self, connection: MysqlConnection, error: BackendRefused) -> None:
        self._fail(partial(self._session.prelude_refused, connection, error))

    def overdue(self, connection: MysqlConnection) -> None:
        self._fail(partial(self._session.overdue, connection))

    def _fail(self, failure: Callable[[], None]) -> None:
        if self._failure is None:
            self._failure = failure
        self._connection.source = None
        self._session.endpoint.resume_reading()
