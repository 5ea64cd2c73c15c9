"""Proves binding, accepting within limits, containing a failed session, and that 5,000 connections leave nothing."""

from __future__ import annotations

import errno
import gc
import os
import resource
import select
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.errors import ConfigError
from gateway.net.endpoint import Endpoint
from gateway.net.lane import SWEEP_SECONDS, Lane, Poller, SelectorPoller
from gateway.net.listener import PAUSE_SECONDS, Acceptor, bind_tcp, bind_unix
from gateway.net.requests import Requests

REFUSAL = b"SERVER_ERROR too many connections\r\n"


class Echo:
    """A session that answers in the lane; `quit` finishes, `crash` raises in its task."""

    def __init__(self, lane: Lane, sock: socket.socket) -> None:
        self.requests: Requests[bytes] = Requests(lane, lambda: None)
        self.endpoint = Endpoint(lane, sock, self)

    async def run(self) -> None:
        try:
            async for _ in self.requests:
                raise ValueError("a bug in a session")
        finally:
            self.endpoint.finish()

    def received(self, chunk: bytes) -> None:
        self.endpoint.write(chunk)
        if chunk == b"quit":
            self.requests.end()
        elif chunk == b"crash":
            self.requests.decline(chunk)

    def ended(self) -> None:
        self.requests.end()

    def lost(self, error: OSError) -> None:
        self.requests.end()

    def raised(self, error: Exception) -> None:
        self.requests.fail(error)

    def overfull(self) -> None:
        self.endpoint.pause_reading()

    def drained(self) -> None:
        self.endpoint.resume_reading()

    def expired(self) -> None:
        self.requests.end()


class Service:
    """A listener on loopback with its sessions in a nursery of their own."""

    def __init__(self, lane: Lane, sessions: trio.Nursery) -> None:
        self.lane = lane
        self.sessions = sessions

    def listen(
        self, serve: Callable[[socket.socket], Awaitable[None]] | None = None, limit: int = 10_000
    ) -> tuple[Acceptor, tuple[str, int]]:
        [sock] = bind_tcp("127.0.0.1", 0)
        address = sock.getsockname()
        acceptor = Acceptor(
            self.lane,
            sock,
            self.sessions,
            serve or self.echo,
            name="test",
            limit=limit,
            refusal=lambda: REFUSAL,
        )
        return acceptor, address

    async def echo(self, sock: socket.socket) -> None:
        await Echo(self.lane, sock).run()


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture(params=[select.epoll, SelectorPoller], ids=["epoll", "selectors"])
async def service(request: pytest.FixtureRequest, nursery: trio.Nursery) -> AsyncIterator[Service]:
    poller: Poller = request.param()
    lane = Lane(poller)
    nursery.start_soon(lane.run)
    async with trio.open_nursery() as sessions:
        yield Service(lane, sessions)
        sessions.cancel_scope.cancel()
    assert len(lane) == 0, "a descriptor stayed registered"
    nursery.cancel_scope.cancel()


def take_all_descriptors(taken: ExitStack) -> None:
    try:
        while True:
            taken.callback(os.close, os.dup(0))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise


def said(client: socket.socket) -> bytes:
    """What has come, without waiting; b"" when the other side ended. BlockingIOError when nothing came."""
    client.setblocking(False)
    return client.recv(1000)


# -- accepting


async def test_every_connection_gets_a_session(service: Service) -> None:
    acceptor, address = service.listen()
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(address)) for _ in range(200)]
        for number, client in enumerate(clients):
            client.sendall(b"%d" % number)
        await wait_all_tasks_blocked()
        assert [said(client) for client in clients] == [b"%d" % number for number in range(200)]
        assert acceptor.open == acceptor.accepted == 200
        acceptor.close()
        clients[0].sendall(b"still here")
        await wait_all_tasks_blocked()
        assert said(clients[0]) == b"still here"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
    await wait_all_tasks_blocked()
    assert acceptor.open == 0
    assert len(service.sessions.child_tasks) == 0


async def test_a_connection_over_the_limit_is_told_so(service: Service) -> None:
    acceptor, address = service.listen(limit=2)
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(address)) for _ in range(2)]
        over = stack.enter_context(socket.create_connection(address))
        over.sendall(b"get key\r\n")  # closed with this unread, it would be reset and might not see why
        await wait_all_tasks_blocked()
        assert said(over) == REFUSAL
        assert said(over) == b""
        assert (acceptor.open, acceptor.accepted, acceptor.refused) == (2, 2, 1)
        clients[0].close()
        await wait_all_tasks_blocked()
        assert acceptor.open == 1
        third = stack.enter_context(socket.create_connection(address))
        third.sendall(b"hello")
        await wait_all_tasks_blocked()
        assert said(third) == b"hello"
    acceptor.close()


async def test_a_session_that_crashes_is_logged_and_hurts_no_other(service: Service) -> None:
    acceptor, address = service.listen()
    with socket.create_connection(address) as bad, socket.create_connection(address) as good:
        bad.sendall(b"crash")
        with capture_logs() as logs:
            await wait_all_tasks_blocked()
        assert [(entry["event"], entry["listener"]) for entry in logs] == [("a session failed", "test")]
        assert "a bug in a session" in str(logs[0]["exc_info"].exceptions)
        assert said(bad) == b"crash"
        assert said(bad) == b""
        assert acceptor.open == 1
        good.sendall(b"unhurt")
        await wait_all_tasks_blocked()
        assert said(good) == b"unhurt"
    acceptor.close()


async def test_an_error_beside_a_cancellation_is_contained_too(service: Service) -> None:
    """A nursery in a session gives a group of both; the cancellation passes, the error does not."""

    async def serve(sock: socket.socket) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("in clean-up")

    with capture_logs() as logs:
        async with trio.open_nursery() as sessions:
            acceptor, address = Service(service.lane, sessions).listen(serve)
            with socket.create_connection(address):
                await wait_all_tasks_blocked()
                sessions.cancel_scope.cancel()
    assert acceptor.open == 0
    assert [entry["event"] for entry in logs] == ["a session failed"]
    acceptor.close()


async def test_what_ends_the_program_is_not_contained(nursery: trio.Nursery) -> None:
    async def serve(sock: socket.socket) -> None:
        raise KeyboardInterrupt

    async def run() -> None:
        async with trio.open_nursery() as sessions:
            acceptor, address = Service(lane, sessions).listen(serve)
            with socket.create_connection(address):
                try:
                    await trio.sleep_forever()
                finally:
                    acceptor.close()

    lane = Lane()
    nursery.start_soon(lane.run)
    with pytest.raises(BaseExceptionGroup) as caught:
        await run()
    assert caught.group_contains(KeyboardInterrupt)
    assert len(lane) == 0
    nursery.cancel_scope.cancel()


async def test_the_last_output_of_a_session_outlives_its_task(service: Service) -> None:
    """The task ends after finish(); its connection is closed, and counted, until the client has read."""
    size = 20_000_000

    async def serve(sock: socket.socket) -> None:
        session = Echo(service.lane, sock)
        session.endpoint.write(b"x" * size)
        session.requests.end()
        await session.run()

    acceptor, address = service.listen(serve)
    with socket.create_connection(address) as client:
        await wait_all_tasks_blocked()
        assert acceptor.open == 1
        client.setblocking(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(client.dup()))
        async with stream:
            assert sum([len(chunk) async for chunk in stream]) == size
    await wait_all_tasks_blocked()
    assert acceptor.open == 0
    acceptor.close()


async def test_cancelling_does_not_wait_for_the_last_output(service: Service) -> None:
    async def serve(sock: socket.socket) -> None:
        session = Echo(service.lane, sock)
        session.endpoint.write(b"x" * 20_000_000)
        session.requests.end()
        await session.run()

    async with trio.open_nursery() as sessions:
        acceptor, address = Service(service.lane, sessions).listen(serve)
        with socket.create_connection(address):
            await wait_all_tasks_blocked()
            assert acceptor.open == 1
            sessions.cancel_scope.cancel()
    assert acceptor.open == 0
    acceptor.close()
    assert len(service.lane) == 0


async def test_no_free_descriptor_pauses_accepting_and_it_goes_on(service: Service, mock_clock: MockClock) -> None:
    """The real limit of this process, lowered: accept() fails with EMFILE, not only once."""
    acceptor, address = service.listen()
    await wait_all_tasks_blocked()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.create_connection(address) as client:
        client.sendall(b"patience")
        highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
        with ExitStack() as taken:
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
            try:
                take_all_descriptors(taken)
                with capture_logs() as logs:
                    before = service.lane.batches
                    await wait_all_tasks_blocked()
                    assert service.lane.batches - before == 1, "tries again without end"
                    mock_clock.jump(PAUSE_SECONDS + SWEEP_SECONDS)
                    await wait_all_tasks_blocked()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert [entry["event"] for entry in logs] == ["no descriptor or memory for another connection"] * 2
        assert acceptor.accepted == 0
        mock_clock.jump(PAUSE_SECONDS + SWEEP_SECONDS)
        await wait_all_tasks_blocked()
        assert said(client) == b"patience"
    acceptor.close()


async def test_a_pause_survives_the_close_of_its_listener(service: Service, mock_clock: MockClock) -> None:
    acceptor, _ = service.listen()
    await wait_all_tasks_blocked()
    acceptor.deadline = trio.current_time()
    acceptor.close()
    mock_clock.jump(SWEEP_SECONDS * 2)
    await wait_all_tasks_blocked()
    assert len(service.lane) == 0


async def test_a_refusal_that_fails_leaves_no_socket(service: Service, mock_clock: MockClock) -> None:
    acceptor, address = service.listen(limit=0)
    acceptor._refusal = lambda: bytes(1 // 0)
    with socket.create_connection(address) as client, capture_logs() as logs:
        await wait_all_tasks_blocked()
        assert [entry["event"] for entry in logs] == ["accepting failed"]
        assert said(client) == b""
        acceptor._refusal = lambda: REFUSAL
        with socket.create_connection(address) as later:
            mock_clock.jump(PAUSE_SECONDS + SWEEP_SECONDS)
            await wait_all_tasks_blocked()
            assert said(later) == REFUSAL
    acceptor.close()


async def test_five_thousand_connections_leave_nothing_behind(service: Service) -> None:
    """Opened and closed in every way, 500 at a time: quit, half-close, close, reset, close with output unread."""
    acceptor, address = service.listen()
    for _ in range(10):
        clients = [socket.create_connection(address) for _ in range(500)]
        for client in clients:
            client.sendall(b"hello")
        await wait_all_tasks_blocked()
        assert acceptor.open == 500
        for number, client in enumerate(clients):
            match number % 5:
                case 0:
                    client.sendall(b"quit")
                case 1:
                    client.shutdown(socket.SHUT_WR)
                case 2:
                    assert said(client) == b"hello"
                    client.close()
                case 3:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    client.close()
                case 4:
                    client.close()
        await wait_all_tasks_blocked()
        assert acceptor.open == 0
        assert len(service.lane) == 1
        assert len(service.sessions.child_tasks) == 0
        assert [said(client) for client in clients[::5]] == [b"helloquit"] * 100
        for client in clients:
            client.close()
    assert acceptor.accepted == 5000
    acceptor.close()


# -- binding


@pytest.mark.parametrize(
    ("host", "port"),
    [
        pytest.param("192.0.2.1", 0, id="an address that this machine does not have"),
        pytest.param("127.0.0.1", 70_000, id="a port beyond the last"),
        pytest.param("127.0.0.1", -1, id="a negative port"),
        pytest.param("a" * 70, 1, id="not a host name"),
        pytest.param("999.1.1.1", 1, id="not an address"),
    ],
)
def test_an_address_that_cannot_be_used_is_an_error_of_the_configuration(host: str, port: int) -> None:
    with pytest.raises(ConfigError) as caught:
        bind_tcp(host, port)
    assert str(caught.value).startswith(f"cannot listen on {host}:{port}: ")
    assert "\n" not in str(caught.value)


def test_a_port_in_use_is_an_error_of_the_configuration() -> None:
    [first] = bind_tcp("127.0.0.1", 0)
    with first, pytest.raises(ConfigError, match="in use"):
        bind_tcp("127.0.0.1", first.getsockname()[1])


def test_an_address_family_that_is_missing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `localhost` on a machine whose /etc/hosts knows ::1, and whose kernel does not."""
    here, elsewhere = ("127.0.0.1", 0), ("192.0.2.1", 0)

    def both(*_: object, **__: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in (elsewhere, here)]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    [sock] = bind_tcp("localhost", 0)
    with sock:
        assert sock.getsockname()[0] == "127.0.0.1"


async def test_ipv6_where_it_is_available(service: Service) -> None:
    try:
        [sock] = bind_tcp("::1", 0)
    except ConfigError:
        pytest.skip("no IPv6 on this machine")
    address = sock.getsockname()
    acceptor = Acceptor(service.lane, sock, service.sessions, service.echo, name="v6", limit=5, refusal=lambda: REFUSAL)
    with socket.create_connection(address[:2]) as client:
        client.sendall(b"six")
        await wait_all_tasks_blocked()
        assert said(client) == b"six"
    [four] = bind_tcp("127.0.0.1", address[1])  # the same port: an IPv6 socket takes no IPv4 connections
    four.close()
    acceptor.close()


def test_a_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "gateway.sock")
    bind_unix(path).close()
    assert os.path.exists(path)
    with bind_unix(path, mode=0o660) as sock, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        assert not sock.getblocking()
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660


def test_a_live_unix_socket_is_not_replaced_although_its_backlog_is_full(tmp_path: Path) -> None:
    path = str(tmp_path / "gateway.sock")
    with socket.socket(socket.AF_UNIX) as server, ExitStack() as waiting:
        server.bind(path)
        server.listen(0)
        for _ in range(3):
            with pytest.raises(ConfigError, match="another process listens on"):
                bind_unix(path)
            client = waiting.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect_ex(path)
        assert os.path.exists(path)


@pytest.mark.parametrize("name", ["a file", "a folder", "missing/gateway.sock", "x" * 200])
def test_a_path_that_cannot_be_used_is_an_error_and_stays_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / "a file").write_text("precious")
    (tmp_path / "a folder").mkdir()
    path = str(tmp_path / name)
    with pytest.raises(ConfigError) as caught:
        bind_unix(path)
    assert str(caught.value).startswith(f"cannot listen on {path}: ")
    assert (tmp_path / "a file").read_text() == "precious"
    assert (tmp_path / "a folder").is_dir()
