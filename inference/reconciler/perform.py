"""What decisions ask for, done for many endpoints together: the cluster outside a transaction, rows under the claim."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any
from uuid import UUID

from django.db import transaction

from inference import clusters, facts, ports
from inference.billable import publish_fact, publish_reserved
from inference.clock import database_now
from inference.core import decide as do
from inference.core.replicas import FROM, TO
from inference.core.rows import DELETED, PENDING, EndpointRow
from inference.core.words import ReplicaState
from inference.models import Deployment, Endpoint, Pool, Replica
from inference.reconciler import commons
from inference.reconciler.claim import Claim
from inference.reconciler.load import Loaded
from inference.rows import update_each
from inference.selectors import nodes_free
from inference.services import hold_deployment, hold_subject
from inference.silence import silence_mark, silences
from k8s import observe
from k8s.cluster import Applied, Cluster, Invalid, Object, Quota, Ref, Retry, SilentError, UnreachableError
from k8s.desired import deployment_refs, sized_refs
from k8s.ownership import combined
from kernel.problems import Problem

log = logging.getLogger(__name__)

MANIFEST_REFUSED, CLUSTER_UNREACHABLE, CREDIT_EXHAUSTED = (
    "ManifestRefused",
    "ClusterUnreachable",
    "CreditExhausted",
)
# Calls at once to a cluster or a gateway, and for how long a slow one is asked for more.
AT_ONCE, PATIENCE_S = 8, 10.0
_LATER = Retry(5.0, "the cluster is slow to answer")


@dataclass(frozen=True, slots=True)
class Job:
    """One action of one endpoint's decision."""

    loaded: Loaded
    action: Any

    @property
    def endpoint_id(self) -> UUID:
        """Whose it is."""
        return self.loaded.endpoint.id

    @property
    def deployment(self) -> Deployment:
        """What it is about, as loaded."""
        return self.loaded.deployments[self.action.deployment_id]

    @property
    def nodes(self) -> int:
        """Nodes that one replica takes."""
        rows = self.loaded.row.deployments if isinstance(self.loaded.row, EndpointRow) else ()
        return next((getattr(row.workload, "nodes", 1) for row in rows if row.id == self.action.deployment_id), 1)


def perform(held: Claim, jobs: Iterable[Job]) -> dict[UUID, float]:
    """Do all of them, kind by kind; the next load sees what came of it. A refusal becomes the deployment's fault.

    What is not ours any more is left alone, and what cannot be reached is left to the next pass. Returns the seconds
    for which a cluster asked to be left alone, by endpoint.
    """
    by_kind: dict[type, list[Job]] = defaultdict(list)
    for job in jobs:
        by_kind[type(job.action)].append(job)
    after_s: dict[UUID, float] = {}
    for kind, work in _WORK.items():
        if kind in by_kind:
            try:
                after_s |= work(held, by_kind[kind]) or {}
            except ports.Unavailable as error:
                log.warning("%s: %s", kind.__name__, error)
    return after_s


def _remove_routes(held: Claim, jobs: Sequence[Job]) -> None:
    ours = held.ours()
    for job in jobs:
        if job.endpoint_id in ours:
            ports.get().route_remove(job.endpoint_id)
            held.endpoints.filter(id=job.endpoint_id).update(routed="")


def _program_routes(held: Claim, jobs: Sequence[Job]) -> None:
    ports.get().route_project([job.endpoint_id for job in jobs])
    by_word = defaultdict(list)
    for job in jobs:
        by_word[job.action.routed].append(job.endpoint_id)
    for routed, endpoint_ids in by_word.items():
        held.endpoints.filter(id__in=endpoint_ids).update(routed=routed)


def _place_holds(held: Claim, jobs: Sequence[Job]) -> None:
    for job in jobs:
        try:
            with transaction.atomic():
                if job.endpoint_id in held.lock():
                    hold_deployment(job.deployment)
                    _write([job.deployment], held=True, fault=None)
        except Problem as problem:
            _fail(held, {job.deployment: (CREDIT_EXHAUSTED, problem.detail)})


def _close_holds(held: Claim, jobs: Sequence[Job]) -> None:
    """Unless intent moved on meanwhile: a resume may have just placed the hold anew."""
    for job in jobs:
        with transaction.atomic():
            ours = job.endpoint_id in held.lock()
            if ours and Endpoint.objects.filter(id=job.endpoint_id, generation=job.loaded.row.generation).exists():
                ports.get().hold_close(deployment_id=hold_subject(job.deployment))
                _write([job.deployment], held=False)


@transaction.atomic
def _reserve(held: Claim, jobs: Sequence[Job]) -> None:
    """Whole replicas alone, under the pools' row locks: two endpoints never share a card.

    What spans nodes is written at once, as the next one of its kind reads which nodes are free.
    """
    ours = held.lock()
    found = {job.deployment.id: job for job in jobs if job.endpoint_id in ours}
    pool_ids = {job.deployment.pool_id for job in found.values()}
    pools = {item.id: item for item in Pool.objects.filter(id__in=pool_ids).order_by("id").select_for_update()}
    rows = {item.id: item for item in Deployment.objects.filter(id__in=found).order_by("id").select_for_update()}
    for job in sorted(found.values(), key=lambda job: -job.nodes):
        row = rows[job.deployment.id]
        pool, share, step = pools[row.pool_id], job.action.accelerators, row.accelerators
        if share > row.reserved:
            room = max(0, pool.capacity - pool.reserved)
            if job.nodes > 1:
                cards = step // job.nodes
                room = min(room, nodes_free(pool, cards) * cards)
            share = row.reserved + min(share - row.reserved, room // step * step)
        pool.reserved += share - row.reserved
        row.reserved = share
        if job.nodes > 1:
            row.save(update_fields=["reserved"])
    update_each(rows.values(), ["reserved"])
    update_each(pools.values(), ["reserved"])


@transaction.atomic
def _meter(held: Claim, jobs: Sequence[Job]) -> None:
    """Under the claim, from one instant to the next: a reservation's facts neither overlap nor leave a gap."""
    ours = held.lock()
    for job in jobs:
        if job.endpoint_id not in ours:
            continue
        row, ktpm = job.deployment, job.action.ktpm
        at = max(job.action.at or database_now(), row.metered_at or job.loaded.endpoint.created_at)
        if row.metered_ktpm:
            publish_reserved(deployment=row, event=TO, ktpm=row.metered_ktpm, at=at)
        if ktpm:
            publish_reserved(deployment=row, event=FROM, ktpm=ktpm, at=at)
        _write([row], metered_ktpm=ktpm, metered_at=at if ktpm else None)


def _apply(held: Claim, jobs: Sequence[Job]) -> dict[UUID, float]:
    after_s: dict[UUID, float] = {}
    accepted: list[Deployment] = []
    faults: dict[Deployment, tuple[str, str]] = {}
    for cluster, found in _by_cluster(held, jobs, faults):
        wanted = {job.deployment.id: job.action.objects() for job in found}
        again = {job.deployment.id for job in found if job.deployment.applied == job.action.digest}
        apply_all = partial(_apply_all, until_s=time.monotonic() + PATIENCE_S)
        results = commons.apply(cluster, wanted, apply_all, again=again)
        if any(isinstance(item.error, Retry) and item.error.silent for item in chain(*results.values())):
            silence_mark(found[0].deployment.pool.cluster)
        for job in found:
            row, own = job.deployment, results[job.deployment.id]
            refused = next((item for item in own if item.error is not None), None)
            if refused is not None:
                faults[row] = _fault(refused)
                after_s[job.endpoint_id] = refused.error.after_s if isinstance(refused.error, Retry) else 0.0
                continue
            kept = {item.ref: item.owned for item in own}
            surplus = [ref for ref in sized_refs(row.tenant_id, row.id) if ref not in kept] if row.applied else []
            try:
                cluster.delete(surplus, grace_s=None)
            except UnreachableError as error:
                faults[row] = _unreachable(row, error)
                continue
            row.applied, row.owned = job.action.digest, combined(kept)
            accepted.append(row)
    _accept(held, accepted)
    _fail(held, faults)
    return after_s


def _delete(held: Claim, jobs: Sequence[Job]) -> None:
    accepted: list[Deployment] = []
    faults: dict[Deployment, tuple[str, str]] = {}

    def delete(cluster: Cluster, row: Deployment) -> UnreachableError | None:
        try:
            cluster.delete(deployment_refs(row.tenant_id, row.id), grace_s=None)
        except UnreachableError as error:
            return error
        return None

    for cluster, found in _by_cluster(held, jobs, faults):
        rows = [job.deployment for job in found]
        until_s = time.monotonic() + PATIENCE_S
        errors = _beside(partial(delete, cluster), rows, until_s=until_s, late=UnreachableError(_LATER.message))
        faults |= {row: _unreachable(row, error) for row, error in zip(rows, errors, strict=True) if error}
        accepted += [row for row in rows if row not in faults]
    for row in accepted:
        row.applied = DELETED
    _accept(held, accepted)
    _fail(held, faults)


def _probe(held: Claim, jobs: Sequence[Job]) -> None:
    """Customers reach a pod, and its bill begins, from the token that came through the gateway."""
    until_s = time.monotonic() + PATIENCE_S
    answers = _beside(
        lambda job: ports.get().probe(job.deployment.id, job.action.pod_uid), jobs, until_s=until_s, late=False
    )
    with transaction.atomic():
        ours, now = held.lock(), database_now()
        asked = {job.action.pod_uid: job for job, said in zip(jobs, answers, strict=True) if said}
        asked = {uid: job for uid, job in asked.items() if job.endpoint_id in ours}
        unproven = Replica.objects.filter(pod_uid__in=asked, serving_at__isnull=True).exclude(state=ReplicaState.GONE)
        proven = list(unproven.order_by("pod_uid").select_for_update().values_list("pod_uid", flat=True))
        serves = {"state": ReplicaState.SERVING, "serving_at": now, "alive_at": now}
        Replica.objects.filter(pod_uid__in=proven).update(**serves)
        for uid in proven:
            publish_fact(deployment=asked[uid].deployment, pod_uid=uid, event=FROM, at=now, from_at=now)
    facts.publish_pods(Deployment.objects.filter(id__in={job.deployment.id for job in asked.values()}))


# In the order in which a decision puts them.
_WORK: Mapping[type, Callable[[Claim, Sequence[Job]], dict[UUID, float] | None]] = {
    do.RemoveRoute: _remove_routes,
    do.ProgramRoute: _program_routes,
    do.PlaceHold: _place_holds,
    do.Reserve: _reserve,
    do.Meter: _meter,
    do.Apply: _apply,
    do.DeleteWorkload: _delete,
    do.Probe: _probe,
    do.CloseHold: _close_holds,
}


def _by_cluster(
    held: Claim, jobs: Sequence[Job], faults: dict[Deployment, tuple[str, str]]
) -> list[tuple[Cluster, list[Job]]]:
    """Jobs by the cluster they go to, once their rows say that it may hold something from here on.

    One that is known to be silent is not asked: whoever lists it waits for all.
    """
    silent = silences({job.deployment.pool.cluster for job in jobs})
    for job in jobs:
        if (said := silent.get(job.deployment.pool.cluster)) is not None:
            faults[job.deployment] = (CLUSTER_UNREACHABLE, said)
    jobs = [job for job in jobs if job.deployment not in faults]
    attempt = {"applied": PENDING, "applied_at": database_now()}
    held.deployments.filter(id__in=[job.deployment.id for job in jobs]).update(**attempt)
    ours = held.ours()
    by_name: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        if job.endpoint_id in ours:
            by_name[job.deployment.pool.cluster].append(job)
    found = []
    for name, there in by_name.items():
        try:
            found.append((clusters.cluster(name), there))
        except UnreachableError as error:
            faults |= {job.deployment: (CLUSTER_UNREACHABLE, str(error)) for job in there}
    return found


def _apply_all(cluster: Cluster, lists: Sequence[Sequence[Object]], *, until_s: float) -> list[Sequence[Applied]]:
    late = [[Applied(Ref.of(item), _LATER) for item in objects] for objects in lists]
    done = _beside(cluster.apply, lists, until_s=until_s, late=None)
    return [results if results is not None else later for results, later in zip(done, late, strict=True)]


def _beside(call: Callable[[Any], Any], items: Sequence[Any], *, until_s: float, late: Any) -> list[Any]:
    """The call's result for each item, several at a time; `late` for those that have not begun by then."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda item: call(item) if time.monotonic() < until_s else late, items))


def _write(rows: Iterable[Deployment], **fields: Any) -> None:
    Deployment.objects.filter(id__in=[row.id for row in rows]).update(**fields)


def _accept(held: Claim, rows: Sequence[Deployment]) -> None:
    """Record what the cluster has accepted: `applied` and `owned` of the rows, which are set already."""
    with transaction.atomic():
        ours, now = held.lock(), database_now()
        for row in rows:
            row.applied_at, row.fault = now, None
        kept = [row for row in rows if row.endpoint_id in ours]
        update_each(kept, ["applied", "owned", "applied_at", "fault"])


def _fail(held: Claim, faults: Mapping[Deployment, tuple[str, str]]) -> None:
    for row, (reason, message) in faults.items():
        log.warning("deployment %s: %s: %s", row.id, reason, message)
        held.deployments.filter(id=row.id).update(fault={"reason": reason, "message": message})


def _unreachable(row: Deployment, error: UnreachableError) -> tuple[str, str]:
    if isinstance(error, SilentError):
        silence_mark(row.pool.cluster)
    return CLUSTER_UNREACHABLE, str(error)


def _fault(result: Applied) -> tuple[str, str]:
    error = result.error
    if isinstance(error, Invalid):
        return MANIFEST_REFUSED, f"{result.ref}: {error.message}"
    if isinstance(error, Quota):
        return observe.QUOTA_EXCEEDED, error.message
    assert error is not None
    return CLUSTER_UNREACHABLE, error.message
