"""Every statement of the corpus has the class that its heading says, cold and from the caches."""

from __future__ import annotations

import pytest
from sql_corpus import ENTRIES, PINS, Entry

from gateway.routing.operation import Kind, SqlOperation, TransactionEffect
from gateway.routing.sql import Classifier
from gateway.rules.policy import primary_only


def goes_to_replica(operation: SqlOperation) -> bool:
    return operation.kind is Kind.READ and primary_only(operation) is None


def expected(entry: Entry) -> dict[str, object]:
    values = {flag.partition(":")[0]: flag.partition(":")[2] for flag in entry.flags}
    return {
        "pin": PINS[values["pin"]] if "pin" in values else None,
        "unpin": PINS[values["unpin"]] if "unpin" in values else None,
        "transaction": TransactionEffect(values["tx"]) if "tx" in values else TransactionEffect.NONE,
        "last_connection": "last" in values,
        "multi": "multi" in values,
        "chain": "chain" in values,
        "release": "release" in values,
        "found_rows": "found-rows" in values,
        "without_where": "no-where" in values,
    }


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.place)
def test_a_statement_has_the_class_of_its_heading(entry: Entry) -> None:
    for reading in entry.readings:
        operation = Classifier().classify(entry.sql, reading)
        assert (operation.kind, goes_to_replica(operation)) == (entry.kind, entry.replica), operation
        if "?" not in entry.flags:
            assert {name: getattr(operation, name) for name in expected(entry)} == expected(entry), operation


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len({entry.sql for entry in ENTRIES}) >= 2_700


def test_one_classifier_for_all_gives_the_same_classes_as_one_for_each() -> None:
    """Whatever the caches hold from other statements, the class stays."""
    shared = Classifier()
    for reading in dict.fromkeys(reading for entry in ENTRIES for reading in entry.readings):
        alone = {entry.sql: Classifier().classify(entry.sql, reading) for entry in ENTRIES if reading in entry.readings}
        for _ in range(2):
            for sql, operation in alone.items():
                assert shared.classify(sql, reading) == operation, sql
