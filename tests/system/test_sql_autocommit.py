"""Under autocommit=0: what `autocommit_off_reads` sends to replicas, and what moves a transaction to the primary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from gateways import Connection, SqlGateway, rows, shared_gateway, value
from pymysql.constants import SERVER_STATUS

from gateway.demo.mysql_servers import MysqlGroup
from gateway.demo.stack import Stack

pytestmark = pytest.mark.servers

READ_COMMITTED = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"


@pytest.fixture
def offloading(
    sql_group: MysqlGroup, session_stack: Stack, shared_gateways: dict[str, SqlGateway]
) -> Iterator[SqlGateway]:
    yield from shared_gateway(
        f"autocommit {sql_group.primary.flavor}",
        sql_group,
        session_stack,
        shared_gateways,
        listener='autocommit_off_reads = "replica"',
        settings='pool = {size = 3, acquire_timeout = "2s"}',
    )


@pytest.fixture
def session(offloading: SqlGateway) -> Iterator[Any]:
    """A session with autocommit=0 at READ COMMITTED, and a table t of one row, which replicas have."""
    primary = offloading.group.primary
    primary.query("CREATE TABLE shop.t (a INT PRIMARY KEY AUTO_INCREMENT, b INT)")
    primary.query("INSERT INTO shop.t VALUES (1, 0)")
    offloading.group.wait_caught_up()
    with offloading.connect(autocommit=False) as connection:
        rows(connection, READ_COMMITTED)
        yield connection


def server(connection: Connection, table: str = "t") -> int:
    return int(value(connection, f"SELECT @@server_id FROM {table} LIMIT 1"))


def in_transaction(connection: Any) -> bool:
    return bool(connection.server_status & SERVER_STATUS.SERVER_STATUS_IN_TRANS)


def test_reads_go_to_a_replica_until_the_first_write(session: Any, offloading: SqlGateway) -> None:
    for _ in range(3):
        servers = {server(session) for _ in range(3)}
        assert len(servers) == 1
        assert servers <= {2, 3}
        assert not session.get_autocommit()
        rows(session, "UPDATE t SET b = b + 1")
        assert server(session) == 1
        session.commit()
        assert not in_transaction(session)
    assert value(session, "SELECT b FROM t") == 3
    assert server(session) in (2, 3)
    session.rollback()
    assert offloading.figures["in_transaction_or_pinned"] == 0
    assert offloading.figures["reads_kept_at_primary_by_autocommit_0"] == 0


def test_what_was_written_after_reads_is_rolled_back_whole(session: Any) -> None:
    assert server(session) in (2, 3)
    rows(session, "INSERT INTO t (b) VALUES (7)")
    assert value(session, "SELECT COUNT(*) FROM t") == 2
    session.rollback()
    assert value(session, "SELECT COUNT(*) FROM t") == 1


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT a FROM t FOR UPDATE",
        "SAVEPOINT s",
        "BEGIN",
        "START TRANSACTION",
        "SELECT GET_LOCK('one', 0)",
        "CREATE TEMPORARY TABLE tmp (a INT)",
        "LOCK TABLES t READ",
        "XA START 'x'",
    ],
)
def test_whatever_locks_marks_or_begins_moves_to_the_primary(session: Any, statement: str) -> None:
    assert server(session) in (2, 3)
    if statement.startswith("XA"):
        session.commit()
    rows(session, statement)
    assert value(session, "SELECT @@server_id") == 1
    assert server(session) == 1
    if statement == "SAVEPOINT s":
        rows(session, "INSERT INTO t (b) VALUES (7)")
        rows(session, "ROLLBACK TO s")
        assert value(session, "SELECT COUNT(*) FROM t") == 1
    if statement.startswith("XA"):
        rows(session, "XA END 'x'")
        rows(session, "XA ROLLBACK 'x'")


def test_ddl_and_settings_in_between(session: Any) -> None:
    assert server(session) in (2, 3)
    rows(session, "SET @a = 5, time_zone = '+03:00'")
    assert value(session, "SELECT @a") == 5
    rows(session, "SET @a = @a + 1")
    assert rows(session, "SELECT @a, @@time_zone, @@server_id FROM t")[0][:2] == (6, "+03:00")
    rows(session, "CREATE TABLE u (a INT)")
    assert value(session, "SELECT COUNT(*) FROM u") == 0
    session.commit()
    rows(session, "SET autocommit = 1")
    assert server(session) in (2, 3)
    assert rows(session, "SHOW GATEWAY PINS") == []


def test_the_insert_id_is_told_in_the_middle_of_reads(session: Any) -> None:
    rows(session, "INSERT INTO t (b) VALUES (7)")
    session.commit()
    assert server(session) in (2, 3)
    for question in ("SELECT LAST_INSERT_ID()", "SELECT @@identity AS i"):
        assert value(session, question) == 2
        assert server(session) in (2, 3)
    session.commit()
    rows(session, "START TRANSACTION READ ONLY")
    assert server(session) in (2, 3)
    assert value(session, "SELECT LAST_INSERT_ID()") == 2
    session.commit()


def test_a_read_only_transaction_stays_one(session: Any) -> None:
    rows(session, "START TRANSACTION READ ONLY")
    assert server(session) in (2, 3)
    with pytest.raises(Exception, match="READ ONLY"):
        rows(session, "INSERT INTO t (b) VALUES (7)")
    session.rollback()


def test_only_at_read_committed_and_what_is_lost_is_counted(offloading: SqlGateway, session: Any) -> None:
    before = offloading.figures["reads_kept_at_primary_by_autocommit_0"]
    rows(session, "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    assert [server(session) for _ in range(3)] == [1, 1, 1]
    rows(session, "UPDATE t SET b = 1")
    assert server(session) == 1
    session.commit()
    assert offloading.figures["reads_kept_at_primary_by_autocommit_0"] == before + 3


def test_by_default_all_stays_at_the_primary_and_is_counted(sql_gateway: SqlGateway) -> None:
    sql_gateway.group.primary.query("CREATE TABLE shop.t (a INT PRIMARY KEY AUTO_INCREMENT, b INT)")
    sql_gateway.group.primary.query("INSERT INTO shop.t VALUES (1, 0)")
    before = sql_gateway.figures["reads_kept_at_primary_by_autocommit_0"]
    with sql_gateway.connect(autocommit=False) as connection:
        rows(connection, READ_COMMITTED)
        assert [server(connection) for _ in range(2)] == [1, 1]
        connection.commit()
    assert sql_gateway.figures["reads_kept_at_primary_by_autocommit_0"] == before + 2
