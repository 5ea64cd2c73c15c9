"""Sessions keep their state over connections that they share, and lose none of it to others."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pymysql
import pytest
from gateways import GatewayMaker, SqlGateway, busy, rows, value

from gateway.demo.mysql_servers import APP, Account, MysqlGroup

pytestmark = pytest.mark.servers


def test_what_was_set_follows_the_session_to_any_connection(small: SqlGateway) -> None:
    settings = {
        "@@time_zone": "+03:00",
        "@@lock_wait_timeout": 77,
        "@a": 5,
        "@b": "it's",
        "@@sql_mode": "ANSI_QUOTES",
        "@@character_set_client": "latin1",
        "@@transaction_isolation" if small.group.primary.flavor == "mysql" else "@@tx_isolation": "READ-COMMITTED",
    }
    with small.connect() as one:
        rows(one, "SET time_zone = '+03:00', lock_wait_timeout = 77, @a = 5, @b = 'it''s'")
        rows(one, "SET NAMES latin1")
        rows(one, "SET sql_mode = 'ANSI_QUOTES'")
        rows(one, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        servers = set()
        for _ in range(3):
            busy(small)
            *found, server = rows(one, f"SELECT {', '.join(settings)}, @@server_id")[0]
            assert found == list(settings.values())
            servers.add(server)
            one.begin()
            assert rows(one, f"SELECT {', '.join(settings)}")[0] == tuple(settings.values())
            one.rollback()
        assert servers <= {2, 3}
    with small.connect() as another:
        nothing = rows(another, "SELECT @a, @b, @@lock_wait_timeout = 77, @@time_zone = '+03:00'")
        assert nothing == [(None, None, 0, 0)]


def test_a_literal_is_replayed_as_it_was_meant_when_the_sql_mode_changed_later(small: SqlGateway) -> None:
    with small.connect() as one:
        rows(one, "SET sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES'")
        assert value(one, "SELECT @a") is None
    with small.connect() as another:
        rows(another, "SET @a = \"x\", @b = 'a\\nb'")
        rows(another, "SET sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES'")
        for _ in range(4):
            busy(small)
            assert rows(another, "SELECT @a, @b") == [("x", "a\nb")]


def test_insert_ids_are_the_sessions_own(small: SqlGateway) -> None:
    with contextlib.ExitStack() as clients:
        sessions = [clients.enter_context(small.connect()) for _ in range(5)]
        rows(sessions[0], "CREATE TABLE t (a INT PRIMARY KEY AUTO_INCREMENT, b INT)")
        for number, session in enumerate(sessions):
            rows(session, "INSERT INTO t (b) VALUES (%s)", (number,))
        for number, session in enumerate(sessions):
            assert value(session, "SELECT b FROM t WHERE a = %s", (number + 1,)) == number
            for question in ("LAST_INSERT_ID()", "@@last_insert_id", "@@identity"):
                assert value(session, f"SELECT {question}") == number + 1, question
        rows(sessions[0], "UPDATE t SET b = LAST_INSERT_ID() WHERE a = 5")
        assert value(sessions[0], "SELECT b FROM t WHERE a = 5") == 1


def test_an_insert_id_that_was_lost_with_its_connection_is_not_made_up(small: SqlGateway) -> None:
    with small.connect() as one:
        rows(one, "CREATE TABLE t (a INT PRIMARY KEY AUTO_INCREMENT)")
        rows(one, "INSERT INTO t VALUES (7)")
        rows(one, "INSERT INTO t VALUES (NULL)")
        assert value(one, "SELECT LAST_INSERT_ID()") == 8
        kill_all(small)
        with pytest.raises(pymysql.MySQLError, match="LAST_INSERT_ID") as refused:
            value(one, "SELECT LAST_INSERT_ID()")
        assert "gateway:" in str(refused.value)
        rows(one, "INSERT INTO t VALUES (NULL)")
        assert value(one, "SELECT LAST_INSERT_ID()") == 9


@pytest.mark.parametrize("statement", ["DO SLEEP(20)", "SELECT LAST_INSERT_ID(), SLEEP(20)"])
def test_an_insert_id_that_was_lost_during_a_statement_is_not_made_up(small: SqlGateway, statement: str) -> None:
    primary = small.group.primary
    sleeping = f"SELECT id FROM information_schema.processlist WHERE info = '{statement}'"
    with small.connect() as one:
        rows(one, "CREATE TABLE t (a INT PRIMARY KEY AUTO_INCREMENT)")
        rows(one, "INSERT INTO t VALUES (NULL)")
        with ThreadPoolExecutor(1) as thread:
            asked = thread.submit(rows, one, statement)
            small.wait_until(lambda: len(primary.query(sleeping)) == 1, "it sleeps")
            primary.query(f"KILL {primary.query(sleeping)[0][0]}")
            with pytest.raises(pymysql.MySQLError, match="was lost while the statement ran"):
                asked.result(30.0)
        with pytest.raises(pymysql.MySQLError, match=r"gateway:.*LAST_INSERT_ID"):
            value(one, "SELECT LAST_INSERT_ID()")
        rows(one, "INSERT INTO t VALUES (NULL)")
        assert value(one, "SELECT LAST_INSERT_ID()") == 2


def kill_all(gateway: SqlGateway) -> None:
    """Ends the application's connections at the primary, as an administrator would, and waits until all know."""
    primary = gateway.group.primary

    def threads() -> set[int]:
        listed = "SELECT id FROM information_schema.processlist WHERE user = %s"
        return {number for (number,) in primary.query(listed, (APP.user,))}

    before = threads()
    assert before
    for number in before:
        with contextlib.suppress(pymysql.MySQLError):  # gone meanwhile
            primary.query(f"KILL {number}")
    # Not their number, which is made up for at once. The server lists a connection until it has closed it.
    gateway.wait_until(lambda: not threads() & before, "the connections are lost")


def test_warnings_are_the_statement_befores_own(small: SqlGateway) -> None:
    with small.connect() as one, small.connect() as another:
        rows(one, "CREATE TABLE t (a INT)")
        rows(one, "INSERT INTO t VALUES (1)")
        small.group.wait_caught_up()
        rows(one, "DROP TABLE IF EXISTS nowhere")
        assert value(one, "SELECT COUNT(*) FROM t") == 1
        assert rows(one, "SHOW WARNINGS") == []
        rows(another, "SELECT 1 + 'x'")
        assert rows(one, "SHOW WARNINGS") == []
        assert [row[1] for row in rows(another, "SHOW WARNINGS")] == [1292]


def test_what_speaks_of_a_replicas_statement_and_writes_is_refused_and_pins_nothing(small: SqlGateway) -> None:
    with small.connect() as one:
        rows(one, "CREATE TABLE t (a INT)")
        rows(one, "INSERT INTO t VALUES (1), (2)")
        for question in ("INSERT INTO t SELECT FOUND_ROWS()", "DO FOUND_ROWS()"):
            small.group.wait_caught_up()
            assert value(one, "SELECT @@server_id FROM t LIMIT 1") in (2, 3)
            with pytest.raises(pymysql.MySQLError, match="gateway:"):
                rows(one, question)
        rows(one, "INSERT INTO t VALUES (3)")
        assert value(one, "SELECT COUNT(*) FROM t") == 3
        assert rows(one, "SHOW GATEWAY PINS") == []


def test_a_read_only_transaction_stays_on_one_replica_until_something_ends_it(small: SqlGateway) -> None:
    with small.connect() as one:
        rows(one, "CREATE TABLE t (a INT)")
        small.group.wait_caught_up()
        rows(one, "START TRANSACTION READ ONLY")
        servers = {value(one, "SELECT @@server_id") for _ in range(5)}
        assert len(servers) == 1
        assert servers <= {2, 3}
        with pytest.raises(pymysql.MySQLError) as refused:
            rows(one, "INSERT INTO t VALUES (1)")
        assert refused.value.args[0] == 1792
        assert {value(one, "SELECT @@server_id")} == servers
        one.begin()
        rows(one, "INSERT INTO t VALUES (1)")
        assert value(one, "SELECT @@server_id") == 1
        one.commit()
        rows(one, "START TRANSACTION READ ONLY")
        assert value(one, "SELECT COUNT(*) FROM t") == 1
        rows(one, "TRUNCATE t")
        assert value(one, "SELECT COUNT(*) FROM t") == 0
        assert figures(small, "in_transaction_or_pinned") == 0


def figures(gateway: SqlGateway, name: str) -> int:
    return int(gateway.figures[name])


def test_nothing_of_a_session_that_vanished_is_left(small: SqlGateway) -> None:
    with small.connect() as keeper:
        rows(keeper, "CREATE TABLE t (a INT PRIMARY KEY)")
        for _ in range(3):
            gone = small.open()
            gone.begin()
            rows(gone, "INSERT INTO t VALUES (1)")
            rows(gone, "CREATE TEMPORARY TABLE mine (a INT)")
            assert value(gone, "SELECT GET_LOCK('mine', 0)") == 1
            rows(gone, "SET @a = UUID(), timestamp = 5")
            vanish(gone)
            small.wait_until(lambda: figures(small, "in_transaction_or_pinned") == 0, "the session has ended")
            rows(keeper, "INSERT INTO t VALUES (1)")  # would wait for the lock of an open transaction
            rows(keeper, "DELETE FROM t")
            for _ in range(2):
                with small.connect() as another:
                    another.begin()
                    assert value(another, "SELECT @a") is None
                    assert value(another, "SELECT UNIX_TIMESTAMP() > 1000") == 1
                    with pytest.raises(pymysql.ProgrammingError):
                        rows(another, "SELECT * FROM mine")
                    assert value(another, "SELECT GET_LOCK('mine', 0)") == 1


def vanish(connection: Any) -> None:
    """Closes a client's socket without COM_QUIT."""
    connection._force_close()


def test_a_full_pool_is_told_after_the_acquire_timeout(small: SqlGateway) -> None:
    with contextlib.ExitStack() as clients:
        *holders, late = [clients.enter_context(small.connect()) for _ in range(3)]
        for holder in holders:
            holder.begin()
            value(holder, "SELECT 1")
        with pytest.raises(pymysql.OperationalError, match="were busy for") as refused:
            late.begin()
        assert refused.value.args[0] == 1040
        assert value(late, "SELECT @@server_id") in (2, 3)
        holders[0].commit()
        late.begin()
        assert value(late, "SELECT @@server_id") == 1


def test_users_share_no_connection(gateways: GatewayMaker, sql_group: MysqlGroup) -> None:
    other = Account("other", "other-secret")
    primary = sql_group.primary
    primary.query(f"DROP USER IF EXISTS {other.user}")
    primary.query(f"CREATE USER {other.user}@'%' IDENTIFIED BY '{other.password}'")
    primary.query(f"GRANT SELECT ON shop.* TO {other.user}@'%'")
    sql_group.wait_caught_up()
    gateway = gateways(
        sql_group, settings='pool = {size = 1, min_idle = 0, acquire_timeout = "3s"}', users=(APP, other)
    )
    with gateway.connect() as one, gateway.connect(account=other) as another:
        rows(one, "CREATE TABLE t (a INT)")
        for _ in range(5):
            assert value(one, "SELECT CURRENT_USER()") == "app@%"
            assert value(another, "SELECT CURRENT_USER()") == "other@%"
            rows(one, "INSERT INTO t VALUES (1)")
            with pytest.raises(pymysql.OperationalError) as refused:
                rows(another, "INSERT INTO t VALUES (1)")
            assert refused.value.args[0] == 1142
    primary.query(f"DROP USER {other.user}")


def test_a_session_without_a_database_never_gets_one(small: SqlGateway) -> None:
    with contextlib.ExitStack() as clients:
        for _ in range(4):
            clients.enter_context(small.connect("shop"))
        for session in [clients.enter_context(small.connect(None)) for _ in range(4)]:
            assert value(session, "SELECT DATABASE()") is None
            session.begin()
            assert value(session, "SELECT DATABASE()") is None
            session.rollback()
