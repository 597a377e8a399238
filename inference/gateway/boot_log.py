"""The journal files of one boot: which events they hold, reading them for the meter, freeing what it has.

A boot is a directory of numbered segments. Every segment begins with the number of its next event and with
the requests that were still open: so a segment whose events the meter has can go.
"""

import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from inference.gateway.core import records

SEGMENT_BYTES = 16 << 20


@dataclass(slots=True)
class Segment:
    """One file. `offsets[i]` is where event `first_seq + i` begins."""

    path: Path
    first_seq: int
    offsets: "array[int]" = field(default_factory=lambda: array("Q"))
    size: int = 0

    @property
    def next_seq(self) -> int:
        """The number after the segment's last event."""
        return self.first_seq + len(self.offsets)


class BootLog:
    """Segments in order. `head` is the number of the last event that is durable, 0 for none."""

    def __init__(self, directory: Path, *, closed: bool) -> None:
        self.directory = directory
        self.boot_id = directory.name
        self.closed = closed
        self.segments: list[Segment] = []
        self.head = 0

    def add(self, next_seq: int) -> Segment:
        """A new last segment; its file is the caller's to create."""
        number = int(self.segments[-1].path.stem) + 1 if self.segments else 1
        segment = Segment(self.directory / f"{number:06}.log", next_seq)
        self.segments.append(segment)
        return segment

    def read(self, seq: int, limit: int) -> list[bytes]:
        """Up to `limit` CLOSE bodies from number `seq` on, none past `head`, from one segment."""
        for segment in self.segments:
            if segment.first_seq <= seq < segment.next_seq and seq <= self.head:
                first = seq - segment.first_seq
                wanted = min(limit, segment.next_seq - seq, self.head - seq + 1)
                offsets = segment.offsets[first : first + wanted + 1]
                start, end = offsets[0], offsets[wanted] if len(offsets) > wanted else segment.size
                data = _part(segment.path, start, end)
                return [records.body_at(data, offset - start) for offset in offsets[:wanted]]
        return []

    def free_below(self, seq: int) -> None:
        """Delete the segments that hold only events below `seq`; the last one only of a closed boot."""
        while self.segments and self.segments[0].next_seq <= seq and (self.closed or len(self.segments) > 1):
            self.segments.pop(0).path.unlink()
        if self.closed and not self.segments:
            for empty in self.directory.glob("*.log"):
                empty.unlink()
            if not any(self.directory.iterdir()):
                self.directory.rmdir()


def load(directory: Path) -> BootLog:
    """The log of a boot that is over, as its files say."""
    log = BootLog(directory, closed=True)
    for path in sorted(directory.glob("*.log")):
        segment: Segment | None = None
        for record in records.scan(path.read_bytes()):
            if record.kind == records.START:
                segment = Segment(path, orjson.loads(record.body)["next_seq"])
            elif record.kind == records.CLOSE and segment is not None:
                segment.offsets.append(record.offset)
            if segment is not None:
                segment.size = record.end
        if segment is not None:
            log.segments.append(segment)
            log.head = segment.next_seq - 1
    return log


def _part(path: Path, start: int, end: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), end - start, start)


def append_durably(path: Path, data: bytes) -> None:
    """Write at the end of a file and wait until the disk has it."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        write_durably(fd, data)
    finally:
        os.close(fd)


def write_durably(fd: int, data: bytes) -> None:
    """Write everything and wait until the disk has it."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.fdatasync(fd)


def sync_directory(directory: Path) -> None:
    """Wait until the disk has the names in a directory."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
