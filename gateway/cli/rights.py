"""Asks the servers of a configuration which rights their monitor accounts lack; for `gateway check`."""

from __future__ import annotations

from typing import Final

import trio

from gateway.backends.mysql_server import MysqlServer
from gateway.config import Config, MysqlGroup
from gateway.errors import BackendRefused, ConfigError, Unavailable
from gateway.net.lane import Lane
from gateway.replication.observe import monitor_credentials
from gateway.tls_settings import backend_tls
from gateway.topology import backend_users, catalogue

ASK_SECONDS: Final = 2.0
"""For all servers together: a check must not hang where there are none."""

BLIND: Final = "does not see all views, routines and triggers, and reads through them stay at the primary"
CLOSED: Final = 'may not read the accounts, and users = "backend" lets nobody in'


def warnings_of_rights(config: Config) -> list[str]:
    """One line per GRANT statement that is missing somewhere. Servers that do not answer are passed over."""
    groups = [group for group in config.groups if isinstance(group, MysqlGroup)]
    return trio.run(_ask_all, groups) if groups else []


async def _ask_all(groups: list[MysqlGroup]) -> list[str]:
    found: set[tuple[str, str, str]] = set()  # group, what comes of it, statement
    lane = Lane()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lane.run, name="lane")

        async def ask(group: MysqlGroup, server: MysqlServer) -> None:
            try:
                credentials = monitor_credentials(group.monitor.user, group.monitor.password.reveal())
                for statement in await catalogue.missing_grants(lane, server, credentials):
                    found.add((group.name, BLIND, statement))
                if group.users == "backend":
                    for statement in await backend_users.missing_grants(lane, server, credentials):
                        found.add((group.name, CLOSED, statement))
            except (Unavailable, BackendRefused, ConfigError):
                return  # nobody said that it must be running, nor that its secrets are known here

        with trio.move_on_after(ASK_SECONDS):
            async with trio.open_nursery() as asking:
                for group in groups:
                    tls = backend_tls(group.backend_tls) if group.backend_tls is not None else None
                    for member in group.members:
                        asking.start_soon(ask, group, MysqlServer(member.address, tls))
        nursery.cancel_scope.cancel()
    return [f'group "{group}": the monitor account {what}: {statement}' for group, what, statement in sorted(found)]
