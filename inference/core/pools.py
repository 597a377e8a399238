"""A pool as its operator writes it down, completed by what the cluster's nodes say. Pure."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from k8s.cluster import Object
from k8s.desired import POOL_LABEL
from kernel.problems import INVALID_PARAMETER, Problem

_TEXTS = {"resource_name": "", "runtime_class": "", "weights_root": "/weights"}
_REQUIRED = ("name", "accelerator", "engine_images")
_OPTIONAL = ("node_selector", "weights_volume", "releases", "capacity", "arch", "tolerations")
# Taints that the cluster itself puts on a node and takes away: no pool's own.
_PASSING = "node.kubernetes.io/"


def pool_fields(entry: Any, nodes: Iterable[Object], accelerators: Collection[str]) -> dict[str, Any]:
    """Columns of the pool behind one entry of a pools file.

    `nodes`, `capacity`, `arch` and `tolerations` come from the nodes that the selector picks, unless the entry says
    one of the last three; the selector is the pool's own label unless the entry has one. Problem invalid_parameter
    names pool and field.
    """
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise _fault("?", "name", "is missing: every entry is a mapping with a name")
    name = entry["name"]
    for field in _REQUIRED:
        if not entry.get(field):
            raise _fault(name, field, "is missing")
    for field in entry:
        if field not in (*_REQUIRED, *_OPTIONAL, *_TEXTS):
            raise _fault(name, field, "is no field of a pool")
    if entry["accelerator"] not in accelerators:
        raise _fault(name, "accelerator", f"is not in the catalogue: {entry['accelerator']!r}")
    for repository, image in _mapping(entry, "engine_images").items():
        if not isinstance(image, Mapping) or set(image) != {"image", "version"}:
            raise _fault(name, f"engine_images.{repository}", "has image and version, nothing else")
    if not isinstance(entry.get("capacity", 0), int) or entry.get("capacity", 0) < 0:
        raise _fault(name, "capacity", "is a whole number of accelerators, 0 or more")
    selector = _mapping(entry, "node_selector") or {POOL_LABEL: name}
    own = _picked(nodes, selector)
    texts = {field: str(entry.get(field, default)) for field, default in _TEXTS.items()}
    offered = nodes_offered(own, selector, texts["resource_name"])
    return {
        "name": name,
        "accelerator": entry["accelerator"],
        **texts,
        "engine_images": entry["engine_images"],
        "node_selector": selector,
        "weights_volume": entry.get("weights_volume"),
        "releases": entry.get("releases"),
        "nodes": offered,
        "capacity": entry.get("capacity", sum(offered.values())),
        "arch": entry.get("arch") or _arch(name, own),
        "tolerations": entry.get("tolerations", _tolerations(own)),
    }


def nodes_offered(nodes: Iterable[Object], selector: Mapping[str, str], resource_name: str) -> dict[str, int]:
    """Accelerators of each node that a pool's selector picks; one where there is no resource to count them by."""
    return {node["metadata"]["name"]: _offered(node, resource_name) for node in _picked(nodes, selector)}


def _fault(pool: str, field: str, why: str) -> Problem:
    return Problem(INVALID_PARAMETER, f"pool {pool!r}: {field} {why}", param=field)


def _mapping(entry: Mapping[str, Any], field: str) -> dict[str, Any]:
    value = entry.get(field) or {}
    if not isinstance(value, Mapping):
        raise _fault(entry["name"], field, "is a mapping")
    return dict(value)


def _picked(nodes: Iterable[Object], selector: Mapping[str, str]) -> list[Object]:
    return [node for node in nodes if selector.items() <= node["metadata"].get("labels", {}).items()]


def _offered(node: Object, resource_name: str) -> int:
    return int(node.get("status", {}).get("allocatable", {}).get(resource_name, 0)) if resource_name else 1


def _arch(name: str, nodes: Iterable[Object]) -> str:
    found: set[str] = {node["metadata"]["labels"].get("kubernetes.io/arch", "") for node in nodes}
    if len(found) != 1:
        seen = f"its nodes have {', '.join(sorted(found))}" if found else "no node is there to tell it"
        raise _fault(name, "arch", f"must be said, amd64 or arm64: {seen}")
    return found.pop()


def _tolerations(nodes: Iterable[Object]) -> list[dict[str, str]]:
    """One per taint that keeps others off these nodes."""
    taints = {
        (taint["key"], taint.get("value", ""), taint["effect"])
        for node in nodes
        for taint in node["spec"].get("taints", [])
        if not taint["key"].startswith(_PASSING) and taint["effect"] != "PreferNoSchedule"
    }
    return [
        {"key": key, "effect": effect} | ({"operator": "Equal", "value": value} if value else {"operator": "Exists"})
        for key, value, effect in sorted(taints)
    ]
