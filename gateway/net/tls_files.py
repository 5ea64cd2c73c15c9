"""TLS contexts made of files: what is wrong with one is told by its name, and files that were replaced are read anew.

A context serves every connection that is opened after it was made; connections that are open keep theirs. A reload that
finds a broken file changes nothing.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gateway.errors import ConfigError

MINIMUM: Final = ssl.TLSVersion.TLSv1_2  # older versions are deprecated (RFC 8996); MySQL 8 and later refuse them, too


class TlsFiles:
    """`context` is what `make` made last; `make` raises ConfigError."""

    def __init__(self, make: Callable[[], ssl.SSLContext]) -> None:
        self._make = make
        self.context = make()

    def reload(self) -> None:
        """Reads the files again. Raises ConfigError, and then keeps what it had."""
        self.context = self._make()


def accepting_context(cert: Path, key: Path, client_ca: Path | None, *, certificates_required: bool) -> ssl.SSLContext:
    """For connections that others open. With `client_ca` the certificate of a client is verified if it has one.

    Raises ConfigError.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    _load_certificate(context, cert, key)
    if client_ca is not None:
        _load_authorities(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED if certificates_required else ssl.CERT_OPTIONAL
    return context


def connecting_context(
    ca: Path | None, *, verify: bool, verify_host: bool, cert: Path | None, key: Path | None
) -> ssl.SSLContext:
    """For connections that the gateway opens; `cert` and `key` are its own. `ca` None: the system's authorities.

    Raises ConfigError.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = verify and verify_host
    context.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
    if ca is not None:
        _load_authorities(context, ca)
    elif verify:
        context.load_default_certs()
    if cert is not None and key is not None:
        _load_certificate(context, cert, key)
    return context


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = MINIMUM
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    return context


def _load_certificate(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    for file in (cert, key):
        _read(file)
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except _EncryptedKeyError:
        raise ConfigError(f"the key {key} is encrypted: the gateway has nobody to ask for its password") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"the key {key} does not belong to the certificate {cert}") from None
        raise ConfigError(f"{cert} and {key} are not a certificate and its key in PEM") from None


class _EncryptedKeyError(Exception):
    """Raised through OpenSSL when it asks for a key's password."""


def _no_password() -> str:
    raise _EncryptedKeyError


def _load_authorities(context: ssl.SSLContext, file: Path) -> None:
    _read(file)
    try:
        context.load_verify_locations(file)
    except ssl.SSLError:
        raise ConfigError(f"{file} holds no certificates in PEM") from None


def _read(file: Path) -> None:
    """OpenSSL does not say which file it could not read."""
    try:
        file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
