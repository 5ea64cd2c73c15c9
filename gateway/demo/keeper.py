"""Holds the servers of one stack: starts them, and ends them and their folder when its starter is gone.

The starter runs this file as a program of its own and keeps the other end of its standard input. That pipe closes when
the starter ends, however it ends, SIGKILL included; the keeper then kills every process group that it started, waits
for them, and removes the folder. Should the keeper itself be killed, the kernel kills its children: each asked for
that (prctl(2), PR_SET_PDEATHSIG), which is safe here because the signal follows the death of the parent *thread*, and
the keeper has one only.

One JSON object per line in, one per line out:

    {"do": "spawn", "argv": [...], "log": path, "cwd": path, "env": {...}}  ->  {"pid": 1234}
    {"do": "status", "pid": 1234}                                            ->  {"status": 0 | -9 | null}

A failure is {"error": text}. It needs nothing but the standard library, so that it starts in a few milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from typing import Any

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


class Keeper:
    """The processes that were started, by process id; each leads a process group of its own."""

    def __init__(self) -> None:
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._pid = os.getpid()

    def spawn(self, argv: list[str], log: str, cwd: str, env: dict[str, str]) -> int:
        """Starts a process whose output is appended to `log`; returns its process id."""
        with open(log, "ab") as output:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**os.environ, **env},
                start_new_session=True,
                preexec_fn=self._die_with_keeper,
            )
        self._children[child.pid] = child
        return child.pid

    def _die_with_keeper(self) -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self._pid:  # it died before the line above took effect
            os._exit(1)

    def status(self, pid: int) -> int | None:
        """The exit status of a child as `subprocess` gives it, None while it runs.

        Nobody is reaped but here and at the end: a child that ends at once must still have its process id when the
        starter opens a pidfd for it.
        """
        return self._children[pid].poll()

    def end(self) -> None:
        """Kills every process group and waits until its leader is gone."""
        for child in self._children.values():
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
        for child in self._children.values():
            child.wait()
        while orphans := self._orphans():
            for pid in orphans:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def _orphans(self) -> list[int]:
        """Grandchildren come to this process, their subreaper, when their parents end."""
        with open(f"/proc/self/task/{self._pid}/children", encoding="ascii") as children:
            return [int(pid) for pid in children.read().split()]


def _answer(keeper: Keeper, request: dict[str, Any]) -> dict[str, Any]:
    try:
        if request["do"] == "spawn":
            return {"pid": keeper.spawn(request["argv"], request["log"], request["cwd"], request["env"])}
        return {"status": keeper.status(request["pid"])}
    except (OSError, subprocess.SubprocessError) as error:
        return {"error": str(error)}


def _serve(keeper: Keeper) -> None:
    """Answers until the starter closes its end, or somebody ends this process with SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    for line in sys.stdin.buffer:
        os.write(1, json.dumps(_answer(keeper, json.loads(line))).encode() + b"\n")


def main(folder: str) -> None:
    """Serves the starter; whatever ends that, the processes and the folder go."""
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(ignored, lambda *_: None)  # not SIG_IGN, which the servers would inherit
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    keeper = Keeper()
    try:
        _serve(keeper)
    except BrokenPipeError:
        pass  # the starter ended between its request and our answer
    finally:
        keeper.end()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
