"""This boot's journal: append, wait for the disk in groups, let the meter pull.

While the disk is waited for, what arrives goes with the next group: one wait serves all. A failed write ends
the process; it is never tried again as if nothing had been lost.
"""

import asyncio
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson

from inference.gateway.boot_log import SEGMENT_BYTES, BootLog, Segment, sync_directory, write_durably
from inference.gateway.core import records
from inference.gateway.disk import Disk

log = logging.getLogger(__name__)

PROGRESS_DELAY_S = 0.1
FULL = 0.9


class Failed(RuntimeError):
    """The journal could not be written."""


class Journal:
    """Events come in the shape of `UsageEvent.to_json`."""

    def __init__(self, directory: Path, boot_id: UUID, on_failure: Callable[[OSError], None]) -> None:
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._disk = Disk(self._loop, self._written)
        self._log = BootLog(directory / str(boot_id), closed=False)
        self._log.directory.mkdir()
        self._next_seq = 1
        self._buffer: list[tuple[bytes, bool]] = []  # record, whether it is an event
        self._waiting: list[asyncio.Future[None]] = []
        self._writing: tuple[list[asyncio.Future[None]], int] | None = None  # who waits, and the head after it
        self._idle: asyncio.Future[None] | None = None
        self._soon: asyncio.Handle | None = None
        self._later: asyncio.TimerHandle | None = None
        self._live: dict[str, list[bytes]] = {}  # OPEN and last PROGRESS of each open request
        self._fd = -1
        self._failed = False
        self._begin_segment(self._next_seq)

    @property
    def log(self) -> BootLog:
        """The files, for the meter."""
        return self._log

    def open(self, event: Mapping[str, Any]) -> "asyncio.Future[None]":
        """Durable note that a request goes to an engine; one more for the same request replaces it."""
        record = records.encode(records.OPEN, orjson.dumps(event))
        self._live[event["subject_id"]] = [record]
        return self._durable(record, event=False)

    def progress(self, request_id: str, counts: dict[str, int], quoted_pico: int, ended_at: str) -> None:
        """Note how far an open request got; durable soon."""
        body = {"id": request_id, "counts": counts, "quoted_pico": str(quoted_pico), "ended_at": ended_at}
        record = records.encode(records.PROGRESS, orjson.dumps(body))
        self._live[request_id][1:] = [record]
        self._buffer.append((record, False))
        if self._later is None:
            self._later = self._loop.call_later(PROGRESS_DELAY_S, self._flush)

    def close(self, event: Mapping[str, Any]) -> "asyncio.Future[None]":
        """Durable end of a request: what the meter will pull, under the next number."""
        self._live.pop(event["subject_id"], None)
        body = orjson.dumps({"seq": self._next_seq, "event": event})
        self._next_seq += 1
        return self._durable(records.encode(records.CLOSE, body), event=True)

    def drop(self, request_id: str) -> None:
        """An open request ended without anything to meter; durable with whatever follows."""
        self._live.pop(request_id, None)
        self._buffer.append((records.encode(records.DROP, orjson.dumps({"id": request_id})), False))

    def nearly_full(self) -> bool:
        """Whether so little of the disk is left that nothing more should be admitted."""
        usage = shutil.disk_usage(self._log.directory)
        return usage.used >= FULL * usage.total

    async def finish(self) -> None:
        """Write what is left and stop."""
        self._flush()
        if self._writing:
            self._idle = self._loop.create_future()
            await self._idle
        self._disk.close()
        os.close(self._fd)

    def _durable(self, record: bytes, *, event: bool) -> "asyncio.Future[None]":
        if self._failed:
            raise Failed("the journal has failed")
        self._buffer.append((record, event))
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(waiter)
        if self._soon is None and self._writing is None:
            self._soon = self._loop.call_soon(self._flush)  # with whatever else this turn of the loop brings
        return waiter

    def _flush(self) -> None:
        """Write all that has been appended, unless the disk is busy: then it goes with the next group."""
        for timer in (self._soon, self._later):
            if timer is not None:
                timer.cancel()
        self._soon = self._later = None
        if self._writing is not None or not self._buffer or self._failed:
            return
        buffer, head = self._buffer, self._next_seq - 1
        self._writing = self._waiting, head
        self._buffer, self._waiting = [], []
        try:
            if self._segment.size >= SEGMENT_BYTES:
                self._begin_segment(head + 1 - sum(event for _, event in buffer))
            for record, event in buffer:
                if event:
                    self._segment.offsets.append(self._segment.size)
                self._segment.size += len(record)
            self._disk.write(self._fd, b"".join([record for record, _ in buffer]))
        except OSError as failure:
            self._written(failure)

    def _written(self, failure: OSError | None) -> None:
        assert self._writing is not None
        (waiting, head), self._writing = self._writing, None
        if failure is not None:
            self._fail(failure, waiting)
            return
        self._log.head = head
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
        if self._waiting or (self._buffer and self._later is None):
            self._flush()
        if self._idle is not None and self._writing is None:
            self._idle.set_result(None)

    def _fail(self, failure: OSError, waiting: list["asyncio.Future[None]"]) -> None:
        self._failed = True
        for waiter in (*waiting, *self._waiting):
            if not waiter.done():
                waiter.set_exception(Failed("the journal has failed"))
        self._on_failure(failure)

    def _begin_segment(self, next_seq: int) -> None:
        """Go on in a new file that begins with all that is still open. Between two writes; rare and short."""
        if self._fd >= 0:
            os.close(self._fd)
        self._segment: Segment = self._log.add(next_seq)
        self._fd = os.open(self._segment.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        start = records.encode(records.START, orjson.dumps({"next_seq": next_seq}))
        data = b"".join([start, *(record for kept in self._live.values() for record in kept)])
        write_durably(self._fd, data)
        sync_directory(self._log.directory)
        self._segment.size = len(data)


def page(log_: BootLog, seq: int, limit: int) -> dict[str, Any]:
    """One answer of the pull API: events from `seq` on, as they lie in the file."""
    return {
        "events": [orjson.Fragment(body) for body in log_.read(seq, limit)],
        "head": log_.head,
        "closed": log_.closed,
    }
