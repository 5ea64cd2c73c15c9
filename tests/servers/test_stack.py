"""A stack's processes and its folder go when the stack is closed, and when whoever started it is killed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.demo.stack import ServerFailedError, Stack

pytestmark = pytest.mark.servers

# a starter: a stack with a server, a child of a server that left its process group, and their ids on standard output
STARTER = """
import sys, time
from gateway.demo.servers import MemcachedServer
from gateway.demo.stack import Stack
stack = Stack()
server = MemcachedServer(stack)
server.start()
shell = stack.spawn(["sh", "-c", "setsid sleep 1000 & echo $! > orphan; exec sleep 1000"], name="shell")
while not (stack.folder / "orphan").exists() or not (stack.folder / "orphan").read_text().strip():
    shell.wait(0.01)
orphan = (stack.folder / "orphan").read_text().strip()
print(stack.folder, stack._keeper.pid, server.pid, shell.pid, orphan, flush=True)
sys.stdin.read()
"""


class Starter:
    """A process that has started a stack; its descriptors tell when each process of it has ended."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        folder, *pids = self.process.stdout.readline().split()
        self.folder = Path(folder)
        self.keeper = int(pids[0])
        self.pidfds = {int(pid): os.pidfd_open(int(pid)) for pid in pids}

    def ended(self, pid: int, timeout: float = 20.0) -> bool:
        poller = select.poll()
        poller.register(self.pidfds[pid], select.POLLIN)
        return bool(poller.poll(timeout * 1000))

    def all_ended(self) -> bool:
        return all(self.ended(pid) for pid in self.pidfds)

    def release(self) -> None:
        self.process.kill()
        self.process.communicate()
        for descriptor in self.pidfds.values():
            os.close(descriptor)


def test_killing_the_starter_ends_all_its_servers_and_removes_the_folder() -> None:
    starter = Starter()
    try:
        assert starter.folder.is_dir()
        assert not any(starter.ended(pid, 0) for pid in starter.pidfds)
        starter.process.send_signal(signal.SIGKILL)
        assert starter.all_ended()
        assert not starter.folder.exists()
    finally:
        starter.release()


def test_killing_the_keeper_ends_the_servers_and_the_starter_is_told() -> None:
    with Stack() as stack:
        process = stack.spawn(["sleep", "1000"], name="sleep")
        assert stack._keeper is not None
        stack._keeper.kill()
        assert process.wait(20.0)
        with pytest.raises(ServerFailedError, match="keeper"):
            stack.spawn(["sleep", "1000"], name="sleep")
    assert not stack.folder.exists()


def test_closing_a_stack_ends_a_paused_process_and_removes_the_folder() -> None:
    with Stack() as stack:
        process = stack.spawn(["sleep", "1000"], name="sleep")
        process.signal(signal.SIGSTOP)
        descriptor = os.pidfd_open(process.pid)
        (stack.folder / "left").write_text("something")
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    assert poller.poll(0)
    os.close(descriptor)
    assert not stack.folder.exists()


def test_a_closed_stack_starts_nothing() -> None:
    with Stack() as stack:
        pass
    with pytest.raises(ServerFailedError, match="closed"):
        stack.spawn(["sleep", "1000"], name="sleep")
    assert not stack.folder.exists()


def test_a_program_that_is_not_there_is_an_error_in_words(stack: Stack) -> None:
    with pytest.raises(ServerFailedError, match="No such file"):
        stack.spawn(["/nonexistent/program"], name="nothing")


def test_the_exit_status_and_the_log_of_a_process_are_kept(stack: Stack) -> None:
    process = stack.spawn(["sh", "-c", "echo one; echo two >&2; exit 7"], name="shell")
    assert process.wait(20.0)
    assert process.exit_status() == 7
    assert process.log_tail(1) == "two"
    other = stack.spawn(["sleep", "1000"], name="sleep")
    assert other.exit_status() is None
    other.kill()
    assert other.exit_status() == -signal.SIGKILL


def test_a_port_is_given_once_and_lies_outside_the_range_of_outgoing_connections() -> None:
    with Stack() as one, Stack() as other:
        ports = [stack.port() for stack in (one, other) for _ in range(200)]
    assert len(set(ports)) == len(ports)
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(ports) < first or first <= 12_000
