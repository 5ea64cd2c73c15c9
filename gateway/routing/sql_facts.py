"""What the tokens of a statement alone say: the functions that it calls, the variables and locks that it names.

This is the first of two fences that a read must pass; the second is the syntax tree (`sql_proof`). It needs no grammar:
in MySQL's syntax every call of a function is a name and a parenthesis, so a statement in which each such name is a
built-in that only reads calls nothing else, whatever a parser makes of it. It also finds what pins in statements that
do not parse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from gateway.routing import functions
from gateway.routing.fingerprint import Reading
from gateway.routing.functions import words
from gateway.routing.operation import PinCause, Table
from gateway.routing.sql_tokens import SPACE, Token, TokenKind

NILADIC: Final = words(
    """
    CURRENT_DATE CURRENT_TIME CURRENT_TIMESTAMP CURRENT_USER CURRENT_ROLE LOCALTIME LOCALTIMESTAMP UTC_DATE UTC_TIME
    UTC_TIMESTAMP
    """
)

LAST_VARIABLES: Final = frozenset(["identity", "last_insert_id", "warning_count", "error_count", "last_gtid"])
"""System variables that speak of the statement before."""

PRIMARY_VARIABLES: Final = {
    "transaction_read_only": "the gateway sets it on replica connections itself",
    "tx_read_only": "the gateway sets it on replica connections itself",
    "pseudo_thread_id": "is the number of one connection",
    "insert_id": "is the state of one connection",
    **dict.fromkeys(["read_only", "super_read_only", "innodb_read_only"], "says whether one server may be written to"),
}


_INSERT_VERBS: Final = frozenset(["INSERT", "REPLACE"])
_INSERT_MODIFIERS: Final = frozenset(["INTO", "IGNORE", "LOW_PRIORITY", "HIGH_PRIORITY", "DELAYED"])


_ALONE: Final = 4  # tokens of SELECT RELEASE_ALL_LOCKS()


@dataclass(slots=True)
class Facts:
    """What was found; reasons are phrases that complete "it ..."."""

    functions: set[str]
    user_variables: set[str]
    unknown: str | None = None  # why nothing can be proven
    writes: str | None = None  # why it is a write
    session: str | None = None  # why it changes the session
    primary: str | None = None  # why only the primary can answer
    pin: PinCause | None = None
    unpin: PinCause | None = None
    last_connection: bool = False
    found_rows: bool = False
    stored: list[Table] = field(default_factory=list)  # functions that may be stored ones, as they are called
    stored_at: list[int] = field(default_factory=list)  # the tokens that name them
    unknown_beside: str | None = None  # `unknown` as it would be without the calls in `stored`
    pin_beside: PinCause | None = None  # `pin`, the same way

    def pins(self, cause: PinCause) -> None:
        """Something pins, whatever stored functions do."""
        self.pin_beside = self.pin_beside or cause
        self.pin = self.pin or cause


class Parentheses(NamedTuple):
    """Every parenthesis of a statement by the index of its token, found in one pass.

    `closes` is the index of the one that closes it, the number of tokens if none does; `commas` how many commas stand
    in it, those of inner ones apart, and -1 if none closes it.
    """

    closes: dict[int, int]
    commas: dict[int, int]


def parentheses(tokens: Sequence[Token]) -> Parentheses:
    closes: dict[int, int] = {}
    commas: dict[int, int] = {}
    opened: list[int] = []
    for index, token in enumerate(tokens):
        word = token.word
        if word == "(":
            opened.append(index)
            commas[index] = 0
        elif word == ")":
            if opened:
                closes[opened.pop()] = index
        elif word == "," and opened:
            commas[opened[-1]] += 1
    closes.update(dict.fromkeys(opened, len(tokens)))
    commas.update(dict.fromkeys(opened, -1))
    return Parentheses(closes, commas)


def _column_list(tokens: Sequence[Token], name: int, paren: int, close: int) -> bool:
    """Whether the parentheses after a name list column names: of a CTE, a derived table or an INSERT."""
    for index in range(paren + 1, close):
        token = tokens[index]
        if token.word not in (",", ".") and token.kind not in (TokenKind.WORD, TokenKind.NAME):
            return False
    after = [token.word for token in tokens[close + 1 : close + 3]]
    while name >= 2 and tokens[name - 1].word == ".":
        name -= 2
    before = tokens[name - 1].word if name else ""
    if after == ["AS", "("] and before in ("WITH", "RECURSIVE", ","):
        return True  # WITH name (columns) AS (
    if before == "AS" and name >= 2:
        before = tokens[name - 2].word
    if before == ")":
        return True  # FROM (SELECT ...) AS name (columns)
    # INSERT [modifiers] [INTO] name (columns); SELECT HIGH_PRIORITY name(column) is a call.
    place = name - 1
    while place > 0 and tokens[place].word in _INSERT_MODIFIERS:
        place -= 1
    return place >= 0 and tokens[place].word in _INSERT_VERBS


def _arguments(pairs: Parentheses, paren: int) -> int:
    """How many arguments the parenthesis at `paren` holds; 0 if it is not closed."""
    empty = pairs.closes[paren] == paren + 1
    return 0 if empty else pairs.commas[paren] + 1


def _called_as_stored(
    tokens: Sequence[Token], pairs: Parentheses, paren: int, name: str, reading: Reading
) -> str | None:
    """Why this call of a built-in's name calls a stored function of that name; None if it does not."""
    space = tokens[paren].space
    if space and name in functions.space_sensitive(reading.mariadb) and not (reading.ignore_space and space is SPACE):
        return f"calls {name} with a space before the parenthesis, which makes it a stored function"
    fewest = functions.fewest_arguments(name, reading.mariadb)
    if fewest and _arguments(pairs, paren) < fewest:
        return f"calls {name} with less than {fewest} arguments, which makes it a stored function"
    return None


def _ends_operand(token: Token) -> bool:
    """Whether no expression can begin right after this token."""
    return token.word == ")" or token.kind in (TokenKind.STRING, TokenKind.PLACEHOLDER, TokenKind.USER_VARIABLE)


def scan(tokens: Sequence[Token], reading: Reading) -> Facts:
    """Everything that the tokens of one statement say about what it calls and names."""
    facts = Facts(set(), set())
    known = functions.read_functions(reading.mariadb, reading.version)
    pairs = parentheses(tokens)
    for index, token in enumerate(tokens):
        kind, word = token.kind, token.word
        if kind is TokenKind.USER_VARIABLE:
            facts.user_variables.add(token.text)
        elif kind is TokenKind.SYSTEM_VARIABLE:
            name = token.text.rpartition(".")[2]
            if name in LAST_VARIABLES:
                facts.last_connection = True
                facts.functions.add(f"@@{name}")  # which of them it is decides which connection knows
            elif name in PRIMARY_VARIABLES:
                facts.primary = f"reads @@{name}, which {PRIMARY_VARIABLES[name]}"
                if name == "pseudo_thread_id":
                    facts.pins(PinCause.CONNECTION_ID)
            elif name.startswith(("gtid_", "session_track_")):
                facts.primary = f"reads @@{name}, which is the position or state of one server"
        elif word == "(" and index:
            _call(facts, tokens, pairs, index, known, reading)
        elif kind is TokenKind.SIGN:
            if word == ":=":
                facts.session = "assigns a user variable (:=)"
                facts.pin_beside = PinCause.USER_VARIABLE
                facts.pin = facts.pin if facts.pin is PinCause.PROCEDURE else PinCause.USER_VARIABLE
        elif kind is TokenKind.WORD:
            following = tokens[index + 1].word if index + 1 < len(tokens) else ""
            if word == "SQL_CALC_FOUND_ROWS":
                facts.found_rows = True
            elif word in NILADIC:
                facts.functions.add(word.lower())
            elif word in ("NEXT", "PREVIOUS") and following == "VALUE" and _word(tokens, index + 2) == "FOR":
                if word == "NEXT":
                    facts.writes = "takes the next value of a sequence"
                else:
                    facts.primary = "asks the connection for its last sequence value"
    return facts


def _word(tokens: Sequence[Token], index: int) -> str:
    return tokens[index].word if 0 <= index < len(tokens) else ""


def _call(
    facts: Facts, tokens: Sequence[Token], pairs: Parentheses, paren: int, known: frozenset[str], reading: Reading
) -> None:
    callee = tokens[paren - 1]
    if callee.kind not in (TokenKind.WORD, TokenKind.NAME):
        return
    name = callee.text.lower()
    dotted = paren >= 2 and tokens[paren - 2].word == "."
    plain = callee.kind is TokenKind.WORD and not dotted
    keyword = callee.word in functions.PAREN_WORDS or (
        callee.word in functions.MYSQL_PAREN_WORDS and not reading.mariadb
    )
    if plain and keyword:
        if name in known:
            facts.functions.add(name)
        if callee.word == "DEFAULT" and reading.mariadb:
            facts.writes = facts.writes or "may take the next value of a sequence (DEFAULT)"
        return
    if plain and callee.word in functions.AFTER_OPERAND and paren >= 2 and _ends_operand(tokens[paren - 2]):
        return
    if plain and (stored := _called_as_stored(tokens, pairs, paren, name, reading)) is not None:
        facts.functions.add(name)
        facts.unknown = facts.unknown_beside = stored
        facts.pin = facts.pin_beside = PinCause.PROCEDURE
        return
    if plain and name in known:
        facts.functions.add(name)
        if name in functions.LAST_CONNECTION:
            facts.last_connection = True
            if name == "last_insert_id" and _word(tokens, paren + 1) != ")":
                facts.session = "sets LAST_INSERT_ID() of its connection"
                facts.pins(PinCause.SESSION_VARIABLE)
        elif name in functions.PRIMARY:
            facts.primary = f"calls {name}(), which {functions.PRIMARY[name]}"
            if name == "connection_id":
                facts.pins(PinCause.CONNECTION_ID)
        return
    if plain and name in functions.NAMED_LOCK:
        facts.functions.add(name)
        facts.session = f"takes a named lock ({name})"
        facts.pins(PinCause.NAMED_LOCK)
        return
    if plain and name in functions.RELEASE_LOCK:
        facts.functions.add(name)
        facts.session = f"gives back named locks ({name})"
        if name == "release_all_locks" and len(tokens) == _ALONE and paren == _ALONE - 2:
            facts.unpin = PinCause.NAMED_LOCK  # in a larger statement it may never be called, or another lock be taken
        return
    if plain and name in functions.SEQUENCE and reading.mariadb:
        facts.functions.add(name)
        facts.writes = f"moves a sequence ({name})"
        return
    if _column_list(tokens, paren - 1, paren, pairs.closes[paren]):
        return
    if paren >= 2 and tokens[paren - 2].word == "PROCEDURE":
        return  # PROCEDURE ANALYSE(), a clause of old servers
    shown = tokens[paren - 3].text + "." + callee.text if dotted and paren >= 3 else callee.text
    facts.functions.add(shown.lower())
    facts.unknown = f"calls {shown}(), which is no built-in that only reads"
    facts.pin = PinCause.PROCEDURE
    facts.stored_at.append(paren - 1)
    facts.stored.append(Table(callee.text, tokens[paren - 3].text if dotted and paren >= 3 else None))
    if dotted and paren >= 4 and tokens[paren - 4].word == ".":
        facts.unknown_beside = facts.unknown  # three parts name something else
        facts.pin_beside = PinCause.PROCEDURE
