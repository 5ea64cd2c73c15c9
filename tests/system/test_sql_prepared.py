"""Prepared statements through the gateway: where they run, whose types they have, and what a session may do between."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import mysql.connector
import pymysql
import pytest
from binary_protocol import READ_ONLY_CURSOR, Statement, prepare, send
from gateways import Connection, GatewayMaker, SqlGateway, rows, shared_gateway, value
from pymysql.constants import CLIENT

from gateway.demo.mysql_servers import APP, MysqlGroup
from gateway.demo.stack import Stack

pytestmark = pytest.mark.servers

PRIMARY = 1  # server_id


@pytest.fixture
def narrow(sql_group: MysqlGroup, session_stack: Stack, shared_gateways: dict[str, SqlGateway]) -> Iterator[SqlGateway]:
    """A gateway with two connections per server."""
    settings = 'pool = {size = 2, acquire_timeout = "500ms"}'
    name = f"narrow {sql_group.primary.flavor}"
    yield from shared_gateway(name, sql_group, session_stack, shared_gateways, settings=settings)


@pytest.fixture
def lone(sql_group: MysqlGroup, session_stack: Stack, shared_gateways: dict[str, SqlGateway]) -> Iterator[SqlGateway]:
    """A gateway with one connection per server: all sessions share it, and what is prepared on it."""
    settings = 'pool = {size = 1, min_idle = 0, acquire_timeout = "500ms"}'
    name = f"lone {sql_group.primary.flavor}"
    yield from shared_gateway(name, sql_group, session_stack, shared_gateways, settings=settings)


def pins(connection: Connection) -> list[tuple[Any, ...]]:
    return rows(connection, "SHOW GATEWAY PINS")


def last_route(connection: Connection) -> dict[str, str | None]:
    return dict(rows(connection, "SHOW GATEWAY LAST ROUTE"))


def prepared_again(gateway: SqlGateway) -> int:
    count: int = gateway.figures["statements_prepared_again"]
    return count


def filled(gateway: SqlGateway) -> None:
    """A table t with 100 rows, on all servers."""
    with gateway.connect() as one:
        rows(one, "CREATE TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, v VARCHAR(100), n INT)")
        rows(one, "INSERT INTO t (v, n) VALUES " + ", ".join(f"('v{n}', {n})" for n in range(1, 101)))
    gateway.group.wait_caught_up()


def test_reads_go_to_replicas_writes_to_the_primary_and_nothing_pins(narrow: SqlGateway) -> None:
    filled(narrow)
    with narrow.connect() as one:
        read = prepare(one, "SELECT @@server_id, v FROM t WHERE id = ?")
        write = prepare(one, "UPDATE t SET v = ? WHERE id = ?")
        seen = {read.execute(number)[0][0] for number in range(1, 40)}
        assert PRIMARY not in seen
        write.execute("new", 7)
        assert write.affected == 1
        assert last_route(one)["kind"] == "write"
        assert read.execute(7)[0][1] == b"new"
        assert pins(one) == []
        one.begin()
        assert read.execute(8)[0][0] == PRIMARY
        write.execute("in transaction", 8)
        assert read.execute(8) == [[PRIMARY, b"in transaction"]]
        one.rollback()
        assert read.execute(8)[0][1] == b"v8"
        read.close()
        with pytest.raises(pymysql.MySQLError) as unknown:
            read.execute(8)
        assert unknown.value.args[0] == 1243
        assert not unknown.value.args[1].startswith("gateway")


def test_many_clients_share_what_is_prepared_on_few_connections(narrow: SqlGateway) -> None:
    filled(narrow)
    before = prepared_again(narrow)
    with contextlib.ExitStack() as clients:
        connections = [clients.enter_context(narrow.connect()) for _ in range(12)]
        statements = [prepare(connection, "SELECT v, n + ? FROM t WHERE id = ?") for connection in connections]
        for number in range(1, 60):
            statement = statements[number % 12]
            assert statement.execute(1000, number) == [[f"v{number}".encode(), 1000 + number]]
        # Two connections to each of two replicas, and the primary's, however many clients there are.
        assert prepared_again(narrow) - before <= 6
        assert narrow.figures["prepared_statements"] >= 12


def test_two_clients_with_other_types_do_not_meddle_with_each_other(lone: SqlGateway) -> None:
    with lone.connect() as one, lone.connect() as two:
        first, second = prepare(one, "SELECT ?, ? IS NULL"), prepare(two, "SELECT ?, ? IS NULL")
        assert first.execute(5, 5) == [[5, 0]]
        assert second.execute("abc", 1) == [[b"abc", 0]]
        assert first.execute(6, 6, bind=False) == [[6, 0]]
        assert second.execute("def", 1, bind=False) == [[b"def", 0]]
        assert first.execute(None, None) == [[None, 1]]
        assert second.execute(2.5, None) == [[2.5, 1]]
        assert first.execute(7, 7) == [[7, 0]]
        assert second.execute(3.5, None, bind=False) == [[3.5, 1]]
        assert first.execute(8, 8, bind=False) == [[8, 0]]
        third = prepare(two, "SELECT ?, ? IS NULL")
        with pytest.raises(pymysql.MySQLError) as unbound:
            third.execute(1, 2, bind=False)
        assert unbound.value.args[0] == 1210
        assert third.execute("x", "y") == [[b"x", 0]]


def test_a_statement_keeps_the_database_and_settings_of_its_preparation(narrow: SqlGateway) -> None:
    with narrow.connect() as one:
        for database, number in (("shop", 1), ("sbtest", 2)):
            rows(one, f"DROP TABLE IF EXISTS {database}.which")
            rows(one, f"CREATE TABLE {database}.which (n INT)")
            rows(one, f"INSERT INTO {database}.which VALUES ({number})")
        narrow.group.wait_caught_up()
        which = prepare(one, "SELECT n, DATABASE() FROM which")
        quoted = prepare(one, 'SELECT "n"')
        charset = prepare(one, "SELECT COLLATION('a')")
        collation = charset.execute()
        rows(one, "USE sbtest")
        rows(one, "SET sql_mode = 'ANSI_QUOTES'")
        rows(one, "SET NAMES latin1 COLLATE latin1_bin")
        rows(one, "SET @a = 1")
        for _ in range(3):
            disturb(narrow)
            assert which.execute() == [[1, b"shop"]]
            assert quoted.execute() == [[b"n"]]
            assert charset.execute() == collation
            assert rows(one, "SELECT DATABASE(), @@sql_mode, COLLATION('a'), @a") == [
                ("sbtest", "ANSI_QUOTES", "latin1_bin", 1)
            ]
        again = prepare(one, "SELECT n, DATABASE() FROM which")
        assert again.execute() == [[2, b"sbtest"]]
        with pytest.raises(pymysql.MySQLError):
            prepare(one, 'SELECT "n"')  # a column's name by now
        rows(one, "DROP TABLE sbtest.which")


def test_a_statement_from_before_a_pin_is_prepared_in_its_own_settings(narrow: SqlGateway) -> None:
    """SET CHARACTER SET cannot be told by value: what is set on the connection is put away, and set again."""
    with narrow.connect() as one:
        rows(one, "SET sql_mode = 'ANSI_QUOTES'")
        statement = prepare(one, "SELECT CHARSET('a'), @@sql_mode, ?")
        quoted = prepare(one, "SELECT 'a' \"b\"")
        ((charset, _, _),) = statement.execute(1)
        rows(one, "SET sql_mode = ''")
        rows(one, "SET CHARACTER SET latin1")
        rows(one, "SET timestamp = 5")
        assert pins(one)
        found = "SELECT @@character_set_client, @@collation_connection, @@sql_mode, DATABASE(), @gateway_sql_mode"
        before = rows(one, found)
        assert before[0][0] == "latin1"
        assert statement.execute(2) == [[charset, b"", 2]]
        assert quoted.execute() == [[b"a"]]
        assert quoted.names == ["b"]
        assert rows(one, found) == before
        prepare(one, "SELECT 7").execute()


def disturb(gateway: SqlGateway) -> None:
    """Others use, and have reset, every connection of the pools."""
    with contextlib.ExitStack() as clients:
        for _ in range(2):
            other = clients.enter_context(gateway.connect())
            other.begin()
            rows(other, "SET @b = 5")
            assert value(other, "SELECT @b") == 5
            rows(other, "SET SESSION TRANSACTION READ WRITE")
            other.rollback()


def test_settings_that_mysql_folds_into_a_statement_are_the_sessions_own(lone: SqlGateway) -> None:
    with lone.connect() as one, lone.connect() as two:
        rows(one, "SET div_precision_increment = 2")
        rows(one, "SET @v = 1.5")
        rows(two, "SET @v = 'text'")
        for _ in range(2):
            for connection, third, kind in ((one, b"0.33", b"2.5"), (two, b"0.3333", None)):
                statement = prepare(connection, "SELECT 1/3, @v + 1")
                fraction, sum_ = statement.execute()[0]
                assert fraction == third
                assert kind is None or (isinstance(sum_, bytes) and sum_.startswith(kind))
                statement.close()


def test_types_are_put_in_where_another_statement_ran_last(narrow: SqlGateway) -> None:
    """new-params-bound = 0 on connections that never saw this client's types."""
    filled(narrow)
    with narrow.connect() as one:
        read = prepare(one, "SELECT n FROM t WHERE id = ? AND v = ?")
        assert read.execute(3, "v3") == [[3]]
        for number in range(4, 20):
            if number % 5 == 0:
                disturb(narrow)
            assert read.execute(number, f"v{number}", bind=False) == [[number]]


def test_long_data_is_held_until_the_statement_runs(narrow: SqlGateway) -> None:
    with narrow.connect() as one:
        rows(one, "CREATE TABLE b (id INT PRIMARY KEY, v LONGBLOB)")
        insert = prepare(one, "INSERT INTO b VALUES (?, ?)")
        for _ in range(3):
            insert.send_long(1, b"x" * 300_000)
        disturb(narrow)
        insert.execute(1, None)
        assert value(one, "SELECT LENGTH(v) FROM b WHERE id = 1") == 900_000
        insert.send_long(1, b"dropped")
        insert.reset()
        insert.execute(2, b"plain")
        insert.send_long(1, b"twice")
        with pytest.raises(pymysql.MySQLError) as duplicate:
            insert.execute(2, None)
        assert duplicate.value.args[0] == 1062
        insert.execute(3, b"after")
        with narrow.connect() as two:  # shares the handle
            assert prepare(two, "INSERT INTO b VALUES (?, ?)").execute(4, b"other") == []
        narrow.group.wait_caught_up()
        assert rows(one, "SELECT id, v FROM b WHERE id > 1 ORDER BY id") == [
            (2, b"plain"),
            (3, b"after"),
            (4, b"other"),
        ]


def test_long_data_is_bounded(gateways: GatewayMaker, mariadb_group: MysqlGroup) -> None:
    gateway = gateways(mariadb_group, listener='max_allowed_packet = "1MiB"')
    with gateway.connect() as one:
        length = prepare(one, "SELECT LENGTH(?)")
        for _ in range(40):
            length.send_long(0, b"x" * 100_000)
        for _ in range(2):
            length.long = frozenset([0])
            with pytest.raises(pymysql.MySQLError, match="max_allowed_packet") as refused:
                length.execute(None)
            assert refused.value.args[0] == 1105
        length.reset()
        length.send_long(0, b"x" * 1000)
        assert length.execute(None) == [[1000]]


def test_a_cursor_stays_on_its_connection_while_the_session_goes_on(narrow: SqlGateway) -> None:
    filled(narrow)
    with narrow.connect() as one, narrow.connect() as two:
        read = prepare(one, "SELECT id, @@server_id FROM t ORDER BY id")
        assert read.execute(cursor=READ_ONLY_CURSOR) == []
        first = read.fetch(30)
        assert [row[0] for row in first] == list(range(1, 31))
        rows(one, "UPDATE t SET v = 'between' WHERE id = 1")  # at the primary, while the cursor is at a replica
        assert value(one, "SELECT v FROM t WHERE id = 1") == "between"
        one.begin()
        rows(one, "DELETE FROM t WHERE id = 2")
        assert [row[0] for row in read.fetch(30)] == list(range(31, 61))
        one.rollback()
        assert prepare(two, "SELECT id, @@server_id FROM t ORDER BY id").execute()[0][0] == 1
        assert {row[1] for row in read.fetch(100)} == {first[0][1]} != {PRIMARY}
        with pytest.raises(pymysql.MySQLError) as exhausted:
            read.fetch(1)
        assert exhausted.value.args[0] == 1421
        # closed, reset, executed anew and left open: the connection comes back each time
        for _ in range(5):
            read.execute(cursor=READ_ONLY_CURSOR)
            read.fetch(1)
            read.execute(cursor=READ_ONLY_CURSOR)
            assert read.fetch(1)[0][0] == 1
            read.reset()
            other = prepare(one, "SELECT n FROM t ORDER BY id")
            other.execute(cursor=READ_ONLY_CURSOR)
            other.fetch(1)
            other.close()
        one.begin()
        read.execute(cursor=READ_ONLY_CURSOR)
        one.commit()
        assert len(read.fetch(1000)) == 100
        read.execute(cursor=READ_ONLY_CURSOR)
    narrow.wait_until(lambda: not any(in_use(narrow)), "the connections of the cursors are given back")


def in_use(gateway: SqlGateway) -> list[int]:
    return [member["connections"]["in_use"] for member in gateway.orders["members"]]


def test_the_schema_changes_between_preparation_and_execution(narrow: SqlGateway) -> None:
    filled(narrow)
    with narrow.connect() as one, narrow.connect() as two:
        star = prepare(one, "SELECT * FROM t WHERE id = ?")
        assert star.execute(1) == [[1, b"v1", 1]]
        rows(two, "ALTER TABLE t ADD COLUMN more INT NOT NULL DEFAULT 9")
        narrow.group.wait_caught_up()
        assert star.execute(1) == [[1, b"v1", 1, 9]]
        rows(two, "DROP TABLE t")
        narrow.group.wait_caught_up()
        for _ in range(2):
            disturb(narrow)
            with pytest.raises(pymysql.MySQLError) as missing:
                star.execute(1)
            assert missing.value.args[0] == 1146
        rows(two, "CREATE TABLE t (id INT PRIMARY KEY, v VARCHAR(9))")
        rows(two, "INSERT INTO t VALUES (1, 'new')")
        narrow.group.wait_caught_up()
        assert star.execute(1) == [[1, b"new"]]


def test_a_handle_that_the_server_lost_is_made_again(lone: SqlGateway) -> None:
    """The limit of the server and of the connection: what was closed is prepared anew when it is executed."""
    with lone.connect() as one:
        statements = [prepare(one, f"SELECT ? + {number}") for number in range(40)]
        for number, statement in enumerate(statements):
            assert statement.execute(1) == [[1 + number]]


def test_the_servers_limit_is_divided_and_kept(gateways: GatewayMaker, sql_group: MysqlGroup) -> None:
    for server in sql_group.servers:  # others' statements count, too, and stay
        ((_, others),) = server.query("SHOW GLOBAL STATUS LIKE 'Prepared_stmt_count'")
        server.query(f"SET GLOBAL max_prepared_stmt_count = {int(others) + 10}")
    try:
        gateway = gateways(sql_group, settings="pool = {size = 2, min_idle = 0}")
        with gateway.connect() as one, gateway.connect() as two:
            for connection in (one, two):
                statements = [prepare(connection, f"SELECT ? * {number}") for number in range(30)]
                for number, statement in enumerate(statements):
                    assert statement.execute(2) == [[2 * number]]
                    assert prepare(connection, "SELECT 1").execute() == [[1]]
    finally:
        for server in sql_group.servers:
            server.query("SET GLOBAL max_prepared_stmt_count = 16382")


def test_a_client_may_not_prepare_without_end(narrow: SqlGateway) -> None:
    with narrow.connect() as one:
        padding = "x" * 500_000
        for number in range(33):
            prepare(one, f"SELECT {number} /* {padding} */")
        with pytest.raises(pymysql.MySQLError) as full:
            prepare(one, f"SELECT 33 /* {padding} */")
        assert full.value.args[0] == 1461
        assert value(one, "SELECT 1") == 1


def test_what_a_statement_does_to_its_session_is_followed(narrow: SqlGateway) -> None:
    with narrow.connect() as one:
        rows(one, "CREATE TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, v INT)")
        insert = prepare(one, "INSERT INTO t (v) VALUES (?)")
        insert_id = prepare(one, "SELECT LAST_INSERT_ID(), ROW_COUNT()")
        insert.execute(4)
        assert insert.insert_id == 1
        assert insert_id.execute() == [[1, 1]]
        disturb(narrow)
        assert prepare(one, "SELECT LAST_INSERT_ID()").execute() == [[1]]
        prepare(one, "SET NAMES latin1").execute()
        prepare(one, "SET @a = 5").execute()
        prepare(one, "SET time_zone = '+02:00'").execute()
        disturb(narrow)
        assert rows(one, "SELECT @@character_set_client, @a, @@time_zone") == [("latin1", 5, "+02:00")]
        assert pins(one) == []
        prepare(one, "SET @b = ?").execute(6)  # its value is asked for
        assert pins(one) == []
        disturb(narrow)
        assert value(one, "SELECT @b") == 6
        prepare(one, "SELECT @c := ?").execute(7)
        assert [(pin[0], pin[1]) for pin in pins(one)] == [
            ("user variable set to something that cannot be replayed", "SELECT @c := ?")
        ]
        send(one, 0x1F, b"")  # COM_RESET_CONNECTION
        one._read_ok_packet()  # type: ignore[attr-defined]  # the wire is the point
        with pytest.raises(pymysql.MySQLError) as gone:
            insert.execute(5)
        assert gone.value.args[0] == 1243
        assert pins(one) == []


def test_what_the_gateway_answers_itself_has_the_binary_form(narrow: SqlGateway) -> None:
    with narrow.connect() as one:
        ((thread_id,),) = prepare(one, "SELECT CONNECTION_ID()").execute()
        assert isinstance(thread_id, int)
        assert thread_id & 0xFFFFFFFF == one.thread_id()  # type: ignore[no-untyped-call]
        rows(one, "CREATE TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, v INT)")
        asking = prepare(one, "SELECT ROW_COUNT(), LAST_INSERT_ID()")
        rows(one, "INSERT INTO t (v) VALUES (1), (2)")
        disturb(narrow)
        assert asking.execute() == [[2, 1]]
        with pytest.raises(pymysql.MySQLError) as refused:
            prepare(one, "SHOW GATEWAY STATUS")
        assert refused.value.args[0] == 1295


def test_a_procedure_returns_all_its_results(narrow: SqlGateway) -> None:
    narrow.group.primary.query("CREATE PROCEDURE shop.twice(IN n INT) BEGIN SELECT n; SELECT 2 * n; END")
    with narrow.connect(client_flag=CLIENT.MULTI_RESULTS) as one:
        call = prepare(one, "CALL twice(?)")
        for number in range(3):
            assert call.execute(number) == [[2 * number]]


def test_a_replica_that_refuses_the_statement_as_a_write_is_not_asked_again(narrow: SqlGateway) -> None:
    """The second fence, behind a rule's back: a read of the catalogue's own that is none."""
    with narrow.connect() as one:
        rows(one, "CREATE TABLE t (id INT PRIMARY KEY)")
        narrow.group.wait_caught_up()
        before = narrow.figures["reads_refused_as_writes"]
        locked = prepare(one, "SELECT id FROM t WHERE id = ? FOR UPDATE")
        assert locked.execute(1) == []
        assert narrow.figures["reads_refused_as_writes"] == before
        assert last_route(one)["member"] == narrow.group.primary.address


def test_connector_python_with_prepared_cursors(narrow: SqlGateway) -> None:
    filled(narrow)
    connection = mysql.connector.connect(
        host=narrow.host, port=narrow.port, user=APP.user, password=APP.password, database="shop", autocommit=True,
        use_pure=True, ssl_disabled=True, charset="utf8mb4", collation="utf8mb4_general_ci",
    )  # fmt: skip
    with contextlib.closing(connection):
        cursor: Any = connection.cursor(prepared=True)
        for number in range(1, 30):
            cursor.execute("SELECT v, n FROM t WHERE id = %s", (number,))
            assert cursor.fetchall() == [(f"v{number}", number)]
        cursor.execute("INSERT INTO t (v, n) VALUES (%s, %s)", ("é\U0001f600", None))
        assert cursor.rowcount == 1
        inserted = cursor.lastrowid
        cursor.execute("SELECT v, n FROM t WHERE id = %s", (inserted,))
        assert cursor.fetchall() == [("é\U0001f600", None)]


def test_the_last_prepared_statement_has_a_name_of_its_own(narrow: SqlGateway) -> None:
    """MariaDB's clients pipeline COM_STMT_PREPARE and an execution of statement 0xFFFFFFFF."""
    with narrow.connect() as one:
        prepare(one, "SELECT 7")
        assert Statement(one, 0xFFFFFFFF, 1, 0).execute() == [[7]]
        with pytest.raises(pymysql.MySQLError):
            prepare(one, "SELECT nonsense FROM nowhere")
        with pytest.raises(pymysql.MySQLError) as unknown:
            Statement(one, 0xFFFFFFFF, 1, 0).execute()
        assert unknown.value.args[0] == 1243


def test_prepared_statements_of_many_threads_over_two_connections(narrow: SqlGateway) -> None:
    filled(narrow)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            with narrow.connect() as one:
                read = prepare(one, "SELECT v FROM t WHERE id = ?")
                write = prepare(one, "UPDATE t SET n = n + ? WHERE id = ?")
                for turn in range(30):
                    number = (seed * 7 + turn) % 100 + 1
                    assert read.execute(number) == [[f"v{number}".encode()]]
                    if turn % 3 == 0:
                        write.execute(1, number)
                        assert write.affected == 1
                    if turn % 10 == 0:
                        read.close()
                        read = prepare(one, "SELECT v FROM t WHERE id = ?")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with narrow.connect() as one:
        assert value(one, "SELECT SUM(n) FROM t") == 5050 + 10 * 10
