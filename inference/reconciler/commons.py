"""What all deployments of a tenant share in a cluster: applied once by each process, not by each of their passes."""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from uuid import UUID
from weakref import WeakKeyDictionary

from k8s.cluster import Applied, Cluster, Object, Ref
from k8s.desired import DEPLOYMENT_LABEL

# Applies several lists of objects, each in its order, beside each other.
ApplyAll = Callable[[Cluster, Sequence[Sequence[Object]]], Sequence[Sequence[Applied]]]

# By the client, and so by its credentials: name -> digest of the manifest that it accepted last, and what came of it.
_held: WeakKeyDictionary[Cluster, dict[Ref, tuple[str, Applied]]] = WeakKeyDictionary()


def apply(
    cluster: Cluster, wanted: Mapping[UUID, Sequence[Object]], apply_all: ApplyAll, *, again: Collection[UUID]
) -> dict[UUID, list[Applied]]:
    """Have each deployment's objects applied; results by deployment, of all of them.

    Shared objects come first, each once, and not where this process has had them accepted as they are: unless the
    deployment is one of `again`, for which the cluster may hold something else by now, or there was a fault since.
    """
    held = _held.setdefault(cluster, {})
    shared: dict[str, dict[Ref, Object]] = {}
    for deployment_id, objects in wanted.items():
        for item in filter(_is_shared, objects):
            ref = Ref.of(item)
            if deployment_id in again or held.get(ref, ("",))[0] != _digest(item):
                shared.setdefault(ref.namespace or ref.name, {})[ref] = item
    common = {result.ref: result for result in chain(*apply_all(cluster, [[*of.values()] for of in shared.values()]))}
    for ref, item in chain(*(of.items() for of in shared.values())):
        held[ref] = _digest(item), common[ref]
    own = apply_all(cluster, [[item for item in objects if not _is_shared(item)] for objects in wanted.values()])
    found = {}
    for (deployment_id, objects), results in zip(wanted.items(), own, strict=True):
        refs = [Ref.of(item) for item in objects if _is_shared(item)]
        found[deployment_id] = [*(held[ref][1] for ref in refs), *results]
    for result in chain(*found.values()):
        if result.error is not None:
            _forget(held, result.ref.namespace or result.ref.name)
    return found


def _forget(held: dict[Ref, tuple[str, Applied]], namespace: str) -> None:
    for ref in [ref for ref in held if namespace in (ref.namespace, ref.name)]:
        del held[ref]


def _is_shared(item: Object) -> bool:
    return DEPLOYMENT_LABEL not in item["metadata"]["labels"]


def _digest(item: Object) -> str:
    return hashlib.sha256(json.dumps(item, sort_keys=True).encode()).hexdigest()
