"""The second fence: whatever is sent to a replica by mistake and would write is refused there, and runs at the primary.

A gateway whose classifier calls everything a read (misrouting_gateway.py) sends every kind of write to a replica, for
a user with all privileges, whom read_only would let write. Each must be refused, carried out once at the primary,
counted, and remembered. The guards of this self-correction each have a test that fails without it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import misrouting_gateway
import pymysql
import pytest
from fence_statements import FENCED, FENCED_IN_VAIN, FENCED_MARIADB, FENCED_MYSQL
from gateways import Connection, SqlGateway, rows, value
from pymysql.constants import CLIENT

from gateway.demo.mysql_servers import Account, MysqlGroup
from gateway.demo.stack import Stack

pytestmark = pytest.mark.servers

MIGHTY: Final = Account("mighty", "mighty-secret")
MARK: Final = misrouting_gateway.MARK.decode()
REFUSED: Final = (1290, 1792)  # super_read_only speaks first, where a replica has it


class MisroutingGateway(SqlGateway):
    """A gateway that takes every marked statement for a read."""

    def command(self) -> list[str]:
        program = Path(misrouting_gateway.__file__)
        return [sys.executable, "-X", "dev", "-W", "error", str(program), "run", "-c", str(self.config_file)]


@pytest.fixture
def misrouting(stack: Stack, sql_group: MysqlGroup) -> Iterator[MisroutingGateway]:
    primary = sql_group.primary
    for server in sql_group.servers:
        server.query("SET GLOBAL log_bin_trust_function_creators = 1")
    for statement in (
        f"DROP USER IF EXISTS {MIGHTY.user}",
        f"CREATE USER {MIGHTY.user}@'%' IDENTIFIED BY '{MIGHTY.password}'",
        f"GRANT ALL PRIVILEGES ON *.* TO {MIGHTY.user}@'%' WITH GRANT OPTION",
        "CREATE TABLE shop.t (id INT PRIMARY KEY AUTO_INCREMENT, a INT)",
        "CREATE TABLE shop.u (id INT PRIMARY KEY AUTO_INCREMENT, a INT)",
        "INSERT INTO shop.t (a) VALUES (1), (2)",
        "INSERT INTO shop.u (a) VALUES (1), (2)",
        "CREATE FUNCTION shop.evil(v INT) RETURNS INT BEGIN INSERT INTO shop.u (a) VALUES (v); RETURN v; END",
        "CREATE VIEW shop.view_of_evil AS SELECT shop.evil(3) AS a",
        "CREATE PROCEDURE shop.p() BEGIN INSERT INTO shop.t (a) VALUES (9); END",
        *(
            [
                "CREATE SEQUENCE shop.s",
                "CREATE TABLE shop.next_by_default (a INT, n INT DEFAULT (NEXT VALUE FOR shop.s))",
            ]
            if primary.flavor == "mariadb"
            else []
        ),
    ):
        primary.query(statement)
    sql_group.wait_caught_up()
    gateway = MisroutingGateway(
        stack, sql_group, users=(MIGHTY,), settings="pool = {size = 4}", listener='freshness_wait = "10s"'
    )
    gateway.start()
    gateway.wait_serving()
    yield gateway
    gateway.end()
    primary.query(f"DROP USER {MIGHTY.user}")
    for name in ("dd",):
        primary.query(f"DROP DATABASE IF EXISTS {name}")


def connect(gateway: SqlGateway, **more: object) -> Connection:
    return gateway.open(account=MIGHTY, **more)  # type: ignore[arg-type]


def contents(group: MysqlGroup) -> list[list[tuple[object, ...]]]:
    """What the tables hold, on every server."""
    group.wait_caught_up()
    return [
        [*server.query("SELECT id, a FROM shop.t ORDER BY id"), *server.query("SELECT id, a FROM shop.u ORDER BY id")]
        for server in group.servers
    ]


def test_every_kind_of_write_is_refused_by_the_replica_and_runs_at_the_primary(misrouting: MisroutingGateway) -> None:
    group = misrouting.group
    own = FENCED_MARIADB if group.primary.flavor == "mariadb" else FENCED_MYSQL
    for number, sql in enumerate([*FENCED, *own], 1):
        group.wait_caught_up()
        with connect(misrouting) as one:  # anew, since what the primary is left with may pin
            rows(one, f"{MARK} {sql}")
            assert misrouting.figures["reads_refused_as_writes"] == number, sql
            assert dict(rows(one, "SHOW GATEWAY LAST ROUTE"))["member"] == group.primary.address, sql
    for sql in FENCED_IN_VAIN:
        counted = misrouting.figures["reads_refused_as_writes"]
        with connect(misrouting) as one, pytest.raises(pymysql.MySQLError):
            rows(one, f"{MARK} {sql}")
        assert misrouting.figures["reads_refused_as_writes"] == counted + 1, sql
    with connect(misrouting) as one:

        def remembered() -> bool:
            """What was learnt under another catalogue is forgotten, and the last statements have changed it."""
            count = misrouting.figures["reads_refused_as_writes"]
            for a in (5, 6):
                rows(one, f"{MARK} INSERT INTO t (a) VALUES ({a})")
            return bool(misrouting.figures["reads_refused_as_writes"] == count)

        misrouting.wait_until(remembered, "what was refused once is remembered as a write")
        group.wait_caught_up()
        server = value(one, f"{MARK} SELECT @@server_id")
        assert server in (2, 3), "and reads still go to replicas"
    on_primary, *on_replicas = contents(group)
    assert len(on_primary) > 6
    assert all(found == on_primary for found in on_replicas), "nothing was written anywhere but through the primary"


def nothing_is_carried_out_twice(misrouting: MisroutingGateway) -> None:
    with connect(misrouting) as one:
        before = value(one, "SELECT COUNT(*) FROM t")
        rows(one, f"{MARK} INSERT INTO t (a) VALUES (1)")
        rows(one, f"{MARK} CALL p()")
        assert value(one, "SELECT COUNT(*) FROM t") == before + 2


def in_a_transaction_the_refusal_is_the_clients(misrouting: MisroutingGateway) -> None:
    """The guard "outside a transaction": what was read before must not be joined with a write somewhere else."""
    counted = misrouting.figures["reads_refused_as_writes"]
    with connect(misrouting) as one:
        misrouting.group.wait_caught_up()
        before = value(one, "SELECT COUNT(*) FROM t")
        rows(one, "START TRANSACTION READ ONLY")
        assert value(one, "SELECT @@server_id") in (2, 3)
        with pytest.raises(pymysql.MySQLError) as refused:
            rows(one, f"{MARK} INSERT INTO t (a) VALUES (4)")
        assert refused.value.args[0] in REFUSED
        rows(one, "COMMIT")
        assert misrouting.figures["reads_refused_as_writes"] == counted
        assert value(one, "SELECT COUNT(*) FROM t") == before


def after_a_first_result_the_refusal_is_the_clients(misrouting: MisroutingGateway) -> None:
    """The guards "one statement" and "nothing sent": the text is not run again when part of it was answered."""
    counted = misrouting.figures["reads_refused_as_writes"]
    with connect(misrouting, client_flag=CLIENT.MULTI_STATEMENTS) as one:
        misrouting.group.wait_caught_up()
        before = value(one, "SELECT COUNT(*) FROM t")
        with one.cursor() as cursor:
            cursor.execute(f"{MARK} SELECT @@server_id; INSERT INTO t (a) VALUES (4)")
            assert cursor.fetchall()[0][0] in (2, 3)
            with pytest.raises(pymysql.MySQLError) as refused:
                cursor.nextset()
        assert refused.value.args[0] in REFUSED
        assert misrouting.figures["reads_refused_as_writes"] == counted
        assert value(one, "SELECT COUNT(*) FROM t") == before


def an_error_of_another_kind_is_the_clients(misrouting: MisroutingGateway) -> None:
    """Only 1290, 1792 and 1836 say that nothing was done and that it was for being a write."""
    counted = misrouting.figures["reads_refused_as_writes"]
    with connect(misrouting) as one:
        with pytest.raises(pymysql.MySQLError) as refused:
            rows(one, f"{MARK} SELECT nonsense FROM t")
        assert refused.value.args[0] == 1054
        with pytest.raises(pymysql.MySQLError) as refused:
            rows(one, f"{MARK} SIGNAL SQLSTATE '45000'")
        assert refused.value.args[0] == 1644
        assert misrouting.figures["reads_refused_as_writes"] == counted
        assert value(one, "SELECT 1") == 1


def a_refusal_by_the_primary_is_the_clients(misrouting: MisroutingGateway) -> None:
    """The guard "by a replica": a primary in a READ ONLY session of the client's own is asked once."""
    counted = misrouting.figures["reads_refused_as_writes"]
    with connect(misrouting) as one:
        rows(one, "SET SESSION TRANSACTION READ ONLY")
        with pytest.raises(pymysql.MySQLError) as refused:
            rows(one, "INSERT INTO t (a) VALUES (4)")
        assert refused.value.args[0] in REFUSED
        assert misrouting.figures["reads_refused_as_writes"] == counted


def test_each_guard_of_the_self_correction(misrouting: MisroutingGateway) -> None:
    """One gateway for all of them: starting it takes longer than they do."""
    nothing_is_carried_out_twice(misrouting)
    in_a_transaction_the_refusal_is_the_clients(misrouting)
    after_a_first_result_the_refusal_is_the_clients(misrouting)
    an_error_of_another_kind_is_the_clients(misrouting)
    a_refusal_by_the_primary_is_the_clients(misrouting)
