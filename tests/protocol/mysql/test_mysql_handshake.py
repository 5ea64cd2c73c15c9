"""Log-in: the two roles against each other, every way in and out, and what each message looks like on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha1

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_users import KnownUsers
from pymysql._auth import scramble_caching_sha2, scramble_native_password

from gateway.errors import BackendRefused
from gateway.protocol.mysql import answers, auth
from gateway.protocol.mysql.auth import Known, PasswordKey, Sha1
from gateway.protocol.mysql.client_handshake import ClientHandshake
from gateway.protocol.mysql.constants import CACHING_SHA2_PASSWORD, NATIVE_PASSWORD, Capability
from gateway.protocol.mysql.greeting import (
    FAST_AUTH_OK,
    FULL_AUTH,
    AuthSwitchRequest,
    Greeting,
    HandshakeResponse,
)
from gateway.protocol.mysql.handshake import ClientEvent, Connected, Denied, LoggedIn, Named, Send
from gateway.protocol.mysql.packets import BEFORE_LOGIN_LIMIT, PacketError, packet
from gateway.protocol.mysql.server_handshake import ServerHandshake

KEY = PasswordKey.generate()
NONCE = b"abcdefghijklmnopqrst"
USERS = {"app": "secret", "open": "", "ünïcode": "pässwörd"}
STORED = sha1(sha1(b"secret").digest()).digest()  # as mysql_native_password stores it
OFFERED = int(
    Capability.LONG_PASSWORD
    | Capability.FOUND_ROWS
    | Capability.CONNECT_WITH_DB
    | Capability.PROTOCOL_41
    | Capability.TRANSACTIONS
    | Capability.SECURE_CONNECTION
    | Capability.MULTI_RESULTS
    | Capability.PLUGIN_AUTH
    | Capability.CONNECT_ATTRS
    | Capability.PLUGIN_AUTH_LENENC_CLIENT_DATA
    | Capability.SESSION_TRACK
    | Capability.DEPRECATE_EOF
)
BASIC = int(Capability.PROTOCOL_41 | Capability.SECURE_CONNECTION | Capability.LONG_PASSWORD)


def server(plugin: str = CACHING_SHA2_PASSWORD, users: Mapping[str, str | Known] = USERS) -> KnownUsers:
    return KnownUsers(
        users,
        connection_id=0x80000007,
        server_version="9.7.0",
        capabilities=OFFERED,
        host="192.0.2.1",
        key=KEY,
        plugin=plugin,
        nonce=NONCE,
    )


def client(user: str, password: str, database: str | None = None) -> ClientHandshake:
    return ClientHandshake(
        user=user,
        password=password,
        capabilities=OFFERED,
        database=database,
        attributes={"_client_name": "gateway", "program_name": "test"},
    )


def converse(
    ours: KnownUsers, theirs: ClientHandshake, cut: int = 1 << 30
) -> tuple[list[LoggedIn | Denied], list[ClientEvent]]:
    """Carries bytes both ways, `cut` at a time, until a side has come to its end; the server's OK is added."""
    by_server: list[LoggedIn | Denied] = []
    by_client: list[ClientEvent] = []
    to_client, to_server = ours.greeting(), b""
    while to_client or to_server:
        for at in range(0, len(to_client), cut):
            by_client += theirs.feed(to_client[at : at + cut])
        to_server = b"".join(e.data for e in by_client if isinstance(e, Send))
        by_client = [e for e in by_client if not isinstance(e, Send)]
        to_client = b""
        for at in range(0, len(to_server), cut):
            events = ours.feed(to_server[at : at + cut])
            by_server += [e for e in events if not isinstance(e, Send)]
            for event in events:
                to_client += answers.ok(event.sequence) if isinstance(event, LoggedIn) else event.data
        to_server = b""
    return by_server, by_client


@pytest.mark.parametrize("cut", [1, 7, 1 << 30])
@pytest.mark.parametrize("plugin", [CACHING_SHA2_PASSWORD, NATIVE_PASSWORD])
@pytest.mark.parametrize("user", list(USERS))
def test_the_right_password_logs_in(user: str, plugin: str, cut: int) -> None:
    by_server, by_client = converse(server(plugin), client(user, USERS[user], "shop"), cut)
    assert len(by_server) == len(by_client) == 1
    logged_in, connected = by_server[0], by_client[0]
    assert isinstance(logged_in, LoggedIn)
    assert isinstance(connected, Connected)
    assert (logged_in.user, logged_in.database, logged_in.leftover) == (user, "shop", b"")
    assert logged_in.attributes == {"_client_name": "gateway", "program_name": "test"}
    assert logged_in.capabilities == connected.capabilities
    assert logged_in.capabilities & Capability.DEPRECATE_EOF
    assert connected.greeting.connection_id == 0x80000007
    assert connected.greeting.server_version == "9.7.0"
    assert connected.status == 2


@pytest.mark.parametrize("plugin", [CACHING_SHA2_PASSWORD, NATIVE_PASSWORD])
@pytest.mark.parametrize(
    ("user", "password", "used"),
    [("app", "wrong", "YES"), ("app", "", "NO"), ("nobody", "x", "YES"), ("nobody", "", "NO"), ("open", "x", "YES")],
)
def test_a_wrong_password_and_an_unknown_user_are_denied_alike(
    user: str, password: str, used: str, plugin: str
) -> None:
    ours = server(plugin)
    sent = client(user, password).feed(ours.greeting())
    assert isinstance(sent[0], Send)
    [denied] = ours.feed(sent[0].data)
    assert isinstance(denied, Denied)
    message = f"Access denied for user '{user}'@'192.0.2.1' (using password: {used})"
    assert denied.data == packet(2, b"\xff\x15\x04#28000" + message.encode())
    assert (denied.error.code, denied.error.sqlstate, str(denied.error)) == (1045, "28000", message)
    assert denied.user == user
    assert ours.feed(packet(0, b"\x03DROP TABLE t")) == []


def test_the_client_role_reports_what_the_server_refused() -> None:
    with pytest.raises(BackendRefused, match=r"Access denied for user 'app'@'192\.0\.2\.1'") as caught:
        converse(server(), client("app", "wrong"))
    assert (caught.value.code, caught.value.sqlstate) == (1045, "28000")


def response(answer: bytes, plugin: str | None, capabilities: int = OFFERED, user: str = "app") -> bytes:
    flags = capabilities & ~int(Capability.CONNECT_WITH_DB | Capability.CONNECT_ATTRS)
    return packet(1, HandshakeResponse(user=user, answer=answer, capabilities=flags, plugin=plugin).encode())


@pytest.mark.parametrize("plugin", [CACHING_SHA2_PASSWORD, NATIVE_PASSWORD])
def test_a_client_with_either_plugin_needs_no_switch(plugin: str) -> None:
    scramble = scramble_native_password if plugin == NATIVE_PASSWORD else scramble_caching_sha2
    events = server(NATIVE_PASSWORD).feed(response(scramble(b"secret", NONCE), plugin))
    assert isinstance(events[-1], LoggedIn)


def test_a_client_with_another_plugin_is_switched_to_ours_with_a_new_nonce() -> None:
    ours = server(NATIVE_PASSWORD)
    [switch] = ours.feed(response(b"?", "dialog"))
    assert isinstance(switch, Send)
    assert switch.data[3] == 2
    request = AuthSwitchRequest.parse(switch.data[4:])
    assert request.plugin == NATIVE_PASSWORD
    assert request.nonce != NONCE
    assert len(request.nonce) == 20
    [logged_in] = ours.feed(packet(3, scramble_native_password(b"secret", request.nonce)))
    assert isinstance(logged_in, LoggedIn)
    assert logged_in.sequence == 4


@pytest.mark.parametrize("sent", [b"", b"x" * 32])
@pytest.mark.parametrize(("user", "password"), [("app", b"secret"), ("open", b"")])
def test_a_client_that_lacks_the_greeting_s_plugin_is_asked_again_with_its_own(
    user: str, password: bytes, sent: bytes
) -> None:
    ours = server(NATIVE_PASSWORD)
    [switch] = ours.feed(response(sent, CACHING_SHA2_PASSWORD, user=user))
    assert isinstance(switch, Send)
    request = AuthSwitchRequest.parse(switch.data[4:])
    assert request.plugin == CACHING_SHA2_PASSWORD
    events = ours.feed(packet(3, scramble_caching_sha2(password, request.nonce)))
    assert isinstance(events[-1], LoggedIn)


def full_path(ours: KnownUsers, password: bytes, nonce: bytes, sequence: int) -> Send | LoggedIn | Denied:
    [key] = ours.feed(packet(sequence, b"\x02"))
    assert isinstance(key, Send)
    [event] = ours.feed(packet(sequence + 2, auth.encrypt(password, nonce, KEY.public_pem)))
    return event


@pytest.mark.parametrize("password", [b"secret", b"new"])
def test_each_of_two_passwords_logs_in_while_one_takes_the_place_of_the_other(password: bytes) -> None:
    users = {"app": Known(("secret", "new"))}
    for plugin, scramble in (
        (NATIVE_PASSWORD, scramble_native_password),
        (CACHING_SHA2_PASSWORD, scramble_caching_sha2),
    ):
        events = server(plugin, users).feed(response(scramble(password, NONCE), plugin))
        assert isinstance(events[-1], LoggedIn)
        assert events[-1].password == password.decode()


def test_a_stored_hash_verifies_native_password_and_yields_what_logs_in_elsewhere() -> None:
    users = {"app": Known(stored=STORED)}
    [logged_in] = server(NATIVE_PASSWORD, users).feed(
        response(scramble_native_password(b"secret", NONCE), NATIVE_PASSWORD)
    )
    assert isinstance(logged_in, LoggedIn)
    assert logged_in.password == Sha1(sha1(b"secret").digest())
    onward = ClientHandshake(user="app", password=logged_in.password, capabilities=OFFERED)
    _, by_client = converse(server(CACHING_SHA2_PASSWORD), onward)
    assert isinstance(by_client[0], Connected)


@pytest.mark.parametrize("answer", [b"", b"x" * 20, b"x" * 32, STORED, scramble_native_password(b"wrong", NONCE)])
def test_a_stored_hash_is_proved_by_nothing_else(answer: bytes) -> None:
    users = {"app": Known(stored=STORED)}
    [denied] = server(NATIVE_PASSWORD, users).feed(response(answer, NATIVE_PASSWORD))
    assert isinstance(denied, Denied)


@pytest.mark.parametrize(("password", "enters"), [(b"secret", True), (b"wrong", False)])
def test_a_client_without_native_password_is_verified_by_the_stored_hash_all_the_same(
    password: bytes, enters: bool
) -> None:
    ours = server(NATIVE_PASSWORD, {"app": Known(stored=STORED)})
    [switch] = ours.feed(response(b"", CACHING_SHA2_PASSWORD))
    assert isinstance(switch, Send)
    nonce = AuthSwitchRequest.parse(switch.data[4:]).nonce
    assert ours.feed(packet(3, scramble_caching_sha2(password, nonce))) == [Send(packet(4, FULL_AUTH))]
    event = full_path(ours, password, nonce, 5)
    assert isinstance(event, LoggedIn if enters else Denied)
    assert not isinstance(event, LoggedIn) or event.password == "secret"


def test_a_password_that_has_yet_to_be_learnt_is_asked_for() -> None:
    ours = server(CACHING_SHA2_PASSWORD, {"app": Known(learns=True)})
    scramble = scramble_caching_sha2(b"never seen", NONCE)
    assert ours.feed(response(scramble, CACHING_SHA2_PASSWORD)) == [Send(packet(2, FULL_AUTH))]
    event = full_path(ours, b"never seen", NONCE, 3)
    assert isinstance(event, LoggedIn)
    assert event.password == "never seen"


def test_a_client_of_native_password_is_switched_where_the_password_itself_is_needed() -> None:
    ours = server(NATIVE_PASSWORD, {"app": Known(learns=True)})
    [switch] = ours.feed(response(scramble_native_password(b"secret", NONCE), NATIVE_PASSWORD))
    assert isinstance(switch, Send)
    request = AuthSwitchRequest.parse(switch.data[4:])
    assert request.plugin == CACHING_SHA2_PASSWORD
    ours.feed(packet(3, scramble_caching_sha2(b"secret", request.nonce)))
    event = full_path(ours, b"secret", request.nonce, 5)
    assert isinstance(event, LoggedIn)


@pytest.mark.parametrize("plugin", [CACHING_SHA2_PASSWORD, NATIVE_PASSWORD])
def test_no_password_is_never_learnt(plugin: str) -> None:
    [denied] = server(plugin, {"app": Known(learns=True)}).feed(response(b"", plugin))
    assert isinstance(denied, Denied)
    ours = server(CACHING_SHA2_PASSWORD, {"app": Known(learns=True)})
    ours.feed(response(b"x" * 32, CACHING_SHA2_PASSWORD))
    assert isinstance(full_path(ours, b"", NONCE, 3), Denied)


def test_a_password_once_learnt_is_proved_by_the_short_answer() -> None:
    ours = server(CACHING_SHA2_PASSWORD, {"app": Known(("secret",), learns=True)})
    events = ours.feed(response(scramble_caching_sha2(b"secret", NONCE), CACHING_SHA2_PASSWORD))
    assert events[0] == Send(packet(2, FAST_AUTH_OK))
    assert isinstance(events[1], LoggedIn)
    ours = server(CACHING_SHA2_PASSWORD, {"app": Known(("secret",), learns=True)})
    events = ours.feed(response(scramble_caching_sha2(b"changed", NONCE), CACHING_SHA2_PASSWORD))
    assert events == [Send(packet(2, FULL_AUTH))]


def test_the_packets_of_a_log_in_are_limited_together() -> None:
    ours = server(NATIVE_PASSWORD)
    sent = response(b"?", "x" * (BEFORE_LOGIN_LIMIT // 2))
    [switch] = ours.feed(sent)
    assert isinstance(switch, Send)
    [denied] = ours.feed(packet(3, bytes(BEFORE_LOGIN_LIMIT // 2)))
    assert isinstance(denied, Denied)
    assert denied.error.code == 1153


def test_the_client_role_follows_a_switch() -> None:
    theirs = client("app", "secret")
    theirs.feed(packet(0, Greeting("9.7.0", 1, NONCE, OFFERED, plugin="sha256_password").encode()))
    nonce = NONCE[::-1]
    [sent] = theirs.feed(packet(2, AuthSwitchRequest(CACHING_SHA2_PASSWORD, nonce).encode()))
    assert sent == Send(packet(3, scramble_caching_sha2(b"secret", nonce)))
    assert theirs.feed(packet(4, FAST_AUTH_OK)) == []
    [connected] = theirs.feed(answers.ok(5) + b"more")
    assert isinstance(connected, Connected)
    assert connected.leftover == b"more"


def test_a_client_without_plugins_is_taken_to_answer_by_native_password() -> None:
    [logged_in] = server().feed(response(scramble_native_password(b"secret", NONCE), None, BASIC))
    assert isinstance(logged_in, LoggedIn)
    assert logged_in.sequence == 2


def test_the_full_path_by_rsa_between_both_roles() -> None:
    ours, theirs = server(), client("app", "secret")
    theirs.feed(ours.greeting())
    # The client's own answer is lost on the way; the server sees one that was made for another plugin.
    [full] = ours.feed(response(b"x" * 20, CACHING_SHA2_PASSWORD))
    assert full == Send(packet(2, FULL_AUTH))
    [asked] = theirs.feed(packet(2, FULL_AUTH))
    assert asked == Send(packet(3, b"\x02"))
    [key] = ours.feed(asked.data)
    assert isinstance(key, Send)
    assert key.data[4:].startswith(b"\x01-----BEGIN PUBLIC KEY-----")
    [encrypted] = theirs.feed(key.data)
    assert isinstance(encrypted, Send)
    assert len(encrypted.data) == 4 + KEY.size
    [logged_in] = ours.feed(encrypted.data)
    assert isinstance(logged_in, LoggedIn)
    assert logged_in.sequence == 6
    [connected] = theirs.feed(answers.ok(6))
    assert isinstance(connected, Connected)


@pytest.mark.parametrize("user", ["app", "nobody"])
@pytest.mark.parametrize("made_with", ["wrong password", "wrong nonce", "wrong key", "no key"])
def test_the_full_path_denies_what_does_not_hold_the_password(user: str, made_with: str) -> None:
    ours = server()
    ours.feed(response(b"x", CACHING_SHA2_PASSWORD, user=user))
    password = b"wrong" if made_with == "wrong password" else b"secret"
    nonce = NONCE[::-1] if made_with == "wrong nonce" else NONCE
    key = PasswordKey.generate() if made_with == "wrong key" else KEY
    encrypted = b"secret\0" if made_with == "no key" else auth.encrypt(password, nonce, key.public_pem)
    [denied] = ours.feed(packet(3, encrypted))
    assert isinstance(denied, Denied)
    assert str(denied.error) == f"Access denied for user '{user}'@'192.0.2.1' (using password: YES)"


def test_a_single_nul_means_no_password() -> None:
    [logged_in] = server().feed(response(b"\0", CACHING_SHA2_PASSWORD, user="open"))
    assert isinstance(logged_in, LoggedIn)
    [denied] = server().feed(response(b"\0", CACHING_SHA2_PASSWORD))
    assert isinstance(denied, Denied)
    assert str(denied.error).endswith("(using password: NO)")


def test_a_client_before_41_is_told_so_in_its_own_form() -> None:
    [denied] = server().feed(packet(1, b"\x05\x00\x00\x00\x01app\x00"))
    assert isinstance(denied, Denied)
    assert denied.data.startswith(packet(2, b"\xff\xe3\x04" + str(denied.error).encode()))
    assert denied.error.code == 1251


def test_a_client_that_asks_for_tls_is_told_that_there_is_none() -> None:
    flags = OFFERED | Capability.SSL
    [denied] = server().feed(packet(1, int(flags).to_bytes(4, "little") + bytes(28)))
    assert isinstance(denied, Denied)
    assert (denied.error.code, denied.error.sqlstate) == (1043, "08S01")
    assert "TLS" in str(denied.error)


def test_what_comes_behind_the_log_in_is_handed_on_and_not_read() -> None:
    command = packet(0, b"\x03SELECT 1")
    for behind in (command, command + command[:6], command[:3]):
        events = server().feed(response(scramble_caching_sha2(b"secret", NONCE), CACHING_SHA2_PASSWORD) + behind)
        assert isinstance(events[-1], LoggedIn)
        assert events[-1].leftover == behind


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (packet(1, b""), 1835),
        (packet(1, b"\x00\x02"), 1835),
        (packet(0, b"\x03SELECT 1"), 1156),
        ((BEFORE_LOGIN_LIMIT + 1).to_bytes(3, "little") + b"\x01", 1153),
    ],
)
def test_garbage_is_answered_and_ends_the_handshake(data: bytes, code: int) -> None:
    ours = server()
    [denied] = ours.feed(data)
    assert isinstance(denied, Denied)
    assert denied.error.code == code
    assert ours.feed(response(scramble_caching_sha2(b"secret", NONCE), CACHING_SHA2_PASSWORD)) == []


def test_a_server_that_is_full_refuses_with_its_first_packet() -> None:
    with pytest.raises(BackendRefused, match="Too many connections") as caught:
        client("app", "secret").feed(answers.err(0, 1040, "Too many connections"))
    assert caught.value.code == 1040


@pytest.mark.parametrize("plugin", ["mysql_clear_password", "mysql_old_password", "auth_gssapi_client"])
def test_the_client_role_never_answers_a_plugin_it_does_not_know(plugin: str) -> None:
    theirs = client("app", "secret")
    theirs.feed(server().greeting())
    with pytest.raises(BackendRefused, match=plugin):
        theirs.feed(packet(2, AuthSwitchRequest(plugin, NONCE).encode()))


def hashed() -> ClientHandshake:
    theirs = ClientHandshake(user="app", password=Sha1(bytes(20)), capabilities=OFFERED)
    theirs.feed(server().greeting())
    return theirs


def test_the_client_role_with_a_hash_alone_answers_no_other_plugin() -> None:
    with pytest.raises(BackendRefused, match="cannot log in as 'app': the account uses caching_sha2_password"):
        hashed().feed(packet(2, AuthSwitchRequest(CACHING_SHA2_PASSWORD, NONCE).encode()))
    theirs = hashed()
    theirs.feed(packet(2, AuthSwitchRequest("sha256_password", NONCE).encode()))
    with pytest.raises(BackendRefused, match="cannot log in as 'app': the server asks for the password itself"):
        theirs.feed(packet(4, b"\x01" + KEY.public_pem))


@pytest.mark.parametrize("key", [b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_a_key_that_cannot_be_used_is_an_error(key: bytes) -> None:
    theirs = client("app", "secret")
    theirs.feed(server().greeting())
    theirs.feed(packet(2, FULL_AUTH))
    with pytest.raises(PacketError):
        theirs.feed(packet(4, b"\x01" + key))


def test_mariadbs_extended_capabilities_travel_in_the_reserved_bytes() -> None:
    extended = int(Capability.MARIADB_EXTENDED_METADATA)
    offered = OFFERED & ~int(Capability.LONG_PASSWORD) | extended
    greeting = Greeting("11.4.2-MariaDB", 3, NONCE, offered, plugin=NATIVE_PASSWORD)
    assert Greeting.parse(greeting.encode()).capabilities == offered
    theirs = ClientHandshake(user="app", password="secret", capabilities=OFFERED | extended)
    [sent] = theirs.feed(packet(0, greeting.encode()))
    assert isinstance(sent, Send)
    flags = HandshakeResponse.parse(sent.data[4:]).capabilities
    assert flags & extended
    assert not flags & Capability.LONG_PASSWORD


def test_the_greeting_of_a_real_server_is_understood() -> None:
    recorded = bytes.fromhex(  # MySQL 5.5.2-m2, from the manual's page on HandshakeV10
        "0a352e352e322d6d3200030000006476486f4e42724400fff7080200"
        "0f801500000000000000000000702c3a5d25312a255c212a4600"
        "6d7973716c5f6e61746976655f70617373776f726400"
    )
    greeting = Greeting.parse(recorded[:-22])
    assert greeting.server_version == "5.5.2-m2"
    assert greeting.connection_id == 3
    assert greeting.nonce == bytes.fromhex("6476486f4e427244") + bytes.fromhex("702c3a5d25312a255c212a46")


names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=60)
@given(
    names, st.binary(max_size=300), names, st.dictionaries(names, names, max_size=5), st.integers(0, 255), st.booleans()
)
def test_a_response_is_read_back(
    user: str, answer: bytes, database: str, attributes: dict[str, str], collation: int, lenenc: bool
) -> None:
    flags = OFFERED
    if not lenenc:
        flags &= ~int(Capability.PLUGIN_AUTH_LENENC_CLIENT_DATA)
        answer = answer[:255]
    written = HandshakeResponse(
        user=user,
        answer=answer,
        capabilities=flags,
        database=database or None,
        plugin=NATIVE_PASSWORD,
        collation=collation,
        attributes=attributes,
    )
    assert HandshakeResponse.parse(written.encode()) == written


def test_a_nonce_is_fresh_and_has_neither_nul_nor_dollar() -> None:
    nonces = {auth.new_nonce() for _ in range(500)}
    assert len(nonces) == 500
    assert all(len(nonce) == 20 for nonce in nonces)
    assert not set(b"".join(nonces)) & {0, ord("$"), *range(128, 256)}


def test_the_nonce_of_ed25519_is_signed_whole_and_of_others_without_its_nul() -> None:
    """Of 32 bytes of any value: with the last one cut off when it was NUL, one log-in of 256 would fail."""
    nonce = bytes(range(31, -1, -1))
    request = AuthSwitchRequest("client_ed25519", nonce)
    assert AuthSwitchRequest.parse(request.encode()) == request
    assert len(request.encode()) == 1 + len("client_ed25519") + 1 + 32
    signed = auth.answer("client_ed25519", "secret", nonce)
    assert len(signed) == 64
    assert signed != auth.answer("client_ed25519", "secret", nonce[:-1] + b"\x01")
    assert AuthSwitchRequest.parse(b"\xfemysql_native_password\0" + b"a" * 20 + b"\0").nonce == b"a" * 20


def test_what_stands_in_for_an_unknown_user_s_password_proves_nothing() -> None:
    for plugin in (CACHING_SHA2_PASSWORD, NATIVE_PASSWORD):
        answered = auth.answer(plugin, auth._NOBODY, NONCE)
        assert Known().proved_by(plugin, NONCE, answered) is None
        assert Known((auth._NOBODY + "x",)).proved_by(plugin, NONCE, answered) is None
    assert Known().holds(auth._NOBODY.encode()) is None


def test_no_password_is_none_even_where_its_hash_is_stored() -> None:
    assert Known(stored=sha1(sha1(b"").digest()).digest()).holds(b"") is None


@pytest.mark.parametrize("plugin", [CACHING_SHA2_PASSWORD, NATIVE_PASSWORD])
def test_a_change_of_users_is_proved_by_a_fresh_nonce_only(plugin: str) -> None:
    ours = ServerHandshake(
        connection_id=0, server_version="9.7.0", capabilities=0, host="192.0.2.1", key=KEY, nonce=NONCE
    )
    answered = auth.answer(plugin, "secret", NONCE)  # right, and heard before
    message = b"\x11app\0" + bytes([len(answered)]) + answered + b"shop\0" + b"\x2d\0" + plugin.encode() + b"\0"
    capabilities = BASIC | int(Capability.PLUGIN_AUTH)
    assert ours.change_user(packet(0, message), capabilities) == [Named("app")]
    [switch] = ours.identify(Known(("secret",)))
    assert isinstance(switch, Send)
    request = AuthSwitchRequest.parse(switch.data[4:])
    assert request.plugin == plugin
    assert request.nonce != NONCE
    [denied] = ours.feed(packet(2, answered))
    assert isinstance(denied, Denied)
