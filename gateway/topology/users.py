"""Who may log in to one group, by the users that the configuration lists; and what is kept of either kind of users.

The other kind is `BackendUsers` of backend_users.py: who the primary accepts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from gateway.backends.mysql import Credentials, Passwords
from gateway.config import User
from gateway.errors import Refused
from gateway.protocol.mysql.auth import Known, Password
from gateway.protocol.mysql.constants import ErrorCode
from gateway.topology.accounts import Account
from gateway.topology.mysql import Topology

Key = TypeVar("Key")

USER_LIMIT_REACHED: Final = 1226  # ER_USER_LIMIT_REACHED: what an account's own MAX_USER_CONNECTIONS ends with

SessionsEnd = Callable[[Passwords, str], None]
"""Called with what no longer lets anybody in, as `admit` gave it to sessions, and in words why."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Somebody who says that it is `user`, and what is known of that user; `account` where the primary told it."""

    user: str
    client: str  # its address, "" for a unix socket
    known: Known
    account: Account | None = None


def denied(user: str, client: str) -> Refused:
    """What somebody is told who may not come in with the password that it has."""
    text = f"Access denied for user '{user}'@'{client or 'localhost'}' (using password: YES)"
    return Refused(text, code=ErrorCode.ACCESS_DENIED, sqlstate="28000")


class Users(ABC):
    """What both kinds share. `connections` counts each user's open sessions, over all listeners of the group."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.connections: Counter[str] = Counter()
        self._sessions: Counter[Passwords] = Counter()  # by what they came in with
        self.on_end: list[SessionsEnd] = []  # the listeners of the group, which have the sessions
        # When a server last let a user in with a database (None: without one).
        self.proved: dict[tuple[str, str | None], float] = {}

    @abstractmethod
    async def find(self, user: str, client: str, *, encrypted: bool) -> Candidate:
        """Who `user` is, coming from this address ("" for a unix socket). Raises Refused."""

    @abstractmethod
    async def admit(self, candidate: Candidate, password: Password) -> Passwords:
        """Lets a candidate in that has proved `password`, or raises Refused or BackendRefused.

        Returns what its session logs in to servers with. All sessions that came in by the same share one object, by
        which they are found when it no longer holds.
        """

    @abstractmethod
    def holds(self, candidate: Candidate, passwords: Passwords) -> bool:
        """Whether a candidate may still come in that was admitted with `passwords`, and has awaited something since."""

    @abstractmethod
    def settings(self, user: str) -> User | None:
        """Limits and defaults of a user, None where the configuration has none."""

    @abstractmethod
    def account_changed(self) -> None:
        """A statement that changes accounts or privileges went through the gateway."""

    def check_limit(self, user: str) -> None:
        """Raises Refused if the user has all the sessions that it may have."""
        settings = self.settings(user)
        limit = settings.max_connections if settings is not None else None
        if limit is not None and self.connections[user] >= limit:
            raise Refused(
                f"User '{user}' has exceeded the 'max_user_connections' resource (current value: {limit})",
                code=USER_LIMIT_REACHED,
                sqlstate="42000",
            )

    def entered(self, credentials: Credentials) -> None:
        """One more session has these."""
        self.connections[credentials.user] += 1
        self._sessions[credentials.passwords] += 1

    def left(self, credentials: Credentials) -> None:
        """One of the sessions with these has ended, or becomes another user's."""
        _decrease(self.connections, credentials.user)
        _decrease(self._sessions, credentials.passwords)

    def _retire(self, user: str) -> None:
        """Gives no connection that the user has by now to anybody who asks for one from now on."""
        self.proved.clear()
        for member in self.topology.members.values():
            member.pool.retire(user)

    def _end_sessions(self, passwords: Passwords, why: str) -> None:
        for end in self.on_end:
            end(passwords, why)


def _decrease(counter: Counter[Key], key: Key) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


class ListedUsers(Users):
    """The users of the configuration, with their passwords as they were when it was read."""

    def __init__(self, topology: Topology, users: tuple[User, ...]) -> None:
        """Raises ConfigError for a password that cannot be read."""
        super().__init__(topology)
        self._users: Mapping[str, User] = {user.name: user for user in users}
        self._known = {user.name: Known(user.passwords()) for user in users}
        self._passwords = {name: Passwords(*known.passwords) for name, known in self._known.items()}

    async def find(self, user: str, client: str, *, encrypted: bool) -> Candidate:
        return Candidate(user, client, self._known.get(user) or Known())

    async def admit(self, candidate: Candidate, password: Password) -> Passwords:
        """The proof is all. (It may have been given a moment before the user's password was changed.)"""
        known = self._known.get(candidate.user)
        if known is None or password not in known.passwords:
            raise denied(candidate.user, candidate.client)
        return self._passwords[candidate.user]

    def holds(self, candidate: Candidate, passwords: Passwords) -> bool:
        return self._passwords.get(candidate.user) is passwords

    def settings(self, user: str) -> User | None:
        return self._users.get(user)

    def account_changed(self) -> None:
        self.proved.clear()

    def use(self, users: tuple[User, ...]) -> None:
        """Lets these users in from now on. Raises ConfigError, with nothing changed, for a password that is unreadable.

        Sessions of a user whose passwords have changed go on, with new connections opened by the new ones; those of a
        user who is no longer there end between transactions.
        """
        known = {user.name: Known(user.passwords()) for user in users}
        before, self._known = self._known, known
        self._users = {user.name: user for user in users}
        for name in before.keys() | known.keys():
            old, new = before.get(name), known.get(name)
            if new is None:
                passwords = self._passwords.pop(name)
                self._retire(name)
                self._end_sessions(passwords, f"gateway: user {name} may not log in any more")
            elif old is None:
                self._passwords[name] = Passwords(*new.passwords)
            elif old != new:
                self._passwords[name].to_try = new.passwords  # all its sessions share this one
                self._retire(name)
