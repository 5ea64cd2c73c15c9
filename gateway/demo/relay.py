"""A network between a client and one server that can be slow, silent or broken, steered while it runs.

The relay is a process of its own (relay_program.py), so that it neither slows the caller nor is slowed by it. Each
order has taken effect when its method returns.

    relay = Relay(stack, server.host, server.port)
    relay.start()                               # clients connect to relay.address
    relay.delay(0.2, "to_client")               # what the server sends arrives 200 ms later
    relay.hold()                                # a black hole: bytes are taken and kept, nothing is closed
    relay.heal()                                # what was kept is delivered, late, in order
    relay.cut()                                 # connections are reset, new ones refused
    relay.heal()
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from gateway.demo.servers import Server
from gateway.demo.stack import ServerFailedError, Stack

RelayDirection = Literal["to_server", "to_client"]

LIMIT: Final = 64 * 1024 * 1024
"""Bytes that one direction of one connection keeps; relay_program.py has the same number."""

PROGRAM: Final = Path(__file__).with_name("relay_program.py")


@dataclass(frozen=True)
class RelayState:
    """What a relay has done: connections open and ever accepted; bytes passed on, and kept at this moment."""

    open: int
    accepted: int
    passed: dict[str, int]
    kept: dict[str, int]


class Relay(Server):
    """A relay in front of `server_host:server_port`."""

    label = "relay"

    def __init__(self, stack: Stack, server_host: str, server_port: int, name: str | None = None) -> None:
        super().__init__(stack, name)
        self.server = (server_host, server_port)

    @property
    def _control(self) -> str:
        return str(self.stack.folder / f"{self.name}.sock")

    def command(self) -> list[str]:
        places = [self.host, str(self.port), self.server[0], str(self.server[1]), self._control]
        return [sys.executable, "-I", "-S", str(PROGRAM), *places]

    def ready(self) -> bool:
        with contextlib.suppress(OSError):
            self.state()
            return True
        return False

    def delay(self, seconds: float, direction: RelayDirection | None = None) -> None:
        """What is read from now on leaves `seconds` later, in one direction or both; 0 ends that."""
        self._order("delay", direction=direction, seconds=seconds)

    def hold(self, direction: RelayDirection | None = None) -> None:
        """Takes and keeps everything, closes nothing, and accepts new connections: a black hole, as ends see it."""
        self._order("hold", direction=direction)

    def cut(self) -> None:
        """Resets every connection and refuses new ones, until heal."""
        self._order("cut")

    def reset(self) -> None:
        """Resets every connection; new ones are welcome."""
        self._order("reset")

    def heal(self, *, drop: bool = False) -> None:
        """Ends delays, hold and cut. What was kept is delivered at once, also for clients that have gone.

        drop: it is thrown away instead, and the connections that were open are reset.
        """
        self._order("heal", drop=drop)

    def state(self) -> RelayState:
        """What it has done so far."""
        return RelayState(**self._order("state"))

    def _order(self, do: str, **more: object) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
            control.settimeout(10.0)
            control.connect(self._control)
            control.sendall(json.dumps({"do": do, **more}).encode() + b"\n")
            with control.makefile("rb") as answers:
                line = answers.readline()
        if not line:
            raise ServerFailedError(f"{self.name} has ended:\n{self.process.log_tail() if self.process else ''}")
        state: dict[str, Any] = json.loads(line)
        return state
