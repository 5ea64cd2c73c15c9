"""`gateway run` as an operator uses it: status, SHOW GATEWAY, reload, drain, and starts that fail in one line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pymysql
import pytest
from gateways import Connection, GatewayMaker, SqlGateway, rows, value

from gateway.demo.mysql_servers import MysqlGroup
from gateway.demo.stack import Stack
from gateway.protocol.mysql.commands import query
from gateway.protocol.mysql.constants import ErrorCode
from gateway.protocol.mysql.results import ResultReader
from gateway.routing.operation import PinCause
from gateway.sessions.mysql_gateway import _ADVICE

pytestmark = pytest.mark.servers

SECONDS = 30.0


def command(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=environment,
    )


def test_status_tells_who_serves_what(sql_gateway: SqlGateway) -> None:
    with sql_gateway.connect() as one:
        rows(one, "CREATE TABLE t (a INT)")
        sql_gateway.group.wait_caught_up()
        assert value(one, "SELECT COUNT(*) FROM t") == 0
        asked = command("status", "--json", "-c", str(sql_gateway.config_file))
        assert asked.returncode == 0, asked.stderr
        status: dict[str, Any] = json.loads(asked.stdout)
        members = {member["name"]: member for member in status["groups"]["orders"]["members"]}
        assert [members[server.address]["role"] for server in sql_gateway.group.servers] == [
            "primary",
            "replica",
            "replica",
        ]
        assert status["groups"]["orders"]["primary"] == sql_gateway.group.primary.address
        assert all(member["fault"] is None and member["position"] for member in members.values())
        assert sum(member["reads"] for member in members.values()) > 0
        assert status["listeners"][0]["connections"] == 1
    wide = {**os.environ, "COLUMNS": "200"}
    table = command("status", "-c", str(sql_gateway.config_file), environment=wide)
    assert table.returncode == 0
    assert sql_gateway.group.primary.address in table.stdout


def test_show_gateway_tells_a_client_with_sql_alone(sql_gateway: SqlGateway) -> None:
    with sql_gateway.connect() as one:
        figures = dict(rows(one, "SHOW GATEWAY STATUS"))
        assert figures["primary"] == sql_gateway.group.primary.address
        members = rows(one, "show gateway members")
        assert [row[:3] for row in members] == [
            (server.address, role, "serves")
            for server, role in zip(sql_gateway.group.servers, ("primary", "replica", "replica"), strict=True)
        ]
        rows(one, "CREATE TABLE t (a INT)")
        value(one, "SELECT COUNT(*) FROM t")
        route = dict(rows(one, "SHOW GATEWAY LAST ROUTE"))
        assert route["statement"] == "select"
        assert route["kind"] == "read"
        assert route["member"] in {server.address for server in sql_gateway.group.servers}
        rows(one, "SELECT @a := UUID()")
        rows(one, "SELECT GET_LOCK('a', 0)")
        pins = rows(one, "SHOW GATEWAY PINS")
        assert {row[1] for row in pins} == {"SELECT @a := UUID()", "SELECT GET_LOCK('a', 0)"}
        with pytest.raises(pymysql.MySQLError, match="SHOW GATEWAY knows") as unknown:
            rows(one, "SHOW GATEWAY WEATHER")
        assert unknown.value.args[0] == ErrorCode.NOT_SUPPORTED_YET
        assert value(one, "SELECT 1") == 1


def test_every_cause_of_a_pin_comes_with_advice() -> None:
    assert set(_ADVICE) == set(PinCause.__members__)


def test_sighup_takes_new_rules_or_none(gateways: GatewayMaker, mariadb_group: MysqlGroup) -> None:
    gateway = gateways(mariadb_group)
    gateway.expected.append("nothing was reloaded")
    rule = '[[rule]]\nname = "no"\nmatch = {protocol = "mysql", statement = "delete"}\nblock = "not today"\n'
    assert gateway.process is not None
    with gateway.connect() as one:
        rows(one, "CREATE TABLE t (a INT)")
        rows(one, "DELETE FROM t")
        gateway.rule_file.write_text(rule)
        gateway.process.signal(signal.SIGHUP)
        gateway.wait_until(lambda: gateway.status()["rules"] == 1, "the rule is in force")
        with pytest.raises(pymysql.MySQLError, match="not today"):
            rows(one, "DELETE FROM t")
        gateway.rule_file.write_text(rule.replace("statement", "statment"))
        gateway.process.signal(signal.SIGHUP)
        gateway.wait_until(lambda: "nothing was reloaded" in gateway.log.read_text(), "the rules were refused")
        with pytest.raises(pymysql.MySQLError, match="not today"):
            rows(one, "DELETE FROM t")
        rows(one, "INSERT INTO t VALUES (1)")


def test_sigterm_lets_a_transaction_end_and_closes_the_idle(gateways: GatewayMaker, sql_group: MysqlGroup) -> None:
    gateway = gateways(sql_group, general='drain_timeout = "10s"')
    assert gateway.process is not None
    with gateway.connect() as busy, gateway.connect() as idle:
        rows(busy, "CREATE TABLE t (a INT)")
        busy.begin()
        rows(busy, "INSERT INTO t VALUES (1)")
        gateway.process.signal(signal.SIGTERM)
        with pytest.raises(pymysql.MySQLError) as closed:
            query_until_closed(idle)
        assert closed.value.args[0] in (1053, 2006, 2013)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((gateway.host, gateway.port), timeout=5.0)
        rows(busy, "INSERT INTO t VALUES (2)")
        busy.commit()
        assert gateway.process.wait(5.0)
    assert sql_group.primary.query("SELECT COUNT(*) FROM shop.t") == [(2,)]


def query_until_closed(connection: Connection) -> None:
    for _ in range(1000):
        rows(connection, "SELECT 1")
        time.sleep(0.01)  # the signal takes its time, and nothing tells a client


def test_sigterm_ends_what_does_not_end_itself(gateways: GatewayMaker, mariadb_group: MysqlGroup) -> None:
    gateway = gateways(mariadb_group, general='drain_timeout = "500ms"')
    assert gateway.process is not None
    with gateway.connect() as one:
        rows(one, "CREATE TABLE t (a INT)")
        one.begin()
        rows(one, "INSERT INTO t VALUES (1)")
        gateway.process.signal(signal.SIGTERM)
        assert gateway.process.wait(10.0)
        with pytest.raises(pymysql.MySQLError):
            one.commit()
    assert mariadb_group.primary.query("SELECT COUNT(*) FROM shop.t") == [(0,)]


def test_a_start_that_fails_says_why_in_one_line(stack: Stack, mariadb_gateway: SqlGateway) -> None:
    gateway = SqlGateway(stack, mariadb_gateway.group)
    gateway.prepare()
    original = gateway.config_file.read_text()

    def refused(text: str) -> str:
        gateway.config_file.write_text(text)
        started = command("run", "-c", str(gateway.config_file))
        assert started.returncode == 3, started.stderr
        lines = [line for line in started.stderr.splitlines() if line.startswith("gateway: ")]
        assert len(lines) == 1, started.stderr
        assert "Traceback" not in started.stderr
        return lines[0]

    assert "in use" in refused(original.replace(gateway.address, mariadb_gateway.address))
    secret = 'password = {env = "NO_SUCH_VARIABLE"}}\nusers'
    assert "NO_SUCH_VARIABLE" in refused(original.replace('password = "gateway-secret"}\nusers', secret))
    assert "consistancy" in refused(original.replace('group = "orders"\n', 'group = "orders"\nconsistancy = "x"\n', 1))
    assert "another" in refused(original.replace(str(gateway.data_dir), str(mariadb_gateway.data_dir))).lower()
    with mariadb_gateway.connect() as one:
        assert value(one, "SELECT 1") == 1


def test_a_read_that_a_replica_refuses_as_a_write_runs_at_the_primary(mariadb_gateway: SqlGateway) -> None:
    """The second fence: a view hides from the classifier that a function writes."""
    primary = mariadb_gateway.group.primary
    primary.query("CREATE TABLE shop.t (a INT)")
    for server in mariadb_gateway.group.servers:
        server.query("SET GLOBAL log_bin_trust_function_creators = 1")
    primary.query("CREATE FUNCTION shop.writes() RETURNS INT BEGIN INSERT INTO shop.t VALUES (1); RETURN 7; END")
    primary.query("CREATE SQL SECURITY INVOKER VIEW shop.looks_innocent AS SELECT shop.writes() AS a")
    mariadb_gateway.group.wait_caught_up()
    with mariadb_gateway.connect() as one:
        before = mariadb_gateway.figures["reads_refused_as_writes"]
        for count in (1, 2, 3):
            assert value(one, "SELECT a FROM looks_innocent") == 7
            assert value(one, "SELECT COUNT(*) FROM t") == count
        assert mariadb_gateway.figures["reads_refused_as_writes"] - before == 1, "it is remembered as a write"
    assert primary.query("SELECT COUNT(*) FROM shop.t") == [(3,)]


def test_clients_that_pipeline_commands_are_answered_in_order(sql_gateway: SqlGateway) -> None:
    texts = ["INSERT INTO t VALUES (1)", "SELECT COUNT(*) FROM t", "SET @a = 3", "SELECT @a", "SELECT nonsense"]
    with sql_gateway.connect() as one:
        rows(one, "CREATE TABLE t (a INT)")
        raw: Any = one
        sock = raw._sock
        sender = threading.Thread(target=sock.sendall, args=(b"".join(query(text) for text in texts * 20),))
        sender.start()
        leftover = b""
        for number in range(20):
            answers: list[object] = []
            for _ in texts:
                reader = ResultReader()
                while not reader.done:
                    reader.feed(leftover or sock.recv(65536))
                    leftover = b""
                leftover = reader.leftover
                answers.append(reader.error.code if reader.error is not None else reader.rows)
            assert answers == [[], [(str(number + 1),)], [], [("3",)], 1054]
        sender.join()
