"""The benchmark configures the gateway as its users do, and counts the CPU time of all its processes."""

from __future__ import annotations

import pytest
from peers import GatewayProcess, memcached_group, sql_group, tree_cpu_seconds

from gateway.config import read_config
from gateway.demo.mysql_servers import MariadbServer, MysqlGroup
from gateway.demo.servers import MemcachedServer
from gateway.demo.stack import Stack

pytestmark = pytest.mark.servers


def problems(gateway: GatewayProcess) -> list[str]:
    gateway.prepare()
    _, found = read_config(gateway.folder / "gateway.toml")
    return [str(problem) for problem in found]


@pytest.mark.parametrize("replicas", [0, 1])
def test_the_configuration_before_memcached_is_valid(stack: Stack, replicas: int) -> None:
    group = memcached_group([MemcachedServer(stack)], [MemcachedServer(stack) for _ in range(replicas)])
    assert problems(GatewayProcess(stack, "gateway", "memcached", group)) == []


@pytest.mark.parametrize("replicas", [0, 1])
def test_the_configuration_before_mysql_is_valid(stack: Stack, replicas: int) -> None:
    servers = [MariadbServer(stack, server_id=number) for number in range(1, 2 + replicas)]
    group = sql_group(MysqlGroup(servers[0], servers[1:]))
    assert problems(GatewayProcess(stack, "gateway", "mysql", group)) == []


def test_the_time_of_children_counts(stack: Stack) -> None:
    burn = "i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done"
    process = stack.spawn(["sh", "-c", f"({burn}; echo burnt; exec sleep 1000) & wait"], name="burner")
    while "burnt" not in process.log_tail():
        assert not process.wait(0.02)
    assert tree_cpu_seconds(process.pid) > 0.05
