"""Passwords on the wire: the answers to a nonce, their verification in constant time, and the RSA key of the full path.

The hashes themselves are PyMySQL's (`pymysql._auth`). Where the gateway knows a user's password it can verify both
plugins' short answers itself and never needs caching_sha2's full path for a client that answers the nonce; the full
path is there for those that cannot, and for passwords that the gateway has yet to learn.

mysql_native_password needs no password at all on the gateway's side: servers store SHA1(SHA1(password)); with that the
client's answer, SHA1(password) XOR SHA1(nonce + stored), is verified and yields SHA1(password), and with that in turn
the nonce of another server can be answered.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha1
from hmac import compare_digest
from importlib.util import find_spec
from typing import TypeAlias

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from pymysql._auth import ed25519_password, scramble_caching_sha2, scramble_native_password, sha2_rsa_encrypt

from gateway.protocol.mysql.constants import CACHING_SHA2_PASSWORD, ED25519, NATIVE_PASSWORD, SHA256_PASSWORD
from gateway.protocol.mysql.greeting import raw, text

NONCE_LENGTH = 20  # bytes; SCRAMBLE_LENGTH of both plugins. ed25519 signs 32 bytes.

_NONCE_ALPHABET = bytes(byte for byte in range(1, 128) if byte != ord("$"))
# 7 bits, no NUL (it ends the nonce in the packet), no "$" (it separates fields in caching_sha2's stored form): as
# servers make theirs (generate_user_salt in mysys/crypt_genhash_impl.cc).

_NOBODY = secrets.token_hex(16)  # stands in for an unknown user's password: the same work is done, nothing matches

RSA_BITS = 2048  # caching_sha2_password_auto_generate_rsa_keys makes keys of this size


class PluginError(Exception):
    """An authentication plugin that the gateway cannot answer; the text names it and says what to do."""


_NEEDS_PYNACL = "which needs PyNaCl in the gateway: pip install 'rw-gateway[ed25519]'"


def new_nonce() -> bytes:
    """Return 20 fresh random bytes for one log-in."""
    return bytes(secrets.choice(_NONCE_ALPHABET) for _ in range(NONCE_LENGTH))


def _answer_ed25519(password: bytes, nonce: bytes) -> bytes:
    try:
        return ed25519_password(password, nonce)
    except RuntimeError as error:  # PyMySQL says so where PyNaCl is missing
        raise PluginError(f"the account uses {ED25519}, {_NEEDS_PYNACL}") from error


_ANSWERS = {
    NATIVE_PASSWORD: scramble_native_password,
    CACHING_SHA2_PASSWORD: scramble_caching_sha2,
    ED25519: _answer_ed25519,
}


@dataclass(frozen=True, slots=True)
class Sha1:
    """SHA1(password), 20 bytes: all of a password that logging in by mysql_native_password takes."""

    digest: bytes = field(repr=False)


Password: TypeAlias = str | Sha1
"""What one can log in to a server with."""


def answer(plugin: str, password: Password, nonce: bytes) -> bytes:
    """Return what a client sends for `password` under `plugin` (b"" for an empty one). Raises PluginError."""
    if isinstance(password, Sha1):
        if plugin != NATIVE_PASSWORD:
            raise PluginError(
                f"the account uses {plugin}, and only what {NATIVE_PASSWORD} proves is known of its password"
            )
        return _xor(password.digest, sha1(nonce[:NONCE_LENGTH] + sha1(password.digest).digest()).digest())
    if not password:
        return b""
    function = _ANSWERS.get(plugin)
    if function is None:
        raise PluginError(
            f"the account uses the authentication plugin {plugin!r}, which the gateway does not answer: "
            f"use {CACHING_SHA2_PASSWORD} or {NATIVE_PASSWORD}"
        )
    return function(raw(password), nonce if plugin == ED25519 else nonce[:NONCE_LENGTH])


def obstacle(plugin: str) -> str | None:
    """Say, in words, why a password is not enough for the gateway to log in to an account of this plugin.

    None if it is enough, whatever the nonce.
    """
    if plugin in (SHA256_PASSWORD, CACHING_SHA2_PASSWORD, NATIVE_PASSWORD):
        return None
    if plugin == ED25519:
        return None if find_spec("nacl") is not None else f"it uses {ED25519}, {_NEEDS_PYNACL}"
    return (
        f"its authentication plugin {plugin} cannot be used through the gateway: "
        f"use {CACHING_SHA2_PASSWORD} or {NATIVE_PASSWORD}"
    )


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one user's password, so that a client's proof can be verified. `Known()`: there is no such user.

    `passwords` may be several while one takes the place of another. `stored` is SHA1(SHA1(password)), as
    mysql_native_password stores it. `learns`: the client is asked for the password itself if it proves none of these,
    and whatever it names then is taken; the caller has to find out whether it is right.
    """

    passwords: tuple[str, ...] = field(default=(), repr=False)
    stored: bytes | None = field(default=None, repr=False)
    learns: bool = False

    def proved_by(self, plugin: str, nonce: bytes, answered: bytes) -> Password | None:
        """Return the password that `answered` proves, None if it proves none. Takes as long for an unknown user.

        `plugin` is one of the two that the server role offers.
        """
        proved: Password | None = None
        if self.stored is not None and plugin == NATIVE_PASSWORD and len(answered) == sha1().digest_size:
            digest = _xor(answered, sha1(nonce[:NONCE_LENGTH] + self.stored).digest())
            if compare_digest(sha1(digest).digest(), self.stored):
                proved = Sha1(digest)
        for password in self.passwords or (_NOBODY,):
            if compare_digest(answer(plugin, password, nonce), answered) and password is not _NOBODY:
                proved = password
        return proved

    def holds(self, clear: bytes) -> str | None:
        """Return the password if `clear`, as the client gave it, is one; with `learns` whatever is not empty."""
        fits = False
        for password in self.passwords or (_NOBODY,):
            if compare_digest(raw(password), clear) and password is not _NOBODY:
                fits = True
        if self.stored is not None and clear and compare_digest(sha1(sha1(clear).digest()).digest(), self.stored):
            fits = True
        return text(clear) if fits or (self.learns and clear) else None


def encrypt(password: bytes, nonce: bytes, public_key: bytes) -> bytes:
    """Return `password` as the full path sends it: NUL added, masked by the nonce, RSA-OAEP for `public_key` (PEM).

    Raises ValueError for a key that cannot be read or is too small.
    """
    return sha2_rsa_encrypt(password, nonce[:NONCE_LENGTH], public_key)


class PasswordKey:
    """The RSA key pair by which clients send a password in the full path of caching_sha2_password.

    Generating one takes about 0.1 s: once per process.
    """

    def __init__(self, key: rsa.RSAPrivateKey) -> None:
        self._key = key
        self.public_pem = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.size = key.key_size // 8  # bytes of an encrypted password

    @classmethod
    def generate(cls) -> PasswordKey:
        """Make a new key pair."""
        return cls(rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS))

    def decrypt(self, nonce: bytes, encrypted: bytes) -> bytes | None:
        """Return the password that a client sent in the full path; None if it was not made so, or not with this key."""
        try:
            masked = self._key.decrypt(encrypted, _OAEP())
        except ValueError:
            return None
        clear = bytes(byte ^ nonce[at % NONCE_LENGTH] for at, byte in enumerate(masked))
        return clear[:-1] if clear.endswith(b"\0") else None


_OAEP = partial(padding.OAEP, mgf=padding.MGF1(algorithm=hashes.SHA1()), algorithm=hashes.SHA1(), label=None)
