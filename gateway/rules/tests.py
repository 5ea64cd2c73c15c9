"""Runs the [[test]] entries of rule files, and says of each that fails what was expected and what came of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from gateway.errors import ConfigError
from gateway.rules.model import Expect, RuleFile, Test
from gateway.rules.setting import Setting
from gateway.rules.verdict import Verdict


def failing_tests(files: Iterable[RuleFile], setting: Setting) -> list[ConfigError]:
    """One problem with file and line for every test that fails, in the order of the files."""
    return [problem for file in files for test in file.tests for problem in _run(file.file, test, setting)]


def _run(file: str, test: Test, setting: Setting) -> Iterator[ConfigError]:
    text = test.sql if test.sql is not None else test.command
    assert text is not None  # load has seen to it
    line = int(test.place.rpartition(":")[2])
    try:
        explainer = setting.explainer(
            "mysql" if test.sql is not None else "memcached",
            listener=test.listener,
            user=test.user,
            client=test.client,
            database=test.database,
        )
    except ConfigError as error:
        yield ConfigError(f"test: {error.message}", file, line)
        return
    verdict = explainer.explain(text.encode())
    for what, expected, got in _differences(test.expect, verdict):
        because = f" ({verdict.reason})" if what in ("to", "kind") else ""
        yield ConfigError(f"test failed: {_short(text)}: expected {what} = {expected}, got {got}{because}", file, line)


def _differences(expect: Expect, verdict: Verdict) -> Iterator[tuple[str, str, str]]:
    """What was expected otherwise: the key, its value, and what came of it."""
    if expect.block is not None:
        if expect.block is True and verdict.block is None:
            yield "block", "true", "not refused"
        elif expect.block is False and verdict.block is not None:
            yield "block", "false", f'refused with "{verdict.block}"'
        elif isinstance(expect.block, str) and expect.block != verdict.block:
            yield "block", f'"{expect.block}"', "not refused" if verdict.block is None else f'"{verdict.block}"'
    elif verdict.block is not None and expect.to is not None:
        # Refused, it goes nowhere, whichever side it would have gone to.
        yield "to", f'"{expect.to}"', f'refused with "{verdict.block}"'
        return
    words = {
        "kind": (expect.kind, verdict.kind.value),
        "to": (expect.to, verdict.target.value),
        "rule": (expect.rule, verdict.rule or ""),
        "consistency": (expect.consistency, verdict.consistency.value if verdict.consistency else ""),
        "replicate": (expect.replicate, verdict.replicate.value if verdict.replicate else ""),
    }
    for what, (wanted, got) in words.items():
        if wanted is not None and wanted != got:
            yield what, f'"{wanted}"', f'"{got}"' if got else "none"
    for what in ("max_lag", "freshness_wait", "timeout"):
        seconds, came = getattr(expect, what), getattr(verdict, what)
        if seconds is not None and (came is None or not math.isclose(seconds, came)):
            yield what, f"{seconds:g} s", "none" if came is None else f"{came:g} s"


def _short(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= 80 else one_line[:77] + "..."
