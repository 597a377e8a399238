"""What `manage.py doctor` looks at: each check returns what it saw or raises Trouble with the way out."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from django.db import DatabaseError
from redis import Redis
from redis.exceptions import RedisError

from controlplane.database import ROLES
from controlplane.embedded import checks, environment, parts, ports
from controlplane.embedded.environment import ROOT
from controlplane.embedded.lock import holder_pid
from controlplane.embedded.supervisor import STATUS_FILE
from controlplane.secrets import role_password
from inference import clusters
from inference.orphans import cluster_state
from k8s.local.cluster import AGENT_LOCK
from kernel import wire

Environ = Mapping[str, str]
AGENT_SILENCE_S = 20.0
LAGS_BYTES = 100_000
LAG = re.compile(r'^\w+\{meter="(\w+)"(?:,gateway="([^"]*)")?\} ([\d.]+)$', re.MULTILINE)


class Trouble(Exception):
    """What is wrong, and what to do about it, in one sentence."""


def disk(environ: Environ) -> str:
    """Room to write."""
    state = environment.state_dir(environ)
    try:
        checks.require_disk(state)
    except checks.NotPossible as error:
        raise Trouble(str(error)) from error
    return f"{shutil.disk_usage(state).free / 10**9:.0f} GB free"


def engine(environ: Environ) -> str:
    """The engine's own Python finds vLLM and its name."""
    engines = Path(environ["MOORAGE_ENGINES"])
    python = engines / checks.ENGINE / "bin" / "python"
    code = "from importlib import metadata, util;print(metadata.version('vllm'), util.find_spec('vllm').origin)"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise Trouble(f"vLLM cannot be found by {python} ({error}): run `make engine`") from error
    return "vllm {} at {}".format(*done.stdout.split())


def supervisor(environ: Environ) -> str:
    """Somebody keeps the processes running."""
    pid = holder_pid(environment.state_dir(environ) / "supervisor.lock")
    if pid is None:
        raise Trouble("nothing keeps Moorage running here: run `make up`")
    return f"pid {pid}"


def processes(environ: Environ) -> str:
    """Every part has a live process that does not keep crashing."""
    state = environment.state_dir(environ)
    status = state / STATUS_FILE
    running: dict[str, dict[str, int]] = json.loads(status.read_text()) if status.exists() else {}
    wanted = [parts.agent(environ), *parts.databases(environ), *parts.control(environ), *parts.doors(environ)]
    for part in wanted:
        log = state / "log" / f"{part.name}.log"
        if part.name not in running or not Path(f"/proc/{running[part.name]['pid']}").exists():
            raise Trouble(f"{part.name} does not run: read {log}, or run `make up`")
        if running[part.name]["failures"]:
            raise Trouble(f"{part.name} ended {running[part.name]['failures']} times by itself: read {log}")
    return ", ".join(part.name for part in wanted)


def agent(environ: Environ) -> str:
    """The node agent is at work, not only alive: it touches its lock every few seconds."""
    beat = environment.state_dir(environ) / "cluster" / AGENT_LOCK
    age_s = time.time() - beat.stat().st_mtime if beat.exists() else None
    if age_s is None or age_s > AGENT_SILENCE_S:
        since = "never worked here" if age_s is None else f"has been silent for {age_s:.0f} s"
        raise Trouble(f"the node agent {since}, so no engine starts or stops: read its log, or run `make up`")
    return f"worked {age_s:.0f} s ago"


def database_roles(environ: Environ) -> str:
    """PostgreSQL lets each of the four roles in."""
    url = urlsplit(environ["DATABASE_URL"])
    version = ""
    for role in ROLES:
        try:
            with psycopg.connect(
                host=url.hostname,
                port=url.port or 5432,
                dbname=url.path.strip("/"),
                user=url.username or f"moorage_{role}",
                password=url.password or role_password(environ["MOORAGE_SECRET_KEY"], role),
                connect_timeout=3,
            ) as connection:
                version = str(connection.info.parameter_status("server_version"))
        except psycopg.OperationalError as error:
            where = f"{url.hostname}:{url.port or 5432}"
            raise Trouble(
                f"PostgreSQL at {where} does not let moorage_{role} in ({str(error).splitlines()[0]}): "
                "run `make up`, or `manage.py bootstrap` for an external one"
            ) from error
    return f"PostgreSQL {version}, roles {', '.join(ROLES)}"


def migrations(environ: Environ) -> str:
    """The tables are those of this version."""
    done = subprocess.run(
        [sys.executable, ROOT / "manage.py", "migrate", "--check"],
        env=environment.for_children(environ),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Trouble("the tables are not those of this version: run `manage.py migrate` (`make up` does)")
    return "all applied"


def regions(_: Environ) -> str:
    """Every cluster answers, and nothing in it is of deployments that the database does not know."""
    try:
        states = [cluster_state(name) for name in clusters.names()]
    except DatabaseError as error:
        raise Trouble(f"the database cannot say which clusters there are ({error}): run `make up`") from error
    for state in states:
        if state.silence:
            raise Trouble(
                f"cluster {state.name} does not answer ({state.silence}): mend it, or give its new kubeconfig "
                "by `manage.py cluster add`"
            )
        if state.orphans:
            raise Trouble(
                f"cluster {state.name} holds {len(state.orphans)} objects of our tenants that the database does not "
                f"know: see `manage.py cluster orphans {state.name}`"
            )
    return ", ".join(f"{state.name} {state.nodes} node{'s' * (state.nodes != 1)}" for state in states)


def float_redis(environ: Environ) -> str:
    """Redis answers and is the one that the lender lent money to."""
    url = environ["REDIS_GATEWAY_URL"]
    try:
        with Redis.from_url(url, socket_timeout=3, decode_responses=True) as client:
            run_id = str(client.info("server")["run_id"])
            lent_to = client.get(wire.FLOAT_RUN)
    except RedisError as error:
        raise Trouble(f"Redis at {urlsplit(url).hostname} does not answer ({error}): run `make up`") from error
    if lent_to != run_id:
        raise Trouble(
            "no money is lent to this Redis yet, so no request is admitted: the lender does it within "
            "seconds after Redis started; if this stays, read the log of the lender"
        )
    return f"run {run_id[:8]}, floats are lent"


def gateway(environ: Environ) -> str:
    """Every gateway admits requests: its projection, its meter and its lender are there."""
    reason = parts.gateway_unready(environ)
    if reason:
        raise Trouble(f"the gateway admits nothing, {reason}; read the log of the gateway")
    return "admits requests"


def meter(environ: Environ) -> str:
    """Usage is being booked: how far each kind of it lies behind. A request counts until it has ended."""
    listen = environ.get("METER_METRICS_LISTEN")
    if not listen:
        raise Trouble("nobody knows how far metering lies behind: set METER_METRICS_LISTEN, or run `make up`")
    try:
        token = environ["MOORAGE_INTERNAL_TOKEN"]
        status, body = parts.get(f"http://{listen}/metrics", bearer=token, most=LAGS_BYTES)
    except OSError as error:
        raise Trouble(f"the meter at {listen} does not answer ({error}): read the log of the meter") from error
    lags = [f"{gateway or kind} {float(seconds):.0f} s" for kind, gateway, seconds in LAG.findall(body)]
    if status != HTTPStatus.OK or not lags:
        raise Trouble(f"the meter at {listen} tells no lag, it answers {status}: read the log of the meter")
    return f"behind by: {', '.join(lags)}"


def web(environ: Environ) -> str:
    """The console answers."""
    reason = parts.web_unready(environ)
    if reason:
        raise Trouble(f"the console does not work, {reason}; read the log of web")
    return f"http://{environ['WEB_LISTEN']}"


def listeners(environ: Environ) -> str:
    """The public ports are held by our own processes."""
    status = environment.state_dir(environ) / STATUS_FILE
    running = json.loads(status.read_text()) if status.exists() else {}
    seen = []
    for variable, part in (("WEB_LISTEN", "web"), ("GATEWAY_LISTEN", "gateway")):
        port = ports.split(environ[variable])[1]
        holder = ports.holder_of(environ[variable])
        if holder is None:
            raise Trouble(f"nobody listens on port {port} of {variable}: run `make up`")
        if f"(pid {running.get(part, {}).get('pid')})" not in holder:
            raise Trouble(f"port {port} of {variable} is held by {holder}, not by our {part}: stop it")
        seen.append(f"{part} {port}")
    return ", ".join(seen)


CHECKS: dict[str, Callable[[Environ], str]] = {
    "disk": disk,
    "engine": engine,
    "supervisor": supervisor,
    "processes": processes,
    "agent": agent,
    "database": database_roles,
    "migrations": migrations,
    "clusters": regions,
    "redis": float_redis,
    "gateway": gateway,
    "meter": meter,
    "web": web,
    "ports": listeners,
}


def examine(environ: Environ) -> dict[str, tuple[bool, str]]:
    """Every check's name with whether it holds and what to say about it."""
    findings = {}
    for name, check in CHECKS.items():
        try:
            findings[name] = (True, check(environ))
        except Trouble as trouble:
            findings[name] = (False, str(trouble))
    return findings
