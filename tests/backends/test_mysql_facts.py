"""The facts about servers that leases and sessions rest on (SQL.md, Sessions and connections), each on both servers.

None of these goes through the gateway: if one fails on a new server version, what it says has to be thought over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pymysql
import pytest
from gateways import rows, value

from gateway.demo.mysql_servers import APP, MysqlGroup
from gateway.protocol.mysql.constants import Capability, Command
from gateway.protocol.mysql.ok_packet import SessionChanges, parse_ok, read_state

pytestmark = pytest.mark.servers


@pytest.fixture
def connection(sql_group: MysqlGroup) -> Iterator[Any]:
    """A direct connection to the primary that announces SESSION_TRACK."""
    primary = sql_group.primary
    primary.query("CREATE TABLE shop.t (a INT PRIMARY KEY AUTO_INCREMENT, b INT)")
    opened: Any = pymysql.connect(
        host=primary.host, port=primary.port, user=APP.user, password=APP.password, database="shop", autocommit=True,
        client_flag=int(Capability.SESSION_TRACK), charset="utf8mb4", collation="utf8mb4_unicode_ci",
    )  # fmt: skip
    yield opened
    opened.close()


def command(connection: Any, number: int, argument: bytes = b"") -> SessionChanges | None:
    """Sends a command that is answered by OK; what the state tracker reports with it."""
    connection._execute_command(number, argument)
    packet = connection._read_packet()
    ok = parse_ok(packet.get_all_data())
    return read_state(ok.state, keep_positions=True)[0] if ok.state else None


def reset(connection: Any) -> None:
    command(connection, Command.RESET_CONNECTION)


def mariadb(group: MysqlGroup) -> bool:
    return group.primary.flavor == "mariadb"


def tracking(group: MysqlGroup) -> str:
    if mariadb(group):
        return "SET SESSION session_track_system_variables = 'last_gtid'"
    return "SET SESSION session_track_gtids = 'OWN_GTID'"


def position(changes: SessionChanges | None) -> str | None:
    return (changes.gtids or changes.last_gtid) if changes is not None else None


def test_a_reset_forgets_to_track_positions(connection: Any, sql_group: MysqlGroup) -> None:
    rows(connection, tracking(sql_group))
    assert position(command(connection, Command.QUERY, b"INSERT INTO t (b) VALUES (1)"))
    reset(connection)
    assert not position(command(connection, Command.QUERY, b"INSERT INTO t (b) VALUES (1)"))


def test_a_reset_forgets_the_character_set_of_the_log_in(connection: Any) -> None:
    assert value(connection, "SELECT @@collation_connection") == "utf8mb4_unicode_ci"
    reset(connection)
    assert value(connection, "SELECT @@collation_connection") != "utf8mb4_unicode_ci"


def test_a_reset_keeps_the_database_and_nothing_deselects_one(connection: Any) -> None:
    command(connection, Command.INIT_DB, b"sbtest")
    reset(connection)
    assert value(connection, "SELECT DATABASE()") == "sbtest"


def test_a_reset_keeps_the_role(connection: Any, sql_group: MysqlGroup) -> None:
    """So that what the log-in activated has to be set again behind it (`mysql_state.commands_to`)."""
    primary = sql_group.primary
    primary.query("DROP ROLE IF EXISTS reader")
    primary.query("CREATE ROLE reader")
    primary.query(f"GRANT reader TO {APP.user}@'%'")
    rows(connection, "SET ROLE reader")
    before = value(connection, "SELECT CURRENT_ROLE()")
    assert "reader" in before
    reset(connection)
    assert value(connection, "SELECT CURRENT_ROLE()") == before
    primary.query("DROP ROLE reader")


def test_a_reset_undoes_the_rest(connection: Any) -> None:
    rows(connection, "SET @a = 5, time_zone = '+03:00', timestamp = 5")
    rows(connection, "CREATE TEMPORARY TABLE tmp (a INT)")
    assert value(connection, "SELECT GET_LOCK('fact', 0)") == 1
    rows(connection, "INSERT INTO t (b) VALUES (1)")
    connection.begin()
    rows(connection, "INSERT INTO t (b) VALUES (2)")
    reset(connection)
    assert rows(connection, "SELECT @a, @@time_zone = '+03:00', UNIX_TIMESTAMP() > 5") == [(None, 0, 1)]
    assert value(connection, "SELECT IS_FREE_LOCK('fact')") == 1
    assert value(connection, "SELECT LAST_INSERT_ID()") == 0
    assert value(connection, "SELECT COUNT(*) FROM t") == 1
    with pytest.raises(Exception, match="tmp"):
        rows(connection, "SELECT * FROM tmp")


def test_the_insert_id_of_an_ok_is_not_last_insert_id(connection: Any) -> None:
    connection.query("INSERT INTO t (a) VALUES (77777)")
    assert connection._result.insert_id == 77777
    assert value(connection, "SELECT LAST_INSERT_ID()") == 0


def test_last_insert_id_can_be_replayed(connection: Any) -> None:
    rows(connection, "SET SESSION last_insert_id = 42")
    assert rows(connection, "SELECT LAST_INSERT_ID(), @@identity") == [(42, 42)]


@pytest.mark.parametrize(
    "statement",
    [
        "DO @b := 2",
        "SELECT 3 INTO @c",
        "DO GET_LOCK('fact', 0)",
        "HANDLER t OPEN",
        "LOCK TABLES t READ",
    ],
)
def test_the_state_tracker_misses_some_changes(connection: Any, statement: str) -> None:
    """It is evidence for a change, never against one."""
    rows(connection, "SET SESSION session_track_state_change = 1")
    assert command(connection, Command.QUERY, b"SET @a = 1") is not None
    changes = command(connection, Command.QUERY, statement.encode())
    assert changes is None or not changes.state_changed, changes
    reset(connection)
