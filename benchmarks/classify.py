"""What classifying a statement costs: exact hit, fold hit, parse. Prints microseconds per statement.

python benchmarks/classify.py
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import cycle

from gateway.routing.sql import DEFAULT_READING, Classifier, classify_text

POINT = b"SELECT c FROM sbtest1 WHERE id=%06d"
MIDDLE = b"SELECT `a`.`id`, `a`.`name`, `a`.`balance` FROM `accounts` `a` WHERE `a`.`id` = %06d AND `a`.`x`='ab'"
LONG = (
    b"SELECT a.id, a.name, count(*) FROM accounts a LEFT JOIN orders o ON o.account_id=a.id WHERE a.created BETWEEN "
    b"'2024-01-01' AND '2024-12-31' AND o.id IN (1,2,3,%06d) GROUP BY a.id ORDER BY 2 DESC LIMIT 20"
)
COMMENTED = POINT + b" /* trace 4bf92f3577b34da6a3ce929d0e0e4736-%06d */"
HINTED = b"/* gateway: replica, max_lag=5s */ " + POINT
INSERT = b"INSERT INTO sbtest1 (k, c, pad) VALUES " + b",".join(
    [b"(%06d,'83868641912-28773972837','67847967377')"] * 100
)
ROUNDS = 100_000


def microseconds(run: Callable[[], object], rounds: int = ROUNDS) -> float:
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        for _ in range(rounds):
            run()
        best = min(best, time.perf_counter() - started)
    return best / rounds * 1e6


def numbered(pattern: bytes, count: int) -> Iterator[bytes]:
    places = pattern.count(b"%06d")
    return cycle([pattern % ((number,) * places) for number in range(count)])


def main() -> None:
    empty = microseconds(lambda: None)
    classifier = Classifier()
    for name, pattern in (
        ("point select", POINT),
        ("middle select", MIDDLE),
        ("long select", LONG),
        ("with a comment", COMMENTED),
        ("with a hint", HINTED),
        ("100-row insert", INSERT),
    ):
        few, many = numbered(pattern, 1), numbered(pattern, 50_000 if len(pattern) < 1000 else 300)
        text = next(few)
        classifier.classify(text)
        exact = microseconds(lambda text=text: classifier.classify(text)) - empty  # type: ignore[misc]
        rounds = ROUNDS if len(text) < 1000 else 2_000
        fold = microseconds(lambda many=many: classifier.classify(next(many)), rounds) - empty  # type: ignore[misc]
        parse = microseconds(lambda text=text: classify_text(text, DEFAULT_READING), 300)  # type: ignore[misc]
        print(f"{name:16} {len(text):6} bytes   exact {exact:7.2f}   fold {fold:7.2f}   parse {parse:7.1f} us")
    print(classifier.statistics(), classifier.entries(), "entries")
    hostile()


MEGABYTE = 1_000_000
UNITS = (
    b"\\'",
    b"'",
    b'"',
    b"`",
    b"(",
    b"/*",
    b"*/",
    b"/**/",
    b"--",
    b"-- ",
    b"#",
    b"@",
    b"@@",
    b"1",
    b"1,",
    b"0x",
    b"1e",
    b".",
)
MORE_UNITS = (
    b"a ",
    b"a.",
    b"\xc3\xbc",
    b"\xff",
    b"\x00",
    b";",
    b"?",
    b"?,",
    b",(1)",
    b"'a'",
    b"'a',",
    b"/*!",
    b"=",
    b":=",
    b"a(",
)


def hostile() -> None:
    """Prints what a megabyte of one thing costs the lane, in ms; it must be under 50."""
    print("\na megabyte of ... (ms, worst of three beginnings):")
    for unit in UNITS + MORE_UNITS:
        worst = 0.0
        for head in (b"SELECT ", b"SELECT '", b"INSERT INTO t VALUES ("):
            text = head + unit * (MEGABYTE // len(unit))
            best = float("inf")
            for _ in range(2):
                classifier = Classifier()
                started = time.perf_counter()
                classifier.classify(text)
                best = min(best, time.perf_counter() - started)
            worst = max(worst, best)
        print(f"{unit!r:12} {worst * 1e3:8.1f}")


if __name__ == "__main__":
    main()
