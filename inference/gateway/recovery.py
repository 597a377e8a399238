"""What a boot that died left open becomes an event: from its last PROGRESS, or with zero counts."""

import dataclasses
import fcntl
import logging
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from inference.gateway.boot_log import BootLog, append_durably, load
from inference.gateway.core import records
from kernel.usage import UsageEvent

log = logging.getLogger(__name__)


class InUse(RuntimeError):
    """Another process runs under the same gateway id."""


def own(directory: Path) -> int:
    """Take a gateway's directory for this process; the lock lives as long as the returned descriptor."""
    directory.mkdir(parents=True, exist_ok=True)
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise InUse(f"another gateway uses {directory}; give each process its own GATEWAY_ID") from None
    return fd


def recover(directory: Path, *, on_cut: Callable[[], None] = lambda: None) -> tuple[list[BootLog], list[UsageEvent]]:
    """Close every boot in a gateway's directory; `on_cut` hears of each journal that was torn or damaged.

    Returns the boots, oldest first, and the events that had to be written for open requests. Safe to repeat.
    """
    boots, recovered = [], []
    for boot in sorted(path for path in directory.iterdir() if path.is_dir()):
        recovered += _close(boot, on_cut)
        boots.append(load(boot))
    return boots, recovered


def _close(boot: Path, on_cut: Callable[[], None]) -> list[UsageEvent]:
    next_seq = 1
    live: dict[str, UsageEvent] = {}
    paths = sorted(boot.glob("*.log"))
    for index, path in enumerate(paths):
        data = path.read_bytes()
        good = 0
        for record in records.scan(data):
            good = record.end
            next_seq = _follow(record, live, next_seq)
        if good < len(data):
            log.error("journal %s: cut at byte %d of %d", path, good, len(data))
            on_cut()
            os.truncate(path, good)
            _set_aside(paths[index + 1 :])
            break
    events = list(live.values())
    if events:
        last = max(boot.glob("*.log"))
        bodies = [orjson.dumps({"seq": next_seq + i, "event": e.to_json()}) for i, e in enumerate(events)]
        append_durably(last, b"".join(records.encode(records.CLOSE, body) for body in bodies))
    return events


def _follow(record: records.Record, live: dict[str, UsageEvent], next_seq: int) -> int:
    """Apply one record to the table of open requests; returns the number of the next event."""
    value: dict[str, Any] = orjson.loads(record.body)
    if record.kind == records.START:
        return int(value["next_seq"])
    if record.kind == records.OPEN:
        live[value["subject_id"]] = UsageEvent.from_json(value)
    elif record.kind == records.PROGRESS and value["id"] in live:
        live[value["id"]] = dataclasses.replace(
            live[value["id"]],
            counts=value["counts"],
            quoted_pico=int(value["quoted_pico"]),
            ended_at=datetime.fromisoformat(value["ended_at"]),
        )
    elif record.kind == records.DROP:
        live.pop(value["id"], None)
    elif record.kind == records.CLOSE:
        live.pop(value["event"]["subject_id"], None)
        return int(value["seq"]) + 1
    return next_seq


def _set_aside(paths: list[Path]) -> None:
    """What lies behind a broken record cannot be numbered; it is kept for a person."""
    for path in paths:
        path.rename(path.with_suffix(".unreadable"))
