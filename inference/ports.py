"""What inference asks of other rooms: callables that the composition root sets once, at start."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from kernel.wire import PodRecord


class Unavailable(Exception):
    """The other side cannot be reached now; the same call may succeed later."""


class HoldPlace(Protocol):
    def __call__(
        self, *, tenant_id: UUID, deployment_id: UUID, sku: str, region: str, pool: str, accelerator_seconds: int
    ) -> None:
        """Reserve money for that much of `sku`, in the caller's transaction; a repeat tops up to it.

        `pool` is `region/name` of the pool. Problem INSUFFICIENT_BALANCE or UNRATED.
        """


class ReservedHoldPlace(Protocol):
    def __call__(self, *, tenant_id: UUID, endpoint_id: UUID, sku: str, region: str, pool: str, ktpm: int) -> None:
        """Reserve the price of one day of that many kTPM, as `HoldPlace` does; for a raise, of what comes on top.

        Problem INSUFFICIENT_BALANCE or UNRATED.
        """


class HoldClose(Protocol):
    def __call__(self, *, deployment_id: UUID) -> None:
        """Return what the hold of a deployment, or of a reserved endpoint, has left; none open is no fault."""


@dataclass(frozen=True, slots=True)
class Ports:
    """`route_*` and `publish_pods` write the gateway's Redis whole, so a repeat is harmless; they raise
    Unavailable where it cannot be reached. `probe` is True once that pod gave one token through the
    gateway's internal listener, False for every failure.
    """

    hold_place: HoldPlace
    reserved_hold_place: ReservedHoldPlace
    hold_close: HoldClose
    route_project: Callable[[Collection[UUID]], None]
    route_remove: Callable[[UUID], None]
    publish_pods: Callable[[Mapping[UUID, Sequence[PodRecord]]], None]
    probe: Callable[[UUID, UUID], bool]


_ports: list[Ports] = []


def connect(ports: Ports) -> None:
    """Set the ports, replacing earlier ones."""
    _ports[:] = [ports]


def get() -> Ports:
    """The ports. RuntimeError before `connect`."""
    if not _ports:
        raise RuntimeError("inference has no ports: the composition root did not connect it")
    return _ports[0]
