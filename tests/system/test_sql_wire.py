"""The MySQL wire through `gateway run`, packet by packet, compared with the same server asked directly."""

from __future__ import annotations

import subprocess
from typing import Any

import mysql.connector
import pytest
from gateways import SqlGateway
from wire_client import NEW, OLD, WireClient

from gateway.demo import programs
from gateway.demo.mysql_servers import APP, MysqlFamilyServer
from gateway.protocol.mysql import commands
from gateway.protocol.mysql.constants import Capability, Command, ErrorCode
from gateway.protocol.mysql.packets import packet

pytestmark = pytest.mark.servers

SECONDS = 60.0
ATTRIBUTES = NEW | int(Capability.QUERY_ATTRIBUTES)
METADATA = NEW | int(Capability.MARIADB_EXTENDED_METADATA)


def command(number: int, argument: bytes = b"") -> bytes:
    return packet(0, bytes((number,)) + argument)


def set_option(option: int) -> bytes:
    return command(Command.SET_OPTION, option.to_bytes(2, "little"))


def is_mariadb(gateway: SqlGateway) -> bool:
    return gateway.group.primary.flavor == "mariadb"


def both(gateway: SqlGateway) -> tuple[SqlGateway, MysqlFamilyServer]:
    return gateway, gateway.group.primary


# ---------------------------------------------------------------- commands


# Those that have no reply, that need an argument, and that only replicas or killers send.
NOT_COMPARED = (
    {int(one) for one in Command}
    - {int(one) for one in (Command.SLEEP, Command.CREATE_DB, Command.DROP_DB, Command.CONNECT, Command.TIME)}
    - {Command.DELAYED_INSERT, Command.CONNECT_OUT, Command.DAEMON, Command.RESET_CONNECTION}
)


@pytest.mark.parametrize("capabilities", [OLD, NEW], ids=["old client", "new client"])
def test_every_command_byte_is_answered_as_the_server_answers_it(sql_gateway: SqlGateway, capabilities: int) -> None:
    not_offered = {0x20, 0x21, *range(0xFA, 0xFF)}  # MySQL's COM_CLONE and its kin, MariaDB's bulk operations
    with (
        WireClient(sql_gateway, capabilities=capabilities) as through,
        WireClient(sql_gateway.group.primary, capabilities=capabilities) as direct,
    ):
        for number in set(range(256)) - NOT_COMPARED:
            answer = through.reply(command(number))
            if number not in not_offered:
                assert answer == direct.reply(command(number)), number
            if number != Command.RESET_CONNECTION:
                assert through.tracker.error is not None
                assert through.tracker.error.code == ErrorCode.UNKNOWN_COMMAND, number
        for number in (Command.BINLOG_DUMP, Command.BINLOG_DUMP_GTID, Command.REGISTER_SLAVE, Command.TABLE_DUMP):
            error = through.error(command(number))
            assert error is not None
            assert (error.code, error.sqlstate) == (1047, "08S01")
        assert through.rows("SELECT 1") == [("1",)]


@pytest.mark.parametrize("capabilities", [OLD, NEW], ids=["old client", "new client"])
def test_the_small_commands_answer_as_the_server_does(sql_gateway: SqlGateway, capabilities: int) -> None:
    root = sql_gateway.group.primary
    with (
        WireClient(sql_gateway, capabilities=capabilities) as through,
        WireClient(root, capabilities=capabilities) as direct,
    ):
        through.rows("CREATE TABLE fields (a INT NOT NULL DEFAULT 7, b TEXT)")
        compared = [
            command(Command.DEBUG),  # needs a privilege
            command(Command.REFRESH, b"\x01"),
            command(Command.FIELD_LIST, b"fields\0"),
            command(Command.FIELD_LIST, b"fields\0b%"),
            command(Command.FIELD_LIST, b"nowhere\0"),
            command(Command.INIT_DB, b"nowhere"),
        ]
        for raw in compared:
            answer, expected = through.reply(raw), direct.reply(raw)
            assert through.tracker.error == direct.tracker.error, raw
            if through.tracker.error is None:
                assert answer == expected, raw
        assert b"Uptime" in through.reply(command(Command.STATISTICS))
        assert through.rows("SELECT 1") == [("1",)]


def test_a_process_list_is_the_primary_s(sql_gateway: SqlGateway) -> None:
    with WireClient(sql_gateway) as through, WireClient(sql_gateway.group.primary) as direct:
        answer, expected = through.reply(command(Command.PROCESS_INFO)), direct.reply(command(Command.PROCESS_INFO))
        assert answer[:5] == expected[:5]
        assert through.tracker.error == direct.tracker.error


# ---------------------------------------------------------------- COM_SET_OPTION

TWO = "SELECT 1; SELECT 2"


@pytest.mark.parametrize("capabilities", [OLD, NEW], ids=["off at first", "on at first"])
def test_multi_statements_are_switched_as_at_the_server(sql_gateway: SqlGateway, capabilities: int) -> None:
    with (
        WireClient(sql_gateway, capabilities=capabilities) as through,
        WireClient(sql_gateway.group.primary, capabilities=capabilities) as direct,
    ):
        for raw in [
            commands.query(TWO), set_option(1), commands.query(TWO), set_option(0), commands.query(TWO),
            set_option(0), set_option(2), command(Command.RESET_CONNECTION), commands.query(TWO), set_option(1),
            command(Command.RESET_CONNECTION), commands.query(TWO),
        ]:  # fmt: skip
            for client in (through, direct):
                client.error(raw)
            assert through.tracker.error == direct.tracker.error, raw
            assert through.tracker.status == direct.tracker.status, raw


def test_switching_multi_statements_keeps_transactions_insert_ids_and_other_sessions(sql_gateway: SqlGateway) -> None:
    with WireClient(sql_gateway) as one, WireClient(sql_gateway, capabilities=OLD) as other:
        one.rows("CREATE TABLE t (a INT PRIMARY KEY AUTO_INCREMENT, b INT)")
        one.rows("INSERT INTO t (b) VALUES (1)")
        one.rows("INSERT INTO t (b) VALUES (2)")
        assert one.error(set_option(1)) is None
        assert one.rows("SELECT LAST_INSERT_ID()") == [("2",)]
        refused = one.error(commands.query("INSERT INTO t (b) VALUES (3); DELETE FROM t"))
        assert refused is not None
        assert refused.code == 1064
        one.rows("BEGIN")
        one.rows("INSERT INTO t (b) VALUES (4)")
        assert one.error(set_option(0)) is None
        assert one.rows("INSERT INTO t (b) VALUES (5); SELECT COUNT(*) FROM t") == [("4",)]
        assert other.rows("SELECT COUNT(*) FROM t") == [("2",)]
        one.rows("ROLLBACK")
        assert one.rows("SELECT COUNT(*) FROM t") == [("2",)]
        for _ in range(5):
            refused = other.error(commands.query(TWO))
            assert refused is not None
            assert refused.code == 1064


# ---------------------------------------------------------------- query attributes

# One attribute, a text: `name` = `value`.
ONE_ATTRIBUTE = b"\x01\x01\x00\x01\xfe\x00\x04name\x05value"


def test_query_attributes_are_offered_where_the_servers_have_them(sql_gateway: SqlGateway) -> None:
    with WireClient(sql_gateway, capabilities=ATTRIBUTES) as through:
        assert bool(through.capabilities & Capability.QUERY_ATTRIBUTES) == (not is_mariadb(sql_gateway))
        assert through.rows("SELECT 1") == [("1",)]
        through.rows("CREATE TABLE t (a INT)")
        through.rows("INSERT INTO t VALUES (1), (2)")
        sql_gateway.group.wait_caught_up()
        assert through.rows("SELECT COUNT(*), @@server_id > 1 FROM t") == [("2", "1")]
        through.rows("SET @a = 5, NAMES latin1")
        assert through.rows("SELECT @a, @@character_set_client") == [("5", "latin1")]
        through.rows("BEGIN")
        assert through.rows("SELECT @@server_id") == [("1",)]
        through.rows("COMMIT")
        error = through.error(commands.query("SELECT nonsense"))
        assert error is not None
        assert error.code == 1054
        assert through.rows("SHOW GATEWAY PINS") == []


def test_attributes_are_parsed_off_before_classification_and_reach_the_server(mysql9_gateway: SqlGateway) -> None:
    with WireClient(mysql9_gateway, capabilities=ATTRIBUTES) as through:
        through.rows("CREATE TABLE t (a INT)")
        for statement, kind in ((b"SELECT COUNT(*) FROM t", "read"), (b"INSERT INTO t VALUES (1)", "write")):
            through.sock.sendall(packet(0, b"\x03" + ONE_ATTRIBUTE + statement))
            through.read_reply(Command.QUERY)
            assert through.tracker.error is None
            assert ("kind", kind) in through.rows("SHOW GATEWAY LAST ROUTE")
        served = mysql9_gateway.group.primary.query("SELECT COUNT(*) FROM shop.t")
        assert [int(row[0]) for row in served] == [1]
        # The server reads the attribute, or else it would have called this a syntax error; and so does the reader of
        # the connection behind it.
        for _ in range(3):
            assert through.rows("SELECT 1") == [("1",)]


@pytest.mark.parametrize(
    "payload", [b"\x03", b"\x03\x00", b"\x03\x01\x01\x00\x00SELECT 1", b"\x03\xfe" + b"\xff" * 8 + b"\x01SELECT 1"]
)
def test_malformed_attributes_end_the_connection(mysql9_gateway: SqlGateway, payload: bytes) -> None:
    with WireClient(mysql9_gateway, capabilities=ATTRIBUTES) as through:
        through.sock.sendall(packet(0, payload))
        through.read_reply(Command.QUERY)
        assert through.tracker.error is not None
        assert through.tracker.error.code == ErrorCode.MALFORMED_PACKET
        assert through.is_closed()


def test_mysql_connector_s_attributes(sql_gateway: SqlGateway) -> None:
    connection: Any = mysql.connector.connect(
        host=sql_gateway.host, port=sql_gateway.port, user=APP.user, password=APP.password, database="shop",
        use_pure=True, ssl_disabled=True, collation="utf8mb4_general_ci",
    )  # fmt: skip
    cursor = connection.cursor()
    if not is_mariadb(sql_gateway):
        cursor.add_attribute("trace", "4711")
        cursor.add_attribute("number", 5)
    cursor.execute("SELECT 1 + %s", (1,))
    assert cursor.fetchall() == [(2,)]
    cursor.close()
    for arguments in ((3,), (4,), (None,)):
        prepared = connection.cursor(prepared=True)
        if not is_mariadb(sql_gateway):
            prepared.add_attribute("trace", "4712")
        prepared.execute("SELECT %s + 1", arguments)
        assert prepared.fetchall() == [(None if arguments[0] is None else arguments[0] + 1,)]
        prepared.close()
    connection.close()


def test_the_mysql_client_sends_attributes(mysql9_gateway: SqlGateway) -> None:
    script = "CREATE TABLE t (a INT);\nINSERT INTO t VALUES (7);\nSELECT a FROM t;\nSET @x = 2;\nSELECT @x;\n"
    assert mysql_client(mysql9_gateway, script) == "7\n2\n"


def mysql_client(gateway: SqlGateway, script: str, *options: str) -> str:
    program = programs.unstable("bin/mysql", "mysql-client")
    command = [*program.command, "--no-defaults", "--batch", "--skip-column-names", "--protocol=tcp"]
    place = [f"--host={gateway.host}", f"--port={gateway.port}", f"--user={APP.user}", f"--password={APP.password}"]
    done = subprocess.run(
        [*command, *place, "--get-server-public-key", "--ssl-mode=DISABLED", *options, "shop"],
        input=script,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---------------------------------------------------------------- MariaDB's metadata


def test_only_extended_metadata_of_mariadb_is_offered(sql_gateway: SqlGateway) -> None:
    with WireClient(sql_gateway, capabilities=METADATA) as through:
        extended = int(Capability.MARIADB_EXTENDED_METADATA) if is_mariadb(sql_gateway) else 0
        assert through.offered >> 32 << 32 == extended
        assert through.capabilities >> 32 << 32 == extended
        assert bool(through.offered & Capability.LONG_PASSWORD) == (not extended)


def test_extended_metadata_passes_as_the_server_sends_it(mariadb_gateway: SqlGateway) -> None:
    statements = [
        "SELECT * FROM t", "SELECT j, p FROM t LIMIT 0", "SELECT 1", "SHOW COLUMNS FROM t", "SELECT nonsense",
        "SELECT POINT(1, 2)", "SELECT INET6_ATON('::1'), CAST('::1' AS INET6)",
    ]  # fmt: skip
    with WireClient(mariadb_gateway) as maker:
        maker.rows("CREATE TABLE t (j JSON, p POINT, i INET6, u UUID)")
        maker.rows("INSERT INTO t VALUES ('{\"a\": 1}', POINT(1, 2), '::1', UUID())")
    mariadb_gateway.group.wait_caught_up()
    for capabilities in (METADATA, METADATA & ~int(Capability.DEPRECATE_EOF), NEW, OLD):
        with (
            WireClient(mariadb_gateway, capabilities=capabilities) as through,
            WireClient(mariadb_gateway.group.primary, capabilities=capabilities) as direct,
        ):
            assert through.capabilities == direct.capabilities
            for statement in statements:
                raw = commands.query(statement)
                assert through.reply(raw) == direct.reply(raw), statement
            # What the gateway answers itself has the same form, and its own questions are read in it.
            assert through.ask("SHOW GATEWAY STATUS").columns == ["name", "value"]
            through.rows("INSERT INTO t (j) VALUES ('1')")
            assert through.rows("SELECT LAST_INSERT_ID()") == [("0",)]


# ---------------------------------------------------------------- DEPRECATE_EOF


@pytest.mark.parametrize("capabilities", [OLD, NEW], ids=["old client", "new client"])
def test_replies_end_as_the_server_ends_them(sql_gateway: SqlGateway, capabilities: int) -> None:
    with WireClient(sql_gateway) as maker:
        maker.rows("CREATE TABLE t (a INT PRIMARY KEY, b TEXT)")
        maker.rows("INSERT INTO t VALUES (1, 'one'), (2, NULL), (3, REPEAT('x', 60000))")
        maker.rows("CREATE PROCEDURE p() BEGIN SELECT 1; SELECT b FROM t WHERE a < 3; END")
    sql_gateway.group.wait_caught_up()
    with (
        WireClient(sql_gateway, capabilities=capabilities) as through,
        WireClient(sql_gateway.group.primary, capabilities=capabilities) as direct,
    ):
        for statement in ("SELECT 1", "SELECT * FROM t", "SELECT * FROM t WHERE a > 9", "CALL p()", "DO 1", "SELECT x"):
            raw = commands.query(statement)
            assert through.reply(raw) == direct.reply(raw), statement


# ---------------------------------------------------------------- session tracking

ASKED = {
    "mysql": ["SET SESSION session_track_gtids = OWN_GTID, session_track_state_change = ON"],
    "mariadb": ["SET SESSION session_track_system_variables = 'autocommit,last_gtid', session_track_state_change = ON"],
}


def tracked(client: WireClient, statement: str) -> tuple[object, ...]:
    """What the reply says of the session; of positions only whether there are any."""
    client.reply(commands.query(statement))
    assert client.tracker.error is None, client.tracker.error
    changes = client.tracker.changes
    if changes is None:
        return ()
    gtids, last_gtid = str(bool(changes.gtids)), str(bool(changes.last_gtid))
    return changes._replace(gtids=gtids, last_gtid=last_gtid, variables=tuple(sorted(changes.variables)))


@pytest.mark.parametrize("asks", [False, True], ids=["defaults", "asked for"])
def test_a_client_hears_of_its_session_what_it_would_hear_directly(sql_gateway: SqlGateway, asks: bool) -> None:
    flavor = sql_gateway.group.primary.flavor
    with WireClient(sql_gateway) as through, WireClient(sql_gateway.group.primary) as direct:
        through.rows("CREATE TABLE t (a INT)")
        for statement in ASKED[flavor] if asks else []:
            through.rows(statement)
            direct.rows(statement)
        for statement in (
            "INSERT INTO t VALUES (1)",
            "USE shop",
            "SET autocommit = 1",
            "DO 1",
            "INSERT INTO t VALUES (2)",
        ):
            assert tracked(through, statement) == tracked(direct, statement), statement
        through.reply(command(Command.RESET_CONNECTION))
        direct.reply(command(Command.RESET_CONNECTION))
        for statement in ("INSERT INTO t VALUES (3)", "USE shop"):
            assert tracked(through, statement) == tracked(direct, statement), statement
