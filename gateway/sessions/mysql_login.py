"""Lets clients in: greets them, verifies who they are, and asks a server whether it would have let them in, too."""

from __future__ import annotations

import math
import socket
from collections import deque
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
from gateway.protocol.mysql.auth import Known, PasswordKey
from gateway.protocol.mysql.constants import CACHING_SHA2_PASSWORD, NATIVE_PASSWORD, ErrorCode
from gateway.protocol.mysql.handshake import Denied, LoggedIn, Named, Send, ServerHandshake, StartTls
from gateway.sessions.mysql import MysqlSession
from gateway.sessions.mysql_capabilities import of_backend, offered

if TYPE_CHECKING:
    from gateway.sessions.mysql_service import MysqlService

log = structlog.get_logger(__name__)

PROVED_SECONDS: Final = 60.0  # how long a log-in that a server accepted spares the next one the question


class Entrance:
    """The way in to one listener. `denied` counts the log-ins that were refused for what the client said."""

    def __init__(self, service: MysqlService, key: PasswordKey) -> None:
        self.denied = 0
        self._service = service
        self._topology = service.topology
        self._listener = service.config.name
        self._key = key
        self._proved: dict[tuple[str, str | None], float] = {}

    async def let_in(self, conversation: Conversation) -> tuple[MysqlSession, LoggedIn] | None:
        """The session of a client that may come in and has been told so; None if it was refused or has gone."""
        identity = self._topology.identity
        if identity is None:
            message = f"gateway: no server of group {self._topology.name} has answered yet"
            conversation.write(answers.err(0, ErrorCode.UNKNOWN_ERROR, message, protocol_41=False))
            return None
        id_ = self._service.threads.new_id()
        host = self._service.client_of(conversation.endpoint) or "localhost"
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
        first = True
        while True:
            chunk = await conversation.receive()
            if not chunk:
                return None
            if first and is_proxy_header(chunk):
                raise ProxyProtocolError("a PROXY protocol header from outside of proxy_protocol_from")
            first = False
            events = deque(handshake.feed(chunk))
            while events:
                match events.popleft():
                    case Send(data):
                        conversation.write(data)
                    case StartTls(received) if self._service.tls is not None:
                        conversation.add_layer(TlsLayer(self._service.tls.context, server_side=True), received)
                    case Named(user):
                        password = self._service.users.get(user)
                        events.extend(handshake.identify(Known() if password is None else Known((password,))))
                    case Denied() as denied:
                        self.denied += 1
                        log.info("log-in denied", listener=self._listener, client=host, error=str(denied.error))
                        conversation.write(denied.data)
                        return None
                    case LoggedIn() as login:
                        return await self._enter(conversation, login, id_)

    async def _enter(
        self, conversation: Conversation, login: LoggedIn, id_: int
    ) -> tuple[MysqlSession, LoggedIn] | None:
        """Asks a server whether it would have let this user in, too; only then is the client told OK."""
        credentials = Credentials(login.user, login.password, of_backend(login.capabilities), login.collation)
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
        session = MysqlSession(self._service, conversation.endpoint, login, credentials, id_)
        conversation.write(answers.ok(login.sequence))
        return session, login

    async def _prove(self, credentials: Credentials, database: str | None) -> None:
        now = trio.current_time()
        if now - self._proved.get((credentials.user, database), -math.inf) < PROVED_SECONDS:
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
                if len(self._proved) > 10_000:
                    self._proved.clear()
                self._proved[credentials.user, database] = now
                return
