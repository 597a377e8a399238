"""An engine's log: it appends by itself, we bound its size and read its end."""

from pathlib import Path

LOG_BYTES = 8 << 20
_READ_BYTES = 256 << 10


def trim(log: Path) -> bool:
    """Keep a log under LOG_BYTES: its newest half goes to `log.1`, and the writer, who appends, starts over.

    True when it was cut. Where the disk is full the older half is given up rather than the space.
    """
    try:
        if log.stat().st_size <= LOG_BYTES:
            return False
        older = log.with_suffix(".1")
        older.unlink(missing_ok=True)
        with log.open("rb+") as file:
            file.seek(-LOG_BYTES // 2, 2)
            kept = file.read()
            file.truncate(0)
        older.write_bytes(kept)
    except OSError:
        return log.exists()
    return True


def tail(log: Path, lines: int, since: int = 0) -> str:
    """The last `lines` lines at or after byte `since`; "" where there is no log."""
    text = _end_of(log, since)
    if text.count("\n") < lines and since == 0:
        text = _end_of(log.with_suffix(".1"), 0) + text
    return "".join(text.splitlines(keepends=True)[-lines:]) if lines > 0 else ""


def _end_of(log: Path, since: int) -> str:
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(since, size - _READ_BYTES, 0))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
