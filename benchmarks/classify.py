"""What classifying a statement costs: exact hit, fold hit, parse. Prints microseconds per statement.

python benchmarks/classify.py
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import cycle

from gateway.protocol.mysql.packets import PacketReader, packet
from gateway.routing.sql import DEFAULT_READING, Classifier, Reading, classify_text
from gateway.rules.compile import NO_RULES
from gateway.rules.policy import Defaults, SharedPolicies

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
    *rb"""\' ' '' " ` x' 'a' 'a', ('('), /* */ /**/ /*! -- #""".split(),
    *rb"( ) ; , ? @ @@ := - / = . (1), ,(1) 0x 1 1, -1, 1.5, 1+ 1e a a, a( a. a; a=1, (1,NOW()),".split(),
    *(b" ", b"\0", b"\n", b"-- ", b"a\n-- x\n", b"\xc3\xbc", b"\xff", b"CASE WHEN 1 THEN 'x' ", b"/*'*/a,"),
)
HEADS = (b"SELECT ", b"SELECT '", b"INSERT INTO t VALUES (", b"INSERT INTO `t` (`a`) VALUES (1,'@;'),")
WHOLE = {
    "bulk INSERT": b"INSERT INTO t (a, b, c) VALUES "
    + b",".join(b"(%d,'user%d@example.org; (\\'',NULL)" % (number, number) for number in range(25_000)),
    "bulk INSERT with NOW()": b"INSERT INTO t (a, b, c) VALUES "
    + b",".join(b"(%d,'user%d@example.org',NOW())" % (number, number) for number in range(27_000)),
    "IN list": b"SELECT a FROM t WHERE b IN (" + b",".join(b"%d" % number for number in range(150_000)) + b")",
    "IN list of rows": b"SELECT a FROM t WHERE (b,c) IN (" + b",".join([b"(123456,'y')"] * 80_000) + b")",
    "UPDATE by CASE": b"UPDATE t SET a = CASE b" + b" WHEN 12345 THEN 'some value'" * 34_000 + b" END",
    "comment before": b"/*" + b" padding" * 125_000 + b"*/ SELECT a FROM t",
    "blob": b"INSERT INTO t VALUES (1, _binary '" + b"\\0\\'x;@(" * 125_000 + b"')",
    "deep nesting": b"SELECT " + b"(" * 500_000 + b"1" + b")" * 500_000,
    "many statements": b"UPDATE t SET a = 1 WHERE b = 2;" * 32_000,
    "8 KiB, dense": b"SELECT " + b"a+" * 4_000 + b"1",
    "8 KiB, calls in calls": b"SELECT " + b"a(" * 4_000,
    "1.5 KiB, read 8 times": b"SELECT /*!50000 1,*/ /*!50001 1,*/ /*M! 2,*/" + b"a+" * 720 + b"1",
    "8 KiB, names of tables": b"SELECT " + b"ab," * 1_000 + b"1 FROM " + b"tu," * 1_600 + b"t",
    "8 KiB, statements": b";".join(b"SELECT a%d" % number for number in range(600)),
    "DATE() in DATE()": b"SELECT " + b"DATE(" * 1_000 + b"1" + b")" * 1_000,
}
READINGS = (Reading(), Reading(ansi_quotes=True, no_backslash_escapes=True, mariadb=True, version=(10, 11)))


def cpu_milliseconds(text: bytes) -> float:
    """What the lane spends on a text that it has never seen: the process's own time, the best of three."""
    policies = SharedPolicies(NO_RULES).for_connection("listener", "app", "192.0.2.1", Defaults())
    worst = 0.0
    for reading in READINGS:
        best = float("inf")
        for _ in range(3):
            reader, classifier = PacketReader(limit=64 << 20), Classifier()
            raw = packet(0, b"\x03" + text)
            started = time.process_time()
            (message,) = reader.feed(raw)
            operation = classifier.classify(message[5:], reading)
            policies.policy(operation, "shop")
            best = min(best, time.process_time() - started)
        worst = max(worst, best)
    return worst * 1e3


def hostile() -> None:
    """Prints what a megabyte of one thing costs the lane, in ms of CPU; it must be under 50."""
    print(f"\na megabyte of ... (ms of CPU, the worst of {len(HEADS)} beginnings and {len(READINGS)} ways of quoting):")
    for unit in UNITS:
        worst = max(cpu_milliseconds(head + unit * (MEGABYTE // len(unit))) for head in HEADS)
        print(f"{unit!r:28} {worst:8.1f}")
    for name, text in WHOLE.items():
        print(f"{name:28} {cpu_milliseconds(text):8.1f}   {len(text):,} bytes")


if __name__ == "__main__":
    main()
