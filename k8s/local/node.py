"""This machine as one Kubernetes node: its capacity, whether a pod fits, and the addresses that pods get."""

import hashlib
import os
import platform
import socket
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from k8s.cluster import Object

NODE_NAME = "local"

_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}
_UNITS = {
    "Ki": Decimal(1 << 10),
    "Mi": Decimal(1 << 20),
    "Gi": Decimal(1 << 30),
    "Ti": Decimal(1 << 40),
    "m": Decimal("0.001"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
}


def node_object(resources: Mapping[str, int], labels: Mapping[str, str]) -> Object:
    """The node with this machine's CPUs and memory, and the extended `resources` given by name."""
    capacity = {
        "cpu": str(os.cpu_count() or 1),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') >> 10}Ki",
        **{name: str(count) for name, count in resources.items()},
    }
    own = {
        "kubernetes.io/arch": _ARCH.get(platform.machine(), platform.machine()),
        "kubernetes.io/hostname": NODE_NAME,
        "kubernetes.io/os": "linux",
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE_NAME, "labels": {**own, **labels}},
        "spec": {},
        "status": {
            "capacity": capacity,
            "allocatable": capacity,
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        },
    }


def misfit(pod: Object, node: Object, placed: Sequence[Object]) -> str | None:
    """Why the node cannot take the pod beside those `placed`, in the scheduler's words; None when it can."""
    selector = pod["spec"].get("nodeSelector", {})
    if not selector.items() <= node["metadata"]["labels"].items():
        return "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
    free = {name: quantity(text) for name, text in node["status"]["allocatable"].items()}
    for other in placed:
        for name, wanted in _requests(other).items():
            free[name] = free.get(name, Decimal(0)) - wanted
    short = [name for name, wanted in _requests(pod).items() if wanted > free.get(name, Decimal(0))]
    if not short:
        return None
    return f"0/1 nodes are available: {', '.join(f'1 Insufficient {name}' for name in sorted(short))}."


def quantity(text: str) -> Decimal:
    """A Kubernetes quantity as a number. ValueError for text that is none."""
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    try:
        return Decimal(text.removesuffix(unit)) * _UNITS.get(unit, Decimal(1))
    except ArithmeticError as error:
        raise ValueError(f"{text!r} is not a quantity") from error


def addresses(root: Path, uid: str) -> Iterator[str]:
    """The 254 loopback addresses of one ROOT, from a place that the uid picks.

    Two agents on one machine rarely share a block, and a new pod rarely gets its predecessor's address:
    a request still on its way to the old one does not reach the new one.
    """
    mark = hashlib.sha256(str(root.resolve()).encode()).digest()
    first = hashlib.sha256(uid.encode()).digest()[0]
    for step in range(254):
        yield f"127.{64 + mark[0] % 64}.{mark[1]}.{1 + (first + step) % 254}"


def is_free(address: str, port: int) -> bool:
    """Whether a program could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def _requests(pod: Object) -> dict[str, Decimal]:
    """What a pod asks for; a limit without a request is one."""
    resources = pod["spec"]["containers"][0].get("resources", {})
    asked = {**resources.get("limits", {}), **resources.get("requests", {})}
    return {name: quantity(text) for name, text in asked.items()}
