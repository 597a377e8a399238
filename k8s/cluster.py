"""What the rest of Moorage knows of a cluster: one protocol, plain dict objects in Kubernetes' shape.

Implementations: `k8s.local.cluster.LocalCluster` (processes of this machine) and a real API server's client.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

Object = dict[str, Any]


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """The name of one object; `namespace` is "" for an object that lives in none."""

    api_version: str
    kind: str
    namespace: str
    name: str

    @classmethod
    def of(cls, item: Object) -> Self:
        """The name that a manifest or a stored object bears. KeyError without kind or name."""
        meta = item["metadata"]
        return cls(item["apiVersion"], item["kind"], meta.get("namespace", ""), meta["name"])

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Conflict:
    """Somebody else owns the object or changed it meanwhile: read again, then decide."""

    message: str


@dataclass(frozen=True, slots=True)
class Invalid:
    """The manifest itself is at fault: the same bytes will never pass."""

    message: str


@dataclass(frozen=True, slots=True)
class Quota:
    """The namespace's quota does not cover the object."""

    message: str


@dataclass(frozen=True, slots=True)
class Retry:
    """The cluster could not say: try again in `after_s` seconds. `silent` where nobody answered in time."""

    after_s: float
    message: str
    silent: bool = False


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of one manifest.

    `owned` stands for the fields that are ours now (`k8s.ownership`), "" where there was an error.
    """

    ref: Ref
    error: Conflict | Invalid | Quota | Retry | None = None
    owned: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Our objects (no pods among them), their pods and the nodes at one version."""

    objects: tuple[Object, ...]
    pods: tuple[Object, ...]
    nodes: tuple[Object, ...]
    version: str


@dataclass(frozen=True, slots=True)
class Change:
    """One object (ours, a pod or a node) as it is now, or, when `gone`, as it was last seen.

    `version` is the point to go on from: `changes(change.version)`. `more` says that the next one came with it.
    """

    object: Object
    gone: bool
    version: str
    more: bool = False


class UnreachableError(Exception):
    """The cluster did not answer a read; nothing is known about it right now."""


class SilentError(UnreachableError):
    """It took the call and said nothing in the time it had: whoever asks next would wait as long."""


class Cluster(Protocol):
    """One region's cluster. Does it not answer, `apply` returns Retry and the rest raise UnreachableError."""

    def apply(self, objects: Iterable[Object]) -> Sequence[Applied]:
        """Make the objects so, in order, one result each; never raises for a single object's fault."""
        ...

    def delete(self, refs: Iterable[Ref], *, grace_s: int | None) -> None:
        """Remove objects and all that hangs on them; absent ones are fine.

        `grace_s` is what their pods get between the word and the kill; None leaves each pod its own.
        """
        ...

    def list(self) -> Snapshot:
        """All that is ours, at one version."""
        ...

    def changes(self, since: str, *, timeout_s: float = 60.0) -> Iterator[Change]:
        """What changed after version `since`, as it happens, for `timeout_s` at most.

        May end at any time (a version too old ends it at once): the caller lists again. An object may
        come twice; none is left out.
        """
        ...

    def log(self, pod: Ref, lines: int) -> str:
        """The last lines that a pod's engine printed; "" where there are none."""
        ...
