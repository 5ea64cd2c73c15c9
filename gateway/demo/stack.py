"""A temporary folder and the processes that live and die with it.

Everything here is plain synchronous code, for fixtures, benchmarks and, by `trio.to_thread`, the demo. The processes
are children of a keeper (keeper.py), not of the caller: they end, and the folder goes, however the caller ends.

    with Stack() as stack:
        process = stack.spawn(["memcached", "-p", str(stack.port())], name="memcached")
        process.wait(timeout=1.0)
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from gateway.errors import GatewayError

LOOPBACK: Final = "127.0.0.1"

KEEPER: Final = Path(__file__).with_name("keeper.py")


class ServerFailedError(GatewayError):
    """A process did not start, ended too early or did not answer; the text has the end of its log."""


class Process:
    """A running process of a stack, held by a pidfd (pidfd_open(2)), so that a reused process id is never signalled."""

    def __init__(self, stack: Stack, pid: int, name: str, log: Path) -> None:
        self.pid = pid
        self.name = name
        self.log = log
        self._stack = stack
        self._pidfd = os.pidfd_open(pid)
        self._status: int | None = None

    def wait(self, timeout: float) -> bool:
        """Waits at most `timeout` seconds; true when the process has ended."""
        if self._pidfd < 0:
            return True
        # poll and not select, which refuses descriptors above 1023
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        if not poller.poll(timeout * 1000):
            return False
        if self._status is None:
            # asking also reaps it: mysqld takes a zombie's process id in its lock file for a running server
            with contextlib.suppress(ServerFailedError):  # no keeper, no zombie; the next to ask for more is told
                self._status = self._stack.exit_status(self.pid)
        return True

    @property
    def running(self) -> bool:
        """True until the process has ended; a stopped (SIGSTOP) one runs."""
        return not self.wait(0)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; nothing happens when the process has ended."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def end(self, timeout: float = 10.0) -> None:
        """Asks it to end (SIGTERM), kills it after `timeout` seconds."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)
        if not self.wait(timeout):
            self.kill()

    def kill(self) -> None:
        """Ends it at once (SIGKILL) and waits until it is gone."""
        self.signal(signal.SIGKILL)
        if not self.wait(30.0):
            raise ServerFailedError(f"{self.name} (process {self.pid}) outlived SIGKILL for 30 s")

    def exit_status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs, and where it died with its keeper."""
        return None if self.running else self._status

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of its log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def release(self) -> None:
        """Gives the descriptor back; the process must have ended."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


class Stack:
    """The temporary folder, its keeper, and the loopback ports that were given out. Thread-safe."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gateway-"))  # short: a unix socket's path has 107 bytes
        self._lock = threading.RLock()
        self._processes: list[Process] = []
        self._reserved: list[socket.socket] = []
        self._keeper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def spawn(
        self, argv: Sequence[str], *, name: str, env: dict[str, str] | None = None, log: Path | None = None
    ) -> Process:
        """Starts a process in a session of its own, in the folder; its output is appended to `log` (NAME.log)."""
        log = log or self.folder / f"{name}.log"
        request = {"do": "spawn", "argv": list(argv), "log": str(log), "cwd": str(self.folder), "env": env or {}}
        with self._lock:
            process = Process(self, self._ask(request)["pid"], name, log)
            self._processes.append(process)
        return process

    def exit_status(self, pid: int) -> int | None:
        """The exit status of a process that this stack started; None while it runs."""
        status: int | None = self._ask({"do": "status", "pid": pid})["status"]
        return status

    def port(self) -> int:
        """A port of 127.0.0.1 that nobody listens on.

        It lies below the range from which the kernel takes ports for outgoing connections, so that a server can come
        back to it after a restart, and it is reserved against other stacks on this machine by the name of an abstract
        unix socket. Somebody else may still take it before its server binds it: Server.start tries another then.
        """
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        low, high = (10_000, first) if first > 12_000 else (40_000, 65_000)
        for _ in range(1000):
            number = random.randrange(low, high)
            reservation = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                reservation.bind(f"\0rw-gateway-port-{number}")
                with socket.socket() as probe:
                    probe.bind((LOOPBACK, number))
            except OSError:
                reservation.close()
                continue
            with self._lock:
                self._reserved.append(reservation)
            return number
        raise ServerFailedError(f"no free port between {low} and {high} on {LOOPBACK}")

    def close(self) -> None:
        """Kills every process and removes the folder. A stack that was closed stays closed."""
        with self._lock:
            if self._keeper is not None:
                assert self._keeper.stdin is not None
                assert self._keeper.stdout is not None
                with contextlib.suppress(BrokenPipeError):  # of an unsent request, when the keeper had ended
                    self._keeper.stdin.close()
                self._keeper.wait()
                self._keeper.stdout.close()
                self._keeper = None
            for process in self._processes:
                process.release()
            self._processes.clear()
            for reservation in self._reserved:
                reservation.close()
            self._reserved.clear()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            keeper = self._running_keeper()
            assert keeper.stdin is not None
            assert keeper.stdout is not None
            try:
                keeper.stdin.write(json.dumps(request).encode() + b"\n")
                keeper.stdin.flush()
                answer: dict[str, Any] = json.loads(keeper.stdout.readline())
            except (BrokenPipeError, json.JSONDecodeError) as error:
                raise ServerFailedError(f"the keeper of {self.folder} has ended") from error
        if "error" in answer:
            raise ServerFailedError(answer["error"])
        return answer

    def _running_keeper(self) -> subprocess.Popen[bytes]:
        if self._keeper is None:
            if not self.folder.is_dir():
                raise ServerFailedError("this stack was closed")
            self._keeper = subprocess.Popen(
                # -I and -S: no site packages and no environment; it is up before Python's ordinary start-up would be
                [sys.executable, "-I", "-S", str(KEEPER), str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C at the terminal is the starter's to handle
            )
        return self._keeper
