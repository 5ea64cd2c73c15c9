"""memcached verbs are what the corpus says, answers did what servers do, deadlines never serve late."""

from __future__ import annotations

import math
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.demo.servers import MemcachedServer
from gateway.demo.stack import Stack
from gateway.protocol.memcached import encoder
from gateway.protocol.memcached.decoder import RequestDecoder
from gateway.protocol.memcached.lines import MANAGEMENT, parse_line
from gateway.protocol.memcached.reply import Code, Reply
from gateway.protocol.memcached.reply_decoder import ReplyDecoder
from gateway.protocol.memcached.request import Request
from gateway.routing.kv import (
    BINARY_OPERATIONS,
    KEY_OPERATIONS,
    LOCAL,
    RELATIVE_SECONDS_MAX,
    Outcome,
    classify,
    deadline,
    effect_of,
    effects_of,
    remaining,
)
from gateway.routing.operation import Effect, Kind

CORPUS = Path(__file__).parent.parent / "corpus" / "memcached" / "commands.txt"
META = (b"mg", b"ms", b"md", b"ma", b"me")


def corpus() -> list[tuple[str, str, bytes]]:
    lines = [line for line in CORPUS.read_text().splitlines() if line and not line.startswith("#")]
    return [(kind, effect, command.encode()) for kind, effect, command in (line.split(maxsplit=2) for line in lines)]


def request(line: bytes) -> Request:
    """The request of a line. Meta lines, which the decoder refuses as yet, and unknown ones are put together here."""
    words = line.split()
    if words[0] in KEY_OPERATIONS and words[0] not in META:
        message, _ = parse_line(line)
        assert isinstance(message, Request)
        return message
    arguments = tuple(words[3 if words[0] == b"ms" else 2 :])
    return Request(words[0], (words[1],), line + b"\r\n", arguments=arguments)


@pytest.mark.parametrize(("kind", "effect", "command"), corpus(), ids=lambda part: None)
def test_the_corpus(kind: str, effect: str, command: bytes) -> None:
    asked = request(command)
    operation = classify(asked)
    assert operation.effect is Effect(effect)
    assert operation.kind is Kind("session" if kind == "management" else kind)
    assert (asked.verb in MANAGEMENT) == (kind == "management")
    assert (asked.verb in LOCAL) == (kind in ("session", "management"))
    if kind != "unknown":
        assert operation.verb == asked.verb.decode()


def test_the_corpus_has_every_verb() -> None:
    assert {command.split()[0] for _, _, command in corpus()} >= set(KEY_OPERATIONS)


def test_binary_opcodes_are_the_classes_of_the_table() -> None:
    # KV.md's table, last column
    read = {0x00, 0x09, 0x0C, 0x0D}
    write = {
        *range(0x01, 0x07),
        0x08,
        0x0E,
        0x0F,
        *range(0x11, 0x17),
        *range(0x18, 0x1B),
        *range(0x1C, 0x1F),
        0x23,
        0x24,
    }
    local = {0x07, 0x17, 0x0A, 0x0B, 0x10, 0x20, 0x21, 0x22}
    for kind, opcodes in ((Kind.READ, read), (Kind.WRITE, write), (Kind.SESSION, local)):
        assert {opcode for opcode, operation in BINARY_OPERATIONS.items() if operation.kind is kind} == opcodes
    assert all((op.effect is Effect.NONE) == (op.kind is not Kind.WRITE) for op in BINARY_OPERATIONS.values())


TOO_LARGE = b"SERVER_ERROR object too large for cache\r\n"
NO_MEMORY = b"SERVER_ERROR out of memory storing object\r\n"
HALF_READ = b"SERVER_ERROR out of memory reading data\r\n"
EFFECTS = [
    (b"set k 0 0 1", b"STORED", Outcome.STORED),
    (b"set k 0 0 1", TOO_LARGE, Outcome.DELETED),
    (b"set k 0 0 1", NO_MEMORY, Outcome.DELETED),
    (b"set k 0 0 1", HALF_READ, Outcome.DOUBTFUL),
    (b"set k 0 0 1", b"ERROR", Outcome.DOUBTFUL),
    (b"set k 0 0 1", b"CLIENT_ERROR bad command line format", Outcome.DOUBTFUL),
    (b"add k 0 0 1", b"STORED", Outcome.STORED),
    (b"add k 0 0 1", b"NOT_STORED", Outcome.NOTHING),
    (b"add k 0 0 1", TOO_LARGE, Outcome.NOTHING),
    (b"replace k 0 0 1", b"NOT_STORED", Outcome.DELETED),
    (b"replace k 0 0 1", NO_MEMORY, Outcome.NOTHING),
    (b"append k 0 0 1", b"STORED", Outcome.CHANGED),
    (b"append k 0 0 1", b"NOT_STORED", Outcome.CHANGED),
    (b"append k 0 0 1", TOO_LARGE, Outcome.NOTHING),
    (b"prepend k 0 0 1", b"NOT_STORED", Outcome.CHANGED),
    (b"cas k 0 0 1 5", b"STORED", Outcome.STORED),
    (b"cas k 0 0 1 5", b"EXISTS", Outcome.NOTHING),
    (b"cas k 0 0 1 5", b"NOT_FOUND", Outcome.DELETED),
    (b"cas k 0 0 1 5", TOO_LARGE, Outcome.NOTHING),
    (b"incr k 1", b"5", Outcome.CHANGED),
    (b"incr k 1", b"NOT_FOUND", Outcome.DELETED),
    (b"incr k 1", b"CLIENT_ERROR cannot increment or decrement non-numeric value", Outcome.NOTHING),
    (b"incr k 1", b"SERVER_ERROR out of memory", Outcome.DOUBTFUL),
    (b"decr k 1", b"0", Outcome.CHANGED),
    (b"delete k", b"DELETED", Outcome.DELETED),
    (b"delete k", b"NOT_FOUND", Outcome.DELETED),
    (b"delete k", b"SERVER_ERROR x", Outcome.DOUBTFUL),
    (b"touch k 5", b"TOUCHED", Outcome.TOUCHED),
    (b"touch k 5", b"NOT_FOUND", Outcome.DELETED),
    (b"gat 5 k", b"VALUE k 0 1\r\nx\r\nEND", Outcome.TOUCHED),
    (b"gat 5 k", b"END", Outcome.DELETED),
    (b"gats 5 k", b"SERVER_ERROR x", Outcome.DOUBTFUL),
    (b"flush_all", b"OK", Outcome.FLUSHED),
    (b"flush_all", b"CLIENT_ERROR flush_all not allowed", Outcome.NOTHING),
    (b"flush_all", b"SERVER_ERROR x", Outcome.DOUBTFUL),
    (b"get k", b"VALUE k 0 1\r\nx\r\nEND", Outcome.NOTHING),
    (b"get k", b"SERVER_ERROR x", Outcome.NOTHING),
    (b"mg k v", b"EN", Outcome.NOTHING),
    (b"mg k T5", b"HD", Outcome.TOUCHED),
    (b"mg k T5", b"EN", Outcome.DELETED),
    (b"mg k N5", b"HD W", Outcome.DOUBTFUL),
    (b"ms k 1", b"HD", Outcome.STORED),
    (b"ms k 1 MA", b"HD", Outcome.CHANGED),
    (b"ms k 1 ME", b"NS", Outcome.CHANGED),
    (b"ms k 1 C5", b"EX", Outcome.NOTHING),
    (b"ms k 1 C5", b"NF", Outcome.DELETED),
    (b"ms k 1 ME", TOO_LARGE, Outcome.DELETED),
    (b"ma k", b"HD", Outcome.CHANGED),
    (b"ma k", b"NF", Outcome.DELETED),
    (b"ma k", b"NS", Outcome.DOUBTFUL),
    (b"md k", b"HD", Outcome.DELETED),
    (b"md k", b"NF", Outcome.DELETED),
    (b"md k C1", b"EX", Outcome.NOTHING),
    (b"md k I", b"HD", Outcome.DOUBTFUL),
]


@pytest.mark.parametrize(("command", "answer", "outcome"), EFFECTS, ids=lambda part: None)
def test_what_an_answer_did(command: bytes, answer: bytes, outcome: Outcome) -> None:
    asked = request(command)
    decoder = ReplyDecoder()
    decoder.expected.append(asked)
    (reply,) = decoder.decode(answer.removesuffix(b"\r\n") + b"\r\n")
    assert effect_of(asked, reply) is outcome
    assert effects_of(asked, reply) == [(key, outcome) for key in asked.keys]


def test_a_pair_that_no_server_gives_is_doubtful() -> None:
    for command in (b"set k 0 0 1", b"delete k", b"touch k 1", b"flush_all", b"incr k 1"):
        assert effect_of(request(command), Reply(Code.MN, b"MN\r\n")) is Outcome.DOUBTFUL


def test_a_gat_of_several_keys_touches_its_hits() -> None:
    asked = request(b"gat 5 a b c a")
    reply = Reply(Code.VALUES, b"VALUE b 0 1\r\nx\r\nEND\r\n")
    assert effects_of(asked, reply) == [(b"a", Outcome.DELETED), (b"b", Outcome.TOUCHED), (b"c", Outcome.DELETED)]


VALUE = b"x" * 700_000
LARGE = b"x" * 1_100_000
BEFORE = {
    "missing": [],
    "text": [encoder.store(b"k", b"old", 3, 0)],
    "number": [encoder.store(b"k", b"41", 3, 0)],
    "big": [encoder.store(b"k", VALUE, 3, 0)],
}
WRITES = [
    *(b"%b k 9 0 3\r\nnew\r\n" % verb for verb in (b"set", b"add", b"replace", b"append", b"prepend")),
    *(b"%b k 9 0 700000\r\n%b\r\n" % (verb, VALUE) for verb in (b"set", b"add", b"replace", b"append", b"prepend")),
    *(b"%b k 9 0 1100000\r\n%b\r\n" % (verb, LARGE) for verb in (b"set", b"add", b"replace", b"append", b"prepend")),
    *(b"cas k 9 0 3 1\r\nnew\r\n", b"cas k 9 0 1100000 1\r\n%b\r\n" % LARGE),
    *(b"incr k 1\r\n", b"decr k 1\r\n", b"delete k\r\n", b"touch k 100\r\n", b"gat 100 k\r\n", b"gats 100 k\r\n"),
    b"flush_all\r\n",
]


@pytest.mark.servers
@pytest.mark.parametrize("version", ["debian", "newest"])
def test_effects_are_what_really_happened_at_a_server(stack: Stack, version: str) -> None:
    """Every verb on every kind of item: what the outcome claims is compared with what the server then has."""
    server = MemcachedServer(stack, version="newest" if version == "newest" else "debian")
    server.start()
    seen = set()
    with Asking(server) as ask:
        for setup in BEFORE.values():
            for data in WRITES:
                ask(encoder.FLUSH_ALL, *setup)
                (before, asked_ttl) = ask(encoder.get([b"k"]), encoder.meta_get(b"k", b"t"))
                (asked,) = RequestDecoder(10_000_000).decode(data)
                assert isinstance(asked, Request)
                (reply,) = ask(asked)
                (after, ttl) = ask(encoder.get([b"k"]), encoder.meta_get(b"k", b"t"))
                outcome = effect_of(asked, reply)
                seen.add(outcome)
                if outcome is Outcome.STORED:
                    (found,) = after.values()
                    assert (found.value, found.flags) == (asked.value, asked.flags)
                elif outcome in (Outcome.DELETED, Outcome.FLUSHED):
                    assert after.code is Code.MISS
                elif outcome is Outcome.NOTHING:
                    assert (after, ttl) == (before, asked_ttl)
                elif outcome is Outcome.TOUCHED:
                    assert after == before
                    assert ttl.meta_flags()[b"t"] in (b"100", b"99")
                else:
                    assert outcome is Outcome.CHANGED
    assert seen == {*Outcome} - {Outcome.DOUBTFUL}


class Asking:
    """Calls a server with requests and returns its replies."""

    def __init__(self, server: MemcachedServer) -> None:
        self._socket = socket.create_connection((server.host, server.port), timeout=20.0)
        self._decoder = ReplyDecoder()

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def __call__(self, *requests: Request) -> list[Reply]:
        self._decoder.expected.extend(requests)
        self._socket.sendall(b"".join(asked.raw for asked in requests))
        found: list[Reply] = []
        while self._decoder.expected:
            found += self._decoder.decode(self._socket.recv(65_536))
        return found


NOW = 1000.0
OFFSET = 1_800_000_000.0 - NOW  # the server's Unix time minus our monotonic one


def test_deadlines() -> None:
    assert deadline(0, NOW, OFFSET) == math.inf
    assert deadline(-1, NOW, OFFSET) == -math.inf
    assert deadline(60, NOW, OFFSET) == 1060.0
    assert deadline(RELATIVE_SECONDS_MAX, NOW, OFFSET) == NOW + RELATIVE_SECONDS_MAX
    assert deadline(1_800_000_060, NOW, OFFSET) == 1060.0
    assert deadline(RELATIVE_SECONDS_MAX + 1, NOW, OFFSET) < NOW  # a time in January 1970


def test_a_server_clock_that_is_wrong_is_corrected() -> None:
    # The client means 60 s from now by a clock that the primary shares and that is an hour ahead of the replica's.
    primary, replica = OFFSET + 3600, OFFSET
    until = deadline(1_800_000_000 + 3600 + 60, NOW, primary)
    assert remaining(until, NOW + 10, replica) == 50


def test_remaining() -> None:
    assert remaining(math.inf, NOW, OFFSET) == 0
    assert remaining(-math.inf, NOW, OFFSET) is None
    assert remaining(NOW, NOW, OFFSET) is None
    assert remaining(NOW + 0.9, NOW, OFFSET) is None
    assert remaining(NOW + 1.0, NOW, OFFSET) == 1
    assert remaining(NOW + 59.999, NOW, OFFSET) == 59
    month = RELATIVE_SECONDS_MAX
    assert remaining(NOW + month, NOW, OFFSET) == month
    assert remaining(NOW + month + 5, NOW, OFFSET) == 1_800_000_000 + month + 5


@given(
    st.integers(-10, 2**31 - 1),
    st.floats(0, 1e6),
    st.floats(1.5e9, 2e9),
    st.floats(0, 1e6),
    st.floats(-1e4, 1e4),
)
def test_a_shipped_expiry_is_never_late_and_at_most_two_seconds_early(
    exptime: int, now: float, offset: float, delay: float, skew: float
) -> None:
    until = deadline(exptime, now, offset)
    sent = remaining(until, now + delay, offset + skew)
    if sent is None:
        assert until < now + delay + 1.0
    elif sent == 0:
        assert exptime == 0
    else:
        # as a server reads it: from the beginning of its current second, or as its own Unix time
        clock = now + delay + offset + skew
        gone = math.floor(clock) + sent if sent <= RELATIVE_SECONDS_MAX else sent
        assert -2.01 <= gone - (until + offset + skew) <= 0.01
