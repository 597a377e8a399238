"""From a pod's container to a command line: environment, `$(VAR)`, volumes, virtual environment."""

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from k8s.cluster import Object
from k8s.local.admission import IMAGE

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)")


@dataclass(frozen=True, slots=True)
class Launch:
    """What to execute, with which environment; nothing of the agent's own environment is in it."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


class CannotStartError(Exception):
    """The container cannot be started as things are; `reason` is Kubernetes' word for it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def launch(pod: Object, *, address: str, engines: Path, folder: Path) -> Launch:
    """How to run the pod's container on this machine. CannotStartError when its image is not installed.

    An emptyDir is a folder of the pod: paths below its mountPath are moved there in arguments and values,
    except for shared memory, which is the machine's own.
    """
    container = pod["spec"]["containers"][0]
    binaries = _environment(container["image"], engines) / "bin"
    mounts = _mounts(pod, folder)
    env = {
        "PATH": f"{binaries}:/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "TMPDIR": str(temporary(pod["metadata"]["uid"])),
    }
    for variable in container.get("env", []):
        env[variable["name"]] = _moved(_value(variable, pod, address, env), mounts)
    words = [*container["command"], *container.get("args", [])]
    argv = [_moved(_expanded(word, env), mounts) for word in words]
    program = shutil.which(argv[0], path=env["PATH"])
    if program is None:
        raise CannotStartError("RunContainerError", f"{argv[0]} is no program of {binaries}: run `make engine`")
    return Launch((program, *argv[1:]), env)


def temporary(uid: str) -> Path:
    """The pod's TMPDIR: short, for a unix socket's path may have 107 characters."""
    return Path(tempfile.gettempdir()) / f"moorage-{uid[:13]}"


def _environment(image: str, engines: Path) -> Path:
    match = IMAGE.fullmatch(image)
    if match is None:
        raise CannotStartError("InvalidImageName", f"{image} is not of engine.moorage.local/NAME:TAG")
    folder = engines.resolve() / f"{match[1]}-{match[2]}"
    if not (folder / "bin").is_dir():
        raise CannotStartError("ErrImagePull", f"{image} is not installed in {folder}: run `make engine`")
    return folder


def _mounts(pod: Object, folder: Path) -> dict[str, str]:
    """Folder of the pod by mountPath, made if absent."""
    volumes = {volume["name"]: volume["emptyDir"] for volume in pod["spec"].get("volumes", [])}
    mounts = {}
    for mount in pod["spec"]["containers"][0].get("volumeMounts", []):
        if volumes.get(mount["name"], {}).get("medium") == "Memory":
            continue
        place = folder.resolve() / "volumes" / mount["name"]
        place.mkdir(parents=True, exist_ok=True)
        mounts[mount["mountPath"].rstrip("/")] = str(place)
    return mounts


def _moved(text: str, mounts: Mapping[str, str]) -> str:
    for path, place in mounts.items():
        if text == path or text.startswith(f"{path}/"):
            return place + text[len(path) :]
    return text


def _value(variable: Mapping[str, Any], pod: Object, address: str, env: Mapping[str, str]) -> str:
    if "valueFrom" not in variable:
        return _expanded(variable.get("value", ""), env)
    meta = pod["metadata"]
    facts: dict[str, str] = {
        "status.podIP": address,
        "metadata.name": meta["name"],
        "metadata.namespace": meta["namespace"],
        "metadata.uid": meta["uid"],
    }
    path: str = variable["valueFrom"]["fieldRef"]["fieldPath"]
    return facts[path]


def _expanded(text: str, env: Mapping[str, str]) -> str:
    """`$(VAR)` by its value, `$$` is one dollar, an unknown name stays as it is: Kubernetes' own rule."""

    def replacement(match: re.Match[str]) -> str:
        return "$" if match[1] is None else env.get(match[1], match[0])

    return _REFERENCE.sub(replacement, text)
