"""The sweep: read every cluster once, then pass over what is due. It alone is enough."""

import logging
import time
from collections.abc import Iterator
from uuid import UUID

from django.db.models import Exists, F, OuterRef, Q, Subquery

from inference import clusters, facts
from inference.clock import database_now
from inference.core.words import Rung
from inference.models import Deployment, Endpoint
from inference.orphans import orphans_sweep
from inference.reconciler.run import reconcile
from k8s.cluster import UnreachableError
from tenants.models import Standing

log = logging.getLogger(__name__)

# When this process lists a cluster again: a large one is not listed all the time.
_rests_until: dict[str, float] = {}


def sweep() -> int:
    """Facts of every cluster, then a pass over every due endpoint; how many passes were ours."""
    for name in clusters.names():
        if time.monotonic() < _rests_until.get(name, 0.0):
            continue
        began = time.monotonic()
        try:
            cluster = clusters.cluster(name)
            orphans_sweep(cluster, facts.record_listing(name, cluster))
            _rests_until[name] = time.monotonic() + facts.rest_s(time.monotonic() - began)
        except UnreachableError as error:
            log.warning("cluster %s does not answer, its facts stay as they are: %s", name, error)
    return sum(_try(endpoint_id) for endpoint_id in due())


def _try(endpoint_id: UUID) -> bool:
    """One endpoint's pass; what breaks it stays its own and is tried again when its claim expires."""
    try:
        return reconcile(endpoint_id)
    except Exception:
        log.exception("the pass over endpoint %s broke", endpoint_id)
        return False


def is_due(endpoint_id: UUID) -> bool:
    """Whether a pass over it may find something to do; not while another has it."""
    return any(due(id=endpoint_id))


def due(**only: UUID) -> Iterator[UUID]:
    """Live endpoints whose intent, facts, tenant or carrier changed since their last pass, or whose time has come."""
    now = database_now()
    changed_facts = Deployment.objects.filter(endpoint=OuterRef("id"), observed__isnull=False).filter(
        Q(decided_at__isnull=True) | Q(observed__observed_at__gt=F("decided_at"))
    )
    of_carrier = Endpoint.objects.filter(deployments__riders__endpoint=OuterRef("id"))
    carrier_turned = Q(rung=Rung.RESERVED) & ~Q(serving=Subquery(of_carrier.values("serving")[:1]))
    stands_suspended = Q(tenant__standing=Standing.SUSPENDED)
    endpoints = (
        Endpoint.objects.filter(archived_at__isnull=True, **only)
        .filter(Q(lock_until__isnull=True) | Q(lock_until__lt=now))
        .filter(
            ~Q(generation=F("observed_generation"))
            | Q(due_at__lte=now)
            | Q(lock_until__lt=now)
            | (stands_suspended & Q(suspended=False))
            | (~stands_suspended & Q(suspended=True))
            | carrier_turned
            | Exists(changed_facts)
        )
        .order_by("due_at", "id")
    )
    yield from endpoints.values_list("id", flat=True)
