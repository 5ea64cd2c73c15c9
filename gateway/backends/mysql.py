"""One connection to a MySQL server: log-in, state, and the replies on their way to whoever holds the lease."""

from __future__ import annotations

import math
import os
import platform
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, NewType, Protocol

import trio

from gateway.backends.mysql_server import MysqlServer
from gateway.backends.mysql_state import Arming, State, commands_to, state_of
from gateway.backends.statements import Handles
from gateway.errors import BackendRefused, ProtocolError, Unavailable
from gateway.net.connect import Conversation, connect_tcp, connect_unix
from gateway.net.endpoint import Endpoint
from gateway.net.lane import Lane
from gateway.protocol.mysql.attributes import with_no_attributes
from gateway.protocol.mysql.auth import Password
from gateway.protocol.mysql.client_handshake import ClientHandshake
from gateway.protocol.mysql.commands import RESET_CONNECTION, query
from gateway.protocol.mysql.compression import CompressionLayer, algorithm_of
from gateway.protocol.mysql.constants import Capability, ErrorCode
from gateway.protocol.mysql.handshake import Connected, Send, StartTls
from gateway.protocol.mysql.replies import Prelude
from gateway.protocol.mysql.results import ResultReader, Row

# Per batch; results are larger than requests. Not less: one allocation of this size lets glibc raise its thresholds,
# where with 64 KiB it gives the heap's top back and takes it again at every turn (16 threads: 39 us a query, not 35).
BACKEND_RECEIVE_BYTES: Final = 131_072
CONNECT_SECONDS: Final = 5.0  # to be connected, authenticated and armed
QUESTION_SECONDS: Final = 10.0  # for the gateway's own short questions on a leased connection

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

ThreadId = NewType("ThreadId", int)  # the server's id of the connection


class Taker(Protocol):
    """Who holds the lease of a connection and gets what the server sends."""

    def reply(self, chunk: bytes) -> None: ...

    def backend_lost(self, connection: MysqlConnection, error: Exception) -> None: ...

    def prelude_refused(self, connection: MysqlConnection, error: BackendRefused) -> None: ...

    def overdue(self, connection: MysqlConnection) -> None:
        """The time limit of a statement has passed. The connection is open, and its reply still under way."""


@dataclass(frozen=True, slots=True)
class Left:
    """What a session's last statement left behind on a connection; None for what could not be asked."""

    insert_id: int | None
    row_count: int | None
    found_rows: int | None
    warnings: list[Row]  # of SHOW WARNINGS: level, code, message
    sqlstates: list[str]  # of the first of them


class Borrower(Protocol):
    """A session, as far as its bound connections are concerned."""

    def losing(self, connection: MysqlConnection, left: Left | None) -> None:
        """Its bound connection is lost to it, and with it `left`: None if nobody could ask."""


class Home(Protocol):
    """The pool that a connection belongs to.

    `statement_limit`: how many statements it may have prepared; `replays` counts how often state was brought to one.
    """

    statement_limit: int
    replays: int

    def forget(self, connection: MysqlConnection) -> None:
        """The connection is closed: it occupies no place any more."""

    def give_back(self, connection: MysqlConnection) -> None:
        """The lease of the connection has ended."""


class Passwords:
    """What a user logs in with, shared by all of its credentials. While a password is being changed there are two.

    `to_try`: the one that a server accepted last comes first; the others are for servers that refuse it.
    """

    __slots__ = ("to_try",)

    def __init__(self, *to_try: Password) -> None:
        self.to_try = to_try


class Credentials:
    """Whom a connection is logged in as. `capabilities` are those that change behaviour, agreed on with the client."""

    __slots__ = ("capabilities", "collation", "key", "passwords", "user")

    def __init__(self, user: str, password: Password | Passwords, capabilities: int, collation: int) -> None:
        self.user = user
        self.passwords = password if isinstance(password, Passwords) else Passwords(password)
        self.capabilities = capabilities
        self.collation = collation
        self.key = (user, capabilities, collation)

    def with_capabilities(self, capabilities: int) -> Credentials:
        """The same user, agreeing on something else."""
        return Credentials(self.user, self.passwords, capabilities, self.collation)


class MysqlConnection:
    """A logged-in connection. Exactly one taker at a time; owned by its endpoint's callbacks while nobody holds it.

    `state` is what is set on it, None if unknown (to be reset before use). `tainted` says that a session ran something
    else than proven reads on it: insert ids, warnings or variables of that session (`last_session`) may be left on it.
    `max_packet` is the server's max_allowed_packet: it takes commands of less bytes. `role` is what the log-in
    activated, as SET ROLE takes it; `role_in_doubt` says that something ran since that may have changed it.
    """

    __slots__ = (
        "arming",
        "compressed",
        "credentials",
        "endpoint",
        "expires",
        "handles",
        "home",
        "last_session",
        "leased",
        "max_packet",
        "member",
        "prelude",
        "retired",
        "role",
        "role_in_doubt",
        "selected",
        "source",
        "state",
        "tainted",
        "taker",
        "thread_id",
        "warned",
        "with_attributes",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        home: Home,
        member: str,
        credentials: Credentials,
        arming: Arming,
        connected: Connected,
        role: str,
        max_packet: int,
    ) -> None:
        self.endpoint = endpoint
        self.home = home
        self.member = member
        self.credentials = credentials
        self.arming = arming
        self.thread_id = ThreadId(connected.greeting.connection_id)
        self.handles = Handles(fitted=not arming.mariadb)
        self.selected: str | None = None
        self.state: State | None = state_of(None, credentials.collation)
        self.taker: Taker | None = None
        self.prelude: Prelude | None = None
        self.leased = False
        self.role = role
        self.role_in_doubt = False
        self.max_packet = max_packet
        self.tainted = False
        self.warned = False  # the last reply left warnings to be shown
        self.last_session: Borrower | None = None
        self.expires = math.inf  # by Trio's clock: not to be given out again after that
        self.retired = False  # not to be given out again once its lease ends
        self.compressed = bool(algorithm_of(connected.capabilities))
        self.with_attributes = bool(connected.capabilities & Capability.QUERY_ATTRIBUTES)
        self.source: Endpoint | None = None  # what streams to the server: read no faster than the server reads

    def send(self, raw: bytes, taker: Taker) -> None:
        """Sends one command for `taker`, who gets the reply."""
        self.taker = taker
        self.endpoint.write(raw)

    def write_own(self, command: bytes) -> None:
        """Sends a command of the gateway's own, in the form that the capabilities of the connection demand."""
        self.endpoint.write(with_no_attributes(command) if self.with_attributes else command)

    def commands_to(self, state: State) -> list[bytes] | None:
        """What brings this connection to `state` (see mysql_state.commands_to)."""
        if self.state is state:
            return []
        role = self.role if self.role_in_doubt else None
        return commands_to(self.state, self.selected, state, self.arming, role)

    def after_reset(self) -> State:
        """The state that only the log-in and the selected database make, since nothing un-selects a database."""
        return state_of(self.selected, self.credentials.collation)

    def brought_to(self, state: State) -> None:
        """Notes that the commands for `state` were carried out."""
        self.state = state
        if state.database is not None:
            self.selected = state.database

    def begin_prelude(self, commands: list[bytes], state: State, taker: Taker) -> None:
        """Pipelines the commands for `state` in front of a command that may follow at once: for proven reads only.

        If one of them is refused, the reply to the command behind it belongs to a wrong state and must not be used:
        the taker is told by `prelude_refused`, and the connection is closed.
        """
        self.prelude = Prelude(len(commands))
        self.home.replays += 1
        if commands[0] is RESET_CONNECTION:
            self._was_reset()
        self.brought_to(state)
        self.taker = taker
        for command in commands:
            self.write_own(command)

    async def bring_to(self, state: State) -> None:
        """Brings the connection to `state` and waits for it. Raises BackendRefused, OSError; then it must be closed."""
        commands = self.commands_to(state)
        if commands is None:
            raise RuntimeError("a connection with a database was leased for a session without one")
        if commands:
            self.home.replays += 1
            await self.acknowledge(commands)
            if commands[0] is RESET_CONNECTION:
                self._was_reset()
            self.brought_to(state)

    def _was_reset(self) -> None:
        self.handles.clear()
        self.role_in_doubt = False

    async def acknowledge(self, commands: list[bytes]) -> None:
        """Sends commands that answer with one OK each. Raises BackendRefused for the first refusal, OSError."""
        await _Acknowledgement(self, len(commands)).ask(commands)

    async def ask(self, sql: str) -> list[Row]:
        """The rows that a short question of the gateway's own yields. Raises BackendRefused, OSError."""
        return (await self.ask_with_kinds(sql))[0]

    async def ask_with_kinds(self, sql: str) -> tuple[list[Row], list[int]]:
        """The same, and the FIELD_TYPE of each column."""
        question = _Question(self)
        await question.ask([query(sql)])
        return question.rows, question.kinds

    async def command(self, raw: bytes) -> None:
        """Sends a command that is answered by OK or EOF. Raises BackendRefused, OSError."""
        await _Question(self).ask([raw])

    def doom(self) -> None:
        """Has its pool close it when its lease ends, as one whose member has another role by then."""
        self.arming = replace(self.arming)

    def close(self) -> None:
        """Closes and gives the place in the pool back."""
        if not self.endpoint.closed:
            self.endpoint.close()
        self.home.forget(self)

    # -- what the endpoint calls

    def received(self, chunk: bytes) -> None:
        prelude = self.prelude
        if prelude is not None:
            chunk = prelude.feed(chunk)
            if not prelude.done:
                return
            self.prelude = None
            if prelude.error is not None:
                refused = prelude.error
                taker, self.taker = self.taker, None
                self.close()
                if taker is not None:
                    taker.prelude_refused(self, BackendRefused(refused.message, refused.code, refused.sqlstate))
                return
            if not chunk:
                return
        taker = self.taker
        if taker is None:  # an idle connection hears nothing but its server's farewell (1927, 4031)
            self.close()
        else:
            taker.reply(chunk)

    def ended(self) -> None:
        self.lost(ConnectionResetError("the server closed the connection"))

    def lost(self, error: OSError) -> None:
        self._fail(error)

    def raised(self, error: Exception) -> None:
        self._fail(error)

    def expired(self) -> None:
        if self.taker is not None:
            self.taker.overdue(self)

    def _fail(self, error: Exception) -> None:
        taker, self.taker = self.taker, None
        self.close()
        if taker is not None:
            taker.backend_lost(self, error)

    def overfull(self) -> None:
        """A command of which the server has not read all is bounded; a file that a client streams is not."""
        if self.source is not None:
            self.source.pause_reading()

    def drained(self) -> None:
        if self.source is not None:
            self.source.resume_reading()


class _Question:
    """Reads the rows of one command of the gateway's own."""

    def __init__(self, connection: MysqlConnection) -> None:
        self._connection = connection
        self._reader = ResultReader()
        self._finished = trio.Event()
        self._error: Exception | None = None
        self.rows: list[Row] = []
        self.kinds: list[int] = []

    async def ask(self, commands: list[bytes]) -> None:
        """Raises BackendRefused or OSError. A cancelled question closes its connection."""
        connection = self._connection
        if connection.endpoint.closed:
            raise ConnectionResetError("the connection was closed")
        connection.taker = self
        try:
            for command in commands:
                connection.write_own(command)
            with trio.fail_after(QUESTION_SECONDS):
                await self._finished.wait()
        except trio.TooSlowError:
            connection.close()
            raise TimeoutError("no answer from the server") from None
        except BaseException:
            connection.close()
            raise
        if self._error is not None:
            raise self._error

    def reply(self, chunk: bytes) -> None:
        self._reader.feed(chunk)
        if self._reader.done:
            self.rows, self.kinds = self._reader.rows, self._reader.kinds
            refused = self._reader.error
            self._finish(BackendRefused(refused.message, refused.code, refused.sqlstate) if refused else None)

    def backend_lost(self, connection: MysqlConnection, error: Exception) -> None:
        self._finish(error)

    def prelude_refused(self, connection: MysqlConnection, error: BackendRefused) -> None:
        self._finish(error)

    def overdue(self, connection: MysqlConnection) -> None:
        """A question's own limit is QUESTION_SECONDS."""

    def _finish(self, error: Exception | None) -> None:
        self._error = error
        self._connection.taker = None
        self._connection.endpoint.lane.woke = True
        self._finished.set()


class _Acknowledgement(_Question):
    """Waits until a number of pipelined commands were each answered by OK."""

    def __init__(self, connection: MysqlConnection, count: int) -> None:
        super().__init__(connection)
        self._prelude = Prelude(count)

    def reply(self, chunk: bytes) -> None:
        self._prelude.feed(chunk)
        if self._prelude.done:
            refused = self._prelude.error
            self._finish(BackendRefused(refused.message, refused.code, refused.sqlstate) if refused else None)


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
