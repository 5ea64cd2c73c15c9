"""SET ROLE stays with its session: a reset leaves roles alone on both servers, so that the gateway sets them again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pymysql
import pytest
from gateways import Connection, SqlGateway, rows, value
from pymysql.constants import CLIENT

from gateway.demo.mysql_servers import APP

pytestmark = pytest.mark.servers


@pytest.fixture
def with_roles(small: SqlGateway) -> Iterator[SqlGateway]:
    """APP has two roles, of which `first` is active after its log-in."""
    primary = small.group.primary
    mariadb = primary.flavor == "mariadb"
    for role in ("first", "second"):
        primary.query(f"DROP ROLE IF EXISTS {role}")
        primary.query(f"CREATE ROLE {role}")
        primary.query(f"GRANT {role} TO {APP.user}@'%'")
    primary.query(f"SET DEFAULT ROLE first {'FOR' if mariadb else 'TO'} {APP.user}@'%'")
    small.group.wait_caught_up()
    close_all(small)
    yield small
    for role in ("first", "second"):
        primary.query(f"DROP ROLE {role}")
    small.group.wait_caught_up()
    close_all(small)


def close_all(gateway: SqlGateway) -> None:
    """Ends the application's connections at the servers: the next ones log in with the roles that there are."""
    for server in gateway.group.servers:
        listed = f"SELECT id FROM information_schema.processlist WHERE user = '{APP.user}'"
        before = {number for (number,) in server.query(listed)}
        for number in before:
            with contextlib.suppress(pymysql.MySQLError):  # gone meanwhile
                server.query(f"KILL {number}")
        gateway.wait_until(lambda: not before & {one for (one,) in server.query(listed)}, "they are closed")  # noqa: B023


def role_of(connection: Connection) -> str:
    return str(value(connection, "SELECT CURRENT_ROLE()")).replace("`", "").partition("@")[0]


def run(connection: Any, statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        while cursor.nextset():
            pass


WAYS = {
    "plainly": ["SET ROLE second"],
    "to none": ["SET ROLE NONE"],
    "behind another statement": ["SET @a = UUID(); SET ROLE second"],
    "prepared": ["PREPARE s FROM 'SET ROLE second'", "EXECUTE s", "DEALLOCATE PREPARE s"],
    "in a procedure": ["CALL take_role()"],
    "in a comment": ["/*!40000 SET ROLE second */"],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_role_stays_with_its_session(with_roles: SqlGateway, way: str) -> None:
    with with_roles.connect() as maker:
        rows(maker, "DROP PROCEDURE IF EXISTS take_role")
        rows(maker, "CREATE PROCEDURE take_role() SQL SECURITY INVOKER SET ROLE second")
        assert role_of(maker) == "first"
    for leaves in (False, True):
        one = with_roles.open(client_flag=CLIENT.MULTI_STATEMENTS)
        for statement in WAYS[way]:
            with contextlib.suppress(pymysql.MySQLError):  # not all may be prepared or stored on all servers
                run(one, statement)
        if way in ("plainly", "behind another statement", "in a comment"):
            assert role_of(one) == "second"
        if leaves:
            one.close()
        else:
            reset(one)
            assert role_of(one) == "first"
        held = [with_roles.open() for _ in range(2 if leaves else 1)]
        for other in held:
            assert role_of(other) == "first"
            other.begin()
            assert role_of(other) == "first"
        for other in held:
            other.close()
        if not leaves:
            one.close()


def reset(connection: Any) -> None:
    """COM_RESET_CONNECTION."""
    connection._execute_command(0x1F, b"")
    connection._read_ok_packet()


def test_a_role_that_is_revoked_costs_nobody_a_statement(with_roles: SqlGateway) -> None:
    with with_roles.connect() as one:
        rows(one, "SET ROLE second")
        with_roles.group.primary.query(f"REVOKE first FROM {APP.user}@'%'")
    for _ in range(3):
        with with_roles.connect() as other:
            other.begin()
            assert role_of(other) != "second"
