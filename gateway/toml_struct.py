"""Reads TOML tables into msgspec structs, and says of everything that is wrong in which file and line it stands.

The struct is the schema: its field names are the keys, its annotations say what a value may be, its defaults what holds
where the key is absent. All problems of a file are collected, so that a person mends them in one go.

A type with `from_toml(value, document, place)` reads itself (ValueError: what was expected; `EXPECTED` says it in
words, `TOML_TYPES` which Python types it takes). A struct with `SHORTHAND = "name"` may be written as the text of that
field; fields that it lists in `HIDDEN` are no keys.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

import msgspec

from gateway.errors import ConfigError
from gateway.toml_lines import Place, key_lines

S = TypeVar("S", bound=msgspec.Struct)


class Unit:
    """A kind of number that is written as text with a unit; `parse` raises ValueError with what was expected."""

    def __init__(self, expected: str, pattern: str, factors: Mapping[str, float], whole: bool = False) -> None:
        self.expected = expected
        self._pattern = re.compile(pattern)
        self._factors = factors
        self._whole = whole

    def parse(self, value: object) -> float | int:
        found = self._pattern.fullmatch(value) if isinstance(value, str) else None
        if not found:
            raise ValueError(f"must be {self.expected}")
        number = float(found.group(1)) * self._factors[found.group(2)]
        return round(number) if self._whole else number


TIME = Unit(
    'a time with its unit, such as "50ms", "1s", "5m" or "8h"',
    r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(ms|s|m|h)",
    {"ms": 0.001, "s": 1, "m": 60, "h": 3600},
)
SIZE = Unit(
    'a size with its unit, such as "512KiB", "64MiB" or "1GiB"',
    r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(B|KiB|MiB|GiB)",
    {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3},
    whole=True,
)
SHARE = Unit('a share between "0%" and "100%"', r"((?:100(?:\.0*)?|[0-9]{1,2}(?:\.[0-9]{1,9})?)) ?(%)", {"%": 0.01})


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of a whole number, both included."""

    least: int = 0
    most: int | None = None


Seconds: TypeAlias = Annotated[float, TIME]
ByteCount: TypeAlias = Annotated[int, SIZE]
Share: TypeAlias = Annotated[float, SHARE]
Count: TypeAlias = Annotated[int, Range(0)]
Positive: TypeAlias = Annotated[int, Range(1)]


@dataclass(frozen=True, slots=True)
class Document:
    """A TOML file as read: its values, and the line of each."""

    file: str  # as the person named it
    tables: dict[str, Any] = field(repr=False)
    lines: dict[Place, int] = field(repr=False)

    @property
    def folder(self) -> Path:
        """Paths in the file are relative to this."""
        return Path(self.file).parent

    def line(self, place: Place) -> int:
        """The line of a place, or of the nearest table around it."""
        while place not in self.lines:
            place = place[:-1]
        return self.lines[place]

    def problem(self, place: Place, message: str) -> ConfigError:
        return ConfigError(message, self.file, self.line(place))


def read_document(file: str | os.PathLike[str]) -> Document:
    """Read and parse; ConfigError with file and line if that is not possible."""
    name = os.fspath(file)
    try:
        text = Path(name).read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", name) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError("is not UTF-8 text", name, line) from None
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r" \(at line (\d+), column \d+\)$", str(error))
        line = int(found.group(1)) if found else text.count("\n") + 1
        message = str(error)[: found.start()] if found else str(error).removesuffix(" (at end of document)")
        raise ConfigError(f"is not TOML: {message}", name, line) from None
    except RecursionError:
        raise ConfigError("is nested too deeply", name) from None
    return Document(name, tables, key_lines(text))


class Reader:
    """Reads structs out of one document; `problems` has everything that was wrong, in the order of the file."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._problems: list[ConfigError] = []

    @property
    def problems(self) -> list[ConfigError]:
        return sorted(self._problems, key=lambda problem: problem.line or 0)

    def report(self, place: Place, message: str) -> None:
        self._problems.append(self.document.problem(place, message))

    def struct(self, cls: type[S], table: object, place: Place) -> S | None:
        """The table as a struct; None if anything in it was wrong, which has been reported then."""
        shorthand = getattr(cls, "SHORTHAND", None)
        if shorthand and isinstance(table, str):
            return self._shorthand(cls, shorthand, table, place)
        if not isinstance(table, dict):
            self.report(place, f"{_spell(place)} must be a table, not {_kind(table)}")
            return None
        before = len(self._problems)
        hidden = getattr(cls, "HIDDEN", ())
        fields = {each.name: each for each in msgspec.structs.fields(cls) if each.name not in hidden}
        self.refuse_unknown(table, list(fields), place)
        values: dict[str, Any] = {}
        for name, each in fields.items():
            if name in table:
                values[name] = self._value(each.type, table[name], (*place, name))
            elif each.required:
                self.report(place, f"{_spell(place) or 'the file'} has no {name}")
        return cls(**values) if len(self._problems) == before else None

    def refuse_unknown(self, table: Mapping[str, object], known: list[str], place: Place) -> None:
        for name in table:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                advice = f", did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
                where = f" in {_spell(place)}" if place else ""
                self.report((*place, name), f"unknown key {name}{where}{advice}")

    def _shorthand(self, cls: type[S], name: str, text: str, place: Place) -> S | None:
        before = len(self._problems)
        annotation = next(each.type for each in msgspec.structs.fields(cls) if each.name == name)
        value = self._value(annotation, text, place)
        return cls(**{name: value}) if len(self._problems) == before else None

    def _value(self, annotation: Any, value: object, place: Place) -> Any:
        try:
            return self._convert(annotation, value, place)
        except ValueError as error:
            self.report(place, f"{_spell(place)} {error}, not {_show(value)}")
            return None

    def _convert(self, annotation: Any, value: object, place: Place) -> Any:
        """ValueError says what was expected; problems further in are reported on the way."""
        origin = get_origin(annotation)
        if origin is Annotated:
            return self._annotated(annotation, value)
        if origin is Literal:
            choices = get_args(annotation)
            if value not in choices or type(value) is bool:
                raise ValueError("must be " + _alternatives([f'"{choice}"' for choice in choices]))
            return value
        if origin in (Union, types.UnionType):
            return self._union(annotation, value, place)
        if origin is tuple:
            return self._array(get_args(annotation)[0], value, place)
        if origin is dict:
            if not isinstance(value, dict):
                raise ValueError("must be a table")
            element = get_args(annotation)[1]
            return {name: self._value(element, each, (*place, name)) for name, each in value.items()}
        if hasattr(annotation, "from_toml"):
            return annotation.from_toml(value, self.document, place)
        if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
            return self.struct(annotation, value, place)
        return _plain(annotation, value, self.document)

    def _annotated(self, annotation: Any, value: object) -> Any:
        plain, rule = get_args(annotation)[:2]
        if isinstance(rule, Unit):
            return rule.parse(value)
        number = _plain(plain, value, self.document)
        if number < rule.least or (rule.most is not None and number > rule.most):
            bounds = f"at least {rule.least}" if rule.most is None else f"between {rule.least} and {rule.most}"
            raise ValueError(f"must be {bounds}")
        return number

    def _array(self, element: Any, value: object, place: Place) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError("must be an array [...]")  # noqa: TRY004 - what _value catches
        return tuple(self._value(element, each, (*place, index)) for index, each in enumerate(value))

    def _union(self, annotation: Any, value: object, place: Place) -> Any:
        """The alternative whose shape fits the value; an absent key, not a value, is what None stands for."""
        alternatives = [each for each in get_args(annotation) if each is not types.NoneType]
        for each in alternatives:
            if get_origin(each) is Literal and value in get_args(each):
                return value
        rest = [each for each in alternatives if get_origin(each) is not Literal]
        for each in rest:
            if _fits(each, value):
                return self._convert(each, value, place)
        if len(alternatives) == 1:
            return self._convert(alternatives[0], value, place)
        choices = [f'"{choice}"' for each in alternatives if get_origin(each) is Literal for choice in get_args(each)]
        raise ValueError("must be " + _alternatives([*choices, *(_describe(each) for each in rest)]))


def _fits(annotation: Any, value: object) -> bool:
    origin = get_origin(annotation)
    if origin is tuple:
        return isinstance(value, list)
    if origin is Annotated:
        rule = get_args(annotation)[1]
        return isinstance(value, str if isinstance(rule, Unit) else get_args(annotation)[0])
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct) and not hasattr(annotation, "from_toml"):
        return isinstance(value, dict) or (isinstance(value, str) and hasattr(annotation, "SHORTHAND"))
    if hasattr(annotation, "from_toml"):
        return isinstance(value, getattr(annotation, "TOML_TYPES", str))
    return type(value) is annotation


def _describe(annotation: Any) -> str:
    if get_origin(annotation) is tuple:
        return "an array [...]"
    if get_origin(annotation) is Annotated:
        rule = get_args(annotation)[1]
        return rule.expected if isinstance(rule, Unit) else "a whole number"
    described = getattr(annotation, "EXPECTED", None)
    if described:
        return str(described)
    return _PLAIN_WORDS.get(annotation, "a table {...}")


_PLAIN_WORDS: dict[Any, str] = {
    str: "a text in quotes",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Path: "a path in quotes",
}


def _plain(annotation: Any, value: object, document: Document) -> Any:
    if annotation is Path and isinstance(value, str) and value:
        return document.folder / value
    if annotation is float and type(value) is int:
        return float(value)
    # bool is a subclass of int, and `weight = true` is a mistake.
    if type(value) is annotation:
        return value
    raise ValueError("must be " + _PLAIN_WORDS[annotation])


def _alternatives(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _spell(place: Place) -> str:
    """A place as people write it: `group[1].pools.master.servers[0]`."""
    text = ""
    for part in place:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _kind(value: object) -> str:
    kinds: dict[type, str] = {
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "an array",
    }
    return kinds.get(type(value), "a table" if isinstance(value, dict) else "a date or time")


def _show(value: object) -> str:
    if isinstance(value, str):
        return f'"{value[:80]}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (int, float)) else _kind(value)
