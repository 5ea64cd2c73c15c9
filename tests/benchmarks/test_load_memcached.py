"""The memcached load sends what it says, and refuses wrong answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import load_memcached
import pytest
from load_memcached import BATCHES, Batch, Connection, LoadError, make_batches

from gateway.demo.servers import MemcachedServer, Server

PROGRAM = Path(load_memcached.__file__)


def run_load(server: Server, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), server.host, str(server.port), "--seconds", "0.3", *options]
    return subprocess.run(command, input="go\n", capture_output=True, text=True, check=False)


@pytest.mark.parametrize("depth", [1, 16])
def test_one_request_of_ten_is_a_set(depth: int) -> None:
    requests = b"".join(batch.request for batch in make_batches(depth))
    assert requests.count(b"set ") == BATCHES * depth // 10
    assert requests.count(b"get ") + requests.count(b"set ") == BATCHES * depth


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"END\r\n",
        b"SERVER_ERROR out of memory\r\n",
        b"VALUE other 0 3\r\nabc\r\nEND\r\n",
        b"VALUE k 0 3\r\nabc\r\nEND\r\nEND\r\n",
        b"VALUE k 0 3\r\nabc\r\nEND??",
    ],
)
def test_a_wrong_answer_ends_the_run(answer: bytes) -> None:
    connection = Connection.__new__(Connection)
    connection.received = b""
    connection.batch = Batch(b"get k\r\n", len(b"VALUE k 0 3\r\nabc\r\nEND\r\n"), b"VALUE k 0 3\r\n")
    with pytest.raises(LoadError):
        connection.complete(answer)


def test_an_answer_in_parts_is_whole_with_its_last_part() -> None:
    connection = Connection.__new__(Connection)
    connection.received = b""
    connection.batch = Batch(b"get k\r\n", len(b"VALUE k 0 3\r\nabc\r\nEND\r\n"), b"VALUE k 0 3\r\n")
    assert not connection.complete(b"VALUE k 0 3\r\nab")
    assert connection.complete(b"c\r\nEND\r\n")


def test_it_drives_a_server_and_reports_rates_and_percentiles(memcached_servers: list[MemcachedServer]) -> None:
    done = run_load(memcached_servers[0], "--connections", "8", "--depth", "4")
    assert done.returncode == 0, done.stderr
    ready, report = done.stdout.splitlines()
    assert ready == "ready"
    measured = json.loads(report)
    assert measured["requests"] > 100
    assert 0 < measured["p50_us"] <= measured["p95_us"] <= measured["p99_us"]


def test_a_server_that_forgets_is_an_error(memcached_servers: list[MemcachedServer]) -> None:
    # 2 MiB for items of 1,000 bytes at least hold a part of the 10,000 keys, so that some gets miss
    small = MemcachedServer(memcached_servers[0].stack, options=["-m", "2", "-n", "1000"])
    small.start()
    done = run_load(small)
    assert done.returncode == 1
    assert "was answered b'END" in done.stderr
