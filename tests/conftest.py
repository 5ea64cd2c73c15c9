"""Fixtures that give tests real servers, and what happens where a server is missing: a skip here, an error in CI.

A test that takes one of these fixtures gets the mark `servers` by that.

| fixture | what |
| --- | --- |
| stack | a stack of the test's own; what it starts ends with the test |
| mariadb_group, mysql9_group | a primary with two replicas behind relays, shared, whole again and with an empty database `shop` for each test |
| gateways, mariadb_gateway, mysql9_gateway, sql_gateway, small | `gateway run` before such a group: see gateways.py |
| backend, user | a gateway with `users = "backend"`, an account b_user: see backend_accounts.py |
| tls_group, authority, certificate | servers with TLS, who signs, the gateway's certificate: see tls_gateways.py |
| memcached_pools | fresh pools {"master": 2 servers, "slave": 3 servers} |
| memcached_servers | two fresh servers, Debian's own |
| memcached_in_namespace | a memcached behind a network that can be cut; needs root |
"""  # noqa: E501 - a table's row

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator
from typing import Any, NoReturn

import pytest
from backend_accounts import backend, user  # noqa: F401
from gateways import (  # noqa: F401
    gateways,
    mariadb_gateway,
    mysql9_gateway,
    shared_gateways,
    small,
    sql_gateway,
    sql_group,
)
from hypothesis import HealthCheck, settings
from netns import NamespacedMemcached, NamespaceUnavailableError
from tls_gateways import authority, certificate, mariadb_tls, module_stack, tls_group  # noqa: F401

from gateway.demo.mysql_servers import MysqlGroup, mysql_group
from gateway.demo.programs import ServerMissingError
from gateway.demo.servers import MemcachedPools, MemcachedServer, memcached_group, start_all
from gateway.demo.stack import Stack

SERVER_FIXTURES = frozenset(
    {"stack", "session_stack", "mariadb_group", "mysql9_group", "memcached_pools", "memcached_servers"}
    | {"memcached_in_namespace", "sql_gateway", "sql_group", "backend", "tls_group"}
)

IN_CI = bool(os.environ.get("CI"))

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # the tests start hundreds of gateways: each would compile anew

# No test fails because the machine is busy.
settings.register_profile("gateway", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gateway")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what uses a real server, before `-m` selects by marks; files with slow tests begin, lest they end alone."""
    for item in items:
        if SERVER_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.servers)
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Spares every later garbage collection the six thousand tests, which stay anyway: it took 0.1 s, and hundreds of
    tests ask for one to see what was left open."""
    gc.collect()
    gc.freeze()


def _missing(error: BaseException) -> BaseException | None:
    """The one missing server that an exception is about; trio's nurseries wrap it in groups."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, (ServerMissingError, NamespaceUnavailableError)) else None


def _skip_or_fail(error: BaseException) -> NoReturn:
    missing = _missing(error)
    if missing is None or IN_CI:
        raise error
    pytest.skip(str(missing))


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup() -> Generator[None, Any, Any]:
    """A server that a fixture does not find."""
    try:
        return (yield)
    except (ServerMissingError, NamespaceUnavailableError) as error:
        _skip_or_fail(error)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    """A server that a test itself, or a fixture under trio, does not find."""
    try:
        return (yield)
    except (ServerMissingError, NamespaceUnavailableError, ExceptionGroup) as error:
        _skip_or_fail(error)


@pytest.fixture
def stack() -> Iterator[Stack]:
    with Stack() as own:
        yield own


@pytest.fixture(scope="session")
def session_stack() -> Iterator[Stack]:
    with Stack() as shared:
        yield shared


@pytest.fixture(scope="session")
def shared_mariadb_group(session_stack: Stack) -> MysqlGroup:
    return mysql_group(session_stack, "mariadb", replicas=2, relayed=True)


@pytest.fixture(scope="session")
def shared_mysql9_group(session_stack: Stack) -> MysqlGroup:
    return mysql_group(session_stack, "mysql", replicas=2, relayed=True)


@pytest.fixture
def mariadb_group(shared_mariadb_group: MysqlGroup) -> MysqlGroup:
    shared_mariadb_group.make_whole()
    return shared_mariadb_group


@pytest.fixture
def mysql9_group(shared_mysql9_group: MysqlGroup) -> MysqlGroup:
    shared_mysql9_group.make_whole()
    return shared_mysql9_group


@pytest.fixture
def memcached_pools(stack: Stack) -> MemcachedPools:
    return memcached_group(stack, {"master": 2, "slave": 3})


@pytest.fixture
def memcached_servers(stack: Stack) -> list[MemcachedServer]:
    servers = [MemcachedServer(stack), MemcachedServer(stack)]
    start_all(servers)
    return servers


@pytest.fixture
def memcached_in_namespace(stack: Stack) -> NamespacedMemcached:
    server = NamespacedMemcached(stack)
    server.start()
    return server
