"""TLS as a layer of an endpoint: OpenSSL between two memory buffers, driven by whatever arrives.

The handshake is the layer's own affair: it is not `open` until it is done, and what the owner wrote until then waits.
Signing in it costs the lane 0.1 ms (ECDSA) to 1 ms (RSA 2048) per connection. Renegotiation is not allowed, so that
after the handshake `write` never has to wait for the peer.

A memory buffer of OpenSSL's keeps the room that it once had, for as long as the connection lives. So no more than a
record goes into either at once: 10,000 clients that once read a large result would hold 2 GB otherwise.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import Final

RECORD_BYTES: Final = 16_384  # the most that one TLS record holds (RFC 8446, 5.1), and that one read returns


class TlsError(ConnectionError):
    """The peer's TLS cannot be gone on with: no handshake, no trust, or a broken record. The text names the cause."""


class TlsLayer:
    """One TLS connection; see `net.layers.Layer`. `server_side`: the peer is the one who begins the handshake.

    `server_hostname` is what the peer's certificate has to name, if the context checks that.
    """

    __slots__ = ("_incoming", "_outgoing", "_tls", "open", "over")

    holding: Final = False  # each inbound reads all that came

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        self.open = False
        self.over = False

    @property
    def wants_to_send(self) -> bool:
        return self._outgoing.pending > 0

    @property
    def cipher(self) -> str:
        """The suite's name; "" before the handshake is done."""
        cipher = self._tls.cipher()
        return cipher[0] if cipher else ""

    @property
    def version(self) -> str:
        """Such as "TLSv1.3"; "" before the handshake is done."""
        return self._tls.version() or ""

    def inbound(self, wire: bytes) -> bytes:
        """Raises TlsError."""
        if len(wire) <= RECORD_BYTES:
            self._incoming.write(wire)
            return self._read()
        pieces: list[bytes] = []
        rest = memoryview(wire)
        for at in range(0, len(wire), RECORD_BYTES):
            self._incoming.write(rest[at : at + RECORD_BYTES])
            pieces.append(self._read())
        return b"".join(pieces)

    def _read(self) -> bytes:
        """What the bytes hold that came in."""
        incoming = self._incoming
        pieces: list[bytes] = []
        try:
            if not self.open:
                self._tls.do_handshake()
                self.open = True
            read = self._tls.read
            while incoming.pending or self._tls.pending():
                piece = read(RECORD_BYTES)
                if not piece:
                    self.over = True
                    break
                pieces.append(piece)
        except ssl.SSLWantReadError:
            pass  # it ends within a record
        except ssl.SSLZeroReturnError:
            self.over = True
        except ssl.SSLError as error:
            raise TlsError(reason_of(error)) from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def outbound(self, plain: bytes) -> bytes:
        """Raises TlsError."""
        if not plain:
            return self._outgoing.read()
        try:
            if len(plain) <= RECORD_BYTES:
                self._tls.write(plain)
                return self._outgoing.read()
            records: list[bytes] = []
            rest = memoryview(plain)
            for at in range(0, len(plain), RECORD_BYTES):
                self._tls.write(rest[at : at + RECORD_BYTES])
                records.append(self._outgoing.read())
            return b"".join(records)
        except ssl.SSLError as error:
            raise TlsError(reason_of(error)) from error

    def ended(self) -> None:
        """A connection that ends without close_notify is as good as one with it: MySQL's packets tell their length."""
        if not self.open:
            raise TlsError("the peer closed the connection during the TLS handshake")

    def farewell(self) -> bytes:
        if self.open:
            with contextlib.suppress(ssl.SSLError):  # it wants the peer's close_notify, for which nobody waits
                self._tls.unwrap()
        return self._outgoing.read()


def reason_of(error: ssl.SSLError) -> str:
    """What OpenSSL says of it, without its own places and codes."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted: {error.verify_message}"
    reason = (error.reason or str(error)).replace("_", " ").lower()
    return f"TLS failed: {reason}"
