"""Other people's clients through `gateway run`: who gets in, who serves what, and what clients are told."""

from __future__ import annotations

import contextlib
import subprocess
from typing import Any

import mysql.connector
import pymysql
import pymysql.constants.CLIENT as CLIENT
import pymysql.constants.COMMAND as COMMAND
import pytest
from gateways import GatewayMaker, SqlGateway, rows, value

from gateway.demo import programs
from gateway.demo.mysql_servers import APP, Account, MysqlGroup

pytestmark = pytest.mark.servers

SECONDS = 30.0


def by_connector(gateway: SqlGateway, **more: Any) -> Any:
    settings = {
        "database": "shop",
        "collation": "utf8mb4_general_ci",
        "use_pure": True,
        "ssl_disabled": True,
        "autocommit": True,
        **more,
    }
    return mysql.connector.connect(
        host=gateway.host, port=gateway.port, user=APP.user, password=APP.password, **settings
    )


def test_pymysql_reads_at_replicas_and_writes_at_the_primary(sql_gateway: SqlGateway) -> None:
    with sql_gateway.connect() as one:
        rows(one, "CREATE TABLE t (a INT PRIMARY KEY AUTO_INCREMENT, b INT)")
        rows(one, "INSERT INTO t (b) VALUES (@@server_id)")
        assert value(one, "SELECT LAST_INSERT_ID()") == 1
        assert value(one, "SELECT b FROM t") == 1
        one.begin()
        assert value(one, "SELECT @@server_id") == 1
        one.commit()
    sql_gateway.group.wait_caught_up()
    served = set()
    for _ in range(6):
        with sql_gateway.connect() as another:
            served |= {value(another, "SELECT @@server_id FROM t") for _ in range(3)}
    assert served == {2, 3}


def test_mysql_connector_and_its_prepared_statements(sql_gateway: SqlGateway) -> None:
    with contextlib.closing(by_connector(sql_gateway)) as one:
        cursor = one.cursor()
        cursor.execute("CREATE TABLE t (a INT PRIMARY KEY AUTO_INCREMENT, b VARCHAR(200), c DECIMAL(8,2), d DATETIME)")
        prepared = one.cursor(prepared=True)
        for number in range(20):
            prepared.execute("INSERT INTO t (b, c) VALUES (%s, %s)", (f"row {number} é 漢", number / 4))
        assert prepared.lastrowid == 20
        prepared.execute("SELECT b, c FROM t WHERE a > %s ORDER BY a", (18,))
        assert [(b, float(c)) for b, c in prepared.fetchall()] == [("row 18 é 漢", 4.5), ("row 19 é 漢", 4.75)]
        assert dict(shown(one, "SHOW GATEWAY LAST ROUTE"))["pins"] is None
        prepared.close()
        cursor.execute("SELECT COUNT(*), @@server_id FROM t")
        count, server = cursor.fetchone()
        assert count == 20
        assert server in (2, 3)


def shown(connection: Any, sql: str) -> list[Any]:
    cursor = connection.cursor()
    cursor.execute(sql)
    found = list(cursor.fetchall())
    cursor.close()
    return found


def test_long_data_of_a_prepared_statement(sql_gateway: SqlGateway) -> None:
    with contextlib.closing(by_connector(sql_gateway)) as one:
        cursor = one.cursor()
        cursor.execute("CREATE TABLE t (a INT PRIMARY KEY, b LONGBLOB)")
        prepared = one.cursor(prepared=True)
        prepared.execute("INSERT INTO t VALUES (%s, %s)", (1, b"\0\xff'" * 100_000))
        prepared.execute("SELECT LENGTH(b), CRC32(b) = CRC32(%s) FROM t", (b"\0\xff'" * 100_000,))
        assert prepared.fetchall() == [(300_000, 1)]


def test_a_reset_connection_forgets_what_the_session_set(sql_gateway: SqlGateway) -> None:
    with contextlib.closing(by_connector(sql_gateway)) as one:
        cursor = one.cursor()
        cursor.execute("SET @a = 5, SESSION lock_wait_timeout = 77")
        cursor.execute("CREATE TEMPORARY TABLE mine (a INT)")
        cursor.execute("SELECT @a, @@lock_wait_timeout")
        assert cursor.fetchall() == [(5, 77)]
        one.cmd_reset_connection()
        cursor.execute("SELECT @a, @@lock_wait_timeout = @@global.lock_wait_timeout, DATABASE()")
        assert cursor.fetchall() == [(None, 1, "shop")]
        with pytest.raises(mysql.connector.Error) as refused:
            cursor.execute("SELECT * FROM mine")
        assert refused.value.errno == 1146
        assert shown(one, "SHOW GATEWAY PINS") == []


def test_the_small_commands(sql_gateway: SqlGateway) -> None:
    raw: Any
    with sql_gateway.connect() as one:
        raw = one
        one.ping(reconnect=False)
        assert "Uptime" in one_packet(one, COMMAND.COM_STATISTICS)
        rows(one, "CREATE TABLE t (a INT, b INT)")
        raw._execute_command(COMMAND.COM_FIELD_LIST, b"t\0%")
        columns = 0
        while not raw._read_packet().is_eof_packet():
            columns += 1
        assert columns == 2
        one.select_db("sbtest")
        assert value(one, "SELECT DATABASE()") == "sbtest"
        with pytest.raises(pymysql.OperationalError) as refused:
            one.select_db("nowhere")
        assert refused.value.args[0] in (1044, 1049)
        assert value(one, "SELECT DATABASE()") == "sbtest"
        with pytest.raises(pymysql.MySQLError) as unknown:
            one_packet(one, COMMAND.COM_BINLOG_DUMP)
        assert unknown.value.args[0] == 1047
        assert value(one, "SELECT 1") == 1


def one_packet(connection: Any, command: int, argument: bytes = b"") -> str:
    connection._execute_command(command, argument)
    packet = connection._read_packet()
    text: str = packet.get_all_data().decode("utf-8", "replace")
    return text


def test_several_statements_and_several_results(sql_gateway: SqlGateway) -> None:
    with sql_gateway.connect(client_flag=CLIENT.MULTI_STATEMENTS) as one, one.cursor() as cursor:
        script = "CREATE TABLE t (a INT PRIMARY KEY); INSERT INTO t VALUES (1), (2); SELECT a FROM t; SELECT 9"
        assert all_results(one, script) == [[], [], [(1,), (2,)], [(9,)]]
        cursor.execute("SELECT 1; SELECT 2")
        assert cursor.fetchall() == ((1,),)
        assert cursor.nextset()
        assert cursor.fetchall() == ((2,),)
        cursor.execute("CREATE PROCEDURE p() BEGIN SELECT 1; SELECT 2, 3; INSERT INTO t VALUES (7); END")
        cursor.execute("CALL p()")
        assert cursor.fetchall() == ((1,),)
        assert cursor.nextset()
        assert cursor.fetchall() == ((2, 3),)
        assert cursor.nextset()
        assert not cursor.nextset()
        cursor.execute("SELECT COUNT(*) FROM t")
        assert cursor.fetchall() == ((3,),)


def all_results(connection: Any, sql: str) -> list[list[Any]]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        found = [list(cursor.fetchall())]
        while cursor.nextset():
            found.append(list(cursor.fetchall()))
    return found


def test_several_statements_without_being_agreed_on_are_a_syntax_error(sql_gateway: SqlGateway) -> None:
    with sql_gateway.connect() as one:
        with pytest.raises(pymysql.ProgrammingError) as refused:
            rows(one, "SELECT 1; SELECT 2")
        assert refused.value.args[0] == 1064


def test_a_transaction_begun_in_a_text_that_fails_goes_on(sql_gateway: SqlGateway) -> None:
    with sql_gateway.connect(client_flag=CLIENT.MULTI_STATEMENTS) as one:
        rows(one, "CREATE TABLE t (a INT PRIMARY KEY)")
        with pytest.raises(pymysql.MySQLError):
            all_results(one, "BEGIN; INSERT INTO t VALUES (1); SELECT * FROM nowhere")
        assert value(one, "SELECT @@server_id") == 1
        assert value(one, "SELECT COUNT(*) FROM t") == 1
        one.rollback()
        assert value(one, "SELECT COUNT(*) FROM t") == 0


def test_load_data_local_is_not_offered(sql_gateway: SqlGateway, tmp_path: Any) -> None:
    (tmp_path / "secret").write_text("1\n")
    with sql_gateway.connect(local_infile=True) as one:
        rows(one, "CREATE TABLE t (a INT)")
        with pytest.raises(pymysql.MySQLError):
            rows(one, f"LOAD DATA LOCAL INFILE '{tmp_path}/secret' INTO TABLE t")
        assert value(one, "SELECT COUNT(*) FROM t") == 0


@pytest.mark.parametrize(
    ("account", "database"),
    [
        (Account("app", "wrong"), "shop"),
        (Account("app", ""), "shop"),
        (Account("nobody", "app-secret"), "shop"),
        (APP, "nowhere"),
        (APP, "mysql"),
    ],
    ids=["wrong password", "no password", "unknown user", "unknown database", "forbidden database"],
)
def test_who_may_not_come_in_is_told_as_the_server_tells_it(
    sql_gateway: SqlGateway, account: Account, database: str
) -> None:
    with pytest.raises(pymysql.OperationalError) as direct, sql_gateway.group.primary.connect(account, database):
        pass
    with pytest.raises(pymysql.OperationalError) as through, sql_gateway.connect(database, account):
        pass
    assert through.value.args == direct.value.args
    with sql_gateway.connect() as one:
        assert value(one, "SELECT 1") == 1


def test_what_the_user_may_not_do_is_told_as_the_server_tells_it(sql_gateway: SqlGateway) -> None:
    with sql_gateway.connect() as one, sql_gateway.group.primary.connect(database="shop") as direct:
        for sql in (
            "SELECT * FROM mysql.user",
            "CREATE DATABASE other",
            "SELECT * FROM nowhere",
            "SELECT nothing",
            "SELEC 1",
            "INSERT INTO nowhere VALUES (1)",
            "",
        ):
            errors = []
            for connection in (one, direct):
                with pytest.raises(pymysql.MySQLError) as refused:
                    rows(connection, sql)
                errors.append((type(refused.value), refused.value.args))
            assert errors[0] == errors[1]


def test_the_command_line_client_of_mariadb(sql_gateway: SqlGateway) -> None:
    program = programs.debian("mariadb", "mariadb-client")
    assert by_command_line(sql_gateway, [*program.command, "--no-defaults", "--batch"]) == ["shop", "1", "2", "1", "2"]


def test_the_command_line_client_of_mysql_9(sql_gateway: SqlGateway) -> None:
    program = programs.unstable("bin/mysql", "mysql-client")
    if sql_gateway.group.primary.flavor != "mysql":
        pytest.skip("the client has no mysql_native_password")
    command = [*program.command, "--no-defaults", "--batch", "--get-server-public-key", "--ssl-mode=DISABLED"]
    assert by_command_line(sql_gateway, command) == ["shop", "1", "2", "1", "2"]


def by_command_line(gateway: SqlGateway, command: list[str]) -> list[str]:
    script = (
        "SELECT DATABASE(); CREATE TABLE t (a INT); INSERT INTO t VALUES (1), (2); SELECT a FROM t ORDER BY a;\n"
        "DELIMITER //\nSELECT 1; SELECT 2//\n"
    )
    place = [f"--host={gateway.host}", f"--port={gateway.port}", "--protocol=tcp", "--skip-column-names"]
    done = subprocess.run(
        [*command, *place, f"--user={APP.user}", f"--password={APP.password}", "shop"],
        input=script,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_packets_over_16_mib_both_ways(gateways: GatewayMaker, sql_group: MysqlGroup) -> None:
    for server in sql_group.servers:
        server.query("SET GLOBAL max_allowed_packet = 134217728")
    gateway = gateways(sql_group, listener='max_allowed_packet = "40MiB"')
    size = (1 << 24) + 12_345
    with gateway.connect(max_allowed_packet=1 << 27) as one:
        rows(one, "CREATE TABLE t (a INT PRIMARY KEY, b LONGBLOB)")
        rows(one, "INSERT INTO t VALUES (1, %s)", (b"x" * size,))
        assert value(one, "SELECT b FROM t") == b"x" * size
        for length in ((1 << 24) - 1 - 17, (1 << 24) - 1 - 9, (1 << 24) - 1, 1 << 24):
            assert value(one, f"SELECT REPEAT('y', {length})") == "y" * length
        with pytest.raises(pymysql.MySQLError) as refused:
            rows(one, "SELECT LENGTH(%s)", (b"x" * (41 << 20),))
        assert refused.value.args[0] in (1153, 2006, 2013)
    with gateway.connect() as another:
        assert value(another, "SELECT LENGTH(b) FROM t") == size
