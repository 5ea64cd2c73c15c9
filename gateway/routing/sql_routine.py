"""Reads the body of a stored function, procedure or trigger: every statement and expression in it, each classified.

The servers' declarations (READS SQL DATA, NO SQL, DETERMINISTIC) are claims that nobody enforces: a NO SQL function may
insert (tried on MariaDB 10.11 and MySQL 9.7). So what a body does is read off the body, by the grammar of compound
statements (MySQL manual, Compound Statement Syntax): a statement that is not listed here ends the reading, and then
nothing is known of the whole body. Expressions become `SELECT expression` and go the way of any query; local variables
look like columns there, which at worst names a column too many.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.routing.fingerprint import Reading
from gateway.routing.operation import Kind, PinCause, SqlOperation, Table
from gateway.routing.sql_query import CHANGE_WORDS, QUERY_WORDS, classify_query, first_table
from gateway.routing.sql_tokens import NOTHING, Token, TokenKind, lex

BODY_BYTES: Final = 8 * 1024
"""Longest body that is read, as for any text that is parsed while others wait (see sql_text.PARSE_BYTES)."""
STATEMENTS: Final = 200
"""Most statements and expressions of one body; each costs a parse of 50 us to 1 ms."""
DEPTH: Final = 32
"""Deepest nesting of blocks."""


@dataclass(frozen=True, slots=True)
class Body:
    """What a body does. `problem` says why it is not proven to only read, apart from the functions that it calls."""

    problem: str | None
    operations: tuple[SqlOperation, ...] = ()  # of its statements and expressions
    procedures: tuple[Table, ...] = ()  # called by it
    whole: bool = True  # False: nothing is known of it beyond `problem`
    pin: PinCause | None = None  # it leaves this behind on its connection


class _UnreadError(Exception):
    """The body has something that is not understood; the text says what."""


_SEMICOLON: Final = Token(TokenKind.SIGN, ";", ";", NOTHING)
_SELECT: Final = Token(TokenKind.WORD, "SELECT", "SELECT", NOTHING)
_END: Final = Token(TokenKind.SIGN, "", "", NOTHING)
_NAMES: Final = (TokenKind.WORD, TokenKind.NAME)


def read_body(text: str, reading: Reading, parameters: Collection[str] = (), *, trigger: bool = False) -> Body:
    """What a body does that was made under the sql_mode of `reading`. Raises nothing."""
    raw = text.encode("utf-8", "surrogateescape")
    if not raw.strip():
        return Body("has a body that the monitor account may not see", whole=False)
    if len(raw) > BODY_BYTES:
        return Body(f"has a body of more than {BODY_BYTES // 1024} KiB", whole=False)
    if reading.oracle_mode:
        return Body("was made under sql_mode ORACLE", whole=False)
    lexed = lex(raw, reading)
    if lexed.odd is not None or lexed.executable:
        return Body(f"has {lexed.odd or 'an executable comment'}", whole=False)
    tokens = [token for statement in lexed.statements for token in (*statement, _SEMICOLON)]
    parser = _Parser(tokens, reading, {name.lower() for name in parameters}, trigger)
    try:
        parser.statement()
        if parser.word() == ";":
            parser.at += 1
        if parser.at != len(tokens):
            raise _UnreadError("has something behind its end")
    except (_UnreadError, RecursionError) as unread:
        return Body(str(unread) or "is nested too deeply", whole=False, pin=parser.pin)
    return Body(parser.problem, tuple(parser.operations), tuple(parser.procedures), pin=parser.pin)


class _Parser:
    """Recursive descent through one body. `names` holds the local variables, one set for each open block."""

    def __init__(self, tokens: Sequence[Token], reading: Reading, parameters: set[str], trigger: bool) -> None:
        self.tokens = tokens
        self.reading = reading
        self.trigger = trigger
        self.at = 0
        self.names = [parameters]
        self.operations: list[SqlOperation] = []
        self.procedures: list[Table] = []
        self.problem: str | None = None
        self.pin: PinCause | None = None

    # ---------------------------------------------------------------- tokens

    def token(self, ahead: int = 0) -> Token:
        index = self.at + ahead
        return self.tokens[index] if index < len(self.tokens) else _END

    def word(self, ahead: int = 0) -> str:
        return self.token(ahead).word

    def expect(self, *words: str) -> None:
        for word in words:
            if self.word() != word:
                raise _UnreadError(f"has a body that is not understood at {self.token().text!r}")
            self.at += 1

    def skip_label(self) -> None:
        if self.token().kind in _NAMES and self.word() != ";":
            self.at += 1

    def until(self, *ends: str) -> list[Token]:
        """The tokens up to one of the words, outside of parentheses and CASE, which is left standing."""
        start, depth, cases = self.at, 0, 0
        while self.at < len(self.tokens):
            token = self.tokens[self.at]
            word = token.word
            if depth == 0 and cases == 0 and word in ends:
                return list(self.tokens[start : self.at])
            if word == ";":
                break
            depth += (word == "(") - (word == ")")
            if token.kind is TokenKind.WORD:
                cases += (word == "CASE") - (word == "END" and cases > 0)
            self.at += 1
        raise _UnreadError("has a body that is not understood at its end")

    # ---------------------------------------------------------------- what is found

    def classified(self, tokens: Sequence[Token]) -> None:
        """Adds a statement, or an expression made one."""
        if len(self.operations) >= STATEMENTS:
            raise _UnreadError(f"has more than {STATEMENTS} statements")
        operation = classify_query(tokens, self.reading, BODY_BYTES)
        self.operations.append(operation)
        best = operation.if_proven or operation
        if best.pin is not None:
            self.pin = self.pin or best.pin
        if best.kind is Kind.WRITE:
            self.blame(f"has a statement that {best.reason} ({best.statement})")
        elif best.kind is not Kind.READ:
            self.blame(f"has a statement that {best.reason}")
        elif best.needs_primary or best.last_connection or best.user_variables:
            self.blame("asks about its connection or server")

    def blame(self, problem: str) -> None:
        self.problem = self.problem or problem

    def expression(self, *ends: str) -> None:
        tokens = self.until(*ends)
        if not tokens:
            raise _UnreadError("has an empty expression")
        self.classified([_SELECT, *tokens])

    def is_local(self, name: str) -> bool:
        return any(name.lower() in names for names in self.names)

    # ---------------------------------------------------------------- statements

    def statements(self, *ends: str) -> None:
        """Statements up to one of the words, which is left standing."""
        if len(self.names) > DEPTH:
            raise _UnreadError(f"is nested more than {DEPTH} levels deep")
        self.names.append(set())
        while self.word() not in ends:
            if self.at >= len(self.tokens):
                raise _UnreadError("has a block without an end")
            self.statement()
            self.expect(";")
        self.names.pop()

    def statement(self) -> None:
        if self.token().kind in _NAMES and self.word(1) == ":":
            self.at += 2  # a label
        token = self.token()
        word = token.word if token.kind is not TokenKind.NAME else ""
        if word in CHANGE_WORDS or word in QUERY_WORDS:
            self.data_statement()
            return
        step = _STEPS.get(word)
        if step is None:
            raise _UnreadError(f"has a statement that is not known to only read ({token.text.lower()})")
        self.at += 1
        step(self)

    def data_statement(self) -> None:
        tokens = self.until(";")
        kept: list[Token] = []
        depth = index = 0
        into = tokens[0].word in QUERY_WORDS
        while index < len(tokens):
            word = tokens[index].word
            depth += (word == "(") - (word == ")")
            if into and depth == 0 and word == "INTO" and tokens[index].kind is TokenKind.WORD:
                index = self.skip_targets(tokens, index + 1)
                continue
            kept.append(tokens[index])
            index += 1
        self.classified(kept)

    def skip_targets(self, tokens: Sequence[Token], index: int) -> int:
        """The index behind the variables of an INTO, all of them local."""
        while index < len(tokens):
            token = tokens[index]
            if token.kind is TokenKind.USER_VARIABLE:
                self.blame("assigns a user variable (INTO)")
                self.pin = self.pin or PinCause.USER_VARIABLE
            elif token.kind not in _NAMES or not self.is_local(token.text):
                raise _UnreadError("stores a result in what is no local variable")
            index += 1
            if index >= len(tokens) or tokens[index].word != ",":
                return index
            index += 1
        raise _UnreadError("has an INTO without variables")

    def begin(self) -> None:
        if self.word() == "NOT":
            self.expect("NOT", "ATOMIC")
        self.statements("END")
        self.expect("END")
        self.skip_label()

    def declare(self) -> None:
        if self.word() in ("CONTINUE", "EXIT", "UNDO") and self.word(1) == "HANDLER":
            self.at += 2
            self.expect("FOR")
            self.conditions()
            self.statement()
            return
        if self.word(1) == "CONDITION":
            self.until(";")
            return
        if self.word(1) == "CURSOR":
            self.names[-1].add(self.token().text.lower())
            self.at += 2
            self.expect("FOR")
            self.classified(self.until(";"))
            return
        while True:
            if self.token().kind not in _NAMES:
                raise _UnreadError("has a declaration that is not understood")
            self.names[-1].add(self.token().text.lower())
            self.at += 1
            if self.word() != ",":
                break
            self.at += 1
        self.until(";", "DEFAULT")
        if self.word() == "DEFAULT":
            self.at += 1
            self.expression(";")

    def conditions(self) -> None:
        """What a handler is for: it ends where its statement begins."""
        while True:
            if self.word() == "NOT":
                self.expect("NOT", "FOUND")
            elif self.word() == "SQLSTATE":
                self.at += 2 if self.word(1) == "VALUE" else 1
                self.at += 1
            else:
                self.at += 1  # SQLEXCEPTION, SQLWARNING, an error's number, a condition's name
            if self.word() != ",":
                return
            self.at += 1

    def assign(self) -> None:
        while True:
            token = self.token()
            new = self.trigger and token.text.upper() == "NEW" and self.word(1) == "."
            if token.kind is TokenKind.USER_VARIABLE:
                self.blame("assigns a user variable")
                self.pin = self.pin or PinCause.USER_VARIABLE
            elif not new and (token.kind not in _NAMES or not self.is_local(token.text)):
                raise _UnreadError("sets what is no local variable")
            self.at += 3 if new else 1
            if self.word() not in ("=", ":="):
                raise _UnreadError("sets what is no local variable")
            self.at += 1
            self.expression(",", ";")
            if self.word() == ";":
                return
            self.at += 1

    def choose(self) -> None:
        self.expression("THEN")
        self.expect("THEN")
        self.statements("ELSEIF", "ELSE", "END")
        while self.word() == "ELSEIF":
            self.at += 1
            self.expression("THEN")
            self.expect("THEN")
            self.statements("ELSEIF", "ELSE", "END")
        if self.word() == "ELSE":
            self.at += 1
            self.statements("END")
        self.expect("END", "IF")

    def case(self) -> None:
        if self.word() != "WHEN":
            self.expression("WHEN")
        while self.word() == "WHEN":
            self.at += 1
            self.expression("THEN")
            self.expect("THEN")
            self.statements("WHEN", "ELSE", "END")
        if self.word() == "ELSE":
            self.at += 1
            self.statements("END")
        self.expect("END", "CASE")

    def loop(self) -> None:
        self.statements("END")
        self.expect("END", "LOOP")
        self.skip_label()

    def while_(self) -> None:
        self.expression("DO")
        self.expect("DO")
        self.statements("END")
        self.expect("END", "WHILE")
        self.skip_label()

    def repeat(self) -> None:
        self.statements("UNTIL")
        self.expect("UNTIL")
        self.expression("END")
        self.expect("END", "REPEAT")
        self.skip_label()

    def name(self) -> None:
        if self.token().kind not in _NAMES or self.word(1) != ";":
            raise _UnreadError("has a jump or cursor that is not understood")
        self.at += 1

    def fetch(self) -> None:
        if self.word() == "NEXT":
            self.at += 1
        if self.word() == "FROM":
            self.at += 1
        self.at += 1
        self.expect("INTO")
        if self.skip_targets(tokens := self.until(";"), 0) != len(tokens):
            raise _UnreadError("has a FETCH that is not understood")

    def return_(self) -> None:
        self.expression(";")

    def call(self) -> None:
        table, after = first_table(self.tokens, self.at)
        if table is None:
            raise _UnreadError("has a CALL that is not understood")
        self.at = after
        self.procedures.append(table)
        self.blame(f"calls the procedure {table.name}")
        arguments = self.until(";")
        if len(arguments) > 2:
            self.classified([_SELECT, *arguments[1:-1]])
            if any(token.kind is TokenKind.USER_VARIABLE for token in arguments):
                self.pin = self.pin or PinCause.USER_VARIABLE  # it may be an OUT parameter

    def signal(self) -> None:
        self.until(";")


_STEPS: Final = {
    "BEGIN": _Parser.begin,
    "DECLARE": _Parser.declare,
    "SET": _Parser.assign,
    "IF": _Parser.choose,
    "CASE": _Parser.case,
    "LOOP": _Parser.loop,
    "WHILE": _Parser.while_,
    "REPEAT": _Parser.repeat,
    "LEAVE": _Parser.name,
    "ITERATE": _Parser.name,
    "OPEN": _Parser.name,
    "CLOSE": _Parser.name,
    "FETCH": _Parser.fetch,
    "RETURN": _Parser.return_,
    "CALL": _Parser.call,
    "SIGNAL": _Parser.signal,
}
