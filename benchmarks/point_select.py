"""What a point select costs within the gateway, in us, without the system calls that carry it.

    python benchmarks/point_select.py

A real gateway logs a real client in and serves a statement from a real server. Then the sockets of the two connections
are taken out, and the same command and the same reply are given to their endpoints again and again. What is printed is
the best of many short loops, so that the figure holds on a busy machine, where a whole run's would not.
"""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable
from typing import Final, cast

import load_sysbench
import pymysql
import trio
from peers import GatewayProcess, sql_group

from gateway.app import Gateway, load_ruleset
from gateway.config import Config, read_config
from gateway.demo.mysql_servers import APP, mysql_group
from gateway.demo.stack import Stack
from gateway.errors import GatewayError
from gateway.net.endpoint import Endpoint
from gateway.net.lane import READ
from gateway.protocol.mysql.commands import query
from gateway.sessions.mysql import MysqlSession

STATEMENT: Final = "SELECT c FROM sbtest1 WHERE id=7"
TURNS: Final = 200  # of one loop, about a millisecond
LOOPS: Final = 1500


class Replayed:
    """Stands in for a socket: gives the same bytes whenever it is asked, and takes all that it is given."""

    def __init__(self, chunk: bytes) -> None:
        self.chunk = chunk

    def recv(self, _size: int) -> bytes:
        return self.chunk

    def send(self, chunk: bytes) -> int:
        return len(chunk)


def best_us(loop: Callable[[], None]) -> float:
    """us of one turn, in the best of many loops."""
    best = float("inf")
    for _ in range(LOOPS):
        began = time.perf_counter()
        loop()
        best = min(best, time.perf_counter() - began)
    return best / TURNS * 1e6


def reply_of(session: MysqlSession, ask: Callable[[], None]) -> bytes:
    """What the server answers to the statement of `ask`, which another thread runs meanwhile."""
    chunks: list[bytes] = []
    passed_on = MysqlSession.reply

    def kept(self: MysqlSession, chunk: bytes) -> None:
        if self is session:
            chunks.append(chunk)
        passed_on(self, chunk)

    MysqlSession.reply = kept  # type: ignore[method-assign]
    try:
        trio.from_thread.run(trio.to_thread.run_sync, ask)
    finally:
        MysqlSession.reply = passed_on  # type: ignore[method-assign]
    return b"".join(chunks)


def replay(session: MysqlSession, reply: bytes) -> float:
    """us of one exchange, the stand-ins' own cost taken off."""
    connection = session.residue.last
    if connection is None:
        raise GatewayError("the statement before left no connection behind")
    command = query(STATEMENT)
    client, server = Replayed(command), Replayed(reply)
    sockets = session.endpoint.sock, connection.endpoint.sock
    lane = session.service.lane
    one, other = session.endpoint.on_event, connection.endpoint.on_event

    def exchanges() -> None:
        for _ in range(TURNS):
            one(READ)
            other(READ)

    def stand_ins() -> None:
        for _ in range(TURNS):
            client.recv(1)
            server.recv(1)
            client.send(command)
            server.send(command)

    _take_the_place(session.endpoint, client)
    _take_the_place(connection.endpoint, server)
    lane._draining = True  # as within a batch
    try:
        return best_us(exchanges) - best_us(stand_ins)
    finally:
        lane._draining = False
        session.endpoint.sock, connection.endpoint.sock = sockets


def _take_the_place(endpoint: Endpoint, replayed: Replayed) -> None:
    endpoint.sock = cast("trio.socket.SocketType", replayed)  # type: ignore[assignment]


async def measured(config: Config, host: str, port: int) -> float:
    """Starts a gateway in this process and measures."""
    gateway = Gateway(config, load_ruleset(config))
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.run)
        connection = await trio.to_thread.run_sync(
            lambda: pymysql.connect(
                host=host, port=port, user=APP.user, password=APP.password, database="sbtest", autocommit=True
            )
        )

        def ask() -> None:
            with connection.cursor() as cursor:
                cursor.execute(STATEMENT)
                cursor.fetchall()

        await trio.to_thread.run_sync(ask)
        session = next(found for found in gc.get_objects() if isinstance(found, MysqlSession))
        reply = await trio.to_thread.run_sync(reply_of, session, ask)
        spent = replay(session, reply)
        await trio.to_thread.run_sync(connection.close)
        gateway.stop()
    return spent


def main() -> None:
    """Starts a server, measures and prints."""
    with Stack() as stack:
        group = mysql_group(stack, "mariadb", replicas=0)
        server = group.primary
        load_sysbench.prepare(server.host, server.port)
        files = GatewayProcess(stack, "gateway", "mysql", sql_group(group))
        files.prepare()
        config, problems = read_config(files.folder / "gateway.toml")
        if config is None:
            raise GatewayError("; ".join(map(str, problems)))
        spent = trio.run(measured, config, files.host, files.port)
    print(f"Python {platform.python_version()}: {spent:.2f} us for a point select, beside its system calls")


if __name__ == "__main__":
    main()
