"""Every statement of the corpus with a catalogue has the class of its heading, by what each family of servers tells."""

from __future__ import annotations

from dataclasses import replace

import pytest
from catalogue_corpus import CATALOGUE_CORPUS, catalogue
from sql_corpus import PINS, Entry, load

from gateway.routing.operation import Kind, SqlOperation
from gateway.routing.sql import Classifier

ENTRIES = load(CATALOGUE_CORPUS)
CATALOGUES = {mariadb: catalogue("mariadb" if mariadb else "mysql") for mariadb in (True, False)}
VERSIONS = {True: (10, 11), False: (9, 7)}


def classify(sql: bytes, *, mariadb: bool, database: str | None = "shop") -> SqlOperation:
    classifier = Classifier()
    classifier.use_catalogue(CATALOGUES[mariadb])
    reading = replace(ENTRIES[0].readings[0], mariadb=mariadb, version=VERSIONS[mariadb], database=database)
    return classifier.classify(sql, reading)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.place)
def test_a_statement_has_the_class_of_its_heading(entry: Entry) -> None:
    flags = {flag.partition(":")[0]: flag.partition(":")[2] for flag in entry.flags}
    for reading in entry.readings:
        operation = classify(entry.sql, mariadb=reading.mariadb)
        replica = operation.kind is Kind.READ and operation.needs_primary is None and operation.pin is None
        assert (operation.kind, replica) == (entry.kind, entry.replica), operation
        assert operation.pin == (PINS[flags["pin"]] if "pin" in flags else None), operation
        if "writes" in flags:
            wanted = {part for part in flags["writes"].split(",") if part}
            # Those that the statement names have no database unless it gives one.
            caused = {f"{table.database}.{table.name}" for table in operation.writes[1:]}
            assert caused == wanted
