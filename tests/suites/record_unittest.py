"""Runs a script of unittest's and writes down what became of each test, as one JSON object per line.

    python record_unittest.py OUTCOMES SCRIPT [ARGUMENT...]

The script runs as it would alone: only the results are listened to, below whatever runner it brings, and a test that
hangs is ended. It needs nothing but the standard library, since it runs in the clients' own virtual environment.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import traceback
import unittest
import unittest.case
from collections.abc import Callable
from typing import Any

TEST_SECONDS = 180  # the longest test of Django's and of Connector/Python's takes ten where nothing else runs

STATUS_OF = {
    "addError": "error",
    "addFailure": "failed",
    "addSkip": "skipped",
    "addExpectedFailure": "expected failure",
    "addUnexpectedSuccess": "unexpected success",
}


class Recorder:
    """Listens to every unittest.TestResult of the process."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 - for the life of the process
        self._found: dict[int, tuple[str, str]] = {}  # of the tests that run, by their identity

    def listen(self) -> None:
        """Puts itself below unittest's results."""
        for name, status in STATUS_OF.items():
            self._wrap(name, status)
        start, stop, subtest = (
            unittest.TestResult.startTest,
            unittest.TestResult.stopTest,
            unittest.TestResult.addSubTest,
        )

        def start_test(result: unittest.TestResult, test: unittest.TestCase) -> None:
            self._found.pop(id(test), None)
            signal.alarm(TEST_SECONDS)
            start(result, test)

        def stop_test(result: unittest.TestResult, test: unittest.TestCase) -> None:
            signal.alarm(0)
            status, text = self._found.pop(id(test), ("passed", ""))
            self._write(test.id().partition(" (using")[0], status, text)  # Connector/Python adds how far it came
            stop(result, test)

        def add_subtest(result: unittest.TestResult, test: Any, part: Any, error: Any) -> None:
            if error is not None:
                self._found[id(test)] = ("failed", f"{part}: {_text_of(error)}")
            subtest(result, test, part, error)

        skip = vars(unittest.case)["_addSkip"]  # a runner may keep skips from its TestResult

        def add_skip(result: unittest.TestResult, test: unittest.TestCase, reason: str) -> None:
            self._found.setdefault(id(test), ("skipped", reason))
            skip(result, test, reason)

        for owner, name, listener in (
            (unittest.TestResult, "startTest", start_test),
            (unittest.TestResult, "stopTest", stop_test),
            (unittest.TestResult, "addSubTest", add_subtest),
            (unittest.case, "_addSkip", add_skip),
        ):
            setattr(owner, name, listener)

    def _wrap(self, name: str, status: str) -> None:
        original: Callable[..., None] = getattr(unittest.TestResult, name)

        def add(result: unittest.TestResult, test: Any, *more: Any) -> None:
            text = _text_of(more[0]) if more else ""
            if isinstance(test, unittest.TestCase):
                self._found[id(test)] = (status, text)
            else:  # setUpClass and setUpModule: no test of its own starts
                self._write(str(test), status, text)
            original(result, test, *more)

        setattr(unittest.TestResult, name, add)

    def _write(self, test: str, status: str, text: str) -> None:
        self._file.write(json.dumps({"test": test, "status": status, "text": text}) + "\n")


def _text_of(error: Any) -> str:
    if isinstance(error, tuple):
        return "".join(traceback.format_exception_only(*error[:2])).strip()
    return str(error)


def end_test(signal_number: int, _frame: object) -> None:
    """Breaks into a test that hangs."""
    raise TimeoutError(f"the test was ended after {TEST_SECONDS} s")


def main(outcomes: str, script: str, arguments: list[str]) -> None:
    """Runs the script as `python SCRIPT ARGUMENT...` would."""
    signal.signal(signal.SIGALRM, end_test)
    Recorder(outcomes).listen()
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
