"""The servers judge the classifier: nothing that wrote, or changed its session, was called a read.

Statements of the corpus, and statements that hypothesis makes of a grammar full of traps, run on MariaDB and MySQL,
each in a session of its own; what they did (servers/sql_oracle.py) is compared with their class.
`GATEWAY_ORACLE_SECONDS` is the time for each test and server.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from sql_corpus import ENTRIES, MODES, Entry
from sql_grammar import STATEMENTS
from sql_oracle import Oracle

from gateway.demo.mysql_servers import MariadbServer, MysqlFamilyServer, MysqlServer
from gateway.demo.stack import Stack
from gateway.routing.functions import words
from gateway.routing.operation import Kind
from gateway.routing.sql import classify_text

pytestmark = pytest.mark.servers

SECONDS: Final = float(os.environ.get("GATEWAY_ORACLE_SECONDS", "12"))
SQL_MODES: Final = {"ansi": "ANSI_QUOTES", "nbe": "NO_BACKSLASH_ESCAPES", "ignore-space": "IGNORE_SPACE"}
NOT_HERE: Final = {"oracle", "latin1", "gbk"}  # other character sets and another language


@pytest.fixture(scope="module", params=["mariadb", "mysql"])
def oracle(request: pytest.FixtureRequest, session_stack: Stack) -> Iterator[Oracle]:
    kind: type[MysqlFamilyServer] = MariadbServer if request.param == "mariadb" else MysqlServer
    files = session_stack.folder / f"oracle-{request.param}.files"
    files.mkdir(exist_ok=True)
    server = kind(session_stack, f"oracle-{request.param}", options=[f"--secure-file-priv={files}"])
    server.start()
    judge = Oracle(server, files)
    yield judge
    judge.close()
    server.stop()


HARMLESS_HEADS: Final = words(
    """
    SELECT WITH VALUES TABLE ( SHOW DESC DESCRIBE EXPLAIN HELP CHECKSUM SET USE DO BEGIN START COMMIT ROLLBACK SAVEPOINT
    RELEASE LOCK UNLOCK HANDLER PREPARE EXECUTE DEALLOCATE CALL INSERT UPDATE DELETE REPLACE XA GET
    """
)
"""What may run on a server that goes on being used; statements of any other beginning nobody could take for a read."""


def may_run(entry: Entry) -> bool:
    if entry.kind is Kind.READ:
        return not NOT_HERE & set(entry.flags)
    text = entry.sql.lstrip(b" \n\t(").upper()
    head = text.split(maxsplit=1)[0] if text else b""
    harmful = words("GLOBAL PERSIST PASSWORD SLAVE REPLICA GROUP_REPLICATION RESOURCE SQL_LOG_BIN RELEASE DEFAULT")
    return (
        head.decode("latin-1") in HARMLESS_HEADS
        and not any(part.encode() in text for part in harmful)
        and not NOT_HERE & set(entry.flags)
    )


SIDE_EFFECTS: Final = [
    b"INSERT INTO t (a) VALUES (1)",
    b"SELECT evil(1)",
    b"SELECT @a := 1",
    b"SELECT 1 INTO @a",
    b"SELECT GET_LOCK('a', 0)",
    b"SELECT LAST_INSERT_ID(5)",
    b"SELECT a FROM t FOR UPDATE",
    b"SELECT a FROM t LOCK IN SHARE MODE",
    b"SET time_zone = '+01:00'",
    b"SET sql_mode = 4",
    b"USE db",
    b"BEGIN",
    b"LOCK TABLES t READ",
    b"HANDLER t OPEN",
    b"PREPARE p FROM 'SELECT 1'",
    b"CREATE TEMPORARY TABLE x (a INT)",
    b"DO GET_LOCK('a', 0)",
    b"CALL p()",
    b"FLUSH TABLES",
    b"XA START 'x'",
    b"SELECT 1; SELECT @a := 2",
    b"ANALYZE TABLE t",
]


def test_the_oracle_is_not_blind(oracle: Oracle) -> None:
    """Each of these would be found out if it were called a read, and a plain read is not accused."""
    for sql in [*SIDE_EFFECTS, b"SELECT 1 INTO OUTFILE '%s/x'" % bytes(oracle.files)]:
        evidence = oracle.observe(sql, is_read=True)
        assert evidence.error == 0, sql
        assert evidence.against_read(), sql
    assert not oracle.observe(b"SELECT a, COUNT(*) FROM t GROUP BY a", is_read=True).against_read()


def test_the_corpus_is_what_the_server_says(oracle: Oracle) -> None:
    entries = [
        entry
        for entry in ENTRIES
        if may_run(entry) and any(reading.mariadb == oracle.mariadb for reading in entry.readings)
    ]
    random.Random(3).shuffle(entries)
    entries.sort(key=lambda entry: entry.kind is not Kind.READ)  # reads find the rows that were made for them
    deadline = time.monotonic() + SECONDS
    # Every one with time enough; by default a share of the reads and of the others.
    reads = sum(entry.kind is Kind.READ for entry in entries)
    order = [entry for pair in zip(entries[:reads], entries[reads:], strict=False) for entry in pair]
    order += entries[len(order) // 2 : reads] + entries[reads + len(order) // 2 :]
    worked = 0
    wrong: list[str] = []
    for number, entry in enumerate(order):
        if time.monotonic() > deadline:
            break
        if number % 100 == 99:
            oracle.refill()
        modes = [flag for flag in entry.flags if flag in SQL_MODES]
        reading = oracle.reading(**{key: value for mode in modes for key, value in MODES[mode].items()})
        operation, _ = classify_text(entry.sql, reading)
        evidence = oracle.observe(
            entry.sql, sql_mode=",".join(SQL_MODES[mode] for mode in modes), is_read=operation.kind is Kind.READ
        )
        worked += evidence.error == 0
        if evidence.error == 0 and (found := evidence.against(operation)):
            wrong.append(f"{entry.place} {entry.sql!r}: {operation.kind.value}, but it {', '.join(found)}")
    assert not wrong, "\n".join(wrong)
    assert worked


def test_generated_statements_are_what_the_server_says(oracle: Oracle) -> None:
    deadline = time.monotonic() + SECONDS
    seen = {"reads": 0, "others": 0}

    @settings(
        max_examples=max(400, int(SECONDS * 40)),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        derandomize=SECONDS < 60,
    )
    @given(STATEMENTS)
    def judge(sql: bytes) -> None:
        if time.monotonic() > deadline:
            return
        operation, _ = classify_text(sql, oracle.reading())
        evidence = oracle.observe(sql, is_read=operation.kind is Kind.READ)
        if evidence.error == 0:
            seen["reads" if operation.kind is Kind.READ else "others"] += 1
            assert not evidence.against(operation), (sql, operation.kind, operation.reason)

    judge()
    assert seen["reads"]
    assert seen["others"]
