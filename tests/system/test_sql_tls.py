"""TLS on both sides, with other people's clients and real servers: who gets in, what is carried, what goes wrong."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest
from certificates import Authority, Certificate
from tls_gateways import TlsGateway, TlsGroup, mariadb_with_tls, mysql_with_tls

from gateway.demo.mysql_servers import MysqlGroup
from gateway.demo.stack import Stack

pytestmark = pytest.mark.servers

SECONDS: Final = 30.0


@pytest.fixture(scope="module")
def module_stack() -> Iterator[Stack]:
    with Stack() as own:
        yield own


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Certificate:
    return authority.issue("gateway", "127.0.0.1", "localhost")


@pytest.fixture(scope="module")
def mariadb_tls(module_stack: Stack, authority: Authority) -> TlsGroup:
    return mariadb_with_tls(module_stack, authority)


@pytest.fixture(params=["mariadb", "mysql9"])
def tls_group(request: pytest.FixtureRequest) -> TlsGroup:
    """Each of the two in turn."""
    if request.param == "mysql9":
        shared: MysqlGroup = request.getfixturevalue("mysql9_group")
        return mysql_with_tls(shared)
    found: TlsGroup = request.getfixturevalue("mariadb_tls")
    found.group.make_whole()
    return found


@pytest.fixture(scope="module")
def module_gateways() -> Iterator[dict[str, TlsGateway]]:
    started: dict[str, TlsGateway] = {}
    yield started
    for gateway in started.values():
        gateway.end()


@pytest.fixture
def sql_gateway(
    tls_group: TlsGroup,
    module_stack: Stack,
    authority: Authority,
    certificate: Certificate,
    module_gateways: dict[str, TlsGateway],
) -> Iterator[TlsGateway]:
    """A gateway with the defaults and TLS on both sides, shared by the tests of this module."""
    flavor = tls_group.group.primary.flavor
    if flavor not in module_gateways:
        module_gateways[flavor] = TlsGateway(module_stack, tls_group, authority, certificate)
        module_gateways[flavor].start()
    gateway = module_gateways[flavor]
    gateway.wait_serving()
    yield gateway
    faults = gateway.faults()
    assert not faults, "the gateway's log shows faults:\n" + "\n".join(faults)


TlsGatewayMaker = Callable[..., TlsGateway]


@pytest.fixture
def tls_gateways(
    stack: Stack, mariadb_tls: TlsGroup, authority: Authority, certificate: Certificate
) -> Iterator[TlsGatewayMaker]:
    """Starts gateways with settings of their own before MariaDB."""
    mariadb_tls.group.make_whole()
    started: list[TlsGateway] = []

    def start(**settings: Any) -> TlsGateway:
        gateway = TlsGateway(stack, mariadb_tls, authority, certificate, **settings)
        started.append(gateway)
        gateway.start()
        gateway.wait_serving()
        return gateway

    yield start
    for gateway in started:
        gateway.end()


# ---------------------------------------------------------------- other tests, with TLS


def _system_tests(name: str) -> ModuleType:
    path = Path(__file__).parent / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_with_tls", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_clients = _system_tests("test_sql_clients")
test_pymysql = _clients.test_pymysql_reads_at_replicas_and_writes_at_the_primary
test_the_small_commands = _clients.test_the_small_commands
test_several_results = _clients.test_several_statements_and_several_results
test_a_failed_transaction_goes_on = _clients.test_a_transaction_begun_in_a_text_that_fails_goes_on
test_who_may_not_come_in = _clients.test_who_may_not_come_in_is_told_as_the_server_tells_it
