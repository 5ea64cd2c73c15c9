"""PROXY protocol, version 2: who a load balancer in front speaks for, told in front of the first byte of a connection.

The format is that of https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt, section 2.2: a signature, version and
command, address family, a length, addresses, and extensions (type, length, value), of which the checksum is verified
and all others are skipped. `ProxyReader` does no IO; `ProxyProtocol` knows whose word is taken: everybody could claim
to be somebody else, so only the configured networks may send a header. They must send one, as the format's authors ask
for: what is sometimes there could be left out by a client that wants to be taken for the balancer.

Version 1, a line of text, is refused: it carries no checksum and no extensions, and every balancer has version 2.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from gateway.errors import ProtocolError
from gateway.net.connect import Conversation

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
LIMIT_BYTES: Final = 4096  # of a whole header, as nginx has it; real ones have some hundred

_VERSION_1: Final = b"PROX"
_PREFIX: Final = len(SIGNATURE) + 4
_LOCAL, _PROXY = 0, 1
_FAMILIES: Final = {0x11: (12, 4), 0x21: (36, 16), 0x31: (216, 0)}  # of streams: bytes of all addresses, of the source
_UNSPECIFIED: Final = 0x00
_CRC32C: Final = 0x03


class ProxyProtocolError(ProtocolError):
    """A header that is missing, broken or not allowed; the text says which."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """`source`: the client's address without port, "" for a unix socket, None where the balancer speaks for itself."""

    source: str | None
    leftover: bytes


class ProxyReader:
    """Fed with what arrives until the header is whole."""

    def __init__(self) -> None:
        self._held = b""

    @property
    def begun(self) -> bool:
        return bool(self._held)

    def feed(self, data: bytes) -> ProxyHeader | None:
        """The header once it is whole. Raises ProxyProtocolError as soon as it cannot be one."""
        held = self._held = self._held + data
        if not SIGNATURE.startswith(held[: len(SIGNATURE)]):
            if held.startswith(_VERSION_1):
                raise ProxyProtocolError("a header of PROXY protocol version 1: the balancer has to send version 2")
            raise ProxyProtocolError("no PROXY protocol header, which clients of this network have to begin with")
        if len(held) < _PREFIX:
            return None
        size = _PREFIX + int.from_bytes(held[14:16], "big")
        if size > LIMIT_BYTES:
            raise ProxyProtocolError(f"a PROXY protocol header of {size} bytes: more than {LIMIT_BYTES}")
        if held[12] >> 4 != 2:
            raise ProxyProtocolError(f"a PROXY protocol header of version {held[12] >> 4}, not 2")
        if len(held) < size:
            return None
        return ProxyHeader(_source(held[:size]), held[size:])


def _source(header: bytes) -> str | None:
    command, family = header[12] & 0x0F, header[13]
    if command not in (_LOCAL, _PROXY):
        raise ProxyProtocolError(f"a PROXY protocol header with the unknown command {command}")
    if command == _LOCAL or family == _UNSPECIFIED:
        return None  # a health check, say; whatever follows is to be ignored
    if family not in _FAMILIES:
        raise ProxyProtocolError(f"a PROXY protocol header of family and transport 0x{family:02x}: no stream")
    addresses, length = _FAMILIES[family]
    if len(header) < _PREFIX + addresses:
        raise ProxyProtocolError("a PROXY protocol header that ends within its addresses")
    _check_extensions(header, _PREFIX + addresses)
    if not length:
        return ""
    address = ipaddress.ip_address(header[_PREFIX : _PREFIX + length])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _check_extensions(header: bytes, at: int) -> None:
    while at < len(header):
        if at + 3 > len(header):
            raise ProxyProtocolError("a PROXY protocol header that ends within an extension")
        end = at + 3 + int.from_bytes(header[at + 1 : at + 3], "big")
        if end > len(header):
            raise ProxyProtocolError("a PROXY protocol header that ends within an extension")
        if header[at] == _CRC32C:
            told = header[at + 3 : end]
            if crc32c(header[: at + 3] + bytes(len(told)) + header[end:]).to_bytes(4, "big") != told:
                raise ProxyProtocolError("a PROXY protocol header whose checksum is wrong")
        at = end


def is_proxy_header(data: bytes) -> bool:
    """Whether a client's first bytes are a header of either version. No MySQL client can begin so."""
    return data.startswith((SIGNATURE[:4], _VERSION_1))


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE: Final = _crc32c_table()


def crc32c(data: bytes) -> int:
    """The checksum of RFC 4960, appendix B (Castagnoli's polynomial)."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


class ProxyProtocol:
    """Whose headers are believed: those of `networks`, in CIDR notation."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]

    def expected_of(self, peer: str) -> bool:
        """Whether a connection from this address ("" for a unix socket) has to begin with a header."""
        if not self._networks or not peer:
            return False
        address = ipaddress.ip_address(peer.partition("%")[0])  # a link-local one has its interface behind it
        return any(address in network for network in self._networks)

    async def client_behind(self, conversation: Conversation, peer: str) -> str | None:
        """The address that the header names, `peer` where it names none; None if the peer ended before its first byte.

        What came behind the header is for the next `receive`. Raises ProxyProtocolError, OSError; the caller bounds
        the time.
        """
        reader = ProxyReader()
        while True:
            chunk = await conversation.receive()
            if not chunk and reader.begun:
                raise ProxyProtocolError("a PROXY protocol header that ends early")
            if not chunk:
                return None
            header = reader.feed(chunk)
            if header is not None:
                conversation.put_back(header.leftover)
                return peer if header.source is None else header.source
