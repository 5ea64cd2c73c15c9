"""Proves that no pattern needs what `re` of an old CPython 3.11 gets wrong.

Up to 3.11.4 (Debian 12 has 3.11.2) a possessive or atomic group with a lookaround in it matches what it should not
(CPython issue 106052), and nothing fails but the class of a statement.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import pytest

import gateway

LOOKAROUNDS = {"ASSERT", "ASSERT_NOT"}
BINDING = {"POSSESSIVE_REPEAT", "ATOMIC_GROUP"}

compiled: list[Any] = []


def operations(parsed: Any, within: bool = False) -> Iterator[str]:
    """Names of the lookarounds of a parsed pattern that stand within a possessive repetition or an atomic group."""
    for operation, argument in parsed:
        name = str(operation)
        if within and name in LOOKAROUNDS:
            yield name
        for part in argument if isinstance(argument, tuple) else (argument,):
            for sub in part if isinstance(part, list) else (part,):
                if isinstance(sub, re._parser.SubPattern):  # type: ignore[attr-defined]
                    yield from operations(sub, within or name in BINDING)


def patterns() -> Iterator[tuple[str, str | bytes, int]]:
    """Every literal pattern that a module of the package compiles, with all ways of quoting."""
    seen: list[tuple[str, str | bytes, int]] = []
    compile_, current = re.compile, ""

    def note(pattern: Any, flags: int = 0) -> Any:
        seen.append((current, pattern, int(flags)))
        return compile_(pattern, flags)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(re, "compile", note)
        for module in pkgutil.walk_packages(gateway.__path__, "gateway."):
            if module.name.endswith("__main__"):
                continue
            current = module.name
            loaded = importlib.import_module(module.name)
            spec = loaded.__spec__
            assert spec is not None
            assert spec.loader is not None
            fresh = importlib.util.module_from_spec(spec)
            if "re" in vars(loaded):
                try:
                    spec.loader.exec_module(fresh)
                except TypeError:  # cannot be made twice (a registered class); what it compiled is not told
                    raise AssertionError(f"{current} cannot be executed a second time") from None
            for name in ("_scanner", "quote_patterns"):
                made = vars(fresh).get(name)
                if made is not None:
                    for ansi_quotes in (False, True):
                        for no_backslash in (False, True):
                            made(ansi_quotes, no_backslash)
            folder = vars(fresh).get("Folder")
            if folder is not None:
                for ansi_quotes in (False, True):
                    for no_backslash in (False, True):
                        folder(ansi_quotes, no_backslash)
    yield from seen


def test_no_lookaround_stands_in_a_group_that_never_gives_back() -> None:
    found = list(patterns())
    assert len(found) > 20
    wrong = [
        (module, pattern)
        for module, pattern, flags in found
        if list(operations(re._parser.parse(pattern, flags)))  # type: ignore[attr-defined]
    ]
    assert wrong == []
    assert list(operations(re._parser.parse(r"(?:a(?!b))*+")))  # type: ignore[attr-defined]
    assert list(operations(re._parser.parse(r"x|(?:y|(?>z(?<=z)))")))  # type: ignore[attr-defined]
