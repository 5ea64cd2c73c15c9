"""What is fuzzed, and what must hold for any bytes: each target takes them and raises AssertionError, or nothing.

The coverage-guided run (scripts/fuzz.py), hypothesis and the seeds in tests/corpus/fuzz all use these.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

from fuzz_peers import PEER_SAMPLES, PEER_TARGETS, pieces

from gateway.errors import BackendRefused
from gateway.protocol.mysql import answers
from gateway.protocol.mysql.client_handshake import ClientHandshake
from gateway.protocol.mysql.constants import CACHING_SHA2_PASSWORD, Capability, Command
from gateway.protocol.mysql.greeting import AuthSwitchRequest, Greeting, HandshakeResponse
from gateway.protocol.mysql.ok_packet import OkPacket, encode_ok, parse_eof, parse_err, parse_ok, read_state
from gateway.protocol.mysql.packets import PacketError, PacketReader, packet
from gateway.protocol.mysql.prelude import Prelude
from gateway.protocol.mysql.replies import ReplyTracker
from gateway.protocol.mysql.results import ResultReader
from gateway.routing.fingerprint import Reading
from gateway.routing.operation import Kind, PinCause
from gateway.routing.sql import Classifier, classify_text
from gateway.routing.sql_files import local_files
from gateway.routing.sql_long import as_shortened, shorten, unread
from gateway.routing.sql_routine import read_body
from gateway.routing.sql_text import classify_short

CAPABILITIES: Final = int(
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
COMMANDS: Final = (Command.QUERY, Command.STMT_PREPARE, Command.STMT_EXECUTE, Command.STMT_FETCH, Command.PING)
READINGS: Final = (
    Reading(),
    Reading(mariadb=True, version=(10, 11)),
    Reading(ansi_quotes=True, ignore_space=True),
    Reading(no_backslash_escapes=True, mariadb=True),
    Reading(utf8=False),
    Reading(unsafe_charset=True, utf8=False),
)
HELD_BYTES: Final = 4_096  # more than this of a short input is not to be kept
HEADER_BYTES: Final = 4


def parsers(data: bytes) -> None:
    """Every parser of one payload."""
    for parse in (Greeting.parse, HandshakeResponse.parse, AuthSwitchRequest.parse, parse_ok, parse_err, parse_eof):
        with contextlib.suppress(PacketError):
            parse(data)
    for keep in (False, True):
        with contextlib.suppress(PacketError):
            read_state(data, keep_positions=keep)


def packet_reader(data: bytes) -> None:
    """However it arrives, the same messages come out."""

    def read(parts: list[bytes]) -> tuple[list[bytes], int | None, int]:
        reader = PacketReader(limit=1 << 20, sequence=None)
        messages: list[bytes] = []
        try:
            for part in parts:
                messages += reader.feed(part)
        except PacketError as error:
            return [], error.code, 0
        return messages, None, reader.held

    whole = read([data])
    for seed in (1, 2):
        chunked = read(pieces(data, seed))
        assert whole[1] == chunked[1]
        assert whole[1] is not None or whole == chunked


def client_handshake(data: bytes) -> None:
    """What a server may say while the gateway logs in to it."""
    for chunks in ([data], pieces(data, 3)):
        handshake = ClientHandshake(user="app", password="secret", capabilities=CAPABILITIES)
        with contextlib.suppress(PacketError, BackendRefused):
            for chunk in chunks:
                handshake.feed(chunk)


def reply_tracker(data: bytes) -> None:
    """However a reply arrives, the client gets the same bytes, and the same is known of it."""
    if len(data) < 2:
        return
    command, capabilities = COMMANDS[data[0] % len(COMMANDS)], CAPABILITIES if data[1] & 1 else CAPABILITIES & 0xFFFF
    reply = data[2:]

    def track(parts: list[bytes]) -> tuple[bytes, tuple[object, ...], bool]:
        tracker = ReplyTracker(capabilities)
        tracker.begin(command)
        out = b""
        try:
            for part in parts:
                if tracker.done:
                    break
                out += tracker.feed(part)
        except PacketError:
            return out, (), True
        known = (
            tracker.done,
            tracker.status,
            tracker.warnings,
            tracker.insert_id,
            tracker.affected_rows,
            tracker.error,
        )
        return out, known, False

    whole, known, failed = track([reply])
    for seed in (1, 2, 3):
        out, known_too, failed_too = track(pieces(reply, seed))
        if failed or failed_too:
            continue  # where in the stream it fails may differ; nothing after it counts
        assert known == known_too, (command, reply)
        if not known[0]:
            # Of an unfinished reply as much may be passed on as has been understood.
            assert whole.startswith(out) or out.startswith(whole), (command, reply)
        elif len(out) <= len(whole):
            assert whole.startswith(out), (command, reply)


def result_reader(data: bytes) -> None:
    """The gateway's own questions: rows, however they arrive."""

    def read(parts: list[bytes]) -> object:
        reader = ResultReader(limit=1 << 20)
        try:
            for part in parts:
                if reader.done:
                    break
                reader.feed(part)
        except PacketError:
            return None
        return (reader.done, reader.columns, reader.rows, reader.status, reader.warnings, reader.error)

    whole = read([data])
    for seed in (1, 2):
        chunked = read(pieces(data, seed))
        assert whole is None or chunked is None or whole == chunked
    with contextlib.suppress(PacketError):
        Prelude(2).feed(data)


def classifier(data: bytes) -> None:
    """Any text has a class, and the caches give the one that a full reading gives."""
    if not data:
        return
    reading, sql = READINGS[data[0] % len(READINGS)], data[1:]
    shared = Classifier()
    full, _ = classify_text(sql, reading)
    assert shared.classify(sql, reading) == full
    assert shared.classify(sql, reading) == full
    other, _ = classify_text(sql + b" ", reading)
    assert Kind.READ not in (full.kind, other.kind) or full.kind is other.kind or full.pin is None


def long_texts(data: bytes) -> None:
    """A text without its literals is no more of a read, and pins no less, than with them."""
    if not data:
        return
    reading, sql = READINGS[data[0] % len(READINGS)], data[1:]
    full, _ = classify_text(sql, reading)
    shortened = shorten(sql, reading, kept_bytes=0)
    seen = unread(sql, reading)
    assert seen.kind is not Kind.READ
    assert seen.multi or not full.multi or seen.pin is not None
    if shortened is not None:
        short = as_shortened(classify_short(shortened, reading)[0])
        assert short.pin is not None or full.pin is None or full.pin is PinCause.UNPROVEN
        assert short.multi or not full.multi or short.pin is not None
        if short.kind is Kind.READ:
            assert full.kind is Kind.READ or (full.kind is Kind.UNKNOWN and full.pin in (None, PinCause.UNPROVEN))
    read_body(sql.decode("utf-8", "surrogateescape"), reading)
    local_files(sql, reading)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "parsers": parsers,
    "packet_reader": packet_reader,
    "client_handshake": client_handshake,
    "reply_tracker": reply_tracker,
    "result_reader": result_reader,
    "classifier": classifier,
    "long_texts": long_texts,
    **PEER_TARGETS,
}

_NONCE: Final = b"abcdefghijklmnopqrst"
_GREETING: Final = Greeting("9.7.0", 1, _NONCE, CAPABILITIES, plugin=CACHING_SHA2_PASSWORD).encode()
_RESULT: Final = answers.resultset(["a", "b"], [["1", None], ["x", "2"]], capabilities=CAPABILITIES, status=2)
_OLD_RESULT: Final = answers.resultset(["a"], [["1"]], capabilities=0, status=10)
SAMPLES: Final[dict[str, list[bytes]]] = {
    "parsers": [
        _GREETING,
        HandshakeResponse(
            "app", b"x" * 32, CAPABILITIES, "shop", CACHING_SHA2_PASSWORD, attributes={"a": "b"}
        ).encode(),
        AuthSwitchRequest(CACHING_SHA2_PASSWORD, _NONCE).encode(),
        encode_ok(0, OkPacket(1, 2, 2, 0, b"info", b"\x01\x05\x04shop")),
        b"\xff\x15\x04#28000Access denied",
    ],
    "packet_reader": [packet(0, b"\x03SELECT 1") * 2, packet(0, b"")],
    "client_handshake": [packet(0, _GREETING) + packet(2, b"\x01\x03") + packet(3, b"\0\0\0\x02\0\0\0")],
    "reply_tracker": [
        b"\0\1" + _RESULT,
        b"\0\0" + _OLD_RESULT,
        b"\1\1" + packet(1, b"\0" + bytes(11)),
        b"\2\1" + _RESULT,
    ],
    "result_reader": [_RESULT, _OLD_RESULT],
    "classifier": [
        b"\0SELECT a FROM t WHERE b = 'x' -- y",
        b'\2SELECT "a" FROM t /*! , 2 */',
        b"\1INSERT INTO t VALUES (1)",
    ],
    "long_texts": [
        b"\0SELECT a FROM t WHERE b IN (1,2,3,4) AND c = 'x' -- y",
        b"\1INSERT INTO t VALUES (1,'x',NULL),(2,_binary 'y',-1.5e3),(NOW(),x'4a',0x4a) ON DUPLICATE KEY UPDATE a=b",
        b"\2SELECT \"a\" FROM t; SET @a := f(1), b = 'c';",
        b"\1BEGIN DECLARE a INT; SET a = 1; IF a THEN SELECT 1 INTO a; END IF; END",
        b"\0LOAD DATA LOCAL INFILE 'a' INTO TABLE t (a, @b) SET c = @b",
    ],
    **PEER_SAMPLES,
}
"""What a run begins with, beside the seeds."""
