"""`gateway demo`: real servers and a gateway on this machine, and who serves what while a replica goes and comes."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from typing import Annotated, Final

from cyclopts import Parameter, validators
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from gateway.cli.main import Exit
from gateway.cli.status import render
from gateway.demo.course import Course
from gateway.demo.mysql_servers import APP
from gateway.demo.stack import Stack
from gateway.demo.verdict import Check, judge

SECONDS: Final = 20.0
SECONDS_AT_A_TERMINAL: Final = 40.0
SHORTEST_SECONDS: Final = 5.0
WIDTH: Final = 160  # where there is no terminal that has one


def demo(
    *,
    seconds: Annotated[float | None, Parameter(validator=validators.Number(gte=SHORTEST_SECONDS))] = None,
    mysql: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Start real servers and a gateway on this machine, and watch reads and writes being split.

    A MariaDB primary with two replicas, memcached pools of two and three
    servers, the gateway before them, and a few clients that check every answer.
    One replica is stopped and brought back, so that one sees reads move.
    Meanwhile the gateway can be used: what to connect to is printed.

    Everything is in a temporary folder and listens on loopback only; nothing is
    left of it, however the command ends. The exit code is 0 if all that was
    checked held, 1 if not, 3 if a server is missing.

    Examples:

        gateway demo
        gateway demo --seconds 300
        gateway demo --mysql

    Parameters
    ----------
    seconds
        How long the clients work; by default 40 at a terminal, 20 elsewhere. Ctrl-C ends it earlier.
    mysql
        MySQL 9 instead of MariaDB.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    if seconds is None:
        seconds = SECONDS_AT_A_TERMINAL if console.is_terminal else SECONDS
    screen = Screen(console)
    try:
        with Stack() as stack:
            course = Course(stack, "mysql" if mysql else "mariadb", seconds, screen.say)
            course.set_up()
            screen.show_addresses(course)
            with course.clients_at_work(), screen.live(course):
                course.play()
            screen.say("the clients have ended; comparing the servers with what they wrote")
            checks = judge(course)
            for part in _groups(course):
                console.print(part)
    except KeyboardInterrupt:
        screen.say("interrupted: all servers are stopped, nothing is left")
        raise
    return _tell(console, checks)


class Screen:
    """Prints events; at a terminal with a live table below them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()

    def say(self, words: str) -> None:
        """Prints an event with its time."""
        self._console.print(f"[dim]{time.monotonic() - self._began:5.1f} s[/]  {words}", soft_wrap=True)

    def show_addresses(self, course: Course) -> None:
        """What a person can connect to meanwhile."""
        gateway = course.gateway
        client = "mariadb" if course.flavor == "mariadb" else "mysql"
        options = f"-h {gateway.host} -P {gateway.port} -u {APP.user} -p{APP.password}"
        status = [sys.executable, "-m", "gateway", "status", "-c", str(gateway.config_file)]
        lines = [
            ("SQL", f"mysql://{APP.user}:{APP.password}@{gateway.address}/shop"),
            ("", f'{client} {options} shop -e "SELECT @@server_id"'),
            ("memcached", gateway.cache_address),
            ("status", shlex.join(status)),
        ]
        for name, words in lines:
            self._console.print(f"         [bold]{name:10}[/] {words}", soft_wrap=True, highlight=False)

    def live(self, course: Course) -> contextlib.AbstractContextManager[object]:
        """Shows the course's tables while the block runs; without a terminal, events and summary tell enough."""
        if not self._console.is_terminal:
            return contextlib.nullcontext()
        return Live(console=self._console, get_renderable=lambda: _tables(course), refresh_per_second=4, transient=True)


def _groups(course: Course) -> list[RenderableType]:
    """What `gateway status` shows but its listeners, whose addresses were printed: a terminal may have 24 rows."""
    if not course.watch.last:
        return []
    parts = render({**course.watch.last, "listeners": []})
    return [part for part in parts if not (isinstance(part, Table) and part.row_count == 0)]


def _tables(course: Course) -> RenderableType:
    rates = course.reads_per_second()
    reads = course.tally().reads
    table = Table(box=None, pad_edge=False, title="what the clients saw: @@server_id", title_justify="left")
    for column in ("server", "role", "runs", "reads", "reads/s"):
        table.add_column(column)
    for server in course.group.servers:
        table.add_row(
            server.address,
            "primary" if server is course.group.primary else "replica",
            "[green]yes[/]" if server.running else "[red]no[/]",
            str(reads[server.server_id]),
            f"{rates.get(server.server_id, 0.0):.0f}",
        )
    left = max(0.0, course.began + course.seconds - time.monotonic())
    failed = [f"[red]{client.name}: {client.failure}[/]" for client in course.clients if client.failure]
    return Group(*_groups(course), table, *failed, f"[dim]{left:.0f} s left; Ctrl-C ends it[/]")


def _tell(console: Console, checks: list[Check]) -> int:
    for check in checks:
        console.print(
            f"{'[green]held  [/]' if check.held else '[red]FAILED[/]'}  {check.name} [dim]({check.words})[/]",
            soft_wrap=True,
        )
    failed = sum(not check.held for check in checks)
    console.print(f"all {len(checks)} checks held" if not failed else f"{failed} of {len(checks)} checks failed")
    return Exit.CHECK_FAILED if failed else Exit.OK
