"""Runs other people's test suites directly and through the gateway, and reports every difference (`make suites`).

    python tests/suites/run_suites.py                                  everything; takes about an hour
    python tests/suites/run_suites.py --suite pymysql --server mariadb
    python tests/suites/run_suites.py --suite django --server mariadb -- transactions

A group of a primary and one replica is started per kind of server. Each suite runs at the primary directly, then
through a gateway before both servers, so that reads are split. If that shows a difference without a known reason, it
runs through a gateway before the primary alone, too, which tells a fault of the wire from one of the split (`--through`
chooses). Each run begins with empty databases.

At the end tests/system/test_sql_client_matrix.py runs with all its clients and a result of a million rows ("clients").

The report goes to tests/suites/reports. A difference that known.toml does not explain makes the exit status 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent.parent), str(FOLDER.parent / "servers")]

from certificates import Authority  # noqa: E402
from gateways import SqlGateway  # noqa: E402
from outcomes import PASSABLE, Difference, Known, Outcome, counts, differences, read_known, read_outcomes  # noqa: E402
from sources import Cache, SourceMissingError  # noqa: E402
from suite_list import ROOT, SECOND, SUITES, Run, Suite, Target  # noqa: E402

from gateway.demo.mysql_servers import APP, Flavor, MysqlFamilyServer, MysqlGroup, mysql_group  # noqa: E402
from gateway.demo.programs import ServerMissingError  # noqa: E402
from gateway.demo.stack import Stack  # noqa: E402

REPORTS: Final = FOLDER / "reports"
KNOWN: Final = FOLDER / "known.toml"
DIRECT: Final = "direct"
CLIENTS: Final = "clients"
CLIENT_ROWS: Final = 1_000_000
SPLIT: Final = "split"
PRIMARY_ONLY: Final = "primary only"
LIMIT_SECONDS: Final = 3600.0  # of one run of one suite
SYSTEM_DATABASES: Final = frozenset({"mysql", "information_schema", "performance_schema", "sys", "shop", "sbtest"})
SERVER_OPTIONS: Final = (
    "--local-infile=ON",
    "--max-allowed-packet=64M",
    "--log-bin-trust-function-creators=ON",
    "--transaction-isolation=READ-COMMITTED",  # so that reads before the first write may be split, too
)


class UserGateway(SqlGateway):
    """A gateway as a user starts it: not in Python's development mode, and logging what matters.

    It offers what its servers offer: LOAD DATA LOCAL, and TLS where MySQL has made itself a certificate. Reads before
    the first write are split even without autocommit, with which most drivers start.
    """

    def __init__(self, stack: Stack, before: MysqlGroup) -> None:
        listener = 'local_infile = true\nautocommit_off_reads = "replica"'
        if before.primary.flavor == "mysql":
            pair = Authority(stack.folder).issue("gateway", "127.0.0.1")
            listener += f'\ntls = {{cert = "{pair.cert}", key = "{pair.key}"}}'
        super().__init__(stack, before, listener=listener, users=(APP, ROOT, SECOND))

    def command(self) -> list[str]:
        return [sys.executable, "-m", "gateway", "run", "-c", str(self.config_file)]

    def prepare(self) -> None:
        super().prepare()
        self.config_file.write_text(self.config_file.read_text().replace('level = "debug"', 'level = "info"'))


@dataclass(frozen=True)
class Compared:
    """A suite at one kind of server: directly and through one gateway."""

    suite: str
    server: str
    through: str
    direct_outcomes: dict[str, Outcome]
    through_outcomes: dict[str, Outcome]
    seconds: tuple[float, float]
    differences: list[Difference]
    replica_reads: int  # commands that a replica served
    faults: list[str]  # lines of the gateway's log

    @property
    def unexplained(self) -> list[Difference]:
        """Differences without a reason."""
        return [each for each in self.differences if each.reason is None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is asked for; 1 if something differs without a known reason."""
    options = _options(arguments)
    cache = Cache()
    try:
        cache.make_environment()
    except SourceMissingError as error:
        print(f"suites: {error}", file=sys.stderr)
        return 1
    suites = [suite for suite in SUITES if not options.suite or suite.name in options.suite]
    flavors = options.server if suites else []
    known = read_known(KNOWN)
    REPORTS.mkdir(exist_ok=True)
    report = REPORTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.md"
    compared: list[Compared] = []
    missing: list[str] = []
    for flavor in flavors:
        try:
            with Stack() as stack:
                for suite in suites:
                    if flavor in suite.flavors:
                        try:
                            compared += _compare(stack, suite, flavor, cache, options, known)
                        except SourceMissingError as error:
                            missing.append(f"{suite.name}: {error}")
                        report.write_text(_report(compared, missing, cache, {}))
        except ServerMissingError as error:
            missing.append(str(error))
    clients = _run_clients() if not options.suite or CLIENTS in options.suite else {}
    report.write_text(_report(compared, missing, cache, clients))
    print(report.read_text())
    print(f"suites: the report is {report}")
    bad = (
        missing
        or any(outcome.status not in PASSABLE for outcome in clients.values())
        or any(each.unexplained or each.faults or not each.through_outcomes for each in compared)
    )
    return 1 if bad else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--suite", action="append", choices=[*(suite.name for suite in SUITES), CLIENTS])
    parser.add_argument("--server", action="append", choices=["mariadb", "mysql"])
    parser.add_argument("--through", action="append", choices=[SPLIT, PRIMARY_ONLY])
    parser.add_argument("only", nargs="*", help="part of a suite, in its own words")
    options = parser.parse_args(arguments)
    options.server = options.server or ["mariadb", "mysql"]
    return options


# ---------------------------------------------------------------- running

_groups: dict[tuple[int, Flavor], MysqlGroup] = {}


def _group(stack: Stack, flavor: Flavor) -> MysqlGroup:
    key = (id(stack), flavor)
    if key not in _groups:
        _groups[key] = group = mysql_group(stack, flavor, replicas=1, options=SERVER_OPTIONS)
        group.primary.query(f"CREATE USER '{ROOT.user}'@'%' IDENTIFIED BY '{ROOT.password}'")
        group.primary.query(f"GRANT ALL ON *.* TO '{ROOT.user}'@'%' WITH GRANT OPTION")
    return _groups[key]


def _compare(
    stack: Stack, suite: Suite, flavor: Flavor, cache: Cache, options: argparse.Namespace, known: list[Known]
) -> list[Compared]:
    group = _group(stack, flavor)
    folder = stack.folder / f"suite-{suite.name}-{flavor}"
    direct, direct_seconds = _run(suite, group, group.primary, folder / DIRECT, cache, options)
    found: list[Compared] = []
    for through in options.through or [SPLIT, PRIMARY_ONLY]:
        if not options.through and found and not found[0].unexplained:
            break
        before = group if through == SPLIT else MysqlGroup(group.primary, [])
        gateway = UserGateway(stack, before)
        gateway.start()
        gateway.wait_serving()
        outcomes, seconds = _run(suite, group, gateway, folder / through.replace(" ", "-"), cache, options)
        reads = sum(member["reads"] for member in gateway.orders["members"] if member["role"] == "replica")
        faults = gateway.faults()
        gateway.expected = [""]  # they are reported
        gateway.end()
        different = [
            replace(each, reason=_reason(known, suite.name, flavor, through, each.test))
            for each in differences(direct, outcomes)
        ]
        found.append(
            Compared(suite.name, flavor, through, direct, outcomes, (direct_seconds, seconds), different, reads, faults)
        )
    return found


def _reason(known: list[Known], suite: str, server: str, through: str, test: str) -> str | None:
    return next((each.reason for each in known if each.explains(suite, server, through, test)), None)


def _run(
    suite: Suite,
    group: MysqlGroup,
    target: MysqlFamilyServer | SqlGateway,
    folder: Path,
    cache: Cache,
    options: argparse.Namespace,
) -> tuple[dict[str, Outcome], float]:
    """One run of a suite, from empty databases; its outcomes and how long it took."""
    _empty(group, suite)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    place = Target(target.host, target.port, group.primary.flavor, folder)
    run = suite.prepare(cache, place, options.only)
    log = REPORTS / f"{suite.name}-{group.primary.flavor}-{folder.name}.log"
    print(f"suites: {suite.name}, {group.primary.flavor}, {folder.name}", flush=True)
    started = time.monotonic()
    _execute(run, log)
    seconds = time.monotonic() - started
    outcomes = read_outcomes(place.outcomes)
    print(f"suites:   {_counted(outcomes)}, {seconds:.0f} s", flush=True)
    return outcomes, seconds


def _run_clients() -> dict[str, Outcome]:
    """Six clients with a big result; the test compares them itself."""
    outcomes = REPORTS / f"{CLIENTS}.xml"
    outcomes.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", f"--junitxml={outcomes}", "tests/system/test_sql_client_matrix.py"]
    root = FOLDER.parent.parent
    environment = {"BIG_RESULT_ROWS": str(CLIENT_ROWS), "PYTHONPATH": str(root)}
    print(f"suites: {CLIENTS}", flush=True)
    _execute(Run(command, root, environment), REPORTS / f"{CLIENTS}.log")
    found = read_outcomes(outcomes)
    print(f"suites:   {_counted(found)}", flush=True)
    return found or {CLIENTS: Outcome("error", f"nothing ran: see {CLIENTS}.log")}


def _execute(run: Run, log: Path) -> None:
    environment = {**os.environ, **run.environment}
    if "PYTHONPATH" not in run.environment:
        environment.pop("PYTHONPATH", None)
    with log.open("wb") as output:
        process = subprocess.Popen(
            run.command,
            cwd=run.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            output.write(f"\nsuites: ended after {LIMIT_SECONDS:g} s\n".encode())
        finally:
            process.kill()
            process.wait()


def _empty(group: MysqlGroup, suite: Suite) -> None:
    primary = group.primary
    for (name,) in primary.query("SHOW DATABASES"):
        if name not in SYSTEM_DATABASES:
            primary.query(f"DROP DATABASE `{name}`")
    for name in suite.databases:
        primary.query(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    for statement in suite.statements:
        primary.query(statement)
    group.wait_caught_up()


# ---------------------------------------------------------------- the report


def _counted(outcomes: dict[str, Outcome]) -> str:
    return ", ".join(f"{number} {status}" for status, number in sorted(counts(outcomes).items())) or "nothing ran"


def _report(compared: list[Compared], missing: list[str], cache: Cache, clients: dict[str, Outcome]) -> str:
    versions = {suite.package: cache.version(suite.package) for suite in SUITES}
    lines = [
        "# Other people's suites, directly and through the gateway",
        "",
        "Clients: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        "",
        "| suite | server | through | direct | through the gateway | differences | without a reason "
        "| commands at the replica | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in compared:
        lines.append(
            f"| {each.suite} | {each.server} | {each.through} | {_counted(each.direct_outcomes)} "
            f"| {_counted(each.through_outcomes)} | {len(each.differences)} | {len(each.unexplained)} "
            f"| {each.replica_reads} | {each.seconds[0]:.0f}, {each.seconds[1]:.0f} |"
        )
    if clients:
        lines += ["", f"Six clients with {CLIENT_ROWS:,} rows, told the same bytes: {_counted(clients)}."]
        failed = {test: outcome for test, outcome in clients.items() if outcome.status not in PASSABLE}
        lines += [f"- `{test}`: {_said(outcome)}" for test, outcome in failed.items()]
    lines += ["", *(f"Not run: {line}" for line in missing)]
    for each in compared:
        if each.differences or each.faults:
            lines += ["", f"## {each.suite}, {each.server}, {each.through}", ""]
        for difference in each.differences:
            lines += [
                f"- `{difference.test}`: {difference.reason or 'WITHOUT A REASON'}",
                f"  - direct: {_said(difference.direct)}",
                f"  - through: {_said(difference.through)}",
            ]
        lines += [f"- the gateway's log: `{line}`" for line in each.faults]
    return "\n".join(lines) + "\n"


def _said(outcome: Outcome | None) -> str:
    return "not run" if outcome is None else f"{outcome.status} {outcome.line}".strip()


if __name__ == "__main__":
    sys.exit(main())
