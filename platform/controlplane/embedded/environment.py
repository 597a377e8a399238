"""The environment that all processes of one installation share: what is set wins, the rest is made up once.

Without DATABASE_URL or REDIS_URL the embedded ones are meant; their ports and the one secret that
everything else derives from are kept in the state folder.
"""

import os
import secrets
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from controlplane.embedded import ports
from controlplane.embedded.postgres import Postgres
from controlplane.embedded.redis import Redis
from controlplane.secrets import derive, internal_token, key_pepper

ROOT = Path(__file__).resolve().parents[3]
DATABASE = "moorage"
PORTS_FILE = "ports.json"


def state_dir(environ: Mapping[str, str]) -> Path:
    """The folder of everything that this installation keeps, absolute."""
    return Path(environ.get("MOORAGE_STATE_DIR", ROOT / ".moorage")).resolve()


def embedded_postgres(environ: Mapping[str, str]) -> Postgres:
    """The embedded PostgreSQL of a completed environment."""
    state = state_dir(environ)
    secret = environ["MOORAGE_SECRET_KEY"]
    return Postgres(state / "postgres", _private_ports(state)["postgres"], derive(secret, "postgres:postgres"))


def embedded_redis(environ: Mapping[str, str]) -> Redis:
    """The embedded Redis of a completed environment."""
    state = state_dir(environ)
    secret = environ["MOORAGE_SECRET_KEY"]
    return Redis(state / "redis", _private_ports(state)["redis"], derive(secret, "redis"))


def database_url(postgres: Postgres) -> str:
    """DATABASE_URL of the embedded PostgreSQL: the role and its password follow from the process."""
    return f"postgres://127.0.0.1:{postgres.port}/{DATABASE}"


def uses_embedded_postgres(environ: Mapping[str, str]) -> bool:
    """Whether the database of a completed environment is the embedded one, which must be started."""
    return environ["DATABASE_URL"] == database_url(embedded_postgres(environ))


def uses_embedded_redis(environ: Mapping[str, str]) -> bool:
    """Whether the broker of a completed environment is the embedded one, which must be started."""
    return environ["REDIS_URL"] == embedded_redis(environ).url(0)


def complete(environ: MutableMapping[str, str], *, create: bool) -> None:
    """Fill in what is missing. Only with `create` is anything written; without a secret nothing changes."""
    state = state_dir(environ)
    secret_file = state / "secret"
    if create:
        state.mkdir(parents=True, exist_ok=True)
        if not secret_file.exists() and "MOORAGE_SECRET_KEY" not in environ:
            secret_file.touch(mode=0o600)
            secret_file.write_text(secrets.token_hex(32))
    secret = environ.get("MOORAGE_SECRET_KEY") or (secret_file.read_text() if secret_file.exists() else "")
    if not secret:
        return
    environ["MOORAGE_SECRET_KEY"] = secret
    environ["MOORAGE_STATE_DIR"] = str(state)
    if create or (state / PORTS_FILE).exists():
        environ.setdefault("DATABASE_URL", database_url(embedded_postgres(environ)))
        environ.setdefault("REDIS_URL", embedded_redis(environ).url(0))
        environ.setdefault("METER_METRICS_LISTEN", f"127.0.0.1:{_private_ports(state)['meter']}")
    if "REDIS_URL" in environ:
        environ.setdefault("REDIS_GATEWAY_URL", f"{environ['REDIS_URL'].rsplit('/', 1)[0]}/1")
    gateway_listen = environ.setdefault("GATEWAY_LISTEN", "127.0.0.1:8080")
    internal_listen = environ.setdefault("GATEWAY_INTERNAL_LISTEN", "127.0.0.1:8081")
    defaults = {
        "WEB_LISTEN": "127.0.0.1:8000",
        "GATEWAY_ID": "gw-1",
        "GATEWAY_JOURNAL_DIR": str(state / "journal"),
        "GATEWAY_URL": f"http://{gateway_listen}",
        "GATEWAY_INTERNAL_URLS": f"http://{internal_listen}",
        "MOORAGE_REGION": "local",
        "MOORAGE_ENGINES": str(ROOT / ".engines"),
        "MOORAGE_INTERNAL_TOKEN": internal_token(secret),
        "MOORAGE_KEY_PEPPER": key_pepper(secret),
    }
    for name, value in defaults.items():
        environ.setdefault(name, value)


def for_children(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of the supervisor's children: both source roots on the path, output unbuffered."""
    children = dict(environ) | {
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "platform"))),
        "PYTHONUNBUFFERED": "1",
    }
    # Each process states its own role; an engine that may not write bytecode compiles vLLM at every start.
    for name in ("MOORAGE_ROLE", "PYTHONDONTWRITEBYTECODE"):
        children.pop(name, None)
    return children


def _private_ports(state: Path) -> dict[str, int]:
    return ports.keep(state / PORTS_FILE, ("postgres", "redis", "meter"))
