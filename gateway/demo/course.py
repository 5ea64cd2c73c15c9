"""The course of the demo: start everything, let clients work, stop a replica, bring it back, and judge what was seen.

Plain synchronous code in one thread, beside the clients' threads; `gateway.cli.demo` shows it to a person.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from gateway.demo import programs
from gateway.demo.cache import CacheClient, cache_clients
from gateway.demo.clients import Client, Tally, Violation
from gateway.demo.gateway_process import WEIGHTS, GatewayServer, require_rules
from gateway.demo.mysql_servers import Flavor, MysqlFamilyServer, MysqlGroup, mysql_group
from gateway.demo.servers import MemcachedPools, memcached_group
from gateway.demo.shop import ShopClient, open_shop, shop_clients
from gateway.demo.stack import ServerFailedError, Stack

LOOK_SECONDS: Final = 0.5  # between looks at the gateway's status
RATE_LOOKS: Final = 5  # looks that a rate is taken over
PATIENCE_SECONDS: Final = 30.0  # for what takes a moment on an idle machine: a replica that catches up, a last answer
DOWN_AFTER: Final = (0.3, 10.0)  # when the replica is stopped: a share of the whole time, at most so many seconds
DOWN_FOR: Final = (0.3, 10.0)


class StatusWatch(Client):
    """Asks the gateway for its status, as `gateway status --json` does, and checks the ledger whenever it looks."""

    def __init__(self, gateway: GatewayServer) -> None:
        super().__init__("status", LOOK_SECONDS)
        self.last: dict[str, Any] = {}
        self._gateway = gateway

    def connect(self) -> None:
        """Each look has its own connection."""

    def close(self) -> None:
        """Nothing is open between two looks."""

    def step(self) -> None:
        self.last = self._gateway.status()
        for name, ledger in ledgers(self.last).items():
            if ledger["balance"]:
                raise Violation(f"the ledger of {name} does not add up: {ledger}")
            self.tally.held["the ledger adds up"] += 1


class Course:
    """One run of the demo on a stack of its own. `say` is called with each event, in words."""

    def __init__(self, stack: Stack, flavor: Flavor, seconds: float, say: Callable[[str], None]) -> None:
        require_rules()  # and all else that may be missing, before anything is started
        (programs.mariadbd if flavor == "mariadb" else programs.mysqld)()
        programs.memcached()
        self.stack = stack
        self.flavor = flavor
        self.seconds = seconds
        self.began = 0.0
        self.group: MysqlGroup
        self.pools: MemcachedPools
        self.gateway: GatewayServer
        self.watch: StatusWatch
        self.shop: list[ShopClient] = []
        self.cache: list[CacheClient] = []
        self.down: MysqlFamilyServer
        self.down_at = self.back_at = 0.0
        self.reads_meanwhile = self.reads_after_return = 0
        self._say = say
        self._looks: deque[tuple[float, Counter[int]]] = deque(maxlen=RATE_LOOKS)

    # -- acts

    def set_up(self) -> None:
        """Starts the servers and the gateway, and fills the shop."""
        name = "MariaDB" if self.flavor == "mariadb" else "MySQL"
        self._say(f"starting a {name} primary with two replicas, and memcached pools of two and three servers")
        self.group = mysql_group(self.stack, self.flavor, replicas=2, name="sql")
        self.pools = memcached_group(self.stack, {pool: len(weights) for pool, weights in WEIGHTS.items()})
        open_shop(self.group)
        self._say("starting the gateway")
        self.gateway = GatewayServer(self.stack, self.group, self.pools)
        self.gateway.start()
        self.gateway.wait_whole(PATIENCE_SECONDS)
        self.watch = StatusWatch(self.gateway)
        self.shop = shop_clients(self.gateway)
        self.cache = cache_clients(self.gateway)

    @contextlib.contextmanager
    def clients_at_work(self) -> Iterator[None]:
        """Inside, the clients work; after it they have ended."""
        clients = self.clients
        for client in clients:
            client.start()
        self.began = time.monotonic()
        self._say(f"{len(self.shop)} SQL clients and {len(self.cache)} memcached clients are at work")
        try:
            yield
        finally:
            for client in clients:
                client.stop()
        for client in clients:
            client.join(PATIENCE_SECONDS)

    def play(self) -> None:
        """What happens while the clients work; takes about `seconds`."""
        self._wait_until(self.began + _at_most(DOWN_AFTER, self.seconds))
        self.down = self.group.replicas[1]
        before = self.tally().reads
        self._say(f"stopping the replica {self.down.address}: watch its reads move")
        self.down_at = time.monotonic()
        self.down.stop()
        self._wait_until(self.down_at + _at_most(DOWN_FOR, self.seconds))
        self._say(f"bringing the replica {self.down.address} back")
        self.reads_meanwhile = sum((self.tally().reads - before).values())
        self.back_at = time.monotonic()
        self.down.start()
        self.group.wait_replicating(self.down)
        came_back = self.tally().reads[self.down.server_id]
        self._wait_until(
            time.monotonic() + PATIENCE_SECONDS, lambda: self.tally().reads[self.down.server_id] > came_back
        )
        self._say(f"the replica {self.down.address} is back after {time.monotonic() - self.back_at:.1f} s")
        self._wait_until(self.began + self.seconds)
        self.reads_after_return = self.tally().reads[self.down.server_id] - came_back

    def settle(self) -> None:
        """After the clients have ended: waits until every replica has everything."""
        self.group.wait_caught_up(PATIENCE_SECONDS)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while any(ledger["pending"] for ledger in ledgers(self.gateway.status()).values()):
            if time.monotonic() > deadline:
                raise ServerFailedError(f"memcached writes are still pending: {ledgers(self.gateway.status())}")
            time.sleep(0.05)
        self.watch.last = self.gateway.status()

    def _wait_until(self, moment: float, enough: Callable[[], bool] = lambda: False) -> None:
        while time.monotonic() < moment and not enough():
            if not self._looks or time.monotonic() - self._looks[-1][0] >= LOOK_SECONDS:
                self._looks.append((time.monotonic(), self.tally().reads))
            time.sleep(0.05)

    # -- what was seen

    @property
    def clients(self) -> list[Client]:
        """All of them, the look at the status among them."""
        return [self.watch, *self.shop, *self.cache]

    def tally(self) -> Tally:
        """What all clients have seen so far."""
        sum_ = Tally()
        for client in self.clients:
            sum_.add(client.tally)
        return sum_

    def reads_per_second(self) -> dict[int, float]:
        """SQL reads that the clients were served lately, by server id."""
        if len(self._looks) < 2:
            return {}
        (first, before), (last, after) = self._looks[0], self._looks[-1]
        return {
            server.server_id: (after[server.server_id] - before[server.server_id]) / (last - first)
            for server in self.group.servers
        }


def ledgers(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The ledger of each memcached replica server in a status document, by "pool server"."""
    return {
        f"{pool['pool']} {server['server']}": server["ledger"]
        for group in status["groups"].values()
        if group["engine"] == "memcached"
        for pool in group["replicas"]
        for server in pool["servers"]
    }


def _at_most(share_and_limit: tuple[float, float], seconds: float) -> float:
    share, limit = share_and_limit
    return min(share * seconds, limit)
