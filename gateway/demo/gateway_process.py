"""The gateway of the demo: its configuration, written for the servers that run, and its process.

It is started as a user would, `gateway run -c gateway.toml`, but as a child of the stack: nothing of it survives.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

import gateway
from gateway.admin.status import ask_status
from gateway.demo.mysql_servers import APP, MONITOR, Account, MysqlGroup
from gateway.demo.servers import MemcachedPools, Server
from gateway.demo.stack import ServerFailedError, Stack
from gateway.errors import ConfigError, Unavailable

RULES: Final = Path(gateway.__file__).parent.parent / "rules"

REPORT: Final = Account("report", "report-secret")
"""Whoever makes the reports: reads only, and the rules let these lag."""

WEIGHTS: Final = {"master": (50, 50), "slave": (50, 100, 50)}
"""Servers per pool with their weights, as in the document of kvproxy that the project began with."""


def require_rules() -> None:
    """Raises ConfigError where the project's rule files are not: an installed package has none."""
    if not RULES.is_dir():
        raise ConfigError("the demo needs the rule files of the project: run it in a clone", str(RULES))


class GatewayServer(Server):
    """One gateway with a MySQL listener on `port` and a memcached listener on `cache_port`."""

    label = "gateway"

    def __init__(self, stack: Stack, group: MysqlGroup, pools: MemcachedPools) -> None:
        super().__init__(stack, "gateway")
        self.group = group
        self.pools = pools
        self.cache_port = stack.port()

    @property
    def config_file(self) -> Path:
        """Its gateway.toml, also for `gateway status -c`."""
        return self.stack.folder / "gateway.toml"

    @property
    def data_dir(self) -> Path:
        """Where its status socket is."""
        return self.stack.folder / "var"

    @property
    def cache_address(self) -> str:
        """The memcached listener, as a client has it."""
        return f"{self.host}:{self.cache_port}"

    def prepare(self) -> None:
        if not self._served:  # after a start that found a port taken: which of the two, it did not say
            self.cache_port = self.stack.port()
        self.config_file.write_text(self.configuration())

    def configuration(self) -> str:
        """The text of its gateway.toml. A JSON string is a TOML string, too."""
        members = ", ".join(json.dumps(server.address) for server in self.group.servers)
        users = ", ".join(
            f"{{name = {json.dumps(account.user)}, password = {json.dumps(account.password)}}}"
            for account in (APP, REPORT)
        )
        pools = "".join(f"\n[group.pools.{name}]\n{_servers(name, servers)}" for name, servers in self.pools.items())
        return (
            f'[gateway]\nname = "demo"\ndata_dir = "var"\nrules = {json.dumps(str(RULES))}\n\n'
            f'[[listener]]\nname = "sql"\nprotocol = "mysql"\nlisten = "{self.address}"\ngroup = "shop"\n\n'
            f'[[group]]\nname = "shop"\nengine = "mysql"\nmembers = [{members}]\n'
            f'monitor = {{user = "{MONITOR.user}", password = "{MONITOR.password}"}}\nusers = [{users}]\n\n'
            f'[[listener]]\nname = "cache"\nprotocol = "memcached"\nlisten = "{self.cache_address}"\n'
            'group = "cache"\n\n[[group]]\nname = "cache"\nengine = "memcached"\nprimary = "master"\n'
            'replicas = ["slave"]\nsync_prefixes = ["+"]\nhash = "kvproxy"\nkey_hash = "crc32"\n'
            f"{pools}"
        )

    def command(self) -> list[str]:
        return [sys.executable, "-m", "gateway", "run", "-c", str(self.config_file)]

    def ready(self) -> bool:
        try:
            return self.status() is not None
        except Unavailable:
            return False

    def status(self) -> dict[str, Any]:
        """What `gateway status --json` prints. Raises Unavailable."""
        answer: dict[str, Any] = msgspec.json.decode(trio.run(ask_status, self.data_dir))
        return answer

    def wait_whole(self, timeout: float) -> None:
        """Waits until it sees a primary, and every member serves."""
        assert self.process is not None
        while True:
            groups = self.status()["groups"]
            faults = {name: _faults(group) for name, group in groups.items()}
            if not any(faults.values()):
                return
            timeout -= 0.05
            if timeout < 0 or self.process.wait(0.05):
                raise ServerFailedError(f"the gateway does not see all servers: {faults}\n{self.process.log_tail()}")


def _servers(pool: str, servers: Sequence[Server]) -> str:
    weighted = zip(servers, WEIGHTS[pool], strict=True)
    lines = [
        f'  {{address = "{server.address}", id = {number}, weight = {weight}}},\n'
        for number, (server, weight) in enumerate(weighted, 1)
    ]
    return f"servers = [\n{''.join(lines)}]\n"


def _faults(group: Mapping[str, Any]) -> dict[str, str]:
    """What keeps members of a group from serving, by member."""
    if group["engine"] == "mysql":
        found = {member["name"]: member["fault"] for member in group["members"] if member["fault"]}
        if group["primary"] is None:
            found["primary"] = group["trouble"] or "none is known"
        return found
    return {}
