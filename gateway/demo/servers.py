"""Starts real memcached and Redis servers, and the proxies twemproxy and HAProxy, on loopback.

Each server has its port for its whole life: stopped and started again it comes back to the same address. MySQL and
MariaDB are in mysql_servers.py; a network that delays, holds and cuts is in relay.py.

    with Stack() as stack:
        server = MemcachedServer(stack)
        server.start()
        server.pause()          # SIGSTOP: connected, silent
        server.resume()
        server.kill()           # SIGKILL
        server.start()
"""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final, Literal

from gateway.demo import programs
from gateway.demo.stack import LOOPBACK, Process, ServerFailedError, Stack

START_TIMEOUT: Final = 60.0
"""Seconds until a server must answer. MySQL takes two here; a busy machine may take many times that."""

BIND_ATTEMPTS: Final = 5


STOP_SECONDS: Final = 5.0  # for SIGSTOP to reach every thread of a process


class Server(ABC):
    """One server process with its fixed address; `label` is what its log and its messages call it."""

    label: ClassVar[str] = "server"

    def __init__(self, stack: Stack, name: str | None = None, *, host: str = LOOPBACK) -> None:
        self.stack = stack
        self.host = host
        self.port = stack.port()
        self.name = name or f"{self.label}-{self.port}"
        self.process: Process | None = None
        self._served = False

    @abstractmethod
    def command(self) -> list[str]:
        """The command line; called before each start."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether it answers a request, not just accepts; called about every 10 ms during start."""

    def prepare(self) -> None:  # noqa: B027 - most servers need nothing
        """Writes what the command line names; called before each start."""

    def environment(self) -> dict[str, str]:
        """What it needs in its environment beside the caller's."""
        return {}

    @property
    def address(self) -> str:
        """As the configuration has it: "127.0.0.1:11211"."""
        return f"{self.host}:{self.port}"

    @property
    def log(self) -> Path:
        """Its output, through all its starts."""
        return self.stack.folder / f"{self.name}.log"

    @property
    def running(self) -> bool:
        """True between start and the process's end; a paused one runs."""
        return self.process is not None and self.process.running

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self.process is None:
            raise ServerFailedError(f"{self.name} was not started")
        return self.process.pid

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Starts it without waiting; several that are launched come up together."""
        if self.running:
            raise ServerFailedError(f"{self.name} runs already")
        self.prepare()
        self.process = self.stack.spawn(self.command(), name=self.name, env=self.environment(), log=self.log)

    def wait_ready(self, timeout: float = START_TIMEOUT) -> None:
        """Waits until it answers. When its port was taken by somebody else before its first start, it gets another."""
        deadline = time.monotonic() + timeout
        attempts = 1
        while True:
            if self.process is None:
                raise ServerFailedError(f"{self.name} was not started")
            if self.process.wait(0.01):
                if self._served or attempts == BIND_ATTEMPTS or not self._port_was_taken():
                    raise ServerFailedError(
                        f"{self.name} ended with {self.process.exit_status()}:\n{self.process.log_tail()}"
                    )
                attempts += 1
                self.port = self.stack.port()
                self.launch()
            elif self.ready():
                self._served = True
                return
            elif time.monotonic() > deadline:
                raise ServerFailedError(f"{self.name} does not answer after {timeout} s:\n{self.process.log_tail()}")

    def _port_was_taken(self) -> bool:
        assert self.process is not None
        text = self.process.log_tail().lower()
        return "in use" in text or "bind" in text

    def stop(self, timeout: float = 20.0) -> None:
        """Ends it as an administrator would (SIGTERM)."""
        if self.process is not None:
            self.process.end(timeout)

    def kill(self) -> None:
        """Ends it as a crash would (SIGKILL)."""
        if self.process is not None:
            self.process.kill()

    def restart(self) -> None:
        """Ends it and starts it again at the same address."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Stops it in its tracks (SIGSTOP): the kernel accepts and keeps bytes for it, it answers nothing."""
        assert self.process is not None
        self.process.signal(signal.SIGSTOP)
        # The signal stops the threads one by one, and one that still runs may answer what comes next.
        deadline = time.monotonic() + STOP_SECONDS
        while not _is_stopped(self.process.pid):
            if time.monotonic() > deadline:
                raise ServerFailedError(f"{self.name} was not stopped by SIGSTOP within {STOP_SECONDS:g} s")
            time.sleep(0.001)

    def resume(self) -> None:
        """Lets it go on (SIGCONT)."""
        assert self.process is not None
        self.process.signal(signal.SIGCONT)


def _is_stopped(pid: int) -> bool:
    """Whether every thread of a process is stopped (proc(5): the state follows the name in brackets)."""
    stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def start_all(servers: Iterable[Server]) -> None:
    """Launches all, then waits for all."""
    together = list(servers)
    for server in together:
        server.launch()
    for server in together:
        server.wait_ready()


def _answers(address: tuple[str, int], request: bytes, answer: bytes) -> bool:
    """Whether `address` answers `request` with bytes that begin with `answer`."""
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=1.0) as connection:
        connection.sendall(request)
        return connection.recv(64).startswith(answer)
    return False


class MemcachedServer(Server):
    """memcached, Debian's own or the newest; one thread, 64 MiB."""

    label = "memcached"

    def __init__(
        self,
        stack: Stack,
        name: str | None = None,
        *,
        version: Literal["debian", "newest"] = "debian",
        options: Sequence[str] = (),
    ) -> None:
        super().__init__(stack, name)
        self.program = programs.memcached() if version == "debian" else programs.newest_memcached()
        self.options = list(options)

    def command(self) -> list[str]:
        place = ["-l", self.host, "-p", str(self.port), "-U", "0"]
        return [*self.program.command, "-u", "root", "-t", "1", "-m", "64", "-c", "4096", *place, *self.options]

    def ready(self) -> bool:
        return _answers((self.host, self.port), b"version\r\n", b"VERSION ")


class RedisServer(Server):
    """Redis without persistence; `replica_of` makes it follow another."""

    label = "redis"

    def __init__(self, stack: Stack, name: str | None = None, *, replica_of: RedisServer | None = None) -> None:
        super().__init__(stack, name)
        self.program = programs.redis_server()
        self.replica_of = replica_of

    def command(self) -> list[str]:
        command = [*self.program.command, "--bind", self.host, "--port", str(self.port), "--save", ""]
        command += ["--appendonly", "no", "--dir", str(self.stack.folder), "--repl-diskless-sync-delay", "0"]
        if self.replica_of is not None:
            command += ["--replicaof", self.replica_of.host, str(self.replica_of.port)]
        return command

    def ready(self) -> bool:
        return _answers((self.host, self.port), b"PING\r\n", b"+PONG")


class Twemproxy(Server):
    """twemproxy before memcached servers, with ketama and FNV1a-64, its default and the gateway's."""

    label = "twemproxy"

    def __init__(self, stack: Stack, servers: Sequence[Server], name: str | None = None) -> None:
        super().__init__(stack, name)
        self.program = programs.nutcracker()
        self.servers = list(servers)
        self._statistics_port = stack.port()

    @property
    def configuration(self) -> Path:
        """The file that it reads."""
        return self.stack.folder / f"{self.name}.yml"

    def prepare(self) -> None:
        lines = ["pool:", f"  listen: {self.address}", "  hash: fnv1a_64", "  distribution: ketama"]
        lines += ["  preconnect: true", "  auto_eject_hosts: false", "  servers:"]
        lines += [f"    - {server.address}:1" for server in self.servers]
        self.configuration.write_text("\n".join(lines) + "\n")

    def command(self) -> list[str]:
        place = ["-a", self.host, "-s", str(self._statistics_port), "-p", str(self.stack.folder / f"{self.name}.pid")]
        return [*self.program.command, "-c", str(self.configuration), *place]

    def ready(self) -> bool:
        # it has no version command before 0.5, and a get is answered by the server behind it
        return _answers((self.host, self.port), b"get gateway-ready\r\n", b"END")


class Haproxy(Server):
    """HAProxy in TCP mode before one server, with one thread; `options` are more of its `server` line."""

    label = "haproxy"

    def __init__(
        self, stack: Stack, server: Server, name: str | None = None, *, threads: int = 1, options: str = ""
    ) -> None:
        super().__init__(stack, name)
        self.program = programs.haproxy()
        self.server = server
        self.threads = threads
        self.options = options

    @property
    def configuration(self) -> Path:
        """The file that it reads."""
        return self.stack.folder / f"{self.name}.cfg"

    def prepare(self) -> None:
        self.configuration.write_text(
            f"global\n  maxconn 4096\n  nbthread {self.threads}\n"
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"
            f"listen pool\n  bind {self.address}\n  server only {self.server.address} {self.options}\n"
        )

    def command(self) -> list[str]:
        return [*self.program.command, "-db", "-f", str(self.configuration)]

    def ready(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=1.0):
            return True
        return False


MemcachedPools = dict[str, list[MemcachedServer]]


def memcached_group(
    stack: Stack, pools: Mapping[str, int], *, version: Literal["debian", "newest"] = "debian"
) -> MemcachedPools:
    """Starts the servers of a memcached group, say {"master": 2, "slave": 3}; returns them by pool."""
    group = {
        pool: [MemcachedServer(stack, f"{pool}-{number}", version=version) for number in range(1, count + 1)]
        for pool, count in pools.items()
    }
    start_all(server for servers in group.values() for server in servers)
    return group
