"""Sessions over a tiny pool answer as direct connections to one server do, whatever they run, in whatever order.

The same random statements run on several connections through the gateway, whose pool has two connections per server,
and on as many direct connections to a server of its own (a reference that replicates nothing). Rows, affected rows,
insert ids, warnings, error numbers and several status flags must be equal. Where the gateway answers with an error of
its own ("gateway: ..."), it must be one of the few that it is allowed, and both sides go on.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

import pymysql
import pymysql.constants.SERVER_STATUS as STATUS
import pytest
from binary_protocol import Statement, prepare
from gateways import Connection, GatewayMaker, SqlGateway
from pymysql.constants import FIELD_TYPE

from gateway.demo.mysql_servers import APP, MariadbServer, MysqlFamilyServer, MysqlGroup, MysqlServer
from gateway.demo.stack import Stack

pytestmark = pytest.mark.servers

SESSIONS: Final = 3
FLAGS: Final = (
    STATUS.SERVER_STATUS_IN_TRANS | STATUS.SERVER_STATUS_AUTOCOMMIT | STATUS.SERVER_STATUS_NO_BACKSLASH_ESCAPES
)

ALLOWED: Final = (
    "the connection of the statement before was lent to another session",  # warnings and counts are gone
    "READ ONLY transaction reads from a replica",  # and the statement has to run at the primary
    "FOUND_ROWS() speaks of the last SELECT",  # which was not the statement before
    "the statement before ran at a replica, and this one",  # which must run at the primary, speaks of it
    "were busy for",  # the pool is exhausted by those who hold connections
)

# Not auto_increment_increment: what follows an explicit id depends on which cached table MySQL takes (ha_innobase keeps
# the increment of the last who used it).
SETTINGS: Final = (
    "SET @a = {n}",
    "SET @b = 'it''s {n}'",
    "SET @c = {n}.5, @d = NULL",
    "SET @a = @a + 1",
    "SET @e := {n}",
    "SET NAMES utf8mb4",
    "SET NAMES latin1",
    "SET NAMES utf8mb4 COLLATE utf8mb4_bin",
    "SET CHARACTER SET latin1",
    "SET character_set_results = utf8mb4",
    "SET collation_connection = 'utf8mb4_unicode_ci'",
    "SET sql_mode = 'ANSI_QUOTES'",
    "SET sql_mode = 'STRICT_TRANS_TABLES,NO_BACKSLASH_ESCAPES'",
    "SET SESSION sql_mode = ''",
    "SET @@session.sql_mode = DEFAULT",
    "SET sql_mode = CONCAT(@@sql_mode, ',PIPES_AS_CONCAT')",
    "SET time_zone = '+0{d}:00'",
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED",
    "SET SESSION TRANSACTION READ ONLY",
    "SET SESSION TRANSACTION READ WRITE",
    "SET autocommit = 0",
    "SET autocommit = 1",
    "SET sql_select_limit = {n}",
    "SET sql_select_limit = DEFAULT",
    "SET SESSION group_concat_max_len = 10{d}",
    "SET lc_time_names = 'de_DE'",
    "SET div_precision_increment = {d}",
    "SET foreign_key_checks = {bit}",
    "SET unique_checks = {bit}, sql_safe_updates = {bit}",
    "SET timestamp = 100000{d}",
    "SET timestamp = DEFAULT",
    "SET insert_id = 50{d}",
    "SET last_insert_id = 8{d}",
    "SET big_tables = 'x'",
    "SET nonsense = 1",
    "USE shop",
    "USE sbtest",
    "USE nowhere",
    "\x02shop",
    "\x02sbtest",
)
READS: Final = (
    "SELECT @a, @b, @c, @d, @e, @f",
    "SELECT CHARSET(@b), COLLATION(@b)",
    "SELECT @@sql_mode, @@time_zone, @@autocommit",
    "SELECT @@character_set_client, @@character_set_connection, @@character_set_results, @@collation_connection",
    "SELECT DATABASE(), SCHEMA()",
    "SELECT @@transaction_isolation",
    "SELECT @@session.transaction_read_only, @@sql_select_limit, @@group_concat_max_len",
    "SELECT @@lc_time_names, @@div_precision_increment, 1/3, @@foreign_key_checks, @@unique_checks, @@sql_safe_updates",
    "SELECT @@timestamp > 1000, @@insert_id, @@last_insert_id, @@identity",
    "SELECT UNIX_TIMESTAMP() < 2000000, DATE_FORMAT(FROM_UNIXTIME(0), '%W %H'), @@auto_increment_increment",
    "SHOW VARIABLES LIKE 'sql_mode'",
    "SHOW VARIABLES LIKE 'transaction_read_only'",
    "SHOW VARIABLES LIKE 'character_set_c%'",
    "SHOW SESSION VARIABLES LIKE 'autocommit'",
    "SELECT 'a\\'b'",
    'SELECT "a"',
    "SELECT 'a' || 'b'",
    "SELECT COUNT(*), MIN(id), MAX(id) FROM t{s}",
    "SELECT id, v FROM t{s} ORDER BY id",
    "SELECT SQL_CALC_FOUND_ROWS id FROM t{s} ORDER BY id LIMIT 1",
    "SELECT LAST_INSERT_ID()",
    "SELECT 1 + 'x', CAST('12y' AS SIGNED)",
    "SELECT 1/0",
    "SELECT * FROM nowhere{s}",
    "SELECT COUNT(*) FROM tmp{s}",
    "SELECT nonsense",
    "SHOW TABLES LIKE 't{s}'",
    "SHOW TABLES LIKE 'x{s}'",
    "SELECT IS_FREE_LOCK('lock{s}')",
    "SELECT id FROM t{s} WHERE id = 1 FOR UPDATE",
    "SELECT GROUP_CONCAT(REPEAT('x', 60) SEPARATOR ',') FROM (SELECT 1 UNION ALL SELECT 2) AS x",
    "SELECT @f := {n}",
    "SELECT {n} INTO @f",
    "SELECT MAX(id) INTO @f FROM t{s}",
    "DO 1",
)
# Asked only right after a statement that uses a table or warns: one that does neither leaves older warnings standing on
# its connection, which is not the session's last in the gateway.
ABOUT_SELECT: Final = (
    "SELECT FOUND_ROWS()",
    "SELECT ROW_COUNT(), FOUND_ROWS(), LAST_INSERT_ID()",
    "INSERT INTO t{s} (v) SELECT FOUND_ROWS()",
)
QUESTIONS: Final = (
    "SELECT ROW_COUNT()",
    "SELECT ROW_COUNT(), LAST_INSERT_ID()",
    "SELECT @@warning_count, @@error_count",
    "SHOW WARNINGS",
    "SHOW ERRORS",
    "SHOW COUNT(*) WARNINGS",
    "GET DIAGNOSTICS @f = NUMBER",
    "INSERT INTO t{s} (v) SELECT ROW_COUNT()",
)
WRITES: Final = (
    "INSERT INTO t{s} (v) VALUES ('{n}')",
    "INSERT INTO t{s} (v) VALUES ('{n}'), ('x')",
    "INSERT INTO t{s} (id, v) VALUES ({n}, 'explicit')",
    "INSERT INTO t{s} (v) VALUES (LAST_INSERT_ID())",
    "INSERT INTO t{s} (v) VALUES (@a)",
    "INSERT IGNORE INTO t{s} (id, v) VALUES (1, 'twice')",
    "INSERT INTO t{s} (v) VALUES (REPEAT('long', 100))",
    "REPLACE INTO t{s} (id, v) VALUES ({d}, 'replaced')",
    "INSERT INTO t{s} (id, v) VALUES (1, '{n}') ON DUPLICATE KEY UPDATE v = '{n}', id = LAST_INSERT_ID(id)",
    "UPDATE t{s} SET v = '{n}' WHERE id = {d}",
    "UPDATE t{s} SET v = v",
    "UPDATE t{s} SET id = LAST_INSERT_ID(id) WHERE id = {d}",
    "DELETE FROM t{s} WHERE id = {d}",
    "DELETE FROM t{s} WHERE id > 20",
    "CREATE TEMPORARY TABLE IF NOT EXISTS tmp{s} (a INT)",
    "INSERT INTO tmp{s} VALUES ({n})",
    "DROP TEMPORARY TABLE IF EXISTS tmp{s}",
    "CREATE TABLE IF NOT EXISTS x{s} (a INT)",
    "DROP TABLE IF EXISTS x{s}",
    "TRUNCATE TABLE t{s}",
    "PREPARE p FROM 'SELECT ?, @a'",
    "EXECUTE p USING @a",
    "DEALLOCATE PREPARE p",
    "CALL twice({d})",
    "SELECT doubled({d})",
)
TRANSACTIONS: Final = (
    "BEGIN",
    "START TRANSACTION",
    "START TRANSACTION READ ONLY",
    "START TRANSACTION WITH CONSISTENT SNAPSHOT",
    "COMMIT",
    "COMMIT",
    "ROLLBACK",
    "COMMIT AND CHAIN",
    "ROLLBACK AND CHAIN",
    "SAVEPOINT s",
    "ROLLBACK TO s",
    "ROLLBACK TO SAVEPOINT s",
    "RELEASE SAVEPOINT s",
    "LOCK TABLES t{s} WRITE",
    "UNLOCK TABLES",
    "SELECT GET_LOCK('lock{s}', 0)",
    "SELECT RELEASE_LOCK('lock{s}')",
    "SELECT RELEASE_ALL_LOCKS()",
)
ENDS_TRANSACTION: Final = (
    "START",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "\x1f",
    "CREATE TABLE",
    "DROP TABLE",
    "TRUNCATE",
    "LOCK",
)
# Executed by COM_STMT_EXECUTE, with their parameters behind the \x1e: what is a number there is sent as one.
PREPARED: Final = (
    "SELECT id, v FROM t{s} WHERE id = ? ORDER BY id\x1e{d}",
    "SELECT COUNT(*) FROM t{s} WHERE v LIKE ?\x1ex%",
    "SELECT GROUP_CONCAT(v ORDER BY id), 1/3, ? FROM t{s} WHERE id < ?\x1e{n}\x1e{n}",
    "SELECT * FROM t{s} ORDER BY id LIMIT ?\x1e{d}",
    "SELECT DATABASE(), ? + 1, @@sql_mode\x1e{n}",
    "SELECT CHARSET('a'), COLLATION('a'), 'a\\'b', CONCAT('x', ?)\x1ey",
    "SELECT \"a\", 'a' || 'b'\x1e",
    "SELECT DATE_FORMAT(FROM_UNIXTIME(?), '%W %H')\x1e0",
    "SELECT @@time_zone, @@character_set_results, @@div_precision_increment\x1e",
    "SELECT id FROM t{s} WHERE id = ? FOR UPDATE\x1e{d}",
    "SELECT nonsense\x1e",
    "SHOW TABLES LIKE 't{s}'\x1e",
    "INSERT INTO t{s} (v) VALUES (?)\x1e{n}",
    "INSERT INTO t{s} (id, v) VALUES (?, ?)\x1e{n}\x1eexplicit",
    "INSERT INTO t{s} (v) VALUES (LAST_INSERT_ID()), (?)\x1etwo",
    "UPDATE t{s} SET v = ? WHERE id = ?\x1ex{n}\x1e{d}",
    "DELETE FROM t{s} WHERE id = ?\x1e{d}",
    "SET NAMES latin1\x1e",
    "SET time_zone = '+0{d}:00'\x1e",
    "SET @a = ?\x1e{n}",
    "COMMIT\x1e",
    "CALL twice(?)\x1e{d}",
    "SELECT doubled(?)\x1e{d}",
)
PREPARED_QUESTIONS: Final = ("SELECT ROW_COUNT(), LAST_INSERT_ID()\x1e", "SELECT ROW_COUNT()\x1e")
REUSED: Final = "\x16"  # in front of the text: prepared if it is not yet
ANEW: Final = "\x17"  # closed and prepared again

# Leaves the session as after the log-in, so that it does not stay pinned for the rest of the run.
RESET: Final = "\x1f"


@dataclass(frozen=True)
class Outcome:
    """What a client sees of one statement."""

    rows: tuple[Any, ...] | None
    columns: tuple[Any, ...] | None
    affected: int
    insert_id: int
    warnings: int
    flags: int
    error: tuple[int, str] | None = None

    @property
    def own(self) -> bool:
        """Whether it is an error of the gateway's own."""
        return self.error is not None and self.error[1].startswith("gateway:")


def described(column: Sequence[Any]) -> tuple[str, int]:
    """Name and type of a column. MySQL says long text of an unset user variable that a write has named before."""
    name, kind = column[:2]
    unset = name.startswith("@") and kind == FIELD_TYPE.LONG_BLOB
    return name, FIELD_TYPE.VAR_STRING if unset else kind


def run(connection: Any, statement: str) -> Outcome:
    """Runs one statement (\\x02: COM_INIT_DB, \\x1f: COM_RESET_CONNECTION) and tells all that its client sees."""
    try:
        if statement[0] in "\x02\x1f":
            connection._execute_command(ord(statement[0]), statement[1:])
            connection._read_ok_packet()
            if statement == RESET:
                PREPARED_BY.pop(connection, None)
            return Outcome(None, None, 0, 0, 0, 0)
        if statement[0] in (REUSED, ANEW):
            return execute(connection, statement)
        connection.query(statement)
        found = []
        while True:
            result = connection._result
            # lengths of user variables differ with what ran on the connection before (MariaDB)
            found.append((tuple(map(described, result.description or ())), result.rows))
            last = result
            if not result.has_next:
                break
            connection.next_result()
    except pymysql.MySQLError as error:
        with contextlib.suppress(pymysql.MySQLError):
            while connection._result is not None and connection._result.has_next:
                connection.next_result()
        code, message = (*error.args, "")[:2]
        return Outcome(None, None, 0, 0, 0, 0, (code, str(message)))
    return Outcome(
        tuple(rows for _, rows in found),
        tuple(columns for columns, _ in found),
        last.affected_rows,
        last.insert_id or 0,
        last.warning_count,
        connection.server_status & FLAGS,
    )


PREPARED_BY: Final[WeakKeyDictionary[Any, dict[str, Statement]]] = WeakKeyDictionary()


def execute(connection: Any, statement: str) -> Outcome:
    """Executes a prepared statement, which it prepares before where that is needed."""
    text, *values = statement[1:].split("\x1e")
    known = PREPARED_BY.setdefault(connection, {})
    if statement[0] == ANEW and text in known:
        known.pop(text).close()
    if text not in known:
        known[text] = prepare(connection, text)
    prepared = known[text]
    prepared.affected = prepared.insert_id = 0
    prepared.names, prepared.types = [], []
    parameters = [int(value) if value.isdigit() else value for value in values if value]
    rows = prepared.execute(*parameters)
    flags = prepared.status & FLAGS
    columns = tuple(zip(prepared.names, prepared.types, strict=True))
    return Outcome(tuple(map(tuple, rows)), columns, prepared.affected, prepared.insert_id, prepared.warnings, flags)


def statements(choose: random.Random, session: int, before: str, read_only: bool) -> str:
    """The next statement of a session: weights that keep transactions short and tables small."""
    asks = (
        before.startswith(("INSERT", "UPDATE", "DELETE", "REPLACE", "SELECT 1 +", "SELECT 1/0")) or " FROM " in before
    )
    kinds: Sequence[tuple[Sequence[str], int]] = (
        (SETTINGS, 6),
        (READS, 10),
        (WRITES, 6),
        (TRANSACTIONS, 3),
        ((RESET,), 3),
        (QUESTIONS, 15 if asks else 0),
        (PREPARED, 9),
        (PREPARED_QUESTIONS, 5 if asks else 0),
        (ABOUT_SELECT, 6 if before.startswith(("SELECT id, v", "SELECT SQL_CALC")) else 0),
    )
    (kind,) = choose.choices([one for one, _ in kinds], [weight for _, weight in kinds])
    chosen = choose.choice(kind)
    if kind in (PREPARED, PREPARED_QUESTIONS):
        chosen = choose.choice((REUSED, REUSED, ANEW)) + chosen
    if read_only and chosen in ("BEGIN", "START TRANSACTION", "START TRANSACTION WITH CONSISTENT SNAPSHOT"):
        chosen = "COMMIT"  # MySQL lets the new transaction be READ ONLY, too, which no manual says
    return (
        chosen.replace("{s}", str(session))
        .replace("{n}", str(choose.randrange(1, 40)))
        .replace("{d}", str(choose.randrange(1, 5)))
        .replace("{bit}", str(choose.randrange(2)))
    )


PREPARATION: Final = (
    "DROP DATABASE IF EXISTS shop",
    "CREATE DATABASE shop CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci",
    "ALTER DATABASE sbtest CHARACTER SET latin1 COLLATE latin1_swedish_ci",
    "SET GLOBAL log_bin_trust_function_creators = 1",
    "CREATE PROCEDURE shop.twice(n INT) BEGIN SELECT n; SELECT 2 * n; END",
    "CREATE FUNCTION shop.doubled(n INT) RETURNS INT DETERMINISTIC NO SQL RETURN 2 * n",
    *(
        f"CREATE TABLE {database}.t{session} (id INT PRIMARY KEY AUTO_INCREMENT, v VARCHAR(100))"
        for session in range(SESSIONS)
        for database in ("shop", "sbtest")
    ),
)
CLEANING: Final = tuple(f"DROP TABLE IF EXISTS sbtest.{kind}{session}" for session in range(SESSIONS) for kind in "tx")


@pytest.fixture(params=["mariadb", "mysql9"])
def pair(
    request: pytest.FixtureRequest, stack: Stack, gateways: GatewayMaker
) -> Iterator[tuple[SqlGateway, MysqlFamilyServer]]:
    """A gateway with two connections per server, and a server of the same flavour to compare with."""
    group: MysqlGroup = request.getfixturevalue(f"{request.param}_group")
    kind = MariadbServer if group.primary.flavor == "mariadb" else MysqlServer
    reference = kind(stack, server_id=1)
    reference.start()
    for replica in group.replicas:
        replica.query("SET GLOBAL log_bin_trust_function_creators = 1")
    for server in (reference, group.primary):
        for statement in (*CLEANING, *PREPARATION):
            server.query(statement)
    group.wait_caught_up()
    yield gateways(group, settings='pool = {size = 2, acquire_timeout = "50ms"}'), reference
    for statement in (*CLEANING, "ALTER DATABASE sbtest CHARACTER SET utf8mb4"):
        group.primary.query(statement)


def play(gateway: SqlGateway, reference: MysqlFamilyServer, seed: int, steps: int) -> tuple[Counter[str], str | None]:
    """Plays `steps` random statements on both sides; (the gateway's own errors, the first difference)."""
    choose = random.Random(seed)
    script: list[str] = []
    before = [""] * SESSIONS
    read_only = [False] * SESSIONS
    own: Counter[str] = Counter()
    with contextlib.ExitStack() as open_connections:
        pairs: list[tuple[Connection, Connection]] = []
        for _ in range(SESSIONS):
            through = open_connections.enter_context(gateway.connect("shop", charset="utf8mb4"))
            direct = open_connections.enter_context(reference.connect(APP, "shop"))
            for side in (through, direct):
                assert run(side, "SELECT 1").error is None
            pairs.append((through, direct))
        for _ in range(steps):
            session = choose.randrange(SESSIONS)
            statement = before[session] = statements(choose, session, before[session], read_only[session])
            if statement.startswith(ENDS_TRANSACTION):
                read_only[session] = statement == "START TRANSACTION READ ONLY"
            through, direct = pairs[session]
            actual = run(through, statement)
            script.append(f"{session}: {statement!r} -> {actual}")
            if actual.own:
                # It did not run: the other side must not run it either. What it would have left behind, an error,
                # is not compared: both are reset.
                assert actual.error is not None
                own[actual.error[1]] += 1
                before[session] = RESET
                if not any(part in actual.error[1] for part in ALLOWED):
                    return own, "\n".join([*script[-25:], f"seed {seed}: not an error that the gateway may give"])
                for side in (through, direct):
                    assert run(side, RESET).error is None
                continue
            expected = run(direct, statement)
            if actual.error is not None and actual.error[0] == 1792:
                before[session] = RESET  # the gateway may have said it in a server's place: nothing is left behind
            if actual != expected:
                mine = [line for line in script if line.startswith(f"{session}:")]
                return own, "\n".join([f"seed {seed}, step {len(script)}", *mine[-30:], f"direct: {expected}"])
    return own, None


STEPS: Final = 500
SEEDS: Final = range(int(os.environ.get("DIFFERENTIAL_SEEDS", "3")))


@pytest.mark.slow
def test_sessions_over_a_tiny_pool_answer_as_direct_connections_do(
    pair: tuple[SqlGateway, MysqlFamilyServer],
) -> None:
    gateway, reference = pair
    own: Counter[str] = Counter()
    differences = []
    for seed in SEEDS:
        refused, difference = play(gateway, reference, seed, STEPS)
        own += refused
        if difference is not None:
            differences.append(difference)
    assert not differences, "\n\n".join(differences)
    assert sum(own.values()) < STEPS * len(SEEDS) / 5, own
