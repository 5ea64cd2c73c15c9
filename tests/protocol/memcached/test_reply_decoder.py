"""A server's bytes become replies that fit their requests, however they are cut, or the connection is given up."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ProtocolError
from gateway.protocol.memcached import encoder
from gateway.protocol.memcached.lines import parse_line
from gateway.protocol.memcached.reply import Code, Reply, Value, merge_blocks
from gateway.protocol.memcached.reply_decoder import ReplyDecoder
from gateway.protocol.memcached.request import Request


def request(line: bytes) -> Request:
    message, _ = parse_line(line)
    assert isinstance(message, Request)
    return message


GET = request(b"get k")
GETS = request(b"gets k")
MULTI = request(b"get a b c")
SET = request(b"set k 0 0 1")
ADD = request(b"add k 0 0 1")
CAS = request(b"cas k 0 0 1 1")
INCR = request(b"incr k 1")
DELETE = request(b"delete k")
TOUCH = request(b"touch k 1")
FLUSH = request(b"flush_all")
STATS = encoder.STATS
MG = encoder.meta_get(b"k")
MS = encoder.meta_store(b"k", b"x", 0, 0)
MD = encoder.meta_delete(b"k")
MA = encoder.meta_arithmetic(b"k", 1)
ME = Request(b"me", (b"k",), b"me k\r\n")

FITTING = [
    (GET, b"END\r\n", Code.MISS),
    (GET, b"VALUE k 0 3\r\nabc\r\nEND\r\n", Code.VALUES),
    (GET, b"VALUE k 4294967295 7\r\nEND\r\n\r\n\r\nEND\r\n", Code.VALUES),
    (GET, b"VALUE k 0 0\r\n\r\nEND\r\n", Code.VALUES),
    (GET, b"SERVER_ERROR out of memory\r\n", Code.SERVER_ERROR),
    (GETS, b"VALUE k 0 1 18446744073709551615\r\nx\r\nEND\r\n", Code.VALUES),
    (MULTI, b"END\r\n", Code.MISS),
    (MULTI, b"VALUE a 0 1\r\nx\r\nVALUE c 0 1\r\ny\r\nEND\r\n", Code.VALUES),
    (request(b"get a a"), b"VALUE a 0 1\r\nx\r\nVALUE a 0 1\r\nx\r\nEND\r\n", Code.VALUES),
    (SET, b"STORED\r\n", Code.STORED),
    (SET, b"SERVER_ERROR object too large for cache\r\n", Code.SERVER_ERROR),
    (SET, b"ERROR\r\n", Code.ERROR),
    (ADD, b"NOT_STORED\r\n", Code.NOT_STORED),
    (CAS, b"EXISTS\r\n", Code.EXISTS),
    (CAS, b"NOT_FOUND\r\n", Code.NOT_FOUND),
    (INCR, b"18446744073709551615\r\n", Code.NUMBER),
    (INCR, b"NOT_FOUND\r\n", Code.NOT_FOUND),
    (INCR, b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n", Code.CLIENT_ERROR),
    (DELETE, b"DELETED\r\n", Code.DELETED),
    (TOUCH, b"TOUCHED\r\n", Code.TOUCHED),
    (FLUSH, b"OK\r\n", Code.OK),
    (encoder.VERSION, b"VERSION 1.6.18\r\n", Code.VERSION),
    (STATS, b"STAT pid 1\r\nSTAT empty \r\nEND\r\n", Code.STATS),
    (STATS, b"END\r\n", Code.STATS),
    (STATS, b"RESET\r\n", Code.RESET),
    (encoder.NO_OP, b"MN\r\n", Code.MN),
    (MG, b"EN\r\n", Code.EN),
    (MG, b"HD\r\n", Code.HD),
    (MG, b"VA 3 f0 t-1 c5\r\nabc\r\n", Code.VA),
    (MG, b"VA 0\r\n\r\n", Code.VA),
    (MG, b"CLIENT_ERROR invalid flag\r\n", Code.CLIENT_ERROR),
    (MS, b"HD c5\r\n", Code.HD),
    (MS, b"NS\r\n", Code.NS),
    (MD, b"EX\r\n", Code.EX),
    (MD, b"NF\r\n", Code.NF),
    (MA, b"VA 2 t-1 c18\r\n11\r\n", Code.VA),
    (ME, b"ME k exp=-1 la=0 cas=16 fetch=no cls=1 size=61\r\n", Code.ME),
    (ME, b"EN\r\n", Code.EN),
]


@pytest.mark.parametrize(("request_", "data", "code"), FITTING, ids=lambda case: None)
def test_a_reply_alone_and_in_single_bytes(request_: Request, data: bytes, code: Code) -> None:
    decoder = ReplyDecoder()
    decoder.expected.append(request_)
    assert decoder.decode(data) == [Reply(code, data)]
    assert not decoder.expected
    decoder.expected.append(request_)
    found = [reply for at in range(len(data)) for reply in decoder.decode(data[at : at + 1])]
    assert found == [Reply(code, data)]
    assert decoder.buffered == 0


@given(st.lists(st.sampled_from(FITTING), max_size=12), st.lists(st.integers(1, 60), min_size=1, max_size=20))
def test_any_chunking_gives_the_same_replies_in_order(
    exchanges: list[tuple[Request, bytes, Code]], cuts: list[int]
) -> None:
    decoder = ReplyDecoder()
    decoder.expected.extend(request_ for request_, _, _ in exchanges)
    data = b"".join(reply for _, reply, _ in exchanges)
    found: list[Reply] = []
    at = turn = 0
    while at < len(data):
        step = cuts[turn % len(cuts)]
        found += decoder.decode(data[at : at + step])
        at, turn = at + step, turn + 1
    assert found == [Reply(code, reply) for _, reply, code in exchanges]
    assert not decoder.expected
    assert decoder.buffered == 0


UNFIT = [
    (GET, b"STORED\r\n"),
    (GET, b"VALUE other 0 1\r\nx\r\nEND\r\n"),
    (GET, b"VALUE k 0 1\r\nxyz\r\nEND\r\n"),
    (GET, b"VALUE k 0 x\r\n"),
    (GET, b"VALUE k 0 1\r\nx\r\nVALUE k 0 1\r\nx\r\nEND\r\n"),
    (GET, b"VALUE k 0 9999999999\r\n"),
    (GET, b"\r\n"),
    (GET, b"ERRORS\r\n"),
    (MULTI, b"VALUE c 0 1\r\nx\r\nVALUE a 0 1\r\nx\r\nEND\r\n"),
    (MULTI, b"VALUE a 0 1\r\nx\r\nSTORED\r\n"),
    (MULTI, b"VALUE a 0 1\r\nxyEND\r\n"),
    (SET, b"END\r\n"),
    (SET, b"NOT_FOUND\r\n"),
    (DELETE, b"STORED\r\n"),
    (INCR, b"1 2\r\n"),
    (INCR, b"-1\r\n"),
    (INCR, b"123456789012345678901\r\n"),
    (STATS, b"STAT a 1\r\nRESET\r\n"),
    (MG, b"STORED\r\n"),
    (MG, b"VA x\r\n"),
    (MG, b"VA 1\r\nxyz"),
    (MS, b"EN\r\n"),
    (encoder.NO_OP, b"HD\r\n"),
    (GET, b"x" * 9000),
    (SET, b"SERVER_ERROR " + b"x" * 9000),
    (Request(b"watch", (), b"watch\r\n"), b"OK\r\n"),
]


@pytest.mark.parametrize(("request_", "data"), UNFIT, ids=lambda case: None)
def test_a_reply_that_does_not_fit_gives_the_connection_up(request_: Request, data: bytes) -> None:
    decoder = ReplyDecoder()
    decoder.expected.append(request_)
    with pytest.raises(ProtocolError):
        decoder.decode(data)
    assert list(decoder.expected) == [request_]


def test_an_answer_to_nothing_gives_the_connection_up() -> None:
    decoder = ReplyDecoder()
    decoder.expected.append(GET)
    with pytest.raises(ProtocolError, match="nothing was asked"):
        decoder.decode(b"END\r\nEND\r\n")


def test_an_error_in_the_middle_of_values_is_the_whole_reply() -> None:
    for cut in (5, 20, 40):
        data = b"VALUE a 0 1\r\nx\r\nVALUE b 0 1\r\ny\r\nSERVER_ERROR out of memory\r\nEND\r\n"
        decoder = ReplyDecoder()
        decoder.expected.extend((MULTI, GET))
        found = decoder.decode(data[:cut]) + decoder.decode(data[cut:])
        assert found == [Reply(Code.SERVER_ERROR, b"SERVER_ERROR out of memory\r\n"), Reply(Code.MISS, b"END\r\n")]
        assert found[0].failed
        assert not found[1].failed


def test_values_are_taken_apart() -> None:
    reply = Reply(Code.VALUES, b"VALUE a 7 5\r\nEND\r\n\r\nVALUE b 0 0 9\r\n\r\nEND\r\n")
    assert reply.values() == [Value(b"a", 7, b"END\r\n", None), Value(b"b", 0, b"", 9)]
    assert reply.blocks() == [(b"a", b"VALUE a 7 5\r\nEND\r\n\r\n"), (b"b", b"VALUE b 0 0 9\r\n\r\n")]
    assert Reply(Code.MISS, b"END\r\n").values() == []


def test_parts_of_a_multiget_are_merged_in_the_clients_order() -> None:
    one = Reply(Code.VALUES, b"VALUE c 0 1\r\nz\r\nEND\r\n")
    two = Reply(Code.VALUES, b"VALUE a 0 1\r\nx\r\nEND\r\n")
    blocks = dict(one.blocks() + two.blocks())
    assert merge_blocks([b"a", b"b", b"c", b"a"], blocks) == (
        b"VALUE a 0 1\r\nx\r\nVALUE c 0 1\r\nz\r\nVALUE a 0 1\r\nx\r\nEND\r\n"
    )
    assert merge_blocks([b"b"], blocks) == b"END\r\n"


def test_meta_replies_are_taken_apart() -> None:
    reply = Reply(Code.VA, b"VA 3 f5 t-1 c77 W\r\na\r\n\r\n")
    assert reply.meta_flags() == {b"f": b"5", b"t": b"-1", b"c": b"77", b"W": b""}
    assert reply.meta_value == b"a\r\n"
    assert Reply(Code.HD, b"HD c5\r\n").meta_flags() == {b"c": b"5"}


def test_numbers_and_statistics_are_taken_apart() -> None:
    assert Reply(Code.NUMBER, b"42\r\n").number == 42
    assert Reply(Code.STATS, b"STAT pid 1\r\nSTAT v a b\r\nSTAT e\r\nEND\r\n").stats() == {
        b"pid": b"1",
        b"v": b"a b",
        b"e": b"",
    }
    assert Reply(Code.CLIENT_ERROR, b"CLIENT_ERROR x\r\n").line == b"CLIENT_ERROR x"


def test_large_replies_in_pieces_are_linear() -> None:
    # Quadratic copying would move tens of gigabytes, which no machine does in this time.
    started = time.perf_counter()
    size = 104_857_600
    decoder = ReplyDecoder()
    decoder.expected.append(GET)
    found = decoder.decode(b"VALUE k 0 %d\r\n" % size)
    for _ in range(size // 65_536):
        found += decoder.decode(b"x" * 65_536)
    found += decoder.decode(b"\r\nEND\r\n")
    assert [reply.code for reply in found] == [Code.VALUES]
    keys = [b"key-%d" % number for number in range(100_000)]
    data = b"".join(b"VALUE %b 0 500\r\n%b\r\n" % (key, b"v" * 500) for key in keys) + b"END\r\n"
    decoder.expected.append(encoder.get(keys))
    found = [reply for at in range(0, len(data), 4096) for reply in decoder.decode(data[at : at + 4096])]
    assert [reply.code for reply in found] == [Code.VALUES]
    assert found[0].raw == data
    assert time.perf_counter() - started < 10.0


NOISE = st.lists(
    st.one_of(
        st.sampled_from([data for _, data, _ in FITTING]),
        st.sampled_from([b"VALUE ", b"k", b" ", b"0", b"5", b"\r\n", b"END", b"VA 3", b"STAT x", b"STORED"]),
        st.binary(max_size=40),
    ),
    max_size=12,
)


@given(st.lists(st.sampled_from([request_ for request_, _, _ in FITTING]), max_size=6), NOISE, st.integers(1, 50))
def test_noise_is_a_reply_that_fits_or_a_protocol_error(requests: list[Request], parts: list[bytes], step: int) -> None:
    data = b"".join(parts)
    decoder = ReplyDecoder()
    decoder.expected.extend(requests)
    found: list[Reply] = []
    try:
        for at in range(0, len(data), step):
            found += decoder.decode(data[at : at + step])
            assert decoder.buffered <= len(data)
    except ProtocolError:
        return
    assert len(found) + len(decoder.expected) == len(requests)
    assert b"".join(reply.raw for reply in found if not reply.failed) in data or any(r.failed for r in found)
