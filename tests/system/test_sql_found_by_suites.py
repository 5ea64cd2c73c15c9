"""What other people's test suites found (tests/suites), each reduced to its least."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from typing import Any

import mysql.connector
import pymysql
import pymysql.constants.COMMAND as COMMAND
import pytest
from gateways import SqlGateway, rows, value

from gateway.demo.mysql_servers import APP

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


def test_every_new_statement_takes_a_vector(mysql9_gateway: SqlGateway) -> None:
    """MySQL refuses a vector to a statement that ran before and that it prepared again for an integer's type."""
    connection = mysql.connector.connect(
        host=mysql9_gateway.host, port=mysql9_gateway.port, user=APP.user, password=APP.password,
        database="shop", autocommit=True, use_pure=True,
    )  # fmt: skip
    with contextlib.closing(connection):
        cursor: Any = connection.cursor()
        cursor.execute("CREATE TABLE embeddings (id INT, embedding VECTOR(3))")
        vector = struct.pack("<3f", 1, 2, 3)
        for number in range(3):
            with contextlib.closing(connection.cursor(prepared=True)) as prepared:
                prepared.execute("INSERT INTO embeddings VALUES (%s, %s)", (number, vector))
        cursor.execute("SELECT COUNT(embedding) FROM embeddings")
        assert cursor.fetchall() == [(3,)]
        cursor.execute("DROP TABLE embeddings")


def test_a_malformed_string_in_a_user_variable_is_taken_nowhere_else(sql_gateway: SqlGateway) -> None:
    """mysql-connector-python passes bytes to procedures by SET @a = '...', whatever the connection's character set."""
    connection = mysql.connector.connect(
        host=sql_gateway.host, port=sql_gateway.port, user=APP.user, password=APP.password,
        database="shop", autocommit=True, use_pure=True, charset="utf8mb4", collation="utf8mb4_general_ci",
    )  # fmt: skip
    with contextlib.closing(connection), contextlib.closing(connection.cursor()) as cursor:
        cursor.execute("CREATE PROCEDURE takes_bytes (data VARBINARY(512)) BEGIN END")
        sql_gateway.group.wait_caught_up()
        assert cursor.callproc("takes_bytes", ((b"\xf0\xf1\xf2", "BINARY"),)) == (b"\xf0\xf1\xf2",)
        cursor.execute("DROP PROCEDURE takes_bytes")
