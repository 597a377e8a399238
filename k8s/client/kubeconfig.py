"""A kubeconfig that stands alone: one context, with what lay in files beside it taken in."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# By the key that names a file: the key that holds its bytes.
_FILES = {
    "certificate-authority": "certificate-authority-data",
    "client-certificate": "client-certificate-data",
    "client-key": "client-key-data",
}
_PROGRAMS = ("exec", "auth-provider")


def standalone(kubeconfig: Mapping[str, Any], folder: Path, *, context: str | None = None) -> dict[str, Any]:
    """The context (the current one unless named) with its cluster and user alone; file names are from `folder`.

    ValueError where a part is missing, a file cannot be read, or the user is whoever a program says.
    """
    name = context or kubeconfig.get("current-context") or ""
    chosen = _named(kubeconfig, "contexts", name).get("context", {})
    cluster = _taken_in(_named(kubeconfig, "clusters", chosen.get("cluster", "")).get("cluster", {}), folder)
    user = _taken_in(_named(kubeconfig, "users", chosen.get("user", "")).get("user", {}), folder)
    for program in _PROGRAMS:
        if program in user:
            raise ValueError(
                f"user {chosen['user']!r} signs in by {program}, which only works where that program is; "
                "make a service account and give its token"
            )
    if token_file := user.pop("tokenFile", None):
        user["token"] = _read(folder / token_file).decode().strip()
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "contexts": [{"name": name, "context": {"cluster": chosen["cluster"], "user": chosen["user"]}}],
        "clusters": [{"name": chosen["cluster"], "cluster": cluster}],
        "users": [{"name": chosen["user"], "user": user}],
    }


def _named(kubeconfig: Mapping[str, Any], section: str, name: str) -> Mapping[str, Any]:
    found = next((item for item in kubeconfig.get(section) or () if item.get("name") == name), None)
    if found is None:
        raise ValueError(f"the kubeconfig has no {name!r} among its {section}")
    return dict(found)


def _taken_in(part: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    own = dict(part)
    for key, data_key in _FILES.items():
        if file := own.pop(key, None):
            own.setdefault(data_key, base64.b64encode(_read(folder / file)).decode())
    return own


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}, which the kubeconfig names, cannot be read: {error.strerror}") from error
