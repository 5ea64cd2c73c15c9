"""What the second fence lets through is called a read by no path of the classifier (docs/decisions/second-fence.md)."""

from __future__ import annotations

import pytest
from fence_statements import (
    FENCED,
    FENCED_IN_VAIN,
    FENCED_MARIADB,
    FENCED_MYSQL,
    NOT_FENCED,
    NOT_FENCED_MARIADB,
    NOT_FENCED_MYSQL,
)

from gateway.routing.fingerprint import Reading
from gateway.routing.operation import Kind
from gateway.routing.sql import Classifier
from gateway.routing.sql_long import LEX_BYTES

PADDING = b"'" + b"x" * LEX_BYTES + b"'"
WRAPPED = [
    b"%s",
    b"%s;",
    b" /* c */ %s -- c",
    b"/* gateway: replica */ %s",
    b"/*! %s */",
    b"/*!50701 %s */",
    b"/*M! %s */",
    b"/*!99999 SELECT 1 -- */\n%s",
    b"SELECT 1; %s",
    b"%s; SELECT 1",
    b"SELECT 1 /*! ; %s */",
    b"SELECT " + PADDING + b"; %s",
    b"%s; SELECT " + PADDING,
    b"/*" + PADDING + b"*/ %s",
    b"%s -- " + PADDING,
    b"(%s)",
    b"EXPLAIN ANALYZE %s",
    b"SET STATEMENT max_statement_time = 1 FOR %s",
]
READINGS = [
    Reading(mariadb=mariadb, ansi_quotes=ansi, no_backslash_escapes=escapes, ignore_space=space)
    for mariadb in (False, True)
    for ansi, escapes, space in ((False, False, False), (True, False, True), (False, True, False))
]


@pytest.mark.parametrize("mariadb", [False, True])
def test_no_path_of_the_classifier_calls_it_a_read(mariadb: bool) -> None:
    statements = [*FENCED, *FENCED_IN_VAIN, *NOT_FENCED]
    statements += [*FENCED_MARIADB, *NOT_FENCED_MARIADB] if mariadb else [*FENCED_MYSQL, *NOT_FENCED_MYSQL]
    classifier = Classifier()
    for reading in (reading for reading in READINGS if reading.mariadb is mariadb):
        for sql in statements:
            if sql == "SELECT a FROM view_of_evil":
                continue  # a view hides it: that is what the fence is for
            for wrapper in WRAPPED:
                if wrapper.startswith(b"EXPLAIN") and " " not in sql:
                    continue  # EXPLAIN BEGIN describes a table of that name
                text = wrapper % sql.encode()
                for _ in range(2):
                    assert classifier.classify(text, reading).kind is not Kind.READ, (text[:200], reading)
