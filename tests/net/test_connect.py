"""Proves that a dialogue reads what came, in order, and hands its endpoint over with nothing lost."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.net.connect import UNREAD_LIMIT_BYTES, Conversation, connect_tcp, connect_unix
from gateway.net.lane import Lane


class Owner:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def received(self, chunk: bytes) -> None:
        self.heard.append(chunk.decode())

    def ended(self) -> None:
        self.heard.append("ended")

    def lost(self, error: OSError) -> None:
        self.heard.append("lost")

    def overfull(self) -> None:
        self.heard.append("overfull")

    def drained(self) -> None:
        self.heard.append("drained")

    def expired(self) -> None:
        self.heard.append("expired")

    def raised(self, error: Exception) -> None:
        self.heard.append(repr(error))


Pair = tuple[Conversation, socket.socket]


@pytest.fixture
async def lane(nursery: trio.Nursery) -> AsyncIterator[Lane]:
    lane = Lane()
    nursery.start_soon(lane.run)
    yield lane
    assert len(lane) == 0, "a descriptor stayed registered"
    nursery.cancel_scope.cancel()


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, peer = socket.socketpair()
    with ours, peer:
        yield ours, peer


@pytest.fixture
async def dialogue(lane: Lane, sockets: tuple[socket.socket, socket.socket]) -> AsyncIterator[Pair]:
    conversation = Conversation(lane, sockets[0])
    yield conversation, sockets[1]
    conversation.close()


async def test_a_dialogue(dialogue: Pair) -> None:
    ours, peer = dialogue
    ours.write(b"who?")
    assert peer.recv(10) == b"who?"
    peer.sendall(b"me")
    assert await ours.receive() == b"me"
    peer.shutdown(socket.SHUT_WR)
    assert await ours.receive() == b""
    assert await ours.receive() == b""


async def test_a_peer_that_sends_ahead_is_held(dialogue: Pair) -> None:
    ours, peer = dialogue
    size = 3 * UNREAD_LIMIT_BYTES

    async def send() -> None:
        async with trio.SocketStream(trio.socket.from_stdlib_socket(peer.dup())) as stream:
            await stream.send_all(b"x" * size)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        assert ours.endpoint.bytes_in <= UNREAD_LIMIT_BYTES + ours.endpoint.receive_bytes
        got = 0
        while got < size:
            got += len(await ours.receive())
    assert got == size


async def test_a_lost_connection_is_raised(dialogue: Pair) -> None:
    ours, _ = dialogue
    ours.lost(ConnectionResetError("gone"))
    with pytest.raises(ConnectionResetError):
        await ours.receive()
    with pytest.raises(ConnectionResetError):
        ours.hand_over(Owner())


async def test_handing_over_gives_what_is_unread_and_goes_on(dialogue: Pair) -> None:
    ours, peer = dialogue
    peer.sendall(b"early ")
    await wait_all_tasks_blocked()
    owner = Owner()
    assert ours.hand_over(owner) == b"early "
    peer.sendall(b"later")
    peer.shutdown(socket.SHUT_WR)
    await wait_all_tasks_blocked()
    assert owner.heard == ["later", "ended"]


async def test_an_end_that_came_before_handing_over_is_told_to_the_owner(dialogue: Pair) -> None:
    ours, peer = dialogue
    peer.sendall(b"request")
    peer.shutdown(socket.SHUT_WR)
    await wait_all_tasks_blocked()
    owner = Owner()
    assert ours.hand_over(owner) == b"request"
    assert owner.heard == []
    await wait_all_tasks_blocked()
    assert owner.heard == ["ended"]


async def test_connecting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with await connect_tcp("127.0.0.1", port) as sock:
            assert sock.getpeername() == ("127.0.0.1", port)
            assert not sock.getblocking()
    with pytest.raises(ConnectionRefusedError):
        await connect_tcp("127.0.0.1", port)
    path = str(tmp_path / "a.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        with pytest.raises(ConnectionRefusedError):
            await connect_unix(path)
        server.listen()
        with await connect_unix(path) as sock:
            assert sock.getpeername() == path
    with pytest.raises(FileNotFoundError):
        await connect_unix(path + ".gone")


async def test_a_connect_that_is_cancelled_leaves_no_socket() -> None:
    """A listener with a full backlog answers nothing; a ResourceWarning would fail the test."""
    with socket.socket() as server, trio.move_on_after(0) as scope:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        address = server.getsockname()
        with socket.create_connection(address):
            await connect_tcp(*address)
    assert scope.cancelled_caught


async def test_a_peer_that_has_vanished_is_noticed_by_keepalive() -> None:
    lane = Lane()
    server = socket.create_server(("127.0.0.1", 0))
    peer = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    with server, peer, accepted:
        Conversation(lane, accepted)
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
        lane.detach(accepted.fileno())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lane.run)
        nursery.cancel_scope.cancel()
