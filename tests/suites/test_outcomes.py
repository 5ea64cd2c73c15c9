"""What suites write is read whole, and a difference that has no reason is seen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from outcomes import Difference, Known, Outcome, differences, read_known, read_outcomes
from run_suites import KNOWN
from suite_list import RECORDER, SUITES

SCRIPT = """
import unittest

class Sample(unittest.TestCase):
    def test_good(self): pass
    def test_failing(self): self.assertEqual(1, 2)
    def test_broken(self): raise ValueError("broken")
    def test_in_parts(self):
        for part in (1, 2):
            with self.subTest(part=part): self.assertEqual(part, 1)
    @unittest.skip("not here")
    def test_skipped(self): pass
    @unittest.expectedFailure
    def test_expected(self): self.fail()

class Unready(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise OSError("no server")
    def test_never(self): pass

unittest.main()
"""


def test_the_recorder_tells_every_outcome_of_unittest(tmp_path: Path) -> None:
    script, written = tmp_path / "script.py", tmp_path / "outcomes"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(RECORDER), str(written), str(script)], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    found = {name.rpartition(".")[2]: outcome for name, outcome in read_outcomes(written).items()}
    statuses = {name: outcome.status for name, outcome in found.items()}
    assert statuses == {
        "test_good": "passed",
        "test_failing": "failed",
        "test_broken": "error",
        "test_in_parts": "failed",
        "test_skipped": "skipped",
        "test_expected": "expected failure",
        "Unready)": "error",
    }
    assert found["test_broken"].line == "ValueError: broken"
    assert found["Unready)"].line == "OSError: no server"


def test_junit_is_read_with_errors_of_the_tear_down(tmp_path: Path) -> None:
    written = tmp_path / "outcomes"
    written.write_text(
        '<?xml version="1.0"?><testsuites><testsuite><testcase classname="a" name="one"/>'
        '<testcase classname="a" name="two"/><testcase classname="a" name="two"><error message="late"/></testcase>'
        '<testcase classname="a" name="three"><skipped type="pytest.xfail" message=""/></testcase>'
        "</testsuite></testsuites>"
    )
    assert read_outcomes(written) == {
        "a::one": Outcome("passed"),
        "a::two": Outcome("error", "late"),
        "a::three": Outcome("expected failure"),
    }


def test_what_wrote_nothing_has_no_outcomes(tmp_path: Path) -> None:
    assert read_outcomes(tmp_path / "nothing") == {}


def test_differences_are_of_status_of_what_was_said_and_of_what_ran() -> None:
    direct = {
        "same": Outcome("passed"),
        "by chance": Outcome("failed", "session 12345 at 0x7f00"),
        "otherwise": Outcome("failed", "one"),
        "status": Outcome("passed"),
        "gone": Outcome("passed"),
    }
    through = {
        "same": Outcome("passed"),
        "by chance": Outcome("failed", "session 54321 at 0x8e11"),
        "otherwise": Outcome("failed", "another"),
        "status": Outcome("skipped", "too old"),
        "more": Outcome("passed"),
    }
    assert differences(direct, through) == [
        Difference("gone", Outcome("passed"), None),
        Difference("more", None, Outcome("passed")),
        Difference("otherwise", Outcome("failed", "one"), Outcome("failed", "another")),
        Difference("status", Outcome("passed"), Outcome("skipped", "too old")),
    ]


def test_a_known_difference_is_known_where_it_says() -> None:
    known = Known(suite="django", test="backends.*", reason="why", server="mysql")
    assert known.explains("django", "mysql", "split", "backends.tests.One")
    assert not known.explains("django", "mariadb", "split", "backends.tests.One")
    assert not known.explains("django", "mysql", "split", "queries.tests.One")


def test_the_known_differences_are_of_suites_that_there_are_and_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs/suites.md").read_text()
    for known in read_known(KNOWN):
        assert known.suite == "*" or known.suite in {suite.name for suite in SUITES}
        assert known.test.partition("tests.")[2].rpartition("::")[2].removeprefix("test_bugs.") in page
