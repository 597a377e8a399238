"""Which fields of an object are ours, as a digest: it changes once another hand has set or dropped one. Pure."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from k8s.cluster import Object, Ref

FIELD_MANAGER = "moorage"
# What a server says of an object beside what its appliers decide.
SERVER_METADATA = ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields")


def ours(item: Object) -> list[Any]:
    """The entry of `managedFields` that names the fields of our last apply; at most one."""
    entries = item["metadata"].get("managedFields", [])
    return [entry for entry in entries if (entry["manager"], entry["operation"]) == (FIELD_MANAGER, "Apply")]


def decided(item: Object) -> Object:
    """What appliers decide of an object: neither its status nor the server's own metadata."""
    meta = {key: value for key, value in item["metadata"].items() if key not in SERVER_METADATA}
    return {**{key: value for key, value in item.items() if key != "status"}, "metadata": meta}


def owned(item: Object) -> str:
    """The digest of one object. Where no server keeps book of managers, all of it is ours, values too."""
    if "managedFields" in item["metadata"]:
        return _digest([entry["fieldsV1"] for entry in ours(item)])
    return _digest(decided(item))


def combined(digests: Mapping[Ref, str]) -> str:
    """One digest for several objects; one that is missing or new changes it."""
    return _digest(sorted((str(ref), digest) for ref, digest in digests.items()))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
