"""The messages of the connection phase, encoded and parsed: greeting, response, auth switch, more data.

Payloads only, without packet headers
(https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_connection_phase_packets.html). Every parser raises
PacketError, and nothing else, for bytes that do not fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.protocol.mysql.constants import ED25519, NATIVE_PASSWORD, Capability, Collation
from gateway.protocol.mysql.packets import (
    PacketError,
    lenenc_bytes,
    read_fixed,
    read_int,
    read_lenenc_bytes,
    read_lenenc_int,
    read_nul_bytes,
)

PROTOCOL_VERSION = 10

_LOW = 0xFFFFFFFF  # MySQL's capabilities; above them MariaDB's

_LONG_PASSWORD = int(Capability.LONG_PASSWORD)
_CONNECT_WITH_DB = int(Capability.CONNECT_WITH_DB)
_PROTOCOL_41 = int(Capability.PROTOCOL_41)
_SSL = int(Capability.SSL)
_SECURE_CONNECTION = int(Capability.SECURE_CONNECTION)
_PLUGIN_AUTH = int(Capability.PLUGIN_AUTH)
_CONNECT_ATTRS = int(Capability.CONNECT_ATTRS)
_ZSTD = int(Capability.ZSTD_COMPRESSION_ALGORITHM)
_LENENC_AUTH = int(Capability.PLUGIN_AUTH_LENENC_CLIENT_DATA)

SSL_REQUEST_LENGTH = 32  # bytes: a response that ends before the user name asks for TLS


def text(value: bytes) -> str:
    """Decode a name that the protocol carries; what is not UTF-8 survives a round trip through `raw`."""
    return value.decode("utf-8", "surrogateescape")


def raw(value: str) -> bytes:
    """Encode what `text` decoded."""
    return value.encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Greeting:
    """HandshakeV10: what a server says first. `capabilities` has MariaDB's extended ones above bit 31."""

    server_version: str
    connection_id: int
    nonce: bytes  # 20 bytes
    capabilities: int
    collation: int = int(Collation.UTF8MB4_GENERAL_CI)
    status: int = 2
    plugin: str = NATIVE_PASSWORD

    def encode(self) -> bytes:
        """Return the payload."""
        low = self.capabilities & _LOW
        extended = b"" if low & _LONG_PASSWORD else (self.capabilities >> 32).to_bytes(4, "little")
        return b"".join(
            (
                bytes((PROTOCOL_VERSION,)),
                raw(self.server_version) + b"\0",
                self.connection_id.to_bytes(4, "little"),
                self.nonce[:8] + b"\0",
                (low & 0xFFFF).to_bytes(2, "little"),
                bytes((self.collation & 0xFF,)),
                self.status.to_bytes(2, "little"),
                (low >> 16).to_bytes(2, "little"),
                bytes((len(self.nonce) + 1 if low & _PLUGIN_AUTH else 0,)),
                bytes(6) + (extended or bytes(4)),
                self.nonce[8:] + b"\0",
                raw(self.plugin) + b"\0" if low & _PLUGIN_AUTH else b"",
            )
        )

    @classmethod
    def parse(cls, payload: bytes) -> Greeting:
        """Parse the payload of a server's first packet (not an ERR)."""
        version, at = read_int(payload, 0, 1)
        if version != PROTOCOL_VERSION:
            raise PacketError(f"server speaks protocol version {version}, not {PROTOCOL_VERSION}: is it a MySQL port?")
        server_version, at = read_nul_bytes(payload, at)
        connection_id, at = read_int(payload, at, 4)
        nonce, at = read_fixed(payload, at, 8)
        low, at = read_int(payload, at + 1, 2)
        collation, at = read_int(payload, at, 1)
        status, at = read_int(payload, at, 2)
        high, at = read_int(payload, at, 2)
        capabilities = low | high << 16
        nonce_length, at = read_int(payload, at, 1)
        reserved, at = read_fixed(payload, at, 10)
        if not capabilities & _LONG_PASSWORD:
            capabilities |= int.from_bytes(reserved[6:], "little") << 32
        rest, at = read_fixed(payload, at, max(13, nonce_length - 8))
        plugin = read_nul_bytes(payload, at)[0] if capabilities & _PLUGIN_AUTH else raw(NATIVE_PASSWORD)
        return cls(
            server_version=text(server_version),
            connection_id=connection_id,
            nonce=nonce + rest[:12],
            capabilities=capabilities,
            collation=collation,
            status=status,
            plugin=text(plugin),
        )


@dataclass(frozen=True, slots=True)
class HandshakeResponse:
    """HandshakeResponse41: how a client answers a greeting. `plugin` is None where the client names none."""

    user: str
    answer: bytes
    capabilities: int
    database: str | None = None
    plugin: str | None = None
    collation: int = int(Collation.UTF8MB4_GENERAL_CI)
    max_packet: int = 1 << 30  # bytes
    attributes: Mapping[str, str] = field(default_factory=dict)
    zstd_level: int = 3  # 1 to 22; sent where ZSTD_COMPRESSION_ALGORITHM is among the capabilities

    def encode(self) -> bytes:
        """Return the payload. The flags that say which fields follow are taken from `capabilities`."""
        flags = self.capabilities
        parts = [
            (flags & _LOW).to_bytes(4, "little"),
            self.max_packet.to_bytes(4, "little"),
            bytes((self.collation & 0xFF,)),
            bytes(19),
            bytes(4) if flags & _LONG_PASSWORD else (flags >> 32).to_bytes(4, "little"),
            raw(self.user) + b"\0",
        ]
        if flags & _LENENC_AUTH:
            parts.append(lenenc_bytes(self.answer))
        elif flags & _SECURE_CONNECTION:
            parts.append(bytes((len(self.answer),)) + self.answer)
        else:
            parts.append(self.answer + b"\0")
        if flags & _CONNECT_WITH_DB:
            parts.append(raw(self.database or "") + b"\0")
        if flags & _PLUGIN_AUTH:
            parts.append(raw(self.plugin or NATIVE_PASSWORD) + b"\0")
        if flags & _CONNECT_ATTRS:
            pairs = (lenenc_bytes(raw(name)) + lenenc_bytes(raw(value)) for name, value in self.attributes.items())
            parts.append(lenenc_bytes(b"".join(pairs)))
        if flags & _ZSTD:
            parts.append(bytes((self.zstd_level,)))
        return b"".join(parts)

    def encode_ssl_request(self) -> bytes:
        """Return what asks for TLS in front of this response: its beginning, up to the user name."""
        return self.encode()[:SSL_REQUEST_LENGTH]

    @classmethod
    def parse(cls, payload: bytes) -> HandshakeResponse:
        """Parse a client's answer that has the PROTOCOL_41 flag and is no SSL request (`is_old`, `is_ssl_request`)."""
        flags, at = read_int(payload, 0, 4)
        max_packet, at = read_int(payload, at, 4)
        collation, at = read_int(payload, at, 1)
        reserved, at = read_fixed(payload, at, 23)
        if not flags & _LONG_PASSWORD:
            flags |= int.from_bytes(reserved[19:], "little") << 32
        user, at = read_nul_bytes(payload, at)
        if flags & _LENENC_AUTH:
            answer, at = read_lenenc_bytes(payload, at)
        elif flags & _SECURE_CONNECTION:
            length, at = read_int(payload, at, 1)
            answer, at = read_fixed(payload, at, length)
        else:
            answer, at = read_nul_bytes(payload, at)
        database = plugin = b""
        if flags & _CONNECT_WITH_DB:
            database, at = read_nul_bytes(payload, at)
        if flags & _PLUGIN_AUTH:
            plugin, at = read_nul_bytes(payload, at)
        attributes: dict[str, str] = {}
        if flags & _CONNECT_ATTRS and at < len(payload):
            attributes, at = _parse_attributes(payload, at)
        zstd_level = payload[at] if flags & _ZSTD and at < len(payload) else 3
        return cls(
            user=text(user),
            answer=answer,
            capabilities=flags,
            database=text(database) or None,
            plugin=text(plugin) or None,
            collation=collation,
            max_packet=max_packet,
            attributes=attributes,
            zstd_level=zstd_level,
        )

    @classmethod
    def parse_change_user(cls, payload: bytes, capabilities: int) -> HandshakeResponse:
        """Parse what follows the first byte of COM_CHANGE_USER, from a client that agreed on `capabilities`.

        https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_com_change_user.html; all behind the database
        may be missing, and `collation` is 0 then.
        """
        user, at = read_nul_bytes(payload, 0)
        if capabilities & _SECURE_CONNECTION:
            length, at = read_int(payload, at, 1)
            answer, at = read_fixed(payload, at, length)
        else:
            answer, at = read_nul_bytes(payload, at)
        database, at = read_nul_bytes(payload, at)
        collation = 0
        plugin = b""
        attributes: dict[str, str] = {}
        if at < len(payload):
            collation, at = read_int(payload, at, 2)
        if at < len(payload) and capabilities & _PLUGIN_AUTH:
            plugin, at = read_nul_bytes(payload, at)
        if at < len(payload) and capabilities & _CONNECT_ATTRS:
            attributes, _ = _parse_attributes(payload, at)
        return cls(
            user=text(user),
            answer=answer,
            capabilities=capabilities,
            database=text(database) or None,
            plugin=text(plugin) or None,
            collation=collation,
            attributes=attributes,
        )


def _parse_attributes(payload: bytes, at: int) -> tuple[dict[str, str], int]:
    length, at = read_lenenc_int(payload, at)
    pairs, end = read_fixed(payload, at, length)
    attributes: dict[str, str] = {}
    at = 0
    while at < len(pairs):
        name, at = read_lenenc_bytes(pairs, at)
        value, at = read_lenenc_bytes(pairs, at)
        attributes[text(name)] = text(value)
    return attributes, end


def is_old(payload: bytes) -> bool:
    """Say whether a client's first packet is of a protocol before 4.1 (HandshakeResponse320)."""
    return not read_int(payload, 0, 2)[0] & _PROTOCOL_41


def is_ssl_request(payload: bytes) -> bool:
    """Say whether a client's first packet asks for TLS."""
    return len(payload) == SSL_REQUEST_LENGTH and bool(read_int(payload, 0, 4)[0] & _SSL)


@dataclass(frozen=True, slots=True)
class AuthSwitchRequest:
    """The server asks for another plugin's answer, to a nonce of its own. Its first byte, 0xFE, is included.

    A nonce ends with a NUL that is not part of it; that of ED25519 is of any bytes, and nothing follows it.
    """

    plugin: str
    nonce: bytes

    def encode(self) -> bytes:
        """Return the payload."""
        return b"\xfe" + raw(self.plugin) + b"\0" + self.nonce + (b"" if self.plugin == ED25519 else b"\0")

    @classmethod
    def parse(cls, payload: bytes) -> AuthSwitchRequest:
        """Parse a payload that begins with 0xFE; a bare 0xFE asks for the password hash of MySQL before 4.1."""
        if len(payload) == 1:
            return cls("mysql_old_password", b"")
        name, at = read_nul_bytes(payload, 1)
        plugin, nonce = text(name), payload[at:]
        return cls(plugin, nonce if plugin == ED25519 else nonce.removesuffix(b"\0"))


AUTH_MORE_DATA = b"\x01"  # first byte of AuthMoreData
FAST_AUTH_OK = b"\x01\x03"  # AuthMoreData of caching_sha2_password: proved, OK follows
FULL_AUTH = b"\x01\x04"  # AuthMoreData of caching_sha2_password: send the password itself, protected
PUBLIC_KEY_REQUEST = b"\x02"  # what a caching_sha2_password client asks with
SHA256_PUBLIC_KEY_REQUEST = b"\x01"  # what a sha256_password client asks with
