"""Accounts of the servers and gateways that let in whom the primary accepts, for tests of `users = "backend"`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pymysql
import pytest
from gateways import Connection, SqlGateway, rows, shared_gateway, value

from gateway.demo.mysql_servers import MONITOR, Account, MysqlGroup
from gateway.demo.stack import Stack

REMOTE = "127.0.0.2"
"""Where a client comes from that is not this machine to the gateway, nor to a server: no account of localhost fits."""


def is_mysql(group: MysqlGroup) -> bool:
    return group.primary.flavor == "mysql"


def may_read_accounts(group: MysqlGroup) -> str:
    return f"SELECT ON mysql.{'user' if is_mysql(group) else 'global_priv'}"


@pytest.fixture
def backend(
    sql_group: MysqlGroup, session_stack: Stack, shared_gateways: dict[str, SqlGateway]
) -> Iterator[SqlGateway]:
    """A gateway that lets in whom the primary accepts; the monitor may read the accounts."""
    sql_group.primary.query(f"GRANT {may_read_accounts(sql_group)} TO '{MONITOR.user}'@'%'")
    sql_group.wait_caught_up()
    name = f"backend users of {sql_group.primary.flavor}"
    yield from shared_gateway(
        name, sql_group, session_stack, shared_gateways, users='"backend"', listener="log_in_failures = {max = 0}"
    )


@pytest.fixture
def user(sql_group: MysqlGroup) -> Iterator[Account]:
    """An account from anywhere, with all rights on `shop`."""
    with account(sql_group) as made:
        yield made


@contextlib.contextmanager
def account(
    group: MysqlGroup, *, user: str = "b_user", host: str = "%", via: str = "BY 'pw'", more: str = ""
) -> Iterator[Account]:
    name = f"'{user}'@'{host}'"
    group.primary.query(f"CREATE USER {name} IDENTIFIED {via} {more}")
    group.primary.query(f"GRANT ALL ON shop.* TO {name}")
    group.wait_caught_up()
    try:
        yield Account(user, "pw")
    finally:
        group.primary.query(f"DROP USER IF EXISTS {name}")
        group.wait_caught_up()


@contextlib.contextmanager
def administrator(group: MysqlGroup) -> Iterator[Account]:
    """An account that may change accounts."""
    with account(group, user="b_admin") as admin:
        group.primary.query("GRANT ALL ON *.* TO 'b_admin'@'%' WITH GRANT OPTION")
        yield admin


def comes_in(gateway: SqlGateway, account: Account, **more: Any) -> None:
    with gateway.connect("shop", account, **more) as one:
        assert value(one, "SELECT CURRENT_USER()").startswith("b_user@")


def refused(gateway: SqlGateway, account: Account, **more: Any) -> tuple[Any, ...]:
    with pytest.raises(pymysql.MySQLError) as error, gateway.connect("shop", account, **more):
        pass
    found: tuple[Any, ...] = error.value.args
    return found


def threads(group: MysqlGroup, name: str = "b_user") -> set[int]:
    found = group.primary.query("SELECT ID FROM information_schema.PROCESSLIST WHERE USER = %s", (name,))
    return {row[0] for row in found}


def ends(connection: Connection) -> None:
    with pytest.raises(pymysql.MySQLError) as error:
        rows(connection, "SELECT 1")
    assert error.value.args[0] in (1045, 2006, 2013)
