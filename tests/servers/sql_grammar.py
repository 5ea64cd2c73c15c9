"""Makes SQL statements with hypothesis: reads and everything that looks like one, nested, commented, hinted and odd."""

from __future__ import annotations

from hypothesis import strategies as st

from gateway.routing.functions import words

GAPS = st.sampled_from(
    [" "] * 12 + ["\n", "\t", "  ", "/**/", " /* x */ ", " -- x\n", " # '\n", "\r\n", " /* ' */ ", "\v", "\f"]
)
LITERALS = st.sampled_from(
    """1|0|-2|1.5|.5|1e3|0x41|b'01'|x'41'|NULL|TRUE|'a'|'it''s'|'a\\'b'|"x"|''|N'n'|_utf8mb4'u'|'a' 'b'|@v
    |DATE '2024-01-01'|@@sql_mode|@@autocommit|'/*'|'-- '|'; x'""".replace("\n    ", "").split("|")
)
COLUMNS = st.sampled_from(["a", "b", "t.a", "`a`", "id", "shop.t.b", "name", "doc"])
TABLES = st.sampled_from(["t", "u", "shop.t", "`t`", "t AS x", "db.u y", "view1", "(t, u)", "t USE INDEX (i)"])
READ_FUNCTIONS = st.sampled_from(
    sorted(
        words(
            """
            LOWER UPPER LENGTH ABS HEX COALESCE CONCAT MD5 COUNT MAX MIN SUM NOW UUID RAND CHAR QUOTE TRIM LAST_DAY DATE
            YEAR RANK ROW_NUMBER LAG POINT LINESTRING IF IFNULL GREATEST JSON_ARRAY JSON_QUOTE SLEEP GROUP_CONCAT
            LAST_INSERT_ID
            """
        )
    )
)
OTHER_FUNCTIONS = st.sampled_from(
    sorted(
        words(
            """
            evil my_func db.lower `count` shop.evil initcap to_json to_number columns against of GET_LOCK RELEASE_LOCK
            NEXTVAL median SETVAL db.max `now` LAST_INSERT_ID DEFAULT lıke valueſ caſe ıf oﬀset db.caſe ſome
            """
        )
        | {"wee\N{KELVIN SIGN}", "lower\N{NO-BREAK SPACE}", "count$"}
    )
)
SPACES_BEFORE_PAREN = st.sampled_from([""] * 8 + [" ", "/**/", "\n", " /* */ "])


def joined(*parts: st.SearchStrategy[str] | str) -> st.SearchStrategy[str]:
    """The parts with gaps between them."""

    @st.composite
    def make(draw: st.DrawFn) -> str:
        text = ""
        for part in parts:
            piece = part if isinstance(part, str) else draw(part)
            if piece:
                text += (draw(GAPS) if text else "") + piece
        return text

    return make()


def _extend(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    @st.composite
    def call(draw: st.DrawFn, names: st.SearchStrategy[str]) -> str:
        count = draw(st.sampled_from([1, 1, 1, 2, 0]))
        arguments = ", ".join(draw(inner) for _ in range(count))
        return f"{draw(names)}{draw(SPACES_BEFORE_PAREN)}({arguments})"

    operators = st.sampled_from(["+", "=", "<=>", "AND", "OR", "LIKE", "<", "*", "DIV", "XOR", "||"])
    return st.one_of(
        inner,
        inner,
        call(READ_FUNCTIONS),
        call(READ_FUNCTIONS),
        call(OTHER_FUNCTIONS),
        joined(inner, operators, inner),
        inner.map(lambda x: f"({x})"),
        inner.map(lambda x: f"(SELECT {x})"),
        inner.map(lambda x: f"EXISTS (SELECT {x} FROM t)"),
        joined("CASE WHEN", inner, "THEN", inner, "ELSE", inner, "END"),
        joined(inner, "IN (1, 2,", inner, ")"),
        joined("NOT", inner),
        joined("@v", ":=", inner),
        joined(inner, "IS NULL"),
        joined("CAST(", inner, "AS CHAR)"),
        joined("COUNT(*) OVER (ORDER BY", inner, ")"),
        joined("LAST_INSERT_ID(", inner, ")"),
        st.just("LAST_INSERT_ID()"),
        st.just("NEXT VALUE FOR s"),
        st.just("CURRENT_TIMESTAMP"),
    )


EXPRESSIONS = st.recursive(st.one_of(LITERALS, COLUMNS, COLUMNS), _extend, max_leaves=6)


def maybe(strategy: st.SearchStrategy[str], often: int = 1, never: int = 3) -> st.SearchStrategy[str]:
    return st.one_of(*[strategy] * often, *[st.just("")] * never)


TAILS = st.sampled_from(
    [""] * 14
    + ["FOR UPDATE", "FOR SHARE", "LOCK IN SHARE MODE", "INTO @v", "FOR UPDATE SKIP LOCKED", "INTO OUTFILE 'nowhere/x'"]
    + ["LIMIT 1", "LIMIT 1, 2", "LIMIT 0", "PROCEDURE ANALYSE()", "FOR/**/UPDATE", "FOR UPDATE NOWAIT"]
)
MODIFIERS = st.sampled_from(
    [""] * 8 + ["DISTINCT", "ALL", "HIGH_PRIORITY", "SQL_NO_CACHE", "STRAIGHT_JOIN", "SQL_CALC_FOUND_ROWS"]
    + ["/*+ MAX_EXECUTION_TIME(500) */", "/*+ x ' */"]
)  # fmt: skip
SELECTS = joined(
    "SELECT",
    MODIFIERS,
    EXPRESSIONS,
    maybe(EXPRESSIONS.map(lambda x: f", {x} AS z")),
    maybe(joined("FROM", TABLES), 4, 2),
    maybe(joined("WHERE", EXPRESSIONS)),
    maybe(joined("GROUP BY", EXPRESSIONS), 1, 5),
    maybe(joined("HAVING", EXPRESSIONS), 1, 7),
    maybe(joined("ORDER BY", EXPRESSIONS)),
    TAILS,
)
QUERIES = st.one_of(
    SELECTS,
    SELECTS,
    SELECTS,
    SELECTS.map(lambda q: f"({q})"),
    joined(SELECTS, st.sampled_from(["UNION", "UNION ALL", "EXCEPT", "INTERSECT"]), SELECTS),
    SELECTS.map(lambda q: f"SELECT * FROM ({q}) AS d"),
    SELECTS.map(lambda q: f"WITH w AS ({q}) SELECT * FROM w"),
    joined(SELECTS, ";", SELECTS),
    joined("EXPLAIN", SELECTS),
    joined("TABLE t", TAILS),
    joined("SHOW TABLES WHERE", EXPRESSIONS),
    joined("VALUES ROW(", EXPRESSIONS, ")", TAILS),
    joined("VALUES (", EXPRESSIONS, ")"),
    st.sampled_from(["SHOW TABLES", "DESC t", "CHECKSUM TABLE t", "HELP 'SELECT'", "SHOW CREATE TABLE t"]),
)
CHANGES = st.one_of(
    joined("INSERT", maybe(st.just("IGNORE")), "INTO t (a) VALUES (", EXPRESSIONS, ")"),
    joined("INSERT INTO t (a)", SELECTS),
    joined("UPDATE t SET a =", EXPRESSIONS, "WHERE", EXPRESSIONS),
    joined("DELETE FROM t WHERE", EXPRESSIONS),
    joined("REPLACE INTO t SET a =", EXPRESSIONS),
    joined("WITH w AS (SELECT 1 AS i) DELETE FROM t WHERE", EXPRESSIONS),
    joined("SET @v =", EXPRESSIONS),
    joined("DO", EXPRESSIONS),
    joined("SET SESSION wait_timeout = 100, @v =", EXPRESSIONS),
    st.sampled_from(
        ["BEGIN", "START TRANSACTION READ ONLY", "COMMIT", "SET NAMES latin1", "USE db", "SET autocommit = 0"]
    ),
)
STATEMENTS = st.one_of(QUERIES, QUERIES, QUERIES, QUERIES, CHANGES).map(lambda text: text.encode())
"""Any statement, as bytes: reads, things that look like reads, changes."""
