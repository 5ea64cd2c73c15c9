"""Runs `gateway run` in front of a MySQL group as a user would, and fails the test if its log shows a fault.

    gateway = gateways(group, settings="pool = {size = 2}")     # started, all members seen
    with gateway.connect() as connection: ...
    gateway.status()["groups"]["orders"]["primary"]

When the test ends the gateway is ended by SIGTERM, which must succeed, and its log is read: a traceback or a line of
level error is a failure of the test, unless the test names what it expects (`gateway.expected`).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import pymysql
import pymysql.connections
import pymysql.cursors
import pytest

from gateway.demo.mysql_servers import APP, MONITOR, Account, MysqlGroup
from gateway.demo.servers import Server
from gateway.demo.stack import Stack

FIRST_LOOKS: Final = 60.0
"""Seconds until a gateway must have seen what it will see soon; on a busy machine that took more than 20."""

Connection: TypeAlias = "pymysql.connections.Connection[Any]"  # not generic at run time


class SqlGateway(Server):
    """A gateway with one MySQL listener "sql" before one group "orders".

    `listener` and `settings` are further lines of TOML of the two, `rules` the text of a rule file, `general` more of
    [gateway], `members` more of each member's table, in the group's order. `users` are accounts, or the TOML of the
    group's users.
    """

    label = "gateway"

    def __init__(
        self,
        stack: Stack,
        group: MysqlGroup,
        *,
        listener: str = "",
        settings: str = "",
        rules: str = "",
        general: str = "",
        members: tuple[str, ...] = (),
        users: tuple[Account, ...] | str = (APP,),
        overseers: tuple[Account, ...] = (),
        development: bool = True,
    ) -> None:
        super().__init__(stack)
        self.group = group
        self.listener = listener
        self.settings = settings
        self.rules = rules
        self.general = general
        self.members = members
        self.users = users
        self.development = development
        self.overseers = overseers  # those of `users` with sessions = "any"
        self.expected: list[str] = []  # parts of log lines of level error that the test provokes
        self._read = 0

    @property
    def folder(self) -> Path:
        return self.stack.folder / self.name

    @property
    def config_file(self) -> Path:
        return self.folder / "gateway.toml"

    @property
    def rule_file(self) -> Path:
        return self.folder / "rules" / "10-test.toml"

    @property
    def data_dir(self) -> Path:
        return self.folder / "var"

    def command(self) -> list[str]:
        mode = ["-X", "dev", "-W", "error"] if self.development else []  # whose allocator needs more memory
        return [sys.executable, *mode, "-m", "gateway", "run", "-c", str(self.config_file)]

    def prepare(self) -> None:
        self.rule_file.parent.mkdir(parents=True, exist_ok=True)
        self.rule_file.write_text(self.rules)
        members = ", ".join(
            f'{{address = "{server.address}"{more and f", {more}"}}}'
            for server, more in itertools.zip_longest(self.group.servers, self.members, fillvalue="")
            if not isinstance(server, str)
        )
        users = self.users
        if not isinstance(users, str):
            listed = ", ".join(
                f'{{name = "{user.user}", password = "{user.password}"'
                + (', sessions = "any"}' if user in self.overseers else "}")
                for user in users
            )
            users = f"[{listed}]"
        self.config_file.write_text(
            f'[gateway]\ndata_dir = "{self.data_dir}"\nrules = "{self.rule_file.parent}"\n{self.general}\n'
            '[log]\nlevel = "debug"\nformat = "json"\n'
            f'[[listener]]\nname = "sql"\nprotocol = "mysql"\nlisten = "{self.address}"\ngroup = "orders"\n'
            f"{self.listener}\n"
            f'[[group]]\nname = "orders"\nengine = "mysql"\nmembers = [{members}]\n'
            f'monitor = {{user = "{MONITOR.user}", password = "{MONITOR.password}"}}\nusers = {users}\n'
            f"{self.settings}\n"
        )

    def ready(self) -> bool:
        """Its status socket answers."""
        with contextlib.suppress(OSError, json.JSONDecodeError):
            self.status()
            return True
        return False

    def status(self) -> dict[str, Any]:
        """The document of `gateway status --json`."""
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(10.0)
            asking.connect(str(self.data_dir / "gateway.sock"))
            with asking.makefile("rb") as answer:
                found: dict[str, Any] = json.loads(answer.read())
        return found

    @property
    def orders(self) -> dict[str, Any]:
        """The group's part of the status."""
        found: dict[str, Any] = self.status()["groups"]["orders"]
        return found

    @property
    def figures(self) -> dict[str, Any]:
        """The listener's part of the status."""
        found: dict[str, Any] = self.status()["listeners"][0]
        return found

    def member(self, server: Server) -> dict[str, Any]:
        """What the status says of one server."""
        return next(member for member in self.orders["members"] if member["name"] == server.address)

    def wait_until(self, holds: Callable[[], bool], what: str, seconds: float = FIRST_LOOKS) -> None:
        """Waits for something that the gateway will see soon."""
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds:g} s: {what}\n{json.dumps(self.orders, indent=1)}")
            time.sleep(0.02)  # the status tells; there is nothing to be woken by

    def wait_serving(self) -> None:
        """Waits until all members serve, replicas within 1 s."""
        self.wait_until(
            lambda: (
                all(
                    member["fault"] is None and (member["role"] == "primary" or (member["lag_ms"] or 0) < 1000)
                    for member in self.orders["members"]
                )
                and self.orders["primary"] is not None
            ),
            "every member serves",
        )

    @contextlib.contextmanager
    def connect(
        self, database: str | None = "shop", account: Account = APP, *, autocommit: bool | None = True, **more: Any
    ) -> Iterator[Connection]:
        """A PyMySQL connection through the gateway."""
        connection = self.open(database, account, autocommit=autocommit, **more)
        try:
            yield connection
        finally:
            with contextlib.suppress(pymysql.Error):  # closed by the test or by the gateway
                connection.close()

    def open(
        self, database: str | None = "shop", account: Account = APP, *, autocommit: bool | None = True, **more: Any
    ) -> Connection:
        # without TLS, unless asked for: PyMySQL would make a TLS context for each connection, of 20 ms
        settings: dict[str, Any] = {"connect_timeout": 20, "read_timeout": 60, "write_timeout": 60, **more}
        settings.setdefault("ssl_disabled", "ssl" not in more)
        return pymysql.connect(
            host=self.host,
            port=self.port,
            user=account.user,
            password=account.password,
            database=database,
            autocommit=autocommit,
            **settings,
        )

    def faults(self) -> list[str]:
        """Lines of the log since the last call that no test should cause."""
        with self.log.open("rb") as log:
            log.seek(self._read)
            text = log.read()
            self._read = log.tell()
        found = []
        for line in text.decode("utf-8", "replace").splitlines():
            wrong = not line.startswith("{") or '"level": "error"' in line or "Traceback" in line
            if wrong and not any(part in line for part in self.expected):
                found.append(line.replace("\\n", "\n"))
        return found

    def memory_bytes(self) -> int:
        """Its resident memory (VmRSS)."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))

    def end(self) -> None:
        """Ends it by SIGTERM and checks how it ended and what it logged."""
        if self.process is None:
            return
        if self.process.running:
            self.process.signal(signal.SIGTERM)
            assert self.process.wait(40.0), "the gateway did not end within 40 s of SIGTERM"
        status = self.process.exit_status()
        faults = self.faults()
        assert not faults, "the gateway's log shows faults:\n" + "\n".join(faults)
        assert status == 0, f"the gateway ended with {status}:\n{self.process.log_tail()}"


def rows(connection: Connection, sql: str, arguments: object = None) -> list[tuple[Any, ...]]:
    """The rows of one statement."""
    with connection.cursor() as cursor:
        cursor.execute(sql, arguments)
        return list(cursor.fetchall())


def value(connection: Connection, sql: str, arguments: object = None) -> Any:
    """The first column of the first row."""
    return rows(connection, sql, arguments)[0][0]


GatewayMaker = Callable[..., SqlGateway]


@pytest.fixture
def gateways(stack: Stack) -> Iterator[GatewayMaker]:
    """Starts gateways before groups; each must end well."""
    started: list[SqlGateway] = []

    def start(group: MysqlGroup, **settings: Any) -> SqlGateway:
        gateway = SqlGateway(stack, group, **settings)
        started.append(gateway)
        gateway.start()
        gateway.wait_serving()
        return gateway

    yield start
    for gateway in started:
        gateway.end()


@pytest.fixture(scope="module")
def shared_gateways(session_stack: Stack) -> Iterator[dict[str, SqlGateway]]:
    """One gateway per group, for all tests of a file that need no settings of their own.

    Not for the whole run: with its servers an idle gateway takes about 5 % of a core here, and starting one 1 s.
    """
    started: dict[str, SqlGateway] = {}
    yield started
    for gateway in started.values():
        gateway.end()


def shared_gateway(
    name: str, group: MysqlGroup, stack: Stack, started: dict[str, SqlGateway], **settings: Any
) -> Iterator[SqlGateway]:
    """For a fixture: a gateway that several tests share; what each test makes it log is checked after that test."""
    if name not in started:
        started[name] = SqlGateway(stack, group, general='drain_timeout = "2s"', **settings)
        started[name].start()
    gateway = started[name]
    gateway.wait_serving()
    yield gateway
    faults = gateway.faults()
    assert not faults, "the gateway's log shows faults:\n" + "\n".join(faults)


@pytest.fixture
def mariadb_gateway(
    mariadb_group: MysqlGroup, session_stack: Stack, shared_gateways: dict[str, SqlGateway]
) -> Iterator[SqlGateway]:
    """A gateway before `mariadb_group`, with the defaults, shared between tests."""
    yield from shared_gateway("mariadb", mariadb_group, session_stack, shared_gateways)


@pytest.fixture
def mysql9_gateway(
    mysql9_group: MysqlGroup, session_stack: Stack, shared_gateways: dict[str, SqlGateway]
) -> Iterator[SqlGateway]:
    """A gateway before `mysql9_group`, with the defaults, shared between tests."""
    yield from shared_gateway("mysql9", mysql9_group, session_stack, shared_gateways)


@pytest.fixture(params=["mariadb", "mysql9"])
def sql_gateway(request: pytest.FixtureRequest) -> SqlGateway:
    """Each of the two in turn."""
    found: SqlGateway = request.getfixturevalue(f"{request.param}_gateway")
    return found


@pytest.fixture(params=["mariadb", "mysql9"])
def sql_group(request: pytest.FixtureRequest) -> MysqlGroup:
    """Each of the two groups in turn, for gateways with settings of their own."""
    found: MysqlGroup = request.getfixturevalue(f"{request.param}_group")
    return found


@pytest.fixture
def small(sql_group: MysqlGroup, session_stack: Stack, shared_gateways: dict[str, SqlGateway]) -> Iterator[SqlGateway]:
    """A gateway with two connections per server."""
    settings = 'pool = {size = 2, acquire_timeout = "500ms"}'
    name = f"small {sql_group.primary.flavor}"
    yield from shared_gateway(name, sql_group, session_stack, shared_gateways, settings=settings)


def busy(gateway: SqlGateway) -> None:
    """Other clients use every connection to the primary of a `small` gateway, and leave."""
    with contextlib.ExitStack() as clients:
        others = [clients.enter_context(gateway.connect()) for _ in range(2)]
        for other in others:
            other.begin()
            assert value(other, "SELECT @@server_id") == 1
        for other in others:
            other.rollback()
