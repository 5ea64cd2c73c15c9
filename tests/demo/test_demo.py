"""The demo as a person runs it: what it shows, what it returns, and that nothing of it is left."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pymysql
import pytest
from pymemcache.client.base import Client as MemcacheClient

from gateway.demo.programs import FOLDER_VARIABLE, ServerMissingError, mysqld

pytestmark = [pytest.mark.servers, pytest.mark.slow]

SECONDS = "8"
PATIENCE_SECONDS = 120.0


def let_sigint_through() -> None:
    """A shell without job control has what it starts with & ignore Ctrl-C, the tests and their children included."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Demo:
    """`gateway demo` as a process, whose temporary folder is in `folder`; what it printed so far is in `output`."""

    def __init__(self, folder: Path, *options: str, terminal: bool = False) -> None:
        self.folder = folder
        self.output = ""
        self._read, write = pty.openpty() if terminal else os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "demo", *options],
            stdin=subprocess.DEVNULL,
            stdout=write,
            stderr=write,
            cwd=folder.parent,
            env={**os.environ, "TMPDIR": str(folder), "TERM": "xterm", "COLUMNS": "150", "LINES": "60"},
            start_new_session=True,
            preexec_fn=let_sigint_through,  # no other thread runs yet
        )
        os.close(write)
        self._deadline = time.monotonic() + PATIENCE_SECONDS

    def wait_for(self, words: str) -> None:
        """Reads on until `words` were printed."""
        while words not in self.output:
            assert self._more(), f"it ended without {words!r}:\n{self.output}"

    def end(self) -> int:
        """Reads to the end; the exit status."""
        while self._more():
            pass
        return self.process.wait(PATIENCE_SECONDS)

    def family(self) -> frozenset[int]:
        """Its processes, and theirs."""
        found: set[int] = set()
        waiting = [self.process.pid]
        while waiting:
            pid = waiting.pop()
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                waiting += [int(child) for child in children.read_text().split()]
            found.update(waiting)
        return frozenset(found)

    def nothing_is_left(self, processes: frozenset[int] = frozenset()) -> bool:
        """Whether, after the moment that the keeper needs, `processes` are gone, and whatever names the folder."""
        while time.monotonic() < self._deadline:
            if not any(Path(f"/proc/{pid}").exists() for pid in processes | self._named()):
                return not list(self.folder.iterdir())
            select.select([], [], [], 0.05)
        return False

    def _named(self) -> set[int]:
        """The processes with its folder in their command line."""
        folder = str(self.folder).encode()
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return {pid for pid in pids if folder in _command_line(Path(f"/proc/{pid}"))}

    def _more(self) -> bool:
        ready, _, _ = select.select([self._read], [], [], max(0.0, self._deadline - time.monotonic()))
        assert ready, f"no end after {PATIENCE_SECONDS:g} s:\n{self.output}"
        try:
            chunk = os.read(self._read, 65536)
        except OSError:  # a terminal's way of saying that nobody has its other end any more
            return False
        self.output += chunk.decode(errors="replace")
        return bool(chunk)

    def release(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._read)


def _command_line(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Demo]]:
    """Starts a demo whose temporary files go to a folder of its own."""
    folder = tmp_path_factory.mktemp("demo")
    started: list[Demo] = []

    def start(*options: str, terminal: bool = False) -> Demo:
        started.append(Demo(folder, *options, terminal=terminal))
        return started[-1]

    yield start
    for demo in started:
        demo.release()


def test_without_a_terminal_it_ends_well_and_says_what_held(start: Callable[..., Demo]) -> None:
    demo = start("--seconds", SECONDS)
    assert demo.end() == 0, demo.output
    assert re.search(r"all \d+ checks held", demo.output)
    assert "FAILED" not in demo.output
    for words in (
        "mysql://app:",
        "reads after writes are never stale",
        "equal the primary key by key",
        "ledger adds up",
    ):
        assert words in demo.output
    assert demo.nothing_is_left()


def test_what_it_prints_can_be_connected_to_meanwhile(start: Callable[..., Demo]) -> None:
    demo = start("--seconds", "60")
    demo.wait_for("are at work")
    found = re.search(r"mysql://(\w+):([\w-]+)@([\d.]+):(\d+)/(\w+)", demo.output)
    assert found is not None
    user, password, host, port, database = found.groups()
    with (
        contextlib.closing(
            pymysql.connect(host=host, port=int(port), user=user, password=password, database=database, autocommit=True)
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT COUNT(*) FROM products")
        assert cursor.fetchall() == ((40,),)
    found = re.search(r"memcached +([\d.]+):(\d+)", demo.output)
    assert found is not None
    cache = MemcacheClient((found[1], int(found[2])), timeout=10)
    assert cache.set("mine", b"value", noreply=False)
    assert cache.get("mine") == b"value"
    cache.close()
    found = re.search(r"status +(.+)", demo.output)
    assert found is not None
    status = subprocess.run([*shlex.split(found[1]), "--json"], capture_output=True, text=True, check=True)
    assert set(json.loads(status.stdout)["groups"]) == {"shop", "cache"}


def test_at_a_terminal_it_shows_who_serves_what(start: Callable[..., Demo]) -> None:
    demo = start("--seconds", SECONDS, terminal=True)
    assert demo.end() == 0, demo.output
    for words in ("reads/s", "Ctrl-C ends it", "replica", "lag ms", "ledger"):
        assert words in demo.output
    assert demo.nothing_is_left()


def test_killing_the_command_leaves_nothing(start: Callable[..., Demo]) -> None:
    demo = start("--seconds", "60")
    demo.wait_for("are at work")
    family = demo.family()
    assert len(family) == 10  # the keeper, three SQL servers, five memcached servers, the gateway
    demo.process.kill()
    assert demo.nothing_is_left(family)


def test_ctrl_c_ends_it_cleanly(start: Callable[..., Demo]) -> None:
    demo = start("--seconds", "60")
    demo.wait_for("are at work")
    family = demo.family()
    demo.process.send_signal(signal.SIGINT)
    assert demo.end() == 130
    assert "Traceback" not in demo.output
    assert "nothing is left" in demo.output
    assert demo.nothing_is_left(family)


def test_a_missing_server_is_one_line_that_says_what_to_do(
    start: Callable[..., Demo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, "/nonexistent")
    demo = start("--mysql")
    assert demo.end() == 3
    assert len(demo.output.splitlines()) == 1
    assert "make servers" in demo.output


def test_too_few_seconds_are_a_usage_error(start: Callable[..., Demo]) -> None:
    demo = start("--seconds", "1")
    assert demo.end() == 2
    assert len(demo.output.splitlines()) == 1


def test_mysql_in_place_of_mariadb(start: Callable[..., Demo]) -> None:
    try:
        mysqld()
    except ServerMissingError as missing:
        pytest.skip(str(missing))
    demo = start("--mysql", "--seconds", SECONDS)
    assert demo.end() == 0, demo.output
    assert "a MySQL primary" in demo.output
