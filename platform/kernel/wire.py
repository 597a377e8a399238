"""Names and encodings of everything in the gateway's Redis: one module owns them.

Intent (`key`, `route`, `sheets`, `shared`, `endpoints`, `epoch`) is written by the projection, facts
(`pods`) by watcher and sweep, money (`float`) by the lender, reservations by the gateway.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

EPOCH = "v1:epoch"  # string: set once the projection is complete; absent means 503, never 401
FLOAT_RUN = "v1:float:run"  # string: the run_id of the Redis that the lender lent to
WANT = "v1:want"  # list of Want JSON: gateways push, the lender pops
SHARED = "v1:shared"  # hash: public model name -> endpoint id
FLOATS = "v1:floats"  # set of float keys that exist: what the lender walks

CUT = "v1:cut"  # sorted set: id of a revoked key whose open streams shall end -> when that was asked, Unix seconds
KEPT_S = 3600  # counters outlive their minute or month: a request that began in it ends later
# The longest that a request may run: a reservation expires after it, and a sealed hold outlasts it by ten minutes.
LONGEST_REQUEST_S = 3600

GENERAL = "general"  # the purse that pays for everything; a scoped one is named scope=value=id
MODEL, ACCELERATOR, POOL = "model", "accelerator", "pool"  # the scopes
PROVING, SERVING, DRAINING = "proving", "serving", "draining"


def key(public_id: str) -> str:
    """Hash {v: version, r: KeyRecord JSON}. The admission script compares v."""
    return f"v1:key:{public_id}"


def route(endpoint_id: str) -> str:
    """String: RouteRecord JSON."""
    return f"v1:route:{endpoint_id}"


def pods(deployment_id: str) -> str:
    """Hash: pod uid -> PodRecord JSON; replaced whole in one MULTI."""
    return f"v1:pods:{deployment_id}"


def endpoints(tenant_id: str | UUID) -> str:
    """Set of the endpoint ids that a tenant owns."""
    return f"v1:endpoints:{tenant_id}"


def sheets(sku: str, region: str, currency: str) -> str:
    """Hash: tenant id or '*' -> JSON list of sheet bodies (kernel.pricing.Sheet.body)."""
    return f"v1:sheets:{sku}:{region}:{currency}"


def float_key(tenant_id: str | UUID, purse: str, currency: str) -> str:
    """Hash {gen, transfer, free, dry}: integers as decimal text, money in pico-units."""
    return f"v1:float:{tenant_id}:{purse}:{currency}"


def purses_for(purses: list[str], sku: str, *, pool: str = "") -> list[str]:
    """Those of a tenant's purses that may pay for a SKU, in order."""
    return purses if len(purses) == 1 else [purse for purse in purses if pays(purse, sku, pool=pool)]


def pays(purse: str, sku: str, *, pool: str = "") -> bool:
    """Whether a purse may pay: a scoped one names a part of the SKU, or the pool (`region/name`).

    A pool's pays for what runs there and is billed by time, whatever its SKU; a request's tokens run on no pool that
    their price would know.
    """
    if "=" not in purse:
        return True
    scope, value = purse.split("=")[:2]
    return value == pool if scope == POOL else value in sku.split(":")


def reservations(float_name: str) -> str:
    """Hash: reservation id -> 'generation|amount|expiry_ms', beside the float it was taken from."""
    return f"{float_name}:reserved"


def pending(float_name: str) -> str:
    """Hash: transfer number -> amount taken out of the float and not yet returned in PostgreSQL."""
    return f"{float_name}:pending"


def rpm(key_id: str | UUID, minute: int) -> str:
    """Counter of the requests of one key in one minute (Unix minutes); expires."""
    return f"v1:rpm:{key_id}:{minute}"


def tpm(owner_id: str | UUID, what: str, minute: int) -> str:
    """Counter of tokens (`cached`, `uncached`, `generated` of a key, `all` of an endpoint) in one minute; expires."""
    return f"v1:tpm:{owner_id}:{what}:{minute}"


def month(at: datetime) -> str:
    """How `spend` names the UTC month of an instant."""
    return f"{at.astimezone(UTC):%Y-%m}"


def spend(whose: str, month: str) -> str:
    """Counter of pico-units spent in one calendar month (`2026-11`, UTC) under one cap; expires."""
    return f"v1:spend:{whose}:{month}"


def spend_at_endpoint(tenant_id: str | UUID, endpoint_id: str) -> str:
    """Whose `spend` it is where a tenant caps what it spends at one endpoint."""
    return f"{tenant_id}:{endpoint_id}"


def spend_of_user(key_id: str | UUID, user_digest: str) -> str:
    """Whose `spend` it is where a key caps each end user."""
    return f"{key_id}:{user_digest}"


def concurrency(key_id: str | UUID) -> str:
    """Sorted set: reservation id -> expiry in ms; entries past their expiry do not count."""
    return f"v1:conc:{key_id}"


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What the gateway must know of an API key. `models` None allows every endpoint of the tenant.

    Tokens per minute (`tpm_…`) and caps in pico-units per calendar month: 0 is no limit. `endpoint_caps_pico`
    maps an endpoint id to the most that the tenant spends there, `user_cap_pico` holds for each end user.
    """

    key_id: str
    public_id: str
    tenant_id: str
    digest: str
    version: int
    currency: str
    purses: list[str]
    rpm: int
    concurrency: int
    live: bool = True
    suspended: bool = False
    expires_at: float | None = None
    models: list[str] | None = None
    tpm_cached: int = 0
    tpm_uncached: int = 0
    tpm_generated: int = 0
    spend_cap_pico: int = 0
    user_cap_pico: int = 0
    endpoint_caps_pico: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeploymentRoute:
    """One recipe on one pool behind an endpoint. `sku` is what its tokens are priced under, `beyond_sku` what a
    reservation's are once its tokens per minute are used up ("" elsewhere). `prefix_affinity`: requests that begin
    alike prefer the same replica, whose cache knows the beginning.
    """

    deployment_id: str
    weight: int
    sku: str
    beyond_sku: str = ""
    prefix_affinity: bool = False


@dataclass(frozen=True, slots=True)
class RouteRecord:
    """Intent for one endpoint. `served_name` is the model name that its engines answer to.

    `tpm` is a reservation's guaranteed tokens per minute, 0 where the endpoint is none.
    """

    endpoint_id: str
    tenant_id: str
    shared: bool
    model: str
    served_name: str
    region: str
    max_model_len: int
    generation: int
    running: bool
    created: int
    deployments: list[DeploymentRoute] = field(default_factory=list)
    tpm: int = 0


@dataclass(frozen=True, slots=True)
class PodRecord:
    """Fact for one replica: where it listens and whether customers may reach it."""

    pod_uid: str
    address: str
    state: str


@dataclass(frozen=True, slots=True)
class Want:
    """A gateway asks the lender: `amount` pico-units more in this float. Below zero, billing asks for so much back."""

    tenant_id: str
    purse: str
    currency: str
    amount: int


def dumps(record: KeyRecord | RouteRecord | PodRecord | Want) -> str:
    """The record as JSON."""
    return json.dumps(asdict(record), separators=(",", ":"))


def load_key(text: str | bytes) -> KeyRecord:
    """The KeyRecord that `dumps` wrote."""
    return KeyRecord(**json.loads(text))


def load_route(text: str | bytes) -> RouteRecord:
    """The RouteRecord that `dumps` wrote."""
    value: dict[str, Any] = json.loads(text)
    value["deployments"] = [DeploymentRoute(**item) for item in value["deployments"]]
    return RouteRecord(**value)


def load_pod(text: str | bytes) -> PodRecord:
    """The PodRecord that `dumps` wrote."""
    return PodRecord(**json.loads(text))


def load_want(text: str | bytes) -> Want:
    """The Want that `dumps` wrote."""
    return Want(**json.loads(text))


def decode_hash(raw: Mapping[bytes, bytes]) -> dict[str, str]:
    """A Redis hash as text."""
    return {name.decode(): value.decode() for name, value in raw.items()}
