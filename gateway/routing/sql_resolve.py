"""Says what an operation is by the catalogue: what its views read, what its stored functions do, what its writes cause.

A view is a read if its definition is proven to be one, with every view and stored function in it, and a stored
function if its body is (`sql_routine`). What cannot be proven makes the statement unknown. Where nobody knows whether a
name is a view at all, because the monitor account may not see it or DDL has just passed, the statement stays a read, at
the primary.

Definitions are parsed when they are first asked for, and the catalogue remembers what came of them. One statement is
followed through DEFINITIONS of them at most, known ones included, so that its class does not depend on what came before
it; what needs more is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final, cast

from gateway.routing.catalogue import SYSTEM_SCHEMAS, Catalogue, Routine, Trigger, View, unqualified
from gateway.routing.fingerprint import Reading
from gateway.routing.operation import Column, Kind, PinCause, SqlOperation, Table
from gateway.routing.sql_proofs import TOO_MANY, UNOPENED, Definitions, Proof, Reads, unproven
from gateway.routing.sql_query import classify_query
from gateway.routing.sql_routine import BODY_BYTES, Body, read_body
from gateway.routing.sql_tokens import canonical, lex
from gateway.routing.sql_tree import parse, view_columns

STALE: Final = "DDL has just been seen, and what the names mean is being read again"
DEPTH: Final = 24
"""Deepest chain of views and functions that is followed."""
CAUSED: Final = 256
"""Most tables that one write is followed through, by triggers and foreign keys."""
ANSI_MODES: Final = frozenset({"ANSI_QUOTES", "ANSI", "DB2", "MAXDB", "MSSQL", "ORACLE", "POSTGRESQL"})


def resolve(operation: SqlOperation, catalogue: Catalogue, reading: Reading) -> SqlOperation:
    """What an operation is in the database of `reading`."""
    resolver = _Resolver(catalogue, reading)
    database = reading.database
    if operation.statement == "call":
        return resolver.call_of_procedure(operation, database)
    if operation.describes:
        opened = Reads()
        resolver.tables(opened, operation.reads, (), database, [])
        # MariaDB opens a view with the tables that its functions write, which a replica refuses (tried).
        return operation if opened.problem is None else replace(operation, needs_primary=opened.problem)
    base = operation
    if operation.if_proven is not None and not catalogue.stale:
        problem = resolver.problem_of_calls(operation.calls, database)
        if problem is None:
            base = operation.if_proven
        elif operation.kind is Kind.UNKNOWN:
            base = replace(operation, reason=problem)
    found = Reads()
    resolver.tables(found, base.reads, base.columns, database, [])
    if base is not operation:
        for call in operation.calls:
            found.take(proof := resolver.call(call, database, []), proof.columns)
    written = resolver.caused(base, database, found)
    if catalogue.stale and base.kind is Kind.READ and base.reads:
        found.primary = STALE
    return _merged(base, found, written, catalogue.expanded(base.columns | found.columns, database))


def _merged(base: SqlOperation, found: Reads, written: tuple[Table, ...], columns: frozenset[Column]) -> SqlOperation:
    kind, reason, primary = base.kind, base.reason, base.needs_primary
    if kind is Kind.READ:
        if found.problem is not None:
            kind, reason, primary = Kind.UNKNOWN, found.problem, None
        else:
            primary = primary or found.primary
    resolved = replace(
        base,
        kind=kind,
        reason=reason,
        pin=base.pin or found.pin,
        needs_primary=primary,
        reads=tuple(dict.fromkeys((*base.reads, *found.reads))),
        writes=tuple(dict.fromkeys((*base.writes, *written))),
        columns=columns,
        functions=base.functions | found.functions,
        tables_complete=base.tables_complete and found.whole and found.writes_whole,
        columns_complete=base.columns_complete and found.whole,
    )
    return base if resolved == base else resolved  # one object for every database: who remembers it remembers once


class _Resolver:
    """Looks names up. `trail` holds the views and functions on the way, against circles."""

    def __init__(self, catalogue: Catalogue, reading: Reading) -> None:
        self.catalogue = catalogue
        self.reading = Reading(mariadb=reading.mariadb, version=reading.version)
        self.definitions = Definitions()

    def recalled(self, key: object) -> Proof | None:
        """What is remembered of a view or function, as far as this statement may need it."""
        known = self.catalogue.remembered.get(key)
        if not isinstance(known, Proof):
            return None
        return known if all(self.definitions.opens(one) for one in known.opened) else TOO_MANY

    # ---------------------------------------------------------------- reading

    def tables(
        self,
        found: Reads,
        tables: Iterable[Table],
        columns: Iterable[Column],
        database: str | None,
        trail: list[Table],
    ) -> None:
        """Follows the tables that are read, and the columns that are touched, of a statement in `database`."""
        catalogue = self.catalogue
        views: dict[Table, Proof] = {}
        for table in unqualified(tuple(tables), database):
            if table.database is None or table.database.lower() in SYSTEM_SCHEMAS:
                continue
            sight = catalogue.sight
            if catalogue.problem is not None or sight is None:
                found.primary = found.primary or f"{table.name} may be a view: {catalogue.reasons[0]}"
                found.whole = False
            elif (view := catalogue.views.get(key := catalogue.key(table))) is not None:
                views[key] = proof = self.view(view, trail)
                found.take(proof, proof.always)
            elif not sight.views(table.database):
                found.primary = found.primary or (
                    f"{table.name} may be a view: the monitor account does not see those of {table.database}"
                )
                found.whole = False
        if not views:
            return
        for column in columns:
            named = column.table
            if named is None:
                behind = list(views.values())  # it may be any's
            else:
                proof_of = views.get(catalogue.key(Table(named.name, named.database or database)))
                behind = [proof_of] if proof_of is not None else []
            for proof in behind:
                outputs = proof.outputs
                if outputs is None or column.name == "*" or column.name.lower() not in outputs:
                    found.columns.update(proof.columns)
                else:
                    found.columns.update(outputs[column.name.lower()])

    def view(self, view: View, trail: list[Table]) -> Proof:
        known = self.recalled(view.table)
        if known is not None:
            return known
        name = f"{view.table.database}.{view.table.name}"
        if view.table in trail or len(trail) >= DEPTH:
            problem = f"reads the view {name}, which is defined by itself or too deeply"
            return Proof(problem, whole=False, given_up=view.table not in trail)
        own = view.table, len(view.definition)
        if not self.definitions.opens(own):
            return TOO_MANY
        proof = self._prove_view(view, name, [*trail, view.table])
        proof = replace(proof, opened=proof.opened | {own})
        if not proof.given_up:
            self.catalogue.remembered[view.table] = proof
        return proof

    def _definition(self, view: View, raw: bytes) -> tuple[SqlOperation, str] | None:
        """What a view's definition is by itself, and its canonical text; None if it is not understood."""
        key = ("definition", view.table)
        known = self.catalogue.remembered.get(key, self)
        if known is self:
            lexed = lex(raw, self.reading)
            if lexed.odd is not None or lexed.executable or len(lexed.statements) != 1:
                known = None
            else:
                tokens = lexed.statements[0]
                known = classify_query(tokens, self.reading, BODY_BYTES), canonical(tokens)
            self.catalogue.remembered[key] = known
        return cast("tuple[SqlOperation, str] | None", known)

    def _prove_view(self, view: View, name: str, trail: list[Table]) -> Proof:
        said = f"reads the view {name}"
        raw = view.definition.encode("utf-8", "surrogateescape")
        if not raw:
            return Proof(f"{said}, whose definition the monitor account may not see", whole=False)
        if len(raw) > BODY_BYTES:
            return Proof(f"{said}, whose definition has more than {BODY_BYTES // 1024} KiB", whole=False)
        definition = self._definition(view, raw)
        if definition is None:
            return Proof(f"{said}, whose definition is not understood", whole=False)
        operation, text = definition
        found = Reads()
        database = view.table.database
        best = operation if operation.if_proven is None else operation.if_proven
        if best.kind is not Kind.READ:
            found.blame(f"{said}, which {best.reason}", None)
        found.pin = best.pin
        if best.last_connection or best.user_variables:
            found.blame(f"{said}, which asks about its connection", None)
        for call in operation.calls:
            proof = self.call(call, database, trail)
            found.take(replace(proof, problem=proof.problem and f"{said}, which {proof.problem}"), proof.columns)
        inner = Reads()
        self.tables(inner, best.reads, best.columns, database, trail)
        found.blame(inner.problem and f"{said}, which {inner.problem}", inner.pin)
        given_up = found.given_up or inner.given_up
        outputs, always = (None, frozenset[Column]()) if given_up else self._outputs(view, text, trail, best)
        return Proof(
            problem=found.problem,
            pin=found.pin,
            primary=best.needs_primary or found.primary or inner.primary,
            reads=frozenset((*unqualified(best.reads, database), *found.reads, *inner.reads)),
            columns=frozenset((*_qualified(best.columns, database), *found.columns, *inner.columns)),
            functions=best.functions | found.functions | inner.functions,
            whole=best.tables_complete and found.whole and inner.whole,
            outputs=outputs,
            always=always | found.columns,
            opened=frozenset(found.opened | inner.opened),
            given_up=given_up,
        )

    def _outputs(
        self, view: View, text: str, trail: list[Table], operation: SqlOperation
    ) -> tuple[Mapping[str, frozenset[Column]] | None, frozenset[Column]]:
        """The base columns behind each column of a view, and behind the rest of its definition."""
        database = view.table.database
        if not operation.tables_complete:
            return None, frozenset()
        try:
            told = view_columns(parse(text))
        except Exception:  # as in sql_query: whatever sqlglot raises means unparsed
            return None, frozenset()
        if told is None:
            return None, frozenset()

        def behind(columns: Iterable[Column]) -> frozenset[Column]:
            through = Reads()
            own = list(columns)
            self.tables(through, operation.reads, own, database, trail)
            return frozenset((*_qualified(own, database), *through.columns))

        outputs, rest = told
        names = [name for name, _ in outputs] if view.columns is None else [name.lower() for name in view.columns]
        if len(names) != len(outputs):
            return None, frozenset()
        return {name: behind(used) for name, (_, used) in zip(names, outputs, strict=True)}, behind(rest)

    # ---------------------------------------------------------------- functions

    def problem_of_calls(self, calls: Iterable[Table], database: str | None) -> str | None:
        return next((problem for call in calls if (problem := self.call(call, database, []).problem)), None)

    def call(self, call: Table, database: str | None, trail: list[Table]) -> Proof:
        """What calling a function by this name does."""
        catalogue = self.catalogue
        shown = f"{call.database}.{call.name}" if call.database else call.name
        said = f"calls {shown}()"
        sight = catalogue.sight
        home = call.database or database
        if catalogue.problem is not None or sight is None or home is None:
            return unproven(f"{said}, which is no built-in that only reads")
        if call.database is None:
            loadable = catalogue.contents.loadable
            if loadable is None:
                return unproven(f"{said}, which may be a loadable function: the monitor account may not see those")
            if call.name.lower() in loadable:
                return unproven(f"{said}, a loadable function, of which nothing can be known")
        routine = catalogue.function(Table(call.name, home))
        if routine is None or not sight.routines(home):
            return unproven(f"{said}, which is no built-in or stored function that the catalogue shows")
        return self.function(routine, said, trail)

    def function(self, routine: Routine, said: str, trail: list[Table]) -> Proof:
        key = ("function", routine.name)
        known = self.recalled(key)
        if known is None:
            name = Table(f"{routine.name.name}()", routine.name.database)
            if name in trail or len(trail) >= DEPTH:
                return replace(unproven("calls itself or too deeply"), given_up=name not in trail)
            known = self._prove_function(routine, [*trail, name])
            if not known.given_up:
                self.catalogue.remembered[key] = known
        return known if known.problem is None else replace(known, problem=f"{said}, which {known.problem}")

    def _prove_function(self, routine: Routine, trail: list[Table]) -> Proof:
        key = "function body", routine.name
        body = self.body(key, routine.body, routine.sql_mode, routine.parameters, False)
        database = routine.name.database
        found = Reads(opened={(key, len(routine.body))}, given_up=body is _UNOPENED)
        found.blame(body.problem, PinCause.PROCEDURE)
        for operation in body.operations:
            best = operation.if_proven or operation
            inner = Reads()
            self.tables(inner, best.reads, best.columns, database, trail)
            for call in operation.calls:
                inner.take(proof := self.call(call, database, trail), proof.columns)
            found.opened |= inner.opened
            found.given_up = found.given_up or inner.given_up
            found.blame(inner.problem, PinCause.PROCEDURE if inner.problem else None)
            found.primary = found.primary or inner.primary
            found.reads.update(dict.fromkeys((*unqualified(best.reads, database), *inner.reads)))
            found.columns.update((*_qualified(best.columns, database), *inner.columns))
            found.functions |= best.functions | inner.functions
            found.whole = found.whole and inner.whole and best.tables_complete
        return Proof(
            problem=found.problem,
            pin=PinCause.PROCEDURE if found.problem else None,
            primary=found.primary,
            reads=frozenset(found.reads),
            columns=frozenset(found.columns),
            functions=frozenset(found.functions),
            whole=found.whole and body.whole,
            opened=frozenset(found.opened),
            given_up=found.given_up,
        )

    def body(self, key: object, text: str, sql_mode: str, parameters: tuple[str, ...], trigger: bool) -> Body:
        if not self.definitions.opens((key, len(text))):
            return _UNOPENED
        known = self.catalogue.remembered.get(key)
        if isinstance(known, Body):
            return known
        modes = {mode.strip().upper() for mode in sql_mode.split(",")}
        reading = replace(
            self.reading,
            ansi_quotes=bool(modes & ANSI_MODES),
            no_backslash_escapes="NO_BACKSLASH_ESCAPES" in modes,
            ignore_space=bool(modes & {"IGNORE_SPACE", *ANSI_MODES} - {"ANSI_QUOTES"}),
            oracle_mode="ORACLE" in modes,
        )
        read = read_body(text, reading, parameters, trigger=trigger)
        self.catalogue.remembered[key] = read
        return read

    # ---------------------------------------------------------------- writing

    def caused(self, base: SqlOperation, database: str | None, found: Reads) -> tuple[Table, ...]:
        """The tables that are written beside those that the statement names: through views, triggers, cascades."""
        if not base.writes or base.kind is Kind.READ:
            return ()
        catalogue, sight = self.catalogue, self.catalogue.sight
        if catalogue.problem is not None or sight is None:
            found.writes_whole = False
            return ()
        seen = self._caused_by(
            [(table, event) for table in unqualified(base.writes, database) for event in _events(base)], found
        )
        named = {catalogue.key(table) for table in unqualified(base.writes, database)}
        return tuple(dict.fromkeys(table for table, _ in seen if table not in named and table not in catalogue.views))

    def _caused_by(self, pending: list[tuple[Table, str]], found: Reads) -> dict[tuple[Table, str], None]:
        """Every table that these writes come to, each with its event; `pending` is used up."""
        catalogue, sight = self.catalogue, self.catalogue.sight
        assert sight is not None
        seen: dict[tuple[Table, str], None] = {}
        while pending:
            table, event = pending.pop()
            if table.database is None or (catalogue.key(table), event) in seen:
                continue
            if len(seen) >= CAUSED:
                found.writes_whole = False
                break
            key = catalogue.key(table)
            seen[key, event] = None
            if (view := catalogue.views.get(key)) is not None:
                proof = self.view(view, [])
                found.writes_whole = found.writes_whole and proof.whole
                pending += [(read, event) for read in proof.reads]
                continue
            if not (sight.triggers(table.database) and sight.views(table.database)):
                found.writes_whole = False
            for trigger in catalogue.triggers.get(key, ()):
                if trigger.event == event:
                    pending += self._fired(trigger, found)
            for foreign_key in catalogue.children.get(key, ()):
                rule = {"DELETE": foreign_key.on_delete, "UPDATE": foreign_key.on_update}.get(event, "")
                if rule == "CASCADE":
                    pending.append((foreign_key.child, event))
                elif rule.startswith("SET"):
                    pending.append((foreign_key.child, "UPDATE"))
        return seen

    def call_of_procedure(self, operation: SqlOperation, database: str | None) -> SqlOperation:
        """CALL, without its pin if all of the procedure's body is understood and leaves nothing on the connection."""
        catalogue, sight, proven = self.catalogue, self.catalogue.sight, operation.if_proven
        (name,) = operation.calls or (None,)
        home = name.database or database if name is not None else None
        if proven is None or name is None or home is None or sight is None or catalogue.stale or catalogue.problem:
            return operation
        routine = catalogue.procedure(Table(name.name, home))
        if routine is None or not sight.routines(home):
            return operation
        found = Reads()
        written = self._caused_by(self._called(routine, found, []), found)
        if not found.writes_whole or found.pin is not None:
            return operation
        return replace(proven, reads=tuple(found.reads), writes=tuple(dict.fromkeys(table for table, _ in written)))

    def _fired(self, trigger: Trigger, found: Reads) -> list[tuple[Table, str]]:
        """What a trigger writes and by which event; what it reads is added to what was found."""
        body = self.body(("trigger", trigger.table, trigger.name), trigger.body, trigger.sql_mode, (), True)
        return self._done(body, trigger.table.database, found, [])

    def _done(self, body: Body, database: str | None, found: Reads, trail: list[Table]) -> list[tuple[Table, str]]:
        found.writes_whole = found.writes_whole and body.whole
        found.pin = found.pin or body.pin
        written: list[tuple[Table, str]] = []
        for operation in body.operations:
            best = operation.if_proven or operation
            found.reads.update(dict.fromkeys(unqualified(best.reads, database)))
            found.columns.update(_qualified(best.columns, database))
            self.tables(found, best.reads, best.columns, database, [])
            found.writes_whole = found.writes_whole and best.tables_complete
            written += [(table, event) for table in unqualified(best.writes, database) for event in _events(best)]
            for call in operation.calls:
                routine = self.catalogue.function(Table(call.name, call.database or database))
                written += self._called(routine, found, trail)
        for name in body.procedures:
            written += self._called(self.catalogue.procedure(Table(name.name, name.database or database)), found, trail)
        return written

    def _called(self, routine: Routine | None, found: Reads, trail: list[Table]) -> list[tuple[Table, str]]:
        if routine is None or len(trail) >= DEPTH:
            found.writes_whole = False
            return []
        if routine.name in trail:
            return []
        kind = "function body" if routine.function else "procedure body"
        body = self.body((kind, routine.name), routine.body, routine.sql_mode, routine.parameters, False)
        return self._done(body, routine.name.database, found, [*trail, routine.name])


_UNOPENED: Final = Body(UNOPENED, whole=False)


def _qualified(columns: Iterable[Column], database: str | None) -> Iterable[Column]:
    for column in columns:
        table = column.table
        if table is None or table.database is not None:
            yield column
        else:
            yield Column(column.name, Table(table.name, database))


_EVENTS: Final = {"insert": ("INSERT",), "replace": ("INSERT", "DELETE"), "update": ("UPDATE",), "delete": ("DELETE",)}


def _events(operation: SqlOperation) -> tuple[str, ...]:
    """The events of triggers and foreign keys that a write causes. DDL fires none."""
    events = _EVENTS.get(operation.statement.rpartition(" ")[2], ())
    if operation.multi or operation.statement in ("explain", "analyze", "describe", "desc", "load data", "load xml"):
        events = ("INSERT", "UPDATE", "DELETE")
    return (*events, "UPDATE") if operation.upsert else events
