"""Proves what layers are promised: order, held input in shares, output that waits until they open, and their errors."""

from __future__ import annotations

import socket
import zlib
from collections.abc import AsyncIterator, Iterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.errors import ProtocolError
from gateway.net.connect import Conversation
from gateway.net.endpoint import Endpoint
from gateway.net.lane import Lane
from gateway.net.layers import PIECE_BYTES, PIECES_PER_BATCH, add_layer

Pair = tuple[socket.socket, socket.socket]


class Owner:
    def __init__(self) -> None:
        self.endpoint: Endpoint
        self.heard: list[str] = []
        self.chunks: list[bytes] = []
        self.pause_after = 0
        self.error: Exception | None = None

    def received(self, chunk: bytes) -> None:
        self.chunks.append(chunk)
        if len(self.chunks) == self.pause_after:
            self.endpoint.pause_reading()

    def ended(self) -> None:
        self.heard.append("ended")

    def lost(self, error: OSError) -> None:
        self.heard.append("lost")
        self.error = error

    def overfull(self) -> None:
        self.heard.append("overfull")

    def drained(self) -> None:
        self.heard.append("drained")

    def expired(self) -> None:
        self.heard.append("expired")

    def raised(self, error: Exception) -> None:
        self.heard.append("raised")
        self.error = error


class Inflating:
    """zlib towards the owner, in pieces of at most 10,000 bytes."""

    open = True
    over = wants_to_send = False

    def __init__(self) -> None:
        self._reader = zlib.decompressobj()
        self._writer = zlib.compressobj()

    @property
    def holding(self) -> bool:
        return bool(self._reader.unconsumed_tail)

    def inbound(self, wire: bytes) -> bytes:
        return self._reader.decompress(self._reader.unconsumed_tail + wire, 10_000)

    def outbound(self, plain: bytes) -> bytes:
        return self._writer.compress(plain) + self._writer.flush(zlib.Z_SYNC_FLUSH) if plain else b""

    def ended(self) -> None:
        pass

    def farewell(self) -> bytes:
        return b""


class Knocking:
    """Opens once the peer has answered its knock; everything is turned by one letter afterwards."""

    holding = False

    def __init__(self) -> None:
        self.open = False
        self.over = False
        self._own = b"knock!"
        self.error: Exception | None = None

    @property
    def wants_to_send(self) -> bool:
        return bool(self._own)

    def inbound(self, wire: bytes) -> bytes:
        if self.error is not None and wire:
            self._own = b"oh"
            raise self.error
        if not self.open and wire:
            assert wire.startswith(b"come")
            self.open = True
            wire = wire[4:]
        if b"." in wire:
            self.over = True
            wire = wire[: wire.index(b".")]
        return bytes((byte - 1) % 256 for byte in wire)

    def outbound(self, plain: bytes) -> bytes:
        assert self.open or not plain
        own, self._own = self._own, b""
        return own + bytes((byte + 1) % 256 for byte in plain)

    def ended(self) -> None:
        if not self.open:
            raise ConnectionAbortedError("nobody came to the door")

    def farewell(self) -> bytes:
        return b"."


@pytest.fixture
async def lane(nursery: trio.Nursery) -> AsyncIterator[Lane]:
    lane = Lane()
    nursery.start_soon(lane.run)
    yield lane
    assert len(lane) == 0, "a descriptor stayed registered"
    nursery.cancel_scope.cancel()


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, peer = socket.socketpair()
    with ours, peer:
        yield ours, peer


@pytest.fixture
def owner(lane: Lane, pair: Pair) -> Iterator[Owner]:
    owner = Owner()
    owner.endpoint = Endpoint(lane, pair[0], owner)
    yield owner
    owner.endpoint.close()


async def test_what_the_owner_writes_waits_until_the_layer_is_open(owner: Owner, pair: Pair) -> None:
    owner.endpoint.write(b"plain")
    add_layer(owner.endpoint, Knocking())
    owner.endpoint.write(b"abc")
    owner.endpoint.send(b"def")
    assert pair[1].recv(100) == b"plainknock!"
    assert owner.endpoint.queued == 6
    pair[1].sendall(b"comebcd")
    await wait_all_tasks_blocked()
    assert owner.chunks == [b"abc"]
    assert pair[1].recv(100) == b"bcdefg"
    assert owner.endpoint.queued == 0


async def test_nothing_written_in_the_batch_of_the_switch_leaves_as_it_is(lane: Lane, owner: Owner, pair: Pair) -> None:
    """The flush of the endpoint without layers is due already; what is written after the switch is not its own."""

    def switch() -> None:
        owner.endpoint.write(b"switch ")
        add_layer(owner.endpoint, Knocking(), b"come")
        owner.endpoint.write(b"abc")

    lane.batch(switch)
    assert pair[1].recv(100) == b"switch knock!bcd"


async def test_what_came_for_the_layer_reaches_the_owner_only_through_it(lane: Lane, pair: Pair) -> None:
    conversation = Conversation(lane, pair[0])
    pair[1].sendall(b"switch|comebcd")
    assert await conversation.receive() == b"switch|comebcd"
    pair[1].sendall(b"efg")
    await wait_all_tasks_blocked()
    conversation.add_layer(Knocking(), b"comebcd")
    assert await conversation.receive() == b"abcdef"
    conversation.close()


async def test_a_dialogue_that_held_its_limit_goes_on_reading_for_the_layer(lane: Lane, pair: Pair) -> None:
    conversation = Conversation(lane, pair[0], 3)
    pair[1].sendall(b"come")
    await wait_all_tasks_blocked()
    assert not conversation.endpoint.reading
    conversation.add_layer(Knocking())
    pair[1].sendall(b"bcd")
    with trio.fail_after(5):
        assert await conversation.receive() == b"abc"
    conversation.close()


async def test_layers_stand_on_each_other(owner: Owner, pair: Pair) -> None:
    add_layer(owner.endpoint, Knocking(), b"come")
    owner.endpoint.write(b"plain")
    add_layer(owner.endpoint, Inflating())
    owner.endpoint.write(b"deflated")
    wire = pair[1].recv(1000)
    assert wire.startswith(b"knock!qmbjo")
    assert zlib.decompressobj().decompress(bytes((byte - 1) % 256 for byte in wire[11:])) == b"deflated"


@pytest.mark.parametrize("pause_after", [0, 3])
async def test_what_a_layer_holds_comes_in_shares_and_while_the_owner_reads(
    lane: Lane, owner: Owner, pair: Pair, pause_after: int
) -> None:
    add_layer(owner.endpoint, Inflating())
    owner.pause_after = pause_after
    plain = bytes(1_000_000)
    pair[1].sendall(zlib.compress(plain))
    pair[1].shutdown(socket.SHUT_WR)
    before = lane.batches
    await wait_all_tasks_blocked()
    if pause_after:
        assert len(owner.chunks) == pause_after
        assert owner.heard == []
        owner.endpoint.resume_reading()
        owner.endpoint.pause_reading()
        owner.endpoint.resume_reading()
        await wait_all_tasks_blocked()
    assert b"".join(owner.chunks) == plain
    assert max(map(len, owner.chunks)) == 10_000
    assert lane.batches - before >= 100, "more than one share in a batch"
    assert owner.heard == ["ended"], "it ends when everything was delivered"


async def test_the_end_within_a_layer_is_an_end_and_answers_can_still_be_written(owner: Owner, pair: Pair) -> None:
    add_layer(owner.endpoint, Knocking(), b"come")
    pair[1].sendall(b"bcd.")
    await wait_all_tasks_blocked()
    assert owner.chunks == [b"abc"]
    assert owner.heard == ["ended"]
    owner.endpoint.write(b"abc")
    owner.endpoint.finish()
    assert pair[1].recv(100) == b"knock!bcd."
    assert pair[1].recv(100) == b""


async def test_an_end_beneath_that_the_layer_does_not_accept_is_a_loss(owner: Owner, pair: Pair) -> None:
    add_layer(owner.endpoint, Knocking())
    pair[1].shutdown(socket.SHUT_WR)
    await wait_all_tasks_blocked()
    assert owner.heard == ["lost"]
    assert str(owner.error) == "nobody came to the door"
    assert owner.endpoint.closed


async def test_a_layer_that_fails_says_its_last_and_the_connection_is_lost(owner: Owner, pair: Pair) -> None:
    layer = Knocking()
    layer.error = ConnectionAbortedError("no")
    add_layer(owner.endpoint, layer)
    pair[1].sendall(b"what?")
    await wait_all_tasks_blocked()
    assert owner.heard == ["lost"]
    assert owner.error is layer.error
    assert pair[1].recv(100) == b"knock!oh."


async def test_any_other_error_of_a_layer_is_the_owners_to_answer(owner: Owner, pair: Pair) -> None:
    layer = Knocking()
    add_layer(owner.endpoint, layer, b"come")
    layer.error = ProtocolError("not of this protocol")
    pair[1].sendall(b"what?")
    await wait_all_tasks_blocked()
    assert owner.heard == ["raised"]
    assert owner.error is layer.error
    assert not owner.endpoint.reading
    owner.endpoint.write(b"no")
    owner.endpoint.finish()
    assert pair[1].recv(100) == b"knock!ohop."


async def test_finishing_before_the_layer_is_open_closes_at_once(owner: Owner, pair: Pair) -> None:
    add_layer(owner.endpoint, Knocking())
    owner.endpoint.write(b"never")
    owner.endpoint.finish()
    assert owner.endpoint.closed
    assert pair[1].recv(100) == b"knock!."


async def test_a_large_write_is_encoded_in_pieces_as_the_peer_takes_them(lane: Lane, owner: Owner, pair: Pair) -> None:
    encoded: list[int] = []

    class Counting(Inflating):
        def outbound(self, plain: bytes) -> bytes:
            encoded.append(len(plain))
            return plain

    add_layer(owner.endpoint, Counting())
    plain = bytes(20_000_000)
    owner.endpoint.write(plain)
    assert sum(encoded) <= PIECE_BYTES * PIECES_PER_BATCH, "more than its share of a batch"
    assert owner.heard == ["overfull"]
    got = 0
    while got < len(plain):
        await wait_all_tasks_blocked()
        assert sum(encoded) <= got + 3_000_000, "encoded far ahead of the peer"
        got += len(pair[1].recv(1 << 20))
    await wait_all_tasks_blocked()
    assert max(encoded) == PIECE_BYTES
    assert owner.heard == ["overfull", "drained"]
    assert owner.endpoint.queued == 0


async def test_small_writes_of_a_batch_are_encoded_together(lane: Lane, owner: Owner, pair: Pair) -> None:
    encoded: list[int] = []

    class Counting(Knocking):
        def outbound(self, plain: bytes) -> bytes:
            encoded.extend([len(plain)] if plain else [])
            return super().outbound(plain)

    add_layer(owner.endpoint, Counting(), b"come")

    def write_little() -> None:
        for _ in range(1000):
            owner.endpoint.write(b"a")

    lane.batch(write_little)
    assert pair[1].recv(2000) == b"knock!" + b"b" * 1000
    assert encoded == [1000]
