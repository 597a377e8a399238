"""What one installation runs, wave by wave: the processes, how each says that it serves, how each stops."""

import os
import signal
import sys
from collections.abc import Mapping
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

from controlplane.embedded import environment
from controlplane.embedded.child import tied
from controlplane.embedded.environment import ROOT
from controlplane.embedded.ports import split
from controlplane.embedded.supervisor import Part

AGENT_GRACE_S = 120.0
WORKER_PROCESSES = 2
COMMANDS = {"watcher": "watch", "meter": "meter", "lender": "lender"}  # part: command of manage.py


def agent(environ: Mapping[str, str]) -> Part:
    """The node agent: SIGINT stops every engine with its grace; only it may leave engines running behind."""
    cluster = environment.state_dir(environ) / "cluster"
    argv = _python("-m", "k8s.local.agent", "--root", str(cluster), "--engines", environ["MOORAGE_ENGINES"])
    return Part("agent", argv, stop_signal=signal.SIGINT, hurry_signal=signal.SIGINT, grace_s=AGENT_GRACE_S)


def databases(environ: Mapping[str, str]) -> list[Part]:
    """The embedded PostgreSQL and Redis, each only where the environment names no external one."""
    parts = []
    postgres = environment.embedded_postgres(environ)
    if environment.uses_embedded_postgres(environ):
        parts.append(
            Part(
                "postgres",
                tuple(postgres.command()),
                ready=postgres.is_ready,
                prepare=postgres.prepare,
                stop_signal=signal.SIGINT,
                hurry_signal=signal.SIGQUIT,
                grace_s=30,
            )
        )
    redis = environment.embedded_redis(environ)
    if environment.uses_embedded_redis(environ):
        parts.append(Part("redis", tuple(redis.command()), ready=redis.is_ready, prepare=redis.configure))
    return parts


def control(environ: Mapping[str, str]) -> list[Part]:
    """What works on the database's behalf: tasks and their timer, facts, usage and floats."""
    state = environment.state_dir(environ)
    celery = ("-m", "celery", "-A", "controlplane")
    return [
        Part(
            "worker",
            _python(*celery, "worker", "--loglevel=INFO", f"--concurrency={WORKER_PROCESSES}"),
            grace_s=40,
        ),
        Part("beat", _python(*celery, "beat", "--pidfile=", f"--schedule={state / 'beat-schedule'}")),
        *(Part(name, _python("manage.py", command)) for name, command in COMMANDS.items()),
    ]


def doors(environ: Mapping[str, str]) -> list[Part]:
    """What people and clients talk to: the gateway and the console with its API."""
    host, port = split(environ["WEB_LISTEN"])
    web = ("-m", "uvicorn", "controlplane.asgi:application", "--host", host, "--port", str(port))
    return [
        Part(
            "gateway",
            _python("-m", "inference.gateway"),
            ready=lambda: gateway_unready(environ) is None,
            grace_s=40,
            start_within_s=90,  # it waits for the meter, the lender and a first projection
        ),
        Part(
            "web",
            _python(*web, "--no-access-log", "--ws=none", "--timeout-graceful-shutdown=5"),
            ready=lambda: web_unready(environ) is None,
        ),
    ]


def gateway_unready(environ: Mapping[str, str]) -> str | None:
    """None when every gateway admits requests, else why one does not."""
    for url in environ["GATEWAY_INTERNAL_URLS"].split(","):
        try:
            status, body = get(f"{url}/internal/ready", bearer=environ["MOORAGE_INTERNAL_TOKEN"])
        except OSError as error:
            return f"{url} does not answer ({error})"
        if status != HTTPStatus.OK:
            return f"{url} answers {status}: {body}"
    return None


def web_unready(environ: Mapping[str, str]) -> str | None:
    """None when the console answers, else why it does not."""
    url = f"http://{environ['WEB_LISTEN']}/"
    try:
        status, body = get(url)
    except OSError as error:
        return f"{url} does not answer ({error})"
    return None if status < HTTPStatus.INTERNAL_SERVER_ERROR else f"{url} answers {status}: {body}"


def get(url: str, *, bearer: str = "", most: int = 500) -> tuple[int, str]:
    """Status and the first `most` bytes of the body. OSError when nothing answers within 5 s."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=5)
    try:
        connection.request("GET", parts.path, headers={"Authorization": f"Bearer {bearer}"} if bearer else {})
        response = connection.getresponse()
        return response.status, response.read(most).decode(errors="replace")
    except HTTPException as error:
        raise OSError(f"it does not speak HTTP: {error!r}") from error
    finally:
        connection.close()


def _python(*arguments: str) -> tuple[str, ...]:
    """A Python of ours that ends with the supervisor; file names are taken from the checkout."""
    resolved = [os.fspath(ROOT / item) if item == "manage.py" else item for item in arguments]
    return tuple(tied([sys.executable, *resolved], signal.SIGTERM))
