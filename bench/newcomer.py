"""How long a newcomer waits: clone, `make up` to ready, `make demo` to the first token, cold and warm caches.

The limit is what no product can go below: a bare sync of the same two locks into fresh environments and a
bare `vllm serve` of the same model to its first token. Ours and the limit alternate in one run; cold means
empty caches of uv and pip, warm means those that the same side's cold run left. Needs 25 GB of disk.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
READY = re.compile("Moorage is ready")
FIRST_TOKEN = re.compile(" says: .")
PATIENCE_S = 1800
ENGINE_FLAGS = [
    "--dtype=bfloat16",
    "--enforce-eager",
    "--max-model-len=2048",
    "--max-num-seqs=16",
    "--kv-cache-memory-bytes=64M",
]
ENGINE_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "TORCH_COMPILE_DISABLE": "1"}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="moorage-newcomer-") as folder:
        runs = {}
        for caches in ("cold", "warm"):
            for name, measure in (("limit", measure_limit), ("ours", measure_ours)):
                note(f"{name}, {caches} caches")
                runs[name, caches] = measure(Path(folder) / name)
                note(json.dumps(runs[name, caches]))
    sides: dict[str, dict[str, float]] = {"ours": {}, "limit": {}}
    for (name, caches), seconds in runs.items():
        sides[name] |= {f"{caches}_{part}": value for part, value in seconds.items()}
    result = {
        "bench": "newcomer",
        "machine": {"cores": os.cpu_count(), "memory_gib": memory_gib()},
        **sides,
        "peers": {},
        "ratio": {
            caches: round(runs["ours", caches]["total_s"] / runs["limit", caches]["total_s"], 2)
            for caches in ("cold", "warm")
        },
    }
    print(json.dumps(result))


def measure_ours(folder: Path) -> dict[str, float]:
    """Seconds of each step of a newcomer, in a fresh clone with an empty home."""
    checkout, home = folder / "moorage", folder / "home"
    for old in (checkout, home):
        shutil.rmtree(old, ignore_errors=True)
    home.mkdir(parents=True)
    environment = newcomer_environment(folder, home) | {
        name: f"127.0.0.1:{free_port()}" for name in ("WEB_LISTEN", "GATEWAY_LISTEN", "GATEWAY_INTERNAL_LISTEN")
    }
    began_s = time.monotonic()
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], check=True, env=environment)
    cloned_s = time.monotonic()
    with process(["make", "up"], checkout, environment, stop=["make", "stop"]) as up:
        wait_for_text(up, READY)
        ready_s = time.monotonic()
        with process(["make", "demo"], checkout, environment) as demo:
            wait_for_text(demo, FIRST_TOKEN)
            first_token_s = time.monotonic()
            demo.communicate(timeout=PATIENCE_S)
    return {
        "clone_s": round(cloned_s - began_s, 1),
        "up_s": round(ready_s - cloned_s, 1),
        "demo_first_token_s": round(first_token_s - ready_s, 1),
        "total_s": round(first_token_s - began_s, 1),
    }


def measure_limit(folder: Path) -> dict[str, float]:
    """Seconds of the bare minimum: both locks synced, then the engine alone to its first token."""
    venvs, home = folder / "venvs", folder / "home"
    for old in (venvs, home):
        shutil.rmtree(old, ignore_errors=True)
    home.mkdir(parents=True)
    environment = newcomer_environment(folder, home)
    uv = str(ROOT / ".uv" / "bin" / "uv")
    began_s = time.monotonic()
    for name, lock in (("control", "requirements.txt"), ("engine", "requirements/engine-cpu.txt")):
        python = str(venvs / name / "bin" / "python")
        subprocess.run(
            [uv, "venv", "--quiet", "--python", sys.executable, str(venvs / name)],
            check=True,
            env=environment,
        )
        sync = [uv, "pip", "sync", "--quiet", "--python", python, "--require-hashes", "--no-build"]
        subprocess.run([*sync, str(ROOT / lock)], check=True, env=environment)
    installed_s = time.monotonic()
    engine = venvs / "engine" / "bin"
    model = folder / "model"
    subprocess.run([engine / "python", ROOT / "scripts" / "name_engine.py"], check=True, env=environment)
    subprocess.run([engine / "python", ROOT / "scripts" / "build_tiny_model.py", model], check=True, env=environment)
    served_s = time.monotonic()
    port = free_port()
    serve = [str(engine / "vllm"), "serve", str(model), "--host=127.0.0.1", f"--port={port}", *ENGINE_FLAGS]
    with process(serve, folder, environment | ENGINE_ENVIRONMENT):
        wait_for_token(f"http://127.0.0.1:{port}/v1/completions", str(model))
        first_token_s = time.monotonic()
    return {
        "install_s": round(installed_s - began_s, 1),
        "serve_first_token_s": round(first_token_s - served_s, 1),
        "total_s": round(installed_s - began_s + first_token_s - served_s, 1),
    }


def newcomer_environment(folder: Path, home: Path) -> dict[str, str]:
    """An empty home and caches of this side's own; of ours only how to reach the package registries."""
    reach = re.compile(r"PATH|LANG|.*CERT.*|.*INDEX.*|.*proxy", re.IGNORECASE)
    return {name: value for name, value in os.environ.items() if reach.fullmatch(name)} | {
        "HOME": str(home),
        "PYTHON": f"{sys.base_prefix}/bin/python3.11",
        "UV_CACHE_DIR": str(folder / "uv-cache"),
        "PIP_CACHE_DIR": str(folder / "pip-cache"),
        "UV_NO_CONFIG": "1",
    }


@contextmanager
def process(
    argv: list[str], cwd: Path, environment: Mapping[str, str], stop: list[str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its output at hand, ended by the command `stop` or by SIGTERM to its whole group."""
    child = subprocess.Popen(
        argv,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        if stop is not None:
            subprocess.run(stop, cwd=cwd, env=environment, check=False, stdout=sys.stderr)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        child.communicate(timeout=PATIENCE_S)


def wait_for_text(child: subprocess.Popen[bytes], pattern: re.Pattern[str]) -> None:
    """Read the output, which is shown as it comes, until `pattern` is in it."""
    assert child.stdout is not None
    seen = ""
    while chunk := os.read(child.stdout.fileno(), 4096).decode(errors="replace"):
        print(chunk, end="", file=sys.stderr, flush=True)
        seen += chunk
        if pattern.search(seen):
            return
    raise SystemExit(f"{child.args!r} ended before it said {pattern.pattern!r}")


def wait_for_token(url: str, model: str) -> None:
    """Ask again and again until the first streamed token comes."""
    body = json.dumps({"model": model, "prompt": "Hello", "max_tokens": 4, "stream": True}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        with suppress(OSError), urllib.request.urlopen(request, timeout=60) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    return
        time.sleep(0.2)
    raise SystemExit("the bare engine gave no token")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def memory_gib() -> int:
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
