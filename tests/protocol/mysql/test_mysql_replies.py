"""Replies: where each kind ends, what of it the client gets, and that no chunking changes either."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.protocol.mysql import answers
from gateway.protocol.mysql.constants import MAX_PAYLOAD, Capability, Command, Status
from gateway.protocol.mysql.ok_packet import (
    OkPacket,
    ServerError,
    SessionChanges,
    encode_ok,
    only_position,
    parse_ok,
    read_state,
)
from gateway.protocol.mysql.packets import PacketError, lenenc_bytes, packet
from gateway.protocol.mysql.prelude import Prelude
from gateway.protocol.mysql.replies import ReplyTracker

OLD = 0  # neither DEPRECATE_EOF nor SESSION_TRACK
NEW = int(Capability.DEPRECATE_EOF | Capability.SESSION_TRACK)
UNTRACKED = int(Capability.DEPRECATE_EOF)
MORE = int(Status.MORE_RESULTS_EXISTS | Status.AUTOCOMMIT)

SCHEMA = b"\x01" + lenenc_bytes(lenenc_bytes(b"shop"))
GTIDS = b"\x03" + lenenc_bytes(b"\0" + lenenc_bytes(b"3e11fa47-71ca-11e1-9e33-c80aa9429562:23"))
LAST_GTID = b"\x00" + lenenc_bytes(lenenc_bytes(b"last_gtid") + lenenc_bytes(b"0-1-7"))
AUTOCOMMIT = b"\x00" + lenenc_bytes(lenenc_bytes(b"autocommit") + lenenc_bytes(b"OFF"))
TRANSACTION = b"\x05" + lenenc_bytes(lenenc_bytes(b"T_______"))


@dataclass(frozen=True)
class Outcome:
    """What a tracker said of a reply."""

    forwarded: bytes
    leftover: bytes
    status: int
    warnings: int
    affected_rows: int
    insert_id: int
    error: ServerError | None
    refused: bool
    changes: SessionChanges | None
    prepared: tuple[int | None, int | None, int | None]


def track(
    chunks: list[bytes], capabilities: int, command: int = Command.QUERY, tracker: ReplyTracker | None = None
) -> Outcome:
    tracker = tracker or ReplyTracker(capabilities)
    tracker.begin(command)
    forwarded = b""
    for at, chunk in enumerate(chunks):
        assert not tracker.done
        forwarded += tracker.feed(chunk)
        if tracker.done:
            leftover = tracker.leftover + b"".join(chunks[at + 1 :])
            break
    else:
        pytest.fail("the reply does not end")
    return Outcome(
        forwarded,
        leftover,
        tracker.status,
        tracker.warnings,
        tracker.affected_rows,
        tracker.insert_id,
        tracker.error,
        tracker.refused,
        tracker.changes,
        (tracker.statement_id, tracker.columns, tracker.parameters),
    )


def ok_with_state(sequence: int, *entries: bytes, header: int = 0, info: bytes = b"", status: int = 2) -> bytes:
    return packet(sequence, encode_ok(header, OkPacket(3, 300, status, 1, info, b"".join(entries))))


def definitions(sequence: int, count: int, capabilities: int, *, status: int = 2) -> bytes:
    parts = [packet(sequence + at, b"\x03def\0\0\0\x01c\x01c\x0c" + bytes(12)) for at in range(count)]
    if not capabilities & Capability.DEPRECATE_EOF:
        parts.append(answers.eof(sequence + count, status=status))
    return b"".join(parts)


def replies(capabilities: int) -> dict[str, tuple[int, bytes]]:
    """One reply of every kind, with the command that it answers."""
    new = bool(capabilities & Capability.DEPRECATE_EOF)

    def end(sequence: int, status: int = 2) -> bytes:
        if new:
            return answers.ok(sequence, status=status, warnings=2, header=0xFE)
        return answers.eof(sequence, status=status, warnings=2)

    prepared = b"\0" + (7).to_bytes(4, "little") + b"\x02\0\x03\0\0\x01\0"
    rows = [["1", None, "x" * 300], ["", "\xfe", None]]
    table = answers.resultset(["a", "b", "c"], rows, capabilities=capabilities)
    more = answers.resultset(["a"], [["1"]], capabilities=capabilities, status=MORE)
    count = 5 if new else 6
    return {
        "ok": (Command.QUERY, answers.ok(affected_rows=5, insert_id=1000, warnings=3, message="Rows matched: 5")),
        "err": (Command.QUERY, answers.err(1, 1064, "You have an error")),
        "result set": (Command.QUERY, table),
        "empty result set": (Command.QUERY, answers.resultset(["a"], [], capabilities=capabilities)),
        "300 columns": (
            Command.QUERY,
            answers.resultset([f"c{n}" for n in range(300)], [["v"] * 300], capabilities=capabilities),
        ),
        "err within rows": (
            Command.QUERY,
            packet(1, b"\x01")
            + definitions(2, 1, capabilities)
            + packet(4, b"\x011")
            + answers.err(5, 1242, "Subquery returns more than 1 row"),
        ),
        "result set, ok": (Command.QUERY, more + answers.ok(count, affected_rows=9)),
        "ok, result set, err": (
            Command.QUERY,
            answers.ok(1, status=MORE) + more.replace(b"\x01\0\0\x01\x01", b"\x01\0\0\x02\x01") + answers.err(8, 1, ""),
        ),
        "prepared": (
            Command.STMT_PREPARE,
            packet(1, prepared) + definitions(2, 3, capabilities) + definitions(6, 2, capabilities),
        ),
        "prepared without parameters and columns": (
            Command.STMT_PREPARE,
            packet(1, b"\0" + (8).to_bytes(4, "little") + bytes(7)),
        ),
        "not prepared": (Command.STMT_PREPARE, answers.err(1, 1064, "no")),
        "executed": (
            Command.STMT_EXECUTE,
            packet(1, b"\x01") + definitions(2, 1, capabilities) + packet(4, b"\0\0\x05") + end(5),
        ),
        "executed without result": (Command.STMT_EXECUTE, answers.ok(affected_rows=1)),
        "cursor opened": (
            Command.STMT_EXECUTE,
            packet(1, b"\x01")
            + definitions(2, 1, capabilities, status=int(Status.CURSOR_EXISTS | Status.AUTOCOMMIT))
            + (end(3, int(Status.CURSOR_EXISTS | Status.AUTOCOMMIT)) if new else b""),
        ),
        "fetched": (
            Command.STMT_FETCH,
            packet(1, b"\0\0\x05") + packet(2, b"\0\0\x06") + end(3, int(Status.LAST_ROW_SENT)),
        ),
        "fetched nothing": (Command.STMT_FETCH, end(1)),
        "not fetched": (Command.STMT_FETCH, answers.err(1, 1243, "Unknown prepared statement handler")),
        "fields": (Command.FIELD_LIST, definitions(1, 2, OLD)[:-9] + end(3)),
        "no fields": (Command.FIELD_LIST, answers.err(1, 1146, "no table")),
        "statistics": (Command.STATISTICS, packet(1, b"Uptime: 7  Threads: 1")),
        "option set": (Command.SET_OPTION, end(1)),
        "reset": (Command.RESET_CONNECTION, answers.ok()),
        "statement closed": (Command.STMT_RESET, answers.ok()),
    }


KINDS = list(replies(OLD))


@pytest.mark.parametrize("capabilities", [OLD, NEW])
@pytest.mark.parametrize("kind", KINDS)
def test_a_reply_ends_where_it_should_and_passes_unchanged(kind: str, capabilities: int) -> None:
    command, data = replies(capabilities)[kind]
    tracker = ReplyTracker(capabilities)
    tracker.begin(command)
    assert tracker.feed(data) is data
    assert tracker.done
    behind = answers.ok(1)
    outcome = track([data + behind], capabilities, command)
    assert (outcome.forwarded, outcome.leftover) == (data, behind)


@pytest.mark.parametrize("capabilities", [OLD, NEW])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_at_any_byte_changes_nothing(kind: str, capabilities: int) -> None:
    command, data = replies(capabilities)[kind]
    whole = track([data], capabilities, command)
    for cut in range(1, len(data)):
        assert track([data[:cut], data[cut:]], capabilities, command) == whole
    assert track([data[at : at + 1] for at in range(len(data))], capabilities, command) == whole


@settings(max_examples=200)
@given(
    st.sampled_from([OLD, NEW, UNTRACKED]),
    st.lists(st.tuples(st.sampled_from(KINDS), st.lists(st.integers(0, 10_000), max_size=4)), min_size=1, max_size=6),
)
def test_a_tracker_used_again_says_what_a_fresh_one_says(
    capabilities: int, conversation: list[tuple[str, list[int]]]
) -> None:
    used = ReplyTracker(capabilities)
    for kind, cuts in conversation:
        command, data = replies(capabilities)[kind]
        edges = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
        chunks = [data[a:b] for a, b in pairwise(edges)]
        again = track(chunks, capabilities, command, used)
        fresh = track([data], capabilities, command)
        assert (again.forwarded, again.error, again.refused, again.changes, again.prepared) == (
            fresh.forwarded,
            fresh.error,
            fresh.refused,
            fresh.changes,
            fresh.prepared,
        )
        if again.error is None and kind != "statistics" and not kind.startswith("prepared"):
            assert (again.status, again.warnings) == (fresh.status, fresh.warnings)


def test_what_the_last_packet_says_is_kept() -> None:
    outcome = track([replies(NEW)["ok"][1]], NEW)
    assert (outcome.affected_rows, outcome.insert_id, outcome.warnings, outcome.status) == (5, 1000, 3, 2)
    outcome = track([replies(OLD)["result set"][1]], OLD)
    assert (outcome.status, outcome.error, outcome.refused) == (2, None, False)
    assert track([replies(NEW)["result set, ok"][1]], NEW).affected_rows == 9
    assert track([replies(OLD)["prepared"][1]], OLD, Command.STMT_PREPARE).prepared == (7, 2, 3)
    assert track([replies(OLD)["cursor opened"][1]], OLD, Command.STMT_EXECUTE).status & Status.CURSOR_EXISTS
    assert track([replies(NEW)["option set"][1]], NEW, Command.SET_OPTION).warnings == 2


@pytest.mark.parametrize("capabilities", [OLD, NEW])
def test_only_an_error_that_nothing_came_before_is_a_refusal(capabilities: int) -> None:
    made = replies(capabilities)
    for kind, refused in [
        ("err", True),
        ("not prepared", True),
        ("not fetched", True),
        ("no fields", True),
        ("err within rows", False),
        ("ok, result set, err", False),
    ]:
        outcome = track([made[kind][1]], capabilities, made[kind][0])
        assert outcome.error is not None
        assert outcome.refused is refused, kind
    assert track([made["err"][1]], capabilities).error == ServerError(1064, "HY000", "You have an error")
    rows_first = packet(1, b"\0\0\x05") + answers.err(2, 1317, "interrupted")
    assert not track([rows_first], capabilities, Command.STMT_FETCH).refused


@pytest.mark.parametrize("command", [Command.STMT_CLOSE, Command.STMT_SEND_LONG_DATA, Command.QUIT])
def test_commands_without_a_reply_are_done_at_once(command: Command) -> None:
    tracker = ReplyTracker(NEW)
    tracker.begin(command)
    assert tracker.done


@pytest.mark.parametrize("header", [0x00, 0xFE])
def test_a_position_is_told_to_the_gateway_and_hidden_from_the_client(header: int) -> None:
    before = packet(1, b"\x01") + definitions(2, 1, NEW) + packet(3, b"\x011") if header else b""
    for position, changes in [
        (GTIDS, SessionChanges(gtids="3e11fa47-71ca-11e1-9e33-c80aa9429562:23")),
        (LAST_GTID, SessionChanges(last_gtid="0-1-7")),
    ]:
        outcome = track([before + ok_with_state(4 if header else 1, position, header=header)], NEW)
        plain = packet(4 if header else 1, encode_ok(header, OkPacket(3, 300, 2, 1)))
        assert outcome.forwarded == before + plain
        assert outcome.changes == changes
        assert (outcome.affected_rows, outcome.insert_id, outcome.status, outcome.warnings) == (3, 300, 2, 1)


def test_a_client_with_session_track_gets_all_but_positions() -> None:
    data = ok_with_state(1, SCHEMA, GTIDS, AUTOCOMMIT, LAST_GTID, TRANSACTION, info=b"Rows matched: 3")
    outcome = track([data], NEW)
    assert outcome.forwarded == ok_with_state(1, SCHEMA, AUTOCOMMIT, TRANSACTION, info=b"Rows matched: 3")
    assert outcome.changes == SessionChanges(
        database="shop",
        variables=(("autocommit", "OFF"),),
        gtids="3e11fa47-71ca-11e1-9e33-c80aa9429562:23",
        last_gtid="0-1-7",
        transaction_state="T_______",
    )


def test_variables_that_share_an_entry_with_last_gtid_stay() -> None:
    pairs = lenenc_bytes(b"last_gtid") + lenenc_bytes(b"0-1-7"), lenenc_bytes(b"autocommit") + lenenc_bytes(b"ON")
    outcome = track([ok_with_state(1, b"\0" + lenenc_bytes(b"".join(pairs)))], NEW)
    assert outcome.forwarded == ok_with_state(1, b"\0" + lenenc_bytes(pairs[1]))
    assert outcome.changes == SessionChanges(variables=(("autocommit", "ON"),), last_gtid="0-1-7")


def test_a_client_that_asked_for_positions_gets_the_bytes_as_they_came() -> None:
    tracker = ReplyTracker(NEW)
    tracker.keep_positions = True
    data = ok_with_state(1, SCHEMA, GTIDS, LAST_GTID)
    assert track([data], NEW, tracker=tracker).forwarded == data


@pytest.mark.parametrize("capabilities", [OLD, UNTRACKED])
def test_a_client_without_session_track_gets_no_state_but_the_info(capabilities: int) -> None:
    data = ok_with_state(1, SCHEMA, AUTOCOMMIT, info=b"Rows matched: 3")
    outcome = track([data], capabilities)
    assert outcome.forwarded == packet(1, encode_ok(0, OkPacket(3, 300, 2, 1, b"Rows matched: 3")))
    assert outcome.changes is not None
    assert outcome.changes.database == "shop"


def test_state_of_several_results_is_added_up_and_each_is_rewritten() -> None:
    first = ok_with_state(1, GTIDS, AUTOCOMMIT, status=MORE)
    last = ok_with_state(2, SCHEMA)
    outcome = track([first + last], NEW)
    assert outcome.forwarded == ok_with_state(1, AUTOCOMMIT, status=MORE) + last
    assert outcome.changes == SessionChanges(
        database="shop", variables=(("autocommit", "OFF"),), gtids="3e11fa47-71ca-11e1-9e33-c80aa9429562:23"
    )
    assert outcome.status == 2


def test_a_rewritten_reply_is_the_same_for_every_cut() -> None:
    data = (
        packet(1, b"\x01")
        + definitions(2, 1, NEW)
        + packet(3, b"\x011")
        + ok_with_state(4, GTIDS, header=0xFE, status=MORE)
        + ok_with_state(5, SCHEMA, LAST_GTID)
    )
    for capabilities in (NEW, UNTRACKED):
        whole = track([data], capabilities)
        for cut in range(1, len(data)):
            assert track([data[:cut], data[cut:]], capabilities) == whole
        assert track([data[at : at + 1] for at in range(len(data))], capabilities) == whole


def test_a_flag_without_state_is_cleared_in_eof_and_ok() -> None:
    flag = int(Status.SESSION_STATE_CHANGED)
    data = packet(1, b"\x01") + definitions(2, 1, OLD) + answers.eof(4, status=flag | 2)
    outcome = track([data], OLD)
    assert outcome.forwarded == packet(1, b"\x01") + definitions(2, 1, OLD) + answers.eof(4, status=2)
    assert outcome.status == 2
    assert track([answers.ok(1, status=flag | 2)], NEW).forwarded == answers.ok(1)


def test_entries_of_an_unknown_type_stay() -> None:
    unknown = b"\x63" + lenenc_bytes(b"whatever")
    changes, kept = read_state(unknown + GTIDS, keep_positions=False)
    assert kept == unknown
    assert changes.gtids is not None


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 0x3FFF), st.integers(0, 65535))
def test_an_ok_packet_is_read_back(affected_rows: int, insert_id: int, status: int, warnings: int) -> None:
    ok = OkPacket(affected_rows, insert_id, status, warnings, b"info", SCHEMA)
    read = parse_ok(encode_ok(0, ok))
    assert read == ok._replace(status=status | Status.SESSION_STATE_CHANGED)
    outcome = track([packet(1, encode_ok(0, ok._replace(state=b"", status=status & ~MORE)))], NEW)
    assert (outcome.affected_rows, outcome.insert_id) == (affected_rows, insert_id)
    assert (outcome.status, outcome.warnings) == (status & ~MORE, warnings)


numbers = st.integers(0, 2**64 - 1) | st.integers(0, 300)


@given(numbers, numbers, st.binary(max_size=300), st.binary(min_size=1, max_size=300), st.sampled_from([0x00, 0xFE]))
def test_an_ok_packet_with_state_of_any_length_is_read_back(
    affected_rows: int, insert_id: int, info: bytes, gtids: bytes, header: int
) -> None:
    plain = OkPacket(affected_rows, insert_id, 2, 5, info)
    entry = b"\x03" + lenenc_bytes(b"\0" + lenenc_bytes(gtids))
    ok = plain._replace(state=entry)
    assert parse_ok(encode_ok(header, ok)) == ok._replace(status=2 | Status.SESSION_STATE_CHANGED)
    before = packet(1, b"\x01") + definitions(2, 1, NEW) if header else b""
    outcome = track([before + packet(9 if header else 1, encode_ok(header, ok))], NEW)
    assert outcome.forwarded == before + packet(9 if header else 1, encode_ok(header, plain))
    assert outcome.changes == SessionChanges(gtids=gtids.decode("utf-8", "surrogateescape"))


@given(
    st.sampled_from([GTIDS, LAST_GTID, AUTOCOMMIT, SCHEMA, TRANSACTION]),
    st.lists(st.sampled_from([GTIDS, LAST_GTID, AUTOCOMMIT, SCHEMA]), max_size=2),
    st.integers(0, 40),
    st.integers(0, 255),
)
def test_the_short_cut_for_positions_says_what_the_whole_way_says(
    first: bytes, more: list[bytes], at: int, byte: int
) -> None:
    state = bytearray(first + b"".join(more))
    if byte:
        state[at % len(state)] = byte
    short = only_position(bytes(state))
    if short is not None:
        assert (short, b"") == read_state(bytes(state), keep_positions=False)
    elif not byte:
        assert more or first not in (GTIDS, LAST_GTID)


def test_the_same_question_again_is_recognised_by_its_metadata_only_where_it_is_the_same() -> None:
    tracker = ReplyTracker(OLD)
    narrow = answers.resultset(["a"], [["1"]], capabilities=OLD)
    wide = answers.resultset(["a", "b"], [["1", "2"]] * 3, capabilities=OLD)
    in_transaction = answers.resultset(["a"], [["1"]], capabilities=OLD, status=3)
    for data, status in [(narrow, 2), (narrow, 2), (wide, 2), (in_transaction, 3), (in_transaction, 3), (narrow, 2)]:
        outcome = track([data], OLD, tracker=tracker)
        assert (outcome.forwarded, outcome.status) == (data, status)
    opened = replies(OLD)["cursor opened"][1]
    assert track([opened + packet(1, b"")], OLD, Command.STMT_EXECUTE, tracker).leftover == packet(1, b"")


def test_a_row_over_16_mib_is_followed_through_its_packets() -> None:
    for size in (MAX_PAYLOAD - 9, MAX_PAYLOAD - 8, 2 * MAX_PAYLOAD):  # a value, with its length of 9 bytes in front
        data = answers.resultset(["a"], [["x" * size], ["small"]], capabilities=NEW)
        chunks = [data[at : at + 1_000_003] for at in range(0, len(data), 1_000_003)]
        assert track(chunks, NEW).forwarded == data
    old = answers.resultset(["a"], [["x" * 2 * MAX_PAYLOAD]], capabilities=OLD)
    assert track([old], OLD).forwarded == old


def test_memory_stays_bounded_while_a_large_reply_passes() -> None:
    row = packet(3, lenenc_bytes(b"x" * 100_000))
    head = packet(1, b"\x01") + definitions(2, 1, NEW)
    tracker = ReplyTracker(NEW)
    tracker.begin(Command.QUERY)
    tracker.feed(head)
    stream = row * 11
    tracemalloc.start()
    for _ in range(200):  # 220 MB
        for at in range(0, len(stream), 65_536):
            tracker.feed(stream[at : at + 65_536])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    tracker.feed(answers.ok(4, header=0xFE))
    assert tracker.done
    assert peak < 1 << 20


def test_the_command_s_own_packets_set_where_the_reply_s_numbers_begin() -> None:
    tracker = ReplyTracker(NEW)
    tracker.begin(Command.QUERY, 3)
    tracker.feed(answers.ok(3))
    assert tracker.done


def test_a_file_is_asked_for_only_where_that_was_offered() -> None:
    asked = packet(1, b"\xfb/etc/passwd")
    tracker = ReplyTracker(NEW)
    tracker.begin(Command.QUERY)
    with pytest.raises(PacketError, match="local file"):
        tracker.feed(asked)
    assert tracker.infile == "/etc/passwd"
    willing = ReplyTracker(NEW | Capability.LOCAL_FILES)
    willing.begin(Command.QUERY)
    assert willing.feed(asked) == asked
    assert (willing.infile, willing.done) == ("/etc/passwd", False)
    willing.file_sent()
    assert willing.feed(answers.ok(4, affected_rows=2)) == answers.ok(4, affected_rows=2)
    assert (willing.done, willing.affected_rows) == (True, 2)


def test_a_server_that_answers_before_it_has_the_file_is_not_understood() -> None:
    willing = ReplyTracker(NEW | Capability.LOCAL_FILES)
    for early in (answers.ok(2), answers.err(2, 1317, "Query execution was interrupted"), packet(2, b"\xfbother")):
        willing.begin(Command.QUERY)
        with pytest.raises(PacketError, match="before it has the file"):
            willing.feed(packet(1, b"\xfbfile") + early)


def test_who_follows_the_reply_may_refuse_the_file() -> None:
    def refuse(name: str) -> None:
        raise PacketError(f"not {name}")

    tracker = ReplyTracker(NEW | Capability.LOCAL_FILES)
    tracker.on_file = refuse
    tracker.begin(Command.QUERY)
    with pytest.raises(PacketError, match="not /etc/passwd"):
        tracker.feed(packet(1, b"\xfb/etc/passwd"))


@pytest.mark.parametrize(
    ("command", "data"),
    [
        (Command.QUERY, answers.ok(2)),
        (Command.QUERY, packet(1, b"")),
        (Command.QUERY, packet(1, b"\x01\x02")),
        (Command.QUERY, packet(1, b"\xfe\x01\x02")),
        (Command.QUERY, packet(1, b"\0\0")),
        (Command.QUERY, b"\xff\xff\xff\x01\0"),
        (Command.STMT_PREPARE, answers.ok(1)),
        (Command.STMT_EXECUTE, packet(1, b"\x01") + packet(2, b"def") + packet(3, b"\0row")),
    ],
)
def test_bytes_that_are_no_reply_are_an_error(command: Command, data: bytes) -> None:
    tracker = ReplyTracker(OLD)
    tracker.begin(command)
    with pytest.raises(PacketError):
        tracker.feed(data)


def test_a_prelude_is_swallowed_and_what_follows_is_left() -> None:
    data = answers.ok() + ok_with_state(1, SCHEMA, status=3) + replies(NEW)["result set"][1]
    for cut in range(1, len(data)):
        prelude = Prelude(2)
        rest = prelude.feed(data[:cut])
        if not prelude.done:
            assert rest == b""
            rest = prelude.feed(data[cut:])
        else:
            rest += data[cut:]
        assert prelude.done
        assert rest == replies(NEW)["result set"][1]
        assert (prelude.error, prelude.failed, prelude.status) == (None, None, 3)


def test_a_prelude_tells_which_of_its_commands_was_refused_first() -> None:
    prelude = Prelude(3)
    rest = prelude.feed(answers.ok() + answers.err(1, 1193, "Unknown variable") + answers.err(1, 1064, "no") + b"x")
    assert (prelude.done, prelude.failed, rest) == (True, 1, b"x")
    assert prelude.error is not None
    assert prelude.error.code == 1193


def test_a_prelude_of_nothing_is_done() -> None:
    assert Prelude(0).done


@pytest.mark.parametrize("data", [packet(1, b"\x01"), answers.ok(2), b"\xff\xff\xff\x01\0"])
def test_a_prelude_takes_nothing_but_ok_and_err(data: bytes) -> None:
    with pytest.raises(PacketError):
        Prelude(1).feed(data)
