"""Passwords on the wire: the answers to a nonce, their verification in constant time, and the RSA key of the full path.

The hashes themselves are PyMySQL's (`pymysql._auth`). The gateway knows the passwords of its configured users, so that
it can verify both plugins' short answers itself and never needs caching_sha2's full path for a client that answers the
nonce; the full path is there for those that cannot.
"""

from __future__ import annotations

import secrets
from functools import partial
from hmac import compare_digest

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from pymysql._auth import ed25519_password, scramble_caching_sha2, scramble_native_password, sha2_rsa_encrypt

from gateway.protocol.mysql.constants import CACHING_SHA2_PASSWORD, ED25519, NATIVE_PASSWORD

NONCE_LENGTH = 20  # bytes; SCRAMBLE_LENGTH of both plugins

_NONCE_ALPHABET = bytes(byte for byte in range(1, 128) if byte != ord("$"))
# 7 bits, no NUL (it ends the nonce in the packet), no "$" (it separates fields in caching_sha2's stored form): as
# servers make theirs (generate_user_salt in mysys/crypt_genhash_impl.cc).

_NOBODY = secrets.token_bytes(
    16
)  # stands in for an unknown user's password: the same work is done, and nothing matches

RSA_BITS = 2048  # caching_sha2_password_auto_generate_rsa_keys makes keys of this size


class PluginError(Exception):
    """An authentication plugin that the gateway cannot answer; the text names it and says what to do."""


def new_nonce() -> bytes:
    """Return 20 fresh random bytes for one log-in."""
    return bytes(secrets.choice(_NONCE_ALPHABET) for _ in range(NONCE_LENGTH))


def _answer_ed25519(password: bytes, nonce: bytes) -> bytes:
    try:
        return ed25519_password(password, nonce)
    except RuntimeError as error:  # PyMySQL says so where PyNaCl is missing
        raise PluginError(f"the account uses {ED25519}, which needs PyNaCl: pip install pynacl") from error


_ANSWERS = {
    NATIVE_PASSWORD: scramble_native_password,
    CACHING_SHA2_PASSWORD: scramble_caching_sha2,
    ED25519: _answer_ed25519,
}


def answer(plugin: str, password: bytes, nonce: bytes) -> bytes:
    """Return what a client sends for `password` under `plugin` (b"" for an empty one). Raises PluginError."""
    if not password:
        return b""
    function = _ANSWERS.get(plugin)
    if function is None:
        raise PluginError(
            f"the account uses the authentication plugin {plugin!r}, which the gateway does not answer: "
            f"use {CACHING_SHA2_PASSWORD} or {NATIVE_PASSWORD}"
        )
    return function(password, nonce[:NONCE_LENGTH])


def verify(plugin: str, password: str | None, nonce: bytes, answered: bytes) -> bool:
    """Say whether `answered` proves `password`; None, an unknown user, takes as long and is never proved.

    `plugin` is one of the two that the server role offers.
    """
    secret = _NOBODY if password is None else password.encode()
    return compare_digest(answer(plugin, secret, nonce), answered)


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

    def verify(self, password: str | None, nonce: bytes, encrypted: bytes) -> bool:
        """Say whether `encrypted` holds `password`; None, an unknown user, takes as long and is never proved."""
        try:
            masked = self._key.decrypt(encrypted, _OAEP())
        except ValueError:  # not made with this key
            return False
        clear = bytes(byte ^ nonce[at % NONCE_LENGTH] for at, byte in enumerate(masked))
        secret = _NOBODY if password is None else password.encode()
        return compare_digest(secret + b"\0", clear)


_OAEP = partial(padding.OAEP, mgf=padding.MGF1(algorithm=hashes.SHA1()), algorithm=hashes.SHA1(), label=None)
