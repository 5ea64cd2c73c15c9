"""A relay passes, delays, holds, cuts and heals."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from gateway.demo.relay import LIMIT, Relay
from gateway.demo.stack import Stack

pytestmark = pytest.mark.servers


class Ends:
    """A relay between clients of this test and a listening socket of this test."""

    def __init__(self, stack: Stack, cleanup: ExitStack) -> None:
        self.cleanup = cleanup
        self.listener = cleanup.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.listener.settimeout(10.0)
        self.relay = Relay(stack, *self.listener.getsockname())
        self.relay.start()

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """A client's end and the server's end of one connection."""
        client = self.cleanup.enter_context(socket.create_connection((self.relay.host, self.relay.port), timeout=10.0))
        server, _ = self.listener.accept()
        self.cleanup.enter_context(server)
        server.settimeout(10.0)
        return client, server


@pytest.fixture
def ends(stack: Stack) -> Iterator[Ends]:
    with ExitStack() as cleanup:
        yield Ends(stack, cleanup)


def receive(side: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size and (chunk := side.recv(size - len(received))):
        received += chunk
    return received


def silent(side: socket.socket, seconds: float = 0.1) -> bool:
    """Whether nothing arrives, not even a close, for so long."""
    side.settimeout(seconds)
    try:
        return bool(side.recv(1)) and False
    except TimeoutError:
        return True
    finally:
        side.settimeout(10.0)


def test_bytes_pass_both_ways_and_a_half_close_too(ends: Ends) -> None:
    client, server = ends.connect()
    client.sendall(b"question")
    assert receive(server, 8) == b"question"
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    server.sendall(b"answer")
    assert receive(client, 6) == b"answer"
    server.close()
    assert client.recv(1) == b""


def test_megabytes_pass_whole(ends: Ends) -> None:
    client, server = ends.connect()
    payload = bytes(range(256)) * 4096
    for _ in range(8):
        client.sendall(payload)
        assert receive(server, len(payload)) == payload
    assert ends.relay.state().passed["to_server"] == 8 * len(payload)


def test_a_delay_holds_for_its_direction_only(ends: Ends) -> None:
    client, server = ends.connect()
    ends.relay.delay(0.15, "to_client")
    began = time.monotonic()
    client.sendall(b"q")
    assert receive(server, 1) == b"q"
    assert time.monotonic() - began < 0.15
    server.sendall(b"a")
    sent = time.monotonic()
    assert receive(client, 1) == b"a"
    assert time.monotonic() - sent >= 0.149


def test_what_is_held_is_delivered_late_and_in_order_after_heal(ends: Ends) -> None:
    client, server = ends.connect()
    ends.relay.hold()
    client.sendall(b"one ")
    client.sendall(b"two")
    assert silent(server)
    ends.relay.heal()
    assert receive(server, 7) == b"one two"


def test_a_black_hole_takes_connections_and_closes_nothing(ends: Ends) -> None:
    ends.relay.hold()
    client, server = ends.connect()
    client.sendall(b"lost")
    assert silent(client)
    assert silent(server)


def test_bytes_of_a_client_that_reset_arrive_late_after_heal_then_the_close(ends: Ends) -> None:
    client, server = ends.connect()
    ends.relay.hold()
    client.sendall(b"late")
    while ends.relay.state().kept["to_server"] < 4:
        pass
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    assert silent(server)
    ends.relay.heal()
    assert receive(server, 4) == b"late"
    assert server.recv(1) == b""


def test_heal_with_drop_throws_away_what_was_held(ends: Ends) -> None:
    client, server = ends.connect()
    ends.relay.hold("to_server")
    client.sendall(b"lost")
    ends.relay.heal(drop=True)
    with pytest.raises(ConnectionResetError):
        server.recv(1)
    client, server = ends.connect()
    client.sendall(b"new")
    assert receive(server, 3) == b"new"


def test_cut_resets_and_refuses_until_heal(ends: Ends) -> None:
    client, server = ends.connect()
    ends.relay.cut()
    for side in (client, server):
        with pytest.raises(ConnectionResetError):
            side.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((ends.relay.host, ends.relay.port), timeout=10.0)
    ends.relay.heal()
    client, server = ends.connect()
    client.sendall(b"x")
    assert receive(server, 1) == b"x"


def test_reset_ends_connections_and_welcomes_new_ones(ends: Ends) -> None:
    client, _ = ends.connect()
    ends.relay.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    ends.connect()
    assert ends.relay.state().accepted == 2
    assert ends.relay.state().open == 1


def test_a_held_direction_stops_reading_at_its_limit(ends: Ends) -> None:
    client, _ = ends.connect()
    ends.relay.hold()
    client.settimeout(0.5)
    chunk = bytes(1 << 20)
    taken = 0
    try:
        while taken < 2 * LIMIT:
            taken += client.send(chunk)
    except TimeoutError:
        pass
    assert taken < 2 * LIMIT
    assert LIMIT <= ends.relay.state().kept["to_server"] <= LIMIT + (1 << 20)


def test_a_client_is_reset_when_the_server_is_not_there(ends: Ends) -> None:
    ends.listener.close()

    def connect_and_read() -> None:  # the reset may come before connect() has returned
        with socket.create_connection((ends.relay.host, ends.relay.port), timeout=10.0) as client:
            client.recv(1)

    with pytest.raises(ConnectionResetError):
        connect_and_read()
