"""Process sessions that outlive their starter: start, recognise after a restart, signal, end to the last member.

A session is recognised by boot id, pid and start time, which together never come twice.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# The record is written by the process that becomes the engine, before it does: no moment exists in which
# the engine runs and its starter, killed meanwhile, left no trace of it.
_LAUNCHER = (
    f"read -r boot <{_BOOT_ID} && read -r stat </proc/self/stat && "
    'printf "%s\\n%s\\n" "$boot" "$stat" >"$1" || exit 126; shift; exec "$@"'
)


@dataclass(frozen=True, slots=True)
class Session:
    """The leader of a session: its pid (also the session's id), start in clock ticks, and the boot it ran in."""

    pid: int
    start_ticks: int
    boot_id: str


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    session: int
    start_ticks: int


def start(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path, record: Path
) -> subprocess.Popen[bytes]:
    """Run argv in a session of its own, output appended to `log`, its identity in `record`. OSError if not."""
    record.unlink(missing_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            ["/bin/sh", "-c", _LAUNCHER, "engine", str(record), *argv],
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def identify(pid: int) -> Session | None:
    """The session that a running process leads; None when there is no such process."""
    stat = _stat(pid)
    return Session(pid, stat.start_ticks, _BOOT_ID.read_text().strip()) if stat else None


def recorded(record: Path) -> Session | None:
    """The session whose leader wrote `record`, whether it still runs or not."""
    try:
        boot_id, line = record.read_text().splitlines()[:2]
    except (FileNotFoundError, ValueError):
        return None
    return Session(int(line.split(" ", 1)[0]), _parse(line).start_ticks, boot_id)


def is_alive(session: Session) -> bool:
    """Whether the leader itself still runs; a dead one that nobody waited for does not count."""
    stat = _stat(session.pid)
    return (
        stat is not None
        and stat.state not in "ZX"
        and stat.start_ticks == session.start_ticks
        and _BOOT_ID.read_text().strip() == session.boot_id
    )


def terminate(session: Session) -> None:
    """SIGTERM to the leader alone: it drains, and ends its own children when it is done."""
    if is_alive(session):
        _signal(session.pid, signal.SIGTERM)


def kill(session: Session) -> bool:
    """SIGKILL to every member; True when none is left. Call again until it says so."""
    members = _members(session)
    for pid in members:
        _signal(pid, signal.SIGKILL)
    return not members


def _members(session: Session) -> list[int]:
    if _BOOT_ID.read_text().strip() != session.boot_id:
        return []
    leader = _stat(session.pid)
    if leader and leader.start_ticks != session.start_ticks:
        return []  # the number was given to somebody else, so the session is long empty
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    stats = ((pid, _stat(pid)) for pid in pids)
    return [pid for pid, stat in stats if stat and stat.session == session.pid and stat.state not in "ZX"]


def _stat(pid: int) -> _Stat | None:
    try:
        return _parse(Path(f"/proc/{pid}/stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None


def _parse(line: str) -> _Stat:
    """proc(5): the name in parentheses may hold anything, so count from the last one; field 3 comes next."""
    fields = line[line.rindex(")") + 2 :].split()
    return _Stat(state=fields[0], session=int(fields[3]), start_ticks=int(fields[19]))


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
