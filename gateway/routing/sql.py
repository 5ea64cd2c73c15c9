"""Classifies SQL: the text of a statement becomes an `SqlOperation`.

Two caches stand before the parser. The first knows exact texts, the second folds (`fingerprint`), which all texts
share that differ only in literals and comments. What must be read in full goes through the lexer (`sql_tokens`) and is
then dispatched by its first word: queries and data changes to `sql_query`, which proves reads twice, by tokens and by
tree; SET to `sql_set`; SHOW and EXPLAIN to `sql_show`; the rest to `first_words`.

What comes of that knows no catalogue: it holds for any database, and is shared by them. With a catalogue `sql_resolve`
then says what it is in the session's database, where a name may be a view and a table have triggers; that is kept for
the exact text, and forgotten with the catalogue.

The rule is that only a proven read is READ. Doubt of any kind is UNKNOWN, which goes to the primary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple

from gateway.routing.catalogue import Catalogue
from gateway.routing.fingerprint import DEFAULT_READING, Reading, fingerprint, folder_of
from gateway.routing.operation import Kind, SqlOperation
from gateway.routing.sql_cache import Cache
from gateway.routing.sql_long import LEX_BYTES, as_shortened, unread
from gateway.routing.sql_resolve import resolve
from gateway.routing.sql_text import PARSE_BYTES, classify_short, classify_text, short_of

__all__ = ["DEFAULT_READING", "Classifier", "Reading", "classify_text", "fingerprint"]

EXACT_ENTRIES: Final = 16_384
"""Texts in the exact cache."""
PLAN_ENTRIES: Final = 8_192
"""Folds in the second cache; an application has hundreds of statements, sysbench 6, MediaWiki some thousand."""
EXACT_TEXT_BYTES: Final = 1_024
"""Longest text in the exact cache, bytes: longer ones seldom come twice."""
FOLD_KEY_BYTES: Final = 2 * LEX_BYTES
"""Longest fold in the second cache, bytes: that of `1,1,1` is not twice as long as its text."""
LEARNED_ENTRIES: Final = 1_024
"""Folds that a replica refused as a write."""
REFUSED_BEFORE: Final = "a replica refused it as a write before"
"""The reason of their operations."""
CACHE_BYTES: Final = 8 * 1024 * 1024
"""Keys of one generation of one cache, bytes. The values are shared or small."""
RESOLVED_ENTRIES: Final = 8_192
"""Operations whose meaning by the catalogue is remembered, counted once per database."""
READINGS: Final = 32
"""Readings with a cache of texts of their own; sessions of more databases take turns."""


class Statistics(NamedTuple):
    """Counts since the start."""

    folds: int  # texts that missed the exact cache
    parses: int  # texts that missed both


class Classifier:
    """Classifies statements and remembers their classes. Not safe for several threads at once."""

    def __init__(
        self,
        *,
        exact_entries: int = EXACT_ENTRIES,
        plan_entries: int = PLAN_ENTRIES,
        max_parse_bytes: int = PARSE_BYTES,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._exact_entries = exact_entries
        self._plan_entries = plan_entries
        self._max_parse_bytes = max_parse_bytes
        self._cache_bytes = cache_bytes
        self._texts: dict[Reading, Cache] = {}  # each with its database
        self._folds_of: dict[Reading, Cache] = {}  # without one
        self._catalogue: Catalogue | None = None
        self._resolved: dict[tuple[int, str | None], tuple[SqlOperation, SqlOperation]] = {}
        self._learned: dict[tuple[Reading, bytes], SqlOperation] = {}
        self._folds = 0
        self._parses = 0
        self.version = 0  # grows whenever a text may be of another class than before
        self._use(DEFAULT_READING)

    def _use(self, reading: Reading) -> None:
        """Make the caches of a reading the current ones. Few readings are in use at a time, mostly one."""
        texts = self._texts.get(reading)
        if texts is None:
            if len(self._texts) >= READINGS:
                del self._texts[next(iter(self._texts))]
            texts = self._texts[reading] = Cache(self._exact_entries, self._cache_bytes // 2)
        shared = replace(reading, database=None) if reading.database is not None else reading
        plans = self._folds_of.get(shared)
        if plans is None:
            if len(self._folds_of) >= 16:
                self._folds_of.clear()
            plans = self._folds_of[shared] = Cache(self._plan_entries, self._cache_bytes)
        self._reading = reading
        self._exact, self._plans = texts, plans
        self._fold = folder_of(reading).fold

    def use_catalogue(self, catalogue: Catalogue) -> None:
        """Reads names by this catalogue from now on. What was learnt or remembered under another one is forgotten."""
        if catalogue is self._catalogue:
            return
        if self._catalogue is None or catalogue.version != self._catalogue.version:
            self._learned.clear()
        self._catalogue = catalogue
        self.version += 1
        self._resolved.clear()
        for texts in self._texts.values():
            texts.clear()

    def clear(self) -> None:
        """Forget everything that was classified."""
        self.version += 1
        self._resolved.clear()
        for cache in (*self._texts.values(), *self._folds_of.values()):
            cache.clear()

    def statistics(self) -> Statistics:
        return Statistics(self._folds, self._parses)

    def entries(self) -> int:
        """Number of remembered texts and folds, over all readings."""
        return sum(len(cache) for cache in (*self._texts.values(), *self._folds_of.values()))

    def classify(self, sql: bytes, reading: Reading = DEFAULT_READING) -> SqlOperation:
        """What the statement (or statements) of one COM_QUERY is, under one reading. Raises nothing."""
        if reading is not self._reading:
            self._use(reading)
        operation = self._exact.young.get(sql)
        if operation is not None:
            return operation
        return self._classify(sql)

    def learn_write(self, sql: bytes, reading: Reading) -> None:
        """A server refused as a write what was proven to be a read: nothing with its fold is a read from now on."""
        operation = self.classify(sql, reading)
        text = short_of(sql, reading)
        folded = self._fold(text) if text is not None else None
        if operation.kind is not Kind.READ or folded is None or len(folded) > FOLD_KEY_BYTES:
            return
        if len(self._learned) >= LEARNED_ENTRIES:
            self._learned.clear()  # a fence that is hit this often is the server's; learning again costs one retry
        self._learned[reading, folded] = replace(operation, kind=Kind.UNKNOWN, reason=REFUSED_BEFORE)
        self.clear()

    def _classify(self, sql: bytes) -> SqlOperation:
        short = len(sql) <= EXACT_TEXT_BYTES
        if short:
            operation = self._exact.old(sql)
            if operation is not None:
                return operation
        self._folds += 1
        operation = self._resolve(self._by_fold(sql))
        if short:
            self._exact.put(sql, operation)
        return operation

    def _by_fold(self, sql: bytes) -> SqlOperation:
        """What a text is as far as no catalogue is needed to say it."""
        text = short_of(sql, self._reading)
        if text is None:
            self._parses += 1
            return unread(sql, self._reading)
        operation = self._by_short_fold(text)
        return operation if text is sql else as_shortened(operation)

    def _by_short_fold(self, sql: bytes) -> SqlOperation:
        folded = self._fold(sql)
        if folded and len(folded) <= FOLD_KEY_BYTES and (not self._reading.unsafe_charset or sql.isascii()):
            plans = self._plans
            operation = self._learned.get((self._reading, folded)) if self._learned else None
            operation = operation or plans.young.get(folded) or plans.old(folded)
            if operation is None:
                self._parses += 1
                operation, foldable = classify_short(sql, self._reading, self._max_parse_bytes)
                if foldable:
                    plans.put(folded, operation)
            return operation
        self._parses += 1
        return classify_short(sql, self._reading, self._max_parse_bytes)[0]

    def _resolve(self, operation: SqlOperation) -> SqlOperation:
        """What an operation is in the reading's database, by the catalogue."""
        catalogue = self._catalogue
        if catalogue is None or not (operation.reads or operation.writes or operation.calls):
            return operation
        key = id(operation), self._reading.database
        known = self._resolved.get(key)
        if known is not None:
            return known[1]
        resolved = resolve(operation, catalogue, self._reading)
        if len(self._resolved) >= RESOLVED_ENTRIES:
            self._resolved.clear()
        self._resolved[key] = operation, resolved
        return resolved
