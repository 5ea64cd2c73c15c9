"""Which capabilities a listener offers to its clients, and which of them a backend connection must share.

A capability is offered if the gateway handles it itself, or if it changes what the server does or how its replies
look; then the backend connection has it too, so that replies pass undecoded, and pools are keyed by it. What shapes
replies is offered only while every server of the group has it.

Never offered: MariaDB's CACHE_METADATA (a server would leave out definitions that another client's connection has
seen), progress reports (packets in the middle of a reply that no other client expects), and bulk operations.
"""

from __future__ import annotations

from typing import Final

from gateway.protocol.mysql.constants import Capability

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
    | Capability.COMPRESS
    | Capability.ZSTD_COMPRESSION_ALGORITHM
)
"""What every listener offers, whatever its servers are."""

FROM_SERVERS: Final = int(Capability.DEPRECATE_EOF | Capability.QUERY_ATTRIBUTES | Capability.MARIADB_EXTENDED_METADATA)
"""What only some servers have: MySQL since 8.0.23 query attributes, MariaDB since 10.5 the metadata."""

SHAPING: Final = int(
    Capability.FOUND_ROWS
    | Capability.IGNORE_SPACE
    | Capability.INTERACTIVE
    | Capability.LOCAL_FILES
    | Capability.MULTI_STATEMENTS
    | Capability.MULTI_RESULTS
    | Capability.PS_MULTI_RESULTS
    | Capability.DEPRECATE_EOF
    | Capability.QUERY_ATTRIBUTES
    | Capability.MARIADB_EXTENDED_METADATA
)
"""What changes what a server does, or how requests and replies look: connections are shared only where it is the
same."""

ALWAYS: Final = int(
    Capability.LONG_PASSWORD | Capability.LONG_FLAG | Capability.TRANSACTIONS | Capability.SESSION_TRACK
)
"""What every backend connection has."""

_MARIADB_GREETS_WITHOUT: Final = int(Capability.LONG_PASSWORD)  # there it says "not MariaDB", see Greeting


def offered(servers: int, *, mariadb: bool, local_infile: bool) -> int:
    """What a listener offers before servers that all have the capabilities `servers`."""
    flags = (OFFERED & ~FROM_SERVERS) | (FROM_SERVERS & servers)
    if local_infile:
        flags |= int(Capability.LOCAL_FILES)
    if mariadb:
        flags &= ~(_MARIADB_GREETS_WITHOUT | int(Capability.QUERY_ATTRIBUTES))
    else:
        flags &= (1 << 32) - 1
    return flags


def of_backend(agreed: int) -> int:
    """What a backend connection has for a client with whom `agreed` was agreed on."""
    return ALWAYS | agreed & SHAPING
