"""Proves that imports point one way, in the order that LEVELS draws, and that waiting stays where it belongs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import gateway

ROOT = Path(gateway.__file__).parent

# Who may import whom: a package imports what stands below it, and its neighbours. A new package finds its place here.
LEVELS = [
    {"errors"},
    {"protocol", "net", "toml_lines", "toml_struct"},
    {"routing", "rules", "config", "config_check", "tls_settings", "backends", "topology", "replication"},
    {"admin", "sessions"},
    {"app"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
LEVEL = {package: level for level, packages in enumerate(LEVELS) for package in packages}
STRANGERS = [{"protocol", "net"}]  # neighbours that know nothing of each other: codecs do no IO, sockets no messages

WITHOUT_TRIO = ("gateway.protocol", "gateway.routing", "gateway.rules.model")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in ROOT.rglob("*.py")}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def walk(node: ast.AST, with_types: bool) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if with_types or not for_types_only(child):
            yield from walk(child, with_types)


@cache
def imports(module: str, with_types: bool = True) -> frozenset[str]:
    """Full names of what a module imports anywhere in it; `from gateway.net import lane` gives both that it names."""
    found: set[str] = set()
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in walk(tree(module), with_types):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    [*package.split(".")[: len(package.split(".")) - node.level + 1], *filter(None, [base])]
                )
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return frozenset(found)


def own_imports(module: str, with_types: bool = True) -> Iterator[str]:
    """Modules of the gateway that `module` imports: with each also the packages that it is in."""
    for name in imports(module, with_types):
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            prefix = ".".join(parts[:length])
            if prefix in MODULES and prefix != module:
                yield prefix


def part(module: str) -> str:
    """The package of the first level, or the module, that stands in LEVELS."""
    return module.split(".")[1]


def uses_lowlevel(module: str) -> bool:
    return any(
        isinstance(node, ast.Attribute) and node.attr == "lowlevel" and ast.unparse(node.value) == "trio"
        for node in ast.walk(tree(module))
    ) or any(name.startswith("trio.lowlevel") for name in imports(module))


def test_every_module_has_its_place() -> None:
    assert {part(module) for module in MODULES if module != "gateway"} <= set(LEVEL)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_one_way(module: str) -> None:
    if module == "gateway":
        assert not set(own_imports(module)), "importing the package imports nothing else"
        return
    own = part(module)
    for imported in own_imports(module):
        if imported == "gateway":
            continue
        other = part(imported)
        assert LEVEL[other] <= LEVEL[own], f"{module} imports {imported}, which stands above it"
        assert own == other or {own, other} not in STRANGERS, f"{module} imports {imported}"


def test_no_module_imports_itself_through_others() -> None:
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for imported in own_imports(module, with_types=False):
                if not module.startswith(f"{imported}."):  # the package that it is in
                    visit(imported, (*way, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_decisions_and_codecs_never_import_trio() -> None:
    """Not through another module either."""
    pending = [module for module in MODULES if f"{module}.".startswith(tuple(f"{name}." for name in WITHOUT_TRIO))]
    came_from = dict.fromkeys(pending, "")
    assert len(pending) > 3
    while pending:
        module = pending.pop()
        guilty = {name for name in imports(module) if name.split(".")[0] == "trio"}
        assert not guilty, f"{module} (imported by {came_from[module] or 'itself'}) imports {guilty}"
        for imported in own_imports(module):
            if imported not in came_from:
                came_from[imported] = module
                pending.append(imported)


def test_only_net_touches_the_low_level_of_trio() -> None:
    users = {module for module in MODULES if uses_lowlevel(module)}
    assert users, "the search finds nothing: it proves nothing"
    assert {module for module in users if part(module) != "net"} == set()
