"""The sweep: read every cluster that nobody has read lately, then pass over what is due. It alone is enough."""

import logging
from collections.abc import Iterator
from uuid import UUID

from django.db.models import Exists, F, OuterRef, Q, Subquery

from inference import clusters, facts
from inference.clock import database_now
from inference.core.words import Rung
from inference.hints import due_mark
from inference.models import Deployment, Endpoint
from inference.orphans import orphans_sweep
from inference.reconciler.run import drain
from inference.silence import turn_take
from k8s.cluster import UnreachableError
from tenants.models import Standing

log = logging.getLogger(__name__)

# A cluster that its watcher asks at least so often needs no other listing.
WATCHED_S = 15.0


def sweep() -> int:
    """Facts of every cluster, then a pass over every due endpoint; how many endpoints they took."""
    for name in clusters.names():
        try:
            cluster = clusters.cluster(name)
            if turn_take(name, idle_s=WATCHED_S):
                orphans_sweep(cluster, facts.record_listing(name, cluster))
        except UnreachableError as error:
            log.warning("cluster %s does not answer, its facts stay as they are: %s", name, error)
    due_mark(list(due()))
    return drain()


def due() -> Iterator[UUID]:
    """Live endpoints whose intent, facts, tenant or carrier changed since their last pass, or whose time has come.

    Whom somebody works on is not among them.
    """
    now = database_now()
    changed_facts = Deployment.objects.filter(endpoint=OuterRef("id"), observed__isnull=False).filter(
        Q(decided_at__isnull=True) | Q(observed__observed_at__gt=F("decided_at"))
    )
    of_carrier = Endpoint.objects.filter(deployments__riders__endpoint=OuterRef("id"))
    carrier_turned = Q(rung=Rung.RESERVED) & ~Q(serving=Subquery(of_carrier.values("serving")[:1]))
    stands_suspended = Q(tenant__standing=Standing.SUSPENDED)
    endpoints = (
        Endpoint.objects.filter(archived_at__isnull=True)
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
