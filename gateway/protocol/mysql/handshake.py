"""The two state machines of the connection phase: the server role towards clients, the client role towards servers.

Neither does IO: bytes that arrived go into `feed`, events come out, and `Send` among them is what to write. Which
states there are, and what each does with the next packet, is in one table per role (`_SERVER`, `_CLIENT`, at the
end).

Server role. No state reads a command: after `LoggedIn` the machine is at its end, and what follows belongs to another
reader. When a client has said who it is (`Named`) the machine waits until `identify` says what is known of that user,
which may take a question to a server. A user that does not exist is treated as one with a password that nobody knows,
so that the work, the time and the text (1045) are those of a wrong password. A client that answers the nonce with a
well-formed but wrong hash is refused at once where the password is known, although MySQL would go on to the full path:
MySQL knows no password to compare with, and clients without TLS would report a missing public key instead of the wrong
password. Where it has yet to be learnt, the full path it is.

Client role. What the server says is trusted no further than it must be: the password leaves only hashed with the
server's nonce, or encrypted with the key that the server sent. The latter, without TLS, protects against listeners, not
against somebody who stands in for the server; that is what the RSA path of caching_sha2_password is.

TLS. Both roles stop at `StartTls`: the caller puts TLS beneath, and what goes in and comes out from then on is what TLS
carries. Whatever arrived in plain behind the request is TLS's own or an attack (a command that somebody in the middle
put in front of the encrypted ones): the server role hands it to TLS, the client role refuses it. On a *secure*
connection (TLS, or a unix socket) the full path carries the password as it is, as servers and clients expect there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from gateway.errors import BackendRefused, Refused
from gateway.protocol.mysql import answers, auth
from gateway.protocol.mysql.auth import Known, Password, PasswordKey, PluginError, Sha1
from gateway.protocol.mysql.constants import (
    CACHING_SHA2_PASSWORD,
    CLEAR_PASSWORD,
    MAX_PAYLOAD,
    NATIVE_PASSWORD,
    SHA256_PASSWORD,
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
    SHA256_PUBLIC_KEY_REQUEST,
    SSL_REQUEST_LENGTH,
    AuthSwitchRequest,
    Greeting,
    HandshakeResponse,
    is_old,
    is_ssl_request,
    raw,
)
from gateway.protocol.mysql.ok_packet import parse_err, parse_ok
from gateway.protocol.mysql.packets import BEFORE_LOGIN_LIMIT, HEADER, PacketError, PacketReader, packet, payload_of

PLUGINS = (CACHING_SHA2_PASSWORD, NATIVE_PASSWORD)
"""The plugins whose answers the server role verifies."""

_PLUGIN_AUTH = int(Capability.PLUGIN_AUTH)
_SECURE_CONNECTION = int(Capability.SECURE_CONNECTION)
_SSL = int(Capability.SSL)
_LONG_PASSWORD = int(Capability.LONG_PASSWORD)
_NEEDED = int(
    Capability.PROTOCOL_41 | Capability.SECURE_CONNECTION | Capability.PLUGIN_AUTH | Capability.LONG_PASSWORD
) | int(Capability.PLUGIN_AUTH_LENENC_CLIENT_DATA)
_SET_BY_NEED = int(Capability.CONNECT_WITH_DB | Capability.CONNECT_ATTRS | Capability.SSL)
_HASH_LENGTH = 32  # bytes of caching_sha2_password's answer to a nonce
_SSL_REQUEST_SIZE = HEADER + SSL_REQUEST_LENGTH
_SSL_REQUEST_START = SSL_REQUEST_LENGTH.to_bytes(3, "little")
SECURE_TRANSPORT_REQUIRED = (  # both servers' text of 3159
    "Connections using insecure transport are prohibited while --require_secure_transport=ON."
)


@dataclass(frozen=True, slots=True)
class Send:
    """Bytes to send to the peer."""

    data: bytes


@dataclass(frozen=True, slots=True)
class StartTls:
    """Go on through TLS, both roles: `received` came behind the request and belongs to it.

    The client role goes on with `secured`, and nothing is fed before that.
    """

    received: bytes = b""


@dataclass(frozen=True, slots=True)
class Named:
    """Server role: the client says that it is `user`. Goes on with `identify`; nothing is fed before that."""

    user: str


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """Server role: the client proved `password` and waits for the OK, or for an ERR such as 1049 or 1040.

    That packet is the caller's to send, with sequence id `sequence` (`answers.ok`, `answers.err`): it may want to try a
    backend first. `capabilities` are those that both sides have.
    """

    user: str
    database: str | None
    capabilities: int
    collation: int
    attributes: Mapping[str, str]
    max_packet: int  # bytes that the client is ready to receive in one packet
    zstd_level: int  # which it wants, where zstd was agreed on
    sequence: int
    leftover: bytes  # came behind the last packet: for the reader of commands
    password: Password = field(repr=False)


@dataclass(frozen=True, slots=True)
class Denied:
    """Server role: send `data`, an ERR packet, and close. `error` says why; `user` is None where none was named yet."""

    data: bytes
    error: Refused
    user: str | None


@dataclass(frozen=True, slots=True)
class Connected:
    """Client role: the server accepted the log-in and reads commands from now on."""

    greeting: Greeting
    capabilities: int  # those that both sides have
    status: int  # Status flags of the OK packet
    leftover: bytes  # what came behind the OK; b"" from any sane server


ServerEvent = Send | StartTls | Named | LoggedIn | Denied
ClientEvent = Send | StartTls | Connected


class _Wait(Enum):
    """What a machine waits for."""

    RESPONSE = auto()  # server role: HandshakeResponse41, or the request for TLS in front of it
    KNOWN = auto()  # server role: `identify`
    SWITCHED = auto()  # server role: the answer to AuthSwitchRequest
    FULL = auto()  # server role: the request for the key, or the encrypted password
    GREETING = auto()  # client role
    SECURED = auto()  # client role: `secured`
    VERDICT = auto()  # client role: OK, ERR, AuthSwitchRequest or AuthMoreData
    KEY = auto()  # client role: AuthMoreData with the public key
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
        if self._wait not in _SERVER:
            return events
        try:
            self._behind += self._reader.feed(data)
            while self._behind and self._wait in _SERVER:
                message = self._behind.pop(0)
                self._check_sequence(message)
                self._reader.limit -= len(message)  # all of the log-in together, not each of its packets
                events += _SERVER[self._wait](self, payload_of(message))
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
            events += _CLIENT[self._wait](self, payload)
            if self._wait not in _CLIENT:
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
                    raise BackendRefused(
                        f"cannot log in as {self._user!r}: the account uses {CLEAR_PASSWORD}, and the password is sent "
                        "in the clear through TLS only (backend_tls)"
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
            raise BackendRefused(f"cannot log in as {self._user!r}: the server asks for the password itself")
        return self._password

    def _answer(self) -> bytes:
        try:
            return auth.answer(self._plugin, self._password, self._nonce)
        except PluginError as error:
            raise BackendRefused(f"cannot log in as {self._user!r}: {error}") from error

    def _send(self, payload: bytes) -> list[ClientEvent]:
        event = Send(packet(self._sequence, payload))
        self._sequence += 1
        return [event]


_SERVER: Mapping[_Wait, Callable[[ServerHandshake, bytes], list[ServerEvent]]] = {
    _Wait.RESPONSE: ServerHandshake._on_response,
    _Wait.SWITCHED: ServerHandshake._on_answer,
    _Wait.FULL: ServerHandshake._on_full,
}

_CLIENT: Mapping[_Wait, Callable[[ClientHandshake, bytes], list[ClientEvent]]] = {
    _Wait.GREETING: ClientHandshake._on_greeting,
    _Wait.VERDICT: ClientHandshake._on_verdict,
    _Wait.KEY: ClientHandshake._on_key,
}
