"""One MySQL listener: lets clients in, and holds what their sessions share."""

from __future__ import annotations

import itertools
import math
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog
import trio

from gateway.backends.mysql import Credentials, MysqlConnection, ask, log_in, log_in_errors
from gateway.backends.mysql_state import State, state_of
from gateway.config import Listener
from gateway.errors import BackendRefused, Refused, Unavailable
from gateway.net.connect import Conversation
from gateway.net.endpoint import Endpoint
from gateway.net.lane import Lane
from gateway.protocol.mysql import answers
from gateway.protocol.mysql.auth import PasswordKey
from gateway.protocol.mysql.commands import argument_of, query
from gateway.protocol.mysql.constants import (
    CACHING_SHA2_PASSWORD,
    NATIVE_PASSWORD,
    Capability,
    ErrorCode,
    Status,
)
from gateway.protocol.mysql.handshake import Denied, LoggedIn, Send, ServerHandshake
from gateway.routing.fingerprint import Reading
from gateway.routing.operation import Scope, SqlOperation
from gateway.routing.sql import Classifier
from gateway.rules.compile import RuleSet
from gateway.rules.policy import Defaults, SharedPolicies, SqlPolicies
from gateway.sessions.mysql import MysqlSession
from gateway.topology.mysql import Topology

log = structlog.get_logger(__name__)

# Offered to clients. Each one is either handled by the gateway or changes what the server does, and then the backend
# connection has it too. Not here: TLS, compression, LOCAL_FILES, query attributes and MariaDB's extended ones.
OFFERED: Final = int(
    Capability.LONG_PASSWORD
    | Capability.FOUND_ROWS
    | Capability.LONG_FLAG
    | Capability.CONNECT_WITH_DB
    | Capability.IGNORE_SPACE
    | Capability.PROTOCOL_41
    | Capability.INTERACTIVE
    | Capability.TRANSACTIONS
    | Capability.SECURE_CONNECTION
    | Capability.MULTI_STATEMENTS
    | Capability.MULTI_RESULTS
    | Capability.PS_MULTI_RESULTS
    | Capability.PLUGIN_AUTH
    | Capability.CONNECT_ATTRS
    | Capability.PLUGIN_AUTH_LENENC_CLIENT_DATA
    | Capability.SESSION_TRACK
    | Capability.DEPRECATE_EOF
)
# Those that change what a server does or how its replies look: connections are shared only where they are the same.
SHAPING: Final = int(
    Capability.FOUND_ROWS
    | Capability.IGNORE_SPACE
    | Capability.INTERACTIVE
    | Capability.MULTI_STATEMENTS
    | Capability.MULTI_RESULTS
    | Capability.PS_MULTI_RESULTS
    | Capability.DEPRECATE_EOF
)
ALWAYS: Final = int(
    Capability.LONG_PASSWORD | Capability.LONG_FLAG | Capability.TRANSACTIONS | Capability.SESSION_TRACK
)

THREAD_ID_BIT: Final = 1 << 31  # the gateway's own thread ids: no server's KILL can mean one of them
PROVED_SECONDS: Final = 60.0  # how long a log-in that a server accepted spares the next one the question
UNSAFE_CHARSETS: Final = frozenset({"gbk", "sjis", "big5", "cp932", "gb18030", "gb2312", "ujis", "eucjpms", "euckr"})
ANSI_MODES: Final = frozenset({"ANSI_QUOTES", "ANSI", "DB2", "MAXDB", "MSSQL", "ORACLE", "POSTGRESQL"})


class MysqlService:
    """What the sessions of one listener share. `rules_version` grows with every reload of the rules."""

    def __init__(
        self,
        lane: Lane,
        config: Listener,
        topology: Topology,
        classifier: Classifier,
        rules: RuleSet,
        users: Mapping[str, str],
        key: PasswordKey,
        nursery: trio.Nursery,
    ) -> None:
        """`users` maps names to passwords; `nursery` outlives the sessions: connections are reset there."""
        self.lane = lane
        self.config = config
        self.topology = topology
        self.classifier = classifier
        self.users = users
        self.refusals = 0
        self.retried = 0
        self.fenced = 0  # reads that a replica refused as writes
        self.denied = 0
        self.sessions: set[MysqlSession] = set()
        self.fallbacks: Counter[str] = Counter()  # reads that wanted a replica and went to the primary
        self._key = key
        self._nursery = nursery
        self._defaults = Defaults.of(config)
        self._ids = itertools.count(1)
        self._proved: dict[tuple[str, str | None], float] = {}
        self._readings: dict[tuple[State, bool, bool], Reading] = {}
        self._distinct: dict[Reading, Reading] = {}
        self.primary_reads = trio.Semaphore(topology.config.primary_reads.max_in_flight)
        self.rules_version = 0
        self.use_rules(rules)

    def use_rules(self, rules: RuleSet) -> None:
        """Makes every session decide by these rules from its next command on."""
        self._shared = SharedPolicies(rules)
        self.rules_version += 1

    def policies_for(self, user: str, client: str) -> SqlPolicies:
        return self._shared.for_connection(self.config.name, user, client, self._defaults)

    @staticmethod
    def client_of(endpoint: Endpoint) -> str:
        """The client's address without its port, "" for a unix socket or a client that has gone."""
        try:
            name = endpoint.sock.getpeername()
        except OSError:
            return ""
        return str(name[0]) if isinstance(name, tuple) else ""

    @staticmethod
    def refusal() -> bytes:
        """What a client is told when the listener's max_connections are in use."""
        return answers.err(0, ErrorCode.TOO_MANY_CONNECTIONS, "Too many connections", protocol_41=False)

    # ---------------------------------------------------------------- letting in

    async def serve(self, client: socket.socket) -> None:
        """Serves one client from its first byte to its last."""
        conversation = Conversation(self.lane, client)
        try:
            with trio.move_on_after(self.config.handshake_timeout):
                entered = await self._log_in(conversation)
                if entered is None:
                    return
                session, login = entered
                leftover = login.leftover + conversation.hand_over(session)
                self.sessions.add(session)
        except OSError:
            return  # gone before it was let in
        finally:
            if conversation.endpoint.owner is conversation:
                conversation.endpoint.finish()
        if conversation.endpoint.owner is conversation:
            return  # handshake_timeout
        try:
            await session.serve(leftover)
        finally:
            self.sessions.discard(session)

    async def _log_in(self, conversation: Conversation) -> tuple[MysqlSession, LoggedIn] | None:
        identity = self.topology.identity
        if identity is None:
            message = f"gateway: no server of group {self.topology.name} has answered yet"
            conversation.write(answers.err(0, ErrorCode.UNKNOWN_ERROR, message, protocol_41=False))
            return None
        id_ = THREAD_ID_BIT | next(self._ids) & (THREAD_ID_BIT - 1)
        host = self.client_of(conversation.endpoint) or "localhost"
        handshake = ServerHandshake(
            connection_id=id_,
            server_version=identity.version,
            capabilities=OFFERED,
            host=host,
            password_of=self.users.get,
            key=self._key,
            plugin=NATIVE_PASSWORD if identity.mariadb else CACHING_SHA2_PASSWORD,
        )
        conversation.write(handshake.greeting())
        while True:
            chunk = await conversation.receive()
            if not chunk:
                return None
            for event in handshake.feed(chunk):
                match event:
                    case Send():
                        conversation.write(event.data)
                    case Denied():
                        self.denied += 1
                        log.info("log-in denied", listener=self.config.name, client=host, error=str(event.error))
                        conversation.write(event.data)
                        return None
                    case LoggedIn():
                        return await self._enter(conversation, event, id_)

    async def _enter(
        self, conversation: Conversation, login: LoggedIn, id_: int
    ) -> tuple[MysqlSession, LoggedIn] | None:
        """Asks a server whether it would have let this user in, too; only then is the client told OK."""
        credentials = Credentials(
            login.user, self.users[login.user], ALWAYS | login.capabilities & SHAPING, login.collation
        )
        try:
            await self._prove(credentials, login.database)
        except Refused as error:
            conversation.write(answers.err(login.sequence, error.code, f"gateway: {error}", error.sqlstate))
            return None
        except BackendRefused as error:
            conversation.write(
                answers.err(login.sequence, error.code or ErrorCode.UNKNOWN_ERROR, str(error), error.sqlstate)
            )
            return None
        session = MysqlSession(self, conversation.endpoint, login, credentials, id_)
        conversation.write(answers.ok(login.sequence))
        return session, login

    async def _prove(self, credentials: Credentials, database: str | None) -> None:
        now = trio.current_time()
        if now - self._proved.get((credentials.user, database), -math.inf) < PROVED_SECONDS:
            return
        primary = self.topology.primary_member
        others = [self.topology.members[view.name] for view in self.topology.snapshot.replicas if view.fault is None]
        members = [primary, *others] if primary is not None else others
        if not members:
            raise Unavailable(f"no server of group {self.topology.name} can be reached")
        state = state_of(database, credentials.collation)
        for member in members:
            try:
                connection = await member.pool.take(credentials, state)
            except Unavailable:
                if member is members[-1]:
                    raise
            else:
                member.pool.give_back(connection)
                if len(self._proved) > 10_000:
                    self._proved.clear()
                self._proved[credentials.user, database] = now
                return

    def end_idle(self) -> None:
        """While draining: ends the sessions that are between transactions."""
        for session in list(self.sessions):
            session.end_if_idle()

    # ---------------------------------------------------------------- for the sessions

    def reading(self, state: State, status: int, capabilities: int) -> Reading:
        """How the text of a session in this state is to be read. `status`: the flags of its last reply."""
        key = (state, bool(status & Status.NO_BACKSLASH_ESCAPES), bool(capabilities & Capability.IGNORE_SPACE))
        known = self._readings.get(key)
        if known is not None:
            return known
        identity = self.topology.identity
        modes = state.value_of("sql_mode")
        if modes is None:
            modes = identity.sql_mode if identity is not None else ""
        words = {word.strip(" '\"").upper() for word in modes.split(",")}
        charset = self._charset(state)
        reading = Reading(
            ansi_quotes=bool(words & ANSI_MODES),
            no_backslash_escapes=key[1] or "NO_BACKSLASH_ESCAPES" in words,
            ignore_space=key[2] or bool(words & {"IGNORE_SPACE", *ANSI_MODES} - {"ANSI_QUOTES"}),
            mariadb=identity.mariadb if identity is not None else False,
            unsafe_charset=charset in UNSAFE_CHARSETS,
            utf8=charset.startswith("utf8"),
            oracle_mode="ORACLE" in words,
            version=self.topology.oldest_version,
        )
        if len(self._readings) > 4096:
            self._readings.clear()
        # One object per value: the classifier tells readings apart by identity first.
        reading = self._distinct.setdefault(reading, reading)
        self._readings[key] = reading
        return reading

    def _charset(self, state: State) -> str:
        identity = self.topology.identity
        known = identity.collations.get(state.collation) if identity is not None else None
        charset = known[0] if known is not None else identity.charset if identity is not None else ""
        for one in state.assignments:
            if one.scope is Scope.NAMES or one.name == "character_set_client":
                charset = one.value.split()[0].strip("'\"").lower()
        return charset

    def learn_write(self, raw: bytes, reading: Reading, operation: SqlOperation) -> None:
        """A replica refused as a write what was taken for a read: its like goes to the primary from now on."""
        log.warning("a replica refused a statement as a write", statement=operation.statement, reason=operation.reason)
        self.classifier.learn_write(argument_of(raw), reading)

    def enter_primary_reads_now(self, reason: str) -> bool:
        """Takes one of the `primary_reads.max_in_flight` places for reads that wanted a replica, if one is free."""
        try:
            self.primary_reads.acquire_nowait()
        except trio.WouldBlock:
            return False
        self.fallbacks[reason] += 1
        return True

    async def enter_primary_reads(self, reason: str) -> None:
        """The same, waiting for a place or refusing, as configured. Raises Refused."""
        if self.enter_primary_reads_now(reason.partition(":")[0]):
            return
        settings = self.topology.config.primary_reads
        if settings.then == "error":
            raise Refused(
                f"gateway: {reason}, and {settings.max_in_flight} such reads are at the primary already "
                "(primary_reads.max_in_flight)"
            )
        await self.primary_reads.acquire()
        self.fallbacks[reason.partition(":")[0]] += 1

    def recycle(self, connection: MysqlConnection) -> None:
        """Resets and gives back, in the background, a connection that a session has left."""
        connection.taker = None
        pool = self.topology.members[connection.member].pool
        self._nursery.start_soon(self._in_background, pool.recycle, connection, name="reset a connection")

    def kill(self, connection: MysqlConnection) -> None:
        """Ends, in the background, what still runs for a client that has gone or has waited long enough."""
        connection.taker = None
        self._nursery.start_soon(self._in_background, self._kill, connection, name="kill a statement")

    @staticmethod
    async def _in_background(job: Callable[[MysqlConnection], Awaitable[None]], connection: MysqlConnection) -> None:
        """Where a background task ends: what goes wrong in it costs its connection, not the gateway."""
        try:
            await job(connection)
        except Exception as error:
            log.error("a background job failed", job=job.__name__, member=connection.member, exc_info=error)
            connection.close()

    async def _kill(self, connection: MysqlConnection) -> None:
        """By the user's own right to end its own threads. Its connection is closed whatever comes of it."""
        address = self.topology.members[connection.member].config.address
        try:
            with log_in_errors(address):
                conversation, _ = await log_in(self.lane, address, connection.credentials)
                try:
                    await ask(conversation, [query(f"KILL {connection.thread_id}")])
                finally:
                    conversation.close()
        except (Unavailable, BackendRefused) as error:
            log.info("a statement could not be ended", member=connection.member, error=str(error))
        finally:
            connection.close()

    def log_lost(self, session: MysqlSession, error: Exception) -> None:
        log.warning("reply cut off", listener=self.config.name, user=session.user, session=session.id, error=str(error))

    def figures(self) -> dict[str, object]:
        """Counters of this listener, flat: what SHOW GATEWAY STATUS and `gateway status` print."""
        return {
            "listener": self.config.name,
            "address": str(self.config.listen),
            "group": self.topology.name,
            "primary": self.topology.primary,
            "sessions": len(self.sessions),
            "in_transaction_or_pinned": sum(session.held is not None for session in self.sessions),
            "pinned": sum(bool(session.kept.pins) for session in self.sessions),
            "refused_commands": self.refusals,
            "denied_log_ins": self.denied,
            "retried_reads": self.retried,
            "reads_refused_as_writes": self.fenced,
            "reads_at_primary_for_want_of_a_replica": sum(self.fallbacks.values()),
        }
