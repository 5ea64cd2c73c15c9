"""What a memcached group does when servers go and come, when replicas fall behind, and what rules change."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import Any

import pytest
import trio
from memcached_gateway import RunningGateway, memcached_gateway, transcript, until

from gateway.config import ReplicaBufferLimit
from gateway.demo.relay import Relay
from gateway.demo.servers import MemcachedPools, MemcachedServer, Server, memcached_group, start_all
from gateway.demo.stack import Stack
from gateway.replication.log.follower import FollowerState
from gateway.replication.log.ledger import Dropped
from gateway.rules.compile import RuleSet
from gateway.rules.load import read_rules
from gateway.sessions import memcached_session

pytestmark = pytest.mark.servers

NEEDS_RESYNC = FollowerState.NEEDS_FULL_RESYNC


async def ask(target: RunningGateway | Server, request: bytes) -> bytes:
    address = target.address if isinstance(target, RunningGateway) else (target.host, target.port)
    return await trio.to_thread.run_sync(transcript, address, request)


def rules_from(folder: Path, text: str) -> RuleSet:
    folder.mkdir(exist_ok=True)
    (folder / "10.toml").write_text(text)
    files, problems = read_rules(folder)
    assert not problems
    return RuleSet(files)


def read_to_the_end(connection: socket.socket) -> None:
    while connection.recv(1 << 20):
        pass


def relayed(stack: Stack, servers: list[MemcachedServer]) -> list[Relay]:
    relays = [Relay(stack, server.host, server.port) for server in servers]
    start_all(relays)
    return relays


# Names that have nothing in common, since fnv1a_64 as twemproxy has it puts similar ones on the same server.
KEYS = [hashlib.md5(b"%d" % number).hexdigest().encode() for number in range(60)]
SETS = b"".join(b"set %b 0 0 1\r\nx\r\n" % key for key in KEYS)
GETS = b"".join(b"get %b\r\n" % key for key in KEYS)


async def test_dead_primary_server_is_misses_and_errors_until_it_is_back(memcached_pools: MemcachedPools) -> None:
    pools = memcached_pools
    async with memcached_gateway({"master": pools["master"]}) as gateway:
        assert await ask(gateway, SETS) == b"STORED\r\n" * len(KEYS)
        pools["master"][0].kill()
        await until(lambda: not gateway.connected)
        answers = await ask(gateway, SETS)
        errors = answers.count(b"SERVER_ERROR the primary server " + pools["master"][0].address.encode())
        assert 0 < errors < len(KEYS)
        assert answers.count(b"STORED\r\n") == len(KEYS) - errors
        assert (await ask(gateway, GETS)).count(b"VALUE ") == len(KEYS) - errors
        assert (await ask(gateway, b"get %b\r\n" % b" ".join(KEYS))).count(b"VALUE ") == len(KEYS) - errors
        assert gateway.topology.primary[0].down_misses == 2 * errors
        await trio.to_thread.run_sync(pools["master"][0].start)
        began = trio.current_time()
        await until(lambda: gateway.connected)
        assert trio.current_time() - began < 2.0
        assert await ask(gateway, SETS) == b"STORED\r\n" * len(KEYS)


async def test_reads_go_to_replicas_and_their_misses_to_the_primary(memcached_pools: MemcachedPools) -> None:
    pools = memcached_pools
    async with memcached_gateway(pools) as gateway:
        await until(lambda: gateway.streaming)
        await ask(gateway, SETS)
        await until(lambda: gateway.shipped)
        reasons = gateway.service.reasons
        assert await ask(gateway, GETS) == b"".join(b"VALUE %b 0 1\r\nx\r\nEND\r\n" % key for key in KEYS)
        assert reasons.replica == len(KEYS)
        assert reasons.missed == 0
        assert sum(server.reads for server in gateway.topology.primary) == 0
        for server in pools["slave"]:  # as if all had been evicted there
            await ask(server, b"flush_all\r\n")
        assert await ask(gateway, GETS) == b"".join(b"VALUE %b 0 1\r\nx\r\nEND\r\n" % key for key in KEYS)
        assert reasons.missed == len(KEYS)
        everything = b"".join(b"VALUE %b 0 1\r\nx\r\n" % key for key in KEYS) + b"END\r\n"
        assert await ask(gateway, b"get %b\r\n" % b" ".join(KEYS)) == everything
        assert await ask(gateway, b"gets %b\r\n" % KEYS[0]) != b"END\r\n"
        assert reasons.cas == 1


async def test_restarted_primary_server_ends_reads_of_replicas(memcached_pools: MemcachedPools) -> None:
    pools = memcached_pools
    async with memcached_gateway(pools) as gateway:
        await until(lambda: gateway.streaming)
        await ask(gateway, SETS)
        await until(lambda: gateway.shipped)
        run_id = gateway.topology.log.run_id
        await trio.to_thread.run_sync(pools["master"][1].restart)
        await until(lambda: gateway.connected)
        assert {follower.state for follower in gateway.topology.followers} == {NEEDS_RESYNC}
        assert gateway.topology.log.run_id != run_id
        assert "restarted" in str(gateway.topology.status()["needs_full_resync"])
        # What the restarted server had is gone, although replicas still have it.
        found = (await ask(gateway, GETS)).count(b"VALUE ")
        assert 0 < found < len(KEYS)
        assert await ask(gateway, SETS) == b"STORED\r\n" * len(KEYS)
        for follower in gateway.topology.followers:
            assert follower.ledger.balance == 0
            assert follower.ledger.pending == 0
            assert follower.ledger.dropped[Dropped.NEEDS_RESYNC] > 0


async def test_restarted_replica_server_serves_no_reads(memcached_pools: MemcachedPools) -> None:
    pools = memcached_pools
    async with memcached_gateway(pools) as gateway:
        await until(lambda: gateway.streaming)
        await ask(gateway, SETS)
        await until(lambda: gateway.shipped)
        restarted = gateway.topology.replicas[1]
        await trio.to_thread.run_sync(pools["slave"][1].restart)
        await until(lambda: restarted.follower.state is NEEDS_RESYNC)
        assert restarted.follower.reason == "its server was restarted, and is empty"
        before = restarted.reads
        assert (await ask(gateway, GETS)).count(b"VALUE ") == len(KEYS)
        assert restarted.reads == before
        assert gateway.service.reasons.not_readable > 0
        states = [replica.follower.state for replica in gateway.topology.replicas]
        assert states == [FollowerState.STREAMING, NEEDS_RESYNC, FollowerState.STREAMING]


@pytest.mark.parametrize("side", ["master", "slave"])
async def test_servers_that_are_not_empty_at_start_need_a_resync(memcached_pools: MemcachedPools, side: str) -> None:
    pools = memcached_pools
    await ask(pools[side][0], b"set old 0 0 1\r\nx\r\n")
    async with memcached_gateway(pools) as gateway:
        assert await ask(gateway, SETS) == b"STORED\r\n" * len(KEYS)
        affected = [replica.follower for replica in gateway.topology.replicas]
        affected = affected if side == "master" else affected[:1]
        await until(lambda: all(follower.state is NEEDS_RESYNC for follower in affected))
        assert all("not empty" in str(follower.reason) for follower in affected)
        assert (await ask(gateway, GETS)).count(b"VALUE ") == len(KEYS)


async def test_follower_goes_on_where_it_was(stack: Stack, memcached_pools: MemcachedPools) -> None:
    pools = memcached_pools
    relays = relayed(stack, pools["slave"])
    async with memcached_gateway({"master": pools["master"], "slave": relays}) as gateway:
        await until(lambda: gateway.streaming)
        await ask(gateway, SETS)
        await trio.to_thread.run_sync(relays[0].cut)
        follower = gateway.topology.followers[0]
        await until(lambda: follower.state is FollowerState.DISCONNECTED)
        await ask(gateway, SETS.replace(b"\r\nx\r\n", b"\r\ny\r\n"))
        assert follower.pending.logged > 0
        assert (await ask(gateway, GETS)).count(b"\r\ny\r\n") == len(KEYS)
        await trio.to_thread.run_sync(relays[0].heal)
        await until(lambda: gateway.streaming and gateway.shipped)
        assert follower.partial_resyncs == 1
        held = [await ask(server, GETS) for server in pools["slave"]]
        assert sum(answer.count(b"\r\ny\r\n") for answer in held) == len(KEYS)
        assert sum(answer.count(b"\r\nx\r\n") for answer in held) == 0


async def test_follower_that_stays_away_too_long_needs_a_resync(stack: Stack, memcached_pools: MemcachedPools) -> None:
    pools = memcached_pools
    relays = relayed(stack, pools["slave"])
    async with memcached_gateway({"master": pools["master"], "slave": relays}, backlog=20_000) as gateway:
        await until(lambda: gateway.streaming)
        await trio.to_thread.run_sync(relays[0].cut)
        follower = gateway.topology.followers[0]
        await until(lambda: follower.state is FollowerState.DISCONNECTED)
        for _ in range(5):
            await ask(gateway, SETS)
        assert follower.state is NEEDS_RESYNC
        assert follower.reason == "what it lacks has left the backlog"
        assert follower.ledger.balance == 0
        assert follower.ledger.dropped[Dropped.NEEDS_RESYNC] > 0
        await trio.to_thread.run_sync(relays[0].heal)
        assert (await ask(gateway, GETS)).count(b"VALUE ") == len(KEYS)


async def test_follower_that_is_too_far_behind_is_cut_off(stack: Stack, memcached_pools: MemcachedPools) -> None:
    pools = memcached_pools
    relays = relayed(stack, pools["slave"])
    limit = ReplicaBufferLimit(hard=2_000_000, soft=1_000_000, soft_for=60.0)
    async with memcached_gateway(
        {"master": pools["master"], "slave": relays}, backlog=10_000, replica_buffer_limit=limit
    ) as gateway:
        await until(lambda: gateway.streaming)
        for relay in relays:
            await trio.to_thread.run_sync(relay.hold)
        large = b"".join(b"set %b 0 0 100000\r\n%b\r\n" % (key, b"v" * 100_000) for key in KEYS)
        followers = gateway.topology.followers
        for _ in range(5):
            await ask(gateway, large)
        assert all(follower.state is NEEDS_RESYNC for follower in followers)
        assert {follower.reason for follower in followers} == {"it is further behind than replica_buffer_limit.hard"}
        assert all(follower.ledger.balance == 0 and not follower.owed_bytes for follower in followers)
        await trio.to_thread.run_sync(relays[0].heal)


async def test_synchronous_keys_are_on_the_replica_before_the_answer(memcached_pools: MemcachedPools) -> None:
    pools = memcached_pools
    async with memcached_gateway(pools, sync_prefixes=("+",)) as gateway:
        await until(lambda: gateway.streaming)
        for number in range(50):
            assert await ask(gateway, b"set +k%d 0 0 1\r\nx\r\nincr +n%d 1\r\n" % (number, number)) == (
                b"STORED\r\nNOT_FOUND\r\n"
            )
            assert gateway.shipped
        held = [await ask(server, b"get +k7\r\n") for server in pools["slave"]]
        assert sorted(held) == [b"END\r\n", b"END\r\n", b"VALUE +k7 0 1\r\nx\r\nEND\r\n"]


@pytest.mark.parametrize("failure", ["error", "degrade"])
async def test_synchronous_write_that_the_replica_does_not_take_in_time(
    memcached_pools: MemcachedPools, failure: str
) -> None:
    pools = memcached_pools
    settings: dict[str, Any] = {"sync_prefixes": ("+",), "sync_failure": failure, "sync_timeout": 0.3}
    async with memcached_gateway(pools, **settings) as gateway:
        await until(lambda: gateway.streaming)
        for server in pools["slave"]:
            server.pause()
        answers = await ask(gateway, b"set +k 0 0 1\r\nx\r\nset k 0 0 1\r\nx\r\nadd +k 0 0 1\r\ny\r\n")
        expected = {
            "error": b"SERVER_ERROR stored at the primary, still being shipped: it was not applied within "
            b"sync_timeout\r\nSTORED\r\nNOT_STORED\r\n",
            "degrade": b"STORED\r\nSTORED\r\nNOT_STORED\r\n",
        }
        assert answers == expected[failure]
        assert gateway.topology.sync_waits.timed_out == 1
        for server in pools["slave"]:
            server.resume()
        await until(lambda: gateway.shipped)
        assert all(follower.ledger.balance == 0 for follower in gateway.topology.followers)


RULES = """
[[rule]]
name = "sessions are replicated first"
match = {protocol = "memcached", key = "session:*", kind = "write"}
replicate = "sync"

[[rule]]
name = "fragments stay local"
match = {protocol = "memcached", key = "frag:*"}
replicate = "none"

[[rule]]
name = "exact keys"
match = {protocol = "memcached", key = "exact:*", kind = "read"}
route = {to = "primary"}

[[rule]]
name = "no secrets"
match = {protocol = "memcached", key = "secret:*"}
block = "secrets do not belong into a cache"
"""


async def test_rules_by_key(memcached_pools: MemcachedPools, tmp_path: Path) -> None:
    pools = memcached_pools
    async with memcached_gateway(pools, rules=rules_from(tmp_path / "rules", RULES)) as gateway:
        await until(lambda: gateway.streaming)
        reasons = gateway.service.reasons
        assert await ask(gateway, b"set session:1 0 0 1\r\nx\r\n") == b"STORED\r\n"
        assert gateway.shipped
        await ask(gateway, b"set frag:1 0 0 1\r\nx\r\nincr frag:1 1\r\nset exact:1 0 0 1\r\nx\r\n")
        assert gateway.topology.log.offset == 2
        assert await ask(gateway, b"get frag:1\r\nget exact:1\r\n") == (
            b"VALUE frag:1 0 1\r\nx\r\nEND\r\nVALUE exact:1 0 1\r\nx\r\nEND\r\n"
        )
        assert reasons.rule == 2
        assert reasons.replica == 0
        refused = b"SERVER_ERROR secrets do not belong into a cache\r\n"
        assert await ask(gateway, b"get secret:1\r\nset secret:1 0 0 1\r\nx\r\nget a secret:1\r\n") == refused * 3


async def test_key_that_becomes_local_leaves_the_replicas(memcached_pools: MemcachedPools, tmp_path: Path) -> None:
    pools = memcached_pools

    async def at_replicas(key: bytes) -> int:
        return sum([(await ask(server, b"get %b\r\n" % key)).count(b"VALUE ") for server in pools["slave"]])

    async with memcached_gateway(pools) as gateway:
        await until(lambda: gateway.streaming)
        await ask(gateway, b"set frag:1 0 0 1\r\na\r\n")
        await until(lambda: gateway.shipped)
        assert await at_replicas(b"frag:1") == 1
        gateway.service.use_rules(rules_from(tmp_path / "local", RULES))
        await ask(gateway, b"set frag:1 0 0 1\r\nb\r\n")
        await until(lambda: gateway.shipped)
        assert await at_replicas(b"frag:1") == 0
        await ask(gateway, b"set frag:1 0 0 1\r\nc\r\n")
        assert gateway.topology.log.offset == 2
        gateway.service.use_rules(rules_from(tmp_path / "again", ""))
        assert await ask(gateway, b"get frag:1\r\n") == b"VALUE frag:1 0 1\r\nc\r\nEND\r\n"


async def test_too_few_replicas_refuse_writes(stack: Stack, memcached_pools: MemcachedPools) -> None:
    pools = memcached_pools
    relays = relayed(stack, pools["slave"])
    settings: dict[str, Any] = {"min_replicas_to_write": 1, "min_replicas_max_lag": 5.0}
    async with memcached_gateway({"master": pools["master"], "slave": relays}, **settings) as gateway:
        await until(lambda: gateway.streaming)
        assert await ask(gateway, b"set k 0 0 1\r\nx\r\n") == b"STORED\r\n"
        await trio.to_thread.run_sync(relays[2].cut)
        await until(lambda: not gateway.streaming)
        refused = b"SERVER_ERROR not enough replicas: 0 of 1 are within 5 s of the primary\r\n"
        assert await ask(gateway, b"set k 0 0 1\r\ny\r\nget k\r\nflush_all\r\n") == (
            refused + b"VALUE k 0 1\r\nx\r\nEND\r\n" + refused
        )
        await trio.to_thread.run_sync(relays[2].heal)
        await until(lambda: gateway.streaming)
        assert await ask(gateway, b"set k 0 0 1\r\ny\r\n") == b"STORED\r\n"


async def test_flush_with_an_unknown_outcome_empties_the_replicas(
    stack: Stack, memcached_pools: MemcachedPools
) -> None:
    pools = memcached_pools
    relays = relayed(stack, pools["master"])
    async with memcached_gateway({"master": relays, "slave": pools["slave"]}) as gateway:
        await until(lambda: gateway.streaming)
        await ask(gateway, SETS)
        await until(lambda: gateway.shipped)
        await trio.to_thread.run_sync(relays[0].hold, "to_client")
        answer = await ask(gateway, b"flush_all\r\n")
        assert answer.startswith(b"SERVER_ERROR flush_all reached not all primary servers: outcome unknown")
        await until(lambda: gateway.shipped)
        held = [await ask(server, GETS) for server in pools["slave"]]
        assert sum(answer.count(b"VALUE ") for answer in held) == 0
        await trio.to_thread.run_sync(relays[0].heal)
        await until(lambda: gateway.connected)
        assert await ask(gateway, GETS) == b"END\r\n" * len(KEYS)
        assert await ask(gateway, SETS) == b"STORED\r\n" * len(KEYS)
        assert await ask(gateway, b"flush_all\r\n") == b"OK\r\n"


async def test_writes_wait_while_a_flush_is_under_way(stack: Stack, memcached_pools: MemcachedPools) -> None:
    pools = memcached_pools
    relays = relayed(stack, pools["master"])
    async with memcached_gateway({"master": relays, "slave": pools["slave"]}) as gateway:
        await until(lambda: gateway.streaming)
        await ask(gateway, SETS)
        await trio.to_thread.run_sync(relays[1].delay, 0.3, "to_client")
        async with trio.open_nursery() as nursery:
            answers: dict[str, bytes] = {}

            async def keep(name: str, request: bytes) -> None:
                answers[name] = await ask(gateway, request)

            nursery.start_soon(keep, "flush", b"flush_all\r\n")
            await until(lambda: gateway.topology.flush.frozen)
            nursery.start_soon(keep, "sets", SETS)
            nursery.start_soon(keep, "large", b"set %b 0 0 1048577\r\n%b\r\n" % (KEYS[0], b"v" * 1_048_577))
            await ask(gateway, b"mn\r\n")  # reads and barriers go on
            assert gateway.topology.flush.frozen
        assert answers["flush"] == b"OK\r\n"
        assert answers["sets"] == b"STORED\r\n" * len(KEYS)
        assert answers["large"] == b"SERVER_ERROR object too large for cache\r\n"
        await trio.to_thread.run_sync(relays[1].heal)
        await until(lambda: gateway.shipped)
        held = [await ask(server, GETS) for server in pools["slave"]]
        there = [await ask(server, GETS) for server in pools["master"]]
        assert sum(answer.count(b"VALUE ") for answer in held) == sum(answer.count(b"VALUE ") for answer in there)


async def test_client_that_does_not_read_is_closed_within_its_budget(
    memcached_pools: MemcachedPools, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = memcached_pools
    monkeypatch.setattr(memcached_session, "CLIENT_BUDGET_BYTES", 4_000_000)
    async with memcached_gateway(pools) as gateway:
        await until(lambda: gateway.streaming)
        large = b"".join(b"set %b 0 0 500000\r\n%b\r\n" % (key, b"v" * 500_000) for key in KEYS)
        await ask(gateway, large)

        with gateway.connect() as connection:
            connection.settimeout(0.0)
            for _ in range(20):
                connection.send(GETS)
            await until(lambda: gateway.service.over_budget == 1)
            with pytest.raises(ConnectionResetError):
                read_to_the_end(connection)
        assert (await ask(gateway, b"get %b\r\n" % KEYS[0])).count(b"VALUE ") == 1


async def test_drain_ships_what_is_pending(stack: Stack, memcached_pools: MemcachedPools) -> None:
    pools = memcached_pools
    relays = relayed(stack, pools["slave"])
    async with memcached_gateway({"master": pools["master"], "slave": relays}) as gateway:
        await until(lambda: gateway.streaming)
        for relay in relays:
            await trio.to_thread.run_sync(relay.delay, 0.2)
        await ask(gateway, SETS)
        assert not gateway.shipped
        await gateway.topology.drain()
        assert gateway.shipped
        held = [await ask(server, GETS) for server in pools["slave"]]
        assert sum(answer.count(b"VALUE ") for answer in held) == len(KEYS)


async def test_value_that_a_replica_has_no_room_for_is_read_at_the_primary(stack: Stack) -> None:
    primary = MemcachedServer(stack)
    small = MemcachedServer(stack, options=("-I", "512k", "-o", "slab_chunk_max=256"))
    start_all([primary, small])
    async with memcached_gateway({"master": [primary], "slave": [small]}) as gateway:
        await until(lambda: gateway.streaming)
        value = b"v" * 700_000
        request = b"set k 0 0 2\r\nok\r\nset k 0 0 %d\r\n%b\r\n" % (len(value), value)
        assert await ask(gateway, request) == b"STORED\r\nSTORED\r\n"
        await until(lambda: gateway.shipped)
        follower = gateway.topology.followers[0]
        assert follower.ledger.dropped[Dropped.REFUSED] == 1
        assert follower.ledger.applied == 1
        assert follower.ledger.balance == 0
        assert await ask(small, b"get k\r\n") == b"END\r\n"
        assert await ask(gateway, b"get k\r\n") == b"VALUE k 0 %d\r\n%b\r\nEND\r\n" % (len(value), value)


def test_same_session_never_overtakes_its_own_read(stack: Stack) -> None:
    """The read misses at the replica and is asked again at the primary: before the write behind it."""
    pools = memcached_group(stack, {"master": 1, "slave": 1})

    async def check() -> None:
        async with memcached_gateway(pools) as gateway:
            await until(lambda: gateway.streaming)
            for number in range(50):
                await ask(gateway, b"set k 0 0 3\r\nold\r\n")
                await until(lambda: gateway.shipped)
                await ask(pools["slave"][0], b"delete k\r\n")  # evicted
                verb = b"get k" if number % 2 else b"get k j"
                assert await ask(gateway, verb + b"\r\nset k 0 0 3\r\nnew\r\nget k\r\n") == (
                    b"VALUE k 0 3\r\nold\r\nEND\r\nSTORED\r\nVALUE k 0 3\r\nnew\r\nEND\r\n"
                )

    trio.run(check)


async def test_clients_are_paused_while_a_server_takes_nothing(stack: Stack) -> None:
    server = MemcachedServer(stack)
    server.start()
    async with memcached_gateway({"master": [server]}) as gateway:
        count, value = 80, b"v" * 500_000
        server.pause()

        def upload() -> bytes:
            return transcript(
                gateway.address, b"".join(b"set k 0 0 %d\r\n%b\r\n" % (len(value), value) for _ in range(count))
            )

        answers: list[bytes] = []

        async def client() -> None:
            answers.append(await trio.to_thread.run_sync(upload))

        connection = gateway.topology.primary[0].connection
        assert connection is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client)
            await until(lambda: connection.full)
            await trio.sleep(0.3)
            assert connection.endpoint.queued < 8_000_000
            (session,) = gateway.service.sessions
            assert not session.endpoint.reading
            server.resume()
        assert answers == [b"STORED\r\n" * count]
        assert gateway.topology.primary[0].link.connected == 1


async def test_many_answers_due_pause_their_client(memcached_pools: MemcachedPools) -> None:
    pools = memcached_pools
    async with memcached_gateway({"master": pools["master"]}) as gateway:
        for server in pools["master"]:
            server.pause()
        with gateway.connect() as connection:
            connection.settimeout(0.0)
            sent = 0
            while True:
                try:
                    sent += connection.send(b"get k\r\n" * 5000)
                except BlockingIOError:
                    break
                await trio.sleep(0.01)
            (session,) = gateway.service.sessions
            assert not session.endpoint.reading
            assert len(session.slots) < 20_000
            for server in pools["master"]:
                server.resume()
            received = 0
            while received < sent // 7 * 5:
                await trio.sleep(0.001)
                try:
                    received += len(connection.recv(1 << 20))
                except BlockingIOError:
                    continue
            assert not session.slots


async def test_idle_client_is_closed(memcached_pools: MemcachedPools) -> None:
    pools = memcached_pools
    async with memcached_gateway({"master": pools["master"]}, idle_timeout=0.2) as gateway:
        with gateway.connect() as connection:
            assert await trio.to_thread.run_sync(connection.recv, 10) == b""
        assert await ask(gateway, b"get k\r\n") == b"END\r\n"


async def test_long_backlog_is_caught_up_with_in_pieces(stack: Stack, memcached_pools: MemcachedPools) -> None:
    pools = memcached_pools
    relays = relayed(stack, pools["slave"])
    async with memcached_gateway({"master": pools["master"], "slave": relays}) as gateway:
        await until(lambda: gateway.streaming)
        for relay in relays:
            await trio.to_thread.run_sync(relay.cut)
        await until(
            lambda: all(follower.state is FollowerState.DISCONNECTED for follower in gateway.topology.followers)
        )
        for number in range(400):
            await ask(gateway, SETS.replace(b" 1\r\nx", b" 3\r\n%03d" % number))
        for relay in relays:
            await trio.to_thread.run_sync(relay.heal)
        await until(lambda: gateway.streaming and gateway.shipped)
        followers = gateway.topology.followers
        assert sum(follower.ledger.applied for follower in followers) == 400 * len(KEYS)
        held = [await ask(server, GETS) for server in pools["slave"]]
        assert sum(answer.count(b"\r\n399\r\n") for answer in held) == len(KEYS)
