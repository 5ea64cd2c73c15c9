"""The server role of the connection phase: greets a client, and finds out whether it can prove who it is.

No state reads a command: after `LoggedIn` the machine is at its end, and what follows belongs to another reader. When a
client has said who it is (`Named`) the machine waits until `identify` says what is known of that user, which may take
a question to a server. A user that does not exist is treated as one with a password that nobody knows, so that the
work, the time and the text (1045) are those of a wrong password. A client that answers the nonce with a well-formed but
wrong hash is refused at once where the password is known, although MySQL would go on to the full path: MySQL knows no
password to compare with, and clients without TLS would report a missing public key instead of the wrong password.
Where it has yet to be learnt, the full path it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum, auto

from gateway.errors import Refused
from gateway.protocol.mysql import answers, auth
from gateway.protocol.mysql.auth import Known, Password, PasswordKey
from gateway.protocol.mysql.constants import (
    CACHING_SHA2_PASSWORD,
    NATIVE_PASSWORD,
    Capability,
    Collation,
    ErrorCode,
    Status,
    sqlstate_of,
)
from gateway.protocol.mysql.greeting import (
    AUTH_MORE_DATA,
    FAST_AUTH_OK,
    FULL_AUTH,
    PUBLIC_KEY_REQUEST,
    SSL_REQUEST_LENGTH,
    AuthSwitchRequest,
    Greeting,
    HandshakeResponse,
    is_old,
    is_ssl_request,
)
from gateway.protocol.mysql.handshake import PLUGINS, Denied, LoggedIn, Named, Send, ServerEvent, StartTls
from gateway.protocol.mysql.packets import BEFORE_LOGIN_LIMIT, HEADER, PacketError, PacketReader, packet, payload_of

_PLUGIN_AUTH = int(Capability.PLUGIN_AUTH)
_SECURE_CONNECTION = int(Capability.SECURE_CONNECTION)
_SSL = int(Capability.SSL)
_HASH_LENGTH = 32  # bytes of caching_sha2_password's answer to a nonce
_SSL_REQUEST_SIZE = HEADER + SSL_REQUEST_LENGTH
_SSL_REQUEST_START = SSL_REQUEST_LENGTH.to_bytes(3, "little")
SECURE_TRANSPORT_REQUIRED = (  # both servers' text of 3159
    "Connections using insecure transport are prohibited while --require_secure_transport=ON."
)


class _Wait(Enum):
    """What the machine waits for."""

    RESPONSE = auto()  # HandshakeResponse41, or the request for TLS in front of it
    KNOWN = auto()  # `identify`
    SWITCHED = auto()  # the answer to AuthSwitchRequest
    FULL = auto()  # the request for the key, or the encrypted password
    NOTHING = auto()  # the end


class ServerHandshake:
    """Server role of one connection: `greeting()` is sent first, then every byte of the client goes through `feed`.

    `host` is the client's address as 1045 prints it; `plugin` is named in the greeting and asked of clients whose own
    plugin is none of `PLUGINS`; `capabilities` are those offered, without SSL. Both plugins need
    SECURE_CONNECTION and PLUGIN_AUTH, which are added. `tls`: TLS is offered; `secure`: nobody can listen anyway (a
    unix socket); `must_be_secure`: log-ins are refused where neither holds.
    """

    def __init__(
        self,
        *,
        connection_id: int,
        server_version: str,
        capabilities: int,
        host: str,
        key: PasswordKey,
        plugin: str = CACHING_SHA2_PASSWORD,
        collation: int = Collation.UTF8MB4_GENERAL_CI,
        status: int = Status.AUTOCOMMIT,
        nonce: bytes | None = None,
        tls: bool = False,
        secure: bool = False,
        must_be_secure: bool = False,
    ) -> None:
        self._greeting = Greeting(
            server_version=server_version,
            connection_id=connection_id,
            nonce=nonce or auth.new_nonce(),
            capabilities=capabilities
            | int(Capability.PROTOCOL_41)
            | _SECURE_CONNECTION
            | _PLUGIN_AUTH
            | (_SSL if tls else 0),
            collation=int(collation),
            status=int(status),
            plugin=plugin,
        )
        self._host = host
        self._known = Known()
        self._key = key
        self._nonce = self._greeting.nonce
        self._plugin = plugin
        self._response: HandshakeResponse | None = None
        self._reader = PacketReader(limit=BEFORE_LOGIN_LIMIT, sequence=None, minimum=0)
        self._sequence = 1  # of the next packet, whoever sends it
        self._wait = _Wait.RESPONSE
        self._protocol_41 = True
        self._behind: list[bytes] = []
        self._may_start_tls = tls
        self._secure = secure
        self._must_be_secure = must_be_secure
        self._key_asked = False
        self._changing = False  # it is a COM_CHANGE_USER

    @property
    def sequence(self) -> int:
        """The sequence id of the next packet, for whoever ends the conversation in its stead."""
        return self._sequence

    def greeting(self) -> bytes:
        """Return the packet that opens the conversation."""
        return packet(0, self._greeting.encode())

    def feed(self, data: bytes) -> list[ServerEvent]:
        """Take what the client sent; return what to do, in order. Nothing is raised for what a client sends."""
        if self._wait is _Wait.RESPONSE:
            data = self._reader.take_held() + data
            if len(data) > _SSL_REQUEST_SIZE and data.startswith(_SSL_REQUEST_START):
                # A client does not wait before it begins with TLS, and what is behind is no packet then.
                first, behind = self._feed(data[:_SSL_REQUEST_SIZE]), data[_SSL_REQUEST_SIZE:]
                return [StartTls(behind)] if first == [StartTls()] else first + self.feed(behind)
        return self._feed(data)

    def _feed(self, data: bytes) -> list[ServerEvent]:
        events: list[ServerEvent] = []
        if self._wait not in _STATES:
            return events
        try:
            self._behind += self._reader.feed(data)
            while self._behind and self._wait in _STATES:
                message = self._behind.pop(0)
                self._check_sequence(message)
                self._reader.limit -= len(message)  # all of the log-in together, not each of its packets
                events += _STATES[self._wait](self, payload_of(message))
        except PacketError as error:
            events += self._deny(error.code, str(error))
        return events

    def change_user(self, message: bytes, capabilities: int) -> list[ServerEvent]:
        """Begin with a COM_CHANGE_USER instead of a greeting; `capabilities` are those of the log-in.

        The client answered the nonce of its log-in. It is asked to answer a fresh one, as servers may: an answer that
        somebody has seen proves nothing then.
        """
        self._sequence = message[3] + 1
        self._greeting = replace(self._greeting, capabilities=capabilities)
        self._changing = True
        try:
            if not capabilities & _PLUGIN_AUTH:
                return self._deny_protocol()
            self._response = HandshakeResponse.parse_change_user(payload_of(message)[1:], capabilities)
        except PacketError as error:
            return self._deny(error.code, str(error))
        self._wait = _Wait.KNOWN
        return [Named(self._user)]

    def identify(self, known: Known) -> list[ServerEvent]:
        """Go on after `Named` with what is known of that user; return what to do, in order."""
        assert self._wait is _Wait.KNOWN
        self._known = known
        events = self._on_known()
        return events + self.feed(b"") if self._behind else events

    def refuse(self, code: int, message: str) -> list[ServerEvent]:
        """Go on after `Named` by telling the client why it cannot come in."""
        return self._deny(code, message)

    def _check_sequence(self, message: bytes) -> None:
        if message[3] != self._sequence & 0xFF:
            raise PacketError(
                f"Got packets out of order: {message[3]} where {self._sequence} was expected",
                ErrorCode.PACKETS_OUT_OF_ORDER,
            )
        self._sequence += 1

    def _on_response(self, payload: bytes) -> list[ServerEvent]:
        if is_old(payload):
            self._protocol_41 = False
            return self._deny_protocol()
        if is_ssl_request(payload):
            if not self._may_start_tls:
                return self._deny(ErrorCode.HANDSHAKE_ERROR, "TLS is not available here: connect with TLS disabled")
            self._may_start_tls = False
            self._secure = True
            return [StartTls()]
        if self._must_be_secure and not self._secure:
            return self._deny(ErrorCode.SECURE_TRANSPORT_REQUIRED, SECURE_TRANSPORT_REQUIRED)
        self._response = response = HandshakeResponse.parse(payload)
        if not response.capabilities & _SECURE_CONNECTION:
            return self._deny_protocol()
        self._wait = _Wait.KNOWN
        return [Named(response.user)]

    def _on_known(self) -> list[ServerEvent]:
        response = self._response
        assert response is not None
        if self._changing:
            if response.plugin in PLUGINS:
                self._plugin = response.plugin
            return self._switch()
        if not response.capabilities & _PLUGIN_AUTH:
            self._plugin = NATIVE_PASSWORD  # the only plugin that such a client can mean
        elif response.plugin not in PLUGINS:
            return self._switch()
        elif response.plugin != self._plugin:
            # It has not the plugin that the greeting names: MySQL 9's clients have no mysql_native_password, and send
            # an empty answer then, since they take the greeting's nonce to be of no use to their own plugin.
            self._plugin = response.plugin
            if not response.answer or self._proved_by(response.answer) is None:
                return self._switch()
        return self._on_answer(response.answer)

    def _switch(self) -> list[ServerEvent]:
        self._nonce = auth.new_nonce()
        self._wait = _Wait.SWITCHED
        return self._send(AuthSwitchRequest(self._plugin, self._nonce).encode())

    def _proved_by(self, answered: bytes) -> Password | None:
        return self._known.proved_by(self._plugin, self._nonce, answered)

    def _on_answer(self, answered: bytes) -> list[ServerEvent]:
        """The client's answer to the nonce under the plugin now agreed on."""
        if answered == b"\0":  # how libmysqlclient says that there is no password
            answered = b""
        proved = self._proved_by(answered)
        if proved is not None:
            return self._accept(proved, fast=self._plugin == CACHING_SHA2_PASSWORD and answered != b"")
        if answered and self._plugin == CACHING_SHA2_PASSWORD:
            # Nothing to compare it with, or it is no answer to a nonce at all: made for another plugin, say.
            if self._known.learns or self._known.stored is not None or len(answered) != _HASH_LENGTH:
                self._wait = _Wait.FULL
                return self._send(FULL_AUTH)
        elif answered and self._known.learns:
            self._plugin = CACHING_SHA2_PASSWORD  # the only way to hear the password itself
            return self._switch()
        return self._deny_access(answered != b"")

    def _on_full(self, payload: bytes) -> list[ServerEvent]:
        if payload == PUBLIC_KEY_REQUEST:
            self._key_asked = True
            return self._send(AUTH_MORE_DATA + self._key.public_pem)
        clear: bytes | None
        if self._secure and not self._key_asked:
            clear = payload[:-1] if payload.endswith(b"\0") else None
        else:
            clear = self._key.decrypt(self._nonce, payload)
        password = self._known.holds(clear) if clear is not None else None
        return self._accept(password, fast=False) if password is not None else self._deny_access(True)

    @property
    def _user(self) -> str:
        return self._response.user if self._response else ""

    def _send(self, payload: bytes) -> list[ServerEvent]:
        event = Send(packet(self._sequence, payload))
        self._sequence += 1
        return [event]

    def _accept(self, password: Password, *, fast: bool) -> list[ServerEvent]:
        assert self._response is not None
        events = self._send(FAST_AUTH_OK) if fast else []
        self._wait = _Wait.NOTHING
        logged_in = LoggedIn(
            user=self._response.user,
            database=self._response.database,
            capabilities=self._response.capabilities & self._greeting.capabilities,
            collation=self._response.collation,
            attributes=self._response.attributes,
            max_packet=self._response.max_packet,
            zstd_level=self._response.zstd_level,
            sequence=self._sequence,
            leftover=b"".join(self._behind) + self._reader.take_held(),
            password=password,
        )
        return [*events, logged_in]

    def _deny_access(self, using_password: bool) -> list[ServerEvent]:
        used = "YES" if using_password else "NO"
        return self._deny(
            ErrorCode.ACCESS_DENIED, f"Access denied for user '{self._user}'@'{self._host}' (using password: {used})"
        )

    def _deny_protocol(self) -> list[ServerEvent]:
        return self._deny(
            ErrorCode.NOT_SUPPORTED_AUTH_MODE,
            "Client does not support authentication protocol requested by server; consider upgrading MySQL client",
        )

    def _deny(self, code: int, message: str) -> list[ServerEvent]:
        self._wait = _Wait.NOTHING
        denied = Denied(
            answers.err(self._sequence, code, message, protocol_41=self._protocol_41),
            Refused(message, code=int(code), sqlstate=sqlstate_of(code)),
            self._response.user if self._response else None,
        )
        return [denied]


_STATES: Mapping[_Wait, Callable[[ServerHandshake, bytes], list[ServerEvent]]] = {
    _Wait.RESPONSE: ServerHandshake._on_response,
    _Wait.SWITCHED: ServerHandshake._on_answer,
    _Wait.FULL: ServerHandshake._on_full,
}
