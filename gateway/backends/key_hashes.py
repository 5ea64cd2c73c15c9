"""The hashes of keys that rings place by, each with the quirks of the program that it repeats.

twemproxy and libmemcached hash `char`, which is signed where they usually run (x86): bytes from 0x80 on enter as
negative numbers. Their 64-bit FNV keeps 32 bits only.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from typing import Final

_MASK32: Final = 0xFFFF_FFFF
_FNV64_INIT: Final = 0xCBF2_9CE4_8422_2325
_FNV64_PRIME: Final = 0x100_0000_01B3
_FNV32_INIT: Final = 0x811C_9DC5
_FNV32_PRIME: Final = 0x0100_0193
_SIGNED32: Final = tuple(byte if byte < 0x80 else byte - 0x100 & _MASK32 for byte in range(256))
_SIGNED64: Final = tuple(byte if byte < 0x80 else byte - 0x100 & 0xFFFF_FFFF_FFFF_FFFF for byte in range(256))


def _fnv1a(key: bytes, value: int, prime: int) -> int:
    if key.isascii():
        for byte in key:
            value = (value ^ byte) * prime & _MASK32
    else:
        for byte in key:
            value = (value ^ _SIGNED32[byte]) * prime & _MASK32
    return value


def fnv1a_64(key: bytes) -> int:
    """twemproxy's default: the low halves of FNV-1a's 64-bit numbers."""
    return _fnv1a(key, _FNV64_INIT & _MASK32, _FNV64_PRIME & _MASK32)


def fnv1a_32(key: bytes) -> int:
    """FNV-1a with 32 bits."""
    return _fnv1a(key, _FNV32_INIT, _FNV32_PRIME)


def fnv1_64(key: bytes) -> int:
    """The low half of FNV-1 with 64 bits."""
    value = _FNV64_INIT
    for byte in key:
        value = (value * _FNV64_PRIME & 0xFFFF_FFFF_FFFF_FFFF) ^ _SIGNED64[byte]
    return value & _MASK32


def fnv1_32(key: bytes) -> int:
    """FNV-1 with 32 bits."""
    value = _FNV32_INIT
    for byte in key:
        value = (value * _FNV32_PRIME & _MASK32) ^ _SIGNED32[byte]
    return value


def md5(key: bytes) -> int:
    """The first four bytes of the MD5, little-endian."""
    return int.from_bytes(hashlib.md5(key, usedforsecurity=False).digest()[:4], "little")


def crc32(key: bytes) -> int:
    """CRC-32 as kvproxy and zlib have it; twemproxy calls it crc32a."""
    return zlib.crc32(key)


def crc32_15(key: bytes) -> int:
    """Fifteen bits of the CRC-32: what libmemcached and twemproxy call crc32."""
    return zlib.crc32(key) >> 16 & 0x7FFF


def one_at_a_time(key: bytes) -> int:
    """Jenkins's one-at-a-time, libmemcached's default."""
    value = 0
    for byte in key:
        value = value + _SIGNED32[byte] & _MASK32
        value = value + (value << 10) & _MASK32
        value ^= value >> 6
    value = value + (value << 3) & _MASK32
    value ^= value >> 11
    return value + (value << 15) & _MASK32


def murmur3_32(key: bytes, seed: int = 0) -> int:
    """MurmurHash3_x86_32, for rendezvous as pymemcache has it."""
    value = seed
    whole = len(key) & ~3
    for at in range(0, whole, 4):
        part = int.from_bytes(key[at : at + 4], "little") * 0xCC9E_2D51 & _MASK32
        part = (part << 15 | part >> 17) & _MASK32
        value ^= part * 0x1B87_3593 & _MASK32
        value = (value << 13 | value >> 19) & _MASK32
        value = value * 5 + 0xE654_6B64 & _MASK32
    if len(key) > whole:
        part = int.from_bytes(key[whole:], "little") * 0xCC9E_2D51 & _MASK32
        part = (part << 15 | part >> 17) & _MASK32
        value ^= part * 0x1B87_3593 & _MASK32
    value ^= len(key)
    value = (value ^ value >> 16) * 0x85EB_CA6B & _MASK32
    value = (value ^ value >> 13) * 0xC2B2_AE35 & _MASK32
    return value ^ value >> 16


KEY_HASHES: Final[dict[str, Callable[[bytes], int]]] = {
    "fnv1a_64": fnv1a_64,
    "fnv1a_32": fnv1a_32,
    "fnv1_64": fnv1_64,
    "fnv1_32": fnv1_32,
    "md5": md5,
    "crc32": crc32,
    "crc32_15": crc32_15,
    "one_at_a_time": one_at_a_time,
}
