"""One MySQL listener: what its sessions share."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio

from gateway.backends.mysql import MysqlConnection, Passwords
from gateway.backends.mysql_log_in import ask, log_in, log_in_errors
from gateway.backends.mysql_state import State
from gateway.config import Listener
from gateway.errors import BackendRefused, Refused, Unavailable
from gateway.net.connect import Conversation
from gateway.net.endpoint import Endpoint
from gateway.net.lane import Lane
from gateway.net.proxy_protocol import ProxyProtocol, ProxyProtocolError
from gateway.net.tls import TlsError
from gateway.protocol.mysql import answers
from gateway.protocol.mysql.auth import PasswordKey
from gateway.protocol.mysql.commands import query
from gateway.protocol.mysql.constants import (
    Capability,
    Collation,
    ErrorCode,
    Status,
)
from gateway.protocol.mysql.packets import BEFORE_LOGIN_LIMIT
from gateway.routing.catalogue import Catalogue
from gateway.routing.fingerprint import Reading
from gateway.routing.operation import Scope, SqlOperation
from gateway.routing.sql import Classifier
from gateway.rules.compile import RuleSet
from gateway.rules.policy import Context, Defaults, SharedPolicies, SqlPolicies
from gateway.rules.verdict import SqlExplainer
from gateway.sessions.mysql import MysqlSession
from gateway.sessions.mysql_freshness import NO_REPLICAS
from gateway.sessions.mysql_kill import threads_of
from gateway.sessions.mysql_login import Entrance
from gateway.sessions.mysql_state import fresh_state
from gateway.tls_settings import listener_tls
from gateway.topology.mysql import Topology
from gateway.topology.users import Users

log = structlog.get_logger(__name__)

# In the last one signs of ASCII are letters, so that `~count(1)` calls a function of another name (tried).
UNSAFE_CHARSETS: Final = frozenset(
    {"gbk", "sjis", "big5", "cp932", "gb18030", "gb2312", "ujis", "eucjpms", "euckr", "swe7"}
)
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
        users: Users,
        key: PasswordKey,
        nursery: trio.Nursery,
    ) -> None:
        """`users` are those of the group; `nursery` outlives the sessions: connections are reset there."""
        self.lane = lane
        self.config = config
        self.topology = topology
        self.classifier = classifier
        self.users = users
        self.refusals = 0
        self.retried = 0
        self.prepared_again = 0  # executions whose statement was prepared first on the connection at hand
        self.fenced = 0  # reads that a replica refused as writes
        self.kept_by_autocommit = 0  # reads that only autocommit=0 kept at the primary
        self.sessions: set[MysqlSession] = set()
        self.fallbacks: Counter[str] = Counter()  # reads that wanted a replica and went to the primary
        self._nursery = nursery
        self.threads = threads_of(topology)
        users.on_end.append(self.end_sessions_of)
        self._readings: dict[tuple[State, bool, bool], Reading] = {}
        self._distinct: dict[Reading, Reading] = {}
        self.primary_reads = trio.Semaphore(topology.config.primary_reads.max_in_flight)
        self._clients: dict[Endpoint, str] = {}
        self._proxy_protocol = ProxyProtocol(config.proxy_protocol_from)
        self.tls = listener_tls(config.tls) if config.tls is not None else None
        self.rules_version = 0
        self.use_rules(rules)
        self.entrance = Entrance(self, key)
        topology.catalogue.watch(self._use_catalogue)

    def _use_catalogue(self, catalogue: Catalogue) -> None:
        self.classifier.use_catalogue(catalogue)
        if catalogue.stale:
            self.rules_version += 1  # declines every session's next command, so that its task can wait (mysql_task)

    def use_users(self) -> None:
        """The users' limits and defaults have changed: every session decides by them from its next command on."""
        self.rules_version += 1

    def use_rules(self, rules: RuleSet) -> None:
        """Makes every session decide by these rules from its next command on."""
        self._shared = SharedPolicies(rules)
        self.rules_version += 1

    def policies_for(self, user: str, client: str) -> SqlPolicies:
        """What this user's statements are decided by."""
        defaults = Defaults.of(self.config, self.users.settings(user))
        return self._shared.for_connection(self.config.name, user, client, defaults)

    def client_of(self, endpoint: Endpoint) -> str:
        """The client's address without its port, as the PROXY protocol may have told it; "" for a unix socket."""
        return self._clients.get(endpoint, "")

    def explainer(self, user: str, client: str, database: str | None) -> SqlExplainer:
        """Explains statements as those of a new session, by what the sessions themselves decide with."""
        state = fresh_state(self.topology.identity, database, Collation.UTF8MB4_GENERAL_CI)
        staying = state.stays_at_primary or (None if self.topology.has_replicas else NO_REPLICAS)
        context = Context(self.config.name, user, client, database)
        return SqlExplainer(
            self.classifier, self.policies_for(user, client), context, self.reading(state, 0, 0), staying
        )

    @staticmethod
    def refusal() -> bytes:
        """What a client is told when the listener's max_connections are in use."""
        return answers.err(0, ErrorCode.TOO_MANY_CONNECTIONS, "Too many connections", protocol_41=False)

    # ---------------------------------------------------------------- letting in

    async def serve(self, client: socket.socket) -> None:
        """Serves one client from its first byte to its last."""
        try:
            name = client.getpeername()
        except OSError:
            return  # gone already
        conversation = Conversation(self.lane, client, BEFORE_LOGIN_LIMIT)
        endpoint = conversation.endpoint
        self._clients[endpoint] = str(name[0]) if isinstance(name, tuple) else ""
        try:
            await self._serve(conversation)
        finally:
            del self._clients[endpoint]

    async def _serve(self, conversation: Conversation) -> None:
        endpoint = conversation.endpoint
        try:
            with self.entrance.stranger():
                if self._proxy_protocol.expected_of(self._clients[endpoint]):
                    source = await self._proxy_protocol.client_behind(conversation, self._clients[endpoint])
                    if source is None:
                        return  # somebody who looks whether the port is open
                    self._clients[endpoint] = source
                entered = await self.entrance.let_in(conversation)
                if entered is None:
                    return
                session, login = entered
                leftover = login.leftover + conversation.hand_over(session.client)
                self.sessions.add(session)
                self.threads.add(session)
                self.users.entered(session.credentials)
        except ProxyProtocolError as error:
            log.warning(
                "a client was refused", listener=self.config.name, client=self.client_of(endpoint), error=str(error)
            )
            conversation.write(answers.err(0, ErrorCode.HANDSHAKE_ERROR, f"gateway: {error}", protocol_41=False))
            self.entrance.failed(self.client_of(endpoint))
            return
        except TlsError as error:
            log.info("TLS failed", listener=self.config.name, client=self.client_of(endpoint), error=str(error))
            self.entrance.failed(self.client_of(endpoint))
            return
        except OSError:
            return  # gone before it was let in
        finally:
            if conversation.endpoint.owner is conversation:
                conversation.endpoint.finish()
        if conversation.endpoint.owner is conversation:
            log.info("log-in took too long", listener=self.config.name, client=self.client_of(endpoint))
            self.entrance.failed(self.client_of(endpoint))
            return
        try:
            await session.serve(leftover)
        finally:
            self.sessions.discard(session)
            self.threads.discard(session)
            self.users.left(session.credentials)

    def end_sessions_of(self, passwords: Passwords, why: str) -> None:
        """Ends the sessions that came in with these between transactions."""
        for session in list(self.sessions):
            if session.credentials.passwords is passwords:
                self.lane.batch(lambda session=session: session.retire(why))  # type: ignore[misc]  # a default binds

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
            database=state.database,
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

    def learn_write(self, sql: bytes, reading: Reading, operation: SqlOperation) -> None:
        """A replica refused as a write what was taken for a read: its like goes to the primary from now on."""
        log.warning("a replica refused a statement as a write", statement=operation.statement, reason=operation.reason)
        self.classifier.learn_write(sql, reading)

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
        try:
            await self.ask_to_end(connection, "KILL")
        except (Unavailable, BackendRefused) as error:
            log.info("a statement could not be ended", member=connection.member, error=str(error))
        finally:
            connection.close()

    async def ask_to_end(self, connection: MysqlConnection, how: str) -> None:
        """Sends KILL or KILL QUERY for a connection over one of its own. Raises Unavailable, BackendRefused."""
        server = self.topology.members[connection.member].pool.server
        with log_in_errors(server):
            conversation, _ = await log_in(self.lane, server, connection.credentials)
            try:
                await ask(conversation, [query(f"{how} {connection.thread_id}")])
            except BackendRefused as error:
                if error.code != ErrorCode.NO_SUCH_THREAD:  # gone already
                    raise
            finally:
                conversation.close()

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
            "denied_log_ins": self.entrance.denied,
            "unauthenticated": self.entrance.strangers,
            "refused_while_blocked": self.entrance.blocked,
            "retried_reads": self.retried,
            "reads_refused_as_writes": self.fenced,
            "prepared_statements": sum(len(session.prepared) for session in self.sessions),
            "statements_prepared_again": self.prepared_again,
            "reads_at_primary_for_want_of_a_replica": sum(self.fallbacks.values()),
            "reads_kept_at_primary_by_autocommit_0": self.kept_by_autocommit,
        }
