"""What all deployments of a tenant share in a cluster: applied once by each process, not by each of their passes."""

import hashlib
import json
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from k8s.cluster import Applied, Cluster, Object, Ref
from k8s.desired import DEPLOYMENT_LABEL

# By the client, and so by its credentials: name -> digest of the manifest that it accepted last, and what came of it.
_held: WeakKeyDictionary[Cluster, dict[Ref, tuple[str, Applied]]] = WeakKeyDictionary()


def apply(cluster: Cluster, objects: Sequence[Object], *, again: bool) -> list[Applied]:
    """As Cluster.apply, without the shared objects that this process has had accepted as they are.

    `again` applies all of them: the cluster may hold something else by now. So does the next call after a fault.
    """
    held = _held.setdefault(cluster, {})
    digests = {Ref.of(item): _digest(item) for item in objects if DEPLOYMENT_LABEL not in item["metadata"]["labels"]}
    known = {ref: held[ref][1] for ref, digest in digests.items() if ref in held and held[ref][0] == digest}
    if again:
        known = {}
    results = [*known.values(), *cluster.apply([item for item in objects if Ref.of(item) not in known])]
    if any(result.error is not None for result in results):
        for ref in digests:
            held.pop(ref, None)
    else:
        held.update({result.ref: (digests[result.ref], result) for result in results if result.ref in digests})
    return results


def _digest(item: Object) -> str:
    return hashlib.sha256(json.dumps(item, sort_keys=True).encode()).hexdigest()
