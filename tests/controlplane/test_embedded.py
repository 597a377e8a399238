"""The embedded PostgreSQL and Redis as real processes, and what guards their start."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import redis as redis_client
from redis.backoff import NoBackoff
from redis.retry import Retry

from controlplane.embedded import checks, environment, ports
from controlplane.embedded.lock import AlreadyRunning, holder_pid, single_instance
from controlplane.embedded.postgres import Postgres
from controlplane.embedded.redis import Redis

ROOT = Path(__file__).resolve().parents[2]


def wait_for(condition: Callable[[], bool], within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@contextmanager
def running(server: Postgres | Redis) -> Iterator[subprocess.Popen[bytes]]:
    """The server, started as the supervisor starts it and stopped at the end if it still runs."""
    server.prepare() if isinstance(server, Postgres) else server.configure()
    process = subprocess.Popen(server.command(), start_new_session=True)
    try:
        wait_for(server.is_ready)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def free_ports(folder: Path) -> dict[str, int]:
    return ports.keep(folder / "ports.json", ("postgres", "redis"))


@pytest.fixture
def postgres(tmp_path: Path) -> Postgres:
    return Postgres(tmp_path / "postgres", free_ports(tmp_path)["postgres"], "a password")


@pytest.fixture
def redis(tmp_path: Path) -> Redis:
    return Redis(tmp_path / "redis", free_ports(tmp_path)["redis"], "secret")


def test_postgresql_starts_where_only_its_owner_may_look_and_stops_clean(tmp_path: Path) -> None:
    closed = tmp_path / "home"
    closed.mkdir(mode=0o700)
    postgres = Postgres(closed / "postgres", free_ports(tmp_path)["postgres"], "a password")
    with running(postgres) as process, psycopg.connect(postgres.admin_dsn) as connection:
        version = connection.execute("SHOW server_version").fetchone()
        assert version is not None
        assert version[0].startswith("18.")
        assert Path(f"/proc/{process.pid}").stat().st_uid != 0
    assert process.returncode == 0
    assert not (closed / "postgres" / "postmaster.pid").exists()


def test_postgresql_refuses_a_wrong_password(postgres: Postgres) -> None:
    with running(postgres):
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(postgres.admin_dsn, password="another")
        assert postgres.is_ready()


def test_rows_outlive_a_killed_postgresql(postgres: Postgres) -> None:
    with running(postgres) as process:
        with psycopg.connect(postgres.admin_dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 100)")
        process.kill()
        process.wait()
    assert (postgres.data / "postmaster.pid").exists()
    with running(postgres), psycopg.connect(postgres.admin_dsn) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (100,)


def test_a_pid_file_that_names_another_program_is_no_obstacle(postgres: Postgres) -> None:
    with running(postgres):
        pass
    (postgres.data / "postmaster.pid").write_text(f"{os.getpid()}\n{postgres.data}\n")
    with running(postgres):
        assert postgres.is_ready()


def test_a_postgresql_left_by_a_killed_supervisor_is_stopped_first(postgres: Postgres) -> None:
    with running(postgres) as left, running(postgres) as fresh:
        assert left.wait(10) == 0
        assert fresh.poll() is None
        assert postgres.is_ready()


def test_an_interrupted_creation_starts_over(postgres: Postgres) -> None:
    partial = postgres.data.with_name("postgres.partial")
    partial.mkdir()
    (partial / "PG_VERSION").write_text("18")
    with running(postgres):
        assert postgres.is_ready()
    assert not partial.exists()


def test_keys_outlive_a_killed_redis_once_a_second_has_passed(redis: Redis) -> None:
    with running(redis) as process, redis_client.Redis.from_url(redis.url(1)) as client:
        client.set("kept", "yes")
        time.sleep(1.5)
        process.kill()
        process.wait()
    with running(redis), redis_client.Redis.from_url(redis.url(1)) as client:
        assert client.get("kept") == b"yes"
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_redis_asks_for_its_password_and_shows_it_to_no_process_list(redis: Redis) -> None:
    with running(redis) as process:
        with pytest.raises(redis_client.AuthenticationError):
            redis_client.Redis(port=redis.port, retry=Retry(NoBackoff(), 0)).ping()
        assert b"secret" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    assert (redis.data / "redis.conf").stat().st_mode & 0o077 == 0


def test_a_taken_port_is_answered_with_its_holder_and_the_way_out() -> None:
    code = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1]); input()"
    argv = [sys.executable, "-uc", code]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        with pytest.raises(ports.PortTaken) as refusal:
            ports.require_free(f"127.0.0.1:{port}", "stop it or set WEB_LISTEN")
        other.kill()
    sentence = str(refusal.value)
    assert sentence.startswith(f"port {port} is taken by {Path(sys.executable).name} -uc import socket")
    assert sentence.endswith(f"(pid {other.pid}): stop it or set WEB_LISTEN")
    ports.require_free(f"127.0.0.1:{port}", "")


def test_who_holds_a_port_is_told_by_address_for_engines_share_the_consoles() -> None:
    with socket.create_server(("127.0.0.7", 0)) as engine:
        port = engine.getsockname()[1]
        assert ports.holder_of(f"127.0.0.8:{port}") is None
        for listen in (f"127.0.0.7:{port}", f"0.0.0.0:{port}"):
            assert f"(pid {os.getpid()})" in (ports.holder_of(listen) or "")


def test_private_ports_are_chosen_once(tmp_path: Path) -> None:
    first = ports.keep(tmp_path / "ports.json", ("postgres", "redis"))
    assert len(set(first.values())) == 2
    assert ports.keep(tmp_path / "ports.json", ("postgres", "redis")) == first
    assert ports.keep(tmp_path / "ports.json", ("redis", "more")).items() > first.items()


def test_one_supervisor_holds_the_folder_until_it_ends_in_any_way(tmp_path: Path) -> None:
    lock = tmp_path / "supervisor.lock"
    lock.write_text("1")  # a stale pid that happens to live
    assert holder_pid(lock) is None
    code = f"""
import time, pathlib
from controlplane.embedded.lock import single_instance
with single_instance(pathlib.Path({str(lock)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT / "platform"
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert holder_pid(lock) == other.pid
        with pytest.raises(AlreadyRunning, match=rf"\(pid {other.pid}\): stop it with `make stop`"):
            single_instance(lock).__enter__()
        other.kill()
    assert holder_pid(lock) is None
    with single_instance(lock):
        assert holder_pid(lock) == os.getpid()


def test_a_full_disk_and_a_missing_engine_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(checks.NotPossible, match=r"only 1\.5 GB are free .* make 2 GB free"):
        checks.require_disk(tmp_path, free_bytes=1_500_000_000)
    checks.require_disk(tmp_path, free_bytes=2_000_000_000)
    with pytest.raises(checks.NotPossible, match="run `make engine`"):
        checks.require_engine(tmp_path)


def test_an_empty_environment_is_completed_once_and_the_same_ever_after(tmp_path: Path) -> None:
    first = {"MOORAGE_STATE_DIR": str(tmp_path / "state")}
    environment.complete(first, create=False)
    assert first == {"MOORAGE_STATE_DIR": str(tmp_path / "state")}
    environment.complete(first, create=True)
    again = {"MOORAGE_STATE_DIR": str(tmp_path / "state")}
    environment.complete(again, create=False)
    assert again == first
    assert (tmp_path / "state" / "secret").stat().st_mode & 0o077 == 0
    assert first["REDIS_GATEWAY_URL"] == first["REDIS_URL"].replace("/0", "/1")
    assert environment.uses_embedded_postgres(first)
    assert environment.uses_embedded_redis(first)


def test_what_is_set_wins_and_external_databases_are_not_started(tmp_path: Path) -> None:
    given = {
        "MOORAGE_STATE_DIR": str(tmp_path),
        "MOORAGE_SECRET_KEY": "mine",
        "DATABASE_URL": "postgres://db.example:5432/moorage",
        "REDIS_URL": "redis://cache.example:6379/4",
        "GATEWAY_LISTEN": "0.0.0.0:9000",
        "GATEWAY_URL": "https://api.example",
    }
    completed = dict(given)
    environment.complete(completed, create=True)
    assert completed.items() >= given.items()
    assert completed["REDIS_GATEWAY_URL"] == "redis://cache.example:6379/1"
    assert not (tmp_path / "secret").exists()
    assert not environment.uses_embedded_postgres(completed)
    assert not environment.uses_embedded_redis(completed)


def test_a_command_beside_no_installation_leaves_nothing_behind(tmp_path: Path) -> None:
    environ = {"MOORAGE_STATE_DIR": str(tmp_path / "state"), "MOORAGE_SECRET_KEY": "mine"}
    environment.complete(environ, create=False)
    assert "DATABASE_URL" not in environ
    assert environ["GATEWAY_URL"] == "http://127.0.0.1:8080"
    assert not (tmp_path / "state").exists()


def test_children_can_import_both_source_roots_and_choose_their_own_role() -> None:
    children = environment.for_children({"MOORAGE_ROLE": "owner", "PYTHONDONTWRITEBYTECODE": "1", "A": "b"})
    assert children["PYTHONPATH"] == f"{ROOT}:{ROOT / 'platform'}"
    assert children["A"] == "b"
    assert "MOORAGE_ROLE" not in children
    assert "PYTHONDONTWRITEBYTECODE" not in children
