"""TLS on both sides, with other people's clients and real servers: who gets in, what is carried, what goes wrong."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import signal
import socket
import ssl
import struct
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pymysql
import pymysql.constants.COMMAND as COMMAND
import pymysql.cursors
import pytest
from certificates import Authority, Certificate
from gateways import SqlGateway, rows, value
from tls_gateways import TlsGateway, TlsGroup, mysql_with_tls

from gateway.demo import programs
from gateway.demo.mysql_servers import APP, MONITOR, MysqlGroup
from gateway.demo.stack import Stack
from gateway.protocol.mysql.constants import Capability
from gateway.protocol.mysql.greeting import HandshakeResponse
from gateway.protocol.mysql.packets import packet

pytestmark = pytest.mark.servers

SECONDS: Final = 30.0


@pytest.fixture(scope="module")
def module_gateways() -> Iterator[dict[str, TlsGateway]]:
    started: dict[str, TlsGateway] = {}
    yield started
    for gateway in started.values():
        gateway.end()


@pytest.fixture
def sql_gateway(
    tls_group: TlsGroup,
    module_stack: Stack,
    authority: Authority,
    certificate: Certificate,
    module_gateways: dict[str, TlsGateway],
) -> Iterator[TlsGateway]:
    """A gateway with the defaults and TLS on both sides, shared by the tests of this module."""
    flavor = tls_group.group.primary.flavor
    if flavor not in module_gateways:
        module_gateways[flavor] = TlsGateway(module_stack, tls_group, authority, certificate)
        module_gateways[flavor].start()
    gateway = module_gateways[flavor]
    gateway.wait_serving()
    yield gateway
    faults = gateway.faults()
    assert not faults, "the gateway's log shows faults:\n" + "\n".join(faults)


TlsGatewayMaker = Callable[..., TlsGateway]


@pytest.fixture
def tls_gateways(
    stack: Stack, mariadb_tls: TlsGroup, authority: Authority, certificate: Certificate
) -> Iterator[TlsGatewayMaker]:
    """Starts gateways with settings of their own before MariaDB."""
    mariadb_tls.group.make_whole()
    started: list[TlsGateway] = []

    def start(certificate: Certificate = certificate, **settings: Any) -> TlsGateway:
        gateway = TlsGateway(stack, mariadb_tls, authority, certificate, **settings)
        started.append(gateway)
        gateway.start()
        gateway.wait_serving()
        return gateway

    yield start
    for gateway in started:
        gateway.end()


# ---------------------------------------------------------------- other tests, with TLS


def _system_tests(name: str) -> ModuleType:
    path = Path(__file__).parent / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_with_tls", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_clients = _system_tests("test_sql_clients")
test_pymysql = _clients.test_pymysql_reads_at_replicas_and_writes_at_the_primary
test_the_small_commands = _clients.test_the_small_commands
test_several_results = _clients.test_several_statements_and_several_results
test_a_failed_transaction_goes_on = _clients.test_a_transaction_begun_in_a_text_that_fails_goes_on
test_who_may_not_come_in = _clients.test_who_may_not_come_in_is_told_as_the_server_tells_it


# ---------------------------------------------------------------- who gets in


def test_every_connection_on_both_sides_is_encrypted(tls_group: TlsGroup, sql_gateway: TlsGateway) -> None:
    """Accounts that the servers let in by TLS only: those of the sessions, of the monitor, and who ends statements."""
    tls_group.require("SSL")
    try:
        tls_group.group.primary.query("FLUSH PRIVILEGES")  # and passwords are in nobody's cache, on replicas neither
        sql_gateway.end()
        sql_gateway.start()
        sql_gateway.wait_serving()
        with sql_gateway.connect() as one:
            assert raw_socket(one).version() == "TLSv1.3"
            assert rows(one, "SHOW SESSION STATUS LIKE 'Ssl_cipher'")[0][1]
            rows(one, "CREATE TABLE t (a INT)")
            leaver: Any = sql_gateway.open()
            leaver._execute_command(COMMAND.COM_QUERY, "SELECT SLEEP(20) FROM dual WHERE 1 = 1 FOR UPDATE")
            sql_gateway.wait_until(lambda: bool(sleepers(sql_gateway)), "the statement runs")
            leaver._force_close()
            sql_gateway.wait_until(lambda: not sleepers(sql_gateway), "the statement was ended")
    finally:
        tls_group.require("NONE")


def sleepers(gateway: SqlGateway) -> list[Any]:
    return gateway.group.primary.query(
        "SELECT ID FROM information_schema.PROCESSLIST WHERE INFO LIKE 'SELECT SLEEP(20)%'"
    )


def raw_socket(connection: Any) -> ssl.SSLSocket:
    found: ssl.SSLSocket = connection._sock
    return found


@pytest.mark.parametrize("client", ["mariadb", "mysql"])
def test_command_line_clients_verify_the_gateway(sql_gateway: TlsGateway, client: str) -> None:
    if client == "mysql":
        if sql_gateway.group.primary.flavor != "mysql":
            pytest.skip("the client has no mysql_native_password")
        program = programs.unstable("bin/mysql", "mysql-client")
        verify = ["--ssl-mode=VERIFY_IDENTITY", "--commands"]
    else:
        program = programs.debian("mariadb", "mariadb-client")
        verify = ["--ssl-verify-server-cert"]
    place = [f"--host={sql_gateway.host}", f"--port={sql_gateway.port}", "--protocol=tcp", f"--user={APP.user}"]
    command = [
        *program.command,
        "--no-defaults",
        "--batch",
        "--skip-column-names",
        *place,
        f"--password={APP.password}",
    ]
    for ca, good in ((sql_gateway.ca, True), (Path("/etc/hostname"), False)):
        done = subprocess.run(
            [*command, *verify, f"--ssl-ca={ca}", "shop", "-e", "status; SELECT 6 * 7"],
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        if good:
            assert done.returncode == 0, done.stderr
            assert "Cipher in use is TLS_" in done.stdout
            assert done.stdout.endswith("42\n")
        else:
            assert done.returncode != 0
            assert "SSL" in done.stderr


def test_a_password_that_has_yet_to_be_learnt_is_sent_in_the_clear_within_tls(
    stack: Stack, mysql9_group: MysqlGroup, authority: Authority, certificate: Certificate
) -> None:
    """The client may not ask for the RSA key: without the full path in the clear it could not get in."""
    primary = mysql9_group.primary
    primary.query(f"GRANT SELECT ON mysql.user TO '{MONITOR.user}'@'%'")
    mysql9_group.wait_caught_up()
    gateway = TlsGateway(stack, mysql_with_tls(mysql9_group), authority, certificate, users='"backend"')
    gateway.start()
    try:
        gateway.wait_serving()
        program = programs.unstable("bin/mysql", "mysql-client")
        place = [f"--host={gateway.host}", f"--port={gateway.port}", "--protocol=tcp", f"--user={APP.user}"]
        how = [
            "--no-defaults",
            "--batch",
            "--skip-column-names",
            "--ssl-mode=VERIFY_IDENTITY",
            f"--ssl-ca={gateway.ca}",
        ]
        for password, found in (("wrong", ""), (APP.password, "42\n")):
            done = subprocess.run(
                [*program.command, *how, *place, f"--password={password}", "shop", "-e", "SELECT 6 * 7"],
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
            assert done.stdout == found, done.stderr
        with gateway.connect() as one:
            assert value(one, "SELECT 1") == 1
    finally:
        gateway.end()
        primary.query(f"REVOKE SELECT ON mysql.user FROM '{MONITOR.user}'@'%'")


def test_a_client_without_tls_is_served_where_it_is_not_required(sql_gateway: TlsGateway) -> None:
    with sql_gateway.connect(ssl_disabled=True) as one:
        assert value(one, "SELECT 1") == 1


def test_a_client_without_tls_is_refused_where_it_is(tls_gateways: TlsGatewayMaker) -> None:
    gateway = tls_gateways(tls=", required = true")
    with pytest.raises(pymysql.OperationalError) as refused:
        gateway.open(ssl_disabled=True)
    assert refused.value.args[0] == 3159
    with gateway.connect() as one:
        assert value(one, "SELECT 1") == 1
    assert gateway.figures["denied_log_ins"] == 1


def test_a_unix_socket_is_secure_enough(
    tls_gateways: TlsGatewayMaker, certificate: Certificate, tmp_path: Path
) -> None:
    local = (
        f'[[listener]]\nname = "local"\nprotocol = "mysql"\nlisten = "unix:{tmp_path}/sql"\ngroup = "orders"\n'
        f'tls = {{cert = "{certificate.cert}", key = "{certificate.key}", required = true}}'
    )
    tls_gateways(settings=local)
    place = f"{tmp_path}/sql"
    with contextlib.closing(
        pymysql.connect(unix_socket=place, user=APP.user, password=APP.password, ssl_disabled=True)
    ) as one:
        assert value(one, "SELECT 1") == 1


def test_clients_certificates(tls_gateways: TlsGatewayMaker, authority: Authority, tmp_path: Path) -> None:
    good = authority.issue("client", common_name="an application")
    foreign = Authority(tmp_path, "Foreign authority").issue("foreign")
    required = tls_gateways(tls=f', client_ca = "{authority.cert}"')
    optional = tls_gateways(tls=f', client_ca = "{authority.cert}", client_certificates = "optional"')
    shown = {"ca": str(authority.cert), "cert": str(good.cert), "key": str(good.key)}
    wrong = {"ca": str(authority.cert), "cert": str(foreign.cert), "key": str(foreign.key)}
    for gateway in (required, optional):
        with gateway.connect(ssl=shown) as one:
            assert value(one, "SELECT 1") == 1
        with pytest.raises((pymysql.OperationalError, OSError)):
            gateway.open(ssl=wrong)
    with optional.connect() as one:
        assert value(one, "SELECT 1") == 1
    with pytest.raises((pymysql.OperationalError, OSError)):
        required.open()


def test_new_certificates_are_read_at_sighup_and_broken_ones_are_not(
    tls_gateways: TlsGatewayMaker, authority: Authority
) -> None:
    own = authority.issue("renewed", "127.0.0.1")
    gateway = tls_gateways(own)
    with gateway.connect() as before:
        first = serial(gateway)
        authority.issue("renewed", "127.0.0.1")
        assert gateway.process is not None
        gateway.process.signal(signal.SIGHUP)
        gateway.wait_until(lambda: serial(gateway) != first, "the new certificate is shown")
        second = serial(gateway)
        own.key.write_text("no key at all")
        gateway.expected.append("certificates were not reloaded, those of before are kept")
        gateway.process.signal(signal.SIGHUP)
        gateway.wait_until(lambda: "were not reloaded" in gateway.log.read_text(), "it says that it is broken")
        assert serial(gateway) == second
        assert f"{own.cert} and {own.key} are not a certificate and its key in PEM" in gateway.log.read_text()
        assert value(before, "SELECT 1") == 1, "a connection that was open goes on"


def serial(gateway: TlsGateway) -> int:
    """Of the certificate that a new connection is shown."""
    with gateway.connect() as one:
        shown: Any = raw_socket(one).getpeercert()
    return int(shown["serialNumber"], 16)


def test_what_is_wrong_with_a_members_certificate_is_its_fault_in_status(
    stack: Stack, mariadb_tls: TlsGroup, certificate: Certificate, tmp_path: Path
) -> None:
    mariadb_tls.group.make_whole()
    other = Authority(tmp_path)
    gateway = TlsGateway(stack, TlsGroup(mariadb_tls.group, f'{{ca = "{other.cert}"}}'), other, certificate)
    gateway.start()
    try:
        gateway.wait_until(
            lambda: all("certificate is not trusted" in str(member["fault"]) for member in gateway.orders["members"]),
            "every member's fault is its certificate",
        )
        with pytest.raises(pymysql.OperationalError, match="no server of group orders has answered yet"):
            gateway.open()
    finally:
        gateway.end()


# ---------------------------------------------------------------- what is carried


def test_much_is_carried_both_ways(sql_gateway: TlsGateway) -> None:
    """20 MB to the server, 50 MB back; through TLS on all four ways."""
    with sql_gateway.connect(max_allowed_packet=1 << 27) as one:
        rows(one, "CREATE TABLE t (a INT PRIMARY KEY, b LONGBLOB)")
        sent = os.urandom(5_000_000).hex().encode() * 2
        rows(one, "INSERT INTO t VALUES (1, %s)", (sent,))
        one.begin()  # at the primary
        assert value(one, "SELECT SHA2(b, 256) FROM t") == hashlib.sha256(sent).hexdigest()
        for _ in range(2):
            got = rows(one, "SELECT b, b FROM t")[0]
            assert got == (sent, sent)
        one.commit()


def test_a_slow_reader_does_not_grow_the_gateway(sql_gateway: TlsGateway) -> None:
    with sql_gateway.connect() as one:
        rows(one, "CREATE TABLE t (a INT PRIMARY KEY, b LONGBLOB)")
        for number in range(8):
            rows(one, "INSERT INTO t VALUES (%s, REPEAT('x', 1000000))", (number,))
        sql_gateway.group.wait_caught_up()
        before = sql_gateway.memory_bytes()
        cursor = one.cursor(pymysql.cursors.SSCursor)
        cursor.execute("SELECT x.b FROM t x JOIN t y JOIN t z LIMIT 200")  # 200 MB
        grown, count = 0, 0
        for row in cursor:
            assert len(row[0]) == 1_000_000
            count += 1
            if count % 10 == 0:
                time.sleep(0.01)  # slower than the server; the kernel's buffers hold a few MB
            grown = max(grown, sql_gateway.memory_bytes() - before)
        assert count == 200
        assert grown < 8 << 20
        assert value(one, "SELECT COUNT(*) FROM t") == 8


def test_a_client_that_leaves_in_the_middle_of_a_result_costs_its_statement_only(sql_gateway: TlsGateway) -> None:
    with sql_gateway.connect() as one:
        rows(one, "CREATE TABLE t (a INT PRIMARY KEY, b LONGBLOB)")
        rows(one, "INSERT INTO t VALUES (1, REPEAT('x', 4000000))")
        sql_gateway.group.wait_caught_up()
        for how in ("reset", "close", "cut"):
            leaver: Any = sql_gateway.open()
            sleeping = "SELECT b, SLEEP(0.2) FROM t x JOIN (SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3) y"
            leaver._execute_command(COMMAND.COM_QUERY, sleeping)
            sock = raw_socket(leaver)
            assert sock.recv(1000)
            if how == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if how == "cut":
                sock.shutdown(socket.SHUT_WR)
            leaver._force_close()
        sql_gateway.wait_until(lambda: sql_gateway.figures["sessions"] == 1, "the leavers have gone")
        assert value(one, "SELECT COUNT(*) FROM t") == 1


# ---------------------------------------------------------------- what goes wrong


SSL_REQUEST: Final = packet(
    1, HandshakeResponse("", b"", int(Capability.PROTOCOL_41 | Capability.SSL | Capability.SECURE_CONNECTION))
    .encode_ssl_request()
)  # fmt: skip


def dial(gateway: SqlGateway) -> socket.socket:
    """A client that has read the greeting."""
    client = socket.create_connection((gateway.host, gateway.port), timeout=10.0)
    assert client.recv(10_000)[3] == 0
    return client


def client_hello() -> bytes:
    out = ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out).do_handshake()
    return out.read()


def test_handshakes_that_break_off_stall_or_are_none(tls_gateways: TlsGatewayMaker) -> None:
    gateway = tls_gateways(listener='handshake_timeout = "700ms"')
    with gateway.connect() as one:
        hello = client_hello()
        for sent in (
            SSL_REQUEST,
            SSL_REQUEST + hello[:50],
            SSL_REQUEST + hello,
            SSL_REQUEST + packet(2, b"\x03DROP TABLE t"),
            SSL_REQUEST + os.urandom(1000),
            SSL_REQUEST + b"\x16\x03\x01\xff\xff" + os.urandom(70_000),
            SSL_REQUEST * 3,
            hello,
        ):
            for how in ("reset", "end", "stall"):
                with dial(gateway) as client:
                    with contextlib.suppress(OSError):  # refused before all of it was sent
                        client.sendall(sent)
                    if how == "reset":
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        continue
                    if how == "end":
                        with contextlib.suppress(OSError):
                            client.shutdown(socket.SHUT_WR)
                    started = time.monotonic()
                    with contextlib.suppress(ConnectionResetError):
                        while client.recv(10_000):
                            pass  # until the gateway closes
                    assert time.monotonic() - started < 3.0
            assert value(one, "SELECT 1") == 1
        gateway.wait_until(lambda: gateway.figures["connections"] == 1, "all of them are gone")


def test_plain_bytes_behind_the_request_are_not_executed(sql_gateway: TlsGateway) -> None:
    """A log-in and a command that somebody in the middle put there; TLS begins behind them, and finds garbage."""
    with sql_gateway.connect() as one:
        rows(one, "CREATE TABLE t (a INT)")
        injected = HandshakeResponse(APP.user, b"", int(Capability.PROTOCOL_41 | Capability.SECURE_CONNECTION))
        with dial(sql_gateway) as client:
            client.sendall(SSL_REQUEST + packet(2, injected.encode()) + packet(0, b"\x03DROP TABLE shop.t"))
            with contextlib.suppress(ConnectionResetError):
                while client.recv(10_000):
                    pass
        assert value(one, "SELECT COUNT(*) FROM t") == 0


def test_old_versions_of_tls_are_refused(sql_gateway: TlsGateway) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with dial(sql_gateway) as client:
        client.sendall(SSL_REQUEST)
        with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
            old.wrap_socket(client)
