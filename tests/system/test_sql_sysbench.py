"""sysbench through the gateway: no errors, and the load is where it belongs."""

from __future__ import annotations

import os
import re
import subprocess
from typing import Final

import pytest
from gateways import SqlGateway

from gateway.demo import programs
from gateway.demo.mysql_servers import APP

pytestmark = [pytest.mark.servers, pytest.mark.slow]

SECONDS: Final = int(os.environ.get("SYSBENCH_SECONDS", "3"))
THREADS: Final = 16


def sysbench(gateway: SqlGateway, test: str, *options: str) -> str:
    done = subprocess.run(
        [
            *programs.sysbench().command,
            test,
            "--db-driver=mysql",
            f"--mysql-host={gateway.host}",
            f"--mysql-port={gateway.port}",
            f"--mysql-user={APP.user}",
            f"--mysql-password={APP.password}",
            "--mysql-db=shop",
            "--tables=2",
            "--table-size=5000",
            f"--threads={THREADS}",
            f"--time={SECONDS}",
            # without transactions two threads may insert the row that both have deleted
            "--mysql-ignore-errors=1213,1020,1205,1062",
            *options,
        ],
        capture_output=True,
        text=True,
        timeout=120.0,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def served(gateway: SqlGateway) -> list[int]:
    """Statements per server so far, the primary first."""
    members = {member["name"]: member["reads"] + member["writes"] for member in gateway.orders["members"]}
    return [members[server.address] for server in gateway.group.servers]


@pytest.mark.parametrize(
    ("test", "skip_transactions", "prepared"),
    [
        ("oltp_point_select", "off", "disable"),
        ("oltp_point_select", "off", "auto"),
        ("oltp_read_only", "on", "disable"),
        ("oltp_read_only", "off", "disable"),
        ("oltp_read_only", "off", "auto"),
        ("oltp_read_only", "on", "auto"),
        ("oltp_read_write", "on", "disable"),
        ("oltp_read_write", "off", "disable"),
        ("oltp_read_write", "off", "auto"),
        ("oltp_read_write", "on", "auto"),
    ],
)
def test_sysbench_runs_without_an_error(
    sql_gateway: SqlGateway, test: str, skip_transactions: str, prepared: str
) -> None:
    if sql_gateway.group.primary.flavor == "mysql" and (test, skip_transactions, prepared) not in (
        ("oltp_point_select", "off", "disable"),
        ("oltp_point_select", "off", "auto"),
        ("oltp_read_write", "on", "auto"),
    ):
        pytest.skip("the rest of the matrix is run against MariaDB")
    sysbench(sql_gateway, test, "prepare")
    sql_gateway.group.wait_caught_up()
    before = served(sql_gateway)
    skips = [] if test == "oltp_point_select" else [f"--skip-trx={skip_transactions}"]
    report = sysbench(sql_gateway, test, f"--db-ps-mode={prepared}", *skips, "run")
    after = served(sql_gateway)
    errors = re.search(r"ignored errors:\s+(\d+)", report)
    reconnects = re.search(r"reconnects:\s+(\d+)", report)
    assert errors is not None
    assert reconnects is not None
    assert int(reconnects[1]) == 0, report
    if test != "oltp_read_write":  # deadlocks and duplicate keys are the test's own
        assert int(errors[1]) == 0, report
    primary, *replicas = [now - then for now, then in zip(after, before, strict=True)]
    if test == "oltp_point_select":
        assert primary < (sum(replicas)) / 10
        assert min(replicas) > sum(replicas) / 4
    elif skip_transactions == "on":
        assert sum(replicas) > primary
