"""One supervisor per state folder: a lock that the kernel drops with its holder, so no pid can be stale."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class AlreadyRunning(Exception):
    """Another supervisor holds the state folder; `pid` is its process."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"Moorage is already running here (pid {pid}): stop it with `make stop`")
        self.pid = pid


@contextmanager
def single_instance(path: Path) -> Iterator[None]:
    """Hold `path` for this process and write its pid there. AlreadyRunning when another one holds it."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise AlreadyRunning(int(file.read() or 0)) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def holder_pid(path: Path) -> int | None:
    """The pid of the supervisor that holds `path`; None when none does, whatever the file says."""
    if not path.exists():
        return None
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read() or 0)
    return None
