"""Which side serves a statement for what its session is: character set, isolation level, several statements in one."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator

import pymysql
import pytest
from gateways import Connection, GatewayMaker, SqlGateway, rows, value
from pymysql.constants import CLIENT

from gateway.demo.mysql_servers import MysqlGroup

pytestmark = pytest.mark.servers


def served_by(connection: Connection) -> int:
    """The server_id of whoever serves a plain read now."""
    return int(value(connection, "SELECT @@server_id"))


def last_route(connection: Connection) -> dict[str, str]:
    return dict(rows(connection, "SHOW GATEWAY LAST ROUTE"))


def test_several_reads_in_one_text_go_to_one_replica(sql_gateway: SqlGateway) -> None:
    primary = sql_gateway.group.primary
    primary.query("CREATE TABLE shop.t (a INT)")
    primary.query("INSERT INTO shop.t VALUES (1), (2)")
    sql_gateway.group.wait_caught_up()
    with (
        sql_gateway.connect(client_flag=CLIENT.MULTI_STATEMENTS) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT @@server_id; SELECT a FROM t ORDER BY a; SHOW TABLES; SELECT @@server_id")
        results = [cursor.fetchall()]
        while cursor.nextset():
            results.append(cursor.fetchall())
        assert results[0] == results[3]
        assert results[0][0][0] in (2, 3)
        assert results[1:3] == [((1,), (2,)), (("t",),)]
        assert last_route(connection)["kind"] == "read"
        for text in ("SELECT a FROM t; SELECT @@read_only", "SELECT @@server_id; INSERT INTO t VALUES (3)"):
            cursor.execute(text)
            while cursor.nextset():
                pass
            assert last_route(connection)["member"] == primary.address, text
        # What fails in the middle leaves the session whole, wherever it ran.
        cursor.execute("SELECT a FROM t; SELECT nonsense")
        with pytest.raises(pymysql.MySQLError):
            cursor.nextset()
        assert value(connection, "SELECT COUNT(*) FROM t") == 3


def test_a_character_set_in_which_signs_are_letters_keeps_reads_at_the_primary(sql_gateway: SqlGateway) -> None:
    with sql_gateway.connect() as connection:
        for charset in ("gbk", "sjis", "big5", "swe7"):
            assert served_by(connection) in (2, 3)
            rows(connection, f"SET NAMES {charset}")
            assert served_by(connection) == 1, charset
            assert "character set" in last_route(connection)["reason"]
            rows(connection, "SET NAMES utf8mb4")
        assert served_by(connection) in (2, 3)


def test_in_swe7_a_sign_is_part_of_a_name(sql_group: MysqlGroup) -> None:
    """The trap itself: ~count(1) calls a function whose name begins with a tilde."""
    primary = sql_group.primary
    primary.query("SET GLOBAL log_bin_trust_function_creators = 1")
    primary.query("CREATE TABLE shop.t (a INT)")
    with primary.connect(database="shop") as connection, connection.cursor() as cursor:
        cursor.execute("SET NAMES swe7")
        with pytest.raises(pymysql.MySQLError, match="1305"):
            cursor.execute("SELECT ~count(1)")
        cursor.execute("SET NAMES utf8mb4")
        cursor.execute("SELECT ~count(1)")


def test_serializable_keeps_reads_at_the_primary_until_the_session_gives_it_up(sql_gateway: SqlGateway) -> None:
    with sql_gateway.connect() as connection:
        rows(connection, "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        assert served_by(connection) == 1
        rows(connection, "START TRANSACTION READ ONLY")
        assert served_by(connection) == 1
        rows(connection, "COMMIT")
        assert "SERIALIZABLE" in last_route(connection)["reason"] or served_by(connection) == 1
        rows(connection, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        assert served_by(connection) in (2, 3)


def explained(gateway: SqlGateway, *arguments: str) -> dict[str, str]:
    """What `gateway explain` says of a plain read."""
    command = [sys.executable, "-m", "gateway", "explain", "--json", "-c", str(gateway.config_file), *arguments]
    asked = subprocess.run([*command, "SELECT @@server_id"], capture_output=True, timeout=60.0, check=True)
    found: dict[str, str] = json.loads(asked.stdout)
    return found


def test_a_database_of_the_servers_own_keeps_a_session_at_the_primary_and_explain_says_so(
    sql_gateway: SqlGateway,
) -> None:
    for database, side in (("shop", "replica"), ("performance_schema", "primary"), ("MySQL", "primary")):
        verdict = explained(sql_gateway, "--database", database)
        assert verdict["target"] == side, verdict
    with sql_gateway.connect("information_schema") as connection:
        assert served_by(connection) == 1
        route = last_route(connection)
        assert route["reason"].startswith(explained(sql_gateway, "-d", "information_schema")["reason"])
        rows(connection, "USE shop")
        assert served_by(connection) in (2, 3)


@contextlib.contextmanager
def isolation_of_the_servers(group: MysqlGroup, level: str) -> Iterator[None]:
    name = "tx_isolation" if group.primary.flavor == "mariadb" else "transaction_isolation"
    before = group.primary.query(f"SELECT @@global.{name}")[0][0]
    group.primary.query(f"SET GLOBAL {name} = '{level}'")
    try:
        yield
    finally:
        group.primary.query(f"SET GLOBAL {name} = '{before}'")


def test_a_primary_that_is_serializable_by_itself_makes_its_sessions_so(
    gateways: GatewayMaker, sql_group: MysqlGroup
) -> None:
    with isolation_of_the_servers(sql_group, "SERIALIZABLE"):
        gateway = gateways(sql_group)
        assert "SERIALIZABLE" in explained(gateway)["reason"]
        with gateway.connect() as connection:
            assert served_by(connection) == 1
            rows(connection, "START TRANSACTION READ ONLY")
            assert served_by(connection) == 1
            rows(connection, "COMMIT")
            rows(connection, "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            assert served_by(connection) in (2, 3)
            connection._execute_command(31, b"")  # type: ignore[attr-defined] # COM_RESET_CONNECTION
            connection._read_ok_packet()  # type: ignore[attr-defined]
            assert served_by(connection) == 1
