"""The codec against real MariaDB and MySQL servers, and their own clients and others' against the server role.

Every command is sent with a COM_PING right behind it: the reply's end is proved by the ping's OK, which must follow it
to the byte.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import mysql.connector
import pymysql
import pytest
from known_users import KnownUsers

from gateway.demo import programs
from gateway.demo.mysql_servers import APP, MysqlFamilyServer, MysqlGroup
from gateway.errors import BackendRefused
from gateway.protocol.mysql import answers, commands
from gateway.protocol.mysql.auth import PasswordKey
from gateway.protocol.mysql.client_handshake import ClientHandshake
from gateway.protocol.mysql.constants import CACHING_SHA2_PASSWORD, NATIVE_PASSWORD, Capability, Command, Status
from gateway.protocol.mysql.handshake import Connected, Denied, LoggedIn, Send
from gateway.protocol.mysql.packets import PacketReader, packet
from gateway.protocol.mysql.prelude import Prelude
from gateway.protocol.mysql.replies import ReplyTracker
from gateway.protocol.mysql.results import ResultReader

TIMEOUT = 20.0  # seconds for one answer; a test that reaches it has failed

BASE = int(
    Capability.LONG_PASSWORD
    | Capability.LONG_FLAG
    | Capability.PROTOCOL_41
    | Capability.TRANSACTIONS
    | Capability.MULTI_STATEMENTS
    | Capability.MULTI_RESULTS
    | Capability.PS_MULTI_RESULTS
    | Capability.SESSION_TRACK
)
NEW = BASE | int(Capability.DEPRECATE_EOF)


@pytest.fixture(params=["mariadb", "mysql"])
def server(request: pytest.FixtureRequest) -> MysqlFamilyServer:
    group: MysqlGroup = request.getfixturevalue("mariadb_group" if request.param == "mariadb" else "mysql9_group")
    return group.primary


class Connection:
    """The client role over a blocking socket. `steps` are the first bytes of what was exchanged to log in."""

    def __init__(
        self,
        server: MysqlFamilyServer,
        *,
        user: str = APP.user,
        password: str = APP.password,
        database: str | None = "shop",
        capabilities: int = NEW,
    ) -> None:
        self.sock = socket.create_connection((server.host, server.port), TIMEOUT)
        self.sent: list[bytes] = []
        handshake = ClientHandshake(user=user, password=password, database=database, capabilities=capabilities)
        self.connected: Connected | None = None
        try:
            while self.connected is None:
                for event in handshake.feed(self.receive()):
                    if isinstance(event, Send):
                        self.sent.append(event.data)
                        self.sock.sendall(event.data)
                    elif isinstance(event, Connected):
                        self.connected = event
        except BaseException:
            self.sock.close()
            raise
        self.capabilities = self.connected.capabilities
        self.tracker = ReplyTracker(self.capabilities)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def receive(self) -> bytes:
        data = self.sock.recv(65536)
        assert data, "the server closed the connection"
        return data

    def reply(self, raw: bytes) -> bytes:
        """Sends a command and a ping; returns the command's reply as the server sent it."""
        self.sock.sendall(raw + commands.PING)
        whole = ReplyTracker(self.capabilities)
        whole.keep_positions = True
        whole.begin(raw[4])
        received = b""
        while not whole.done:
            received += whole.feed(self.receive())
        ping = whole.leftover
        while len(ping) < 11:
            ping += self.receive()
        assert ping[:5] == b"\x07\0\0\x01\0"
        assert len(ping) == 11
        self.tracker = whole
        return received

    def ask(self, statement: str) -> ResultReader:
        self.sock.sendall(commands.query(statement))
        reader = ResultReader(1 << 30)
        while not reader.done:
            reader.feed(self.receive())
        return reader

    def must(self, statement: str) -> None:
        error = self.ask(statement).error
        assert error is None, error


def statement_command(command: Command, statement_id: int, arguments: bytes = b"") -> bytes:
    return packet(0, bytes((command,)) + statement_id.to_bytes(4, "little") + arguments)


def execute(statement_id: int, *, cursor: int = 0, parameters: tuple[int, ...] = ()) -> bytes:
    bound = b"\0\x01" + b"\x08\0" * len(parameters) if parameters else b""
    values = b"".join(value.to_bytes(8, "little") for value in parameters)
    return statement_command(Command.STMT_EXECUTE, statement_id, bytes((cursor,)) + b"\x01\0\0\0" + bound + values)


def prepare_tables(connection: Connection) -> None:
    connection.must("CREATE TABLE t (a INT PRIMARY KEY AUTO_INCREMENT, b TEXT)")
    connection.must("INSERT INTO t (b) VALUES " + ",".join(f"(REPEAT('x', {n}))" for n in range(300)))
    connection.must("CREATE PROCEDURE p () BEGIN SELECT 1; SELECT a, b FROM t LIMIT 2; END")


def exchanges(connection: Connection) -> Iterator[tuple[str, int, bytes]]:
    """(what, command, reply) for one command of every kind."""

    def query(statement: str) -> tuple[str, int, bytes]:
        return statement, Command.QUERY, connection.reply(commands.query(statement))

    yield "ping", Command.PING, connection.reply(commands.PING)
    yield "init db", Command.INIT_DB, connection.reply(commands.init_db("shop"))
    yield "init db", Command.INIT_DB, connection.reply(commands.init_db("nowhere"))
    yield "statistics", Command.STATISTICS, connection.reply(packet(0, b"\x09"))
    yield "set option", Command.SET_OPTION, connection.reply(packet(0, b"\x1b\0\0"))
    yield query("SELECT 1")
    yield query("SELECT a, b FROM t WHERE a = 7")
    yield query("SELECT * FROM t WHERE FALSE")
    yield query("SELECT * FROM t ORDER BY a")
    yield query("SELECT " + ", ".join(f"{n} AS c{n}" for n in range(300)))
    yield query("SELECT NULL, '', 0x00ff")
    yield query("SELECT nonsense")
    yield query("SELECT a, (SELECT u.a FROM t u WHERE u.a <= t.a) FROM t")
    yield query("UPDATE t SET b = b WHERE a < 5")
    yield query("UPDATE t SET b = 'new' WHERE a < 5")
    yield query("INSERT INTO t (a, b) VALUES (70000, 'x')")
    yield query("SET autocommit = 0")
    yield query("SET autocommit = 1")
    yield query("CALL p()")
    assert connection.reply(packet(0, b"\x1b\0\0"))  # MULTI_STATEMENTS_ON
    yield query("SELECT 1; UPDATE t SET b = 'newer' WHERE a < 5; SELECT a FROM t LIMIT 3; SET NAMES utf8mb4")
    yield query("SELECT 1; SELECT nonsense; SELECT 2")
    prepared = packet(0, b"\x16SELECT a, b FROM t WHERE a > ? AND a < ? ORDER BY a")
    yield "prepare", Command.STMT_PREPARE, connection.reply(prepared)
    assert (connection.tracker.columns, connection.tracker.parameters) == (2, 2)
    number = connection.tracker.statement_id
    assert number is not None
    yield "execute", Command.STMT_EXECUTE, connection.reply(execute(number, parameters=(3, 9)))
    yield "open cursor", Command.STMT_EXECUTE, connection.reply(execute(number, cursor=1, parameters=(3, 9)))
    assert connection.tracker.status & Status.CURSOR_EXISTS
    for _ in range(3):
        fetch = statement_command(Command.STMT_FETCH, number, (2).to_bytes(4, "little"))
        yield "fetch", Command.STMT_FETCH, connection.reply(fetch)
    yield "fetch behind the end", Command.STMT_FETCH, connection.reply(fetch)
    yield "reset", Command.STMT_RESET, connection.reply(statement_command(Command.STMT_RESET, number))
    long_data = statement_command(Command.STMT_SEND_LONG_DATA, number, b"\0\0abc")
    assert connection.reply(long_data) == b""
    assert connection.reply(statement_command(Command.STMT_CLOSE, number)) == b""
    yield "execute what is closed", Command.STMT_EXECUTE, connection.reply(execute(number))
    for statement in ("SET @a = 1", "INSERT INTO t (b) VALUES (?)", "SELECT 1", "SELECT nonsense"):
        yield statement, Command.STMT_PREPARE, connection.reply(packet(0, b"\x16" + statement.encode()))
    yield "fields", Command.FIELD_LIST, connection.reply(packet(0, b"\x04t\0"))
    yield "fields of nothing", Command.FIELD_LIST, connection.reply(packet(0, b"\x04nowhere\0"))
    yield "unknown command", Command.DAEMON, connection.reply(packet(0, b"\x1d"))
    yield "reset connection", Command.RESET_CONNECTION, connection.reply(commands.RESET_CONNECTION)


def outcome(tracker: ReplyTracker) -> tuple[object, ...]:
    return (
        tracker.status,
        tracker.warnings,
        tracker.affected_rows,
        tracker.insert_id,
        tracker.error,
        tracker.refused,
        tracker.changes,
        tracker.statement_id,
        tracker.columns,
        tracker.parameters,
    )


def through(chunks: list[bytes], command: int, capabilities: int) -> tuple[bytes, tuple[object, ...]]:
    tracker = ReplyTracker(capabilities)
    tracker.begin(command)
    forwarded = b""
    for chunk in chunks:
        assert not tracker.done
        forwarded += tracker.feed(chunk)
    assert tracker.done
    assert tracker.leftover == b""
    return forwarded, outcome(tracker)


@pytest.mark.servers
@pytest.mark.parametrize("capabilities", [BASE, NEW])
def test_every_reply_ends_at_its_last_byte_however_it_is_cut(server: MysqlFamilyServer, capabilities: int) -> None:
    with Connection(server, capabilities=capabilities) as connection:
        assert bool(connection.capabilities & Capability.DEPRECATE_EOF) == (capabilities == NEW)
        prepare_tables(connection)
        kinds = set()
        for what, command, reply in exchanges(connection):
            kinds.add(what)
            for client in (connection.capabilities, connection.capabilities & ~int(Capability.SESSION_TRACK)):
                whole = through([reply], command, client)
                cuts = range(1, len(reply)) if len(reply) < 3000 else range(1, len(reply), 997)
                for cut in cuts:
                    assert through([reply[:cut], reply[cut:]], command, client) == whole, what
                assert through([reply[at : at + 1] for at in range(len(reply))], command, client) == whole, what
        assert len(kinds) > 25


@pytest.mark.servers
def test_a_client_without_session_track_reads_the_info_of_a_rewritten_ok(server: MysqlFamilyServer) -> None:
    with Connection(server, capabilities=NEW & ~int(Capability.SESSION_TRACK)) as plain, Connection(server) as ours:
        ours.must("CREATE TABLE t (a INT)")
        ours.must("INSERT INTO t VALUES (1), (2)")
        arm_positions(ours, server)
        theirs = plain.reply(commands.query("UPDATE t SET a = a + 1"))
        assert b"Rows matched: 2  Changed: 2  Warnings: 0" in theirs
        reply = ours.reply(commands.query("UPDATE t SET a = a + 1"))
        assert len(reply) > len(theirs)
        assert through([reply], Command.QUERY, plain.capabilities)[0] == theirs


def arm_positions(connection: Connection, server: MysqlFamilyServer) -> None:
    if server.flavor == "mariadb":
        connection.must("SET SESSION session_track_system_variables = 'autocommit,last_gtid'")
    else:
        connection.must("SET SESSION session_track_gtids = OWN_GTID")


@pytest.mark.servers
def test_the_position_of_a_write_is_told_and_hidden(server: MysqlFamilyServer) -> None:
    with Connection(server) as connection:
        connection.must("CREATE TABLE t (a INT)")
        arm_positions(connection, server)
        reply = connection.reply(commands.query("INSERT INTO t VALUES (1)"))
        changes = connection.tracker.changes
        assert changes is not None
        position = changes.last_gtid if server.flavor == "mariadb" else changes.gtids
        assert position
        assert position.encode() in reply
        forwarded, _ = through([reply], Command.QUERY, connection.capabilities)
        assert position.encode() not in forwarded
        assert b"last_gtid" not in forwarded
        # MySQL sends nothing else, so that nothing is left; MariaDB may add state that was not asked for.
        if server.flavor == "mysql":
            assert forwarded == answers.ok(1, affected_rows=1)
        connection.reply(commands.query("USE shop"))
        assert connection.tracker.changes is not None
        assert connection.tracker.changes.database == "shop"


@pytest.mark.servers
def test_a_prelude_in_front_of_a_command_is_swallowed(server: MysqlFamilyServer) -> None:
    with Connection(server) as connection:
        prelude = [commands.RESET_CONNECTION, commands.query("SET NAMES utf8mb4"), commands.init_db("shop")]
        connection.sock.sendall(b"".join(prelude) + commands.query("SELECT 42"))
        swallowed = Prelude(3)
        rest = b""
        while not swallowed.done:
            rest = swallowed.feed(connection.receive())
        assert swallowed.error is None
        reader = ResultReader()
        reader.feed(rest)
        while not reader.done:
            reader.feed(connection.receive())
        assert reader.rows == [("42",)]


@pytest.mark.servers
@pytest.mark.parametrize("capabilities", [BASE, NEW])
def test_rows_over_16_mib_pass(server: MysqlFamilyServer, capabilities: int) -> None:
    size = 17_000_000
    server.query(f"SET GLOBAL max_allowed_packet = {1 << 26}")
    with Connection(server, capabilities=capabilities) as connection:
        for length in (size, 0xFFFFFF - 4, 0xFFFFFF - 9, 0xFFFFFF):
            statement = f"SELECT REPEAT('x', {length}) UNION ALL SELECT 'small'"
            reply = connection.reply(commands.query(statement))
            assert connection.tracker.error is None
            assert len(reply) > length
            assert connection.ask(statement).rows == [("x" * length,), ("small",)]
        command = commands.query("SELECT LENGTH('" + "y" * size + "')")
        connection.sock.sendall(command)
        connection.tracker.begin(Command.QUERY, 2)
        reader = ResultReader()
        while not connection.tracker.done:
            reader.feed(connection.tracker.feed(connection.receive()))
        assert reader.rows == [(str(size),)]


@pytest.mark.servers
def test_questions_of_the_gateway_are_read(server: MysqlFamilyServer) -> None:
    for capabilities in (BASE, NEW):
        with Connection(server, capabilities=capabilities) as connection:
            answer = connection.ask("SELECT 1.5 AS n, 'ünïcode' AS s, x'00ff' AS b, NULL AS z, DATE '2024-02-29' AS d")
            assert answer.columns == ["n", "s", "b", "z", "d"]
            assert answer.rows == [("1.5", "ünïcode", b"\0\xff", None, "2024-02-29")]
            error = connection.ask("SELECT * FROM nowhere").error
            assert error is not None
            assert (error.code, error.sqlstate, error.message) == (1146, "42S02", "Table 'shop.nowhere' doesn't exist")


@pytest.mark.servers
def test_mysql_9_lets_in_by_sha256_password(mysql9_group: MysqlGroup) -> None:
    make_user(mysql9_group.primary, "sha256_password")
    with Connection(mysql9_group.primary, user="someone", password="some-secret") as connection:
        assert connection.ask("SELECT CURRENT_USER()").rows == [("someone@%",)]


def make_user(server: MysqlFamilyServer, plugin: str, user: str = "someone", password: str = "some-secret") -> None:
    server.query(f"DROP USER IF EXISTS {user}")
    if server.flavor == "mariadb":
        server.query(f"CREATE USER {user} IDENTIFIED BY '{password}'")
    else:
        server.query(f"CREATE USER {user} IDENTIFIED WITH {plugin} BY '{password}'")
    server.query(f"GRANT ALL ON shop.* TO {user}")


@pytest.mark.servers
def test_mysql_9_lets_in_by_the_full_path_and_then_by_the_fast_path(mysql9_group: MysqlGroup) -> None:
    server = mysql9_group.primary
    make_user(server, CACHING_SHA2_PASSWORD)
    with Connection(server, user="someone", password="some-secret") as first:
        assert [sent[3] for sent in first.sent] == [1, 3, 5]
        assert first.sent[1] == packet(3, b"\x02")
        assert len(first.sent[2]) == 4 + 256
        assert first.ask("SELECT CURRENT_USER()").rows == [("someone@%",)]
    with Connection(server, user="someone", password="some-secret") as second:
        assert len(second.sent) == 1
        assert second.connected is not None
        assert second.connected.greeting.plugin == CACHING_SHA2_PASSWORD
        thread = str(second.connected.greeting.connection_id)
        assert second.ask("SELECT CONNECTION_ID(), DATABASE()").rows == [(thread, "shop")]


@pytest.mark.servers
def test_mariadb_lets_in_by_native_password(mariadb_group: MysqlGroup) -> None:
    make_user(mariadb_group.primary, NATIVE_PASSWORD)
    with Connection(mariadb_group.primary, user="someone", password="some-secret") as connection:
        assert len(connection.sent) == 1
        assert connection.ask("SELECT CURRENT_USER()").rows == [("someone@%",)]


@pytest.mark.servers
def test_a_user_without_a_password_is_let_in(server: MysqlFamilyServer) -> None:
    make_user(server, CACHING_SHA2_PASSWORD, "open_user", "")
    with Connection(server, user="open_user", password="", database=None) as connection:
        assert connection.ask("SELECT DATABASE()").rows == [(None,)]


@pytest.mark.servers
@pytest.mark.parametrize(
    ("user", "password", "used"), [(APP.user, "wrong", "YES"), (APP.user, "", "NO"), ("nobody_at_all", "x", "YES")]
)
def test_a_wrong_password_is_refused_as_our_server_role_refuses_it(
    server: MysqlFamilyServer, user: str, password: str, used: str
) -> None:
    with pytest.raises(BackendRefused) as caught:
        Connection(server, user=user, password=password)
    assert (caught.value.code, caught.value.sqlstate) == (1045, "28000")
    host = str(caught.value).split("@")[1].split("'")[1]
    assert str(caught.value) == f"Access denied for user '{user}'@'{host}' (using password: {used})"


@pytest.mark.servers
def test_an_unknown_database_is_refused_with_the_server_s_number(server: MysqlFamilyServer) -> None:
    with pytest.raises(BackendRefused) as caught:
        Connection(server, database="nowhere")
    assert caught.value.code in (1044, 1049)


KEY = PasswordKey.generate()


@dataclass
class OurServer:
    """The server role on a port of loopback, one thread per client; answers every SELECT with one row, 42."""

    plugin: str
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    logged_in: list[LoggedIn] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    @property
    def port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    def start(self) -> None:
        self.spawn(self.accept)

    def spawn(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target)
        self.threads.append(thread)
        thread.start()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive()
        assert self.failures == []

    def accept(self) -> None:
        with contextlib.suppress(OSError):  # closing the listener ends it
            while True:
                sock, (host, _) = self.listener.accept()
                sock.settimeout(TIMEOUT)
                self.spawn(lambda sock=sock, host=host: self.serve(sock, host))  # type: ignore[misc]  # defaults bind

    def serve(self, sock: socket.socket, host: str) -> None:
        try:
            with sock:
                self.converse(sock, host)
        except BaseException as error:
            self.failures.append(error)

    def converse(self, sock: socket.socket, host: str) -> None:
        handshake = KnownUsers(
            {"app": "secret", "open": ""},
            connection_id=1,
            server_version="9.7.0",
            capabilities=NEW
            | int(Capability.CONNECT_WITH_DB | Capability.CONNECT_ATTRS)
            | int(Capability.PLUGIN_AUTH_LENENC_CLIENT_DATA),
            host=host,
            key=KEY,
            plugin=self.plugin,
        )
        sock.sendall(handshake.greeting())
        logged_in: LoggedIn | None = None
        while logged_in is None:
            data = sock.recv(65536)
            if not data:
                return
            for event in handshake.feed(data):
                if isinstance(event, LoggedIn):
                    logged_in = event
                    sock.sendall(answers.ok(event.sequence))
                else:
                    sock.sendall(event.data)
                if isinstance(event, Denied):
                    return
        self.logged_in.append(logged_in)
        reader = PacketReader(limit=1 << 26)
        data = logged_in.leftover
        while data := data or sock.recv(65536):
            for raw in reader.feed(data):
                if raw[4] == Command.QUIT:
                    return
                sock.sendall(self.answer(raw, logged_in.capabilities))
            data = b""

    def answer(self, raw: bytes, capabilities: int) -> bytes:
        statement = commands.argument_of(raw).strip().upper()
        if (
            raw[4] == Command.QUERY and statement == b"SELECT $$"
        ):  # MySQL's client asks whether $$ quotes; answered by ERR
            return answers.err(1, 1064, "You have an error in your SQL syntax", "42000")
        if raw[4] == Command.QUERY and statement.startswith(b"SELECT NONSENSE"):
            return answers.err(1, 1054, "Unknown column 'nonsense' in 'field list'", "42S22")
        if raw[4] == Command.QUERY and statement.startswith(b"SELECT"):
            return answers.resultset(["answer"], [["42"]], capabilities=capabilities)
        return answers.ok()


@pytest.fixture(params=[CACHING_SHA2_PASSWORD, NATIVE_PASSWORD])
def our_server(request: pytest.FixtureRequest) -> Iterator[OurServer]:
    ours = OurServer(request.param)
    ours.start()
    yield ours
    ours.close()


def test_pymysql_logs_in_and_reads(our_server: OurServer) -> None:
    options: dict[str, Any] = {"host": "127.0.0.1", "port": our_server.port, "ssl_disabled": True}
    with (
        pymysql.connect(user="app", password="secret", database="shop", **options) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT 42")
        assert cursor.fetchall() == (("42",),)
        with pytest.raises(pymysql.MySQLError) as error:
            cursor.execute("SELECT nonsense")
        assert error.value.args == (1054, "Unknown column 'nonsense' in 'field list'")
        connection.ping()
    pymysql.connect(user="open", password="", **options).close()
    for user, password, used in [("app", "wrong", "YES"), ("app", "", "NO"), ("nobody", "secret", "YES")]:
        with pytest.raises(pymysql.OperationalError) as denied:
            pymysql.connect(user=user, password=password, **options)
        assert denied.value.args == (
            1045,
            f"Access denied for user '{user}'@'127.0.0.1' (using password: {used})",
        )
    assert [(one.user, one.database) for one in our_server.logged_in] == [("app", "shop"), ("open", None)]


def test_mysql_connector_logs_in_and_reads(our_server: OurServer) -> None:
    options: dict[str, Any] = {"host": "127.0.0.1", "port": our_server.port, "use_pure": True, "ssl_disabled": True}
    connection = mysql.connector.connect(user="app", password="secret", database="shop", **options)
    cursor = connection.cursor()
    cursor.execute("SELECT 42")
    assert [tuple(row) for row in cursor.fetchall()] == [("42",)]
    cursor.close()
    connection.close()
    with pytest.raises(mysql.connector.Error) as denied:
        mysql.connector.connect(user="app", password="wrong", **options)
    assert denied.value.errno == 1045
    assert denied.value.sqlstate == "28000"


def cli(program: programs.Program, ours: OurServer, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        *program.command,
        "--no-defaults",
        "-h127.0.0.1",
        f"-P{ours.port}",
        "--batch",
        "-e",
        "SELECT 42",
        *options,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)


@pytest.fixture(params=["mariadb", "mysql"])
def program(request: pytest.FixtureRequest) -> tuple[programs.Program, list[str]]:
    if request.param == "mariadb":
        return programs.debian("mariadb", "mariadb-client"), []
    return programs.unstable("bin/mysql", "mysql-client"), ["--ssl-mode=DISABLED"]


@pytest.mark.servers
def test_the_command_line_clients_log_in_and_read(
    our_server: OurServer, program: tuple[programs.Program, list[str]]
) -> None:
    binary, options = program
    done = cli(binary, our_server, "-uapp", "-psecret", "shop", *options)
    assert done.stdout == "answer\n42\n", done.stderr
    assert our_server.logged_in[0].database == "shop"
    assert our_server.logged_in[0].attributes["program_name"] in ("mysql", "mariadb")
    denied = cli(binary, our_server, "-uapp", "-pwrong", *options)
    assert denied.returncode == 1
    assert "ERROR 1045 (28000): Access denied for user 'app'@'127.0.0.1' (using password: YES)" in denied.stderr
    assert cli(binary, our_server, "-uopen", *options).stdout == "answer\n42\n"
