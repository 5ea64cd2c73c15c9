"""Where a MySQL server is and how its connections are secured: what everybody needs who opens one."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.config import Address
from gateway.net.tls import TlsLayer
from gateway.net.tls_files import TlsFiles


@dataclass(frozen=True, slots=True, eq=False)
class MysqlServer:
    """`tls` None: connections are not encrypted. A unix socket is secure without.

    `compression`: Capability.COMPRESS or ZSTD_COMPRESSION_ALGORITHM, 0 for none.
    """

    address: Address
    tls: TlsFiles | None
    compression: int = 0

    def __str__(self) -> str:
        return str(self.address)

    @property
    def wants_tls(self) -> bool:
        return self.tls is not None and not self.is_local

    @property
    def is_local(self) -> bool:
        """Whether nobody can listen to its connections."""
        return bool(self.address.path)

    def tls_layer(self) -> TlsLayer:
        """For one new connection that `wants_tls`."""
        assert self.tls is not None
        return TlsLayer(self.tls.context, server_side=False, server_hostname=self.address.host)
