"""TLS in the log-in: when it begins, what belongs to it, and what is sent in the clear only because of it."""

from __future__ import annotations

import pytest
from known_users import KnownUsers

from gateway.errors import BackendRefused
from gateway.protocol.mysql import answers
from gateway.protocol.mysql.auth import Known, PasswordKey, answer
from gateway.protocol.mysql.client_handshake import ClientHandshake
from gateway.protocol.mysql.constants import CACHING_SHA2_PASSWORD, NATIVE_PASSWORD, SHA256_PASSWORD, Capability
from gateway.protocol.mysql.greeting import (
    FULL_AUTH,
    PUBLIC_KEY_REQUEST,
    AuthSwitchRequest,
    Greeting,
    HandshakeResponse,
    is_ssl_request,
)
from gateway.protocol.mysql.handshake import Connected, Denied, LoggedIn, Send, StartTls
from gateway.protocol.mysql.packets import PacketError, packet

KEY = PasswordKey.generate()
NONCE = b"abcdefghijklmnopqrst"
WANTED = int(
    Capability.PROTOCOL_41
    | Capability.SECURE_CONNECTION
    | Capability.LONG_PASSWORD
    | Capability.PLUGIN_AUTH
    | Capability.PLUGIN_AUTH_LENENC_CLIENT_DATA
)
SSL = int(Capability.SSL)
CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(506)  # as MySQL packet: 66,326 bytes long


def server(*, tls: bool = True, secure: bool = False, must_be_secure: bool = False, learns: bool = True) -> KnownUsers:
    return KnownUsers(
        {"app": Known(("secret",), learns=learns)},
        connection_id=7,
        server_version="9.7.0",
        capabilities=WANTED,
        host="192.0.2.1",
        key=KEY,
        nonce=NONCE,
        tls=tls,
        secure=secure,
        must_be_secure=must_be_secure,
    )


def client(*, tls: bool = True, secure: bool = False) -> ClientHandshake:
    return ClientHandshake(user="app", password="secret", capabilities=WANTED, tls=tls, secure=secure)


def response(sequence: int, answered: bytes, plugin: str = CACHING_SHA2_PASSWORD) -> bytes:
    return packet(sequence, HandshakeResponse("app", answered, WANTED | SSL, plugin=plugin).encode())


REQUEST = packet(1, HandshakeResponse("", b"", WANTED | SSL).encode_ssl_request())
RIGHT = answer(CACHING_SHA2_PASSWORD, "secret", NONCE)


def greeting(capabilities: int = WANTED | SSL) -> bytes:
    return packet(0, Greeting("9.7.0", 7, NONCE, capabilities, plugin=CACHING_SHA2_PASSWORD).encode())


# ---------------------------------------------------------------- server role


@pytest.mark.parametrize("offered", [True, False])
def test_tls_is_offered_where_there_is_some(offered: bool) -> None:
    shown = Greeting.parse(server(tls=offered).greeting()[4:])
    assert bool(shown.capabilities & SSL) is offered


@pytest.mark.parametrize("behind", [b"", CLIENT_HELLO])
@pytest.mark.parametrize("cut", [1, 20, 36, 40, 10_000])
def test_what_comes_behind_the_request_belongs_to_tls(behind: bytes, cut: int) -> None:
    ours = server()
    data = REQUEST + behind
    events: list[object] = []
    at = 0
    while not events and at < len(data):
        events += ours.step(data[at : at + cut])
        at += cut
    assert events == [StartTls(data[36:at])]
    (_, logged_in) = ours.step(response(2, RIGHT))
    assert isinstance(logged_in, LoggedIn)
    assert logged_in.sequence == 4, "OK after the request, the response and FAST_AUTH_OK"


def test_a_log_in_that_was_put_in_plain_behind_the_request_is_none() -> None:
    """Else somebody in the middle logs in, or has a command run, on a connection that becomes another's."""
    injected = response(2, RIGHT) + packet(0, b"\x03DROP TABLE t")
    ours = server()
    assert ours.step(REQUEST + injected) == [StartTls(injected)]
    (_, logged_in) = ours.step(response(2, RIGHT))
    assert isinstance(logged_in, LoggedIn)
    assert logged_in.leftover == b""


def test_a_response_of_the_length_of_a_request_is_a_response() -> None:
    """36 bytes, without the flag of TLS, and a command behind it: nothing of it is TLS."""
    body = HandshakeResponse("", b"", WANTED & ~int(Capability.PLUGIN_AUTH)).encode()[:32]
    (denied,) = server().step(packet(1, body) + packet(0, b"\x03SELECT 1"))
    assert isinstance(denied, Denied)
    assert denied.error.code in (1045, 1835)


def test_tls_that_is_not_offered_is_refused() -> None:
    (denied,) = server(tls=False).step(REQUEST + CLIENT_HELLO)
    assert isinstance(denied, Denied)
    assert denied.error.code == 1043


def test_tls_within_tls_is_refused() -> None:
    ours = server()
    ours.step(REQUEST)
    (denied,) = ours.step(REQUEST[:3] + b"\x02" + REQUEST[4:])
    assert isinstance(denied, Denied)
    assert denied.error.code == 1043


def test_a_client_that_does_not_switch_is_refused_where_it_must() -> None:
    (denied,) = server(must_be_secure=True).step(response(1, RIGHT))
    assert isinstance(denied, Denied)
    assert denied.error.code == 3159
    assert denied.data == answers.err(
        2, 3159, "Connections using insecure transport are prohibited while --require_secure_transport=ON."
    )


def test_tls_and_a_unix_socket_are_secure_enough() -> None:
    assert isinstance(server(must_be_secure=True, secure=True).step(response(1, RIGHT))[-1], LoggedIn)
    ours = server(must_be_secure=True)
    ours.step(REQUEST)
    assert isinstance(ours.step(response(2, RIGHT))[-1], LoggedIn)


@pytest.mark.parametrize(("clear", "accepted"), [(b"secret\0", True), (b"secret", False), (b"\0", False), (b"", False)])
def test_the_full_path_within_tls_takes_the_password_as_it_is(clear: bytes, accepted: bool) -> None:
    ours = server()
    ours.step(REQUEST)
    assert ours.step(response(2, b"x" * 32)) == [Send(packet(3, FULL_AUTH))]
    (verdict,) = ours.step(packet(4, clear))
    assert isinstance(verdict, LoggedIn if accepted else Denied)


def test_a_client_that_asks_for_the_key_within_tls_is_understood() -> None:
    ours = server(secure=True)
    ours.step(response(1, b"x" * 32))
    (sent,) = ours.step(packet(3, PUBLIC_KEY_REQUEST))
    assert isinstance(sent, Send)
    assert KEY.public_pem in sent.data
    theirs = client(tls=False)
    theirs.feed(greeting())
    theirs.feed(packet(2, FULL_AUTH))
    (encrypted,) = theirs.feed(packet(4, b"\x01" + KEY.public_pem))
    assert isinstance(encrypted, Send)
    assert isinstance(ours.step(encrypted.data)[-1], LoggedIn)


def test_the_full_path_without_tls_takes_no_password_as_it_is() -> None:
    ours = server()
    ours.step(response(1, b"x" * 32))
    (denied,) = ours.step(packet(3, b"secret\0"))
    assert isinstance(denied, Denied)
    assert denied.error.code == 1045


# ---------------------------------------------------------------- client role


def sent_by(events: list[object]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, Send))


def test_nothing_of_the_user_is_sent_before_tls() -> None:
    theirs = client()
    events = theirs.feed(greeting())
    request, start = events
    assert isinstance(request, Send)
    assert start == StartTls()
    assert is_ssl_request(request.data[4:])
    (answered,) = theirs.secured()
    assert isinstance(answered, Send)
    assert answered.data[3] == 2
    parsed = HandshakeResponse.parse(answered.data[4:])
    assert parsed.user == "app"
    assert parsed.capabilities & SSL
    (connected,) = theirs.feed(packet(3, answers.ok(0)[4:]))
    assert isinstance(connected, Connected)


def test_a_server_without_tls_is_refused_and_told_nothing() -> None:
    with pytest.raises(BackendRefused, match=r"offers no TLS, which backend_tls asks for"):
        client().feed(greeting(WANTED))


def test_a_server_that_sends_ahead_of_tls_is_refused() -> None:
    for behind in (packet(1, answers.ok(0)[4:]), b"\x07"):
        with pytest.raises(PacketError, match="before TLS"):
            client().feed(greeting() + behind)


def asked_for_the_password(plugin: str, theirs: ClientHandshake, sequence: int) -> bytes:
    """What the client role answers when the server wants the password itself."""
    if plugin == CACHING_SHA2_PASSWORD:
        asked = FULL_AUTH
    else:
        asked = AuthSwitchRequest(plugin, NONCE).encode()
    return sent_by([*theirs.feed(packet(sequence, asked))])


@pytest.mark.parametrize("plugin", [CACHING_SHA2_PASSWORD, SHA256_PASSWORD, "mysql_clear_password"])
@pytest.mark.parametrize("how", ["tls", "unix"])
def test_the_password_itself_is_sent_on_a_secure_connection(how: str, plugin: str) -> None:
    theirs = client(tls=how == "tls", secure=how == "unix")
    theirs.feed(greeting())
    sequence = 2
    if how == "tls":
        theirs.secured()
        sequence = 3
    assert asked_for_the_password(plugin, theirs, sequence) == packet(sequence + 1, b"secret\0")


@pytest.mark.parametrize("plugin", [CACHING_SHA2_PASSWORD, SHA256_PASSWORD])
def test_the_password_itself_is_not_sent_in_plain(plugin: str) -> None:
    theirs = client(tls=False)
    theirs.feed(greeting())
    assert len(asked_for_the_password(plugin, theirs, 2)) == 5, "it asks for the key"


def test_a_password_in_the_clear_is_refused_in_plain() -> None:
    theirs = client(tls=False)
    theirs.feed(greeting())
    with pytest.raises(BackendRefused, match="through TLS only"):
        asked_for_the_password("mysql_clear_password", theirs, 2)


def test_the_fast_path_is_the_same_within_tls() -> None:
    ours, theirs = server(), client()
    to_server = sent_by([*theirs.feed(ours.greeting())])
    assert ours.step(to_server) == [StartTls()]
    events = ours.step(sent_by([*theirs.secured()]))
    assert isinstance(events[-1], LoggedIn)
    to_client = b"".join(event.data for event in events if isinstance(event, Send)) + answers.ok(events[-1].sequence)
    assert isinstance(theirs.feed(to_client)[-1], Connected)


def test_native_password_within_tls() -> None:
    ours = server()
    ours.step(REQUEST)
    (switch,) = ours.step(response(2, b"", "no_such_plugin"))
    assert isinstance(switch, Send)
    ours = server()
    ours.step(REQUEST)
    assert isinstance(ours.step(response(2, answer(NATIVE_PASSWORD, "secret", NONCE), NATIVE_PASSWORD))[-1], LoggedIn)
