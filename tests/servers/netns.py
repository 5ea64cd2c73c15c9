"""A memcached in a network namespace of its own, behind a pair of virtual cards that can drop every packet.

Fencing needs a network that loses packets: the kernel on the server's side must neither see a reset nor lose the
client's address, which a relay cannot show. The namespace has no name: it belongs to the server's process, and it and
the cards are gone when that process ends, however it ends.

Packets are dropped by a token bucket (tc-tbf(8)) whose bucket is smaller than any packet, on both cards, rather than
by taking a card down, which TCP is told of. netem would say it more plainly, but not every kernel has it. Neighbours
are entered for good, so that no ARP fails meanwhile.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from typing import Final

from gateway.demo.servers import MemcachedServer
from gateway.demo.stack import Stack
from gateway.errors import GatewayError

DROP: Final = ("tbf", "rate", "8bit", "burst", "1", "limit", "1")


class NamespaceUnavailableError(GatewayError):
    """No network namespace can be made here; the text says why."""


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise NamespaceUnavailableError(f"`{' '.join(command)}` says: {done.stderr.strip()}")
    return done.stdout


class NamespacedMemcached(MemcachedServer):
    """memcached at an address of the benchmark network 198.18.0.0/15 (RFC 2544), which nobody routes."""

    label = "namespaced"

    def __init__(self, stack: Stack, name: str | None = None) -> None:
        super().__init__(stack, name)
        if os.geteuid() != 0:
            raise NamespaceUnavailableError("a network namespace needs root")
        for program, package in (("ip", "iproute2"), ("tc", "iproute2"), ("nsenter", "util-linux")):
            if shutil.which(program) is None:
                raise NamespaceUnavailableError(f"{program} is not installed: install the package {package}")
        number = random.randrange(1 << 15)
        third, last = divmod(number * 4, 256)
        self.client_address: Final = f"198.{18 + (third >> 8)}.{third & 255}.{last + 1}"
        self.host = f"198.{18 + (third >> 8)}.{third & 255}.{last + 2}"
        self._cards: Final = (f"gwc{os.getpid() % 65536:x}-{number:x}", f"gws{os.getpid() % 65536:x}-{number:x}")

    def command(self) -> list[str]:
        # it binds before its card exists; unshare makes the namespace and becomes memcached
        place = ["-l", "0.0.0.0", "-p", str(self.port), "-U", "0"]
        return ["unshare", "--net", *self.program.command, "-u", "root", "-t", "1", "-m", "64", *place, *self.options]

    def launch(self) -> None:
        super().launch()
        ours = os.readlink("/proc/self/ns/net")
        assert self.process is not None
        while os.readlink(f"/proc/{self.pid}/ns/net") == ours:  # not in its namespace yet
            if self.process.wait(0.005):
                raise NamespaceUnavailableError(f"unshare --net says: {self.process.log_tail()}")
        here, there = self._cards
        _run("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", str(self.pid))
        _run("ip", "address", "add", f"{self.client_address}/30", "dev", here)
        self._inside("ip", "address", "add", f"{self.host}/30", "dev", there)
        _run("ip", "link", "set", here, "up")
        self._inside("ip", "link", "set", there, "up")
        our_mac = json.loads(_run("ip", "-json", "link", "show", "dev", here))[0]["address"]
        their_mac = json.loads(self._inside("ip", "-json", "link", "show", "dev", there))[0]["address"]
        _run("ip", "neighbour", "replace", self.host, "lladdr", their_mac, "dev", here, "nud", "permanent")
        self._inside(
            "ip", "neighbour", "replace", self.client_address, "lladdr", our_mac, "dev", there, "nud", "permanent"
        )

    def cut(self) -> None:
        """From now on every packet is lost, both ways; neither side is told."""
        here, there = self._cards
        _run("tc", "qdisc", "replace", "dev", here, "root", *DROP)
        self._inside("tc", "qdisc", "replace", "dev", there, "root", *DROP)

    def heal(self) -> None:
        """Packets pass again; what the kernels still retransmit arrives."""
        here, there = self._cards
        _run("tc", "qdisc", "delete", "dev", here, "root")
        self._inside("tc", "qdisc", "delete", "dev", there, "root")

    def _inside(self, *command: str) -> str:
        return _run("nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *command)
