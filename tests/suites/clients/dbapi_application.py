"""An application on Python's database interface that writes down every value, column, count and error it is given.

    python dbapi_application.py {pymysql|MySQLdb|connector} HOST PORT USER PASSWORD DATABASE ROWS

Two runs on equal servers print the same bytes. It needs the client library and nothing else, and an empty database.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Library = Any

KINDS = (
    ("a", "BIGINT UNSIGNED", 2**64 - 1),
    ("b", "DECIMAL(65,30)", "-12345678901234567890123456789012345.123456789012345678901234567890"),
    ("c", "DOUBLE", 1.5e300),
    ("d", "FLOAT", -0.25),
    ("e", "DATE", "9999-12-31"),
    ("f", "DATETIME(6)", "2024-02-29 23:59:59.999999"),
    ("g", "TIME(3)", "-838:59:58.125"),
    ("h", "TIMESTAMP NULL", "2001-09-09 01:46:40"),
    ("i", "YEAR", 1999),
    ("j", "CHAR(20)", "Ω ß é"),
    ("k", "VARCHAR(200)", "漢字 \U0001f600 'quotes\" and \\backslash % \0 nul\n"),
    ("l", "BLOB", bytes(range(256))),
    ("m", "BIT(12)", 0b101010101010),
    ("n", "ENUM('one','two','drei ü')", "drei ü"),
    ("o", "SET('x','y','z')", "x,z"),
    ("p", "TINYINT(1)", -1),
    ("q", "BINARY(4)", b"\xff\0\x01"),
    ("r", "TEXT", "long " * 5000),
)


def shown(value: object) -> str:
    """A value with its type, and short."""
    if isinstance(value, (bytes, bytearray)):
        plain = bytes(value)
        text = plain.hex() if len(plain) <= 64 else f"{len(plain)} bytes, sha256 {hashlib.sha256(plain).hexdigest()}"
    elif isinstance(value, str) and len(value) > 200:
        text = f"{len(value)} characters, sha256 {hashlib.sha256(value.encode()).hexdigest()}"
    elif isinstance(value, (set, frozenset)):
        text = ascii(sorted(value))
    else:
        text = ascii(value)
    return f"{type(value).__name__}:{text}"


class Application:
    """One connection, and what was seen on it."""

    def __init__(self, library: str, place: Sequence[str], rows: int) -> None:
        self.library = library
        self.place = place
        self.rows = rows
        self.client, self.connection = self._connect()

    def _connect(self, autocommit: bool = False) -> tuple[Library, Any]:
        host, port, user, password, database = self.place
        account: dict[str, Any] = {"host": host, "port": int(port), "user": user, "password": password}
        account["database"] = database
        if self.library == "pymysql":
            import pymysql
            import pymysql.constants.CLIENT

            account["client_flag"] = pymysql.constants.CLIENT.MULTI_STATEMENTS
            return pymysql, pymysql.connect(**account, autocommit=autocommit)
        if self.library == "MySQLdb":
            client = importlib.import_module("MySQLdb")
            return client, client.connect(**account, charset="utf8mb4", autocommit=autocommit)
        import mysql.connector

        return mysql.connector, mysql.connector.connect(
            **account,
            autocommit=autocommit,
            charset="utf8mb4",
            collation="utf8mb4_general_ci",
            use_pure=True,
            ssl_disabled=True,
        )

    @contextmanager
    def cursor(self, **kind: Any) -> Iterator[Any]:
        cursor = self.connection.cursor(**kind)
        try:
            yield cursor
        finally:
            cursor.close()

    def say(self, *what: object) -> None:
        print(*what)

    def run(self, sql: str, arguments: Sequence[object] | None = None, **kind: Any) -> None:
        """One statement: its columns, rows, counts, or its error."""
        with self.cursor(**kind) as cursor:
            self.say("--", ascii(sql[:100]))
            try:
                if arguments is None:
                    cursor.execute(sql)
                else:
                    cursor.execute(sql, arguments)
                self.results(cursor)
            except self.client.Error as error:
                self.say("error", type(error).__name__, shown(error.args[:2]))

    def results(self, cursor: Any) -> None:
        """What a cursor has, result by result."""
        more: object = True
        while more:
            if cursor.description is not None:
                # not the sizes: they depend on the rows, and libraries guess some
                self.say("columns", ascii([(column[0], column[1], *column[6:]) for column in cursor.description]))
                for row in cursor.fetchall():
                    self.say("row", ", ".join(shown(value) for value in row))
            self.say("count", cursor.rowcount, "id", cursor.lastrowid)
            more = cursor.nextset()

    def warnings(self) -> None:
        """The warnings of the statement before, three ways."""
        self.run("SHOW WARNINGS")
        self.run("SHOW COUNT(*) WARNINGS")
        self.run("SELECT @@warning_count, @@error_count")

    def server_state(self) -> None:
        self.run("SELECT DATABASE(), @@autocommit, @@character_set_client, @@collation_connection, @@time_zone")
        self.run("SHOW VARIABLES LIKE 'collation_connection'")

    # -- the course

    def course(self) -> None:
        """Everything under autocommit; before that what transactions that begin by themselves may change."""
        self.server_state()
        self.kinds()
        self.transactions()
        self.left_behind()
        self.prepared()
        self.state()
        self.connection.close()
        self.client, self.connection = self._connect(autocommit=True)
        self.server_state()
        self.kinds()
        self.transactions()
        self.big_result()
        self.left_behind()
        self.blobs()
        self.prepared()
        self.procedures()
        self.errors()
        self.state()
        self.connection.close()

    def kinds(self) -> None:
        """Every type, written and read back, with NULLs."""
        self.run("DROP TABLE IF EXISTS kinds")
        columns = ", ".join(f"{name} {kind} NULL" for name, kind, _ in KINDS)
        self.run(
            f"CREATE TABLE kinds (id INT PRIMARY KEY AUTO_INCREMENT, {columns}, s JSON NULL) CHARACTER SET utf8mb4"
        )
        names = ", ".join(name for name, _, _ in KINDS)
        marks = ", ".join(["%s"] * len(KINDS))
        self.run(f"INSERT INTO kinds ({names}) VALUES ({marks})", [value for _, _, value in KINDS])
        self.run(f"INSERT INTO kinds ({names}) VALUES ({marks})", [None for _ in KINDS])
        self.run('UPDATE kinds SET s = \'{"a": [1, 2.5, null, "\\u00e9"]}\' WHERE id = 1')
        self.connection.commit()
        self.run("SELECT * FROM kinds ORDER BY id")
        for name, _, value in KINDS:
            self.run(f"SELECT id, {name} FROM kinds WHERE {name} = %s OR {name} IS NULL ORDER BY id", [value])
        self.run("SELECT COUNT(*), SUM(a), AVG(b), MIN(e), MAX(f), GROUP_CONCAT(k ORDER BY id) FROM kinds")
        self.run("SELECT a + b, c / 3, CAST(b AS DECIMAL(20,5)), DATE_ADD(f, INTERVAL 1 MICROSECOND), -d FROM kinds")
        self.run(
            "SELECT 1 AS `weird \U0001f600 name`, NULL, '', x'00ff', TRUE, 1.10, 1e10, DATE '2020-01-01' FROM DUAL"
        )
        self.run("SELECT id FROM kinds WHERE id > 1000")
        self.run("DESCRIBE kinds")
        self.run("SHOW CREATE TABLE kinds")

    def transactions(self) -> None:
        self.run("DROP TABLE IF EXISTS t")
        self.run("CREATE TABLE t (a INT PRIMARY KEY AUTO_INCREMENT, b VARCHAR(20)) ENGINE=InnoDB")
        self.run("INSERT INTO t (b) VALUES ('committed')")
        self.connection.commit()
        self.run("INSERT INTO t (b) VALUES ('rolled back')")
        self.run("SELECT * FROM t ORDER BY a")
        self.connection.rollback()
        self.run("SELECT * FROM t ORDER BY a")
        self.run("START TRANSACTION")
        self.run("INSERT INTO t (b) VALUES ('first')")
        self.run("SAVEPOINT s")
        self.run("INSERT INTO t (b) VALUES ('second')")
        self.run("ROLLBACK TO SAVEPOINT s")
        self.run("SELECT * FROM t ORDER BY a FOR UPDATE")
        self.run("COMMIT")
        self.run("START TRANSACTION READ ONLY")
        self.run("SELECT COUNT(*) FROM t")
        self.run("INSERT INTO t (b) VALUES ('refused')")
        self.run("COMMIT")
        self.run("SELECT * FROM t ORDER BY a")
        self.run("TRUNCATE TABLE t")
        self.connection.commit()

    def left_behind(self) -> None:
        """Insert ids, row counts, found rows, warnings."""
        self.run("INSERT INTO t (b) VALUES ('x'), ('y'), ('z')")
        self.run("SELECT LAST_INSERT_ID()")
        self.run("SELECT LAST_INSERT_ID(), @@identity, @@last_insert_id")
        self.run("UPDATE t SET b = 'y' WHERE b IN ('x', 'y')")
        self.row_count()
        self.run("SELECT LAST_INSERT_ID()")
        self.run("SELECT SQL_CALC_FOUND_ROWS a FROM t ORDER BY a LIMIT 1")
        self.warnings()
        self.run("SELECT SQL_CALC_FOUND_ROWS a FROM t ORDER BY a LIMIT 1")
        self.run("SELECT FOUND_ROWS()")
        self.run("SELECT a FROM t ORDER BY a LIMIT 2")
        self.run("SELECT FOUND_ROWS()")
        self.run("SELECT CAST('12x' AS SIGNED), 1 / 0, CAST('zzz' AS DATE)")
        self.warnings()
        self.run("SELECT COUNT(*) FROM t")  # without a table, MariaDB would keep the warnings
        self.warnings()
        self.run("SET SESSION sql_mode = ''")
        self.run("INSERT INTO t (b) VALUES ('much too long for the column'), (CONCAT('and so ', 'is this one here'))")
        self.warnings()
        self.run("INSERT IGNORE INTO t (a, b) VALUES (1, 'again')")
        self.warnings()
        self.run("DROP TABLE IF EXISTS nowhere_to_be_found")
        self.warnings()
        self.run("SELECT nothing FROM t")
        self.warnings()
        self.run("SET SESSION sql_mode = 'STRICT_TRANS_TABLES,ONLY_FULL_GROUP_BY'")
        self.run("INSERT INTO t (b) VALUES ('much too long for the column')")
        self.warnings()
        self.run("DELETE FROM t")
        self.row_count()
        self.run("SET SESSION sql_mode = DEFAULT")
        self.connection.commit()

    def row_count(self) -> None:
        """Connector/Python pings before every cursor, after which a server says 0, and the gateway what it was."""
        if self.library != "connector":
            self.run("SELECT ROW_COUNT()")

    def blobs(self) -> None:
        self.run("DROP TABLE IF EXISTS blobs")
        self.run("CREATE TABLE blobs (a INT PRIMARY KEY, b LONGBLOB, c LONGTEXT CHARACTER SET utf8mb4)")
        for number, size in enumerate((0, 1, 250, 251, 65_535, 65_536, 1 << 20, 3_000_001)):
            blob = hashlib.sha512(str(number).encode()).digest() * (size // 64 + 1)
            self.run("INSERT INTO blobs VALUES (%s, %s, %s)", (number, blob[:size], "\U0001f600é" * (size // 8)))
        self.connection.commit()
        self.run("SELECT a, LENGTH(b), b, c FROM blobs ORDER BY a")
        self.run("SELECT a FROM blobs WHERE b = %s", (hashlib.sha512(b"3").digest() * 4,))

    def prepared(self) -> None:
        """Prepared statements: of the protocol where the library has them, as text everywhere."""
        self.run("PREPARE p FROM 'SELECT ? + 1, CONCAT(?, ?)'")
        self.run("SET @a = 41, @b = 'b', @c = NULL")
        self.run("EXECUTE p USING @a, @b, @b")
        self.run("EXECUTE p USING @a, @b, @c")
        self.run("DEALLOCATE PREPARE p")
        self.run("EXECUTE p USING @a, @b, @c")
        if self.library != "connector":
            return
        marks = ", ".join(["%s"] * 6)
        with self.cursor(prepared=True) as cursor:
            for sql, rows in (
                (f"SELECT {marks}", [(1, "two", 3.5, None, b"\0\xff", "é\U0001f600"), (-1, "", 0.0, 5, b"", "\n")]),
                ("INSERT INTO t (b) VALUES (%s)", [("prepared",), (None,), ("é",)]),
                ("SELECT b FROM t WHERE a > %s ORDER BY a", [(0,), (10**9,), (0,)]),
                ("SELECT * FROM kinds WHERE id = %s", [(1,), (2,), (3,)]),
                ("UPDATE t SET b = %s WHERE b = %s", [("changed", "prepared"), ("changed", "prepared")]),
                ("DELETE FROM t WHERE a > %s", [(0,), (0,)]),
                ("SELECT nothing FROM t WHERE a > %s", [(0,)]),
            ):
                for arguments in rows:
                    self.say("-- prepared", ascii(sql), ascii(arguments))
                    try:
                        cursor.execute(sql, arguments)
                        self.say("columns", ascii([column[:2] for column in cursor.description or ()]))
                        if cursor.description:
                            for row in cursor.fetchall():
                                self.say("row", ", ".join(shown(value) for value in row))
                        self.say("count", cursor.rowcount, "id", cursor.lastrowid)
                    except self.client.Error as error:
                        self.say("error", type(error).__name__, shown(error.args[:2]))
        self.connection.commit()

    def procedures(self) -> None:
        """Several results of one call, and what a function, a view and a trigger do."""
        self.run("DROP PROCEDURE IF EXISTS several")
        self.run("DROP FUNCTION IF EXISTS doubled")
        self.run("DROP VIEW IF EXISTS seen")
        self.run(
            "CREATE PROCEDURE several(IN n INT, OUT total INT) BEGIN SELECT n, n + 1; SELECT 'é', NULL; "
            "SELECT a FROM t WHERE FALSE; INSERT INTO t (b) VALUES ('by call'); SELECT COUNT(*) INTO total FROM t; END"
        )
        self.run("CALL several(5, @total)")
        self.run("SELECT @total")
        with self.cursor() as cursor:
            self.say("-- callproc", shown(cursor.callproc("several", (7, 0))))
            if self.library == "connector":
                for result in cursor.stored_results():
                    self.say("rows", ascii(result.fetchall()))
            else:
                self.results(cursor)
        self.run("CREATE FUNCTION doubled(n INT) RETURNS INT DETERMINISTIC NO SQL RETURN n * 2")
        self.run("SELECT doubled(21), a FROM t ORDER BY a")
        self.run("CREATE VIEW seen AS SELECT a, UPPER(b) AS b FROM t")
        self.run("SELECT * FROM seen ORDER BY a")
        self.run("CREATE TRIGGER counted BEFORE INSERT ON t FOR EACH ROW SET NEW.b = CONCAT('trigger: ', NEW.b)")
        self.run("INSERT INTO t (b) VALUES ('new')")
        self.connection.commit()
        self.run("SELECT * FROM seen ORDER BY a")
        self.run("DROP TRIGGER counted")
        if self.library in ("pymysql", "MySQLdb"):
            self.run("SELECT 1; SELECT 2, 'two'; UPDATE t SET b = 'multi'; SELECT COUNT(*) FROM t")
            self.run("SELECT 1; SELECT * FROM nowhere; SELECT 3")

    def errors(self) -> None:
        for sql in (
            "SELEC 1",
            "SELECT * FROM nowhere",
            "SELECT nowhere.a FROM t",
            "INSERT INTO blobs (a) VALUES (0)",
            "SELECT 1 FROM t WHERE a = (SELECT 1 UNION SELECT 2)",
            "USE nowhere",
            "CALL nowhere()",
            "SELECT unknown_function(1)",
            "SET SESSION sql_mode = 'NONSENSE'",
            "SET SESSION nonsense = 1",
            "CREATE TABLE t (a INT)",
            "SELECT /*+ nonsense */ 1 +",
            "",
            "   ",
            "-- nothing",
            ";",
        ):
            self.run(sql)
        self.run("SELECT COUNT(*) FROM t")

    def state(self) -> None:
        """Variables, temporary tables, locks."""
        self.run("SET @x = 5, @y := 'é', time_zone = '+03:00', SESSION group_concat_max_len = 8")
        self.run("SELECT @x, @y, @@time_zone, @@group_concat_max_len")
        self.run("SELECT GROUP_CONCAT(a), FROM_UNIXTIME(0) FROM (SELECT 111111 AS a UNION SELECT 222222) AS d")
        self.run("CREATE TEMPORARY TABLE mine AS SELECT 1 AS a, 'x' AS b")
        self.run("SELECT * FROM mine")
        self.run("SELECT GET_LOCK('matrix', 1), IS_USED_LOCK('matrix') IS NOT NULL")
        self.run("SELECT RELEASE_LOCK('matrix')")
        self.run("DROP TEMPORARY TABLE mine")
        self.run("SELECT * FROM mine")
        self.run("LOCK TABLES t WRITE")
        self.run("SELECT COUNT(*) FROM t")
        self.run("UNLOCK TABLES")
        self.run("SET NAMES latin1")
        self.run("SELECT 'e', @@character_set_results, CHARSET('e')")
        self.run("SET NAMES utf8mb4")
        self.run("SET time_zone = DEFAULT, SESSION group_concat_max_len = DEFAULT")

    def big_result(self) -> None:
        """Rows by the thousand or million, read as they come."""
        self.run("DROP TABLE IF EXISTS digits")
        self.run("CREATE TABLE digits (n INT PRIMARY KEY)")
        self.run("INSERT INTO digits VALUES (0),(1),(2),(3),(4),(5),(6),(7),(8),(9)")
        powers = range(len(str(self.rows - 1)))
        tables = ", ".join(f"digits AS d{power}" for power in powers)
        number = " + ".join(f"d{power}.n * {10**power}" for power in powers)
        sql = f"SELECT {number} AS n, CONCAT('row ', {number}), IF(d0.n = 7, NULL, d0.n / 3) FROM {tables}"
        kind: dict[str, Any] = {}
        if self.library == "pymysql":
            kind = {"cursor": self.client.cursors.SSCursor}
        elif self.library == "MySQLdb":
            kind = {"cursorclass": importlib.import_module("MySQLdb.cursors").SSCursor}
        with self.cursor(**kind) as cursor:
            cursor.execute(f"{sql} ORDER BY n LIMIT {self.rows}")
            digest, count = hashlib.sha256(), 0
            while rows := cursor.fetchmany(1000):
                count += len(rows)
                digest.update(ascii([tuple(row) for row in rows]).encode())
            self.say("big result", count, digest.hexdigest())


if __name__ == "__main__":
    Application(sys.argv[1], sys.argv[2:7], int(sys.argv[7])).course()
