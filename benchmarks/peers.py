"""Starts what is measured: servers, the peers before them, and the gateway as a user would start it."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.demo.mysql_servers import APP, MONITOR, MysqlGroup, MysqlRouter, mysql_group
from gateway.demo.servers import Haproxy, MemcachedServer, Server, Twemproxy, start_all
from gateway.demo.stack import Process, Stack

DIRECT: Final = "direct"
HAPROXY: Final = "HAProxy, TCP"
MYSQL_ROUTER: Final = "MySQL Router"
TWEMPROXY: Final = "twemproxy"
GATEWAY: Final = "gateway"
GATEWAY_WITH_FEW: Final = "gateway, 8 connections"
GATEWAY_WITH_REPLICA: Final = "gateway, replica"

Wanted = Callable[[str], bool]
"""Whether a peer of this name is to be measured."""


@dataclass(frozen=True)
class Peer:
    """Something that answers requests, at an address. `process` is the proxy, None where there is none (direct)."""

    name: str
    host: str
    port: int
    process: Process | None

    def cpu_seconds(self) -> float:
        """CPU time of the proxy and its children so far; 0 without a proxy."""
        return 0.0 if self.process is None else tree_cpu_seconds(self.process.pid)


def tree_cpu_seconds(root: int) -> float:
    """User and system time of a process, its running descendants, and all of them that ended; see proc(5), stat."""
    ticks = 0
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        with contextlib.suppress(FileNotFoundError):  # it ended just now: its parent's time has it
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11:15])
            waiting += _children(pid)
    return ticks / os.sysconf("SC_CLK_TCK")


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


class GatewayProcess(Server):
    """`python -m gateway run -c gateway.toml`, with one listener on `port`."""

    label = "gateway"

    def __init__(self, stack: Stack, name: str, protocol: str, group: str) -> None:
        super().__init__(stack, name)
        self._protocol = protocol
        self._group = group
        self._admin_port = stack.port()

    @property
    def folder(self) -> Path:
        """Where its configuration is, its rules (one file: none) and its data."""
        return self.stack.folder / self.name

    def prepare(self) -> None:
        (self.folder / "rules").mkdir(parents=True, exist_ok=True)
        (self.folder / "gateway.toml").write_text(
            f'[gateway]\nname = "bench"\ndata_dir = "var"\nrules = "rules"\ntoken_key = "not a secret: a benchmark"\n\n'
            f'[admin]\nlisten = "{self.host}:{self._admin_port}"\n\n[log]\nlevel = "warning"\n\n'
            f'[[listener]]\nname = "bench"\nprotocol = "{self._protocol}"\nlisten = "{self.address}"\n'
            f'group = "bench"\n\n[[group]]\nname = "bench"\n{self._group}'
        )

    def command(self) -> list[str]:
        return [sys.executable, "-m", "gateway", "run", "-c", str(self.folder / "gateway.toml")]

    def ready(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=1.0) as connection:
            if self._protocol == "memcached":
                connection.sendall(b"get gateway-ready\r\n")
                return connection.recv(64) == b"END\r\n"
            greeting = connection.recv(64)
            return len(greeting) > 5 and greeting[4] == 10  # protocol version; 255 begins an error
        return False


def sql_group(group: MysqlGroup, connections: int | None = None) -> str:
    """The [[group]] of a gateway before MySQL servers, to each of which it may open so many connections."""
    members = ", ".join(f'{{address = "{server.address}"}}' for server in group.servers)
    return (
        f'engine = "mysql"\nmembers = [{members}]\nprimary = "{group.primary.address}"\n'
        f'monitor = {{user = "{MONITOR.user}", password = "{MONITOR.password}"}}\n'
        f'users = [{{name = "{APP.user}", password = "{APP.password}"}}]\n'
        + (f"pool = {{size = {connections}}}\n" if connections is not None else "")
    )


def memcached_group(primary: Sequence[Server], replica: Sequence[Server] = ()) -> str:
    """The [[group]] of a gateway before one pool of memcached servers, or a pool and its replica pool."""
    pools = {"master": primary, "slave": replica}
    text = 'engine = "memcached"\nprimary = "master"\n'
    text += f"replicas = {['slave'] if replica else []}\n".replace("'", '"')
    for pool, servers in pools.items():
        if servers:
            listed = ", ".join(
                f'{{address = "{server.address}", id = {number}, weight = 50}}'
                for number, server in enumerate(servers, 1)
            )
            text += f"\n[group.pools.{pool}]\nservers = [{listed}]\n"
    return text


def _before(server: Server, proxies: dict[str, Callable[[], Server]], wanted: Wanted) -> list[Peer]:
    """The server itself and the proxies, as far as they are wanted."""
    peers = [Peer(DIRECT, server.host, server.port, None)] if wanted(DIRECT) else []
    for name, make in proxies.items():
        if wanted(name):
            proxy = make()
            proxy.start()
            peers.append(Peer(name, proxy.host, proxy.port, proxy.process))
    return peers


def sql_peers(stack: Stack, replicas: int, wanted: Wanted) -> tuple[Server, list[Peer]]:
    """One MariaDB and the peers before it; the gateway's group has `replicas` replicas beside it."""
    group = mysql_group(stack, "mariadb", replicas=replicas)
    primary = group.primary
    proxies: dict[str, Callable[[], Server]] = {
        HAPROXY: lambda: Haproxy(stack, primary),
        MYSQL_ROUTER: lambda: MysqlRouter(stack, primary),
        GATEWAY: lambda: GatewayProcess(stack, "gateway-sql", "mysql", sql_group(group)),
        GATEWAY_WITH_FEW: lambda: GatewayProcess(stack, "gateway-few", "mysql", sql_group(group, 8)),
    }
    return primary, _before(primary, proxies, wanted)


def memcached_peers(stack: Stack, wanted: Wanted) -> list[Peer]:
    """One memcached and the peers before it. What replicates has servers of its own."""
    server, primary, replica = (MemcachedServer(stack) for _ in range(3))
    start_all([server, primary, replica])
    alone, replicated = memcached_group([server]), memcached_group([primary], [replica])
    proxies: dict[str, Callable[[], Server]] = {
        HAPROXY: lambda: Haproxy(stack, server),
        TWEMPROXY: lambda: Twemproxy(stack, [server]),
        GATEWAY: lambda: GatewayProcess(stack, "gateway-alone", "memcached", alone),
        GATEWAY_WITH_REPLICA: lambda: GatewayProcess(stack, "gateway-replica", "memcached", replicated),
    }
    return _before(server, proxies, wanted)
