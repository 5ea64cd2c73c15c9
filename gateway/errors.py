"""The error tree of the gateway. An error is raised where the fact is known and translated at one edge.

Two families beside configuration: `ProtocolError` is the peer's fault (its connection ends), `Refused` and its kin are
answers that a client gets in its own protocol, with the connection staying usable.
"""

from __future__ import annotations


class GatewayError(Exception):
    """Everything that the gateway raises on purpose. The text tells a person what happened and what to do."""


class ConfigError(GatewayError):
    """A configuration or rule file that cannot be used; one line, `file:line: message` where both are known."""

    def __init__(self, message: str, file: str | None = None, line: int | None = None) -> None:
        place = f"{file}:{line}: " if file and line else f"{file}: " if file else ""
        super().__init__(place + message)
        self.message = message
        self.file = file
        self.line = line


class ProtocolError(GatewayError):
    """The peer sent bytes that its protocol does not allow; its connection is closed after it was told so."""


class Refused(GatewayError):
    """A request that is not carried out, with what its client is told.

    `code` and `sqlstate` are MySQL's (errmsg-utf8.txt of the servers); memcached clients get
    `SERVER_ERROR <text>`.
    """

    def __init__(self, message: str, *, code: int = 1105, sqlstate: str = "HY000") -> None:
        super().__init__(message)
        self.code = code
        self.sqlstate = sqlstate


class Unavailable(Refused):
    """No server could take the request in time. Nothing of it was carried out."""


class OutcomeUnknown(Refused):
    """The connection was lost after the request was sent: it may or may not have been carried out. Never retried."""


class BackendRefused(GatewayError):
    """A server refused the gateway's connection or log-in; `code` is its error number, 0 if it gave none."""

    def __init__(self, message: str, code: int = 0, sqlstate: str = "HY000") -> None:
        super().__init__(message)
        self.code = code
        self.sqlstate = sqlstate
