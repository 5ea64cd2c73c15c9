"""Positions against a naive model: sets of single GTIDs, dictionaries of numbers."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ProtocolError
from gateway.replication.position import LogPosition, MariadbGtidPosition, MysqlGtidSet, Position

A = "3e11fa47-71ca-11e1-9e33-c80aa9429562"
B = "4e11fa47-71ca-11e1-9e33-c80aa9429562"

# The model of a MySQL set: every single GTID as (uuid, tag, number).
Gtids = frozenset[tuple[str, str, int]]
gtids: st.SearchStrategy[Gtids] = st.frozensets(
    st.tuples(st.sampled_from([A, B]), st.sampled_from(["", "", "blue", "_x"]), st.integers(1, 14)), max_size=25
)


def mysql(model: Gtids) -> MysqlGtidSet:
    """The set of the model, built through text as badly ordered as frozensets are."""
    parts = [f"{uuid}:{tag}:{number}" if tag else f"{uuid}:{number}" for uuid, tag, number in model]
    return MysqlGtidSet.parse(", ".join(parts))


def singles(position: MysqlGtidSet) -> Gtids:
    return frozenset(
        (uuid, tag, number)
        for (uuid, tag), intervals in position.sources.items()
        for first, last in intervals
        for number in range(first, last + 1)
    )


@given(gtids)
def test_mysql_set_prints_canonically_and_reads_back(model: Gtids) -> None:
    position = mysql(model)
    assert singles(position) == model
    assert MysqlGtidSet.parse(str(position)) == position
    assert str(MysqlGtidSet.parse(str(position))) == str(position)
    runs = 0
    for _, numbers in groupby(sorted(model), key=lambda gtid: gtid[:2]):
        runs += len(list(groupby(enumerate(n for _, _, n in numbers), key=lambda pair: pair[1] - pair[0])))
    assert position.interval_count == runs, "neighbours are joined, so equal sets have equal texts"


@given(gtids, gtids)
def test_mysql_covers_is_superset_and_merge_is_union(one: Gtids, other: Gtids) -> None:
    assert mysql(one).covers(mysql(other)) == (one >= other)
    assert singles(mysql(one).merge(mysql(other))) == one | other
    assert (mysql(one) == mysql(other)) == (one == other)
    assert one != other or hash(mysql(one)) == hash(mysql(other))
    assert bool(mysql(one)) == bool(one)


@given(gtids, st.sampled_from([A, B, A.upper()]), st.integers(1, 14))
def test_mysql_add_of_a_single_gtid_is_merge(model: Gtids, uuid: str, number: int) -> None:
    before = mysql(model)
    text_before = str(before)
    assert singles(before.add(f"{uuid}:{number}")) == model | {(uuid.lower(), "", number)}
    assert str(before) == text_before, "a position never changes"


def test_mysql_add_takes_all_that_own_gtid_reports() -> None:
    position = MysqlGtidSet.EMPTY.add(f"{A}:5-7,{B}:9").add(f"{A}:8").add(f"{A}:blue:1").add(f"{A}:1")
    assert str(position) == f"{A}:1:5-8:blue:1,{B}:9"
    assert position.add(f"{A}:6") is position


def test_mysql_tagged_sets_print_as_mysql_9_prints_them() -> None:
    # Text and answer of gtid_executed on 9.1, from mysql bug 116789.
    given_text = (
        "3E11FA47-71CA-11E1-9E33-C80AA9429562:Domain_1:1-3:15-21,\n 3E11FA47-71CA-11E1-9E33-C80AA9429562:Domain_2:8-52"
    )
    assert str(MysqlGtidSet.parse(given_text)) == f"{A}:domain_1:1-3:15-21:domain_2:8-52"
    assert str(MysqlGtidSet.parse(f"{B}:1-2,\n{A}:blue:1:green:3, {A}:7")) == f"{A}:7:blue:1:green:3,{B}:1-2"


def test_a_large_set_with_one_missing_number_does_not_cover_it() -> None:
    whole = MysqlGtidSet.parse(f"{A}:1-1000000")
    gap = MysqlGtidSet.parse(f"{A}:1-499999:500001-1000000")
    assert whole.covers(gap)
    assert not gap.covers(whole)
    assert gap.add(f"{A}:500000") == whole


@pytest.mark.parametrize(
    "text",
    [
        A,
        f"{A}:",
        f"{A}:0",
        f"{A}:-1",
        f"{A}:5-3",
        f"{A}:1-",
        f"{A}:1--2",
        f"{A}:x",
        f"{A}:x:y:1",
        f"{A}:1:x",
        f"{A}:1,",
        f",{A}:1",
        f"{A}:9223372036854775807",
        f"{A}:99999999999999999999999",
        f"{A}:{'t' * 33}:1",
        f"{A[:-1]}:1",
        f"{A}g:1",
        "0-1-100",
        f"{A}:\u0661",
        f"{A}:1\n\n:2x",
    ],
)
def test_malformed_mysql_text_is_a_protocol_error(text: str) -> None:
    with pytest.raises(ProtocolError):
        MysqlGtidSet.parse(text)
    with pytest.raises(ProtocolError):
        MysqlGtidSet.EMPTY.add(text)


# ---------------------------------------------------------------- MariaDB

# The model of a MariaDB position: domain -> sequence number.
domains = st.dictionaries(st.integers(0, 3), st.integers(0, 20), max_size=4)


def mariadb(model: dict[int, int], server: int = 1) -> MariadbGtidPosition:
    return MariadbGtidPosition.parse(",".join(f"{domain}-{server}-{seq}" for domain, seq in model.items()))


@given(domains)
def test_mariadb_position_prints_canonically_and_reads_back(model: dict[int, int]) -> None:
    position = mariadb(model, server=7)
    assert str(position) == ",".join(f"{domain}-7-{model[domain]}" for domain in sorted(model))
    assert MariadbGtidPosition.parse(str(position)) == position
    assert position.domains == {domain: (7, seq) for domain, seq in model.items()}


@given(domains, domains)
def test_mariadb_covers_by_domain_and_merge_is_the_furthest(one: dict[int, int], other: dict[int, int]) -> None:
    first, second = mariadb(one, 1), mariadb(other, 2)
    assert first.covers(second) == all(domain in one and one[domain] >= seq for domain, seq in other.items())
    furthest = {domain: max(one.get(domain, 0), other.get(domain, 0)) for domain in one.keys() | other.keys()}
    assert first.merge(second) == mariadb(furthest)
    assert (first == second) == (one == other)
    assert one != other or hash(first) == hash(second), "the server id takes no part"


def test_mariadb_add_takes_last_gtid_and_keeps_the_server_for_printing() -> None:
    position = MariadbGtidPosition.parse("0-1-100,1-2-5").add("0-3-101")
    assert str(position) == "0-3-101,1-2-5"
    assert position.add("0-9-90") is position


def test_mariadb_binlog_state_counts_the_highest_of_a_domain() -> None:
    assert str(MariadbGtidPosition.parse("0-1-10,0-2-12,0-3-11")) == "0-2-12"


@pytest.mark.parametrize("text", ["0-1", "0-1-2-3", "a-1-2", "0-1-2,", "-0-1-2", "0-4294967296-1", "0-1-" + "9" * 20])
def test_malformed_mariadb_text_is_a_protocol_error(text: str) -> None:
    with pytest.raises(ProtocolError):
        MariadbGtidPosition.parse(text)


# ---------------------------------------------------------------- the log


def test_log_positions_compare_on_one_timeline_only() -> None:
    ten, twelve, elsewhere = LogPosition("ab1", 10), LogPosition("ab1", 12), LogPosition("cd2", 99)
    assert twelve.covers(ten)
    assert not ten.covers(twelve)
    assert not elsewhere.covers(ten)
    assert ten.merge(twelve) == twelve
    assert ten.merge(LogPosition.EMPTY) is ten
    assert str(LogPosition.parse("ab1:12")) == "ab1:12"
    assert ten.add("ab1:12") == twelve
    with pytest.raises(ValueError, match="different timelines"):
        ten.merge(elsewhere)


@pytest.mark.parametrize("text", ["ab1", "ab1:", ":3", "ab1:-1", "a b:1", "ab1:1:2"])
def test_malformed_log_text_is_a_protocol_error(text: str) -> None:
    with pytest.raises(ProtocolError):
        LogPosition.parse(text)


# ---------------------------------------------------------------- all engines


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (MysqlGtidSet.parse(f"{A}:1"), MariadbGtidPosition.parse("0-1-1")),
        (MariadbGtidPosition.EMPTY, MysqlGtidSet.EMPTY),
        (LogPosition("a", 1), MysqlGtidSet.EMPTY),
    ],
)
def test_positions_of_different_engines_are_never_compared(one: Position, other: Position) -> None:
    with pytest.raises(TypeError, match="cannot compare"):
        one.covers(other)
    with pytest.raises(TypeError, match="cannot compare"):
        one.merge(other)
    assert one != other


positions: st.SearchStrategy[tuple[Position, Position, Position]] = st.one_of(
    st.tuples(*[gtids.map(mysql)] * 3),
    st.tuples(*[domains.map(mariadb)] * 3),
    st.tuples(*[st.integers(0, 9).map(lambda offset: LogPosition("run", offset))] * 3),
)


@given(positions)
def test_covers_is_a_partial_order_and_merge_its_least_upper_bound(three: tuple[Position, ...]) -> None:
    a, b, c = three
    assert a.covers(a)
    assert not (a.covers(b) and b.covers(a)) or a == b
    assert not (a.covers(b) and b.covers(c)) or a.covers(c)
    both = a.merge(b)
    assert both.covers(a)
    assert both.covers(b)
    assert both == b.merge(a)
    assert not (c.covers(a) and c.covers(b)) or c.covers(both)
    assert a.covers(type(a).parse(""))
    assert not type(a).parse("")
