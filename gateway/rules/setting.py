"""Rules together with the configuration around them: who explains a statement for which listener.

Without a configuration the defaults of a listener and a group hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeAlias

from gateway.errors import ConfigError
from gateway.rules.compile import RuleSet
from gateway.rules.policy import Context, Defaults, KeyPolicies, SqlPolicies
from gateway.rules.verdict import KeyExplainer, SqlExplainer

if TYPE_CHECKING:
    from gateway.config import Config, Listener, User
    from gateway.routing.sql import Classifier

Protocol: TypeAlias = Literal["mysql", "memcached"]


@dataclass(frozen=True, slots=True)
class Setting:
    """Where statements are explained: rules, and a configuration or none."""

    rules: RuleSet
    config: Config | None = None

    def explainer(
        self, protocol: Protocol, *, listener: str | None, user: str, client: str, database: str | None
    ) -> SqlExplainer | KeyExplainer:
        """Explains what this client sends to that listener (None: the first of the protocol).

        ConfigError if there is no listener of that name and protocol.
        """
        found = self.listener(protocol, listener)
        name = found.name if found is not None else listener or ""
        if protocol == "memcached":
            return KeyExplainer(self._key_policies(found, name, user, client))
        # Not imported above: the classifier brings a SQL parser with it.
        from gateway.routing.fingerprint import DEFAULT_READING

        context = Context(name, user, client, database)
        defaults = Defaults.of(found, self._user(found, user)) if found is not None else Defaults()
        policies = SqlPolicies(self.rules.sql_rules(name, user, client), defaults)
        return SqlExplainer(_classifier(), policies, context, DEFAULT_READING)

    def _user(self, listener: Listener, name: str) -> User | None:
        group = self.config.group(listener.group) if self.config is not None else None
        users = group.users if group is not None and group.engine == "mysql" else "backend"
        return None if users == "backend" else next((user for user in users if user.name == name), None)

    def listener(self, protocol: Protocol, name: str | None) -> Listener | None:
        """The configured listener of that name, or the first of the protocol; None without a configuration or one."""
        listeners = self.config.listeners if self.config is not None else ()
        for each in listeners:
            if each.protocol == protocol and name in (None, each.name):
                return each
        if name is None or self.config is None:
            return None
        known = ", ".join(each.name for each in listeners if each.protocol == protocol) or "none"
        raise ConfigError(f'there is no {protocol} listener "{name}"; known are {known}')

    def _key_policies(self, listener: Listener | None, name: str, user: str, client: str) -> KeyPolicies:
        if self.config is not None and listener is not None:
            group = self.config.group(listener.group)
            if group.engine == "memcached":
                return KeyPolicies.of(self.rules, group, name, user, client)
        return KeyPolicies(self.rules.key_rules(name, user, client))


@cache
def _classifier() -> Classifier:
    """One for the process, since its caches are what makes it fast."""
    from gateway.routing.sql import Classifier

    return Classifier()
