"""What PREPARE has prepared in SQL text on a session's connection, so that EXECUTE is followed as its text would be.

A session stays with its connection while it has any of them. What EXECUTE leaves behind there is what its text leaves
behind; where the text is not known (it came from a query, a procedure, another character set), that may be anything,
and the session stays for good.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from gateway.protocol.mysql.commands import query
from gateway.routing.fingerprint import Reading
from gateway.routing.operation import Kind, PinCause, Scope, SqlOperation
from gateway.routing.sql_asks import string_value, text_to_prepare

if TYPE_CHECKING:
    from gateway.backends.mysql_state import State
    from gateway.routing.sql import Classifier

MAX_TEXTS: Final = 256  # of one session; of more, those that come later are not known
_CHANGES: Final = frozenset(("insert", "update", "delete", "replace"))


class PreparedTexts:
    """The texts by name, each with how it was read when it was prepared."""

    __slots__ = ("_by_name",)

    def __init__(self) -> None:
        self._by_name: dict[str, tuple[bytes, Reading]] = {}

    def clear(self) -> None:
        self._by_name.clear()

    def prepare(self, name: str, sql: bytes, reading: Reading, state: State | None) -> None:
        """PREPARE has succeeded. `state` is what the session has set, None where that is not all."""
        text, variable = text_to_prepare(sql, reading)
        if variable is not None and state is not None:
            literal = next(
                (one.value for one in state.assignments if one.scope is Scope.USER and one.name == variable), None
            )
            # With a backslash it depends on how it was read then.
            text = string_value(literal, reading) if literal is not None and "\\" not in literal else None
        self._by_name.pop(name, None)
        if text is not None and len(self._by_name) < MAX_TEXTS:
            self._by_name[name] = text, reading

    def executed(
        self, raw: bytes, operation: SqlOperation, reading: Reading, classifier: Classifier
    ) -> tuple[bytes, SqlOperation]:
        """The statement that EXECUTE ran, as if the client had sent it, and what it is."""
        unproven = replace(operation, pin=PinCause.UNPROVEN)
        known = self._by_name.get(operation.names[0]) if operation.names else None
        if known is None:
            return raw, unproven
        text, prepared_as = known
        inner = classifier.classify(text, prepared_as)
        sticks = inner.pin or inner.unpin or inner.assignments or inner.database
        plain = not sticks and (inner.kind is Kind.READ or inner.statement in _CHANGES)
        # Under another reading its names and values may mean something else now.
        if inner.multi or inner.gateway is not None or not (plain or prepared_as is reading):
            return raw, unproven
        return query(text), inner
