"""What a catalogue is worth by the rights of who read it, and what rules see through it."""

from __future__ import annotations

from typing import Any

import pytest
from catalogue_corpus import ALL_SEEN, catalogue

from gateway.routing import sql_query, sql_resolve
from gateway.routing.catalogue import (
    Catalogue,
    Contents,
    Grants,
    Routine,
    SchemaChange,
    Sight,
    Trigger,
    View,
    schema_change,
)
from gateway.routing.fingerprint import Reading
from gateway.routing.operation import Column, Kind, PinCause, Table
from gateway.routing.sql import Classifier, classify_text
from gateway.routing.sql_proofs import DEFINITIONS
from gateway.routing.sql_resolve import STALE
from gateway.routing.sql_routine import read_body

MYSQL = Reading(version=(9, 7), database="shop")
MARIADB = Reading(mariadb=True, version=(10, 11), database="shop")


def by(known: Catalogue) -> Classifier:
    classifier = Classifier()
    classifier.use_catalogue(known)
    return classifier


# ---------------------------------------------------------------- rights


@pytest.mark.parametrize(
    ("rows", "database", "views", "routines", "triggers"),
    [
        ([ALL_SEEN], "shop", True, True, True),
        (["GRANT ALL PRIVILEGES ON *.* TO `g`@`%` WITH GRANT OPTION"], "shop", True, True, True),
        (["GRANT USAGE ON *.* TO `g`@`%`"], "shop", False, False, False),
        (["GRANT SHOW VIEW ON *.* TO `g`@`%`"], "shop", True, False, False),
        (["GRANT SELECT, SHOW VIEW ON `sh%`.* TO `g`@`%`"], "shop", True, False, False),
        (["GRANT SELECT, SHOW VIEW ON `sh%`.* TO `g`@`%`"], "other", False, False, False),
        (["GRANT SELECT ON `sho\\_`.* TO `g`@`%`"], "shop", False, False, False),
        (["GRANT SELECT ON `sho_`.* TO `g`@`%`"], "shop", True, False, False),
        (["GRANT SELECT ON `shop`.`v` TO `g`@`%`"], "shop", False, False, False),
        (["GRANT SELECT (`a`), INSERT (`a`) ON `shop`.* TO `g`@`%`"], "shop", False, False, False),
        (["GRANT EXECUTE ON PROCEDURE `shop`.`p` TO `g`@`%`"], "shop", False, False, False),
        (["GRANT SHOW_ROUTINE ON *.* TO `g`@`%`"], "shop", False, True, False),
        ([ALL_SEEN, "REVOKE SELECT, SHOW VIEW, TRIGGER ON `shop`.* FROM `g`@`%`"], "shop", False, False, False),
        ([ALL_SEEN, "REVOKE SELECT, SHOW VIEW, TRIGGER ON `shop`.* FROM `g`@`%`"], "other", True, True, True),
        (["GRANT `role`@`%` TO `g`@`%`"], "shop", False, False, False),
    ],
)
def test_what_mysql_shows_by_its_grants(
    rows: list[str], database: str, views: bool, routines: bool, triggers: bool
) -> None:
    sight = Sight(Grants(rows), False, (9, 7), "g")
    assert (sight.views(database), sight.routines(database), sight.triggers(database)) == (views, routines, triggers)


def test_under_partial_revokes_the_name_of_a_database_is_no_pattern() -> None:
    rows = ["GRANT SELECT, SHOW VIEW ON `sh%`.* TO `g`@`%`"]
    assert not Sight(Grants(rows, literal_names=True), False, (9, 7), "g").views("shop")


@pytest.mark.parametrize(
    ("rows", "version", "routines"),
    [
        (["GRANT SELECT ON `mysql`.`proc` TO `g`@`%`"], (10, 11), True),
        (["GRANT SHOW CREATE ROUTINE ON *.* TO `g`@`%`"], (10, 11), False),
        (["GRANT SHOW CREATE ROUTINE ON *.* TO `g`@`%`"], (11, 4), True),
        ([ALL_SEEN], (10, 6), True),
    ],
)
def test_what_mariadb_shows_by_its_grants(rows: list[str], version: tuple[int, int], routines: bool) -> None:
    assert Sight(Grants(rows), True, version, "g").routines("shop") is routines


def test_missing_grants_are_told_as_statements() -> None:
    def missing(*rows: str, mariadb: bool = False, version: tuple[int, int] = (9, 7)) -> list[str]:
        return Sight(Grants(rows), mariadb, version, "'g'@'%'").missing()

    assert missing(ALL_SEEN) == []
    assert missing("GRANT REPLICATION CLIENT ON *.* TO g") == ["GRANT SELECT, SHOW VIEW, TRIGGER ON *.* TO 'g'@'%'"]
    assert missing("GRANT SELECT, TRIGGER ON *.* TO g ") == ["GRANT SHOW VIEW ON *.* TO 'g'@'%'"]
    own = "GRANT SELECT, SHOW VIEW, TRIGGER ON `shop`.* TO `g`@`%`"
    assert missing(own) == ["GRANT SHOW_ROUTINE ON *.* TO 'g'@'%'", "GRANT SELECT ON mysql.func TO 'g'@'%'"]
    assert missing(own, mariadb=True, version=(10, 11))[0] == "GRANT SELECT ON mysql.proc TO 'g'@'%'"
    assert missing(own, mariadb=True, version=(11, 8))[0] == "GRANT SHOW CREATE ROUTINE ON *.* TO 'g'@'%'"


@pytest.mark.parametrize("family", ["mariadb", "mysql"])
def test_what_nobody_may_see_proves_nothing(family: str) -> None:
    reading = MARIADB if family == "mariadb" else MYSQL
    poor = by(catalogue(family, "GRANT USAGE ON *.* TO `g`@`%`"))
    operation = poor.classify(b"SELECT * FROM customers", reading)
    assert operation.kind is Kind.READ
    assert operation.needs_primary is not None
    assert "may be a view" in operation.needs_primary
    assert not operation.columns_complete
    assert poor.classify(b"SELECT twice(1)", reading).kind is Kind.UNKNOWN
    named = by(catalogue(family, "GRANT SHOW VIEW ON *.* TO `g`@`%`"))
    assert named.classify(b"SELECT * FROM customers", reading).needs_primary is None
    assert named.classify(b"SELECT shop.twice(1)", reading).kind is Kind.UNKNOWN
    one = "GRANT SELECT, SHOW VIEW, TRIGGER ON `shop`.* TO `g`@`%`"
    bodies = {"mariadb": "SELECT ON `mysql`.`proc`", "mysql": "SHOW_ROUTINE ON *.*"}
    partly = by(catalogue(family, one, f"GRANT {bodies[family]} TO `g`@`%`"))
    assert partly.classify(b"SELECT shop.twice(1)", reading).kind is Kind.READ
    loadable = partly.classify(b"SELECT twice(1)", reading)  # a loadable function would go before the stored one
    assert (loadable.kind, loadable.pin) == (Kind.UNKNOWN, PinCause.PROCEDURE)
    assert partly.classify(b"SELECT name FROM rich", reading).needs_primary is None
    assert partly.classify(b"SELECT * FROM other.notes", reading).needs_primary is not None


def test_a_view_without_a_visible_definition_is_unknown() -> None:
    sight = Sight(Grants(["GRANT SHOW VIEW ON *.* TO `g`@`%`"]), False, (9, 7), "g")
    known = by(Catalogue(Contents(views=(View(Table("v", "shop"), ""),)), sight, version=1))
    operation = known.classify(b"SELECT a FROM v", MYSQL)
    assert (operation.kind, operation.columns_complete) == (Kind.UNKNOWN, False)
    changed = known.classify(b"INSERT INTO t SELECT a FROM v", MYSQL)
    assert (changed.kind, changed.columns_complete) == (Kind.WRITE, False)


def test_a_catalogue_that_was_never_read_is_no_empty_one() -> None:
    operation = by(Catalogue()).classify(b"SELECT a FROM t", MYSQL)
    assert operation.needs_primary == "t may be a view: the catalogue has not been read yet"
    assert by(Catalogue()).classify(b"SELECT 1", MYSQL).needs_primary is None


def test_a_loadable_function_is_never_proven() -> None:
    body = Routine(Table("f", "shop"), True, "RETURN 1", "", (), "NO SQL", True)
    sight = Sight(Grants([ALL_SEEN]), False, (9, 7), "g")
    known = by(Catalogue(Contents(routines=(body,), loadable=frozenset(["f"])), sight, version=1))
    assert known.classify(b"SELECT F()", MYSQL).kind is Kind.UNKNOWN
    assert known.classify(b"SELECT shop.f()", MYSQL).kind is Kind.READ


# ---------------------------------------------------------------- versions, databases, names


def test_no_class_outlives_its_catalogue() -> None:
    classifier = Classifier()
    sql = b"SELECT id FROM logging"
    assert classifier.classify(sql, MYSQL).kind is Kind.READ
    classifier.use_catalogue(known := catalogue("mysql"))
    assert classifier.classify(sql, MYSQL).kind is Kind.UNKNOWN
    view = View(Table("logging", "shop"), "select 1 AS `id`")
    classifier.use_catalogue(Catalogue(Contents(views=(view,)), known.sight, version=2))
    assert classifier.classify(sql, MYSQL).kind is Kind.READ
    classifier.use_catalogue(known)
    for text in (sql, b"SELECT id FROM rich", b"SELECT id FROM customers"):
        classifier.classify(text, MYSQL)
    classifier.use_catalogue(known.outdated())
    for text in (b"SELECT id FROM rich", b"SELECT id FROM customers"):
        operation = classifier.classify(text, MYSQL)
        assert (operation.kind, operation.needs_primary) == (Kind.READ, STALE)
    assert classifier.classify(b"SELECT twice(1)", MYSQL).kind is Kind.UNKNOWN
    classifier.use_catalogue(known.outdated().trusted())
    assert classifier.classify(b"SELECT twice(id) FROM rich", MYSQL).needs_primary is None


def test_one_text_means_what_its_database_makes_of_it_and_is_parsed_once() -> None:
    classifier = by(catalogue("mysql"))
    other = Reading(version=(9, 7), database="other")
    for _ in range(2):
        assert classifier.classify(b"SELECT * FROM rich WHERE 1 = 1", MYSQL).kind is Kind.READ
        assert classifier.classify(b"SELECT * FROM rich WHERE 1 = 1", other).kind is Kind.UNKNOWN
    assert classifier.statistics().parses == 1


@pytest.mark.parametrize("ignore_case", [False, True])
def test_names_are_compared_as_the_server_does(ignore_case: bool) -> None:
    classifier = by(catalogue("mysql", ignore_case=ignore_case))
    kind = Kind.UNKNOWN if ignore_case else Kind.READ
    for sql in (b"SELECT id FROM LOGGING", b"SELECT id FROM SHOP.logging"):
        assert classifier.classify(sql, MYSQL).kind is kind
    assert classifier.classify(b"SELECT TWICE(1)", MYSQL).kind is Kind.READ


def test_tables_of_one_name_in_two_databases_are_two() -> None:
    operation = classify_text(b"SELECT a.t.x, b.t.y FROM a.t JOIN b.t", MYSQL)[0]
    assert {Column("x", Table("t", "a")), Column("y", Table("t", "b"))} <= operation.columns


# ---------------------------------------------------------------- columns


@pytest.mark.parametrize("family", ["mariadb", "mysql"])
@pytest.mark.parametrize(
    ("sql", "touches", "spares"),
    [
        (b"SELECT nr FROM named", {"customers.id", "customers.balance"}, {"customers.name"}),
        (b"SELECT called FROM named", {"customers.name", "customers.balance"}, {"customers.id"}),
        (b"SELECT COUNT(*) FROM rich", {"customers.balance"}, {"customers.name"}),
        (b"SELECT * FROM rich", {"customers.balance", "customers.name", "customers.id"}, set()),
        (b"SELECT b FROM balances", {"customers.balance", "orders.customer"}, {"customers.name"}),
        (b"SELECT balance_of(1)", {"customers.balance"}, {"customers.name"}),
        (b"SELECT x.called FROM named AS x", {"customers.name"}, {"orders.amount"}),
        (b"SELECT id FROM everyone", {"customers.id", "orders.id"}, {"customers.balance"}),
        (b"SELECT id FROM swapped", {"customers.balance"}, {"customers.id"}),
        (b"SELECT id FROM customers", {"customers.id"}, {"customers.balance"}),
    ],
)
def test_columns_of_views_and_functions_are_those_of_their_tables(
    family: str, sql: bytes, touches: set[str], spares: set[str]
) -> None:
    operation = by(catalogue(family)).classify(sql, MARIADB if family == "mariadb" else MYSQL)
    found = {f"{column.table.name}.{column.name}" for column in operation.columns if column.table is not None}
    assert touches <= found
    assert not spares & found
    assert operation.columns_complete


# ---------------------------------------------------------------- bodies


@pytest.mark.parametrize(
    "body",
    [
        "",
        "BEGIN",
        "RETURN 1; DROP TABLE t",
        "BEGIN EXECUTE IMMEDIATE 'x'; RETURN 1; END",
        "BEGIN PREPARE s FROM 'x'; RETURN 1; END",
        "BEGIN SET x = 1; RETURN 1; END",
        "BEGIN BEGIN DECLARE x INT; END; SET x = 1; RETURN 1; END",
        "BEGIN SET GLOBAL a = 1; RETURN 1; END",
        "BEGIN SET NAMES utf8mb4; RETURN 1; END",
        "BEGIN DO SLEEP(1); RETURN 1; END",
        "BEGIN FLUSH TABLES; RETURN 1; END",
        "BEGIN CREATE TEMPORARY TABLE t (a INT); RETURN 1; END",
        "BEGIN DECLARE a INT; SELECT 1 INTO OUTFILE '/x'; RETURN 1; END",
        "BEGIN DECLARE a INT; SELECT 1 INTO b; RETURN 1; END",
        "BEGIN IF NEXTVAL(s) THEN RETURN 1; END IF; END",
        "RETURN LAST_INSERT_ID()",
        "RETURN FOUND_ROWS()",
        "RETURN @a",
        "RETURN @a := 1",
        "RETURN UUID_SHORT()",
        "RETURN RELEASE_ALL_LOCKS()",
        "/*!50000 RETURN 1 */",
        "RETURN (SELECT a FROM t FOR SHARE)",
        "BEGIN DECLARE EXIT HANDLER FOR SQLEXCEPTION DELETE FROM t; RETURN 1; END",
        "BEGIN " * 500 + "END; " * 499 + "END",
        "RETURN " + "(" * 2000 + "1" + ")" * 2000,
        "RETURN '" + "x" * 9000 + "'",
    ],
)
def test_a_body_that_does_more_than_reading_is_not_proven(body: str) -> None:
    assert read_body(body, MARIADB, ()).problem is not None


@pytest.mark.parametrize(
    "body",
    [
        "RETURN a + 1",
        "BEGIN NOT ATOMIC RETURN 1; END",
        "main: BEGIN DECLARE i, j INT DEFAULT 0; again: REPEAT SET i = i + 1; IF i = 3 THEN ITERATE again; END IF; "
        "UNTIL i > 9 END REPEAT again; RETURN i; END main",
        "BEGIN DECLARE gone CONDITION FOR SQLSTATE '42S02'; DECLARE x INT; "
        "DECLARE EXIT HANDLER FOR gone, SQLSTATE VALUE '42000', 1051, NOT FOUND BEGIN SET x = 1; RETURN x; END; "
        "SELECT MAX(v) INTO x FROM t; RETURN x; END",
        "BEGIN SET a = (SELECT COUNT(*) FROM t WHERE id = a); CASE WHEN a THEN RETURN 1; ELSE BEGIN END; END CASE; "
        "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no'; END",
        "BEGIN DECLARE x INT; WITH c AS (SELECT 1 AS n) SELECT n INTO x FROM c LIMIT 1; RETURN x; END",
    ],
)
def test_a_body_that_only_reads_is_proven(body: str) -> None:
    read = read_body(body, MARIADB, ("a",))
    assert (read.problem, read.whole, read.pin) == (None, True, None)


def test_the_sql_mode_of_a_body_decides_how_it_is_read() -> None:
    quoted = read_body('RETURN "now"()', Reading(ansi_quotes=True)).operations[0]
    assert quoted.calls == (Table("now"),)  # only unquoted it is the built-in
    assert read_body('RETURN "now"', MYSQL).operations[0].calls == ()
    assert read_body("RETURN 1", Reading(oracle_mode=True)).problem == "was made under sql_mode ORACLE"
    spaced = "RETURN COUNT (1)"
    assert read_body(spaced, Reading(ignore_space=True)).problem is None
    assert read_body(spaced, MYSQL).problem is not None


# ---------------------------------------------------------------- DDL


@pytest.mark.parametrize(
    ("sql", "change"),
    [
        ("CREATE VIEW v AS SELECT 1", "definitions"),
        ("CREATE OR REPLACE ALGORITHM=MERGE VIEW v AS SELECT 1", "definitions"),
        ("ALTER VIEW v AS SELECT 1", "definitions"),
        ("DROP VIEW v", "definitions"),
        ("RENAME TABLE a TO b", "definitions"),
        ("ALTER TABLE v RENAME w", "definitions"),
        ("DROP DATABASE d", "definitions"),
        ("CREATE FUNCTION f() RETURNS INT RETURN 1", "definitions"),
        ("CREATE FUNCTION f RETURNS INT SONAME 'x.so'", "definitions"),
        ("CREATE TRIGGER t BEFORE INSERT ON a FOR EACH ROW SET @a = 1", "definitions"),
        ("SELECT 1; DROP VIEW v", "definitions"),
        ("/*!50001 CREATE VIEW v AS SELECT 1 */", "definitions"),
        ("BEGIN NOT ATOMIC DROP VIEW v; END", "definitions"),
        ("INSTALL COMPONENT 'x'", "definitions"),
        ("SOMETHING NEW", "definitions"),
        ("CREATE TABLE t (a INT)", "tables"),
        ("DROP TABLE t", "tables"),
        ("TRUNCATE t", "tables"),
        ("CREATE TEMPORARY TABLE t (a INT)", "none"),
        ("CALL p()", "perhaps"),
        ("EXECUTE s", "perhaps"),
        ("GRANT SELECT ON *.* TO x", "perhaps"),
        ("SELECT a FROM t", "none"),
        ("SELECT f(1)", "none"),
        ("INSERT INTO t VALUES (1)", "none"),
        ("BEGIN; INSERT INTO t VALUES (1); COMMIT", "none"),
        ("SET @a = UUID()", "none"),
        ("COMMIT", "none"),
    ],
)
def test_what_a_statement_does_to_the_catalogue(sql: str, change: str) -> None:
    assert schema_change(classify_text(sql.encode(), MARIADB)[0]) is SchemaChange(change)


# ---------------------------------------------------------------- columns


def with_columns(*grants: str, stale: bool = False) -> Classifier:
    columns = {
        Table("accounts", "shop"): frozenset({"id", "balance"}),
        Table("orders", "shop"): frozenset({"id", "total"}),
        Table("odd", "shop"): frozenset({"id", "gro\N{LATIN SMALL LETTER SHARP S}"}),
    }
    sight = Sight(Grants(grants or (ALL_SEEN,)), False, (9, 7), "g")
    return by(Catalogue(Contents(columns=columns), sight, version=1, stale=stale))


def touched(classifier: Classifier, sql: bytes) -> set[str]:
    columns = classifier.classify(sql, MYSQL).columns
    return {f"{column.table.name if column.table else '?'}.{column.name}" for column in columns}


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        (b"SELECT * FROM accounts", {"accounts.id", "accounts.balance"}),
        (b"SELECT a.* FROM shop.accounts a JOIN orders", {"accounts.id", "accounts.balance"}),
        (b"SELECT balance FROM accounts JOIN orders", {"accounts.balance"}),
        (b"SELECT BALANCE FROM accounts JOIN orders", {"accounts.BALANCE"}),
        (b"TABLE orders", {"orders.id", "orders.total"}),
        (b"WITH c AS (SELECT * FROM orders) SELECT total FROM c", {"orders.id", "orders.total"}),
        (b"DELETE FROM orders", {"orders.id", "orders.total"}),
        (b"SELECT * FROM others", {"others.*"}),
        (b"SELECT * FROM other.accounts", {"accounts.*"}),
        (b"SELECT _rowid FROM accounts", {"accounts._rowid"}),
        (b"SELECT row_start FROM accounts", {"accounts.row_start"}),
        (b"SELECT wrong FROM accounts", set()),
        ("SELECT \N{LATIN CAPITAL LETTER I WITH DOT ABOVE}d FROM accounts".encode(), {"accounts.\u0130d"}),
        (b"SELECT wrong FROM odd", {"odd.wrong"}),
    ],
)
def test_an_asterisk_stands_for_the_columns_that_a_table_has(sql: bytes, found: set[str]) -> None:
    assert touched(with_columns(), sql) == found


def test_an_asterisk_stays_one_where_not_all_columns_are_known_for_sure() -> None:
    for classifier in (with_columns(stale=True), with_columns("GRANT SELECT (`id`), SHOW VIEW ON *.* TO `g`@`%`")):
        assert touched(classifier, b"SELECT * FROM accounts") == {"accounts.*"}
        assert touched(classifier, b"SELECT wrong FROM accounts") == {"accounts.wrong"}


# ---------------------------------------------------------------- bounded


def views_of(definitions: dict[str, str]) -> Catalogue:
    views = tuple(View(Table(name, "shop"), text) for name, text in definitions.items())
    return Catalogue(Contents(views=views), Sight(Grants([ALL_SEEN]), False, (9, 7), "g"))


def test_views_of_views_cost_a_bounded_number_of_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = 0
    classify = sql_query.classify_query

    def counted(*arguments: Any) -> Any:
        nonlocal parsed
        parsed += 1
        return classify(*arguments)

    monkeypatch.setattr(sql_resolve, "classify_query", counted)
    tree = {f"v{n}": f"select a from v{2 * n} join v{2 * n + 1}" for n in range(1, 500)}
    leaves = {f"v{n}": "select a from t" for n in range(500, 1_000)}
    chain = {f"c{n}": f"select a from c{n + 1}" for n in range(200)} | {"c200": "select a from t"}
    known = views_of(tree | leaves | chain)
    classifier = by(known)
    wide = b"SELECT a FROM " + b",".join(b"v%d" % n for n in range(1, 99))
    for sql in (b"SELECT a FROM v1", b"SELECT a FROM c0", wide):
        parsed = 0
        operation = classifier.classify(sql, MYSQL)
        assert (operation.kind, operation.tables_complete) == (Kind.UNKNOWN, False)
        assert parsed <= DEFINITIONS
    # What is unknown for its size makes nothing unknown that it rests on, whichever came first.
    for sql in (b"SELECT a FROM v200", b"SELECT a FROM c190", b"SELECT a FROM v300 JOIN v301 JOIN v302"):
        operation = classifier.classify(sql, MYSQL)
        assert operation == by(views_of(tree | leaves | chain)).classify(sql, MYSQL)
        assert (operation.kind, Table("t", "shop") in operation.reads) == (Kind.READ, True)
    many = b"SELECT a FROM " + b",".join(b"v%d" % n for n in range(500, 500 + DEFINITIONS + 1))
    assert classifier.classify(many, MYSQL).kind is Kind.UNKNOWN
    assert by(known).classify(many.rpartition(b",")[0], MYSQL).kind is Kind.READ


def test_a_write_is_followed_through_a_bounded_number_of_triggers() -> None:
    body = "INSERT INTO t%d SET a = 1"
    triggers = tuple(
        Trigger(f"r{n}", Table(f"t{n}", "shop"), "INSERT", body % (n + 1), "") for n in range(2 * DEFINITIONS)
    )
    known = Catalogue(Contents(triggers=triggers), Sight(Grants([ALL_SEEN]), False, (9, 7), "g"))
    assert not by(known).classify(b"INSERT INTO t0 SET a = 1", MYSQL).tables_complete
    short = by(known).classify(b"INSERT INTO t%d SET a = 1" % (2 * DEFINITIONS - 5), MYSQL)
    assert (short.tables_complete, len(short.writes)) == (True, 6)
