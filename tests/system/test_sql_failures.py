"""Servers that die, hang, stop replicating, lag or change roles under load: who serves, and what clients are told."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pymysql
import pytest
from gateways import GatewayMaker, SqlGateway, rows, value

from gateway.demo.mysql_servers import APP, MysqlFamilyServer, MysqlGroup

pytestmark = pytest.mark.servers

SETTINGS = 'failover_wait = "1500ms"\nfailure_detection = "500ms"'


class Load:
    """Clients that do one thing again and again, and count what they get."""

    def __init__(self, gateway: SqlGateway, statement: str, clients: int = 4) -> None:
        self.gateway = gateway
        self.statement = statement
        self.served: Counter[object] = Counter()
        self.done = [0] * clients
        self.errors: list[str] = []
        self.longest = 0.0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(clients)]

    def _client(self, number: int) -> None:
        with self.gateway.connect(read_timeout=20) as connection:
            while not self._over.is_set():
                began = time.monotonic()
                try:
                    self.served[rows(connection, self.statement)[0][0] if "SELECT" in self.statement else "done"] += 1
                except pymysql.MySQLError as error:
                    self.errors.append(str(error))
                    if error.args[0] in (2006, 2013):
                        return
                self.done[number] += 1
                self.longest = max(self.longest, time.monotonic() - began)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30.0)
        assert not any(thread.is_alive() for thread in self._threads), "a client hangs"


def wait_for(holds: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)  # a load in threads tells nothing else


@pytest.fixture
def gateway(gateways: GatewayMaker, sql_group: MysqlGroup) -> SqlGateway:
    sql_group.primary.query("CREATE TABLE shop.t (a INT PRIMARY KEY AUTO_INCREMENT, b INT)")
    sql_group.primary.query("INSERT INTO shop.t VALUES (1, 1)")
    sql_group.wait_caught_up()
    return gateways(sql_group, settings=SETTINGS)


def more_than(load: Load, server: int, count: int) -> Callable[[], bool]:
    """Whether a server serves again, from now on."""
    before = load.served[server]
    return lambda: load.served[server] > before + count


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_replica_dies_or_hangs_under_load_and_comes_back(gateway: SqlGateway, how: str) -> None:
    victim = gateway.group.replicas[0]
    with Load(gateway, "SELECT @@server_id, COUNT(*) FROM t") as load:
        wait_for(more_than(load, 2, 20), "the replica serves")
        victim.kill() if how == "killed" else victim.pause()
        gateway.wait_until(lambda: gateway.member(victim)["fault"] is not None, "the replica is out")
        before = list(load.done)
        wait_for(
            lambda: all(done > was + 10 for done, was in zip(load.done, before, strict=True)),
            "every client is served by the other one",
        )
        victim.start() if how == "killed" else victim.resume()
        gateway.wait_until(lambda: gateway.member(victim)["fault"] is None, "the replica is back")
        wait_for(more_than(load, 2, 20), "it serves again")
    assert load.errors == []
    assert load.longest < 10.0


def test_a_replica_that_stops_replicating_serves_nothing(gateway: SqlGateway) -> None:
    group = gateway.group
    stopped = group.replicas[0]
    group.stop_replication(stopped)
    gateway.wait_until(lambda: gateway.member(stopped)["fault"] is not None, "its fault is seen")
    assert "replicat" in gateway.member(stopped)["fault"]
    with Load(gateway, "SELECT @@server_id FROM t") as load:
        wait_for(more_than(load, 3, 100), "the other one serves")
    assert set(load.served) == {3}
    group.start_replication(stopped)
    gateway.wait_until(lambda: gateway.member(stopped)["fault"] is None, "it is whole again")


def test_a_replica_too_late_serves_nothing_until_it_has_caught_up(
    gateways: GatewayMaker, sql_group: MysqlGroup
) -> None:
    gateway = gateways(sql_group, listener='max_lag = "500ms"')
    late = sql_group.replicas[1]
    sql_group.primary.query("CREATE TABLE shop.t (a INT PRIMARY KEY AUTO_INCREMENT, b INT)")
    sql_group.wait_caught_up()
    sql_group.relays[1].hold("to_client")
    sql_group.primary.query("INSERT INTO shop.t (b) VALUES (1)")
    gateway.wait_until(lambda: (gateway.member(late)["lag_ms"] or 0) > 500, "it is late")
    with Load(gateway, "SELECT @@server_id, COUNT(*) FROM t", clients=2) as load:
        wait_for(more_than(load, 2, 50), "the one on time serves")
        assert load.served[3] == 0
        sql_group.relays[1].heal()
        wait_for(more_than(load, 3, 10), "the late one serves again")
    assert load.errors == []


def test_with_no_replica_left_the_primary_serves_the_reads(gateway: SqlGateway) -> None:
    for replica in gateway.group.replicas:
        replica.kill()
    gateway.wait_until(
        lambda: all(gateway.member(replica)["fault"] for replica in gateway.group.replicas), "both are out"
    )
    with Load(gateway, "SELECT @@server_id FROM t") as load:
        wait_for(more_than(load, 1, 50), "the primary serves")
    assert load.errors == []
    for replica in gateway.group.replicas:
        replica.start()


def test_the_primary_dies_writes_wait_or_are_told_and_go_on_when_it_is_back(gateway: SqlGateway) -> None:
    primary = gateway.group.primary
    with gateway.connect() as writer, gateway.connect() as in_transaction, gateway.connect() as pinned:
        rows(writer, "INSERT INTO t (b) VALUES (2)")
        in_transaction.begin()
        rows(in_transaction, "INSERT INTO t (b) VALUES (3)")
        rows(pinned, "SELECT @a := UUID()")
        primary.kill()
        gateway.wait_until(lambda: gateway.member(primary)["fault"] is not None, "the primary is out")
        with pytest.raises(pymysql.MySQLError, match=r"gateway:.*open transaction"):
            rows(in_transaction, "SELECT 1")
        with pytest.raises(pymysql.MySQLError, match=r"gateway:.*user variable"):
            rows(pinned, "SELECT @a")
        began = time.monotonic()
        with pytest.raises(pymysql.MySQLError, match="no primary") as refused:
            rows(writer, "INSERT INTO t (b) VALUES (4)")
        assert 1.0 < time.monotonic() - began < 8.0
        assert refused.value.args[0] == 1290
        with pytest.raises(pymysql.MySQLError, match="which this session read last"):
            rows(in_transaction, "SELECT COUNT(*) FROM t")  # what it saw there, nobody can tell
        with gateway.connect() as another:  # which sets autocommit as it begins
            rows(another, "SET @b = 5")
            assert rows(another, "SELECT COUNT(*), @b FROM t") in ([(1, 5)], [(2, 5)])
        outcome: list[object] = []
        waiting = threading.Thread(target=lambda: outcome.append(try_write(writer)))
        primary.launch()
        waiting.start()
        primary.wait_ready()
        waiting.join(30.0)
        gateway.wait_until(lambda: gateway.member(primary)["fault"] is None, "the primary is back")
        rows(writer, "INSERT INTO t (b) VALUES (6)")
        assert value(writer, "SELECT COUNT(*) FROM t WHERE b = 6") == 1
        assert value(writer, "SELECT COUNT(*) FROM t WHERE b = 3") == 0
        assert value(writer, "SELECT COUNT(*) FROM t WHERE b = 5") == (outcome == [None])


def try_write(connection: object) -> Exception | None:
    try:
        rows(connection, "INSERT INTO t (b) VALUES (5)")  # type: ignore[arg-type]
    except pymysql.MySQLError as error:
        return error
    return None


def test_a_statement_whose_connection_is_killed_has_an_unknown_outcome_and_is_not_repeated(
    gateway: SqlGateway,
) -> None:
    primary = gateway.group.primary
    with gateway.connect() as one:
        failed: list[str] = []

        def slow_write() -> None:
            try:
                rows(one, "INSERT INTO t (b) SELECT SLEEP(30)")
            except pymysql.MySQLError as error:
                failed.append(str(error))

        writing = threading.Thread(target=slow_write)
        writing.start()
        kill_when_seen(primary, "%SLEEP(30)%")
        writing.join(20.0)
        assert len(failed) == 1
        assert "outcome is unknown" in failed[0]
        assert value(one, "SELECT COUNT(*) FROM t") in (1, 2)  # MySQL's SLEEP ends early, and the insert may succeed
        one.begin()
        rows(one, "INSERT INTO t (b) VALUES (9)")
        kill_application(primary)
        with pytest.raises(pymysql.MySQLError, match="open transaction"):
            one.commit()
        assert value(one, "SELECT COUNT(*) FROM t WHERE b = 9") == 0


def kill_when_seen(server: MysqlFamilyServer, statement: str) -> None:
    wanted = "SELECT id FROM information_schema.processlist WHERE user = %s AND info LIKE %s"
    found: list[tuple[int]] = []

    def seen() -> bool:
        found[:] = server.query(wanted, (APP.user, statement))
        return bool(found)

    wait_for(seen, "the statement runs")
    server.query(f"KILL {found[0][0]}")


def kill_application(server: MysqlFamilyServer) -> None:
    for (number,) in server.query("SELECT id FROM information_schema.processlist WHERE user = %s", (APP.user,)):
        with contextlib.suppress(pymysql.MySQLError):  # gone meanwhile
            server.query(f"KILL {number}")


def test_a_deadlock_is_told_and_ends_the_transaction_as_at_a_server(gateway: SqlGateway) -> None:
    with gateway.connect() as one, gateway.connect() as two:
        rows(one, "INSERT INTO t VALUES (2, 2)")
        for connection in (one, two):
            connection.begin()
        rows(one, "UPDATE t SET b = 10 WHERE a = 1")
        rows(two, "UPDATE t SET b = 20 WHERE a = 2")
        errors: list[int] = []

        def other() -> None:
            try:
                rows(two, "UPDATE t SET b = 20 WHERE a = 1")
            except pymysql.MySQLError as error:
                errors.append(error.args[0])

        waiting = threading.Thread(target=other)
        waiting.start()
        try:
            rows(one, "UPDATE t SET b = 10 WHERE a = 2")
        except pymysql.MySQLError as error:
            errors.append(error.args[0])
            one.rollback()
        waiting.join(30.0)
        assert errors == [1213]
        for connection in (one, two):
            connection.commit()
        assert value(one, "SELECT COUNT(DISTINCT b) FROM t") == 1
        with pytest.raises(pymysql.IntegrityError):
            rows(one, "INSERT INTO t VALUES (1, 1)")


# ---------------------------------------------------------------- another server becomes the primary


@pytest.fixture
def failover(gateways: GatewayMaker, sql_group: MysqlGroup) -> Iterator[tuple[SqlGateway, MysqlFamilyServer]]:
    """A gateway, and the replica to be promoted; the group is put together again at the end."""
    sql_group.primary.query("CREATE TABLE shop.t (a INT PRIMARY KEY AUTO_INCREMENT, b INT)")
    sql_group.wait_caught_up()
    gateway = gateways(sql_group, settings=SETTINGS)
    promoted = sql_group.replicas[1]
    yield gateway, promoted
    restore(sql_group, promoted)


def set_read_only(server: MysqlFamilyServer, on: bool) -> None:
    server.query(f"SET GLOBAL {server.read_only_variable if on else 'read_only'} = {int(on)}")


def promote(server: MysqlFamilyServer) -> None:
    server.query(server.stop_replica)
    server.query("RESET REPLICA ALL" if server.flavor == "mysql" else "RESET SLAVE ALL")
    set_read_only(server, False)


def restore(group: MysqlGroup, promoted: MysqlFamilyServer) -> None:
    """All data the same again: the promoted server's writes are undone by starting both histories anew."""
    primary = group.primary
    for server in group.servers:
        if not server.running:
            server.start()
    for server in group.servers:
        for statement in (server.stop_replica, *resets(server)):
            with contextlib.suppress(pymysql.MySQLError):  # it replicates from nobody
                server.query(statement)
        set_read_only(server, False)
        server.query("SET GLOBAL read_only = 0")
        with server.admin() as connection, connection.cursor() as cursor:
            cursor.execute("SET sql_log_bin = 0")
            cursor.execute("DROP DATABASE IF EXISTS shop")
            cursor.execute("CREATE DATABASE shop")
    for server, relay in zip(group.replicas, group.relays, strict=True):
        server.query(server.follow_statement(relay.host, relay.port))
        server.query(server.start_replica)
        set_read_only(server, True)
    set_read_only(primary, False)
    for server in group.replicas:
        group.wait_replicating(server)
    group.wait_caught_up()


def resets(server: MysqlFamilyServer) -> list[str]:
    if server.flavor == "mysql":
        return ["RESET REPLICA ALL", "RESET BINARY LOGS AND GTIDS"]
    return ["RESET SLAVE ALL", "RESET MASTER", "SET GLOBAL gtid_slave_pos = ''"]


def test_writes_follow_a_promotion_and_sessions_read_what_they_wrote_across_it(
    failover: tuple[SqlGateway, MysqlFamilyServer],
) -> None:
    gateway, promoted = failover
    group = gateway.group
    old = group.primary
    with gateway.connect() as one, gateway.connect() as idle, gateway.connect() as pinned:
        rows(one, "INSERT INTO t (b) VALUES (1)")
        rows(pinned, "SELECT @a := UUID()")
        epoch = gateway.orders["epoch"]
        set_read_only(old, True)
        group.wait_caught_up()
        promote(promoted)
        gateway.wait_until(lambda: gateway.orders["primary"] == promoted.address, "the new primary is seen")
        assert gateway.orders["epoch"] == epoch + 1
        for server in (old, group.replicas[0]):
            with contextlib.suppress(pymysql.MySQLError):  # the old primary replicates from nobody yet
                server.query(server.stop_replica)
            server.query(server.follow_statement(promoted.host, promoted.port))
            server.query(server.start_replica)
            group.wait_replicating(server)
        gateway.wait_serving()
        for session, b in ((one, 2), (idle, 3)):
            # Its first write in the new epoch, and a read at once: the replicas may not have it yet.
            for replica in (old, group.replicas[0]):
                replica.query("STOP REPLICA SQL_THREAD" if replica.flavor == "mysql" else "STOP SLAVE SQL_THREAD")
                replica.query("START REPLICA SQL_THREAD" if replica.flavor == "mysql" else "START SLAVE SQL_THREAD")
            for _ in range(50):
                rows(session, "INSERT INTO t (b) VALUES (%s)", (b,))
                assert value(session, "SELECT MAX(b) FROM t") == b
                rows(session, "UPDATE t SET b = 0")
                assert value(session, "SELECT MAX(b) FROM t") == 0
        with pytest.raises(pymysql.MySQLError, match=r"gateway:.*user variable"):
            rows(pinned, "INSERT INTO t (b) VALUES (9)")
    assert promoted.query("SELECT COUNT(*) FROM shop.t WHERE b = 9") == [(0,)]


def test_a_second_writable_server_gets_nothing_and_is_reported(
    failover: tuple[SqlGateway, MysqlFamilyServer],
) -> None:
    gateway, other = failover
    promote(other)
    gateway.wait_until(lambda: gateway.orders["trouble"] is not None, "the trouble is seen")
    assert "more than one server is writable" in gateway.orders["trouble"]
    assert gateway.orders["primary"] == gateway.group.primary.address
    with gateway.connect() as one:
        for _ in range(20):
            rows(one, "INSERT INTO t (b) VALUES (1)")
            assert value(one, "SELECT @@server_id FROM t LIMIT 1") in (1, 2)
    assert other.query("SELECT COUNT(*) FROM shop.t") == [(0,)]


def test_an_old_primary_that_still_takes_writes_gets_none_after_a_failover(
    failover: tuple[SqlGateway, MysqlFamilyServer],
) -> None:
    """It was unreachable, somebody promoted another server, and now it is back and was never fenced."""
    gateway, promoted = failover
    old = gateway.group.primary
    with gateway.connect() as pinned:
        rows(pinned, "SELECT @a := UUID()")
        old.pause()
        gateway.wait_until(lambda: gateway.member(old)["fault"] is not None, "the old primary is out")
        promote(promoted)
        gateway.wait_until(lambda: gateway.orders["primary"] == promoted.address, "the new primary is seen")
        old.resume()
        gateway.wait_until(lambda: "more than one" in (gateway.orders["trouble"] or ""), "both are seen")
        with pytest.raises(pymysql.MySQLError, match="gateway:"):
            rows(pinned, "INSERT INTO t (b) VALUES (9)")
    with gateway.connect() as one:
        rows(one, "INSERT INTO t (b) VALUES (10)")
    assert old.query("SELECT COUNT(*) FROM shop.t") == [(0,)]
    assert promoted.query("SELECT b FROM shop.t") == [(10,)]


def test_at_a_cold_start_with_two_writable_servers_nothing_is_written(stack: object, sql_group: MysqlGroup) -> None:
    other = sql_group.replicas[1]
    promote(other)
    try:
        gateway = SqlGateway(stack, sql_group, settings=SETTINGS)  # type: ignore[arg-type]
        gateway.start()
        assert gateway.orders["primary"] is None
        assert "more than one" in gateway.orders["trouble"]
        with contextlib.suppress(pymysql.MySQLError), gateway.connect() as one:
            rows(one, "CREATE TABLE t (a INT)")
        assert sql_group.primary.query("SHOW TABLES FROM shop") == []
        assert other.query("SHOW TABLES FROM shop") == []
        gateway.end()
    finally:
        restore(sql_group, other)
