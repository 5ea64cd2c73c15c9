"""Measures the gateway beside its peers, on real servers, in one go: `make bench`.

    python benchmarks/bench.py [--quick] [--only sql|memcached] [--seconds S] [--rounds N] [--output FILE]

Every scenario is run against every peer in turn, in several rounds. What counts is the CPU time of the proxy process
per request, and the rate, each as a ratio to a peer in the same round: load, proxy and servers share the machine.
A report is written to benchmarks/reports/, as Markdown and JSON; `--output` writes the Markdown to another file too.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import load_sysbench
from peers import (
    DIRECT,
    GATEWAY,
    GATEWAY_WITH_FEW,
    GATEWAY_WITH_REPLICA,
    MYSQL_ROUTER,
    TWEMPROXY,
    Peer,
    Wanted,
    memcached_peers,
    sql_peers,
)
from report import Block, Results, Sample, Target, as_json, markdown, measurements, ratios, show, targets
from rich.console import Console

from gateway.demo import programs
from gateway.demo.programs import Program, ServerMissingError
from gateway.demo.stack import Stack
from gateway.errors import GatewayError

FOLDER: Final = Path(__file__).resolve().parent

OURS: Final = (GATEWAY, GATEWAY_WITH_FEW, GATEWAY_WITH_REPLICA)

TARGETS: Final = (
    Target("sql", "16 threads", MYSQL_ROUTER, "cpu", 0.8, "SQL, 16 threads: CPU at most 0.8 of MySQL Router's"),
    Target("sql", "16 threads", MYSQL_ROUTER, "rate", 1.1, "SQL, 16 threads: queries at least 1.1 of MySQL Router's"),
    Target("sql", "1 thread", DIRECT, "p50", 60.0, "SQL, 1 thread: at most 60 us added to direct"),
    Target("memcached", "32 connections", TWEMPROXY, "cpu", 1.6, "memcached, 32: CPU at most 1.6 of twemproxy's"),
    Target("memcached", "1 connection", DIRECT, "p50", 60.0, "memcached, 1 connection: at most 60 us added to direct"),
)

NOT_HERE: Final = "not here"

WIDTH: Final = 120
"""Columns of the tables where the output is not a terminal."""

BUSY: Final = 0.1
"""Share of the machine that others may use before the report warns."""


class BenchmarkError(GatewayError):
    """A load ended with an error; the text is its own."""


@dataclass(frozen=True)
class Measured:
    """What a load says of one run. `requests` counts all, also those outside of the measured part."""

    requests: int
    requests_per_second: float
    p50_us: float
    p95_us: float
    p99_us: float
    cpu_seconds: float


Load = Callable[[Peer, float], Measured]


def sysbench_load(threads: int, *, prepared: bool = False) -> Load:
    """sysbench oltp_point_select with so many threads, as text or by executing a prepared statement."""

    def load(peer: Peer, seconds: float) -> Measured:
        before = peer.cpu_seconds()
        result = load_sysbench.run(peer.host, peer.port, threads, seconds, prepared=prepared)
        spent = peer.cpu_seconds() - before
        return Measured(result.queries, result.queries_per_second, result.p50_us, result.p95_us, result.p99_us, spent)

    return load


def memcached_load(connections: int, depth: int) -> Load:
    """The project's own load, in a process of its own."""

    def load(peer: Peer, seconds: float) -> Measured:
        options = ["--connections", str(connections), "--depth", str(depth), "--seconds", str(seconds)]
        command = [sys.executable, str(FOLDER / "load_memcached.py"), peer.host, str(peer.port), *options]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            ready = process.stdout.readline()
            before = peer.cpu_seconds()
            output, _ = process.communicate("go\n" if ready else "")
            spent = peer.cpu_seconds() - before
        if process.returncode != 0:
            raise BenchmarkError(f"the memcached load against {peer.name} failed: see above")
        return Measured(**json.loads(output), cpu_seconds=spent)

    return load


SQL_SCENARIOS: Final[dict[str, Load]] = {
    "1 thread": sysbench_load(1),
    "16 threads": sysbench_load(16),
    "16 threads, prepared": sysbench_load(16, prepared=True),
    "64 threads": sysbench_load(64),
}
MEMCACHED_SCENARIOS: Final[dict[str, Load]] = {
    "1 connection": memcached_load(1, 1),
    "32 connections": memcached_load(32, 1),
    "32 connections, 16 deep": memcached_load(32, 16),
}


def measure(
    protocol: str, peers: Sequence[Peer], scenarios: dict[str, Load], rounds: int, seconds: float, console: Console
) -> list[Sample]:
    """Runs everything; each round has every peer in turn, so that a slow minute hits all of them."""
    samples = []
    for scenario, load in scenarios.items():
        for number in range(1, rounds + 1):
            for peer in peers:
                measured = load(peer, seconds)
                samples.append(
                    Sample(
                        protocol,
                        scenario,
                        peer.name,
                        number,
                        measured.requests_per_second,
                        measured.p50_us,
                        measured.p95_us,
                        measured.p99_us,
                        None if peer.process is None else measured.cpu_seconds / measured.requests * 1e6,
                    )
                )
                last = samples[-1]
                processor = "" if last.cpu_us is None else f", {last.cpu_us:.1f} us CPU each"
                console.print(
                    f"{protocol}, {scenario}, round {number}: {peer.name} "
                    f"{last.requests_per_second:,.0f} requests/s{processor}",
                    highlight=False,
                    soft_wrap=True,
                )
    return samples


def first_line(find: Callable[[], Program], option: str) -> str:
    """What a program says its version is."""
    try:
        program = find()
    except ServerMissingError:
        return NOT_HERE
    said = subprocess.run(
        [*program.command, option], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    lines = (said.stdout + said.stderr).strip().splitlines()
    return lines[0].removeprefix(str(program.usr)) if lines else "says nothing"


def busy_share() -> float:
    """How much of all processors is used in one second in which this program only waits."""

    def ticks() -> tuple[int, int]:
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(fields), fields[3] + fields[4]  # all; idle and waiting for a disk

    total, idle = ticks()
    time.sleep(1.0)
    total_after, idle_after = ticks()
    return 1.0 - (idle_after - idle) / max(1, total_after - total)


def yardstick() -> float:
    """us of one send and one receive of 40 bytes on loopback: what proxying is made of, on this machine now."""
    turns = 20_000
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as here,
        listener.accept()[0] as there,
    ):
        here.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.perf_counter()
        for _ in range(turns):
            here.send(b"x" * 40)
            there.recv(100)
        return (time.perf_counter() - began) / turns * 1e6


def machine() -> list[tuple[str, str]]:
    """What was measured on, and with what."""
    models = {
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    busy = busy_share()
    return [
        ("when", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")),
        (
            "machine",
            f"{os.cpu_count()} processors ({', '.join(sorted(models)) or platform.machine()}), {memory:.0f} GiB",
        ),
        ("kernel", f"{platform.system()} {platform.release()}"),
        ("Python", platform.python_version()),
        ("MariaDB", first_line(programs.mariadbd, "--version")),
        ("MySQL Router", first_line(programs.mysqlrouter, "--version")),
        ("HAProxy", first_line(programs.haproxy, "-v")),
        ("memcached", first_line(programs.memcached, "--version")),
        ("twemproxy", first_line(programs.nutcracker, "--version")),
        ("a send and a receive on loopback, before the start", f"{yardstick():.1f} us"),
        ("used by others before the start", f"{busy:.0%}" + (": too much for good numbers" if busy > BUSY else "")),
    ]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="measure the gateway beside its peers")
    parser.add_argument("--quick", action="store_true", help="one round of two seconds each: for a first look")
    parser.add_argument("--only", choices=["sql", "memcached"], help="one protocol")
    parser.add_argument("--seconds", type=float, help="of one run (8 for SQL, 4 for memcached)")
    parser.add_argument("--rounds", type=int, help="of all peers, in turn (3)")
    parser.add_argument("--replicas", type=int, default=0, help="replicas of the SQL primary, for the gateway (0)")
    parser.add_argument("--peers", help="names of the peers to measure, with commas (all)")
    parser.add_argument("--output", type=Path, help="write the report to this file too")
    return parser.parse_args()


def is_wanted(names: str | None) -> Wanted:
    """Which peers --peers asks for, by the beginnings of their names; without it all that are here."""
    beginnings = tuple(name.strip().lower() for name in names.split(",")) if names else ("",)

    def wanted(peer: str) -> bool:
        if peer == MYSQL_ROUTER and names is None:
            return first_line(programs.mysqlrouter, "--version") != NOT_HERE
        return peer.lower().startswith(beginnings)

    return wanted


def run(arguments: argparse.Namespace, console: Console) -> Results:
    """Starts the servers, the peers that are wanted, and measures."""
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    wanted = is_wanted(arguments.peers)
    samples: list[Sample] = []
    if arguments.only != "memcached":
        with Stack() as stack:
            server, peers = sql_peers(stack, arguments.replicas, wanted)
            load_sysbench.prepare(server.host, server.port)
            seconds = arguments.seconds or (2.0 if arguments.quick else 8.0)
            samples += measure("sql", peers, SQL_SCENARIOS, rounds, seconds, console)
    if arguments.only != "sql":
        with Stack() as stack:
            peers = memcached_peers(stack, wanted)
            seconds = arguments.seconds or (2.0 if arguments.quick else 4.0)
            samples += measure("memcached", peers, MEMCACHED_SCENARIOS, rounds, seconds, console)
    return Results(samples)


def blocks_of(results: Results) -> list[Block]:
    """All tables."""
    protocols = dict.fromkeys(protocol for protocol, _ in results.scenarios())
    blocks = [targets(results, GATEWAY, TARGETS)]
    for protocol in protocols:
        blocks += [measurements(results, protocol), ratios(results, protocol, OURS)]
    return [block for block in blocks if block.rows]


def main() -> int:
    """Measures, prints and writes the report; returns the exit status."""
    arguments = options()
    console = Console(width=WIDTH) if not sys.stdout.isatty() else Console()
    facts = machine()
    try:
        results = run(arguments, console)
    except GatewayError as error:
        console.print(f"bench: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        return 1
    facts.append(("a send and a receive on loopback, after the end", f"{yardstick():.1f} us"))
    blocks = blocks_of(results)
    show(blocks, console)
    text = markdown("Benchmark", facts, blocks)
    reports = FOLDER / "reports"
    reports.mkdir(exist_ok=True)
    stem = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H%M%S")
    written = [reports / f"{stem}.md", reports / f"{stem}.json"]
    written[0].write_text(text)
    written[1].write_text(as_json(facts, results))
    if arguments.output:
        arguments.output.write_text(text)
        written.append(arguments.output)
    console.print(f"written: {', '.join(os.path.relpath(path) for path in written)}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
