"""The closed sets of words that rows and API share."""

from enum import StrEnum


class Rung(StrEnum):
    """How a customer buys: per token on the operator's engines, or whole accelerators of their own."""

    SHARED = "shared"
    DEDICATED = "dedicated"
    RESERVED = "reserved"


class Visibility(StrEnum):
    """Who may read and call an endpoint: its tenant, or every tenant."""

    PRIVATE = "private"
    PUBLIC = "public"


class ReplicaState(StrEnum):
    """A new pod proves itself with one token before customers reach it."""

    PROVING = "proving"
    SERVING = "serving"
    GONE = "gone"


class Phase(StrEnum):
    """The customer's word for an endpoint, derived from its conditions and never stored."""

    REQUESTED = "requested"
    WAITING_CAPACITY = "waiting_capacity"
    PROVISIONING = "provisioning"
    LOADING = "loading"
    RUNNING = "running"
    DEGRADED = "degraded"
    UPDATING = "updating"
    UPDATE_FAILED = "update_failed"
    SCALED_TO_ZERO = "scaled_to_zero"
    WAKING = "waking"
    PAUSING = "pausing"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    FAILED = "failed"
    DELETING = "deleting"
    DELETED = "deleted"


class Finalizer(StrEnum):
    """What must be undone before an endpoint is archived, in this order."""

    ROUTE = "route"
    WORKLOAD = "workload"
    METERING = "metering"
    HOLD = "hold"


def words(kind: type[StrEnum]) -> list[str]:
    """A set of words as plain texts: what a CHECK constraint lists."""
    return [word.value for word in kind]


def choices(kind: type[StrEnum]) -> list[tuple[str, str]]:
    """A set of words as a Django field wants it."""
    return [(word, word) for word in words(kind)]
