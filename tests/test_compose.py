"""The compose stack, checked without Docker: its files fit together, and its parts work with servers of this machine.

What is not checked here is what only Docker can: that the images build and start. docker-compose.yml keeps to the
little YAML that `read_compose` understands, and whatever it does not understand is an error.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pymysql
import pytest
from pymemcache.client.base import Client as MemcacheClient

from gateway.cli.main import main
from gateway.config import Config, MemcachedGroup, MysqlGroup, load_config
from gateway.demo.mysql_servers import Account, MariadbServer
from gateway.demo.mysql_servers import MysqlGroup as Group
from gateway.demo.servers import MemcachedServer, Server, start_all
from gateway.demo.stack import Stack

ROOT = Path(__file__).parent.parent
PASSWORDS = ("GATEWAY_MONITOR_PASSWORD", "APP_PASSWORD", "REPORT_PASSWORD")


# ---------------------------------------------------------------- reading


def read_compose(text: str) -> Any:
    """Mappings by indentation, lists of "- " items, plain and quoted scalars, and lists written as JSON."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    value, left = _block(lines, 0)
    assert not left, f"not understood: {left[0]!r}"
    return value


def _block(lines: list[str], indent: int) -> tuple[Any, list[str]]:
    if lines[0].startswith(" " * indent + "- "):
        items = []
        while lines and lines[0].startswith(" " * indent + "- "):
            items.append(_scalar(lines[0][indent + 2 :]))
            lines = lines[1:]
        return items, lines
    mapping: dict[str, Any] = {}
    while lines and (found := re.fullmatch(rf" {{{indent}}}([\w.-]+):(?: (.+))?", lines[0])):
        key, scalar = found.groups()
        assert key not in mapping, f"twice: {lines[0]!r}"
        lines = lines[1:]
        if scalar is not None:
            mapping[key] = _scalar(scalar)
        else:
            mapping[key], lines = _block(lines, indent + 2)
    assert mapping, f"not understood: {lines[0]!r}"
    return mapping, lines


def _scalar(text: str) -> Any:
    if text[0] in '["':
        return json.loads(text)
    assert re.fullmatch(r"[\w./-][\w./:-]*", text), f"not understood: {text!r}"
    assert text.lower() not in ("yes", "no", "on", "off", "true", "false", "null"), f"quote it: {text!r}"
    return int(text) if text.isdecimal() else text


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    compose = read_compose((ROOT / "docker-compose.yml").read_text())
    return cast("dict[str, Any]", compose["services"])


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """deploy/gateway.toml with the rules beside it, as in the image."""
    shutil.copy(ROOT / "deploy/gateway.toml", tmp_path)
    shutil.copytree(ROOT / "rules", tmp_path / "rules")
    for name in PASSWORDS:
        monkeypatch.setenv(name, "secret")
    return load_config(tmp_path / "gateway.toml")


def environment(service: dict[str, Any]) -> dict[str, str]:
    """A service's environment where nobody has set a variable: ${NAME:-default} is the default."""
    return {
        name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value)) for name, value in service.get("environment", {}).items()
    }


# ---------------------------------------------------------------- the files fit together


def test_what_the_reader_does_not_understand_is_an_error() -> None:
    for text in ("a: &anchor\n  b: c", "a: {b: c}", "a: yes", "a:\n    b: c", "a: b\na: c", "a: 'b'"):
        with pytest.raises(AssertionError):
            read_compose(text)


def test_every_server_of_the_configuration_is_a_service(services: dict[str, Any], config: Config) -> None:
    servers: set[str] = set()
    for group in config.groups:
        if isinstance(group, MysqlGroup):
            servers |= {str(member.address) for member in group.members}
        elif isinstance(group, MemcachedGroup):
            servers |= {str(server.address) for pool in group.pools.values() for server in pool.servers}
    ports = {"mariadb": 3306, "memcached": 11211}
    offered = {
        f"{name}:{ports[service['image'].partition(':')[0]]}"
        for name, service in services.items()
        if "image" in service
    }
    assert servers == offered
    assert set(services) == {"gateway"} | {server.partition(":")[0] for server in servers}


def test_the_gateway_waits_for_its_servers_and_publishes_its_listeners(
    services: dict[str, Any], config: Config
) -> None:
    gateway = services["gateway"]
    assert set(gateway["depends_on"]) == set(services) - {"gateway"}
    listening = {listener.listen.port for listener in config.listeners}
    assert {int(port.rpartition(":")[2]) for port in gateway["ports"]} == listening
    assert all(port.startswith("127.0.0.1:") for port in gateway["ports"])
    exposed = re.search(r"^EXPOSE (.+)$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)
    assert exposed is not None
    assert {int(port) for port in exposed[1].split()} == listening


def test_every_secret_of_the_configuration_is_in_the_gateways_environment(services: dict[str, Any]) -> None:
    wanted = set(re.findall(r'env = "(\w+)"', (ROOT / "deploy/gateway.toml").read_text()))
    assert wanted == set(environment(services["gateway"])) == set(PASSWORDS)


def test_services_agree_on_passwords(services: dict[str, Any]) -> None:
    values: dict[str, set[str]] = {}
    for service in services.values():
        for name, value in environment(service).items():
            values.setdefault(name, set()).add(value)
    assert {name: len(found) for name, found in values.items() if len(found) > 1} == {}


def test_gateway_check_passes(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "-c", str(config.document.file)]) == 0
    assert "5 rules in 2 files, 12 tests passed" in capsys.readouterr().out


def test_what_is_mounted_and_copied_is_there(services: dict[str, Any]) -> None:
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = ROOT / volume.partition(":")[0]
            assert source.exists(), source
            if source.suffix == ".sh":  # what is not executable is sourced into the image's own script
                assert os.access(source, os.X_OK), source
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [words.split()[:-1] for words in re.findall(r"^COPY (.+)$", dockerfile, re.MULTILINE)]
    assert copied
    for source in (source for sources in copied for source in sources):
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in kept, f"{source} is in .dockerignore"


def test_the_image_runs_as_nobody_special_and_asks_for_its_own_health() -> None:
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    assert re.search(r"^USER gateway$", dockerfile, re.MULTILINE)
    assert 'CMD ["gateway", "status", "--json", "-c", "/etc/gateway/gateway.toml"]' in dockerfile


# ---------------------------------------------------------------- its parts, on servers of this machine


class BareMariadb(MariadbServer):
    """A MariaDB with the options of a service, and nothing in it but root."""

    def __init__(self, stack: Stack, name: str, options: list[str]) -> None:
        super().__init__(stack, name, options=options)  # later options win

    def template_statements(self) -> list[str]:
        return ["SELECT 1"]


class ComposedGateway(Server):
    """`gateway run` with deploy/gateway.toml, its addresses replaced."""

    label = "gateway"

    def __init__(self, stack: Stack, addresses: dict[str, str], passwords: dict[str, str]) -> None:
        super().__init__(stack, "gateway")
        self.cache_port = stack.port()
        self.addresses = addresses
        self.passwords = passwords
        self.config_file = stack.folder / "etc/gateway.toml"

    def prepare(self) -> None:
        text = (ROOT / "deploy/gateway.toml").read_text()
        places = {
            **self.addresses,
            "0.0.0.0:6033": self.address,
            "0.0.0.0:11311": f"{self.host}:{self.cache_port}",
            "/var/lib/gateway": str(self.stack.folder / "var"),
        }
        for name, place in places.items():
            assert f'"{name}"' in text
            text = text.replace(f'"{name}"', f'"{place}"')
        self.config_file.parent.mkdir(exist_ok=True)
        self.config_file.write_text(text)
        shutil.copytree(ROOT / "rules", self.config_file.parent / "rules", dirs_exist_ok=True)

    def command(self) -> list[str]:
        return [sys.executable, "-m", "gateway", "run", "-c", str(self.config_file)]

    def environment(self) -> dict[str, str]:
        return self.passwords

    def ready(self) -> bool:
        """As the image's health check has it."""
        status = [sys.executable, "-m", "gateway", "status", "--json", "-c", str(self.config_file)]
        return subprocess.run(status, capture_output=True).returncode == 0


def run_script(service: dict[str, Any], server: MariadbServer, **more: str) -> None:
    """Runs what the image would from its /docker-entrypoint-initdb.d; root has no password here."""
    (script,) = [volume.partition(":")[0] for volume in service["volumes"]]
    home = server.stack.folder / f"{server.name}.home"
    home.mkdir()
    (home / ".my.cnf").write_text(f"[client]\nsocket={server.socket}\n")  # the image's client finds its server so, too
    passwords = {**environment(service), "MARIADB_ROOT_PASSWORD": ""}
    env = {**os.environ, **passwords, **more, "HOME": str(home)}
    done = subprocess.run([str(ROOT / script)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def composed(services: dict[str, Any], stack: Stack) -> Iterator[tuple[ComposedGateway, Group]]:
    """The stack with the options, the scripts, the passwords and the configuration of its files."""
    databases = {
        name: BareMariadb(stack, name, service["command"])
        for name, service in services.items()
        if service.get("image", "").startswith("mariadb")
    }
    caches = {name: MemcachedServer(stack, name) for name in services if name.startswith("cache-")}
    start_all([*databases.values(), *caches.values()])
    primary = databases["primary"]
    run_script(services["primary"], primary)
    replicas = [server for name, server in databases.items() if name != "primary"]
    for replica in replicas:
        run_script(services[replica.name], replica, PRIMARY_HOST=primary.host, PRIMARY_PORT=str(primary.port))
        replica.restart()
    group = Group(primary, replicas)
    for replica in replicas:
        group.wait_replicating(replica)
    group.wait_caught_up()
    addresses = {f"{name}:3306": server.address for name, server in databases.items()}
    addresses |= {f"{name}:11211": server.address for name, server in caches.items()}
    gateway = ComposedGateway(stack, addresses, environment(services["gateway"]))
    gateway.start()
    yield gateway, group
    assert gateway.process is not None
    gateway.process.signal(signal.SIGTERM)
    assert gateway.process.wait(45.0)
    assert gateway.process.exit_status() == 0, gateway.process.log_tail()


@pytest.mark.servers
def test_scripts_options_and_configuration_make_a_working_stack(composed: tuple[ComposedGateway, Group]) -> None:
    gateway, group = composed
    app = Account("app", gateway.passwords["APP_PASSWORD"])
    connection = pymysql.connect(
        host=gateway.host, port=gateway.port, user=app.user, password=app.password, database="shop", autocommit=True
    )
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE accounts (customer INT PRIMARY KEY, balance INT, written_on INT)")
        cursor.execute("INSERT INTO accounts VALUES (1, 100, @@server_id)")
        cursor.execute("SELECT customer, written_on FROM accounts")
        assert cursor.fetchall() == ((1, 1),)
        served = set()
        for _ in range(20):
            cursor.execute("SELECT @@server_id")
            served |= {row[0] for row in cursor.fetchall()}
        assert served <= {2, 3}
        cursor.execute("SELECT balance, @@server_id FROM accounts")
        assert cursor.fetchall() == ((100, 1),)  # the rule "balances are always exact"
        with pytest.raises(pymysql.MySQLError, match="WHERE"):
            cursor.execute("DELETE FROM accounts")
    group.wait_caught_up()
    assert [server.query("SELECT COUNT(*) FROM shop.accounts") for server in group.servers] == [[(1,)]] * 3
    assert all(replica.query("SELECT @@read_only")[0][0] == 1 for replica in group.replicas)
    cache = MemcacheClient((gateway.host, gateway.cache_port), timeout=10)
    assert cache.set("+profile", b"value", noreply=False)
    assert cache.get("+profile") == b"value"
    cache.close()
