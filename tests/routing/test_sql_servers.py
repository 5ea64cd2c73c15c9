"""The servers agree: what the corpus calls a read changes nothing, and the catalogue's built-ins are built in."""

from __future__ import annotations

from typing import Any

import pymysql
import pytest
from pymysql.constants import ER
from sql_corpus import ENTRIES, MODES

from gateway.demo.mysql_servers import APP, MysqlGroup
from gateway.routing.fingerprint import Reading
from gateway.routing.functions import PAREN_WORDS, PRIMARY, read_functions
from gateway.routing.operation import Kind
from gateway.routing.sql import classify_text

pytestmark = pytest.mark.servers

READ_ONLY_TRANSACTION = 1792  # ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION
NO_SUCH_FUNCTION = ER.SP_DOES_NOT_EXIST
COMPONENT_SINCE_MYSQL_9_6 = {"md5", "sha", "sha1"}
"""MySQL moved these into a component, loadable functions of the same meaning."""


@pytest.fixture(params=["mariadb", "mysql"])
def server(request: pytest.FixtureRequest) -> tuple[MysqlGroup, bool]:
    mariadb = request.param == "mariadb"
    return request.getfixturevalue("mariadb_group" if mariadb else "mysql9_group"), mariadb


def error(cursor: Any, sql: bytes | str) -> int:
    """The number of the error that the server answers with, 0 for none."""
    try:
        cursor.execute(sql)
        while cursor.nextset():
            pass
    except pymysql.MySQLError as refused:
        return int(refused.args[0])
    return 0


def test_reads_of_the_corpus_change_nothing(server: tuple[MysqlGroup, bool]) -> None:
    group, mariadb = server
    for table in ("t", "u", "v"):
        group.primary.query(f"CREATE TABLE shop.{table} (id INT PRIMARY KEY, a INT, b INT, c INT, d INT, doc TEXT)")
    before = group.primary.position()
    reads = [
        entry
        for entry in ENTRIES
        if entry.kind is Kind.READ
        and any(reading.mariadb == mariadb for reading in entry.readings)
        and not (MODES.keys() | {"multi"}) & set(entry.flags)
    ]
    limit = "max_statement_time = 0.2" if mariadb else "max_execution_time = 200"  # some sleep
    worked = 0
    for first in range(0, len(reads), 20):  # a log-in costs more than a statement
        with group.primary.connect(APP, "shop") as connection, connection.cursor() as cursor:
            cursor.execute("SET SESSION TRANSACTION READ ONLY")
            cursor.execute(f"SET SESSION {limit}")
            for entry in reads[first : first + 20]:
                answer = error(cursor, entry.sql)
                assert answer != READ_ONLY_TRANSACTION, entry.sql
                worked += answer == 0
    assert group.primary.position() == before
    assert worked > 200


def test_every_function_of_the_catalogue_is_built_in(server: tuple[MysqlGroup, bool]) -> None:
    group, mariadb = server
    version = tuple(int(part) for part in group.primary.query("SELECT VERSION()")[0][0].split(".")[:2])
    names = read_functions(mariadb, (version[0], version[1])) - PRIMARY.keys() - {"sleep", "benchmark"}
    if not mariadb:
        names -= COMPONENT_SINCE_MYSQL_9_6
    with group.primary.connect(APP, "shop") as connection, connection.cursor() as cursor:
        for name in sorted(names):
            answers = {error(cursor, f"SELECT {name}({arguments})") for arguments in ("", "1", "1, 1")}
            assert answers != {NO_SUCH_FUNCTION}, name
            assert NO_SUCH_FUNCTION not in answers or 0 in answers or 4079 in answers, (name, answers)


def test_no_word_before_a_parenthesis_can_be_a_stored_function(server: tuple[MysqlGroup, bool]) -> None:
    group, _ = server
    with group.primary.connect(APP, "shop") as connection, connection.cursor() as cursor:
        for word in sorted(PAREN_WORDS):
            for arguments in ("", "1", "1, 1"):
                assert error(cursor, f"SELECT {word}({arguments})") != NO_SUCH_FUNCTION, word


def test_the_traps_are_real(server: tuple[MysqlGroup, bool]) -> None:
    """A stored function called with its database, or with a space after a built-in's name, writes."""
    group, mariadb = server
    group.primary.query("CREATE TABLE shop.t (a INT)")
    for name in ("lower", "now"):
        group.primary.query(
            f"CREATE FUNCTION shop.`{name}`(a INT) RETURNS INT DETERMINISTIC MODIFIES SQL DATA "
            "BEGIN INSERT INTO shop.t VALUES (a); RETURN a; END"
        )
    with group.primary.connect(APP, "shop") as connection, connection.cursor() as cursor:
        for sql in ("SELECT shop.lower(1)", "SELECT now (2)", "SELECT `now`(3)"):
            cursor.execute(sql)
            assert classify_text(sql.encode(), Reading(mariadb=mariadb))[0].kind is Kind.UNKNOWN
        cursor.execute("SELECT a FROM t ORDER BY a")
        assert [row[0] for row in cursor.fetchall()] == [1, 2, 3]
