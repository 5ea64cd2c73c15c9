"""Runs sysbench's oltp_point_select, as text or prepared, and reads rates and percentiles from what it prints.

sysbench prints one percentile of one's choice; its histogram has them all, to within 2%.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from typing import Final

from gateway.demo.mysql_servers import APP
from gateway.demo.programs import sysbench
from gateway.errors import GatewayError

ROWS: Final = 10_000

BUCKET: Final = re.compile(r"^ *([0-9.]+) \|[* ]* ([0-9]+)$", re.MULTILINE)
QUERIES: Final = re.compile(r"^ +queries: +(\d+) +\(([0-9.]+) per sec\.\)", re.MULTILINE)
ERRORS: Final = re.compile(r"^ +ignored errors: +(\d+)", re.MULTILINE)


class SysbenchError(GatewayError):
    """sysbench ended with an error, or printed what nobody expects; the text has its output's end."""


@dataclass(frozen=True)
class SysbenchResult:
    """Queries of the whole run, their rate, and percentiles in us."""

    queries: int
    queries_per_second: float
    p50_us: float
    p95_us: float
    p99_us: float


def _command(host: str, port: int, *, prepared: bool = False) -> list[str]:
    return [
        *sysbench().command,
        "oltp_point_select",
        "--db-driver=mysql",
        f"--mysql-host={host}",
        f"--mysql-port={port}",
        f"--mysql-user={APP.user}",
        f"--mysql-password={APP.password}",
        "--mysql-db=sbtest",
        "--tables=1",
        f"--table-size={ROWS}",
        f"--db-ps-mode={'auto' if prepared else 'disable'}",
    ]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise SysbenchError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr}")
    return done.stdout


def prepare(host: str, port: int) -> None:
    """Makes and fills the table sbtest1."""
    _run([*_command(host, port), "prepare"])


def run(host: str, port: int, threads: int, seconds: float, *, prepared: bool = False) -> SysbenchResult:
    """One run; seconds are rounded up to whole ones, as sysbench takes them."""
    options = [f"--threads={threads}", f"--time={max(1, round(seconds))}", "--histogram=on"]
    return parse(_run([*_command(host, port, prepared=prepared), *options, "run"]))


def parse(output: str) -> SysbenchResult:
    """Reads sysbench 1.0's report, which has the histogram in ms."""
    queries, errors = QUERIES.search(output), ERRORS.search(output)
    buckets = [(float(value), int(count)) for value, count in BUCKET.findall(output)]
    if queries is None or errors is None or not buckets:
        raise SysbenchError(f"sysbench printed no result:\n{output[-2000:]}")
    if int(errors[1]):
        raise SysbenchError(f"sysbench met {errors[1]} errors")
    p50, p95, p99 = (percentile(buckets, share) * 1000 for share in (0.5, 0.95, 0.99))
    return SysbenchResult(int(queries[1]), float(queries[2]), p50, p95, p99)


def percentile(buckets: list[tuple[float, int]], share: float) -> float:
    """The value of the bucket in which the given share of all counts is reached."""
    wanted = share * sum(count for _, count in buckets)
    reached = 0
    for value, count in buckets:
        reached += count
        if reached >= wanted:
            return value
    return buckets[-1][0]
