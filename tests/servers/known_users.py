"""The server role of a log-in with a fixed list of users, for tests of the role itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.protocol.mysql.auth import Known
from gateway.protocol.mysql.handshake import Denied, LoggedIn, Named, Send, StartTls
from gateway.protocol.mysql.server_handshake import ServerHandshake


class KnownUsers:
    """A ServerHandshake that identifies its clients by itself: passwords, or what else is known, by user."""

    def __init__(self, users: Mapping[str, str | Known], **settings: Any) -> None:
        self._users = users
        self._handshake = ServerHandshake(**settings)
        self.greeting = self._handshake.greeting

    def feed(self, data: bytes) -> list[Send | LoggedIn | Denied]:
        """Without TLS."""
        return [event for event in self.step(data) if not isinstance(event, StartTls)]

    def step(self, data: bytes) -> list[Send | StartTls | LoggedIn | Denied]:
        """With TLS."""
        events: list[Send | StartTls | LoggedIn | Denied] = []
        for event in self._handshake.feed(data):
            if isinstance(event, Named):
                found = self._users.get(event.user)
                known = Known() if found is None else found if isinstance(found, Known) else Known((found,))
                events += [e for e in self._handshake.identify(known) if not isinstance(e, Named)]
            else:
                events.append(event)
        return events
