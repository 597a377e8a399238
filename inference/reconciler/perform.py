"""One action of a decision, done: the cluster outside a transaction, rows guarded by the claim."""

import logging
from functools import singledispatchmethod
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
from inference.models import Deployment, Pool, Replica
from inference.reconciler import commons
from inference.reconciler.claim import Claim
from inference.reconciler.load import Loaded
from inference.selectors import nodes_free
from inference.services import hold_deployment, hold_subject
from k8s import observe
from k8s.cluster import Applied, Invalid, Quota, Retry, UnreachableError
from k8s.desired import WorkloadSpec, deployment_refs, sized_refs
from k8s.ownership import combined
from kernel.problems import Problem

log = logging.getLogger(__name__)

MANIFEST_REFUSED, CLUSTER_UNREACHABLE, CREDIT_EXHAUSTED = (
    "ManifestRefused",
    "ClusterUnreachable",
    "CreditExhausted",
)


class Performer:
    """Performs actions of one pass. StaleClaim ends it; a refusal becomes the deployment's fault.

    `after_s` is how long the cluster asked to be left alone.
    """

    def __init__(self, claim: Claim, loaded: Loaded) -> None:
        self.claim = claim
        self.loaded = loaded
        self.after_s = 0.0

    @singledispatchmethod
    def perform(self, action: Any) -> None:
        """Do one action; the next load sees what came of it."""
        raise TypeError(f"no way to perform {action!r}")

    @perform.register
    def _reserve(self, action: do.Reserve) -> None:
        """Whole replicas alone, under the pool's row lock: two endpoints never share a card."""
        with transaction.atomic():
            self.claim.renew()
            deployment = self._deployment(action.deployment_id)
            pool = Pool.objects.select_for_update().get(id=deployment.pool_id)
            current = Deployment.objects.select_for_update().get(id=deployment.id).reserved
            share, step = action.accelerators, deployment.accelerators
            if share > current:
                room = max(0, pool.capacity - pool.reserved)
                if (workload := self._workload(deployment.id)) is not None and workload.nodes > 1:
                    cards = step // workload.nodes
                    room = min(room, nodes_free(pool, cards) * cards)
                share = current + min(share - current, room // step * step)
            Deployment.objects.filter(id=deployment.id).update(reserved=share)
            Pool.objects.filter(id=pool.id).update(reserved=pool.reserved + share - current)

    @perform.register
    def _place_hold(self, action: do.PlaceHold) -> None:
        try:
            with transaction.atomic():
                self.claim.renew()
                deployment = Deployment.objects.select_related("endpoint", "pool").get(id=action.deployment_id)
                hold_deployment(deployment)
                self._update(deployment.id, held=True, fault=None)
        except Problem as problem:
            self._fail(action.deployment_id, CREDIT_EXHAUSTED, problem.detail)

    @perform.register
    def _close_hold(self, action: do.CloseHold) -> None:
        """Unless intent moved on meanwhile: a resume may have just placed the hold anew."""
        with transaction.atomic():
            if self.claim.stands_at(self.loaded.row.generation):
                ports.get().hold_close(deployment_id=hold_subject(self._deployment(action.deployment_id)))
                self._update(action.deployment_id, held=False)

    @perform.register
    def _apply(self, action: do.Apply) -> None:
        deployment = self._deployment(action.deployment_id)
        self._attempt(deployment.id)
        try:
            cluster = clusters.cluster(deployment.pool.cluster)
            results = commons.apply(cluster, action.objects(), again=deployment.applied == action.digest)
            error = next((item for item in results if item.error is not None), None)
            if error is not None:
                self.after_s = error.error.after_s if isinstance(error.error, Retry) else 0.0
                self._fail(deployment.id, *_fault(error))
                return
            kept = {item.ref: item.owned for item in results}
            if deployment.applied:
                surplus = [ref for ref in sized_refs(deployment.tenant_id, deployment.id) if ref not in kept]
                cluster.delete(surplus, grace_s=None)
        except UnreachableError as silence:
            self._fail(deployment.id, CLUSTER_UNREACHABLE, str(silence))
            return
        self.claim.renew()
        accepted = {"applied": action.digest, "owned": combined(kept), "applied_at": database_now()}
        self._update(deployment.id, **accepted, fault=None)

    @perform.register
    def _delete(self, action: do.DeleteWorkload) -> None:
        deployment = self._deployment(action.deployment_id)
        self._attempt(deployment.id)
        try:
            clusters.cluster(deployment.pool.cluster).delete(
                deployment_refs(deployment.tenant_id, deployment.id), grace_s=None
            )
        except UnreachableError as error:
            self._fail(deployment.id, CLUSTER_UNREACHABLE, str(error))
            return
        self.claim.renew()
        self._update(deployment.id, applied=DELETED, applied_at=database_now(), fault=None)

    @perform.register
    def _probe(self, action: do.Probe) -> None:
        """Customers reach the pod, and its bill begins, from the token that came through the gateway."""
        self.claim.renew()
        if not ports.get().probe(action.deployment_id, action.pod_uid):
            return
        with transaction.atomic():
            self.claim.renew()
            now = database_now()
            unproven = Replica.objects.filter(pod_uid=action.pod_uid, serving_at__isnull=True)
            proven = unproven.exclude(state=ReplicaState.GONE).update(
                state=ReplicaState.SERVING, serving_at=now, alive_at=now
            )
            deployment = Deployment.objects.select_related("endpoint", "pool").get(id=action.deployment_id)
            if proven:
                publish_fact(deployment=deployment, pod_uid=action.pod_uid, event=FROM, at=now, from_at=now)
        facts.publish_pods(Deployment.objects.filter(id=deployment.id))

    @perform.register
    def _meter(self, action: do.Meter) -> None:
        """Under the claim, from one instant to the next: a reservation's facts neither overlap nor leave a gap."""
        with transaction.atomic():
            self.claim.renew()
            deployment = Deployment.objects.select_related("endpoint").get(id=action.deployment_id)
            at = max(action.at or database_now(), deployment.metered_at or deployment.endpoint.created_at)
            if deployment.metered_ktpm:
                publish_reserved(deployment=deployment, event=TO, ktpm=deployment.metered_ktpm, at=at)
            if action.ktpm:
                publish_reserved(deployment=deployment, event=FROM, ktpm=action.ktpm, at=at)
            self._update(deployment.id, metered_ktpm=action.ktpm, metered_at=at if action.ktpm else None)

    @perform.register
    def _program_route(self, action: do.ProgramRoute) -> None:
        self.claim.renew()
        ports.get().route_project(self.claim.endpoint_id)
        self.claim.write(routed=action.routed)

    @perform.register
    def _remove_route(self, action: do.RemoveRoute) -> None:
        self.claim.renew()
        ports.get().route_remove(self.claim.endpoint_id)
        self.claim.write(routed="")

    def _deployment(self, deployment_id: UUID) -> Deployment:
        return self.loaded.deployments[deployment_id]

    def _workload(self, deployment_id: UUID) -> WorkloadSpec | None:
        """What a deployment runs; None where nobody can say any more, and for a reservation, which runs nothing."""
        rows = self.loaded.row.deployments if isinstance(self.loaded.row, EndpointRow) else ()
        found = next((row.workload for row in rows if row.id == deployment_id), None)
        return found if isinstance(found, WorkloadSpec) else None

    def _attempt(self, deployment_id: UUID) -> None:
        """Say that the cluster may hold something from here on, before it does."""
        self.claim.renew()
        self._update(deployment_id, applied=PENDING, applied_at=database_now())

    def _fail(self, deployment_id: UUID, reason: str, message: str) -> None:
        log.warning("deployment %s: %s: %s", deployment_id, reason, message)
        self.claim.renew()
        self._update(deployment_id, fault={"reason": reason, "message": message})

    def _update(self, deployment_id: UUID, **fields: Any) -> None:
        Deployment.objects.filter(id=deployment_id).update(**fields)


def _fault(result: Applied) -> tuple[str, str]:
    error = result.error
    if isinstance(error, Invalid):
        return MANIFEST_REFUSED, f"{result.ref}: {error.message}"
    if isinstance(error, Quota):
        return observe.QUOTA_EXCEEDED, error.message
    assert error is not None
    return CLUSTER_UNREACHABLE, error.message
