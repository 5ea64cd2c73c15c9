"""No rewriting that a server ignores changes a class, and none turns what is no read into one."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.routing.fingerprint import Reading, folder
from gateway.routing.operation import Kind
from gateway.routing.sql import Classifier, classify_text
from gateway.routing.sql_tokens import TokenKind, lex

WRITES = [
    b"INSERT INTO t VALUES (1)",
    b"UPDATE t SET a = 1",
    b"DELETE FROM t WHERE a = 'x'",
    b"REPLACE INTO t SET a = 1",
    b"SELECT * FROM t FOR UPDATE",
    b"SELECT * FROM t LOCK IN SHARE MODE",
    b"SELECT 1 INTO OUTFILE 'x'",
    b"SELECT a INTO @x FROM t",
    b"SELECT @a := 1",
    b"SELECT evil(1)",
    b"SELECT db.lower('x')",
    b"SELECT GET_LOCK('a', 1)",
    b"SELECT NEXT VALUE FOR s",
    b"WITH x AS (SELECT 1) DELETE FROM t",
    b"CALL p()",
    b"DROP TABLE t",
    b"SET autocommit = 0",
    b"BEGIN",
    b"COMMIT",
    b"LOCK TABLES t READ",
    b"HANDLER t OPEN",
    b"DO evil()",
    b"EXPLAIN ANALYZE UPDATE t SET a = 1",
    b"CREATE TEMPORARY TABLE t (a INT)",
    b"USE db",
    b"XA START 'x'",
    b"PREPARE p FROM 'x'",
]
READS = [
    b"SELECT 1",
    b"SELECT a, COUNT(*) FROM t WHERE b = 'it''s' GROUP BY a ORDER BY 2 DESC LIMIT 5",
    b"WITH x (a) AS (SELECT 1) SELECT a FROM x JOIN `t` USING (a)",
    b"SHOW TABLES LIKE 'a%'",
    b"EXPLAIN SELECT a FROM t",
    b"(SELECT 1) UNION ALL (SELECT 2.5)",
    b"SELECT t.a, (SELECT MAX(b) FROM u WHERE u.id = t.id) FROM db.t",
    b"DESC t",
]
READINGS = [
    Reading(),
    Reading(mariadb=True),
    Reading(ansi_quotes=True),
    Reading(no_backslash_escapes=True),
    Reading(mariadb=True, ignore_space=True),
]
GAPS = st.sampled_from([b" ", b"\n", b"\t", b" /* x */ ", b" # 'x\n", b' -- "x\n', b"\r\n", b"/**/", b" /* 1 ' */"])


def pieces(sql: bytes) -> list[bytes]:
    """The text cut at its spaces, but not within quotes."""
    found, quote = [b""], b""
    for index in range(len(sql)):
        byte = sql[index : index + 1]
        if quote:
            quote = b"" if byte == quote else quote
        elif byte in b"'\"`":
            quote = byte
        if byte == b" " and not quote:
            found.append(b"")
        else:
            found[-1] += byte
    return found


@st.composite
def rewritten(draw: st.DrawFn, statements: list[bytes]) -> tuple[bytes, bytes]:
    """A statement, and the same with other spaces, comments and letter case."""
    sql = draw(st.sampled_from(statements))
    change = draw(st.sampled_from(["upper", "lower", "mixed", "none"]))
    words = []
    for word in pieces(sql):
        if change != "none" and not set(word) & set(b"'\"`"):
            letters = random.Random(draw(st.integers(0, 99)))
            word = bytes(
                letter ^ 0x20
                if chr(letter).isalpha() and (change == "mixed" and letters.random() < 0.5)
                else (word.upper() if change == "upper" else word.lower() if change == "lower" else word)[index]
                for index, letter in enumerate(word)
            )
        words.append(word)
    text = words[0]
    for word in words[1:]:
        text += draw(GAPS) + word
    return sql, draw(st.sampled_from([b"", b" ", b"/* x */", b"# y\n"])) + text + draw(
        st.sampled_from([b"", b" ", b";", b" ; ", b" -- x", b"/* y */;", b"# z"])
    )


@given(rewritten(WRITES + READS), st.sampled_from(READINGS))
@settings(max_examples=400)
def test_spaces_comments_and_case_do_not_change_the_class(pair: tuple[bytes, bytes], reading: Reading) -> None:
    sql, other = pair
    before, _ = classify_text(sql, reading)
    after, _ = classify_text(other, reading)
    assert (after.kind, after.pin, after.transaction, after.statement) == (
        before.kind,
        before.pin,
        before.transaction,
        before.statement,
    ), other


WRAPPERS = [
    b"%s",
    b"/* c */ %s",
    b"-- c\n%s",
    b"(%s)",
    b"/*! %s */",
    b"/*!50701 %s */",
    b"/*M! %s */",
    b"SELECT 1; %s",
    b"%s; SELECT 1",
    b"/*! SELECT 1; */ %s",
    b"EXPLAIN %s",
    b"EXPLAIN ANALYZE %s",
    b"/*!99999 SELECT 1 -- */\n%s",
    b"; %s",
    b"%s /*! */",
    b"/*+ x */ %s",
    b"\n\n%s",
    b"%s FOR UPDATE",
    b"SELECT 1 /*! */; %s",
    b"DESC %s",
    b"((%s))",
    b"WITH x AS (SELECT 1) %s",
    b"/* gateway: replica */ %s",
    b"SET STATEMENT max_statement_time=1 FOR %s",
    b"ANALYZE %s",
]


@given(st.sampled_from(WRITES), st.lists(st.sampled_from(WRAPPERS), min_size=1, max_size=3), st.sampled_from(READINGS))
@settings(max_examples=600)
def test_no_wrapping_turns_something_else_into_a_read(sql: bytes, wrappers: list[bytes], reading: Reading) -> None:
    # DESC BEGIN describes a table called begin, and so do the others of one or two words.
    short = sql in (b"BEGIN", b"COMMIT", b"USE db")
    for wrapper in wrappers:
        sql = wrapper % sql if not short or not wrapper.startswith((b"EXPLAIN", b"DESC")) else sql
    operation, _ = classify_text(sql, reading)
    assert operation.kind is not Kind.READ, sql


@given(st.sampled_from(READS), st.sampled_from(WRITES), st.integers(0, 200), st.sampled_from(READINGS))
@settings(max_examples=300)
def test_a_statement_cut_into_another_is_read_only_if_it_vanishes(
    read: bytes, write: bytes, place: int, reading: Reading
) -> None:
    """`read; write` with any prefix of the read: unless the write ends up in a string, it is seen."""
    cut = read[: place % (len(read) + 1)]
    lexed = lex(cut, reading)
    operation, _ = classify_text(cut + b" ; " + write, reading)
    if lexed.odd is None:
        assert operation.kind is not Kind.READ


@given(st.binary(max_size=60), st.sampled_from(READINGS))
@settings(max_examples=500)
def test_no_bytes_raise(noise: bytes, reading: Reading) -> None:
    Classifier().classify(noise, reading)
    Classifier().classify(b"SELECT " + noise, reading)


FRAGMENTS = st.sampled_from(
    [
        b"SELECT",
        b" ",
        b"1",
        b"'a'",
        b'"b"',
        b"`c`",
        b"/*",
        b"*/",
        b"/*!",
        b"--",
        b"-- ",
        b"#",
        b"\n",
        b"'",
        b'"',
        b"`",
        b"\\",
        b";",
        b"@",
        b"@@",
        b":=",
        b".",
        b"1.",
        b".5",
        b"e5",
        b"x",
        b"0x",
        b"FROM",
        b"t",
        b"INTO",
        b"(",
        b")",
        b",",
        b"*",
        b"N'",
        b"_utf8",
        b"x'41'",
        b"\x00",
        b"\xc3\xbc",
        b"\xff",
        b"gateway:",
        b"/* gateway: primary */",
        b"50701",
    ]
)


@given(st.lists(FRAGMENTS, max_size=14), st.sampled_from(READINGS))
@settings(max_examples=800)
def test_texts_with_one_fold_have_the_same_tokens_but_for_literals(fragments: list[bytes], reading: Reading) -> None:
    """Changing the literals of a text leaves its fold alone exactly if it leaves all other tokens alone."""
    sql = b"".join(fragments)
    if lex(sql, reading).odd is not None:
        return
    fold = folder(reading.ansi_quotes, reading.no_backslash_escapes).fold
    folded = fold(sql)
    if folded is None:
        return
    for old, new in ((b"'a'", b"'zz'"), (b" 1 ", b" 29 "), (b'"b"', b'"y y"')):
        other = sql.replace(old, new)
        if other == sql or fold(other) != folded or lex(other, reading).odd is not None:
            continue
        assert shape(other, reading) == shape(sql, reading)


def shape(sql: bytes, reading: Reading) -> list[tuple[TokenKind, str]]:
    lexed = lex(sql, reading)
    literals = (TokenKind.STRING, TokenKind.NUMBER)
    return [
        (token.kind, "" if token.kind in literals else token.text) for tokens in lexed.statements for token in tokens
    ]
