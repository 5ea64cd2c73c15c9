"""A client's bytes become the same requests however they are cut, and bad ones never more than an error."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.protocol.memcached.decoder import LINE_BYTES_MAX, MULTIGET_BYTES_MAX, Message, RequestDecoder
from gateway.protocol.memcached.lines import META_LATER
from gateway.protocol.memcached.request import Rejected, Request


def decode(*chunks: bytes, value_limit: int = 1000) -> list[Message]:
    decoder = RequestDecoder(value_limit)
    return [message for chunk in chunks for message in decoder.decode(chunk)]


def one(data: bytes) -> Message:
    (message,) = decode(data)
    return message


def answers(data: bytes) -> list[bytes]:
    return [message.answer if isinstance(message, Rejected) else b"" for message in decode(data)]


WELL_FORMED = [
    (b"get k\r\n", Request(b"get", (b"k",), b"get k\r\n")),
    (b"get a b a\r\n", Request(b"get", (b"a", b"b", b"a"), b"get a b a\r\n")),
    (b"gets k\r\n", Request(b"gets", (b"k",), b"gets k\r\n")),
    (b"gat 30 a b\r\n", Request(b"gat", (b"a", b"b"), b"gat 30 a b\r\n", exptime=30)),
    (b"gats -1 a\r\n", Request(b"gats", (b"a",), b"gats -1 a\r\n", exptime=-1)),
    (b"set k 1 2 3\r\nabc\r\n", Request(b"set", (b"k",), b"set k 1 2 3\r\nabc\r\n", 1, 2, 13)),
    (b"set k 1 -2 0\r\n\r\n", Request(b"set", (b"k",), b"set k 1 -2 0\r\n\r\n", 1, -2, 14)),
    (
        b"set k 4294967295 2147483647 1\r\n\n\r\n",
        Request(b"set", (b"k",), b"set k 4294967295 2147483647 1\r\n\n\r\n", 4294967295, 2147483647, 31),
    ),
    (b"add k 0 0 1 noreply\r\nx\r\n", Request(b"add", (b"k",), b"add k 0 0 1\r\nx\r\n", value_at=13, noreply=True)),
    (b"set k 0 0 1 word\r\nx\r\n", Request(b"set", (b"k",), b"set k 0 0 1\r\nx\r\n", value_at=13)),
    (b"replace k 0 0 1\r\nx\r\n", Request(b"replace", (b"k",), b"replace k 0 0 1\r\nx\r\n", value_at=17)),
    (b"append k 0 0 1\r\nx\r\n", Request(b"append", (b"k",), b"append k 0 0 1\r\nx\r\n", value_at=16)),
    (b"prepend k 0 0 1\r\nx\r\n", Request(b"prepend", (b"k",), b"prepend k 0 0 1\r\nx\r\n", value_at=17)),
    (
        b"cas k 0 0 1 18446744073709551615\r\nx\r\n",
        Request(b"cas", (b"k",), b"cas k 0 0 1 18446744073709551615\r\nx\r\n", value_at=34, cas=18446744073709551615),
    ),
    (b"incr k 5\r\n", Request(b"incr", (b"k",), b"incr k 5\r\n", delta=5)),
    (b"decr k 1 noreply\r\n", Request(b"decr", (b"k",), b"decr k 1\r\n", delta=1, noreply=True)),
    (b"touch k 60\r\n", Request(b"touch", (b"k",), b"touch k 60\r\n", exptime=60)),
    (b"touch k -1 noreply\r\n", Request(b"touch", (b"k",), b"touch k -1\r\n", exptime=-1, noreply=True)),
    (b"delete k\r\n", Request(b"delete", (b"k",), b"delete k\r\n")),
    (b"delete k 0\r\n", Request(b"delete", (b"k",), b"delete k\r\n")),
    (b"delete k 0 noreply\r\n", Request(b"delete", (b"k",), b"delete k\r\n", noreply=True)),
    (b"delete k noreply\r\n", Request(b"delete", (b"k",), b"delete k\r\n", noreply=True)),
    (b"flush_all\r\n", Request(b"flush_all", (), b"flush_all\r\n")),
    (b"flush_all noreply\r\n", Request(b"flush_all", (), b"flush_all\r\n", noreply=True)),
    (b"flush_all 10 noreply\r\n", Request(b"flush_all", (), b"flush_all\r\n", exptime=10, noreply=True)),
    (b"verbosity 1\r\n", Request(b"verbosity", (), b"verbosity 1\r\n", arguments=(b"1",))),
    (b"verbosity 1 noreply\r\n", Request(b"verbosity", (), b"verbosity 1\r\n", noreply=True, arguments=(b"1",))),
    (b"stats items\r\n", Request(b"stats", (), b"stats items\r\n", arguments=(b"items",))),
    (b"version\r\n", Request(b"version", (), b"version\r\n")),
    (b"quit\r\n", Request(b"quit", (), b"quit\r\n")),
    (b"mn\r\n", Request(b"mn", (), b"mn\r\n")),
    (b"watch evictions\r\n", Request(b"watch", (), b"watch evictions\r\n", arguments=(b"evictions",))),
    (b"get  k \n", Request(b"get", (b"k",), b"get k\r\n")),
    (b"  incr k  1\n", Request(b"incr", (b"k",), b"incr k 1\r\n", delta=1)),
    (b"get " + b"k" * 250 + b"\r\n", Request(b"get", (b"k" * 250,), b"get " + b"k" * 250 + b"\r\n")),
    (b"get \xc3\xa9\xff\r\n", Request(b"get", (b"\xc3\xa9\xff",), b"get \xc3\xa9\xff\r\n")),
]


@pytest.mark.parametrize(("data", "request_"), WELL_FORMED, ids=lambda case: None)
def test_well_formed_requests(data: bytes, request_: Request) -> None:
    assert one(data) == request_


@pytest.mark.parametrize(("data", "request_"), WELL_FORMED, ids=lambda case: None)
def test_a_request_in_single_bytes_is_the_same(data: bytes, request_: Request) -> None:
    assert decode(*(data[at : at + 1] for at in range(len(data)))) == [request_]


def test_value_is_what_was_sent() -> None:
    value = bytes(range(256)) + b"\r\n\r\nEND\r\n"
    message = one(b"set k 0 0 %d\r\n%b\r\n" % (len(value), value))
    assert isinstance(message, Request)
    assert message.value == value
    assert message.key == b"k"
    assert Request(b"get", (b"k",), b"get k\r\n").value == b""


FORMAT = b"CLIENT_ERROR bad command line format\r\n"
MALFORMED = [
    (b"\r\n", [b"ERROR\r\n"]),
    (b"\n", [b"ERROR\r\n"]),
    (b"   \r\n", [b"ERROR\r\n"]),
    (b"get\r\n", [b"ERROR\r\n"]),
    (b"GET k\r\n", [b"ERROR\r\n"]),
    (b"bogus k noreply\r\n", [b"ERROR\r\n"]),
    (b"set k 0 0\r\n", [b"ERROR\r\n"]),
    (b"set k 0 0 1 1 1\r\nx\r\n", [b"ERROR\r\n"]),
    (b"cas k 0 0 1\r\nx\r\n", [b"ERROR\r\n"]),
    (b"touch k\r\n", [b"ERROR\r\n"]),
    (b"incr k\r\n", [b"ERROR\r\n"]),
    (b"delete\r\n", [b"ERROR\r\n"]),
    (b"delete k 0 0 0\r\n", [b"ERROR\r\n"]),
    (b"flush_all 1 2 3\r\n", [b"ERROR\r\n"]),
    (b"verbosity\r\n", [b"ERROR\r\n"]),
    (b"gat 0\r\n", [FORMAT]),
    (b"set k x 0 1\r\nx\r\n", [FORMAT]),
    (b"set k 0 x 1\r\nx\r\n", [FORMAT]),
    (b"set k 0 0 x\r\n", [FORMAT]),
    (b"set k 0 0 -1\r\n", [FORMAT]),
    (b"set k 0 0 2147483648\r\n", [FORMAT]),
    (b"set k -1 0 1\r\nx\r\n", [FORMAT]),
    (b"set k 4294967296 0 1\r\nx\r\n", [FORMAT]),
    (b"set k 0 2147483648 1\r\nx\r\n", [FORMAT]),
    (b"set k 0 1_0 1\r\nx\r\n", [FORMAT]),
    (b"set k x 0 1 noreply\r\nx\r\n", [b""]),
    (b"cas k 0 0 1 18446744073709551616\r\nx\r\n", [FORMAT]),
    (b"set " + b"k" * 251 + b" 0 0 1\r\nx\r\n", [FORMAT]),
    (b"get a " + b"k" * 251 + b"\r\n", [FORMAT]),
    (b"get a\tb\r\n", [FORMAT]),
    (b"set a\0b 0 0 1\r\nx\r\n", [FORMAT]),
    (b"get a\rb\r\n", [FORMAT]),
    (b"verbosity x\r\n", [FORMAT]),
    (b"touch k x\r\n", [b"CLIENT_ERROR invalid exptime argument\r\n"]),
    (b"touch k x noreply\r\n", [b""]),
    (b"gat x k\r\n", [b"CLIENT_ERROR invalid exptime argument\r\n"]),
    (b"flush_all x\r\n", [b"CLIENT_ERROR invalid exptime argument\r\n"]),
    (b"incr k -1\r\n", [b"CLIENT_ERROR invalid numeric delta argument\r\n"]),
    (b"incr k 18446744073709551616\r\n", [b"CLIENT_ERROR invalid numeric delta argument\r\n"]),
    (b"incr k x noreply\r\n", [b""]),
    (b"delete k 5\r\n", [b"CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n"]),
    # The value ends where its size says; what is left of it is a line of its own, as at a server.
    (b"set k 0 0 3\r\nabcdef\r\n", [b"CLIENT_ERROR bad data chunk\r\n", b"ERROR\r\n"]),
    (b"set k 0 0 3 noreply\r\nabcde", [b""]),
    (b"mg k v\r\n", [META_LATER]),
    (b"ms k 2\r\nmn\r\n", [META_LATER]),
]


@pytest.mark.parametrize(("data", "expected"), MALFORMED, ids=lambda case: None)
def test_malformed_requests_are_answered_and_what_follows_is_understood(data: bytes, expected: list[bytes]) -> None:
    messages = decode(data + b"get k\r\n")
    assert all(isinstance(message, Rejected) for message in messages[:-1])
    assert [message.answer for message in messages[:-1] if isinstance(message, Rejected)] == expected
    assert messages[-1] == Request(b"get", (b"k",), b"get k\r\n")


@pytest.mark.parametrize(
    ("verb", "deleted"),
    [(b"set", b"k"), (b"add", None), (b"replace", None), (b"append", None), (b"prepend", None)],
)
def test_a_value_over_the_limit_is_swallowed_unbuffered(verb: bytes, deleted: bytes | None) -> None:
    decoder = RequestDecoder(1000)
    assert decoder.decode(verb + b" k 0 0 100000\r\n") == []
    for _ in range(100):
        assert decoder.decode(b"x" * 1000) == []
        assert decoder.buffered == 0
    (rejected, following) = decoder.decode(b"\r\nget k\r\n")
    assert rejected == Rejected(
        b"SERVER_ERROR object too large for cache\r\n", delete=deleted, reason="value too large"
    )
    assert following == Request(b"get", (b"k",), b"get k\r\n")


def test_a_value_over_the_limit_with_noreply_still_deletes() -> None:
    data = b"set k 0 0 1001 noreply\r\n" + b"x" * 1001 + b"\r\n"
    assert one(data) == Rejected(b"", delete=b"k", reason="value too large")


@pytest.mark.parametrize("verb", [b"set", b"add"])
def test_a_value_of_the_limit_is_taken_and_one_byte_more_is_not(verb: bytes) -> None:
    assert isinstance(one(verb + b" k 0 0 1000\r\n" + b"x" * 1000 + b"\r\n"), Request)
    assert isinstance(one(verb + b" k 0 0 1001\r\n" + b"x" * 1001 + b"\r\n"), Rejected)


def test_lines_without_an_end_close_the_connection() -> None:
    for data in (b"x" * (LINE_BYTES_MAX + 1), b" " * 3000, b"set k" + b" " * 3000):
        for chunks in ([data], [data[:7], data[7:]], [data + b"\r\n"]):
            decoder = RequestDecoder()
            messages = [message for chunk in chunks for message in decoder.decode(chunk)]
            assert messages == [Rejected(b"CLIENT_ERROR line too long\r\n", close=True, reason="line too long")]
            assert decoder.closed
            assert decoder.decode(b"get k\r\n") == []
            assert decoder.buffered == 0


def test_a_multiget_may_be_longer_than_a_line_but_not_endless() -> None:
    keys = tuple(b"key-%d" % number for number in range(10_000))
    data = b"get " + b" ".join(keys) + b"\r\n"
    pieces = [data[at : at + 1000] for at in range(0, len(data), 1000)]
    assert decode(*pieces) == [Request(b"get", keys, data)]
    decoder = RequestDecoder()
    messages: list[Message] = []
    while not decoder.closed:
        messages += decoder.decode(b"get " + b"k" * 60_000)
        assert decoder.buffered <= MULTIGET_BYTES_MAX + 60_004
    assert messages == [Rejected(b"CLIENT_ERROR line too long\r\n", close=True, reason="line too long")]


def test_an_http_request_closes_without_an_answer() -> None:
    assert decode(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") == [Rejected(b"", close=True, reason="HTTP request")]


def test_the_binary_protocol_is_refused_in_its_own_words() -> None:
    header = bytes.fromhex("800a00000000000000000000 01020304 0000000000000000")
    (rejected,) = decode(header[:3], header[3:])
    assert isinstance(rejected, Rejected)
    assert rejected.close
    answer = rejected.answer
    assert answer[:2] == b"\x81\x0a"
    assert answer[6:8] == b"\x00\x81"
    assert int.from_bytes(answer[8:12]) == len(answer) - 24
    assert answer[12:16] == b"\x01\x02\x03\x04"


def test_byte_0x80_later_is_no_binary_request() -> None:
    assert answers(b"get k\r\n\x80 k\r\n") == [b"", b"ERROR\r\n"]


def test_state_is_visible() -> None:
    decoder = RequestDecoder()
    assert decoder.idle
    decoder.decode(b"get k\r\nget")
    assert not decoder.idle
    assert decoder.buffered == 3
    decoder.decode(b" k\r\nset k 0 0 10\r\nabc")
    assert not decoder.idle
    decoder.decode(b"1234567\r\n")
    assert decoder.idle
    assert decoder.buffered == 0


def _seconds_to_take(size: int, piece: int) -> float:
    decoder = RequestDecoder(1 << 30)
    chunk = b"x" * piece
    started = time.perf_counter()
    decoder.decode(b"set k 0 0 %d\r\n" % size)
    for _ in range(size // piece):
        decoder.decode(chunk)
    (message,) = decoder.decode(b"\r\n")
    assert isinstance(message, Request)
    assert len(message.raw) == message.value_at + size + 2
    return time.perf_counter() - started


def test_a_value_of_100_mib_in_pieces_is_linear() -> None:
    # Quadratic copying would move 80 GB here, which no machine does in this time.
    assert _seconds_to_take(104_857_600, 65_536) < 5.0


def test_a_value_in_tiny_pieces_is_linear_and_packed() -> None:
    assert _seconds_to_take(2_000_000, 2) < 20.0
    decoder = RequestDecoder(1 << 20)
    decoder.decode(b"set k 0 0 1000000\r\n")
    for _ in range(100_000):
        decoder.decode(b"ab")
    assert len(decoder._pieces) < 10


BIG = b"set big 0 0 2000\r\n" + b"y" * 2000 + b"\r\n"
LINES = st.sampled_from([BIG, *(data for data, _ in WELL_FORMED), *(data for data, _ in MALFORMED)])


@given(st.lists(LINES, max_size=8), st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_any_chunking_gives_the_same_messages(lines: list[bytes], cuts: list[int]) -> None:
    data = b"".join(lines)
    chunks, at, turn = [], 0, 0
    while at < len(data):
        step = cuts[turn % len(cuts)]
        chunks.append(data[at : at + step])
        at, turn = at + step, turn + 1
    assert decode(*chunks) == decode(data)


NOISE = st.lists(
    st.one_of(
        LINES,
        st.binary(max_size=60),
        st.sampled_from([b"set ", b"k", b" ", b"0", b"99999999", b"\r\n", b"\n", b"noreply", b"get ", b"ms k 5\r\n"]),
    ),
    max_size=20,
)


@given(NOISE, st.integers(1, 50))
@example([b"set k 0 0 0\r\n\r"], 1)
def test_noise_is_answered_or_waited_for_and_kept_small(parts: list[bytes], step: int) -> None:
    data = b"".join(parts)
    decoder = RequestDecoder(1000)
    count = 0
    for at in range(0, len(data), step):
        for message in decoder.decode(data[at : at + step]):
            count += 1
            assert isinstance(message, Request | Rejected)
            if isinstance(message, Request):
                assert message.raw.endswith(b"\r\n")
                assert all(0 < len(key) <= 250 for key in message.keys)
                if message.value_at:
                    assert len(message.value) <= 1000
        assert decoder.buffered <= LINE_BYTES_MAX + 1000 + step
    assert count <= len(data)


@given(st.sampled_from([data for data, _ in WELL_FORMED]))
def test_what_goes_to_a_server_is_a_fixed_point(data: bytes) -> None:
    message = one(data)
    assert isinstance(message, Request)
    again = one(message.raw)
    assert isinstance(again, Request)
    assert again.raw == message.raw
    assert (again.verb, again.keys, again.flags, again.value) == (
        message.verb,
        message.keys,
        message.flags,
        message.value,
    )
