"""One application through six clients: what it is told through the gateway equals what a server tells it, to the byte.

Clients that are not on this machine, or not in the environment that `make suites` makes, are skipped. The big result
has BIG_RESULT_ROWS rows, which `make suites` sets to a million.
"""

from __future__ import annotations

import difflib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
from gateways import SqlGateway
from sources import default_folder

from gateway.demo import programs
from gateway.demo.mysql_servers import APP, Flavor
from gateway.demo.servers import Server

pytestmark = pytest.mark.servers

CLIENTS: Final = Path(__file__).parent.parent / "suites" / "clients"
ROWS: Final = int(os.environ.get("BIG_RESULT_ROWS", "5000"))
SECONDS: Final = 600.0


@dataclass(frozen=True)
class Client:
    """A command that is given what it needs to connect, and its input."""

    command: list[str]
    arguments: Callable[[Server], list[str]]
    environment: dict[str, str] = field(default_factory=dict)
    script: Path | None = None


def in_order(server: Server) -> list[str]:
    return [server.host, str(server.port), APP.user, APP.password, "shop", str(ROWS)]


def as_options(server: Server) -> list[str]:
    place = [f"--host={server.host}", f"--port={server.port}", "--protocol=tcp"]
    return [*place, f"--user={APP.user}", f"--password={APP.password}", "shop"]


COMMAND_LINE: Final = [
    "--no-defaults",
    "--default-character-set=utf8mb4",
    "--force",
    "-vv",
    "--show-warnings",
    "--table",
    "--column-type-info",
    "--binary-as-hex",
]


def by_python(library: str) -> Client:
    python = sys.executable
    if library == "MySQLdb":
        python = str(default_folder() / "venv/bin/python")
        if not Path(python).exists():
            pytest.skip("mysqlclient is compiled: `make suites` installs it")
    return Client([python, str(CLIENTS / "dbapi_application.py"), library], in_order, {"PYTHONWARNINGS": "ignore"})


def by_node() -> Client:
    modules = default_folder() / "node_modules"
    node = shutil.which("node")
    if node is None or not (modules / "mysql2").is_dir():
        pytest.skip("npm's mysql2 is not here: `make suites` installs it")
    return Client([node, str(CLIENTS / "mysql2_application.js")], in_order, {"NODE_PATH": str(modules)})


def client(name: str, flavor: Flavor) -> Client:
    if name == "mysql2":
        return by_node()
    if name == "mariadb":
        program = programs.debian("mariadb", "mariadb-client")
        return Client([*program.command, *COMMAND_LINE], as_options, script=CLIENTS / "command_line.sql")
    if name == "mysql":
        if flavor != "mysql":
            pytest.skip("the client has no mysql_native_password")
        program = programs.unstable("bin/mysql", "mysql-client")
        options = [*COMMAND_LINE, "--get-server-public-key", "--ssl-mode=DISABLED"]
        return Client([*program.command, *options], as_options, script=CLIENTS / "command_line.sql")
    return by_python(name)


def transcript(client: Client, server: Server) -> list[str]:
    """What the application wrote down at this server."""
    done = subprocess.run(
        [*client.command, *client.arguments(server)],
        input=client.script.read_bytes() if client.script is not None else b"",
        capture_output=True,
        env={**os.environ, **client.environment},
        timeout=SECONDS,
    )
    text = (done.stdout + done.stderr).decode("utf-8", "backslashreplace")
    assert "Traceback" not in text, text[-5000:]
    assert client.script is not None or done.returncode == 0, text[-5000:]
    return text.splitlines()


@pytest.mark.parametrize("name", ["pymysql", "MySQLdb", "connector", "mysql2", "mariadb", "mysql"])
def test_a_client_is_told_the_same_bytes_as_by_a_server(name: str, sql_gateway: SqlGateway) -> None:
    group = sql_gateway.group
    chosen = client(name, group.primary.flavor)
    with group.primary.connect():
        pass  # a first log-in by caching_sha2_password needs RSA, which Connector/Python lacks, or TLS
    direct = transcript(chosen, group.primary)
    assert len(direct) > 50
    group.make_whole()
    before = sum(member["reads"] for member in sql_gateway.orders["members"] if member["role"] == "replica")
    through = transcript(chosen, sql_gateway)
    reads = sum(member["reads"] for member in sql_gateway.orders["members"] if member["role"] == "replica") - before
    assert through == direct, "\n".join(difflib.unified_diff(direct, through, "direct", "through", n=2, lineterm=""))
    assert reads > 0  # it was split
