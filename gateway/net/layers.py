"""Layers between an endpoint's socket and its owner: TLS, compression; each a machine that turns bytes into bytes.

A layer does no IO. The endpoint gives it what arrived (`inbound`, the result is the owner's) and what the owner wrote
(`outbound`, the result is the wire's); layers stand on each other, the newest is next to the owner:

    socket  <->  TLS  <->  compression  <->  owner

`add_layer(endpoint, layer)` (or `Conversation.add_layer`) puts one on. What was written before leaves without it; what
comes from then on goes through it, `received` first: bytes that arrived behind the request to switch belong to the
layer, never to the owner (else somebody in the middle could put plain bytes in front of an encrypted dialogue).

An endpoint without layers pays nothing for all this: with its first layer it becomes a `LayeredEndpoint`, by class.
Its owner notices nothing: watermarks, half-close, `finish`, `close`, `reset`, shares and deadlines mean the same.

How. What the owner writes is kept as it is (`_plain`) and goes through the layers in pieces of PIECE_BYTES, and only
when the kernel has taken all of the last piece: a small answer becomes one TLS record with all that its batch wrote, a
large one full records, and no more than a piece of it is ever held twice. `queued` counts both sides.

What a layer has to promise:

- `inbound` returns what its bytes hold, at most some PIECE_BYTES at a time: if there is more, `holding` is true, and it
  is asked again with b"" when the owner reads (it may have paused). b"" asked of a layer that holds nothing gives b"".
- `outbound(b"")` returns what the layer itself wants to send (handshake, ticket, alert); `outbound(plain)` has that in
  front, and may return b"" for what it keeps until more comes. `wants_to_send` says that there is something. While
  `open` is false only b"" is asked: what the owner writes waits. It changes in `inbound` only.
- `over` is true once the peer has ended its side within the layer and nothing is held any more: the owner is told
  `ended`. `ended()` is called when the peer ended the connection beneath; it raises OSError if that is no way to end.
- `farewell` returns what is sent last (close_notify); b"" where there is nothing to say.
- An OSError that any of them raises means that the connection is lost: the owner is told `lost`, after what the layer
  still wants to send was sent. Any other exception is told by `raised`, as ever: a ProtocolError gets its answer.
"""

from __future__ import annotations

import contextlib
from typing import Final, Protocol

from gateway.net.endpoint import Endpoint
from gateway.net.lane import GONE, READ, WRITE

PIECE_BYTES: Final = 131_072  # through the layers at once: eight TLS records, and one receive from a server
PIECES_PER_BATCH: Final = 8  # to one socket that takes them all; encoding 1 MiB takes TLS about 1 ms


class Layer(Protocol):
    """What stands between a socket and its owner; see above."""

    @property
    def open(self) -> bool:
        """Whether `outbound` takes the owner's bytes."""

    @property
    def holding(self) -> bool:
        """Whether `inbound(b"")` has more for the owner."""

    @property
    def over(self) -> bool:
        """Whether the peer has said that it will send nothing more."""

    @property
    def wants_to_send(self) -> bool:
        """Whether `outbound(b"")` has something."""

    def inbound(self, wire: bytes) -> bytes: ...

    def outbound(self, plain: bytes) -> bytes: ...

    def ended(self) -> None: ...

    def farewell(self) -> bytes: ...


def add_layer(endpoint: Endpoint, layer: Layer, received: bytes = b"") -> None:
    """Puts `layer` between the endpoint's owner and what is there already.

    `received` came for the layer and was taken by somebody else. The owner may be called meanwhile.
    """
    if isinstance(endpoint, LayeredEndpoint):
        endpoint.settle()
    else:
        endpoint._send_batch()
        endpoint.__class__ = LayeredEndpoint
        assert isinstance(endpoint, LayeredEndpoint)
        endpoint.begin()
    layered = endpoint
    layered._layers.append(layer)
    if not layered.closed:
        layered.lane.batch(lambda: layered.deliver(received))


def has_layer(endpoint: Endpoint, kind: type) -> bool:
    """Whether an endpoint has a layer of this kind."""
    return isinstance(endpoint, LayeredEndpoint) and any(isinstance(layer, kind) for layer in endpoint._layers)


class LayeredEndpoint(Endpoint):
    """An endpoint with layers. `_out` stays empty: nothing that the owner writes reaches the socket as it is."""

    __slots__ = ()

    _layers: list[Layer]  # the first is next to the socket
    _plain: list[bytes | memoryview]  # written by the owner
    _open: bool  # whether all layers are
    _more_due: bool  # the lane was asked to deliver what is held

    def begin(self) -> None:
        """What a constructor would do."""
        self._layers = []
        self._plain = []
        self._open = False
        self._more_due = False

    # -- receiving

    def on_event(self, mask: int) -> None:
        if mask & READ and self._reading and not self._more_due:
            try:
                chunk = self.sock.recv(self.receive_bytes)
            except (BlockingIOError, InterruptedError):
                chunk = None
            except OSError as error:
                self._lose(error)
                return
            if chunk:
                self.bytes_in += len(chunk)
                self.deliver(chunk)
            elif chunk is not None:
                self._end_beneath()
        if mask & WRITE and not self.closed:
            self._send_waiting()
        if mask & GONE and not self._reading and not self.closed:
            self._gone()

    def deliver(self, chunk: bytes) -> None:
        """Takes bytes from beneath through the layers to the owner, and sends what the layers answer."""
        wants_to_send = holding = over = False
        opened = True
        try:
            for layer in self._layers:
                chunk = layer.inbound(chunk)
                wants_to_send |= layer.wants_to_send
                holding |= layer.holding
                over |= layer.over
                opened &= layer.open
        except OSError as error:
            self._say_last()
            self._lose(error)
            return
        self._open = opened
        if wants_to_send or (opened and self._plain):
            self.lane.after_batch(self._send_batch)
        if chunk:
            self.owner.received(chunk)
        if self._reading:  # neither paused nor closed by its owner
            if holding:
                self._deliver_more()
            elif over:
                self._end()

    def _deliver_more(self) -> None:
        """What is held comes in the next batch: no poller would announce it."""
        if not self._more_due:
            self._more_due = True
            self.lane.again(self._more, self)

    def _more(self) -> None:
        self._more_due = False
        if self._reading:
            self.deliver(b"")

    def resume_reading(self) -> None:
        if not self._reading:
            super().resume_reading()
            if self._reading and any(layer.holding or layer.over for layer in self._layers):
                self._deliver_more()

    def _end_beneath(self) -> None:
        try:
            for layer in self._layers:
                layer.ended()
        except OSError as error:
            self._lose(error)
            return
        self._end()

    def _end(self) -> None:
        self.eof = True
        self.pause_reading()
        self.owner.ended()

    # -- sending

    def write(self, chunk: bytes) -> None:
        if self.closed or not chunk:
            return
        self._plain.append(chunk)
        if self._blocked or not self._open:
            self._add_queued(len(chunk))
        elif len(self._plain) == 1:
            self.lane.after_batch(self._send_batch)

    def send(self, chunk: bytes) -> None:
        if self._blocked or self._plain or self.closed or not chunk or not self._open:
            self.write(chunk)
            return
        self._plain.append(chunk)
        error = self._send_pieces()
        if error is not None:  # no owner is called from within its own call
            self.lane.again(lambda: None if self.closed else self._lose(error), self)

    def _send_batch(self) -> None:
        if self._blocked or self.closed:
            return
        error = self._send_pieces()
        if error is not None:
            self._lose(error)
        elif not self._blocked:
            self._unblocked()

    def _send_waiting(self) -> None:
        if self._waiting and not self._take_waiting():
            return
        if not self._waiting:
            self._blocked = False
            error = self._send_pieces()
            if error is not None:
                self._lose(error)
                return
            if not self._blocked:
                self._want(self._mask & ~WRITE)
                self._unblocked()
                return
        self._relieve()

    def _unblocked(self) -> None:
        if self._closing:
            self._close_sent()
        else:
            self._relieve()

    def _send_pieces(self) -> OSError | None:
        """Sends what is written, piece by piece, until all is sent or the kernel takes no more: then it is blocked."""
        for _ in range(PIECES_PER_BATCH):
            wire = b""
            try:
                wire = self._encode(self._next_piece())
                sent = self.sock.send(wire) if wire else 0
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                return error
            self.bytes_out += sent
            if sent < len(wire):
                self._waiting.append(memoryview(wire)[sent:])
                break
            if not wire or not self._plain or not self._open:  # a layer that gathers has done its work for now
                break
        if self._waiting or (self._plain and self._open):  # or: it had its share, and the poller calls again at once
            self._blocked = True
            self._want(self._mask | WRITE)
        self._recount()
        return None

    def _next_piece(self) -> bytes:
        plain = self._plain
        if not plain or not self._open:
            return b""
        first = plain[0]
        if len(first) > PIECE_BYTES:
            rest = memoryview(first)
            plain[0] = rest[PIECE_BYTES:]
            return bytes(rest[:PIECE_BYTES])
        if len(plain) == 1:
            plain.clear()
            return bytes(first)
        count, room = 0, PIECE_BYTES
        for chunk in plain:
            room -= len(chunk)
            if room < 0:
                break
            count += 1
        piece = b"".join(plain[:count])
        del plain[:count]
        return piece

    def _encode(self, piece: bytes) -> bytes:
        for layer in reversed(self._layers):
            piece = layer.outbound(piece)
        return piece

    def _recount(self) -> None:
        self.queued = sum(map(len, self._waiting)) + sum(map(len, self._plain))
        if self.queued:
            self._add_queued(0)

    def settle(self) -> None:
        """Takes everything written through the layers that are there: what is written next may go through another."""
        self._send_batch()
        while self._plain and not self.closed:
            if not self._open:
                raise RuntimeError("a layer cannot be added while what was written before waits for another to open")
            if wire := self._encode(self._next_piece()):
                self._waiting.append(memoryview(wire))

    # -- ending

    @property
    def _is_sent(self) -> bool:
        return not self._blocked and not self._plain

    def finish(self) -> None:
        if not self.closed and not self._open:
            self._plain.clear()  # nothing is received any more that could open the layers
        super().finish()

    def close(self) -> None:
        if not self.closed and not self._blocked:
            self._closing = True
            if self._plain and self._open:
                self._send_batch()  # written, and the kernel may still take it
            if not self.closed and not self._blocked:
                self._say_last()
        super().close()

    def _close_sent(self) -> None:
        self._say_last()
        super()._close_sent()

    def _say_last(self) -> None:
        """Tells the peer that this is the end, or why, as far as the kernel takes it at once."""
        wire = b""
        with contextlib.suppress(OSError):  # there is nobody to be told
            for layer in reversed(self._layers):
                wire = layer.outbound(wire) + layer.farewell()
            if wire and not self._blocked:
                self.sock.send(wire)

    def _drop(self) -> None:
        super()._drop()
        self._plain.clear()
