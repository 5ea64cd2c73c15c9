"""Finds the line of every key, table and array element of a TOML document.

`tomllib` reads values and forgets where they stood, and an error without its line sends people searching. This scanner
walks a text that tomllib has accepted already, so it looks only at structure: it skips values without understanding
them and reports nothing itself.

A place is the path of keys and indexes that leads to the value: `("listener", 0, "max_lag")`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import TypeAlias

Place: TypeAlias = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]++|#[^\n]*+)*+")
_BARE_KEY = re.compile(r"[^\s.=\]\"'#]+")
_BARE_VALUE = re.compile(r"[^,\]}\n#]*+")
_BASIC = re.compile(r'"(?:[^"\\]|\\.)*+"')
_LITERAL = re.compile(r"'[^']*+'")
# A multi-line string may end in five quotes, of which two belong to it (toml.io 1.0, "String").
_BASIC_LINES = re.compile(r'"""(?:[^"\\]|\\[\s\S]|"{1,2}(?!"))*"{3,5}')
_LITERAL_LINES = re.compile(r"'''(?:[^']|'{1,2}(?!'))*'{3,5}")


def key_lines(text: str) -> dict[Place, int]:
    """Place -> line, counted from 1. `text` must be valid TOML; the empty place is line 1."""
    scanner = _Scanner(text.replace("\r\n", "\n"))
    scanner.document()
    return scanner.lines


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.starts = [0, *(found.end() for found in re.finditer("\n", text))]
        self.lines: dict[Place, int] = {(): 1}
        self.array_tables: dict[Place, int] = {}  # place of an array of tables -> how many it has so far

    def document(self) -> None:
        table: Place = ()
        self.blank()
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                table = self.header()
            else:
                self.pair(table)
            self.blank()

    def header(self) -> Place:
        line = self.line()
        is_array = self.text.startswith("[[", self.at)
        self.at += 2 if is_array else 1
        keys = self.keys()
        self.at += 2 if is_array else 1
        place: Place = ()
        for number, key in enumerate(keys, 1):
            place = (*place, key)
            self.lines.setdefault(place, line)
            if is_array and number == len(keys):
                self.array_tables[place] = self.array_tables.get(place, 0) + 1
            if place in self.array_tables:
                # A header below an array of tables means its newest table.
                place = (*place, self.array_tables[place] - 1)
        self.lines.setdefault(place, line)
        return place

    def pair(self, table: Place) -> None:
        line = self.line()
        place = table
        for key in self.keys():
            place = (*place, key)
            self.lines.setdefault(place, line)
        self.at += 1  # the equals sign, where keys() stops
        self.value(place)

    def keys(self) -> list[str]:
        """A dotted key, up to the character after it that is not blank."""
        keys = []
        while True:
            self.blank()
            character = self.text[self.at]
            if character == '"':
                quoted = self.take(_BASIC)
                keys.append(_unescape(quoted[1:-1]))
            elif character == "'":
                keys.append(self.take(_LITERAL)[1:-1])
            else:
                keys.append(self.take(_BARE_KEY))
            self.blank()
            if self.text[self.at] != ".":
                return keys
            self.at += 1

    def value(self, place: Place) -> None:
        self.blank()
        rest = self.text[self.at : self.at + 3]
        if rest == '"""':
            self.take(_BASIC_LINES)
        elif rest == "'''":
            self.take(_LITERAL_LINES)
        elif rest[0] == '"':
            self.take(_BASIC)
        elif rest[0] == "'":
            self.take(_LITERAL)
        elif rest[0] == "[":
            self.array(place)
        elif rest[0] == "{":
            self.inline_table(place)
        else:
            self.take(_BARE_VALUE)

    def array(self, place: Place) -> None:
        self.at += 1
        index = 0
        while not self.closes("]"):
            self.lines[(*place, index)] = self.line()
            self.value((*place, index))
            index += 1

    def inline_table(self, place: Place) -> None:
        self.at += 1
        while not self.closes("}"):
            self.pair(place)

    def closes(self, bracket: str) -> bool:
        """Skip blanks and a comma; take the closing bracket if it is next."""
        self.blank()
        if self.text[self.at] == ",":
            self.at += 1
            self.blank()
        if self.text[self.at] != bracket:
            return False
        self.at += 1
        return True

    def blank(self) -> None:
        found = _BLANK.match(self.text, self.at)
        assert found is not None  # the pattern matches the empty text
        self.at = found.end()

    def take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise ValueError(f"line {self.line()} is not valid TOML")
        self.at = found.end()
        return found.group()

    def line(self) -> int:
        return bisect_right(self.starts, self.at)


_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2})|(.))")
_ESCAPED = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", "e": "\x1b", '"': '"', "\\": "\\"}


def _unescape(text: str) -> str:
    def character(found: re.Match[str]) -> str:
        code = found.group(1) or found.group(2) or found.group(3)
        return chr(int(code, 16)) if code else _ESCAPED[found.group(4)]

    return _ESCAPE.sub(character, text)
