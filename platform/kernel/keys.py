"""API keys: their text, checksum and digest.

moorage_live_ + public id (12 base62) + _ + secret (43 base62, 256 bits) + CRC-32 (6 base62). The
checksum lets scanners and the gateway refuse junk without a look-up; the digest is what is stored.
"""

import hmac
import re
import secrets
import zlib
from dataclasses import dataclass

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PAIRS = [a + b for a in _BASE62 for b in _BASE62]
_SHAPE = re.compile(r"moorage_(live|test)_([0-9A-Za-z]{12})_([0-9A-Za-z]{43})([0-9A-Za-z]{6})")
MODES = ("live", "test")


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """A well-formed key: `text` is the secret whole, `public_id` may be shown and logged."""

    mode: str
    public_id: str
    text: str

    def __repr__(self) -> str:
        return f"ParsedKey({self.mode}, {self.public_id})"


def _base62(number: int, length: int) -> str:
    chars = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        chars.append(_BASE62[digit])
    return "".join(reversed(chars))


def _checksum(head: str) -> str:
    rest, last = divmod(zlib.crc32(head.encode()), 62**2)
    first, middle = divmod(rest, 62**2)
    return _PAIRS[first] + _PAIRS[middle] + _PAIRS[last]


def generate(mode: str = "live") -> ParsedKey:
    """A new random key. ValueError for a mode that does not exist."""
    if mode not in MODES:
        raise ValueError(f"mode is one of {', '.join(MODES)}")
    public_id = "".join(secrets.choice(_BASE62) for _ in range(12))
    head = f"moorage_{mode}_{public_id}_{_base62(secrets.randbits(256), 43)}"
    return ParsedKey(mode, public_id, head + _checksum(head))


def parse(text: str) -> ParsedKey | None:
    """The parts of a key whose shape and checksum hold, else None."""
    match = _SHAPE.fullmatch(text)
    if match is None or _checksum(text[:-6]) != match[4]:
        return None
    return ParsedKey(match[1], match[2], text)


def digest(pepper: bytes, text: str) -> bytes:
    """HMAC-SHA-256 of the key under the pepper: 32 bytes, the only form that is stored."""
    return hmac.digest(pepper, text.encode(), "sha256")


def matches(pepper: bytes, text: str, stored: bytes) -> bool:
    """Constant-time comparison; pass 32 zero bytes for an unknown id so that a miss costs the same."""
    return hmac.compare_digest(digest(pepper, text), stored)
