"""KILL and COM_PROCESS_KILL through the gateway: its own thread ids, whose sessions they end, and what is never hit."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pymysql
import pymysql.cursors
import pytest
from gateways import SqlGateway, rows, shared_gateway, value

from gateway.demo import programs
from gateway.demo.mysql_servers import APP, Account, MysqlFamilyServer, MysqlGroup
from gateway.demo.stack import Stack

pytestmark = pytest.mark.servers

OTHER = Account("other", "other-secret")
OVERSEER = Account("overseer", "overseer-secret")


@pytest.fixture
def guarded(
    sql_group: MysqlGroup, session_stack: Stack, shared_gateways: dict[str, SqlGateway]
) -> Iterator[SqlGateway]:
    """Three users, one of whom may end anybody's sessions; two connections per server."""
    for account in (OTHER, OVERSEER):
        sql_group.primary.query(f"CREATE USER IF NOT EXISTS {account.user}@'%' IDENTIFIED BY '{account.password}'")
        sql_group.primary.query(f"GRANT ALL ON shop.* TO {account.user}@'%'")
    sql_group.wait_caught_up()
    yield from shared_gateway(
        f"kill {sql_group.primary.flavor}",
        sql_group,
        session_stack,
        shared_gateways,
        settings='pool = {size = 4, acquire_timeout = "5s"}',
        users=(APP, OTHER, OVERSEER),
        overseers=(OVERSEER,),
    )


@contextlib.contextmanager
def connected(gateway: SqlGateway, account: Account = APP) -> Iterator[Any]:
    """A connection whose `thread_id()` and `kill()` types-PyMySQL does not know."""
    with gateway.connect(account=account) as connection:
        yield connection


class Running:
    """A statement that runs in a thread of its own, and what came of it."""

    def __init__(self, connection: Any, statement: str) -> None:
        self.connection = connection
        self.rows: object = None
        self.error: tuple[Any, ...] | None = None
        self._thread = threading.Thread(target=self._run, args=(statement,))
        self._thread.start()

    def _run(self, statement: str) -> None:
        try:
            self.rows = rows(self.connection, statement)
        except pymysql.MySQLError as error:
            self.error = error.args

    def wait(self) -> Running:
        self._thread.join(20.0)
        assert not self._thread.is_alive(), "the statement still runs"
        return self


def sleepers(server: MysqlFamilyServer) -> list[int]:
    """The server's ids of the threads that sleep for a client."""
    return [
        number
        for (number,) in server.query(
            "SELECT id FROM information_schema.processlist WHERE user <> 'root' AND info LIKE '%SLEEP(%'"
        )
    ]


def wait_sleeping(gateway: SqlGateway, count: int = 1) -> list[MysqlFamilyServer]:
    """Waits until so many statements sleep in all, and tells where."""
    found: list[MysqlFamilyServer] = []

    def seen() -> bool:
        found[:] = [server for server in gateway.group.servers for _ in sleepers(server)]
        return len(found) == count

    gateway.wait_until(seen, f"{count} statements sleep")
    return found


def was_interrupted(running: Running) -> bool:
    """MySQL's SLEEP() tells by its value that it was ended, all else by an error."""
    done = running.wait()
    return done.error is not None and done.error[0] == 1317 if done.error else done.rows == [(1,)]


def test_the_thread_id_is_the_gateways_and_pins_nothing(guarded: SqlGateway) -> None:
    with connected(guarded) as one, connected(guarded) as another:
        for question, name in (
            ("SELECT CONNECTION_ID()", "CONNECTION_ID()"),
            ("select connection_id() as id;", "id"),
            ("SELECT @@pseudo_thread_id", "@@pseudo_thread_id"),
        ):
            with one.cursor() as cursor:
                cursor.execute(question)
                assert cursor.fetchall() == ((one.thread_id(),),)
                assert [column[0] for column in cursor.description] == [name]
        assert one.thread_id() >> 31 == 1
        assert value(another, "SELECT CONNECTION_ID()") == another.thread_id() != one.thread_id()
        assert rows(one, "SHOW GATEWAY PINS") == []
        one.begin()
        assert value(one, "SELECT CONNECTION_ID()") == one.thread_id()
        assert value(one, "SELECT CONNECTION_ID() < 1 << 31") == 1  # the primary's own, and the session keeps it
        assert [row[0] for row in rows(one, "SHOW GATEWAY PINS")] != []


@pytest.mark.parametrize("how", ["statement", "command"])
@pytest.mark.parametrize("where", ["replica", "primary"])
def test_kill_query_ends_the_statement_where_it_runs_and_nothing_else(
    guarded: SqlGateway, where: str, how: str
) -> None:
    if how == "command" and where == "primary":
        pytest.skip("COM_PROCESS_KILL ends sessions, not statements")
    hint = "/* gateway: primary */ " if where == "primary" else ""
    with connected(guarded) as victim, connected(guarded) as killer:
        running = Running(victim, f"SELECT {hint}SLEEP(30)")
        server = wait_sleeping(guarded)[0]
        assert (server is guarded.group.primary) == (where == "primary")
        if how == "statement":
            rows(killer, f"KILL QUERY {victim.thread_id()}")
            assert was_interrupted(running)
            assert value(victim, "SELECT 1") == 1
        else:
            killer.kill(victim.thread_id())
            assert running.wait().error is not None
            with pytest.raises(pymysql.MySQLError):
                value(victim, "SELECT 1")
        guarded.wait_until(lambda: not sleepers(server), "it is ended at its server")
        assert value(killer, "SELECT 1") == 1


@pytest.mark.parametrize("where", ["replica", "primary"])
def test_kill_query_in_the_middle_of_a_result_ends_it_with_the_servers_error(guarded: SqlGateway, where: str) -> None:
    hint = "/* gateway: primary */ " if where == "primary" else ""
    with connected(guarded) as writer:
        rows(writer, "CREATE TABLE long_one (id INT AUTO_INCREMENT PRIMARY KEY, c VARCHAR(255))")
        with writer.cursor() as cursor:
            cursor.executemany("INSERT INTO long_one (c) VALUES (%s)", [("a" * 255,)] * 1024)
        guarded.group.wait_caught_up()
    with connected(guarded) as victim, connected(guarded) as killer:
        with victim.cursor(pymysql.cursors.SSCursor) as cursor:
            cursor.execute(f"SELECT {hint}x.*, y.* FROM long_one x, long_one y")  # half a gigabyte
            assert cursor.fetchone() is not None
            rows(killer, f"KILL QUERY {victim.thread_id()}")
            with pytest.raises(pymysql.MySQLError) as raised:
                cursor.fetchall()
            assert raised.value.args[0] == 1317
        served_by = dict(rows(victim, "SHOW GATEWAY LAST ROUTE"))["member"]
        assert (served_by == guarded.group.primary.address) == (where == "primary")
        assert value(victim, "SELECT 1") == 1


def test_an_open_transaction_outlives_kill_query(guarded: SqlGateway) -> None:
    with connected(guarded) as victim, connected(guarded) as killer:
        rows(victim, "CREATE TABLE t (a INT)")
        victim.begin()
        rows(victim, "INSERT INTO t VALUES (1)")
        running = Running(victim, "SELECT SLEEP(30)")
        wait_sleeping(guarded)
        rows(killer, f"KILL QUERY {victim.thread_id()}")
        assert was_interrupted(running)
        assert value(victim, "SELECT COUNT(*) FROM t") == 1
        victim.commit()
        assert value(killer, "SELECT /* gateway: primary */ COUNT(*) FROM t") == 1


@pytest.mark.parametrize("state", ["idle", "in a transaction", "running"])
def test_kill_ends_the_session(guarded: SqlGateway, state: str) -> None:
    with connected(guarded) as killer, connected(guarded) as victim:
        rows(killer, "CREATE TABLE t (a INT PRIMARY KEY)")
        running = None
        if state != "idle":
            victim.begin()
            rows(victim, "INSERT INTO t VALUES (1)")
        if state == "running":
            running = Running(victim, "SELECT SLEEP(30)")
            wait_sleeping(guarded)
        rows(killer, f"KILL {victim.thread_id()}")
        if running is not None:
            assert running.wait().error is not None
        else:
            with pytest.raises(pymysql.MySQLError):
                value(victim, "SELECT 1")
        rows(killer, "INSERT INTO t VALUES (1)")  # would wait for the lock of the open transaction
        guarded.wait_until(lambda: not sleepers(guarded.group.primary), "it is ended at its server")
        with pytest.raises(pymysql.MySQLError) as refused:
            rows(killer, f"KILL {victim.thread_id()}")
        assert refused.value.args == (1094, f"Unknown thread id: {victim.thread_id()}")


def test_a_statement_that_waits_in_the_gateway_is_ended_there(guarded: SqlGateway) -> None:
    with contextlib.ExitStack() as clients:
        *holders, victim, killer = [clients.enter_context(connected(guarded)) for _ in range(6)]
        for holder in holders:
            holder.begin()
            value(holder, "SELECT 1")
        running = Running(victim, "INSERT INTO nowhere VALUES (1)")
        guarded.wait_until(
            lambda: guarded.member(guarded.group.primary)["connections"]["waiting"] == 1, "it waits for a connection"
        )
        rows(killer, f"KILL QUERY {victim.thread_id()}")
        assert running.wait().error == (1317, "Query execution was interrupted")
        assert guarded.member(guarded.group.primary)["connections"]["waiting"] == 0
        assert [row[1:] for row in rows(victim, "SHOW WARNINGS")] == [(1317, "Query execution was interrupted")]
        holders[0].rollback()
        with pytest.raises(pymysql.ProgrammingError):
            rows(victim, "INSERT INTO nowhere VALUES (1)")


def test_only_ones_own_users_sessions_can_be_ended_unless_configured(guarded: SqlGateway) -> None:
    with (
        connected(guarded) as victim,
        connected(guarded, OTHER) as stranger,
        connected(guarded, OVERSEER) as overseer,
    ):
        for statement in (f"KILL QUERY {victim.thread_id()}", f"KILL {victim.thread_id()}"):
            with pytest.raises(pymysql.MySQLError) as refused:
                rows(stranger, statement)
            assert refused.value.args == (1095, f"You are not owner of thread {victim.thread_id()}")
        assert value(victim, "SELECT 1") == 1
        rows(overseer, f"KILL CONNECTION {victim.thread_id()}")
        with pytest.raises(pymysql.MySQLError):
            value(victim, "SELECT 1")


def test_ending_oneself_and_what_is_not_there_is_told_as_servers_do(guarded: SqlGateway) -> None:
    mariadb = guarded.group.primary.flavor == "mariadb"
    with connected(guarded) as one:
        for statement, code in (
            ("KILL 2147483647", 1094),  # the primary's own ids: it is asked
            ("KILL 4294967295", 1094),
            ("KILL QUERY CONNECTION_ID()", 1317),
            ("KILL QUERY ID 4294967295", 1957 if mariadb else 1064),
        ):
            with pytest.raises(pymysql.MySQLError) as refused:
                rows(one, statement)
            assert refused.value.args[0] == code, statement
        with pytest.raises(pymysql.MySQLError) as refused:
            rows(one, f"KILL {one.thread_id()}")
        assert refused.value.args[0] == (1927 if mariadb else 1317)
        with pytest.raises(pymysql.MySQLError):
            value(one, "SELECT 1")


def test_kills_in_quick_succession_never_hit_another_clients_statement(guarded: SqlGateway) -> None:
    """Statements that end at the very moment when they are killed, while others are served by the same pool."""
    stop = threading.Event()
    hit: list[object] = []

    def bystander() -> None:
        with guarded.connect() as connection:
            while not stop.is_set():
                try:
                    value(connection, "SELECT SLEEP(0.002)")
                except pymysql.MySQLError as error:
                    hit.append(error.args)

    bystanders = [threading.Thread(target=bystander) for _ in range(3)]
    with connected(guarded) as victim, connected(guarded) as killer:
        for thread in bystanders:
            thread.start()
        try:
            for attempt in range(60):
                running = Running(victim, f"SELECT SLEEP({(attempt % 10) / 1000})")
                time.sleep((attempt % 7) / 1000)  # the race is what is tried
                rows(killer, f"KILL QUERY {victim.thread_id()}")
                done = running.wait()
                assert done.error is None or done.error[0] == 1317
        finally:
            stop.set()
            for thread in bystanders:
                thread.join(20.0)
    assert hit == []


def test_ctrl_c_in_the_command_line_client_ends_the_statement(guarded: SqlGateway) -> None:
    if guarded.group.primary.flavor == "mariadb":
        program = programs.debian("mariadb", "mariadb-client")
    else:
        program = programs.unstable("bin/mysql", "mysql-client")
    control, terminal = pty.openpty()
    client = subprocess.Popen(
        [*program.command, "--no-defaults", "-h", guarded.host, "-P", str(guarded.port), f"-u{APP.user}",
         f"-p{APP.password}", "--protocol=tcp", "-e", "SELECT SLEEP(30)"],
        env={**os.environ, **program.environment}, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    os.close(terminal)
    try:
        servers = wait_sleeping(guarded)
        client.send_signal(signal.SIGINT)
        output, _ = client.communicate(timeout=20)
    finally:
        client.kill()
        client.wait()
        os.close(control)
    guarded.wait_until(lambda: not sleepers(servers[0]), "it is ended at its server", seconds=10.0)
    text = output.decode()
    assert re.search(r"(?i)query (aborted|killed|execution was interrupted)|1317|sending \"KILL QUERY", text), text


@pytest.mark.parametrize("where", ["replica", "primary", "transaction", "mid-result"])
def test_a_vanished_clients_statement_is_ended_at_its_server(guarded: SqlGateway, where: str) -> None:
    gone: Any = guarded.open(cursorclass=pymysql.cursors.SSCursor)
    hint = "/* gateway: primary */ " if where == "primary" else ""
    if where == "transaction":
        gone.begin()
    if where == "mid-result":
        with connected(guarded) as one:
            rows(one, "CREATE TABLE t (a INT)")
            rows(one, f"INSERT INTO t VALUES {', '.join(f'({number})' for number in range(500))}")
        guarded.group.wait_caught_up()
        cursor = gone.cursor()
        cursor.execute("SELECT REPEAT('x', 20000), SLEEP(0.1) FROM t")
        assert cursor.fetchone() is not None
    else:
        gone._execute_command(3, f"SELECT {hint}SLEEP(30)")
    server = wait_sleeping(guarded)[0]
    if gone._result is not None:
        gone._result.unbuffered_active = False  # or it would read on when it is collected
    gone._force_close()
    guarded.wait_until(lambda: not sleepers(server), "it is ended", seconds=15.0)
