"""Journal records: length, CRC-32, kind, JSON. A reader stops at the first record that does not hold."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

_HEAD = struct.Struct("<II")
HEAD_BYTES = _HEAD.size
MAX_RECORD_BYTES = 1 << 20

START = b"S"  # {"next_seq"}: first record of every file
OPEN = b"O"  # a usage event with zero counts: what recovery ships if nothing follows
PROGRESS = b"P"  # {"id", "counts", "quoted_pico", "ended_at"} of an open request
CLOSE = b"C"  # {"seq", "event"}: what the meter pulls
DROP = b"D"  # {"id"}: the request ended without anything to meter


@dataclass(frozen=True, slots=True)
class Record:
    """`offset` and `end` are its byte range in what was scanned."""

    kind: bytes
    body: bytes
    offset: int
    end: int


def encode(kind: bytes, body: bytes) -> bytes:
    """One record."""
    payload = kind + body
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def body_at(data: bytes, offset: int) -> bytes:
    """The body of the record at `offset`. ValueError where it does not hold."""
    length, checksum = _HEAD.unpack_from(data, offset)
    payload = data[offset + HEAD_BYTES : offset + HEAD_BYTES + length]
    if zlib.crc32(payload) != checksum:
        raise ValueError(f"the record at byte {offset} is damaged")
    return payload[1:]


def scan(data: bytes, start: int = 0) -> Iterator[Record]:
    """Whole records from `start` up to the first that is torn, too long or fails its checksum."""
    position = start
    while position + HEAD_BYTES <= len(data):
        length, checksum = _HEAD.unpack_from(data, position)
        end = position + HEAD_BYTES + length
        payload = data[position + HEAD_BYTES : end]
        if not 0 < length <= MAX_RECORD_BYTES or end > len(data) or zlib.crc32(payload) != checksum:
            return
        yield Record(payload[:1], payload[1:], position, end)
        position = end
