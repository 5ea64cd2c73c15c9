"""While connections are cut, black-holed and healed, and servers stop, no read is stale and the account is right.

Writers own their keys, and every value carries a counter that only grows. The oracle is on the clients' side: a read
that began after a write was acknowledged, or after another read of the key ended, must not return anything older. A
write with an unknown outcome widens what is allowed, until it was seen or overtaken. A miss is always allowed: it is a
cache. When all is healed the replicas must equal the primary key by key.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import pytest
import trio
from memcached_gateway import RunningGateway, memcached_gateway, transcript, until

from gateway.demo.relay import Relay
from gateway.demo.servers import MemcachedServer, start_all
from gateway.demo.stack import Stack

pytestmark = [pytest.mark.servers, pytest.mark.slow]

WRITES = 100_000
WRITERS = 24
KEYS_PER_WRITER = 12
BATCH = 12
PAUSE = 0.04  # seconds between batches, so that the writes last as long as the faults

FAULTS = ("cut", "reset", "hold", "long hold", "hold and drop", "half hold", "late", "stop")


@dataclass
class Key:
    """What is known of one key by what its clients were told."""

    name: bytes
    number: bool  # incremented, never set but once
    floor: int = 0  # no read that begins now may return less
    issued: int = 0  # the newest counter ever sent


@dataclass
class Oracle:
    """Everything that the clients saw."""

    keys: list[Key]
    over: bool = False  # all faults are done
    writes: int = 0
    reads: int = 0
    hits: int = 0
    answers: Counter[bytes] = field(default_factory=Counter)
    stale: list[str] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return self.over and self.writes >= WRITES

    def saw(self, key: Key, floor: int, value: bytes) -> None:
        """A read that began when `floor` held returned this value."""
        counter = int(value.rsplit(b",", 1)[-1])
        self.hits += 1
        if counter < floor or counter > key.issued:
            self.stale.append(f"{key.name!r}: {counter} was read, {floor} to {key.issued} is allowed")
        key.floor = max(key.floor, counter)


class CacheClient:
    """Sends batches of requests and takes their answers apart."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = b""

    async def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            await self._more()
        line, self._buffer = self._buffer[:end], self._buffer[end + 2 :]
        return line

    async def _more(self) -> None:
        chunk = await self._stream.receive_some(65536)
        assert chunk, "the gateway closed a client's connection"
        self._buffer += chunk

    async def ask(self, requests: Sequence[bytes]) -> list[list[bytes]]:
        """Of each request the lines of its answer; of a get, pairs of key and value one after the other."""
        await self._stream.send_all(b"".join(requests))
        answers = []
        for request in requests:
            answer: list[bytes] = []
            line = await self._line()
            if request.startswith(b"get"):
                while line.startswith(b"VALUE "):
                    words = line.split(b" ")
                    size = int(words[3])
                    while len(self._buffer) < size + 2:
                        await self._more()
                    answer += [words[1], self._buffer[:size], words[4] if len(words) > 4 else b""]
                    self._buffer = self._buffer[size + 2 :]
                    line = await self._line()
                assert line == b"END", line
            else:
                answer.append(line)
            answers.append(answer)
        return answers


def write_request(key: Key, dice: random.Random) -> bytes:
    """Some write of the key, with the next counter."""
    key.issued += 1
    value = b"%d" % key.issued
    verb = dice.choice((b"set", b"set", b"set", b"replace", b"add", b"append", b"delete", b"touch", b"set ttl"))
    if verb == b"set ttl":
        return b"set %b 3 600 %d\r\n%b\r\n" % (key.name, len(value), value)
    if verb == b"delete":
        return b"delete %b\r\n" % key.name
    if verb == b"touch":
        return b"touch %b 500\r\n" % key.name
    if verb == b"append":
        value = b"," + value
    return b"%b %b 1 0 %d\r\n%b\r\n" % (verb, key.name, len(value), value)


def learn(oracle: Oracle, key: Key, request: bytes, counter: int, answer: bytes) -> None:
    """What the answer of a write says of its key."""
    oracle.writes += 1
    oracle.answers[b"a number" if answer.isdigit() else answer.split(b":")[0]] += 1
    if answer in (b"STORED", b"DELETED") or (answer == b"NOT_FOUND" and request.startswith(b"delete")):
        key.floor = max(key.floor, counter)
    elif answer.isdigit():
        key.floor = max(key.floor, int(answer))


async def writer(oracle: Oracle, keys: list[Key], address: tuple[str, int], seed: int) -> None:
    dice = random.Random(seed)
    async with await trio.open_tcp_stream(*address) as stream:
        client = CacheClient(stream)
        while not oracle.ended:
            await trio.sleep(dice.uniform(0, 2 * PAUSE))
            requests: list[bytes] = []
            about: list[tuple[Key, int]] = []
            floors: list[int] = []
            for _ in range(BATCH):
                key = dice.choice(keys)
                if dice.random() < 0.25:
                    requests.append(b"get %b\r\n" % key.name)
                elif key.number:
                    key.issued += 1
                    requests.append(b"incr %b 1\r\n" % key.name)
                else:
                    requests.append(write_request(key, dice))
                about.append((key, key.issued))
                floors.append(key.floor)
            with trio.fail_after(60):
                answers = await client.ask(requests)
            for request, (key, counter), floor, answer in zip(requests, about, floors, answers, strict=True):
                if not request.startswith(b"get"):
                    learn(oracle, key, request, counter, answer[0])
                    if key.number and answer[0] == b"NOT_FOUND":
                        await refill(client, oracle, key)
                else:
                    oracle.reads += 1
                    if answer:
                        # Answers of the same batch came before this one: its floor is at least what they said.
                        oracle.saw(key, floor, answer[1])


async def refill(client: CacheClient, oracle: Oracle, key: Key) -> None:
    """A counter that is not there begins above all that it ever was."""
    key.issued += 1
    value = b"%d" % key.issued
    (answer,) = await client.ask([b"add %b 0 0 %d\r\n%b\r\n" % (key.name, len(value), value)])
    learn(oracle, key, b"add", key.issued, answer[0])


async def reader(oracle: Oracle, address: tuple[str, int], seed: int) -> None:
    """Reads other people's keys, several at a time."""
    dice = random.Random(seed)
    async with await trio.open_tcp_stream(*address) as stream:
        client = CacheClient(stream)
        while not oracle.ended:
            keys = dice.sample(oracle.keys, 4)
            floors = {key.name: key.floor for key in keys}
            with trio.fail_after(60):
                (answer,) = await client.ask([b"get %b\r\n" % b" ".join(key.name for key in keys)])
            oracle.reads += len(keys)
            found = dict(zip(answer[0::3], answer[1::3], strict=True))
            for key in keys:
                if key.name in found:
                    oracle.saw(key, floors[key.name], found[key.name])
            await trio.sleep(0.002)


async def account(gateway: RunningGateway, samples: list[int], wrong: list[str]) -> None:
    """Holds the ledger and the index against themselves, again and again."""
    while True:
        for follower in gateway.topology.followers:
            pending = follower.pending
            if follower.ledger.balance:
                wrong.append(f"{follower.name}: {follower.ledger.status()}")
            if pending.marks != pending.dispatched + pending.doubtful + pending.logged:
                wrong.append(f"{follower.name}: {pending.marks} marks")
        samples[0] += 1
        await trio.sleep(0.02)


async def misfortune(relays: list[Relay], servers: list[MemcachedServer], oracle: Oracle, seed: int) -> None:
    """Every fault at a primary and at a replica server, one after the other, each healed before the next."""
    dice = random.Random(seed)
    in_thread = trio.to_thread.run_sync
    plan = [(kind, side) for kind in FAULTS for side in ((0, 1), (2, 3, 4))]
    dice.shuffle(plan)
    for kind, side in plan:
        await trio.sleep(dice.uniform(0.2, 1.0))
        at = dice.choice(side)
        relay, server = relays[at], servers[at]
        try:
            if kind == "cut":
                await in_thread(relay.cut)
                await trio.sleep(dice.uniform(0.05, 0.6))
            elif kind == "reset":
                await in_thread(relay.reset)
            elif kind == "hold":
                await in_thread(relay.hold)
                await trio.sleep(dice.uniform(0.1, 1.0))
            elif kind in ("long hold", "hold and drop"):
                await in_thread(relay.hold)
                await trio.sleep(dice.uniform(2.3, 3.0))
            elif kind == "half hold":
                await in_thread(relay.hold, dice.choice(("to_server", "to_client")))
                await trio.sleep(dice.uniform(2.3, 3.0))
            elif kind == "late":
                # What is sent now arrives after the connection was given up, and after what is sent by then.
                await in_thread(relay.delay, 3.0, "to_server")
                await trio.sleep(2.4)
                await in_thread(relay.delay, 0.0, "to_server")
                await trio.sleep(1.0)
            else:
                server.pause()
                await trio.sleep(dice.uniform(2.3, 3.0))
        finally:
            with trio.CancelScope(shield=True):
                if kind == "stop":
                    server.resume()
                elif kind != "reset":
                    await in_thread(partial(relay.heal, drop=kind == "hold and drop"))
    oracle.over = True


def states(servers: Sequence[MemcachedServer], keys: Sequence[Key]) -> dict[bytes, tuple[bytes, bytes, int]]:
    """Value, flags and seconds left of all keys that these servers have, each on one of them only."""
    question = b"".join(b"mg %b v f t k\r\n" % key.name for key in keys)
    found: dict[bytes, tuple[bytes, bytes, int]] = {}
    for server in servers:
        answered = transcript((server.host, server.port), question)
        for match in re.finditer(rb"VA \d+ f(\d+) t(-?\d+) k(\S+)\r\n(.*?)\r\n", answered):
            assert match[3] not in found
            found[match[3]] = (match[4], match[1], int(match[2]))
    return found


@pytest.mark.parametrize("version", ["debian", "newest"])
async def test_hundred_thousand_writes_through_failures(stack: Stack, version: str) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    servers = [MemcachedServer(stack, version=version) for _ in range(5)]  # type: ignore[arg-type]  # one of two words
    start_all(servers)
    relays = [Relay(stack, server.host, server.port) for server in servers]
    start_all(relays)
    keys = [Key(b"key:%d" % number, number % 4 == 0) for number in range(WRITERS * KEYS_PER_WRITER)]
    oracle = Oracle(keys)
    samples, wrong = [0], list[str]()
    pools = {"master": relays[:2], "slave": relays[2:]}
    async with memcached_gateway(pools, replica_timeout=2.0) as gateway:
        await until(lambda: gateway.streaming)
        async with trio.open_nursery() as background:
            background.start_soon(account, gateway, samples, wrong)
            background.start_soon(misfortune, relays, servers, oracle, seed)
            async with trio.open_nursery() as clients:
                for number in range(WRITERS):
                    own = keys[number * KEYS_PER_WRITER : (number + 1) * KEYS_PER_WRITER]
                    clients.start_soon(writer, oracle, own, gateway.address, seed + number)
                for number in range(4):
                    clients.start_soon(reader, oracle, gateway.address, seed - 1 - number)
            background.cancel_scope.cancel()
        assert all(relay.running for relay in relays)
        try:
            await until(lambda: gateway.connected and gateway.streaming and gateway.shipped, 30.0)
        finally:
            print(json.dumps(gateway.topology.status(), indent=1))
        reasons = gateway.service.reasons
        print(oracle.writes, "writes", oracle.reads, "reads", oracle.hits, "hits", dict(oracle.answers))
        print(reasons, samples[0], "samples of the account")
        print([follower.ledger.status() for follower in gateway.topology.followers])
        primary = await trio.to_thread.run_sync(states, servers[:2], keys)
        replica = await trio.to_thread.run_sync(states, servers[2:], keys)
    assert oracle.stale == []
    assert wrong == []
    assert samples[0] > 100
    assert len(primary) > len(keys) // 4
    assert {key: state[:2] for key, state in primary.items()} == {key: state[:2] for key, state in replica.items()}
    assert all(abs(state[2] - replica[key][2]) <= 2 for key, state in primary.items())
    # The proof is worth something only if there was something to prove.
    assert reasons.replica > 1000
    assert reasons.pending > 0
    assert oracle.answers[b"SERVER_ERROR the connection to the primary server was lost"] > 10
    assert sum(follower.partial_resyncs for follower in gateway.topology.followers) > 3
