"""A TCP relay as a program of its own: delays, holds, cuts and heals what passes between two loopback ports.

    python relay_program.py LISTEN_HOST LISTEN_PORT SERVER_HOST SERVER_PORT CONTROL_SOCKET

Each connection has two directions, "to_server" and "to_client", and each direction a queue of chunks in their order,
with the moment at which each may leave. A close is queued behind the bytes before it, and is passed on as a close (a
reset becomes an ordinary close: what arrived before it is delivered, as a healed network does). Held queues keep
everything; beyond LIMIT bytes the relay stops reading, as a full network does.

The control socket takes one JSON object per line and answers each when it has taken effect; relay.py has the verbs.
It needs nothing but the standard library, and no thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
import sys
import time
from collections import deque
from typing import Any, Final

LIMIT: Final = 64 * 1024 * 1024
"""Bytes that one direction of one connection keeps before its sender is made to wait."""

CHUNK: Final = 256 * 1024

RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER with a linger time of 0 s: close() resets

DIRECTIONS: Final = ("to_server", "to_client")


class Rule:
    """What holds for one direction of all connections."""

    def __init__(self) -> None:
        self.delay = 0.0  # seconds
        self.held = False


class Direction:
    """One direction of one connection: what was read from `source` and waits to be written to `target`."""

    def __init__(self, rule: Rule, source: socket.socket, target: socket.socket) -> None:
        self.rule = rule
        self.source = source
        self.target = target
        self.queue: deque[tuple[float, bytes]] = deque()  # (when it may leave, bytes; b"" is a close)
        self.size = 0
        self.passed = 0
        self.ended = False  # nothing more will be read
        self.finished = False  # the close was passed on

    def put(self, chunk: bytes) -> None:
        self.queue.append((time.monotonic() + self.rule.delay, chunk))
        self.size += len(chunk)
        self.ended = self.ended or not chunk

    def drop(self) -> None:
        """Forgets the bytes that wait, as a network does; a close stays."""
        self.queue = deque(entry for entry in self.queue if not entry[1])
        self.size = 0

    def due(self) -> float | None:
        """When the first chunk may leave; None when nothing waits or it is held."""
        return None if self.rule.held or not self.queue else self.queue[0][0]

    def pump(self, now: float) -> bool:
        """Writes what is due; true when the target is full. OSError when the target is gone."""
        while self.queue and not self.rule.held and self.queue[0][0] <= now:
            due, chunk = self.queue[0]
            if not chunk:
                self.target.shutdown(socket.SHUT_WR)
                self.queue.popleft()
                self.finished = True
                return False
            try:
                sent = self.target.send(chunk)
            except BlockingIOError:
                return True
            self.size -= sent
            self.passed += sent
            if sent < len(chunk):
                self.queue[0] = (due, chunk[sent:])
                return True
            self.queue.popleft()
        return False


class Connection:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, client: socket.socket, server: socket.socket, rules: dict[str, Rule]) -> None:
        self.client = client
        self.server = server
        self.directions = {
            "to_server": Direction(rules["to_server"], client, server),
            "to_client": Direction(rules["to_client"], server, client),
        }
        self.interest = {client: 0, server: 0}


class Relay:
    """All connections, and the control socket, in one selector."""

    def __init__(self, listen: tuple[str, int], server: tuple[str, int], control: str) -> None:
        self.selector = selectors.DefaultSelector()
        self.listen = listen
        self.server = server
        self.rules = {name: Rule() for name in DIRECTIONS}
        self.connections: set[Connection] = set()
        self.accepted = 0
        self.passed_before = dict.fromkeys(DIRECTIONS, 0)  # by connections that are closed
        self.listener: socket.socket | None = None
        self.heal()
        self.control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(control)
        self.control.bind(control)
        self.control.listen(8)
        self.selector.register(self.control, selectors.EVENT_READ, self.accept_control)

    # ------------------------------------------------------------------ the loop

    def run(self) -> None:
        while True:
            for key, events in self.selector.select(self._timeout()):
                registered = self.selector.get_map().get(key.fd)
                if registered is not None and registered.fileobj is key.fileobj:  # not closed by an event before it
                    key.data(events)
            now = time.monotonic()
            for connection in list(self.connections):
                self._pump(connection, now)

    def _timeout(self) -> float | None:
        due = [
            moment
            for connection in self.connections
            for direction in connection.directions.values()
            if not (connection.interest[direction.target] & selectors.EVENT_WRITE)
            and (moment := direction.due()) is not None
        ]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _accept(self, _: int) -> None:
        assert self.listener is not None
        client, _address = self.listener.accept()
        server = socket.socket()
        try:
            server.connect(self.server)  # loopback: at once, or refused
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.close()
            server.close()
            return
        self.accepted += 1
        for side in (client, server):
            side.setblocking(False)
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(client, server, self.rules)
        self.connections.add(connection)
        self._pump(connection, time.monotonic())

    def _read(self, connection: Connection, direction: Direction) -> None:
        try:
            chunk = direction.source.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""  # a reset; what was read before it is still delivered
        direction.put(chunk)

    def _pump(self, connection: Connection, now: float) -> None:
        full: dict[socket.socket, bool] = {}
        for direction in connection.directions.values():
            try:
                full[direction.target] = direction.pump(now)
            except OSError:
                self._close(connection)
                return
        if all(direction.finished for direction in connection.directions.values()):
            self._close(connection)
            return
        for direction in connection.directions.values():
            reading = not direction.ended and direction.size < LIMIT
            self._watch(connection, direction.source, reading, full[direction.source])

    def _watch(self, connection: Connection, side: socket.socket, reading: bool, writing: bool) -> None:
        wanted = (selectors.EVENT_READ if reading else 0) | (selectors.EVENT_WRITE if writing else 0)
        known = connection.interest[side]
        if wanted == known:
            return
        connection.interest[side] = wanted

        def ready(events: int) -> None:
            if events & selectors.EVENT_READ:
                name = "to_server" if side is connection.client else "to_client"
                self._read(connection, connection.directions[name])

        if not wanted:
            self.selector.unregister(side)
        elif known:
            self.selector.modify(side, wanted, ready)
        else:
            self.selector.register(side, wanted, ready)

    def _close(self, connection: Connection, reset: bool = False) -> None:
        self.connections.discard(connection)
        for name, direction in connection.directions.items():
            self.passed_before[name] += direction.passed
        for side in (connection.client, connection.server):
            if connection.interest[side]:
                self.selector.unregister(side)
            if reset:
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            side.close()

    # ------------------------------------------------------------------ control

    def accept_control(self, _: int) -> None:
        """Serves one controller at a time; it is our own and does not stall."""
        side, _address = self.control.accept()
        lines = side.makefile("rb")

        def serve(_events: int) -> None:
            line = lines.readline()
            if line:
                side.sendall(json.dumps(self.obey(json.loads(line))).encode() + b"\n")
                return
            self.selector.unregister(side)
            lines.close()
            side.close()

        self.selector.register(side, selectors.EVENT_READ, serve)

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carries out one order; the answer is the state after it."""
        names = [order["direction"]] if order.get("direction") else list(DIRECTIONS)
        match order["do"]:
            case "delay":
                for name in names:
                    self.rules[name].delay = order["seconds"]
            case "hold":
                for name in names:
                    self.rules[name].held = True
            case "cut":
                self.cut()
            case "reset":
                for connection in list(self.connections):
                    self._close(connection, reset=True)
            case "heal":
                if order["drop"]:
                    for connection in list(self.connections):
                        self._close(connection, reset=True)
                self.heal()
        return self.state()

    def cut(self) -> None:
        """Resets every connection and refuses new ones."""
        if self.listener is not None:
            self.selector.unregister(self.listener)
            self.listener.close()
            self.listener = None
        for connection in list(self.connections):
            self._close(connection, reset=True)

    def heal(self) -> None:
        """Everything passes again, at once, and new connections are accepted."""
        for rule in self.rules.values():
            rule.held = False
            rule.delay = 0.0
        if self.listener is None:
            self.listener = socket.create_server(self.listen, backlog=512)
            self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        now = time.monotonic()
        for connection in self.connections:
            for direction in connection.directions.values():
                direction.queue = deque((now, chunk) for _, chunk in direction.queue)

    def state(self) -> dict[str, Any]:
        """Counts: connections open and ever accepted, bytes passed and kept by direction."""
        passed = dict(self.passed_before)
        kept = dict.fromkeys(DIRECTIONS, 0)
        for connection in self.connections:
            for name, direction in connection.directions.items():
                passed[name] += direction.passed
                kept[name] += direction.size
        return {"open": len(self.connections), "accepted": self.accepted, "passed": passed, "kept": kept}


if __name__ == "__main__":
    host, port, server_host, server_port, control_path = sys.argv[1:6]
    Relay((host, int(port)), (server_host, int(server_port)), control_path).run()
