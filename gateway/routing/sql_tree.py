"""Parses the canonical text of a statement and says what its syntax tree proves: that it only reads, and which tables
and columns it touches.

The proof is a whitelist: every node of the tree must be of a class that is listed here, and a Select may have only the
parts that are listed. Functions were proven by name in `sql_facts`; here a call that sqlglot left anonymous is checked
once more, so that a mistake in one fence is caught by the other.

Columns are found without a catalogue, so an unqualified one is ascribed to every base table that it could belong to,
in its own query and the ones around it. That is a superset; what it must never do is leave one out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from sqlglot import exp
from sqlglot.dialects.mysql import MySQL

from gateway.routing.functions import PAREN_WORDS, words
from gateway.routing.operation import Column, Table

# sqlglot logs every statement that it keeps as a Command; the classifier has its own way to say so.
logging.getLogger("sqlglot").setLevel(logging.CRITICAL)

_DIALECT: Final = MySQL()

PARSE_NODES: Final = 6_000
"""Most nodes that the parser makes of one text, those that it gives up again included: 20 to 30 ms (measured). It reads
`DATE(DATE(...))` twice at every level, and took 91 s for 24 of them (tried on sqlglot 30.30)."""
STEPS: Final = 20_000
"""Most steps from names to what they may mean, of 1 us each (measured): every column may be one of every table around
it, and 8 KiB have room for 700 of both."""

_SELECT_PARTS: Final = words(
    """
    expressions from_ joins laterals where group having order limit offset distinct with_ windows
    operation_modifiers hint kind
    """
)

_NODES: Final[tuple[type[exp.Expr], ...]] = (
    exp.Select, exp.SetOperation, exp.Subquery, exp.Values, exp.Tuple, exp.CTE, exp.With, exp.From, exp.Join, exp.Where,
    exp.Group, exp.Having, exp.Order, exp.Ordered, exp.Limit, exp.Offset, exp.Distinct, exp.Table, exp.TableAlias,
    exp.Alias, exp.Column, exp.Identifier, exp.Star, exp.Literal, exp.Null, exp.Boolean, exp.Placeholder, exp.Parameter,
    exp.SessionParameter, exp.Paren, exp.Between, exp.In, exp.Case, exp.If, exp.Cast, exp.DataType, exp.DataTypeParam,
    exp.Interval, exp.Var, exp.Window, exp.WindowSpec, exp.Partition, exp.IndexTableHint, exp.Collate, exp.JSONTable,
    exp.JSONSchema, exp.JSONColumnDef, exp.JSONPath, exp.JSONPathPart, exp.Lateral, exp.Cube, exp.Rollup, exp.Hint,
    exp.Introducer, exp.National, exp.HexString, exp.BitString, exp.JSONKeyValue, exp.OnCondition, exp.Unary,
    exp.Connector, exp.Predicate, exp.IgnoreNulls, exp.RespectNulls, exp.WithinGroup, exp.Aliases, exp.Filter,
    exp.CharacterSet, exp.Dot, exp.FormatJson, exp.IntervalSpan,
    exp.JSONValue, exp.Version, exp.Fetch, exp.LimitOptions,
)  # fmt: skip

_BINARY: Final[tuple[type[exp.Expr], ...]] = (
    exp.Add, exp.Sub, exp.Mul, exp.Div, exp.IntDiv, exp.Mod, exp.BitwiseAnd, exp.BitwiseOr, exp.BitwiseXor,
    exp.BitwiseLeftShift, exp.BitwiseRightShift, exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.NullSafeEQ,
    exp.NullSafeNEQ, exp.Is, exp.Like, exp.RegexpLike, exp.DPipe, exp.Escape, exp.JSONExtract, exp.JSONExtractScalar,
    exp.Distance,
)  # fmt: skip


class UnprovenError(Exception):
    """The tree does not prove that the statement only reads; the text says why."""


@dataclass(slots=True)
class Touched:
    """What a statement touches. `without_where` is about UPDATE and DELETE only."""

    reads: list[Table] = field(default_factory=list)
    writes: list[Table] = field(default_factory=list)
    columns: set[Column] = field(default_factory=set)
    without_where: bool = False


def parse(text: str) -> exp.Expr:
    """The tree of one statement. Raises what sqlglot raises, RecursionError too, and UnprovenError for a Command."""
    trees = _DIALECT.parse(text, max_nodes=PARSE_NODES)
    if len(trees) != 1 or trees[0] is None:
        raise UnprovenError("parses as several statements")
    tree = trees[0]
    if isinstance(tree, exp.Command):
        raise UnprovenError("has a syntax that is not known")
    return tree


def prove_read(tree: exp.Expr, known: frozenset[str], *, stored: bool = False) -> None:
    """Raise UnprovenError unless the tree is a query made of nothing but listed parts.

    `stored`: calls of the form db.function() are among the known.
    """
    root = tree
    while isinstance(root, (exp.Subquery, exp.Paren)):
        root = root.this
    if not isinstance(root, (exp.Select, exp.SetOperation, exp.Values)):
        raise UnprovenError(f"is no query but {type(root).__name__}")
    for node in tree.walk():
        if isinstance(node, (exp.Anonymous, exp.AnonymousAggFunc)):
            name = node.name.lower()  # `node.this` is a text, or an identifier where the name is quoted
            if name not in known and name.upper() not in PAREN_WORDS:
                raise UnprovenError(f"calls {name}(), which is no built-in that only reads")
        elif isinstance(node, exp.Dot):
            if isinstance(node.expression, exp.Func) and not stored:
                raise UnprovenError("calls a stored function")
        elif isinstance(node, (exp.Command, exp.PropertyEQ, exp.Lock, exp.Into, exp.DDL, exp.DML)) and not isinstance(
            node, exp.Query
        ):
            raise UnprovenError(f"contains {type(node).__name__}")
        elif not isinstance(node, (_NODES, _BINARY, exp.Func)):
            raise UnprovenError(f"contains {type(node).__name__}, which is not known to only read")
        if isinstance(node, exp.Select):
            if not node.expressions:
                raise UnprovenError("selects nothing")
            for part, value in node.args.items():
                if value and part not in _SELECT_PARTS:
                    raise UnprovenError(f"has a clause that is not known to only read ({part.rstrip('_')})")
        elif isinstance(node, (exp.SetOperation, exp.Subquery)) and (node.args.get("locks") or node.args.get("into")):
            raise UnprovenError("locks rows or stores its result")


def _table(node: exp.Table) -> Table:
    return Table(node.name, node.db or None)


_LANDMARKS: Final = (exp.Query, exp.Update, exp.Delete, exp.Insert, exp.With, exp.CTE)
"""What decides the meaning of the names below it."""


class Climb:
    """The ways from the nodes of a tree to its root, by landmarks: an OR of a thousand terms is a thousand nodes high.

    `left` counts down from STEPS.
    """

    __slots__ = ("_above", "_places", "left")

    def __init__(self, steps: int = STEPS) -> None:
        self.left = steps
        self._above: dict[int, exp.Expr | None] = {}  # by id of the node, as the next
        self._places: dict[int, dict[str, int]] = {}  # of a WITH: where each name stands first

    def step(self, count: int = 1) -> None:
        self.left -= count
        if self.left < 0:
            raise UnprovenError("has too many names to say what they mean")

    def above(self, node: exp.Expr) -> exp.Expr | None:
        """The next landmark on the way up, None behind the root."""
        self.step()
        passed: list[int] = []
        found: exp.Expr | None = node
        while found is not None:
            if id(found) in self._above:
                found = self._above[id(found)]
                break
            passed.append(id(found))
            found = found.parent
            if isinstance(found, _LANDMARKS):
                break
        self._above.update(dict.fromkeys(passed, found))
        return found

    def place(self, clause: exp.With, name: str) -> int | None:
        """Where in a WITH the name is defined first, None if it is not."""
        places = self._places.get(id(clause))
        if places is None:
            places = self._places[id(clause)] = {}
            for index, cte in enumerate(clause.expressions):
                places.setdefault(cte.alias, index)
        return places.get(name)


def _visible_cte(node: exp.Table, climb: Climb) -> bool:
    """Whether a name without a database means a common table expression at this place."""
    if node.db or not isinstance(node.this, exp.Identifier):
        return False
    name = node.name  # as it is: on MySQL the name of a CTE may differ from a table's in its case alone (tried)
    child: exp.Expr = node
    parent = climb.above(node)
    while parent is not None:
        if isinstance(parent, exp.With):
            place, own = climb.place(parent, name), child.index
            if place is not None and (own is None or place < own or (place == own and parent.args.get("recursive"))):
                return True
            # The query that owns this WITH must not look at it again.
            child = parent.parent or parent
        else:
            clause = parent.args.get("with_")
            if clause is not None and climb.place(clause, name) is not None:
                return True
            child = parent
        parent = climb.above(child)
    return False


_SCOPES: Final = (exp.Select, exp.Update, exp.Delete, exp.Insert)


class _Sources:
    """The names in one FROM (or target list): base tables, and derived ones as None.

    Names are compared without their case, and db1.t and db2.t have one name: what else it may mean is in `homonyms`.
    """

    __slots__ = ("homonyms", "tables")

    def __init__(self, scope: exp.Expr, climb: Climb) -> None:
        self.tables: dict[str, Table | None] = {}
        self.homonyms: dict[str, list[Table]] = {}
        if isinstance(scope, exp.Select):
            roots = [scope.args.get("from_"), *(scope.args.get("joins") or ()), *(scope.args.get("laterals") or ())]
        else:
            roots = [scope.this, *(scope.args.get("joins") or ()), scope.args.get("from_")]
            using = scope.args.get("using")
            roots.extend(using if isinstance(using, list) else ())
        pending = [root for root in roots if root is not None]
        while pending:
            node = pending.pop()
            if isinstance(node, exp.Table):
                if isinstance(node.this, exp.Identifier):
                    base = None if _visible_cte(node, climb) else _table(node)
                    self._add((node.alias or node.name).lower(), base)
                else:
                    self.tables[(node.alias or f"\0{id(node)}").lower()] = None
                pending.extend(node.args.get("joins") or ())
            elif isinstance(node, exp.Subquery):
                if isinstance(node.this, exp.Query) and not isinstance(node.this, exp.Subquery):
                    self.tables[(node.alias or f"\0{id(node)}").lower()] = None
                else:
                    pending.append(node.this)
                pending.extend(node.args.get("joins") or ())
            elif isinstance(node, (exp.From, exp.Join, exp.Schema, exp.Paren)):
                pending.append(node.this)
            elif isinstance(node, exp.Tuple):
                pending.extend(node.expressions)
            elif isinstance(node, (exp.Lateral, exp.Values)):
                self.tables[(node.alias or f"\0{id(node)}").lower()] = None

    def _add(self, name: str, table: Table | None) -> None:
        known = self.tables.get(name)
        if known is not None and known != table:
            self.homonyms.setdefault(name, []).append(known)
        self.tables[name] = table

    def bases(self) -> Iterator[Table]:
        yield from (table for table in self.tables.values() if table is not None)
        for tables in self.homonyms.values():
            yield from tables


def _targets(tree: exp.Expr, sources: _Sources) -> list[Table]:
    """The tables that an INSERT, UPDATE or DELETE changes."""
    if isinstance(tree, exp.Insert):
        return list(sources.bases())[:1]
    if isinstance(tree, exp.Delete) and tree.args.get("tables"):
        named = [
            sources.tables.get((node.name if not node.db and node.name.lower() not in sources.homonyms else "").lower())
            or _table(node)
            for node in tree.args["tables"]
        ]
        return list(dict.fromkeys(named))
    if isinstance(tree, exp.Update):
        found: dict[Table, None] = {}
        anyone = False
        for assignment in tree.expressions:
            column = assignment.this
            qualifier = column.table.lower() if isinstance(column, exp.Column) else ""
            table = sources.tables.get(qualifier) if qualifier and qualifier not in sources.homonyms else None
            if table is not None:
                found[table] = None
            elif not anyone:
                anyone = True
                found.update(dict.fromkeys(sources.bases()))
        return list(found)
    first = next(sources.bases(), None)
    return [first] if first is not None else []


def touched(tree: exp.Expr) -> Touched:
    """The tables and columns of a parsed query, INSERT, UPDATE or DELETE."""
    result = Touched()
    known: dict[int, _Sources] = {}
    climb = Climb()

    def sources_of(scope: exp.Expr) -> _Sources:
        if id(scope) not in known:
            known[id(scope)] = _Sources(scope, climb)
        return known[id(scope)]

    def chain(node: exp.Expr) -> Iterator[_Sources]:
        parent = climb.above(node)
        while parent is not None:
            if isinstance(parent, _SCOPES):
                yield sources_of(parent)
            parent = climb.above(parent)

    def add(name: str, scope: _Sources) -> None:
        climb.step(len(scope.tables))
        result.columns.update(Column(name, table) for table in scope.bases())

    tables: dict[Table, None] = {}
    for node in tree.walk():
        if isinstance(node, exp.Table):
            if isinstance(node.this, exp.Identifier) and not _is_target(node) and not _visible_cte(node, climb):
                tables[_table(node)] = None
        elif isinstance(node, exp.Column):
            name = "*" if isinstance(node.this, exp.Star) else node.name
            _resolve(result, node, name, chain(node), climb)
        elif isinstance(node, exp.Star):
            if not isinstance(node.parent, (exp.Column, exp.Count)):
                for scope in chain(node):
                    add("*", scope)
                    break
        elif isinstance(node, exp.Join):
            joined = next(chain(node), None)
            if joined is not None:
                for using in node.args.get("using") or ():
                    add(using.name, joined)
                if node.method == "NATURAL":
                    add("*", joined)
    if isinstance(tree, (exp.Insert, exp.Update, exp.Delete)):
        own = sources_of(tree)
        result.writes = _targets(tree, own)
        if isinstance(tree, exp.Insert):
            schema = tree.this
            if isinstance(schema, exp.Schema) and schema.expressions:
                for column in schema.expressions:
                    add(column.name, own)
            else:
                add("*", own)
        elif isinstance(tree, exp.Delete):
            result.columns.update(Column("*", table) for table in result.writes)
        result.without_where = not isinstance(tree, exp.Insert) and tree.args.get("where") is None
        only_written = set(result.writes) if not isinstance(tree, exp.Update) or len(tables) > 1 else tables.keys()
        result.reads = [table for table in tables if table not in only_written]
    else:
        result.reads = list(tables)
    return result


def _is_target(node: exp.Table) -> bool:
    """Whether this node only names, by its alias, a table of a multi-table DELETE."""
    return isinstance(node.parent, exp.Delete) and node.arg_key == "tables"


def _resolve(result: Touched, node: exp.Column, name: str, chain: Iterator[_Sources], climb: Climb) -> None:
    qualifier = node.table.lower()
    found = False
    for scope in chain:
        if not qualifier:
            found = found or bool(scope.tables)
            climb.step(len(scope.tables))
            result.columns.update(Column(name, table) for table in scope.bases())
            continue
        if qualifier in scope.tables:
            table = scope.tables[qualifier]
            if table is not None:
                result.columns.add(Column(name, table))
            homonyms = scope.homonyms.get(qualifier, ())
            climb.step(len(homonyms))
            result.columns.update(Column(name, other) for other in homonyms)
            return
    if not found:
        result.columns.add(Column(name))


def view_columns(tree: exp.Expr) -> tuple[list[tuple[str, set[Column]]], set[Column]] | None:
    """Each result column (lower case) of a view's SELECT with the columns behind it, and those behind the rest of it.

    None where they are not told apart: set operations, subqueries among the results, derived tables. Changes the tree.
    """
    while isinstance(tree, (exp.Subquery, exp.Paren)):
        tree = tree.this
    if not isinstance(tree, exp.Select) or tree.args.get("with_"):
        return None
    climb = Climb()
    sources = _Sources(tree, climb)
    if None in sources.tables.values():
        return None
    outputs: list[tuple[str, set[Column]]] = []
    for result in tree.expressions:
        if result.find(exp.Query, exp.Star):
            return None
        used = Touched()
        for node in result.find_all(exp.Column):
            _resolve(used, node, node.name, iter((sources,)), climb)
        outputs.append((result.alias_or_name.lower(), used.columns))
    tree.set("expressions", [exp.Literal.number(1)])
    return outputs, touched(tree).columns
