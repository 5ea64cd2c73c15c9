"""Starts MySQL and MariaDB servers, replicating groups of them by GTID, and MySQL Router, on loopback.

The data folder is made once per stack and flavour, with the accounts and databases in it, and copied for each server,
so that a group is up in a second or two. Durability is off in so far as a killed machine would lose data; a killed
server loses nothing.

    with Stack() as stack:
        group = mysql_group(stack, flavor="mariadb", replicas=2)
        group.primary.query("INSERT INTO shop.t VALUES (1)")
        group.wait_caught_up()
        group.stop_replication(group.replicas[0])
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import pymysql
import pymysql.connections
import pymysql.cursors

from gateway.demo import programs
from gateway.demo.relay import Relay
from gateway.demo.servers import Server, start_all
from gateway.demo.stack import ServerFailedError, Stack

Flavor = Literal["mariadb", "mysql"]


@dataclass(frozen=True)
class Account:
    """A user of the servers with its password, valid from any host."""

    user: str
    password: str


APP: Final = Account("app", "app-secret")
"""What an application uses: all rights on the databases shop and sbtest."""

MONITOR: Final = Account("gateway", "gateway-secret")
"""The gateway's monitor, with the rights that show positions, replication and the catalogue."""

REPLICATION: Final = Account("replication", "replication-secret")

DATABASES: Final = ("shop", "sbtest")
"""sbtest is sysbench's own default."""

_template_lock = threading.Lock()


class MysqlFamilyServer(Server):
    """What MySQL and MariaDB servers share; root has no password over `socket`, and none but there."""

    flavor: ClassVar[Flavor]

    def __init__(
        self, stack: Stack, name: str | None = None, *, server_id: int = 1, options: Sequence[str] = ()
    ) -> None:
        super().__init__(stack, name)
        self.server_id = server_id
        self.options = list(options)
        self.datadir = stack.folder / f"{self.name}.data"

    @property
    def socket(self) -> Path:
        """The unix socket, for root."""
        return self.stack.folder / f"{self.name}.sock"

    @abstractmethod
    def template_statements(self) -> list[str]:
        """What makes the accounts and databases, one statement per item."""

    @abstractmethod
    def initialize(self, datadir: Path, statements: Path) -> list[str]:
        """The command that makes a data folder and runs the statements in it."""

    def prepare(self) -> None:
        if not self.datadir.exists():
            template = self._template()
            subprocess.run(
                ["cp", "-a", "--reflink=auto", "--sparse=always", str(template), str(self.datadir)], check=True
            )

    def _template(self) -> Path:
        folder = self.stack.folder / f"{self.flavor}.template"
        with _template_lock:
            if not folder.exists():
                fresh = self.stack.folder / f"{self.flavor}.fresh"
                statements = self.stack.folder / f"{self.flavor}.sql"
                statements.write_text("".join(f"{statement};\n" for statement in self.template_statements()))
                made = subprocess.run(
                    self.initialize(fresh, statements), capture_output=True, stdin=subprocess.DEVNULL, text=True
                )
                if made.returncode != 0:
                    raise ServerFailedError(
                        f"{self.flavor} could not make its data folder:\n{made.stdout}{made.stderr}"
                    )
                (fresh / "auto.cnf").unlink(missing_ok=True)  # holds the server's UUID, which each copy makes anew
                fresh.rename(folder)
        return folder

    def common_options(self) -> list[str]:
        """Options that both flavours know."""
        return [
            f"--datadir={self.datadir}",
            f"--tmpdir={self.stack.folder}",
            f"--socket={self.socket}",
            f"--pid-file={self.stack.folder / self.name}.pid",
            f"--port={self.port}",
            f"--bind-address={self.host}",
            f"--report-host={self.host}",
            f"--report-port={self.port}",
            f"--server-id={self.server_id}",
            "--log-bin=binlog",
            "--relay-log=relay",
            "--sync-binlog=0",
            "--innodb-flush-log-at-trx-commit=2",
            "--innodb-buffer-pool-size=64M",
            "--performance-schema=OFF",
            "--skip-name-resolve",
            "--max-connections=1000",
            "--character-set-server=utf8mb4",
            *_user_option(),
        ]

    def ready(self) -> bool:
        with contextlib.suppress(OSError, pymysql.MySQLError):
            with socket.create_connection((self.host, self.port), timeout=1.0):
                pass
            with socket.socket(socket.AF_UNIX) as probe:  # PyMySQL leaks its socket when this is refused
                probe.connect(str(self.socket))
            with self.admin():
                return True
        return False

    @contextlib.contextmanager
    def admin(self) -> Iterator[pymysql.connections.Connection[Any]]:
        """A connection of root's, over the unix socket, in autocommit mode."""
        connection = pymysql.connect(
            unix_socket=str(self.socket), user="root", autocommit=True, connect_timeout=10, ssl_disabled=True
        )
        try:
            yield connection
        finally:
            connection.close()

    @contextlib.contextmanager
    def connect(
        self, account: Account = APP, database: str | None = None
    ) -> Iterator[pymysql.connections.Connection[Any]]:
        """A connection of an account's, over TCP, in autocommit mode."""
        connection = pymysql.connect(
            host=self.host,
            port=self.port,
            user=account.user,
            password=account.password,
            database=database,
            autocommit=True,
            connect_timeout=10,
            ssl_disabled=True,  # PyMySQL would make a TLS context for each connection, of 20 ms
        )
        try:
            yield connection
        finally:
            connection.close()

    def query(self, statement: str, arguments: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
        """Runs one statement as root; its rows."""
        with self.admin() as connection, connection.cursor() as cursor:
            cursor.execute(statement, arguments)
            return list(cursor.fetchall())

    def query_row(self, statement: str) -> dict[str, Any]:
        """Runs one statement as root; its first row by column, or {}."""
        with self.admin() as connection, connection.cursor(pymysql.cursors.DictCursor) as cursor:
            cursor.execute(statement)
            return cursor.fetchone() or {}

    # the words of each flavour for the same acts

    @abstractmethod
    def follow_statement(self, host: str, port: int) -> str:
        """Makes this server a replica of the one at host and port, by GTID."""

    start_replica: ClassVar[str]
    stop_replica: ClassVar[str]
    replica_status: ClassVar[str]
    running_columns: ClassVar[tuple[str, str]]
    delay_statement: ClassVar[str]
    read_only_variable: ClassVar[str]

    @abstractmethod
    def position(self) -> str:
        """The GTID position of what this server has executed and logged."""

    @abstractmethod
    def wait_for_position(self, position: str, timeout: float) -> bool:
        """Waits until this replica has executed `position`; false after `timeout` seconds."""


class MariadbServer(MysqlFamilyServer):
    """MariaDB of the machine's own Debian."""

    label = "mariadb"
    flavor = "mariadb"
    start_replica = "START SLAVE"
    stop_replica = "STOP SLAVE"
    replica_status = "SHOW SLAVE STATUS"
    running_columns = ("Slave_IO_Running", "Slave_SQL_Running")
    delay_statement = "CHANGE MASTER TO MASTER_DELAY = {}"
    read_only_variable = "read_only"

    def __init__(
        self, stack: Stack, name: str | None = None, *, server_id: int = 1, options: Sequence[str] = ()
    ) -> None:
        super().__init__(stack, name, server_id=server_id, options=options)
        self.program = programs.mariadbd()

    def command(self) -> list[str]:
        options = [
            "--gtid-strict-mode=ON",
            "--log-slave-updates",
            "--binlog-format=ROW",
            "--innodb-log-file-size=8M",
            "--aria-pagecache-buffer-size=8M",
            "--key-buffer-size=4M",
            "--collation-server=utf8mb4_general_ci",
        ]
        return [*self.program.command, "--no-defaults", *self.common_options(), *options, *self.options]

    def template_statements(self) -> list[str]:
        return [
            "FLUSH PRIVILEGES",  # the installation runs without the privilege tables until then
            "DROP USER IF EXISTS ''@'localhost'",
            f"DROP USER IF EXISTS ''@'{socket.gethostname()}'",
            *_accounts_and_databases(),
            f"GRANT REPLICATION SLAVE ON *.* TO '{REPLICATION.user}'@'%'",
            f"GRANT SLAVE MONITOR, BINLOG MONITOR, SELECT, SHOW VIEW, TRIGGER ON *.* TO '{MONITOR.user}'@'%'",
        ]

    def initialize(self, datadir: Path, statements: Path) -> list[str]:
        install = programs.mariadb_install_db().command
        # A tmpdir of its own: a server that starts removes the temporary tables of all others there.
        options = [
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--innodb-log-file-size=8M",
            f"--tmpdir={self.stack.folder}",
        ]
        return [
            *install,
            "--no-defaults",
            f"--datadir={datadir}",
            f"--extra-file={statements}",
            *options,
            *_user_option(),
        ]

    def follow_statement(self, host: str, port: int) -> str:
        return (
            f"CHANGE MASTER TO MASTER_HOST = '{host}', MASTER_PORT = {port}, MASTER_USER = '{REPLICATION.user}', "
            f"MASTER_PASSWORD = '{REPLICATION.password}', MASTER_USE_GTID = slave_pos, MASTER_CONNECT_RETRY = 1"
        )

    def position(self) -> str:
        return str(self.query("SELECT @@gtid_current_pos")[0][0])

    def wait_for_position(self, position: str, timeout: float) -> bool:
        return bool(self.query("SELECT MASTER_GTID_WAIT(%s, %s)", (position, timeout))[0][0] == 0)


class MysqlServer(MysqlFamilyServer):
    """The newest MySQL, of Debian unstable; accounts authenticate by caching_sha2_password."""

    label = "mysql"
    flavor = "mysql"
    start_replica = "START REPLICA"
    stop_replica = "STOP REPLICA"
    replica_status = "SHOW REPLICA STATUS"
    running_columns = ("Replica_IO_Running", "Replica_SQL_Running")
    delay_statement = "CHANGE REPLICATION SOURCE TO SOURCE_DELAY = {}"
    read_only_variable = "super_read_only"

    def __init__(
        self, stack: Stack, name: str | None = None, *, server_id: int = 1, options: Sequence[str] = ()
    ) -> None:
        super().__init__(stack, name, server_id=server_id, options=options)
        self.program = programs.mysqld()

    def _files(self) -> list[str]:
        usr = self.program.usr
        return [
            "--no-defaults",
            f"--basedir={usr}",
            f"--lc-messages-dir={usr / 'share/mysql'}",
            f"--character-sets-dir={usr / 'share/mysql/charsets'}",
            f"--plugin-dir={usr / 'lib/mysql/plugin'}",
            "--innodb-redo-log-capacity=8M",
            "--secure-file-priv=NULL",  # Debian's default is a folder that the unpacked package never made
            # Each server would reserve thousands of the kernel's 65,536 asynchronous requests (fs.aio-max-nr), and one
            # that finds too few left does not start.
            "--innodb-use-native-aio=OFF",
        ]

    def command(self) -> list[str]:
        options = ["--gtid-mode=ON", "--enforce-gtid-consistency=ON", "--mysqlx=OFF", "--skip-replica-start=OFF"]
        return [*self.program.command, *self._files(), *self.common_options(), *options, *self.options]

    def template_statements(self) -> list[str]:
        return [
            *_accounts_and_databases(),
            f"GRANT REPLICATION SLAVE ON *.* TO '{REPLICATION.user}'@'%'",
            f"GRANT REPLICATION CLIENT, SELECT, SHOW VIEW, TRIGGER ON *.* TO '{MONITOR.user}'@'%'",
        ]

    def initialize(self, datadir: Path, statements: Path) -> list[str]:
        options = ["--initialize-insecure", "--disable-log-bin", f"--datadir={datadir}", f"--init-file={statements}"]
        return [*self.program.command, *self._files(), *options, *_user_option()]

    def follow_statement(self, host: str, port: int) -> str:
        return (
            f"CHANGE REPLICATION SOURCE TO SOURCE_HOST = '{host}', SOURCE_PORT = {port}, "
            f"SOURCE_USER = '{REPLICATION.user}', SOURCE_PASSWORD = '{REPLICATION.password}', "
            "SOURCE_AUTO_POSITION = 1, GET_SOURCE_PUBLIC_KEY = 1, SOURCE_CONNECT_RETRY = 1"
        )

    def position(self) -> str:
        return str(self.query("SELECT @@gtid_executed")[0][0]).replace("\n", "")

    def wait_for_position(self, position: str, timeout: float) -> bool:
        # its timeout of 0 waits for ever, and 0.5 is rounded
        return bool(self.query("SELECT WAIT_FOR_EXECUTED_GTID_SET(%s, %s)", (position, max(timeout, 0.01)))[0][0] == 0)


def _accounts_and_databases() -> list[str]:
    statements = [f"CREATE DATABASE {database}" for database in DATABASES]
    statements += [
        f"CREATE USER '{account.user}'@'%' IDENTIFIED BY '{account.password}'"
        for account in (APP, MONITOR, REPLICATION)
    ]
    statements += [f"GRANT ALL PRIVILEGES ON {database}.* TO '{APP.user}'@'%'" for database in DATABASES]
    return statements


def _user_option() -> list[str]:
    # both refuse to run as root unless told so
    return ["--user=root"] if os.geteuid() == 0 else []


class MysqlGroup:
    """A primary and its replicas. `relays` holds one per replica, between it and the primary, if asked for."""

    def __init__(
        self, primary: MysqlFamilyServer, replicas: Sequence[MysqlFamilyServer], relays: Sequence[Relay] = ()
    ) -> None:
        self.primary = primary
        self.replicas = list(replicas)
        self.relays = list(relays)

    @property
    def servers(self) -> list[MysqlFamilyServer]:
        """The primary, then the replicas."""
        return [self.primary, *self.replicas]

    def stop_replication(self, replica: MysqlFamilyServer) -> None:
        """Stops both replication threads: the replica serves what it has."""
        replica.query(replica.stop_replica)

    def start_replication(self, replica: MysqlFamilyServer) -> None:
        """Starts both replication threads and waits until they run."""
        replica.query(replica.start_replica)
        self.wait_replicating(replica)

    def set_delay(self, replica: MysqlFamilyServer, seconds: int) -> None:
        """Lets a replica apply what it receives `seconds` later; the servers take whole seconds only (see relays)."""
        replica.query(replica.stop_replica)
        replica.query(replica.delay_statement.format(seconds))
        replica.query(replica.start_replica)
        self.wait_replicating(replica)

    def replicating(self, replica: MysqlFamilyServer) -> bool:
        """Whether both replication threads run."""
        status = replica.query_row(replica.replica_status)
        return all(status.get(column) == "Yes" for column in replica.running_columns)

    def wait_replicating(self, replica: MysqlFamilyServer, timeout: float = 30.0) -> None:
        """Waits until both replication threads run."""
        deadline = time.monotonic() + timeout
        while not self.replicating(replica):
            assert replica.process is not None
            if time.monotonic() > deadline or replica.process.wait(0.02):
                raise ServerFailedError(
                    f"{replica.name} does not replicate: {replica.query_row(replica.replica_status)}"
                )

    def wait_caught_up(self, timeout: float = 30.0) -> None:
        """Waits until every replica has executed what the primary has at this moment."""
        position = self.primary.position()
        for replica in self.replicas:
            if not replica.wait_for_position(position, timeout):
                raise ServerFailedError(f"{replica.name} has not come to {position} within {timeout} s")

    def make_whole(self) -> None:
        """Undoes what a test did to the group: everything runs, replicates without delay, and `shop` is empty."""
        for relay in self.relays:
            if not relay.running:
                relay.start()
            relay.resume()
            relay.heal()
        for server in self.servers:
            if not server.running:
                server.start()
            server.resume()
        self.primary.query("SET GLOBAL read_only = OFF")
        for replica in self.replicas:
            replica.query(f"SET GLOBAL {replica.read_only_variable} = ON")
            if replica.query_row(replica.replica_status)["SQL_Delay"]:
                self.set_delay(replica, 0)
            elif not self.replicating(replica):
                self.start_replication(replica)
        self.primary.query("DROP DATABASE IF EXISTS shop")
        self.primary.query("CREATE DATABASE shop")
        self.wait_caught_up()


def mysql_group(
    stack: Stack,
    flavor: Flavor = "mariadb",
    replicas: int = 2,
    *,
    relayed: bool = False,
    name: str = "",
    options: Sequence[str] = (),
) -> MysqlGroup:
    """Starts a primary and its replicas, replicating by GTID; server ids 1, 2, 3...

    relayed: every replica receives its stream through a relay of its own, `group.relays[i]`, which can delay it by
    milliseconds or hold it.
    """
    kind: type[MariadbServer] | type[MysqlServer] = MariadbServer if flavor == "mariadb" else MysqlServer
    prefix = f"{name or flavor}-"
    primary = kind(stack, f"{prefix}primary", server_id=1, options=options)
    read_only = f"--{kind.read_only_variable.replace('_', '-')}=ON"
    followers: list[MysqlFamilyServer] = [
        kind(stack, f"{prefix}replica-{number}", server_id=1 + number, options=[read_only, *options])
        for number in range(1, replicas + 1)
    ]
    start_all([primary, *followers])
    relays = [Relay(stack, primary.host, primary.port) for _ in followers] if relayed else []
    for relay in relays:
        relay.start()
    group = MysqlGroup(primary, followers, relays)
    for number, follower in enumerate(followers):
        host, port = (relays[number].host, relays[number].port) if relayed else (primary.host, primary.port)
        follower.query(follower.follow_statement(host, port))
        follower.query(follower.start_replica)
    for follower in followers:
        group.wait_replicating(follower)
    return group


class MysqlRouter(Server):
    """MySQL Router that passes one server's protocol through, with one routing thread."""

    label = "mysqlrouter"

    def __init__(self, stack: Stack, server: Server, name: str | None = None) -> None:
        super().__init__(stack, name)
        self.program = programs.mysqlrouter()
        self.server = server

    @property
    def configuration(self) -> Path:
        """The file that it reads."""
        return self.stack.folder / f"{self.name}.conf"

    def prepare(self) -> None:
        folder = self.stack.folder / self.name
        folder.mkdir(exist_ok=True)
        self.configuration.write_text(
            f"[DEFAULT]\nplugin_folder = {self.program.usr / 'lib/mysqlrouter/plugin'}\nlogging_folder =\n"
            f"runtime_folder = {folder}\ndata_folder = {folder}\nmax_total_connections = 2048\n"
            "[logger]\nlevel = WARNING\n[io]\nthreads = 1\n"
            f"[routing:pool]\nbind_address = {self.host}\nbind_port = {self.port}\nprotocol = classic\n"
            f"destinations = {self.server.address}\nrouting_strategy = first-available\nmax_connections = 2048\n"
            "client_ssl_mode = DISABLED\nserver_ssl_mode = DISABLED\n"
        )

    def command(self) -> list[str]:
        return [*self.program.command, "-c", str(self.configuration), *_user_option()]

    def ready(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=1.0) as connection:
            return len(connection.recv(64)) > 5
        return False
