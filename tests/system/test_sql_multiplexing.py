"""Many clients over few connections: none gets an error, none sees another's state, and nobody is forgotten.

The clients are tasks of one process, which speak the protocol themselves. `ACTIVE_CLIENTS` and `IDLE_CLIENTS` say how
many there are; the defaults keep the tests short.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pymysql
import pytest
import trio
from binary_protocol import prepare
from gateways import GatewayMaker, SqlGateway, rows, shared_gateway, value
from wire_client import NEW

from gateway.demo.mysql_servers import APP, MysqlGroup
from gateway.demo.stack import Stack
from gateway.protocol.mysql import commands, statements
from gateway.protocol.mysql.client_handshake import ClientHandshake
from gateway.protocol.mysql.commands import query
from gateway.protocol.mysql.handshake import Connected, Send
from gateway.protocol.mysql.packets import packet
from gateway.protocol.mysql.replies import ReplyTracker
from gateway.protocol.mysql.results import ResultReader

pytestmark = pytest.mark.servers

ACTIVE: Final = int(os.environ.get("ACTIVE_CLIENTS", "2000"))
ROUNDS: Final = int(os.environ.get("ACTIVE_ROUNDS", "1"))
IDLE: Final = int(os.environ.get("IDLE_CLIENTS", "2000"))
PER_MEMBER: Final = 10  # backend connections: 30 with three members
IDLE_CLIENT_BYTES: Final = 30 * 1024
SECONDS: Final = 240.0  # for all clients of a test together


class Client:
    """A client as a task: one command at a time."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.capabilities = 0

    @classmethod
    async def log_in(cls, gateway: SqlGateway) -> Client:
        client = cls(await trio.open_tcp_stream(gateway.host, gateway.port))
        handshake = ClientHandshake(user=APP.user, password=APP.password, database="shop", capabilities=NEW)
        while True:
            for event in handshake.feed(await client.receive()):
                if isinstance(event, Send):
                    await client.stream.send_all(event.data)
                elif isinstance(event, Connected):
                    client.capabilities = event.capabilities
                    return client

    async def receive(self) -> bytes:
        chunk = bytes(await self.stream.receive_some(65536))
        assert chunk, "the gateway closed the connection"
        return chunk

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        await self.stream.send_all(query(sql))
        reader = ResultReader()
        while not reader.done:
            reader.feed(await self.receive())
        assert reader.error is None, reader.error
        return reader.rows

    async def reply(self, raw: bytes) -> tuple[ReplyTracker, bytes]:
        await self.stream.send_all(raw)
        tracker = ReplyTracker(self.capabilities)
        tracker.begin(raw[4])
        received = b""
        while not tracker.done:
            received += tracker.feed(await self.receive())
        assert tracker.error is None, tracker.error
        return tracker, received

    async def prepare(self, sql: str) -> int:
        tracker, _ = await self.reply(statements.prepare(sql.encode()))
        assert tracker.statement_id is not None
        return tracker.statement_id

    async def execute(self, statement: int, number: int) -> bytes:
        """The reply to a statement with one integer parameter, as it came."""
        head = b"\x17" + statement.to_bytes(4, "little") + b"\0\x01\0\0\0\0\x01\x08\0"
        return (await self.reply(packet(0, head + number.to_bytes(8, "little"))))[1]


def connections(gateway: SqlGateway) -> list[dict[str, int]]:
    return [member["connections"] for member in gateway.orders["members"]]


async def all_at_once(gateway: SqlGateway, count: int, work: Callable[[Client, int], Awaitable[None]]) -> None:
    """So many clients log in; when all have, all work at once."""
    ready = trio.Event()
    entered = 0
    logging_in = trio.CapacityLimiter(64)

    async def one(number: int) -> None:
        nonlocal entered
        async with logging_in:
            client = await Client.log_in(gateway)
        entered += 1
        if entered == count:
            ready.set()
        async with client.stream:
            await ready.wait()
            await work(client, number)

    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(one, number)


@pytest.mark.slow
def test_thousands_of_active_clients_share_few_connections(gateways: GatewayMaker, sql_group: MysqlGroup) -> None:
    settings = f'pool = {{size = {PER_MEMBER}, acquire_timeout = "60s"}}'
    gateway = gateways(sql_group, settings=settings, development=False)
    with gateway.connect() as one:
        rows(one, "CREATE TABLE counters (id INT PRIMARY KEY, n INT NOT NULL)")
        rows(one, "INSERT INTO counters VALUES " + ", ".join(f"({number}, 0)" for number in range(ACTIVE)))
    sql_group.wait_caught_up()
    most = [0, 0, 0]

    async def work(client: Client, number: int) -> None:
        """Reads, prepared reads, writes, a transaction, and state of its own; each answer is checked."""
        statement = await client.prepare("SELECT CONCAT('n', n) FROM counters WHERE id = ?")
        for turn in range(1, ROUNDS + 1):
            await client.rows(f"SET @mine = {number}")
            assert await client.rows("SELECT @mine") == [(str(number),)]
            await client.rows(f"UPDATE counters SET n = n + 1 WHERE id = {number}")
            assert await client.rows(f"SELECT n FROM counters WHERE id = {number}") == [(str(2 * turn - 1),)]
            assert f"n{2 * turn - 1}".encode() in await client.execute(statement, number)
            await client.rows("BEGIN")
            await client.rows(f"UPDATE counters SET n = n + 1 WHERE id = {number}")
            assert await client.rows(f"SELECT n, @mine FROM counters WHERE id = {number}") == [
                (str(2 * turn), str(number))
            ]
            await client.rows("COMMIT")
        if number % 50 == 0:
            for at, found in enumerate(await trio.to_thread.run_sync(connections, gateway)):
                most[at] = max(most[at], found["open"])

    trio.run(all_at_once, gateway, ACTIVE, work)
    assert max(most) <= PER_MEMBER
    assert sum(most) <= 32
    with gateway.connect() as one:
        assert value(one, f"SELECT COUNT(*) FROM counters WHERE n = {2 * ROUNDS}") == ACTIVE
    gateway.wait_until(lambda: not any(found["in_use"] for found in connections(gateway)), "every lease has ended")
    assert gateway.figures["refused_commands"] == 0


@pytest.fixture
def single(sql_group: MysqlGroup, session_stack: Stack, shared_gateways: dict[str, SqlGateway]) -> Iterator[SqlGateway]:
    """A gateway with one connection per server."""
    settings = 'pool = {size = 1, min_idle = 0, acquire_timeout = "2s"}'
    name = f"one each {sql_group.primary.flavor}"
    yield from shared_gateway(name, sql_group, session_stack, shared_gateways, settings=settings)


def test_waiting_clients_are_served_in_their_order_and_told_if_it_takes_too_long(single: SqlGateway) -> None:
    primary = single.group.primary
    with single.connect() as holder, contextlib.ExitStack() as clients:
        rows(holder, "CREATE TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, client INT)")
        waiting = [clients.enter_context(single.connect()) for _ in range(8)]
        holder.begin()
        rows(holder, "INSERT INTO t (client) VALUES (-1)")
        for number, client in enumerate(waiting):
            client._execute_command(3, f"INSERT INTO t (client) VALUES ({number})")  # type: ignore[attr-defined]
            wanted = number + 1
            single.wait_until(
                lambda wanted=wanted: single.member(primary)["connections"]["waiting"] == wanted,  # type: ignore[misc]
                "it waits",
            )
        holder.commit()
        for client in waiting:
            client._read_query_result()  # type: ignore[attr-defined]
        assert rows(holder, "SELECT client FROM t ORDER BY id") == [(number,) for number in range(-1, 8)]
        holder.begin()
        rows(holder, "INSERT INTO t (client) VALUES (-2)")
        begun = time.monotonic()
        with pytest.raises(pymysql.MySQLError, match=r"all 1 connections to .* were busy for 2 s") as busy:
            rows(waiting[0], "INSERT INTO t (client) VALUES (9)")
        assert 1.5 < time.monotonic() - begun < 10
        assert busy.value.args[0] == 1040
        holder.rollback()
        rows(waiting[0], "INSERT INTO t (client) VALUES (10)")


def test_state_is_replayed_only_where_it_differs(single: SqlGateway) -> None:
    primary = single.group.primary

    def replays() -> int:
        count: int = single.member(primary)["connections"]["replays"]
        return count

    with single.connect() as one, single.connect() as two:
        hint = "/* gateway: primary */"
        for client in (one, two):
            rows(client, "SET time_zone = '+01:00'")
            assert value(client, f"SELECT {hint} @@time_zone") == "+01:00"
        before = replays()
        for _ in range(10):
            for client in (one, two):
                assert value(client, f"SELECT {hint} @@time_zone") == "+01:00"
                assert prepare(client, f"SELECT {hint} 1").execute() == [[1]]
        assert replays() == before
        rows(two, "SET time_zone = '+02:00'")
        before = replays()
        for _ in range(10):
            assert value(one, f"SELECT {hint} @@time_zone") == "+01:00"
            assert value(two, f"SELECT {hint} @@time_zone") == "+02:00"
        assert before + 19 <= replays() <= before + 20
        before = replays()
        one.begin()
        for _ in range(10):
            assert value(one, "SELECT @@time_zone") == "+01:00"
        one.rollback()
        assert replays() <= before + 1


def test_connections_are_renewed_under_load(gateways: GatewayMaker, sql_group: MysqlGroup) -> None:
    gateway = gateways(sql_group, settings='pool = {size = 4, max_lifetime = "1s"}')
    failures: list[BaseException] = []
    ended = threading.Event()

    def work() -> None:
        try:
            with gateway.connect() as one:
                read = prepare(one, "SELECT ? + 1")
                while not ended.is_set():
                    assert read.execute(4) == [[5]]
                    assert value(one, "SELECT 7") == 7
        except BaseException as error:
            failures.append(error)

    def serving() -> set[int]:
        listed = "SELECT id FROM information_schema.processlist WHERE user = %s"
        return {row[0] for server in sql_group.replicas for row in server.query(listed, (APP.user,))}

    others = serving()  # of other gateways
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        gateway.wait_until(lambda: bool(serving() - others), "they are at work")
        first = serving() - others
        gateway.wait_until(lambda: not first & serving(), "every connection was renewed")
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert all(found["open"] <= 4 for found in connections(gateway))


@pytest.mark.slow
def test_idle_clients_cost_little(gateways: GatewayMaker, mariadb_group: MysqlGroup) -> None:
    gateway = gateways(mariadb_group, listener=f"max_connections = {IDLE + 10}", development=False)

    held: list[Client] = []
    full: list[int] = []
    done = trio.Event()

    async def hold(client: Client, number: int) -> None:
        assert await client.rows("SELECT 1") == [("1",)]
        held.append(client)
        if len(held) == IDLE:
            full.append(gateway.memory_bytes())
            done.set()
        await done.wait()

    with gateway.connect() as one:
        assert value(one, "SELECT 1") == 1
    before = gateway.memory_bytes()
    trio.run(all_at_once, gateway, IDLE, hold)
    assert (full[0] - before) / IDLE <= IDLE_CLIENT_BYTES


@pytest.mark.slow
def test_a_slow_reader_of_a_big_result_holds_nothing_in_the_gateway(
    gateways: GatewayMaker, sql_group: MysqlGroup
) -> None:
    gateway = gateways(sql_group, development=False)
    with gateway.connect() as one:
        rows(one, "CREATE TABLE t (id INT PRIMARY KEY)")
        rows(one, "INSERT INTO t VALUES " + ", ".join(f"({number})" for number in range(200)))
        assert len(value(one, "SELECT REPEAT('x', 1000000) FROM t LIMIT 1")) == 1_000_000
    with gateway.connect() as one:
        assert value(one, "SELECT 1") == 1
        sock: socket.socket = one._sock  # type: ignore[attr-defined]  # the wire is the point
        before = most = gateway.memory_bytes()
        sock.sendall(commands.query("SELECT /* gateway: primary */ id, REPEAT('x', 1000000) FROM t"))
        tracker = ReplyTracker(one.client_flag)
        tracker.begin(3)
        received = 0
        while not tracker.done:
            for _ in range(10):  # what it takes to look is what the reader is slow by
                most = max(most, gateway.memory_bytes())
            chunk = sock.recv(1 << 18)
            assert chunk
            received += len(chunk)
            tracker.feed(chunk)
        assert tracker.error is None
        assert received > 200_000_000
    assert most - before < 4 << 20


def test_a_connection_that_opens_while_passwords_change_serves_its_statement(
    gateways: GatewayMaker, sql_group: MysqlGroup, tmp_path: Path
) -> None:
    """What a change of users retires is not given out again; who waits for it already has it all the same."""
    secret = tmp_path / "password"
    secret.write_text("one")
    users = (
        f'[{{name = "{APP.user}", password = "{APP.password}"}}, {{name = "other", password = {{file = "{secret}"}}}}]'
    )
    gateway = gateways(sql_group, users=users, settings="pool = {min_idle = 0}")
    primary = sql_group.primary

    def reloads() -> int:
        return gateway.log.read_text().count('"rules reloaded"')

    with gateway.connect() as holder, gateway.connect() as waiter, ThreadPoolExecutor() as threads:
        rows(holder, "CREATE TABLE t (a INT)")
        holder.begin()
        rows(holder, "INSERT INTO t VALUES (1)")
        primary.pause()
        try:
            before, seen = gateway.member(primary)["connections"]["open"], reloads()
            writing = threads.submit(rows, waiter, "INSERT INTO t VALUES (2)")
            gateway.wait_until(lambda: gateway.member(primary)["connections"]["open"] > before, "one more is opening")
            secret.write_text("two")
            assert gateway.process is not None
            gateway.process.signal(signal.SIGHUP)
            gateway.wait_until(lambda: reloads() > seen, "the users were taken")
        finally:
            primary.resume()
        writing.result()
        holder.commit()
        assert value(holder, "/* gateway: primary */ SELECT COUNT(*) FROM t") == 2
