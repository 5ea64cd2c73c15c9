"""Bytes that nobody would send: every decoder answers with an event or PacketError, never with anything else."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_users import KnownUsers

from gateway.errors import BackendRefused
from gateway.protocol.mysql import answers
from gateway.protocol.mysql.auth import PasswordKey
from gateway.protocol.mysql.client_handshake import ClientHandshake
from gateway.protocol.mysql.constants import CACHING_SHA2_PASSWORD, Capability, Command
from gateway.protocol.mysql.greeting import AuthSwitchRequest, Greeting, HandshakeResponse
from gateway.protocol.mysql.handshake import Denied, LoggedIn, Send
from gateway.protocol.mysql.ok_packet import OkPacket, encode_ok, parse_eof, parse_err, parse_ok, read_state
from gateway.protocol.mysql.packets import PacketError, PacketReader, lenenc_bytes, packet
from gateway.protocol.mysql.prelude import Prelude
from gateway.protocol.mysql.replies import ReplyTracker
from gateway.protocol.mysql.results import ResultReader

KEY = PasswordKey.generate()
NONCE = b"abcdefghijklmnopqrst"
CAPABILITIES = int(
    Capability.PROTOCOL_41
    | Capability.LONG_PASSWORD
    | Capability.SECURE_CONNECTION
    | Capability.PLUGIN_AUTH
    | Capability.PLUGIN_AUTH_LENENC_CLIENT_DATA
    | Capability.CONNECT_WITH_DB
    | Capability.CONNECT_ATTRS
    | Capability.DEPRECATE_EOF
    | Capability.SESSION_TRACK
)
STATE = b"\x01" + lenenc_bytes(lenenc_bytes(b"shop")) + b"\0" + lenenc_bytes(lenenc_bytes(b"a") + lenenc_bytes(b"b"))
PARSERS: list[Callable[[bytes], object]] = [
    Greeting.parse,
    HandshakeResponse.parse,
    AuthSwitchRequest.parse,
    parse_ok,
    parse_err,
    parse_eof,
    lambda data: read_state(data, keep_positions=False),
]
SAMPLES = [
    Greeting("9.7.0", 1, NONCE, CAPABILITIES, plugin=CACHING_SHA2_PASSWORD).encode(),
    HandshakeResponse("app", b"x" * 32, CAPABILITIES, "shop", CACHING_SHA2_PASSWORD, attributes={"a": "b"}).encode(),
    AuthSwitchRequest(CACHING_SHA2_PASSWORD, NONCE).encode(),
    encode_ok(0, OkPacket(1, 2, 2, 0, b"info", STATE)),
    b"\xff\x15\x04#28000Access denied",
    b"\xfe\0\0\x02\0",
    STATE,
]


def mutated(data: bytes, seed: int) -> bytes:
    """A few bytes changed, removed, added or doubled."""
    dice = random.Random(seed)
    changed = bytearray(data)
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(changed) + 1)
        match dice.randrange(4):
            case 0:
                changed[at : at + 1] = bytes(
                    (dice.choice((0, 1, 0xFA, 0xFB, 0xFC, 0xFD, 0xFE, 0xFF, dice.randrange(256))),)
                )
            case 1:
                del changed[at : at + dice.randint(1, 9)]
            case 2:
                changed[at:at] = dice.randbytes(dice.randint(1, 9))
            case _:
                changed[at:at] = changed[at : at + dice.randint(1, 50)]
    return bytes(changed)


@settings(max_examples=400)
@given(st.sampled_from(PARSERS), st.binary(max_size=200))
def test_parsers_take_any_bytes(parse: Callable[[bytes], object], data: bytes) -> None:
    with contextlib.suppress(PacketError):
        parse(data)


@pytest.mark.parametrize("at", range(len(PARSERS)))
def test_parsers_take_mutations_and_every_prefix(at: int) -> None:
    sample = SAMPLES[at]
    for data in [sample[:cut] for cut in range(len(sample))] + [mutated(sample, seed) for seed in range(500)]:
        with contextlib.suppress(PacketError):
            PARSERS[at](data)


def server() -> KnownUsers:
    return KnownUsers(
        {"app": "secret"},
        connection_id=1,
        server_version="9.7.0",
        capabilities=CAPABILITIES,
        host="192.0.2.1",
        key=KEY,
        nonce=NONCE,
    )


def feed_server(data: bytes) -> list[Send | LoggedIn | Denied]:
    ours = server()
    return ours.feed(data[: len(data) // 2]) + ours.feed(data[len(data) // 2 :])


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=80), max_size=4))
def test_the_server_role_answers_any_packets(payloads: list[bytes]) -> None:
    events = feed_server(b"".join(packet(at, payload) for at, payload in enumerate(payloads, 1)))
    assert not any(isinstance(event, LoggedIn) for event in events)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_the_server_role_takes_any_bytes(data: bytes) -> None:
    assert not any(isinstance(event, LoggedIn) for event in feed_server(data))


def test_the_server_role_lets_no_mutated_response_in_without_the_password() -> None:
    sample = packet(1, SAMPLES[1])
    for seed in range(1000):
        assert not any(isinstance(event, LoggedIn) for event in feed_server(mutated(sample, seed)))


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=80), max_size=4), st.booleans())
def test_the_client_role_takes_any_packets(payloads: list[bytes], greeted: bool) -> None:
    theirs = ClientHandshake(user="app", password="secret", capabilities=CAPABILITIES)
    if greeted:
        theirs.feed(packet(0, SAMPLES[0]))
    with contextlib.suppress(PacketError, BackendRefused):
        for at, payload in enumerate(payloads):
            theirs.feed(packet(2 * at + (2 if greeted else 0), payload))


def test_the_client_role_takes_mutated_greetings() -> None:
    for seed in range(1000):
        theirs = ClientHandshake(user="app", password="secret", capabilities=CAPABILITIES)
        with contextlib.suppress(PacketError, BackendRefused):
            theirs.feed(mutated(packet(0, SAMPLES[0]), seed))


REPLY = answers.resultset(["a", "b"], [["1", None]] * 5, capabilities=0, status=10) + packet(
    11, encode_ok(0, OkPacket(1, 2, 2, 0, b"info", STATE))
)


@pytest.mark.parametrize("capabilities", [0, CAPABILITIES])
@pytest.mark.parametrize("command", [Command.QUERY, Command.STMT_PREPARE, Command.STMT_EXECUTE, Command.STMT_FETCH])
def test_the_tracker_takes_mutated_replies(command: Command, capabilities: int) -> None:
    tracker = ReplyTracker(capabilities)
    for seed in range(1000):
        data = mutated(REPLY, seed)
        tracker = ReplyTracker(capabilities)
        tracker.begin(command)
        with contextlib.suppress(PacketError):
            for at in range(0, len(data), 17):
                if tracker.done:
                    break
                tracker.feed(data[at : at + 17])


@settings(max_examples=400)
@given(st.binary(max_size=300), st.sampled_from(Command), st.sampled_from([0, CAPABILITIES]))
def test_tracker_prelude_and_readers_take_any_bytes(data: bytes, command: Command, capabilities: int) -> None:
    tracker = ReplyTracker(capabilities)
    tracker.begin(command)
    for feed in (tracker.feed, Prelude(2).feed, ResultReader().feed, PacketReader(limit=1 << 20).feed):
        with contextlib.suppress(PacketError):
            feed(data)


def test_the_result_reader_takes_mutated_replies() -> None:
    for seed in range(1000):
        with contextlib.suppress(PacketError):
            ResultReader().feed(mutated(REPLY, seed))
