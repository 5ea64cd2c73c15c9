"""What the keys of gateway.toml do that no other test is about: each is seen to have the effect that it says."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator

import pymysql
import pytest
from gateways import Connection, GatewayMaker, SqlGateway, rows, value

from gateway.demo.mysql_servers import MysqlGroup
from gateway.demo.stack import Stack

pytestmark = pytest.mark.servers

READ = "SELECT @@server_id"


def servers_of(connection: Connection, count: int = 30) -> set[int]:
    """The ids of the servers that serve plain reads."""
    return {int(value(connection, READ)) for _ in range(count)}


@contextlib.contextmanager
def without_replication(gateway: SqlGateway, *replicas: int) -> Iterator[None]:
    """Replicas by their number, none of which serves meanwhile."""
    group = gateway.group
    stopped = [group.replicas[number] for number in replicas]
    for replica in stopped:
        group.stop_replication(replica)
    gateway.wait_until(lambda: all(gateway.member(one)["fault"] for one in stopped), "they are out")
    yield
    for replica in stopped:
        group.start_replication(replica)
    gateway.wait_until(lambda: not any(gateway.member(one)["fault"] for one in stopped), "they are back")


def test_members_serve_by_weight_and_backup_and_have_limits_of_their_own(
    gateways: GatewayMaker, sql_group: MysqlGroup
) -> None:
    """weight, backup, max_connections, and primary by its address."""
    gateway = gateways(
        sql_group,
        members=("", "weight = 0", "max_connections = 2"),
        settings=f'primary = "{sql_group.primary.address}"\npool = {{size = 5, min_idle = 1}}',
    )
    with gateway.connect() as one:
        assert servers_of(one) == {3}, "a weight of 0 takes a member out of the choice"
        assert [row[-1].rpartition("/")[2] for row in rows(one, "SHOW GATEWAY MEMBERS")] == ["5", "5", "2"]
    gateway.end()
    gateway = gateways(sql_group, members=("", "", "backup = true"))
    with gateway.connect() as one:
        assert servers_of(one) == {2}, "the backup serves nothing while another can"
        with without_replication(gateway, 0):
            assert servers_of(one) == {3}
        assert servers_of(one) == {2}


def test_the_group_keeps_writes_and_reads_within_what_its_replicas_can_take(
    gateways: GatewayMaker, sql_group: MysqlGroup
) -> None:
    """min_replicas_to_write, min_replicas_max_lag, primary_reads."""
    sql_group.primary.query("CREATE TABLE shop.t (a INT)")
    sql_group.wait_caught_up()
    gateway = gateways(
        sql_group,
        settings='min_replicas_to_write = 1\nmin_replicas_max_lag = "500ms"\n'
        'primary_reads = {max_in_flight = 1, then = "error"}',
    )
    with gateway.connect() as one, gateway.connect() as slow:
        rows(one, "INSERT INTO t VALUES (1)")
        with without_replication(gateway, 0, 1):
            with pytest.raises(pymysql.MySQLError, match="min_replicas_to_write") as refused:
                rows(one, "INSERT INTO t VALUES (2)")
            assert refused.value.args[0] == 1290
            # One read that wanted a replica may be at the primary, and this is it.
            running = threading.Thread(target=rows, args=(slow, "SELECT SLEEP(3), 'kept' FROM t"))
            running.start()
            gateway.wait_until(lambda: in_flight(gateway) == 1, "the slow read runs at the primary")
            with pytest.raises(pymysql.MySQLError, match="max_in_flight"):
                rows(one, "SELECT a FROM t")
            running.join(30.0)
            assert rows(one, "SELECT a FROM t") == [(1,)]
        rows(one, "INSERT INTO t VALUES (3)")


def in_flight(gateway: SqlGateway) -> int:
    return int(gateway.member(gateway.group.primary)["in_flight"])


def test_reads_wait_for_their_turn_at_the_primary_or_are_refused_without_one(
    gateways: GatewayMaker, sql_group: MysqlGroup
) -> None:
    """primary_reads.then = "wait", reads_without_primary = "refuse", failover = "off"."""
    sql_group.primary.query("CREATE TABLE shop.t (a INT)")
    sql_group.primary.query("INSERT INTO shop.t VALUES (1)")
    sql_group.wait_caught_up()
    gateway = gateways(
        sql_group,
        settings='primary_reads = {max_in_flight = 1, then = "wait"}\nreads_without_primary = "refuse"\n'
        'failover = "off"\nfailure_detection = "500ms"\nfailover_wait = "100ms"',
    )
    with gateway.connect() as one, gateway.connect() as slow:
        with without_replication(gateway, 0, 1):
            running = threading.Thread(target=rows, args=(slow, "SELECT SLEEP(2), 'kept' FROM t"))
            running.start()
            gateway.wait_until(lambda: in_flight(gateway) == 1, "the slow read runs at the primary")
            assert rows(one, "SELECT a FROM t") == [(1,)]
            running.join(30.0)
        sql_group.primary.pause()
        gateway.wait_until(lambda: gateway.member(sql_group.primary)["fault"] is not None, "the primary is out")
        with pytest.raises(pymysql.MySQLError, match="gateway:"):
            rows(one, "SELECT a FROM t")
        # Somebody makes another server writable: with failover = "off" nothing goes there.
        other = sql_group.replicas[0]
        other.query("SET GLOBAL read_only = 0")
        try:
            with pytest.raises(pymysql.MySQLError, match="gateway:"):
                rows(one, "INSERT INTO t VALUES (2)")
        finally:
            other.query(f"SET GLOBAL {other.read_only_variable} = 1")
            sql_group.primary.resume()
        gateway.wait_serving()
        assert rows(one, "SELECT a FROM t") == [(1,)]


def test_the_log_and_the_name_are_as_told_and_silent_clients_are_sent_away(
    stack: Stack, mariadb_group: MysqlGroup
) -> None:
    """log.level, log.format, gateway.name, idle_timeout."""
    gateway = SqlGateway(stack, mariadb_group, general='name = "gw-blue"', listener='idle_timeout = "700ms"')
    gateway.prepare()
    text = gateway.config_file.read_text()
    gateway.prepare = lambda: None  # type: ignore[method-assign] # the file is as it shall be

    def start(level: str, format_: str) -> str:
        changed = text.replace('level = "debug"', f'level = "{level}"').replace('"json"', f'"{format_}"')
        gateway.config_file.write_text(changed)
        gateway.start()
        gateway.wait_serving()
        return gateway.log.read_text()

    levels = {json.loads(line)["level"] for line in start("info", "json").splitlines()}
    assert "info" in levels
    assert "debug" not in levels
    assert gateway.status()["name"] == "gw-blue"
    with gateway.connect() as one:
        told = one._sock.recv(1000)  # type: ignore[attr-defined] # until the gateway speaks, unasked
    assert told[3] == 0
    assert int.from_bytes(told[5:7], "little") == 4031
    assert b"because of inactivity" in told
    gateway.end()
    gateway.log.write_text("")
    logged = start("warning", "console")
    assert "[warning  ] primary" in logged
    assert "[info" not in logged
    gateway.expected = [""]  # lines that are no JSON
    gateway.end()
