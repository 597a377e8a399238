"""Identifiers: UUIDv7 inside, `prefix_` + 26 Crockford base32 characters outside."""

import hashlib
import itertools
import os
import secrets
import time
from collections.abc import Callable
from datetime import datetime
from uuid import UUID

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_VALUE = {char: index for index, char in enumerate(_ALPHABET)}
_LENGTH = 26

ENDPOINT = "ep"
DEPLOYMENT = "dep"
KEY = "key"
TENANT = "ten"
INVOICE = "inv"
EVENT = "evt"


def _layout(unix_ms: int, tail: int) -> UUID:
    """RFC 9562 §5.7: 48 bits of time, version 7, 12 bits, variant, 62 bits; `tail` gives the 74."""
    return UUID(int=unix_ms << 80 | 0x7 << 76 | (tail >> 62 & 0xFFF) << 64 | 0b10 << 62 | tail & 0x3FFF_FFFF_FFFF_FFFF)


def new_id() -> UUID:
    """A fresh UUIDv7 (RFC 9562); it sorts by creation time and is never a secret."""
    return _layout(time.time_ns() // 1_000_000, int.from_bytes(os.urandom(10)) >> 6)


def minter() -> Callable[[int], str]:
    """Makes the ids of one process out of Unix milliseconds, as text: UUIDv7s that share 42 random bits and count up
    in the other 32.

    For where every request takes some: it asks for randomness once. Not to be kept over a fork.
    """
    ours = secrets.randbits(42)
    numbers = itertools.count(secrets.randbits(32))
    head, middle = 0x7000 | ours >> 30, 0x8000 | ours >> 16 & 0x3FFF
    last = f"{ours & 0xFFFF:04x}"

    def minted(unix_ms: int) -> str:
        at = f"{unix_ms:012x}"
        return f"{at[:8]}-{at[8:]}-{head:04x}-{middle:04x}-{last}{next(numbers) & 0xFFFFFFFF:08x}"

    return minted


def derived_id(at: datetime, *parts: str) -> UUID:
    """The same UUIDv7-shaped id for the same instant and parts: a job may run any number of times."""
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()
    return _layout(int(at.timestamp() * 1000), int.from_bytes(digest[:10]) >> 6)


def id_time_ms(value: UUID) -> int:
    """Milliseconds since 1970 that a UUIDv7 carries."""
    return value.int >> 80


def encode(prefix: str, value: UUID) -> str:
    """`ep_01j…`: the public spelling of an id, safe in URLs, hostnames and labels."""
    number = value.int
    chars = []
    for _ in range(_LENGTH):
        number, digit = divmod(number, 32)
        chars.append(_ALPHABET[digit])
    return f"{prefix}_{''.join(reversed(chars))}"


def decode(prefix: str, text: str) -> UUID:
    """The id that `encode` spelled. ValueError for another prefix, length or alphabet."""
    head, _, body = text.partition("_")
    if head != prefix or len(body) != _LENGTH:
        raise ValueError(f"expected {prefix}_ and {_LENGTH} characters")
    number = 0
    for char in body:
        if char not in _VALUE:
            raise ValueError(f"{char!r} does not occur in an id")
        number = number * 32 + _VALUE[char]
    if number >= 1 << 128:
        raise ValueError("id out of range")
    return UUID(int=number)
