"""Lines of keys: every way to write a key, and whole random documents compared with where they were written."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.toml_lines import Place, key_lines

DOCUMENT = '''\
# a comment with = and [brackets]
top = 1
dotted.key."quo.ted" = "a # no comment"

[table]
text = """
[not.a.table]
a = 1 \\""" still ""\\"
"""
literal = \'\'\'
x = 2\'\'\'\'
after = 1979-05-27 07:32:00  # a date with a blank
[table.'sub table']
inline = {a = 1, b.c = {d = [1, 2]}}

[[array]]
name = "one"
list = [
  1,
  # nothing
  {x = 1,
   },
  [
    3, 4],
]
[array.below]
key = 1
[[array.deep]]
k = 1
[[array.deep]]
k = 2
[[array]]
name = "two"
[[array.deep]]
k = 3
"\\u0041 \\"" = 1
'''.replace("{x = 1,\n   },", "{x = 1},\n  'two',")


def places(value: Any, place: Place = ()) -> list[Place]:
    found = [place]
    if isinstance(value, dict):
        for key, each in value.items():
            found += places(each, (*place, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            found += places(each, (*place, index))
    return found


def test_every_way_to_write_a_key_has_its_line() -> None:
    lines = key_lines(DOCUMENT)
    text = DOCUMENT.splitlines()
    assert set(places(tomllib.loads(DOCUMENT))) == set(lines)
    starts: dict[Place, str] = {
        ("top",): "top = 1",
        ("dotted", "key", "quo.ted"): "dotted.key",
        ("table",): "[table]",
        ("table", "text"): 'text = """',
        ("table", "literal"): "literal",
        ("table", "after"): "after",
        ("table", "sub table"): "[table.'sub table']",
        ("table", "sub table", "inline", "b", "c", "d", 1): "inline",
        ("array",): "[[array]]",
        ("array", 0, "list", 0): "  1,",
        ("array", 0, "list", 1, "x"): "  {x = 1},",
        ("array", 0, "list", 2): "  'two',",
        ("array", 0, "list", 3, 1): "    3, 4],",
        ("array", 0, "below", "key"): "key = 1",
        ("array", 0, "deep", 0, "k"): "k = 1",
        ("array", 0, "deep", 1, "k"): "k = 2",
        ("array", 1, "name"): 'name = "two"',
        ("array", 1, "deep", 0, "k"): "k = 3",
        ("array", 1, "deep", 0, 'A "'): '"\\u0041',
    }
    assert {
        place: text[lines[place] - 1] for place in starts if not text[lines[place] - 1].startswith(starts[place])
    } == {}


def test_windows_line_ends_count_once() -> None:
    assert key_lines("a = 1\r\nb = 2\r\n\r\nc = 3")[("c",)] == 4


@pytest.mark.parametrize(
    "filler", ['"' + '\\"' * 500_000 + '"', "'''" + "''a" * 300_000 + "'''", "1 #" + " #" * 500_000]
)
def test_long_values_are_skipped_in_linear_time(filler: str) -> None:
    assert key_lines(f"a = {filler}\nb = 1") == {(): 1, ("a",): 1, ("b",): 2}


def test_the_example_configuration_is_located_completely() -> None:
    text = (Path(__file__).parent.parent / "examples" / "gateway.toml").read_text()
    lines = key_lines(text)
    assert set(places(tomllib.loads(text))) == set(lines)
    for place, line in lines.items():
        if place and isinstance(place[-1], str):
            assert place[-1] in text.splitlines()[line - 1], place


class Writer:
    """Writes random tables as TOML and notes the line of everything it writes."""

    def __init__(self) -> None:
        self.text = ""
        self.lines: dict[Place, int] = {(): 1}

    def note(self, place: Place) -> None:
        self.lines.setdefault(place, self.text.count("\n") + 1)

    def value(self, value: Any, place: Place) -> None:
        if isinstance(value, list):
            self.text += "["
            for index, each in enumerate(value):
                self.text += "\n  " if index % 2 else " "
                self.note((*place, index))
                self.value(each, (*place, index))
                self.text += ", # ]\n"
            self.text += "]"
        elif isinstance(value, dict):
            self.text += "{"
            for index, (key, each) in enumerate(value.items()):
                self.text += ", " if index else ""
                self.note((*place, key))
                self.text += f"'{key}' = "
                self.value(each, (*place, key))
            self.text += "}"
        elif isinstance(value, str):
            self.text += f'"""\n{value}"""'
        else:
            self.text += str(value)

    def table(self, table: dict[str, Any], header: str, place: Place) -> None:
        below = {key: each for key, each in table.items() if is_table(each) or is_tables(each)}
        for key, each in table.items():
            if key not in below:
                self.note((*place, key))
                self.text += f'"{key}" ='
                self.value(each, (*place, key))
                self.text += "\n"
        for key, each in below.items():
            name = f'{header}."{key}"' if header else f'"{key}"'
            self.text += "# next\n\n"
            self.note((*place, key))
            if is_table(each):
                self.text += f"[ {name} ] # header\n"
                self.table(each, name, (*place, key))
                continue
            for index, element in enumerate(each):
                self.note((*place, key, index))
                self.text += f"[[{name}]]\n"
                self.table(element, name, (*place, key, index))


def is_table(value: Any) -> bool:
    return isinstance(value, dict) and len(value) != 1  # tables of one key are written inline


def is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


keys = st.sampled_from(["a", "b", "c d", "e.f", "#g", "[h]"])
scalars = st.one_of(st.integers(), st.text("ab#[]={}'\n ", max_size=8))
inline = st.recursive(scalars, lambda each: st.lists(each, max_size=3), max_leaves=6)
tables = st.recursive(
    st.dictionaries(keys, inline, max_size=3),
    lambda each: st.dictionaries(keys, st.one_of(inline, each, st.lists(each, min_size=1, max_size=3)), max_size=4),
    max_leaves=8,
)


@given(tables)
def test_random_documents_are_located_as_they_were_written(table: dict[str, Any]) -> None:
    writer = Writer()
    writer.table(table, "", ())
    try:
        read = tomllib.loads(writer.text)
    except tomllib.TOMLDecodeError:
        assume(False)  # line breaks inside an inline table, which the writer may produce and TOML 1.0 refuses
    assert read == table
    assert key_lines(writer.text) == writer.lines
