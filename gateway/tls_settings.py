"""What `tls` and `backend_tls` of a configuration stand for, and what is wrong or soon to be wrong with their files."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from cryptography import x509

from gateway.config import BackendTls, Config, ListenerTls
from gateway.errors import ConfigError
from gateway.net.tls_files import TlsFiles, accepting_context, connecting_context
from gateway.toml_lines import Place

EXPIRES_SOON: Final = datetime.timedelta(days=14)  # Let's Encrypt's certificates are renewed a month before their end


def listener_tls(settings: ListenerTls) -> TlsFiles:
    """Raises ConfigError."""
    required = settings.client_certificates == "required"
    return TlsFiles(
        lambda: accepting_context(settings.cert, settings.key, settings.client_ca, certificates_required=required)
    )


def backend_tls(settings: BackendTls) -> TlsFiles:
    """Raises ConfigError."""
    return TlsFiles(
        lambda: connecting_context(
            settings.ca,
            verify=settings.verify is not False,
            verify_host=settings.verify is True,
            cert=settings.cert,
            key=settings.key,
        )
    )


def tls_problems(config: Config) -> list[ConfigError]:
    """What keeps the files of the configuration from being used, with the place of the setting."""
    found: list[ConfigError] = []
    for place, _, make in _uses(config):
        try:
            make()
        except ConfigError as error:
            found.append(config.document.problem(place, error.message))
    return found


def tls_warnings(config: Config, now: datetime.datetime | None = None) -> list[ConfigError]:
    """Certificates that have expired, or will soon."""
    now = now or datetime.datetime.now(datetime.UTC)
    found: list[ConfigError] = []
    for place, file, _ in _uses(config):
        if file is not None and (words := _expiry(file, now)):
            found.append(config.document.problem(place, words))
    return found


def _uses(config: Config) -> Iterator[tuple[Place, Path | None, Callable[[], TlsFiles]]]:
    """Where TLS is set up, the certificate that is shown there, and what makes its context."""
    for index, listener in enumerate(config.listeners):
        if (own := listener.tls) is not None and listener.protocol == "mysql":
            yield ("listener", index, "tls"), own.cert, partial(listener_tls, own)
    for index, group in enumerate(config.groups):
        if group.engine == "mysql" and (theirs := group.backend_tls) is not None:
            yield ("group", index, "backend_tls"), theirs.cert, partial(backend_tls, theirs)


def _expiry(file: Path, now: datetime.datetime) -> str | None:
    try:
        (certificate, *_) = x509.load_pem_x509_certificates(file.read_bytes())
    except (OSError, ValueError):
        return None  # tls_problems says what is wrong with it
    end = certificate.not_valid_after_utc
    if end <= now:
        return f"the certificate {file} expired on {end:%Y-%m-%d}"
    if end - now < EXPIRES_SOON:
        return f"the certificate {file} expires on {end:%Y-%m-%d}"
    return None
