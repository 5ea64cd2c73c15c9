"""Whatever bytes come, they get an error or a close; nothing is logged as an exception and nobody else is hurt."""

from __future__ import annotations

import random
import socket

import pytest
import trio
from memcached_gateway import RunningGateway, memcached_gateway, until
from structlog.testing import capture_logs

from gateway.demo.servers import MemcachedPools

pytestmark = pytest.mark.servers

STREAMS = 1000
GOOD = [
    b"get a b c\r\n",
    b"gets a\r\n",
    b"set a 0 0 5\r\nvalue\r\n",
    b"set b 4294967295 -1 0 noreply\r\n\r\n",
    b"cas a 0 0 1 12\r\nx\r\n",
    b"append a 0 0 3\r\nabc\r\n",
    b"incr n 18446744073709551615\r\n",
    b"decr n 1 noreply\r\n",
    b"delete a\r\n",
    b"touch a 100\r\n",
    b"gat 10 a b\r\n",
    b"flush_all 0 noreply\r\n",
    b"stats\r\n",
    b"stats members\r\n",
    b"version\r\n",
    b"verbosity 1\r\n",
    b"mn\r\n",
    b"mg a v f t\r\n",
    b"ms a 2\r\nhi\r\n",
    b"quit\r\n",
    b"\x80\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00a",
]


def bad_stream(dice: random.Random) -> bytes:
    """Random bytes, or requests with some of their bytes changed, lost, doubled or torn off."""
    if dice.random() < 0.2:
        return dice.randbytes(dice.randrange(1, 3000))
    stream = bytearray(b"".join(dice.choices(GOOD, k=dice.randrange(1, 30))))
    for _ in range(dice.randrange(1, 12)):
        at = dice.randrange(len(stream))
        match dice.randrange(5):
            case 0:
                stream[at] = dice.randrange(256)
            case 1:
                del stream[at : at + dice.randrange(1, 20)]
            case 2:
                stream[at:at] = stream[at : at + dice.randrange(1, 20)]
            case 3:
                stream[at:at] = dice.choice((b"\r\n", b"\n", b" ", b"\x00", b"999999999999", b"-1", b"noreply"))
            case _:
                stream[at:at] = b"k" * dice.choice((1, 250, 251, 3000))
        stream = stream or bytearray(b"\n")
    return bytes(stream)


def send_bad_streams(gateway: RunningGateway, seed: int) -> int:
    """How many of the streams were answered with something."""
    answered = 0
    for number in range(STREAMS):
        stream = bad_stream(random.Random(seed + number))
        try:
            with gateway.connect() as connection:
                connection.settimeout(10.0)
                connection.sendall(stream)
                connection.shutdown(socket.SHUT_WR)
                received = 0
                while chunk := connection.recv(65536):
                    received += len(chunk)
                answered += received > 0
        except TimeoutError:
            raise AssertionError(f"neither an answer nor a close, seed {seed + number}: {stream!r}") from None
        except OSError:
            continue  # closed while it was being sent
    return answered


def use_meanwhile(gateway: RunningGateway, over: list[bool]) -> int:
    """Another client's conversation; how many round trips it had."""
    trips = 0
    with gateway.connect() as connection:
        while not over:
            value = b"%d" % trips
            connection.sendall(b"set mine 0 0 %d\r\n%b\r\nget mine\r\n" % (len(value), value))
            expected = (b"STORED\r\nVALUE mine 0 %d\r\n%b\r\nEND\r\n" % (len(value), value), b"STORED\r\nEND\r\n")
            received = b""
            while not received.endswith(b"END\r\n"):
                received += connection.recv(65536)
            # a stream may well have a flush_all in it
            assert received in expected
            trips += 1
    return trips


async def test_thousand_bad_streams(memcached_pools: MemcachedPools) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    over: list[bool] = []
    trips: list[int] = []
    with capture_logs() as logs:
        async with memcached_gateway(memcached_pools) as gateway:
            await until(lambda: gateway.streaming)

            async def meanwhile() -> None:
                trips.append(await trio.to_thread.run_sync(use_meanwhile, gateway, over))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(meanwhile)
                answered = await trio.to_thread.run_sync(send_bad_streams, gateway, seed)
                over.append(True)
            await until(lambda: gateway.shipped)
            await until(lambda: not gateway.service.sessions)
            assert all(follower.ledger.balance == 0 for follower in gateway.topology.followers)
            assert gateway.connected
            assert all(server.link.connected == 1 for server in gateway.topology.primary)
    assert [entry for entry in logs if entry["log_level"] in ("error", "critical")] == []
    assert answered > STREAMS / 2
    assert trips[0] > 50
