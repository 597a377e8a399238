"""Real servers for tests, from the same binaries as the embedded default."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from controlplane.embedded.postgres import Postgres
from controlplane.embedded.redis import Redis

READY_WITHIN_S = 30.0
PASSWORD = "tests"


def soak(times: int) -> int:
    """How often a long loop goes round: `times` under `make soak`, a tenth of it in every other run."""
    return times if os.environ.get("MOORAGE_SOAK") else max(1, times // 10)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(ready: Callable[[], bool], what: str, within_s: float = READY_WITHIN_S) -> None:
    """Poll until `ready`; AssertionError names what never came."""
    deadline = time.monotonic() + within_s
    while not ready():
        assert time.monotonic() < deadline, f"{what} did not happen within {within_s:.0f} s"
        time.sleep(0.05)


@contextmanager
def server(argv: list[str], ready: Callable[[], bool], stop: signal.Signals) -> Iterator[int]:
    """A server for the length of a block: its pid, once it is ready."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/")
        try:
            wait_until(lambda: process.poll() is not None or ready(), argv[0])
            log.seek(0)
            assert process.poll() is None, log.read().decode(errors="replace")
            yield process.pid
        finally:
            if process.poll() is None:
                os.kill(process.pid, stop)
                process.wait(READY_WITHIN_S)


@contextmanager
def postgres_server(folder: Path) -> Iterator[str]:
    """A private PostgreSQL: the administrator's DSN. Durable as in production: tests kill things."""
    folder.chmod(0o755)
    postgres = Postgres(folder / "data", free_port(), PASSWORD)
    postgres.prepare()
    with server(postgres.command(), postgres.is_ready, signal.SIGINT):
        yield postgres.admin_dsn


@contextmanager
def redis_server(folder: Path) -> Iterator[Redis]:
    """A private Redis with the product's own settings."""
    redis = Redis(folder, free_port(), PASSWORD)
    redis.configure()
    with server(redis.command(), redis.is_ready, signal.SIGTERM):
        yield redis
