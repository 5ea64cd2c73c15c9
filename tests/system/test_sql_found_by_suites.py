"""What other people's test suites found (tests/suites), each reduced to its least."""

from __future__ import annotations

import socket
import time
from typing import Any

import pymysql
import pymysql.constants.COMMAND as COMMAND
import pytest
from gateways import SqlGateway, rows, value

pytestmark = pytest.mark.servers


def test_the_greeting_shows_the_version_as_the_primary_does(sql_gateway: SqlGateway) -> None:
    """MariaDB 10 puts 5.5.5- before its version there, and only there."""
    with sql_gateway.connect() as through, sql_gateway.group.primary.connect() as direct:
        greetings: list[Any] = [through, direct]
        assert greetings[0].get_server_info() == greetings[1].get_server_info()
        assert value(through, "SELECT VERSION()") == value(direct, "SELECT VERSION()")


def test_a_client_that_sets_wait_timeout_is_cut_off_by_it(sql_gateway: SqlGateway) -> None:
    with sql_gateway.connect() as patient, sql_gateway.connect() as one:
        rows(one, "SET SESSION wait_timeout = 1")
        assert value(one, "SELECT @@wait_timeout") == 1
        began = time.monotonic()
        raw: Any = one
        raw._sock.settimeout(10.0)
        raw._sock.recv(1, socket.MSG_PEEK)  # something comes only when the gateway ends the session
        assert 0.9 < time.monotonic() - began < 5.0
        with pytest.raises(pymysql.OperationalError) as lost:
            rows(one, "SELECT 1")
        assert lost.value.args[0] == 2013  # an error that answers no command has the number 0, as a server's
        assert value(patient, "SELECT 1") == 1


def test_closing_a_statement_twice_in_a_transaction_is_not_answered(sql_gateway: SqlGateway) -> None:
    """mysql-connector-python does so when its next statement cannot be prepared."""
    with sql_gateway.connect() as one:
        raw: Any = one
        one.begin()
        assert value(one, "SELECT 1") == 1
        raw._execute_command(COMMAND.COM_STMT_CLOSE, bytes(4))
        raw._next_seq_id = 0
        assert value(one, "SELECT 2") == 2
        one.commit()
