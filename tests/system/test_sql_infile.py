"""LOAD DATA LOCAL through `gateway run`: files of every size, peers that break off, and servers that lie."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pymysql
import pymysql.constants.CLIENT as CLIENT
import pytest
from gateways import Connection, GatewayMaker, SqlGateway, rows, shared_gateway, value
from wire_client import NEW, TIMEOUT, WireClient

from gateway.demo import programs
from gateway.demo.mysql_servers import APP, MysqlGroup
from gateway.demo.stack import Stack
from gateway.protocol.mysql import commands
from gateway.protocol.mysql.constants import Capability
from gateway.protocol.mysql.packets import packet
from gateway.routing.sql_files import TEXT_BYTES

pytestmark = pytest.mark.servers

FILES = NEW | int(Capability.LOCAL_FILES)
SETTINGS = "local_infile = true"
MIB = 1 << 20


@pytest.fixture
def loading(
    sql_group: MysqlGroup, session_stack: Stack, shared_gateways: dict[str, SqlGateway]
) -> Iterator[SqlGateway]:
    """A gateway with the setting, shared between tests, and an empty table `t`."""
    sql_group.primary.query("SET GLOBAL local_infile = 1")
    sql_group.primary.query(f"SET GLOBAL max_allowed_packet = {64 * MIB}")
    name = f"{sql_group.primary.flavor} with local_infile"
    for gateway in shared_gateway(name, sql_group, session_stack, shared_gateways, listener=SETTINGS):
        with gateway.connect() as maker:
            rows(maker, "CREATE TABLE t (a INT PRIMARY KEY, b LONGTEXT)")
        yield gateway


def load(name: object, table: str = "t") -> str:
    return f"LOAD DATA LOCAL INFILE '{name}' INTO TABLE {table} FIELDS TERMINATED BY ','"


@contextlib.contextmanager
def willing(gateway: SqlGateway, **more: Any) -> Iterator[Connection]:
    with gateway.connect(local_infile=True, **more) as connection:
        yield connection


def loaded(connection: Connection, sql: str) -> int:
    with connection.cursor() as cursor:
        affected: int = cursor.execute(sql)
    return affected


@pytest.mark.parametrize("lines", [0, 1, 70_000])
def test_a_file_is_loaded_whole(loading: SqlGateway, tmp_path: Path, lines: int) -> None:
    (tmp_path / "rows.csv").write_text("".join(f"{number},text {number}\n" for number in range(lines)))
    with willing(loading) as one:
        assert loaded(one, load(tmp_path / "rows.csv")) == lines
        assert value(one, "SELECT COUNT(*) FROM t") == lines
        assert value(one, "SELECT 1") == 1
        rows(one, "BEGIN")
        with pytest.raises(pymysql.MySQLError):
            loaded(one, load(tmp_path / "rows.csv", "nowhere"))
        rows(one, "ROLLBACK")


def test_a_file_over_16_mib_in_packets_of_every_length(loading: SqlGateway) -> None:
    text = b"7," + b"x" * (18 * MIB)
    with WireClient(loading, capabilities=FILES) as one:
        for pieces in ([0xFFFFFF], [1, 2, 3, 17 * MIB]):
            one.send(commands.query(load("some file")))
            asked = one.receive()
            assert asked == packet(1, b"\xfbsome file")
            sequence, at = 2, 0
            for size in [*pieces, 10_000, len(text)]:
                piece = text[at : at + size]
                at += len(piece)
                if piece:
                    raw = packet(sequence, piece)
                    one.sock.sendall(raw)
                    sequence += len(piece) // 0xFFFFFF + 1
            one.sock.sendall(packet(sequence, b""))
            reply = one.read_reply(3, (sequence + 1) & 0xFF)
            assert one.tracker.error is None
            assert reply[3] == (sequence + 1) & 0xFF
            assert one.rows("SELECT a, LENGTH(b) FROM t") == [("7", str(18 * MIB))]
            one.rows("DELETE FROM t")


def test_several_files_and_results_of_one_text(loading: SqlGateway, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"{number}.csv").write_text(f"{number},x\n")
    with willing(loading, client_flag=CLIENT.MULTI_STATEMENTS) as one, one.cursor() as cursor:
        first, second = load(tmp_path / "1.csv"), load(tmp_path / "2.csv")
        cursor.execute(f"SELECT 1; {first}; SELECT COUNT(*) FROM t; {second}; SELECT COUNT(*) FROM t")
        found = [list(cursor.fetchall())]
        while cursor.nextset():
            found.append(list(cursor.fetchall()))
        assert found == [[(1,)], [], [(1,)], [], [(2,)]]


def test_the_command_line_client_loads_a_file(loading: SqlGateway, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("1,one\n2,two\n")
    if loading.group.primary.flavor == "mysql":
        command = [*programs.unstable("bin/mysql", "mysql-client").command, "--no-defaults"]
        command += ["--get-server-public-key", "--ssl-mode=DISABLED"]
    else:
        command = [*programs.debian("mariadb", "mariadb-client").command, "--no-defaults"]
    command += [f"-h{loading.host}", f"-P{loading.port}", f"-u{APP.user}", f"-p{APP.password}", "--local-infile=1"]
    script = f"{load(tmp_path / 'rows.csv')}; SELECT b FROM t ORDER BY a"
    done = subprocess.run(
        [*command, "--batch", "-N", "shop", "-e", script], capture_output=True, text=True, timeout=60.0
    )
    assert done.stdout.split() == ["one", "two"], done.stderr


def test_a_server_that_ends_with_an_error_leaves_the_session_usable(loading: SqlGateway, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("".join(f"{number},x\n" for number in range(50_000)))
    with willing(loading) as one, loading.connect() as locker:
        rows(locker, "INSERT INTO t VALUES (1, 'locked')")
        rows(locker, "BEGIN")
        rows(locker, "DELETE FROM t WHERE a = 1")
        rows(one, "SET SESSION innodb_lock_wait_timeout = 1")
        with pytest.raises(pymysql.MySQLError) as late:
            loaded(one, load(tmp_path / "rows.csv").replace("INTO", "REPLACE INTO"))
        assert late.value.args[0] == 1205
        assert value(one, "SELECT 1") == 1
        rows(locker, "ROLLBACK")
        assert value(one, "SELECT COUNT(*) FROM t") == 1
        with pytest.raises(pymysql.MySQLError) as missing:
            loaded(one, load(tmp_path / "no such file"))
        assert missing.value.args[0] == 1017


def test_a_server_connection_that_ends_in_the_middle_is_told_behind_the_file(loading: SqlGateway) -> None:
    primary = loading.group.primary
    with WireClient(loading, capabilities=FILES) as one:
        for statement in (load("f"), "BEGIN", load("f")):
            one.send(commands.query(statement))
            if statement == "BEGIN":
                one.read_reply(3)
                continue
            assert one.receive()[4:] == b"\xfbf"
            one.sock.sendall(packet(2, b"1,x\n"))
            thread = running_load(primary)
            primary.query(f"KILL {thread}")
            for sequence in range(3, 300):
                one.sock.sendall(packet(sequence, b"2,y\n" * 1000))
            one.sock.sendall(packet(300, b""))
            reply = one.read_reply(3, 301 & 0xFF)
            assert one.tracker.error is not None
            assert reply[3] == 301 & 0xFF
            assert one.rows("SELECT COUNT(*) FROM t") == [("0",)]


def running_load(primary: Any) -> int:
    until = time.monotonic() + 20.0
    while time.monotonic() < until:
        for row in primary.query("SELECT ID, INFO FROM information_schema.PROCESSLIST"):
            if row[1] and str(row[1]).startswith("LOAD DATA LOCAL"):
                return int(row[0])
    raise AssertionError("the statement does not run")


def test_a_client_that_vanishes_in_the_middle_leaves_nothing_behind(loading: SqlGateway) -> None:
    primary = loading.group.primary
    for ending in ("close", "half-close"):
        with WireClient(loading, capabilities=FILES) as one:
            one.send(commands.query(load("f")))
            assert one.receive()[4:] == b"\xfbf"
            one.sock.sendall(packet(2, b"1,x\n2,y\n")[: -1 if ending == "close" else None])
            running_load(primary)
            if ending == "half-close":
                one.sock.shutdown(socket.SHUT_WR)
                assert one.is_closed()
        loading.wait_until(lambda: loading.figures["sessions"] == 0, "the session is over")
        until = time.monotonic() + 20.0
        while any(str(row[0]).startswith("LOAD") for row in primary.query("SHOW FULL PROCESSLIST") if row[0]):
            assert time.monotonic() < until
        with loading.connect() as other:
            assert value(other, "SELECT COUNT(*) FROM t") == 0
    loading.wait_until(lambda: loading.member(primary)["in_flight"] == 0, "nothing is in flight")


def test_a_server_that_reads_slowly_slows_the_client_and_costs_no_memory(loading: SqlGateway) -> None:
    if loading.group.primary.flavor == "mysql":
        pytest.skip("one server is enough to see back-pressure")
    with WireClient(loading, capabilities=FILES) as one, loading.connect() as locker:
        rows(locker, "INSERT INTO t VALUES (1, 'locked')")
        rows(locker, "BEGIN")
        rows(locker, "DELETE FROM t WHERE a = 1")
        before = loading.memory_bytes()
        one.send(commands.query(load("f").replace("INTO", "REPLACE INTO")))
        assert one.receive()[4:] == b"\xfbf"
        one.sock.settimeout(2.0)
        sent, sequence = 0, 2
        with contextlib.suppress(TimeoutError):  # the server waits for the lock, and nobody reads
            while sent < 200 * MIB:
                one.sock.sendall(packet(sequence, b"1,x\n" * 4096))
                sent, sequence = sent + 16384, (sequence + 1) & 0xFF
        assert sent < 60 * MIB
        assert loading.memory_bytes() - before < 8 * MIB
        assert value(locker, "SELECT 1") == 1
        rows(locker, "ROLLBACK")


# ---------------------------------------------------------------- what must not be


def test_a_file_whose_name_is_not_understood_is_not_given(loading: SqlGateway) -> None:
    with WireClient(loading, capabilities=FILES) as one:
        one.send(commands.query(load("f") + " -- " + "x" * TEXT_BYTES))
        one.read_reply(3)
        assert one.tracker.infile is None
        assert one.tracker.error is not None
        assert "does not name" in one.tracker.error.message
        assert one.rows("SELECT COUNT(*) FROM t") == [("0",)]


def test_without_the_setting_nothing_is_offered(sql_gateway: SqlGateway) -> None:
    with WireClient(sql_gateway, capabilities=FILES) as one:
        assert not one.offered & Capability.LOCAL_FILES
        one.rows("CREATE TABLE t (a INT)")
        one.send(commands.query(load("f")))
        one.read_reply(3)
        assert one.tracker.infile is None
        assert one.tracker.error is not None


@dataclass
class LyingServer:
    """Stands before a server and passes everything on, but answers what contains `LIE` by asking for a file."""

    server: tuple[str, int]
    name: bytes = b"/etc/passwd"
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    heard: bytes = b""  # from the gateway, after the question
    threads: list[threading.Thread] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.listener.getsockname()[1]}"

    def start(self) -> None:
        self.spawn(self.accept)

    def spawn(self, target: Any, *arguments: Any) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments)
        self.threads.append(thread)
        thread.start()
        return thread

    def close(self) -> None:
        """When the gateway has ended, and with it all connections."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive()

    def accept(self) -> None:
        with contextlib.suppress(OSError):  # closing the listener ends it
            while True:
                self.spawn(self.serve, self.listener.accept()[0])

    def serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self.server) as server:
            asked = threading.Event()
            back = self.spawn(self.pump, server, client, None, asked)
            self.pump(client, server, client, asked)
            back.join()

    def pump(
        self, source: socket.socket, target: socket.socket, back: socket.socket | None, asked: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                if back is not None and asked.is_set():
                    self.heard += chunk
                elif back is not None and b"LIE" in chunk:
                    asked.set()
                    back.sendall(packet(1, b"\xfb" + self.name))
                else:
                    target.sendall(chunk)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def liar(mariadb_group: MysqlGroup) -> Iterator[LyingServer]:
    one = LyingServer((mariadb_group.primary.host, mariadb_group.primary.port))
    one.start()
    yield one
    one.close()


@pytest.mark.parametrize("capabilities", [FILES, NEW], ids=["with LOCAL_FILES", "without"])
def test_a_server_gets_no_file_that_the_statement_does_not_name(
    liar: LyingServer, gateways: GatewayMaker, mariadb_group: MysqlGroup, capabilities: int
) -> None:
    group = cast("MysqlGroup", type("Group", (), {"servers": [liar], "primary": mariadb_group.primary})())
    gateway = gateways(group, listener=SETTINGS)
    statements = [
        "SELECT 'LIE'",
        "INSERT INTO t VALUES ('LIE')",
        "LOAD DATA LOCAL INFILE 'LIE' INTO TABLE t",
        "SELECT 'LIE', \"LOAD DATA LOCAL INFILE '/etc/passwd'\"",
        "LOAD DATA INFILE '/etc/passwd' INTO TABLE t -- LIE",
    ]
    with WireClient(gateway, capabilities=capabilities) as one:
        for statement in statements:
            one.send(commands.query(statement))
            one.read_reply(3)
            assert one.tracker.infile is None, statement
            assert one.tracker.error is not None, statement
        one.send(packet(0, b"\x16SELECT 'LIE'"))
        one.read_reply(0x16)
        assert one.tracker.infile is None
        assert one.tracker.error is not None
        assert one.rows("SELECT 1") == [("1",)]
    assert liar.heard == b""
