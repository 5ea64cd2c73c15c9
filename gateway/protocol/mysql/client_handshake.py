"""The client role of the connection phase: logs the gateway in to a server.

What the server says is trusted no further than it must be: the password leaves only hashed with the server's nonce, or
encrypted with the key that the server sent. The latter, without TLS, protects against listeners, not against somebody
who stands in for the server; that is what the RSA path of caching_sha2_password is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum, auto

from gateway.errors import BackendRefused
from gateway.protocol.mysql import auth
from gateway.protocol.mysql.auth import Password, PluginError, Sha1
from gateway.protocol.mysql.constants import (
    CACHING_SHA2_PASSWORD,
    CLEAR_PASSWORD,
    MAX_PAYLOAD,
    NATIVE_PASSWORD,
    SHA256_PASSWORD,
    Capability,
    Collation,
    ErrorCode,
    sqlstate_of,
)
from gateway.protocol.mysql.greeting import (
    AUTH_MORE_DATA,
    FAST_AUTH_OK,
    FULL_AUTH,
    PUBLIC_KEY_REQUEST,
    SHA256_PUBLIC_KEY_REQUEST,
    AuthSwitchRequest,
    Greeting,
    HandshakeResponse,
    raw,
)
from gateway.protocol.mysql.handshake import PLUGINS, ClientEvent, Connected, Send, StartTls
from gateway.protocol.mysql.ok_packet import parse_err, parse_ok
from gateway.protocol.mysql.packets import PacketError, PacketReader, packet, payload_of

_SECURE_CONNECTION = int(Capability.SECURE_CONNECTION)
_SSL = int(Capability.SSL)
_LONG_PASSWORD = int(Capability.LONG_PASSWORD)
_NEEDED = int(
    Capability.PROTOCOL_41 | Capability.SECURE_CONNECTION | Capability.PLUGIN_AUTH | Capability.LONG_PASSWORD
) | int(Capability.PLUGIN_AUTH_LENENC_CLIENT_DATA)
_SET_BY_NEED = int(Capability.CONNECT_WITH_DB | Capability.CONNECT_ATTRS | Capability.SSL)


class _Wait(Enum):
    """What the machine waits for."""

    GREETING = auto()
    SECURED = auto()  # `secured`
    VERDICT = auto()  # OK, ERR, AuthSwitchRequest or AuthMoreData
    KEY = auto()  # AuthMoreData with the public key
    NOTHING = auto()  # the end


class ClientHandshake:
    """Client role of one connection: everything the server sends goes through `feed` until `Connected` comes out.

    `capabilities` are those wanted: what the server lacks is left away, what log-in needs is added; `Connected` has the
    result, and the caller checks that it has what it cannot do without. MariaDB's extended ones lie above bit 31.
    `tls`: log in through TLS, or not at all; `secure`: nobody can listen anyway (a unix socket).
    """

    def __init__(
        self,
        *,
        user: str,
        password: Password,
        capabilities: int,
        database: str | None = None,
        collation: int = Collation.UTF8MB4_GENERAL_CI,
        attributes: Mapping[str, str] | None = None,
        max_packet: int = 1 << 30,
        tls: bool = False,
        secure: bool = False,
    ) -> None:
        self._user = user
        self._password = password
        self._wanted = int(capabilities) & ~_SET_BY_NEED
        self._database = database
        self._collation = int(collation)
        self._attributes = attributes or {}
        self._max_packet = max_packet
        self._reader = PacketReader(limit=MAX_PAYLOAD, sequence=None, minimum=1)
        self._sequence = 0  # of the next packet, whoever sends it
        self._wait = _Wait.GREETING
        self._greeting: Greeting | None = None
        self._agreed = 0
        self._plugin = ""
        self._nonce = b""
        self._behind: list[bytes] = []
        self._tls = tls
        self._secure = secure

    def feed(self, data: bytes) -> list[ClientEvent]:
        """Take what the server sent; return what to do, in order.

        Raises BackendRefused where the server refuses (its number, SQLSTATE and text) or asks for what the gateway
        cannot do, PacketError where it does not speak the protocol. The connection is closed then.
        """
        events: list[ClientEvent] = []
        messages = self._reader.feed(data)
        for at, message in enumerate(messages, 1):
            if message[3] != self._sequence & 0xFF:
                raise PacketError(
                    f"Got packets out of order: {message[3]} where {self._sequence} was expected",
                    ErrorCode.PACKETS_OUT_OF_ORDER,
                )
            self._sequence += 1
            self._behind = messages[at:]
            payload = payload_of(message)
            if payload[0] == 0xFF:
                error = parse_err(payload)
                raise BackendRefused(error.message, error.code, error.sqlstate)
            events += _STATES[self._wait](self, payload)
            if self._wait not in _STATES:
                break
        return events

    def _on_greeting(self, payload: bytes) -> list[ClientEvent]:
        self._greeting = greeting = Greeting.parse(payload)
        if not greeting.capabilities & _SECURE_CONNECTION:
            raise BackendRefused(f"server {greeting.server_version} is older than MySQL 4.1: it cannot be used")
        wanted = self._wanted | _NEEDED
        if wanted >> 32:
            wanted &= ~_LONG_PASSWORD  # the sign to MariaDB that the extended half is meant
        if self._database:
            wanted |= int(Capability.CONNECT_WITH_DB)
        if self._attributes:
            wanted |= int(Capability.CONNECT_ATTRS)
        self._agreed = wanted & (greeting.capabilities | int(Capability.CONNECT_WITH_DB))
        if self._tls:
            return self._on_tls(greeting)
        return self._respond(greeting)

    def _on_tls(self, greeting: Greeting) -> list[ClientEvent]:
        if not greeting.capabilities & _SSL:
            raise BackendRefused(f"server {greeting.server_version} offers no TLS, which backend_tls asks for")
        if self._behind or self._reader.held:
            raise PacketError("the server sent something behind its greeting, before TLS")
        self._agreed |= _SSL
        self._wait = _Wait.SECURED
        request = HandshakeResponse("", b"", self._agreed, collation=self._collation, max_packet=self._max_packet)
        return [*self._send(request.encode_ssl_request()), StartTls()]

    def secured(self) -> list[ClientEvent]:
        """Go on after `StartTls`; return what to do, in order. What is sent now must not leave but through TLS."""
        assert self._wait is _Wait.SECURED
        assert self._greeting is not None
        self._secure = True
        return self._respond(self._greeting)

    def _respond(self, greeting: Greeting) -> list[ClientEvent]:
        # A server that has another plugin for this user will say so; one that has this one need not ask again.
        hashed = isinstance(self._password, Sha1)
        self._plugin = greeting.plugin if greeting.plugin in PLUGINS and not hashed else NATIVE_PASSWORD
        self._nonce = greeting.nonce
        response = HandshakeResponse(
            user=self._user,
            answer=self._answer(),
            capabilities=self._agreed,
            database=self._database,
            plugin=self._plugin,
            collation=self._collation,
            max_packet=self._max_packet,
            attributes=self._attributes,
        )
        self._wait = _Wait.VERDICT
        return self._send(response.encode())

    def _on_verdict(self, payload: bytes) -> list[ClientEvent]:
        first = payload[0]
        if first == 0x00:
            assert self._greeting is not None
            self._wait = _Wait.NOTHING
            leftover = b"".join(self._behind) + self._reader.take_held()
            return [Connected(self._greeting, self._agreed, parse_ok(payload).status, leftover)]
        if first == 0xFE:
            switch = AuthSwitchRequest.parse(payload)
            self._plugin = switch.plugin
            self._nonce = switch.nonce
            if switch.plugin == SHA256_PASSWORD and self._password:
                # MySQL 8 and later ask it even of users that do not exist, so as not to betray that.
                if self._secure:
                    return self._send_clear()
                self._wait = _Wait.KEY
                return self._send(SHA256_PUBLIC_KEY_REQUEST)
            if switch.plugin == CLEAR_PASSWORD:
                if not self._secure:
                    raise self._not_supported(
                        f"the account uses {CLEAR_PASSWORD}, and the password is sent in the clear through TLS only "
                        "(backend_tls)"
                    )
                return self._send_clear()
            return self._send(self._answer())
        if payload == FAST_AUTH_OK and self._plugin == CACHING_SHA2_PASSWORD:
            return []
        if payload == FULL_AUTH and self._plugin == CACHING_SHA2_PASSWORD:
            if self._secure:
                return self._send_clear()
            self._wait = _Wait.KEY
            return self._send(PUBLIC_KEY_REQUEST)
        raise PacketError(f"packet beginning with 0x{first:02x} during log-in with {self._plugin}")

    def _on_key(self, payload: bytes) -> list[ClientEvent]:
        if payload[:1] != AUTH_MORE_DATA:
            raise PacketError(f"packet beginning with 0x{payload[0]:02x} where a public key was expected")
        try:
            encrypted = auth.encrypt(raw(self._clear()), self._nonce, payload[1:])
        except ValueError as error:
            raise PacketError(f"server sent a public key that cannot be used: {error}") from error
        self._wait = _Wait.VERDICT
        return self._send(encrypted)

    def _send_clear(self) -> list[ClientEvent]:
        """The password itself: never but on a secure connection."""
        assert self._secure
        return self._send(raw(self._clear()) + b"\0")

    def _clear(self) -> str:
        if isinstance(self._password, Sha1):
            raise self._not_supported("the server asks for the password itself")
        return self._password

    def _answer(self) -> bytes:
        try:
            return auth.answer(self._plugin, self._password, self._nonce)
        except PluginError as error:
            raise self._not_supported(str(error)) from error

    def _not_supported(self, why: str) -> BackendRefused:
        code = ErrorCode.NOT_SUPPORTED_AUTH_MODE
        return BackendRefused(f"cannot log in as {self._user!r}: {why}", int(code), sqlstate_of(code))

    def _send(self, payload: bytes) -> list[ClientEvent]:
        event = Send(packet(self._sequence, payload))
        self._sequence += 1
        return [event]


_STATES: Mapping[_Wait, Callable[[ClientHandshake, bytes], list[ClientEvent]]] = {
    _Wait.GREETING: ClientHandshake._on_greeting,
    _Wait.VERDICT: ClientHandshake._on_verdict,
    _Wait.KEY: ClientHandshake._on_key,
}
