"""The compressed protocol on both sides of `gateway run`, with TLS beneath it, by other people's clients and ours."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import Authority, Certificate
from gateways import SqlGateway, rows, shared_gateway, value
from wire_client import NEW, WireClient

from gateway.demo import programs
from gateway.demo.mysql_servers import APP, MysqlGroup
from gateway.demo.stack import Stack
from gateway.protocol.mysql import commands
from gateway.protocol.mysql.constants import Capability, Command, ErrorCode

pytestmark = pytest.mark.servers

ZLIB = int(Capability.COMPRESS)
ZSTD = int(Capability.ZSTD_COMPRESSION_ALGORITHM)
SECONDS = 120.0
MIB = 1 << 20


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Certificate:
    return authority.issue("gateway", "127.0.0.1")


@pytest.fixture
def compressing(
    sql_group: MysqlGroup, session_stack: Stack, shared_gateways: dict[str, SqlGateway], certificate: Certificate
) -> Iterator[SqlGateway]:
    """TLS and compression towards clients; towards servers zlib (MariaDB), or zstd in TLS (MySQL)."""
    primary = sql_group.primary
    settings = 'backend_compression = "zlib"'
    if primary.flavor == "mysql":
        settings = f'backend_compression = "zstd"\nbackend_tls = {{ca = "{primary.datadir / "ca.pem"}", verify = "ca"}}'
    for server in sql_group.servers:
        server.query(f"SET GLOBAL max_allowed_packet = {64 * MIB}")
    yield from shared_gateway(
        f"{primary.flavor} with compression",
        sql_group,
        session_stack,
        shared_gateways,
        listener=f'local_infile = true\ntls = {{cert = "{certificate.cert}", key = "{certificate.key}"}}',
        settings=settings,
    )


def by_mysql(gateway: SqlGateway, sql: str, *options: str) -> str:
    """What the mysql client prints; it has to be a MySQL's own, which is asked for by caching_sha2_password."""
    if gateway.group.primary.flavor != "mysql":
        pytest.skip("the client has no mysql_native_password")
    program = programs.unstable("bin/mysql", "mysql-client")
    return printed(gateway, [*program.command, "--no-defaults", "--get-server-public-key", *options], sql)


def by_mariadb(gateway: SqlGateway, sql: str, *options: str) -> str:
    if gateway.group.primary.flavor == "mysql":
        pytest.skip("Debian's client has caching_sha2_password in another package")
    program = programs.debian("mariadb", "mariadb-client")
    return printed(gateway, [*program.command, "--no-defaults", *options], sql)


def printed(gateway: SqlGateway, command: list[str], sql: str) -> str:
    place = [f"-h{gateway.host}", f"-P{gateway.port}", f"-u{APP.user}", f"-p{APP.password}", "--protocol=tcp"]
    done = subprocess.run(
        [*command, *place, "--batch", "--quick", "-N", "shop"],
        input=sql, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


SCRIPT = (
    "CREATE TABLE t (a INT PRIMARY KEY AUTO_INCREMENT, b LONGTEXT);\nINSERT INTO t (b) VALUES (REPEAT('x', 400000));\n"
    "SELECT LENGTH(b) FROM t;\nBEGIN;\nINSERT INTO t (b) VALUES ('y');\nSELECT COUNT(*) FROM t;\nROLLBACK;\n"
    "SELECT SHA2(GROUP_CONCAT(b), 256) IS NOT NULL FROM t;\nSELECT b FROM t;\n"
)
EXPECTED = f"400000\n2\n1\n{'x' * 400000}\n"


@pytest.mark.parametrize("tls", ["DISABLED", "REQUIRED"])
@pytest.mark.parametrize("algorithms", ["zlib", "zstd", "zlib,zstd"])
def test_the_mysql_client_compresses(compressing: SqlGateway, algorithms: str, tls: str) -> None:
    options = [f"--compression-algorithms={algorithms}", f"--ssl-mode={tls}", "--zstd-compression-level=22"]
    assert by_mysql(compressing, SCRIPT, *options) == EXPECTED
    shown = by_mysql(compressing, "\\s\n", "--commands", *options)
    assert "Protocol:\t\tCompressed" in shown
    assert ("Cipher in use" in shown) == (tls == "REQUIRED")


@pytest.mark.parametrize("tls", ["--skip-ssl", "--ssl"])
def test_the_mariadb_client_compresses(compressing: SqlGateway, tls: str) -> None:
    assert by_mariadb(compressing, SCRIPT, "--compress", tls) == EXPECTED
    assert "Compressed" in by_mariadb(compressing, "\\s\n", "--compress", tls)


def big(megabytes: int) -> str:
    return (
        "SELECT REPEAT(SHA2(i, 224), 18724) FROM (WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n "
        f"WHERE i < {megabytes}) SELECT i FROM n) AS many"
    )


def expected_of(megabytes: int) -> str:
    digest = hashlib.sha256()
    for number in range(1, megabytes + 1):
        digest.update(hashlib.sha224(str(number).encode()).hexdigest().encode() * 18724 + b"\n")
    return digest.hexdigest()


def test_a_hundred_megabytes_to_each_client(compressing: SqlGateway) -> None:
    before = compressing.memory_bytes()
    if compressing.group.primary.flavor == "mysql":
        shown = by_mysql(compressing, big(100), "--compression-algorithms=zstd", "--ssl-mode=REQUIRED")
    else:
        shown = by_mariadb(compressing, big(100), "--compress")
    assert hashlib.sha256(shown.encode()).hexdigest() == expected_of(100)
    assert compressing.memory_bytes() - before < 24 * MIB


def test_connections_to_servers_are_compressed(compressing: SqlGateway) -> None:
    with compressing.connect() as one:
        for hint in ("primary", "replica"):
            shown = dict(rows(one, f"SHOW /* gateway: {hint} */ STATUS LIKE 'Compression%'"))
            assert shown["Compression"] == "ON"
            if compressing.group.primary.flavor == "mysql":
                assert shown["Compression_algorithm"] == "zstd"
        rows(one, "CREATE TABLE t (a INT PRIMARY KEY, b LONGBLOB)")
        size = 17 * MIB
        rows(one, "INSERT INTO t VALUES (1, %s)", (bytes(range(256)) * (size >> 8),))
        assert value(one, "SELECT b FROM t") == bytes(range(256)) * (size >> 8)
        rows(one, "SET @a = 5, NAMES latin1")
        assert rows(one, "SELECT @a, @@character_set_client") == [(5, "latin1")]


LONGEST = 0xFFFFFF


@pytest.mark.parametrize("length", [LONGEST - 4, LONGEST - 3, LONGEST - 1, LONGEST, 2 * LONGEST - 7, 2 * LONGEST - 1])
def test_a_command_near_the_end_of_a_packet_is_answered(compressing: SqlGateway, length: int) -> None:
    """The last bytes of some need one compressed packet more, which a server numbers its reply by."""
    statement = b"SELECT LENGTH('" + b"x" * (length - 18) + b"')"
    with WireClient(compressing) as one:
        for _ in range(2):
            raw = commands.query(statement)
            one.send(raw)
            one.read_reply(Command.QUERY, len(raw) // (LONGEST + 4) + 1)
            assert one.tracker.error is None
            assert one.rows("SELECT 5") == [("5",)]


def test_a_file_goes_through_two_compressed_connections(compressing: SqlGateway, tmp_path: Path) -> None:
    compressing.group.primary.query("SET GLOBAL local_infile = 1")
    (tmp_path / "rows.csv").write_text("".join(f"{number},text {number}\n" for number in range(300_000)))
    script = (
        "CREATE TABLE t (a INT PRIMARY KEY, b TEXT);\n"
        f"LOAD DATA LOCAL INFILE '{tmp_path}/rows.csv' INTO TABLE t FIELDS TERMINATED BY ',';\n"
        "SELECT COUNT(*), MAX(b) FROM t;\n"
    )
    if compressing.group.primary.flavor == "mysql":
        shown = by_mysql(compressing, script, "--compression-algorithms=zlib", "--local-infile=1")
    else:
        shown = by_mariadb(compressing, script, "--compress", "--local-infile=1")
    assert shown == "300000\ttext 99999\n"


@pytest.mark.parametrize("algorithm", [ZLIB, ZSTD], ids=["zlib", "zstd"])
def test_our_client_compresses_and_pipelines(compressing: SqlGateway, algorithm: int) -> None:
    with WireClient(compressing, capabilities=NEW | algorithm) as one:
        assert one.capabilities & (ZLIB | ZSTD) == algorithm
        assert one.rows("SELECT 1") == [("1",)]
        length = 17 * MIB
        assert one.rows(f"SELECT LENGTH('{'x' * length}')") == [(str(length),)]
        assert one.rows(f"SELECT REPEAT('y', {length})") == [("y" * length,)]
        for number in range(3):
            one.send(commands.query(f"SELECT {number}"))
        received = b""
        while received.count(b"\xfe") < 3:
            received += one.receive()
        assert one.rows("SELECT 2") == [("2",)]


@pytest.mark.parametrize("algorithm", [ZLIB, ZSTD], ids=["zlib", "zstd"])
def test_what_is_not_compressed_as_agreed_ends_the_connection(compressing: SqlGateway, algorithm: int) -> None:
    bad = [
        (b"\x0a\0\0\0\x64\0\0" + b"0123456789", ErrorCode.UNCOMPRESS),
        (b"\x01\0\0\0\xff\xff\xff" + b"x", ErrorCode.UNCOMPRESS),
        (b"\x05\0\0\0\0\0\0" + b"\x01\0\0\x07\x0e", ErrorCode.PACKETS_OUT_OF_ORDER),
    ]
    for wire, code in bad:
        with WireClient(compressing, capabilities=NEW | algorithm) as one:
            assert one.rows("SELECT 1") == [("1",)]
            one.sock.sendall(wire)
            one.read_reply(Command.QUERY)
            assert one.tracker.error is not None
            assert one.tracker.error.code == code
            assert one.is_closed()
    with compressing.connect() as other:
        assert value(other, "SELECT 1") == 1


def test_a_server_without_the_algorithm_is_told_of(mariadb_group: MysqlGroup, stack: Stack) -> None:
    gateway = SqlGateway(stack, mariadb_group, settings='backend_compression = "zstd"')
    gateway.start()
    gateway.wait_until(
        lambda: all("does not offer zstd" in (member["fault"] or "") for member in gateway.orders["members"]),
        "every member lacks zstd",
    )
    gateway.end()
