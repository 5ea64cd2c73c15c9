"""Groups of MariaDB and of MySQL replicate by GTID, and do what tests ask of them."""

from __future__ import annotations

import time

import pymysql
import pytest

from gateway.demo.mysql_servers import APP, MONITOR, MysqlGroup

pytestmark = pytest.mark.servers


@pytest.fixture(params=["mariadb", "mysql"])
def group(request: pytest.FixtureRequest) -> MysqlGroup:
    fixture = "mariadb_group" if request.param == "mariadb" else "mysql9_group"
    found: MysqlGroup = request.getfixturevalue(fixture)
    return found


def values(group: MysqlGroup, number: int) -> list[int]:
    return [row[0] for row in group.replicas[number].query("SELECT a FROM shop.t ORDER BY a")]


def test_a_write_arrives_at_every_replica(group: MysqlGroup) -> None:
    with group.primary.connect(APP, "shop") as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE t (a INT PRIMARY KEY)")
        cursor.execute("INSERT INTO t VALUES (1), (2)")
    group.wait_caught_up()
    assert values(group, 0) == values(group, 1) == [1, 2]
    assert [server.query("SELECT @@server_id")[0][0] for server in group.servers] == [1, 2, 3]


def test_a_replica_refuses_an_applications_write(group: MysqlGroup) -> None:
    with group.replicas[0].connect(APP, "shop") as connection, connection.cursor() as cursor:
        with pytest.raises(pymysql.MySQLError) as refused:
            cursor.execute("CREATE TABLE t (a INT PRIMARY KEY)")
        assert refused.value.args[0] == 1290


def test_stopped_replication_stays_stopped_and_goes_on_when_started(group: MysqlGroup) -> None:
    group.primary.query("CREATE TABLE shop.t (a INT PRIMARY KEY)")
    group.wait_caught_up()
    stopped, other = group.replicas
    group.stop_replication(stopped)
    group.primary.query("INSERT INTO shop.t VALUES (1)")
    assert other.wait_for_position(group.primary.position(), 30.0)
    assert not stopped.wait_for_position(group.primary.position(), 0.1)
    assert values(group, 0) == []
    assert values(group, 1) == [1]
    group.start_replication(stopped)
    group.wait_caught_up()
    assert values(group, 0) == [1]


def test_a_relay_delays_replication_by_milliseconds(group: MysqlGroup) -> None:
    group.primary.query("CREATE TABLE shop.t (a INT PRIMARY KEY)")
    group.wait_caught_up()
    group.relays[0].delay(0.2, "to_client")
    began = time.monotonic()
    group.primary.query("INSERT INTO shop.t VALUES (1)")
    position = group.primary.position()
    assert group.replicas[0].wait_for_position(position, 30.0)
    assert 0.2 <= time.monotonic() - began < 5.0


def test_a_delay_of_whole_seconds_is_the_servers_own(group: MysqlGroup) -> None:
    group.set_delay(group.replicas[1], 3600)
    group.primary.query("CREATE TABLE shop.t (a INT PRIMARY KEY)")
    position = group.primary.position()
    assert group.replicas[0].wait_for_position(position, 30.0)
    assert not group.replicas[1].wait_for_position(position, 0.1)
    group.make_whole()
    assert group.replicas[1].wait_for_position(position, 0.1)


def test_a_killed_primary_keeps_what_it_had_and_its_replicas_come_back_to_it(group: MysqlGroup) -> None:
    group.primary.query("CREATE TABLE shop.t (a INT PRIMARY KEY)")
    group.primary.query("INSERT INTO shop.t VALUES (1)")
    address = group.primary.address
    group.primary.kill()
    group.primary.start()
    assert group.primary.address == address
    group.primary.query("INSERT INTO shop.t VALUES (2)")
    group.wait_caught_up()
    assert values(group, 0) == values(group, 1) == [1, 2]


def test_the_monitor_sees_replication_and_changes_nothing(group: MysqlGroup) -> None:
    group.primary.query("CREATE TABLE shop.t (a INT PRIMARY KEY)")
    group.wait_caught_up()
    replica = group.replicas[0]
    with replica.connect(MONITOR) as connection, connection.cursor() as cursor:
        assert cursor.execute(replica.replica_status) == 1
    with group.primary.connect(MONITOR) as connection, connection.cursor() as cursor:
        with pytest.raises(pymysql.MySQLError) as refused:
            cursor.execute("INSERT INTO shop.t VALUES (1)")
        assert refused.value.args[0] in (1044, 1142)


def test_accounts_authenticate_as_the_flavour_does(mariadb_group: MysqlGroup, mysql9_group: MysqlGroup) -> None:
    plugins = "SELECT plugin FROM mysql.user WHERE user = 'app'"
    assert mariadb_group.primary.query(plugins) == [("mysql_native_password",)]
    assert mysql9_group.primary.query(plugins) == [("caching_sha2_password",)]
