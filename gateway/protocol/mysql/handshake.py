"""What the two state machines of the connection phase tell their callers to do: the server role's, the client role's.

Neither does IO: bytes that arrived go into `feed`, events come out, and `Send` among them is what to write. The roles
are in server_handshake.py and client_handshake.py; which states each has, and what it does with the next packet, is in
one table at the end of its module.

TLS. Both roles stop at `StartTls`: the caller puts TLS beneath, and what goes in and comes out from then on is what TLS
carries. Whatever arrived in plain behind the request is TLS's own or an attack (a command that somebody in the middle
put in front of the encrypted ones): the server role hands it to TLS, the client role refuses it. On a *secure*
connection (TLS, or a unix socket) the full path carries the password as it is, as servers and clients expect there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.errors import Refused
from gateway.protocol.mysql.auth import Password
from gateway.protocol.mysql.constants import CACHING_SHA2_PASSWORD, NATIVE_PASSWORD
from gateway.protocol.mysql.greeting import Greeting

PLUGINS = (CACHING_SHA2_PASSWORD, NATIVE_PASSWORD)
"""The plugins whose answers the server role verifies, and whose greeting the client role answers at once."""


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
