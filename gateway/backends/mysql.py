"""One connection to a MySQL server: log-in, state, and the replies on their way to whoever holds the lease."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NewType, Protocol

from gateway.backends.mysql_question import Acknowledgement, Question
from gateway.backends.mysql_state import Arming, State, commands_to, state_of
from gateway.backends.statements import Handles
from gateway.errors import BackendRefused
from gateway.net.endpoint import Endpoint
from gateway.protocol.mysql.attributes import with_no_attributes
from gateway.protocol.mysql.auth import Password
from gateway.protocol.mysql.commands import RESET_CONNECTION, query
from gateway.protocol.mysql.compression import algorithm_of
from gateway.protocol.mysql.constants import Capability
from gateway.protocol.mysql.handshake import Connected
from gateway.protocol.mysql.prelude import Prelude
from gateway.protocol.mysql.results import Row

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
        await Acknowledgement(self, len(commands)).ask(commands)

    async def ask(self, sql: str) -> list[Row]:
        """The rows that a short question of the gateway's own yields. Raises BackendRefused, OSError."""
        return (await self.ask_with_kinds(sql))[0]

    async def ask_with_kinds(self, sql: str) -> tuple[list[Row], list[int]]:
        """The same, and the FIELD_TYPE of each column."""
        question = Question(self)
        await question.ask([query(sql)])
        return question.rows, question.kinds

    async def command(self, raw: bytes) -> None:
        """Sends a command that is answered by OK or EOF. Raises BackendRefused, OSError."""
        await Question(self).ask([raw])

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
