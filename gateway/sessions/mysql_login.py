"""Lets clients in: greets them, verifies who they are, and asks a server whether it would have let them in, too."""

from __future__ import annotations

import math
import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import structlog
import trio

from gateway.backends.mysql import Credentials
from gateway.backends.mysql_state import state_of
from gateway.errors import BackendRefused, Refused, Unavailable
from gateway.net.connect import Conversation
from gateway.net.proxy_protocol import ProxyProtocolError, is_proxy_header
from gateway.net.tls import TlsLayer
from gateway.protocol.mysql import answers
from gateway.protocol.mysql.auth import PasswordKey
from gateway.protocol.mysql.compression import CompressionLayer, algorithm_of
from gateway.protocol.mysql.constants import CACHING_SHA2_PASSWORD, NATIVE_PASSWORD, ErrorCode
from gateway.protocol.mysql.handshake import Denied, LoggedIn, Named, Send, ServerEvent, StartTls
from gateway.protocol.mysql.server_handshake import ServerHandshake
from gateway.sessions.login_failures import FailureRate
from gateway.sessions.mysql import MysqlSession
from gateway.sessions.mysql_capabilities import of_backend, offered
from gateway.topology.users import Candidate, denied

if TYPE_CHECKING:
    from gateway.sessions.mysql_service import MysqlService

log = structlog.get_logger(__name__)

NET_BUFFER_BYTES: Final = 65_536  # of other packets in one compressed packet, beside the largest; clients have 16 KiB
PROVED_SECONDS: Final = 60.0  # how long a log-in that a server accepted spares the next one the question
CROWDED_SECONDS: Final = 3.0  # a client answers a greeting in the time of a round trip, or it is no client
ACCESS_DENIED_STATE: Final = "28000"
CLIENTS_FAULT: Final = frozenset({ErrorCode.ACCESS_DENIED, ErrorCode.NOT_SUPPORTED_AUTH_MODE})


class Entrance:
    """The way in to one listener. `denied` counts the log-ins that were refused for what the client said.

    Strangers, connections that have not logged in yet, are few: beyond `max_unauthenticated` nobody is accepted, and
    newcomers wait in the kernel's queue. While they do, whoever keeps silent for CROWDED_SECONDS loses its place.
    """

    def __init__(self, service: MysqlService, key: PasswordKey) -> None:
        self.denied = 0
        self.blocked = 0  # connections from blocked addresses
        self._service = service
        self._users = service.users
        self._topology = service.topology
        self._listener = service.config.name
        self._key = key
        self._failures = FailureRate(service.config.log_in_failures)
        self._strangers: dict[trio.CancelScope, float] = {}  # since when, the oldest first
        self.on_room: list[Callable[[], None]] = []  # the acceptors: called when there is room again

    @property
    def strangers(self) -> int:
        """How many connections have not logged in yet."""
        return len(self._strangers)

    def room(self) -> int:
        """How many connections may be accepted now; where none, the silent ones have to go."""
        room = self._service.config.max_unauthenticated - len(self._strangers)
        if room <= 0:
            patience = trio.current_time() - CROWDED_SECONDS
            for scope, since in self._strangers.items():
                if since > patience:
                    break
                scope.cancel()
        return max(room, 0)

    @contextmanager
    def stranger(self) -> Iterator[None]:
        """Around a log-in: counts it, and cancels it when it takes too long."""
        scope = trio.move_on_after(self._service.config.handshake_timeout)
        self._strangers[scope] = trio.current_time()
        try:
            with scope:
                yield
        finally:
            del self._strangers[scope]
            if len(self._strangers) == self._service.config.max_unauthenticated - 1:
                for resume in self.on_room:
                    resume()

    async def let_in(self, conversation: Conversation) -> tuple[MysqlSession, LoggedIn] | None:
        """The session of a client that may come in and has been told so; None if it was refused or has gone."""
        address = self._service.client_of(conversation.endpoint)
        host = address or "localhost"
        refusal = self._refusal_at_once(address)
        if refusal is not None:
            conversation.write(refusal)
            return None
        identity = self._topology.identity
        assert identity is not None
        id_ = self._service.threads.new_id()
        settings = self._service.config.tls
        handshake = ServerHandshake(
            connection_id=id_,
            server_version=identity.greets_as,
            capabilities=offered(
                self._topology.capabilities,
                mariadb=identity.mariadb,
                local_infile=self._service.config.local_infile,
            ),
            host=host,
            key=self._key,
            plugin=NATIVE_PASSWORD if identity.mariadb else CACHING_SHA2_PASSWORD,
            tls=self._service.tls is not None,
            secure=conversation.endpoint.sock.family == socket.AF_UNIX,
            must_be_secure=settings is not None and settings.required,
        )
        conversation.write(handshake.greeting())
        proved = await self._authenticate(conversation, handshake, address, [])
        if proved is None:
            return None
        login, candidate = proved
        admitted = await self._admit(conversation, address, login, candidate)
        if admitted is None:
            return None
        login, credentials = admitted
        session = MysqlSession(self._service, conversation.endpoint, login, credentials, id_)
        conversation.write(answers.ok(login.sequence))
        return session, self._compressed(conversation, login)

    async def change_user(
        self, conversation: Conversation, message: bytes, capabilities: int, *, encrypted: bool
    ) -> tuple[LoggedIn, Credentials] | None:
        """Who a client has proved to be by COM_CHANGE_USER, to be told OK; None if it was refused or has gone."""
        address = self._service.client_of(conversation.endpoint)
        identity = self._topology.identity
        assert identity is not None  # there was a log-in
        refusal = self._refusal_if_blocked(address, protocol_41=True, sequence=message[3] + 1)
        if refusal is not None:
            conversation.write(refusal)
            return None
        handshake = ServerHandshake(
            connection_id=0,
            server_version=identity.greets_as,
            capabilities=0,
            host=address or "localhost",
            key=self._key,
            plugin=NATIVE_PASSWORD if identity.mariadb else CACHING_SHA2_PASSWORD,
            secure=encrypted or conversation.endpoint.sock.family == socket.AF_UNIX,
        )
        events = handshake.change_user(message, capabilities)
        proved = await self._authenticate(conversation, handshake, address, events, encrypted=encrypted)
        return None if proved is None else await self._admit(conversation, address, proved[0], proved[1])

    async def _authenticate(
        self,
        conversation: Conversation,
        handshake: ServerHandshake,
        address: str,
        begun: list[ServerEvent],
        *,
        encrypted: bool = False,
    ) -> tuple[LoggedIn, Candidate] | None:
        """Leads the conversation on until the client has proved who it is; None if it was refused or has gone."""
        first = not begun
        events = deque(begun)
        candidate: Candidate | None = None
        while True:
            while events:
                match events.popleft():
                    case Send(data):
                        conversation.write(data)
                    case StartTls(received) if self._service.tls is not None:
                        conversation.add_layer(TlsLayer(self._service.tls.context, server_side=True), received)
                        encrypted = True
                    case Named(user):
                        try:
                            candidate = await self._users.find(user, address, encrypted=encrypted)
                        except Refused as error:
                            if error.code not in CLIENTS_FAULT:
                                return self._refuse(conversation, handshake.sequence, error)
                            events.extend(handshake.refuse(error.code, str(error)))
                        else:
                            events.extend(handshake.identify(candidate.known))
                    case Denied() as denied:
                        self._deny(address, str(denied.error))
                        conversation.write(denied.data)
                        return None
                    case LoggedIn() as login:
                        assert candidate is not None
                        return login, candidate
            chunk = await conversation.receive()
            if not chunk:
                return None
            if first and is_proxy_header(chunk):
                raise ProxyProtocolError("a PROXY protocol header from outside of proxy_protocol_from")
            first = False
            events.extend(handshake.feed(chunk))

    def _refusal_at_once(self, address: str) -> bytes | None:
        """What a client hears instead of a greeting, if it is not greeted."""
        blocked = self._refusal_if_blocked(address, protocol_41=False, sequence=0)
        if blocked is None and self._topology.identity is None:
            text = f"gateway: no server of group {self._topology.name} has answered yet"
            return answers.err(0, ErrorCode.UNKNOWN_ERROR, text, protocol_41=False)
        return blocked

    def _refusal_if_blocked(self, address: str, *, protocol_41: bool, sequence: int) -> bytes | None:
        seconds = self._failures.blocked_for(address, trio.current_time())
        if not seconds:
            return None
        self.blocked += 1
        text = f"Host '{address}' is blocked because of many connection errors; try again in {math.ceil(seconds)} s"
        return answers.err(sequence, ErrorCode.HOST_IS_BLOCKED, text, protocol_41=protocol_41)

    def _deny(self, address: str, why: str) -> None:
        self.denied += 1
        log.info("log-in denied", listener=self._listener, client=address, error=why)
        self.failed(address)

    def failed(self, address: str) -> None:
        """Counts a log-in that has failed by the client's fault."""
        if self._failures.failed(address, trio.current_time()):
            block = self._service.config.log_in_failures.block
            log.warning("client address is blocked", listener=self._listener, client=address, seconds=block)

    async def _admit(
        self, conversation: Conversation, address: str, login: LoggedIn, candidate: Candidate
    ) -> tuple[LoggedIn, Credentials] | None:
        """Asks a server whether it would have let this user in, too; only then is the client told OK, by the caller."""
        user = login.user
        settings = self._users.settings(user)
        if not login.database and settings is not None and settings.database:
            login = replace(login, database=settings.database)
        try:
            self._users.check_limit(user)
            passwords = await self._users.admit(candidate, login.password)
            credentials = Credentials(user, passwords, of_backend(login.capabilities), login.collation)
            await self._prove(credentials, login.database)
            if not self._users.holds(candidate, passwords):  # the account has changed meanwhile
                raise denied(user, address)
            self._users.check_limit(user)  # of those who came at once, as many as may
        except Refused as error:
            if error.code == ErrorCode.ACCESS_DENIED:
                self._deny(address, str(error))
            return self._refuse(conversation, login.sequence, error)
        except BackendRefused as error:
            if candidate.account is not None and error.sqlstate == ACCESS_DENIED_STATE:
                self._deny(address, str(error))
            code = error.code or ErrorCode.UNKNOWN_ERROR
            conversation.write(answers.err(login.sequence, code, str(error), error.sqlstate))
            return None
        self._failures.succeeded(address)
        return login, credentials

    def _compressed(self, conversation: Conversation, login: LoggedIn) -> LoggedIn:
        """Behind the OK both sides speak the compressed protocol, if that was agreed on."""
        algorithm = algorithm_of(login.capabilities)
        if algorithm:
            limit = self._service.config.max_allowed_packet + NET_BUFFER_BYTES
            layer = CompressionLayer(algorithm, towards_server=False, level=login.zstd_level, limit=limit)
            conversation.add_layer(layer, login.leftover)
            login = replace(login, leftover=b"")
        return login

    @staticmethod
    def _refuse(conversation: Conversation, sequence: int, error: Refused) -> None:
        text = str(error)
        if error.code != ErrorCode.ACCESS_DENIED and not text.startswith("gateway: "):
            text = f"gateway: {text}"  # so that nobody looks for it in a server
        conversation.write(answers.err(sequence, error.code, text, error.sqlstate))

    async def _prove(self, credentials: Credentials, database: str | None) -> None:
        now = trio.current_time()
        proved = self._users.proved
        if now - proved.get((credentials.user, database), -math.inf) < PROVED_SECONDS:
            return
        primary = self._topology.primary_member
        others = [self._topology.members[view.name] for view in self._topology.snapshot.replicas if view.fault is None]
        members = [primary, *others] if primary is not None else others
        if not members:
            raise Unavailable(f"no server of group {self._topology.name} can be reached")
        state = state_of(database, credentials.collation)
        for member in members:
            try:
                connection = await member.pool.take(credentials, state)
            except Unavailable:
                if member is members[-1]:
                    raise
            else:
                member.pool.give_back(connection)
                if len(proved) > 10_000:
                    proved.clear()
                proved[credentials.user, database] = now
                return
