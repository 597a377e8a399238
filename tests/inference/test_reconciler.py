"""The reconciler on real PostgreSQL and a scripted cluster: the way up, the way down, and every drill."""

import threading
import time
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.db.models import Sum
from django.test.utils import CaptureQueriesContext

from inference.clock import database_now
from inference.clusters import endpoints_revisit
from inference.core.words import Phase, ReplicaState
from inference.facts import record
from inference.hints import due_mark
from inference.models import ClusterListing, Deployment, Endpoint, Observed, Pool, Replica
from inference.reconciler import claim as claims
from inference.reconciler import load, perform, run
from inference.reconciler.claim import Claim
from inference.reconciler.claim import claim as claim_first
from inference.reconciler.run import reconcile
from inference.selectors import endpoint_view, route_list
from inference.services import endpoint_delete, endpoint_pause, endpoint_resume, endpoint_scale
from inference.sweep import due, sweep
from k8s.cluster import Invalid, Quota, Ref, Retry
from k8s.desired import name_of
from k8s.observe import observe
from kernel import ids
from kernel.problems import Problem
from tenants.models import Outbox, Standing
from tenants.services import standing_set
from tests.conftest import as_role
from tests.inference.conftest import create, limit


def phase(endpoint: Endpoint) -> Phase:
    endpoint.refresh_from_db()
    return endpoint_view(endpoint).phase


def condition(endpoint: Endpoint, name: str) -> dict:
    endpoint.refresh_from_db()
    return next(item for item in endpoint.conditions if item["type"] == name)


def events(endpoint: Endpoint) -> list[dict]:
    rows = Outbox.objects.filter(topic="inference.billable", payload__endpoint_id=str(endpoint.id)).order_by("id")
    return [row.payload for row in rows]


def deployment_of(endpoint: Endpoint) -> Deployment:
    return Deployment.objects.get(endpoint=endpoint)


def stored(endpoint: Endpoint) -> dict:
    """Every row of the endpoint, but for the claim's."""
    deployment = deployment_of(endpoint)
    return {
        "endpoint": Endpoint.objects.filter(id=endpoint.id).values().get(),
        "deployment": Deployment.objects.filter(id=deployment.id).values().get(),
        "observed": Observed.objects.filter(deployment=deployment).values().get(),
        "replicas": list(Replica.objects.filter(deployment=deployment).values()),
        "pool": Pool.objects.filter(id=deployment.pool_id).values().get(),
        "outbox": len(events(endpoint)),
    }


def claim(endpoint: Endpoint) -> Claim:
    return claim_first(Endpoint.objects.filter(id=endpoint.id), 1)


def expire_claims() -> None:
    Endpoint.objects.filter(lock_token__isnull=False).update(lock_until=database_now() - timedelta(seconds=1))


def test_an_endpoint_comes_up_step_by_step(harbour, tenant, neighbours):
    endpoint = create(tenant)
    words = [phase(endpoint)]
    reconcile(endpoint.id)
    words.append(phase(endpoint))
    harbour.cluster.step(ready=False)
    harbour.look()
    reconcile(endpoint.id)
    words.append(phase(endpoint))
    neighbours.blind = True
    harbour.cluster.step()
    harbour.look()
    reconcile(endpoint.id)
    assert condition(endpoint, "Ready")["reason"] == "Proving"
    neighbours.blind = False
    reconcile(endpoint.id)
    words.append(phase(endpoint))
    assert words == [Phase.REQUESTED, Phase.PROVISIONING, Phase.LOADING, Phase.RUNNING]
    assert neighbours.routes == [endpoint.id]
    assert [pod.state for pod in neighbours.pods[deployment_of(endpoint).id]] == ["serving"]
    assert endpoint.observed_generation == endpoint.generation
    assert endpoint.due_at is None


def test_the_bill_of_a_dedicated_replica_begins_with_its_first_token(harbour, tenant):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    replica = Replica.objects.get(deployment=deployment_of(endpoint))
    (fact,) = events(endpoint)
    assert fact == {
        "deployment_id": str(deployment_of(endpoint).id),
        "endpoint_id": str(endpoint.id),
        "tenant_id": str(tenant.id),
        "pod_uid": str(replica.pod_uid),
        "sku": "tiny-deepseek:dedicated:cpu",
        "region": "here",
        "pool": f"here/{harbour.pool.name}",
        "accelerator": "cpu",
        "accelerator_count": 1,
        "event": "from",
        "from_at": replica.serving_at.isoformat(),
        "at": replica.serving_at.isoformat(),
    }


def test_a_shared_endpoint_bills_no_accelerator(harbour, operator):
    endpoint = create(operator, rung="shared")
    harbour.settle(endpoint)
    assert phase(endpoint) is Phase.RUNNING
    assert events(endpoint) == []


def test_an_in_sync_pass_writes_nothing(harbour, tenant):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    before, writes = stored(endpoint), harbour.cluster.writes
    for _ in range(3):
        harbour.look()
        reconcile(endpoint.id)
    assert stored(endpoint) == before
    assert harbour.cluster.writes == writes
    assert endpoint.id not in set(due())


def test_the_sweep_alone_brings_an_endpoint_up_and_down(harbour, tenant, neighbours):
    endpoint = create(tenant)
    for _ in range(6):
        sweep()
        harbour.cluster.step()
        Endpoint.objects.filter(due_at__isnull=False).update(due_at=database_now())
    assert phase(endpoint) is Phase.RUNNING
    endpoint_delete(endpoint=endpoint, actor="test")
    for _ in range(6):
        sweep()
        harbour.cluster.step()
        Endpoint.objects.filter(due_at__isnull=False).update(due_at=database_now())
    assert phase(endpoint) is Phase.DELETED
    assert harbour.cluster.pods == {}


def test_fault_32_a_worker_killed_between_apply_and_record_is_healed_by_the_next_pass(harbour, tenant, monkeypatch):
    endpoint = create(tenant)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "_record", die)
        with pytest.raises(KeyboardInterrupt):
            reconcile(endpoint.id)
    assert harbour.cluster.writes > 0
    assert reconcile(endpoint.id) == 0
    expire_claims()
    writes = harbour.cluster.writes
    harbour.settle(endpoint)
    assert phase(endpoint) is Phase.RUNNING
    assert harbour.cluster.writes == writes
    assert len([ref for ref in harbour.cluster.objects if ref.kind == "Deployment"]) == 1


def test_fault_32_a_worker_killed_in_the_apply_itself_leaves_no_orphan(harbour, tenant, monkeypatch):
    endpoint = create(tenant)
    apply = harbour.cluster.apply

    def apply_and_die(objects):
        apply(objects)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(harbour.cluster, "apply", apply_and_die)
        with pytest.raises(KeyboardInterrupt):
            reconcile(endpoint.id)
    expire_claims()
    endpoint_delete(endpoint=endpoint, actor="test")
    harbour.settle(endpoint)
    assert phase(endpoint) is Phase.DELETED
    assert not any(ref.kind == "Deployment" for ref in harbour.cluster.objects)


def test_a_stale_token_drops_the_result(harbour, tenant, monkeypatch):
    endpoint = create(tenant)
    record = run._record

    def lose_the_claim(*arguments):
        expire_claims()
        assert claim(endpoint).endpoint_ids == (endpoint.id,)
        record(*arguments)

    monkeypatch.setattr(run, "_record", lose_the_claim)
    assert reconcile(endpoint.id) == 1
    endpoint.refresh_from_db()
    assert (endpoint.observed_generation, endpoint.conditions) == (0, [])


def test_a_stale_worker_performs_nothing_more(harbour, tenant):
    endpoint = create(tenant)
    held = claim(endpoint)
    expire_claims()
    assert claim(endpoint).endpoint_ids == (endpoint.id,)
    run._pass(held)
    assert harbour.cluster.writes == 0


def test_a_worker_that_loses_its_claim_between_load_and_apply_leaves_the_cluster_alone(harbour, tenant, monkeypatch):
    endpoint = create(tenant)
    perform = run.perform

    def lose_the_claim(held, jobs):
        expire_claims()
        claim(endpoint)
        return perform(held, jobs)

    monkeypatch.setattr(run, "perform", lose_the_claim)
    reconcile(endpoint.id)
    assert harbour.cluster.writes == 0
    assert Pool.objects.get(id=harbour.pool.id).reserved == 0


def test_two_workers_at_once_make_one_pass(harbour, tenant):
    endpoint = create(tenant)
    assert claim(endpoint).endpoint_ids == (endpoint.id,)
    assert claim(endpoint).endpoint_ids == ()
    assert reconcile(endpoint.id) == 0


def test_a_claim_lasts_as_long_as_its_pass_and_a_killed_workers_a_few_seconds(harbour, tenant, monkeypatch):
    monkeypatch.setattr(claims, "RENEW_S", 0.05)
    endpoint, until, keep = create(tenant), [], claims.Claim._keep

    def keep_as_a_worker(held, done):
        with as_role("system"):
            keep(held, done)
        connection.close()

    monkeypatch.setattr(claims.Claim, "_keep", keep_as_a_worker)

    def slow(objects):
        time.sleep(0.3)
        with as_role("system"):
            until.append(Endpoint.objects.get(id=endpoint.id).lock_until)
        connection.close()
        return apply(objects)

    apply = harbour.cluster.apply
    monkeypatch.setattr(harbour.cluster, "apply", slow)
    began = database_now()
    reconcile(endpoint.id)
    assert until[0] - began > claims.LEASE
    assert timedelta(seconds=15) >= claims.LEASE


def test_what_becomes_due_during_a_pass_is_taken_by_the_worker_that_made_it(harbour, tenant, monkeypatch):
    endpoint, record = create(tenant), run._record

    def change_behind_its_back(*arguments):
        monkeypatch.setattr(run, "_record", record)
        due_mark([endpoint.id])
        # Another worker comes with the hint of that, in vain.
        assert run.drain() == 0
        record(*arguments)

    monkeypatch.setattr(run, "_record", change_behind_its_back)
    assert run.drain() == 2


def test_drift_during_a_repair_is_repaired_without_another_listing(harbour, tenant, monkeypatch):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    ref = next(ref for ref in harbour.cluster.objects if ref.kind == "Deployment")
    apply = harbour.cluster.apply

    def drifts() -> None:
        harbour.cluster.objects[ref]["spec"]["replicas"] = 3
        record(harbour.pool.cluster, observe(harbour.cluster.list()), as_of=database_now())

    def apply_and_drift(objects):
        """The watch is quicker than the worker: it tells of the second drift before the repair is recorded."""
        results = apply(objects)
        if any(Ref.of(item) == ref for item in objects):
            monkeypatch.setattr(harbour.cluster, "apply", apply)
            with as_role("system"):
                drifts()
            connection.close()
        return results

    drifts()
    monkeypatch.setattr(harbour.cluster, "apply", apply_and_drift)
    reconcile(endpoint.id)
    endpoint.refresh_from_db()
    assert endpoint.due_at - database_now() < timedelta(seconds=1)
    assert harbour.cluster.objects[ref]["spec"]["replicas"] == 3
    time.sleep(load.ECHO.total_seconds())
    run.drain()
    assert harbour.cluster.objects[ref]["spec"]["replicas"] == 1


def test_many_endpoints_cost_as_many_queries_as_few(harbour, tenant):
    Pool.objects.filter(id=harbour.pool.id).update(capacity=100)
    limit(tenant, "endpoints", 100)
    limit(tenant, "accelerators", 100)
    counts = []
    for first, many in ((0, 2), (2, 20)):
        ids = [create(tenant, name=f"e-{number}").id for number in range(first, first + many)]
        with CaptureQueriesContext(connection) as captured:
            assert reconcile(*ids) == many
        counts.append(len(captured))
        assert Deployment.objects.filter(endpoint__in=ids, applied__regex="^.{64}$").count() == many
    assert counts[0] == counts[1]


def test_four_workers_at_once_do_what_one_does(harbour, tenant, neighbours, migrated_database):
    endpoints = [create(tenant, name=f"e{number}") for number in range(6)]
    finished: list[bool] = []

    def work(start: threading.Barrier) -> None:
        with as_role("system"):
            start.wait(timeout=30)
            for endpoint in endpoints:
                reconcile(endpoint.id)
        connection.close()
        finished.append(True)

    for _ in range(3):
        start = threading.Barrier(4)
        workers = [threading.Thread(target=work, args=(start,)) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        harbour.cluster.step()
        harbour.look()
    assert len(finished) == 12
    assert [phase(endpoint) for endpoint in endpoints] == [Phase.RUNNING] * 6
    kinds = [ref.kind for ref in harbour.cluster.objects]
    assert kinds.count("Deployment") == len(harbour.cluster.pods) == 6
    # Nothing was written twice: what exists is what was written.
    assert harbour.cluster.writes == len(harbour.cluster.objects)
    assert [len(events(endpoint)) for endpoint in endpoints] == [1] * 6
    assert Pool.objects.get(id=harbour.pool.id).reserved == 6


def test_a_worker_that_comes_back_after_its_claim_expired_writes_nothing(harbour, tenant):
    endpoint = create(tenant)
    late = claim(endpoint)
    expire_claims()
    assert reconcile(endpoint.id) == 1
    late.renew()
    with transaction.atomic():
        assert late.lock() == {}
    assert late.endpoints.update(routed="x") == late.deployments.update(reserved=9) == 0
    endpoint.refresh_from_db()
    assert (endpoint.routed, endpoint.lock_token) == ("1:run", None)


def test_fault_35_a_delete_while_provisioning_undoes_everything_and_bills_nothing(harbour, tenant, neighbours):
    endpoint = create(tenant)
    reconcile(endpoint.id)
    harbour.cluster.step(ready=False)
    harbour.look()
    endpoint_delete(endpoint=endpoint, actor="test")
    assert phase(endpoint) is Phase.DELETING
    harbour.settle(endpoint)
    assert phase(endpoint) is Phase.DELETED
    assert events(endpoint) == []
    assert neighbours.closed == [deployment_of(endpoint).id]
    assert neighbours.removed == [endpoint.id]
    assert Pool.objects.get(id=harbour.pool.id).reserved == 0
    assert endpoint.finalizers == []


def test_a_delete_before_the_first_pass_leaves_nothing(harbour, tenant, neighbours):
    endpoint = create(tenant)
    endpoint_delete(endpoint=endpoint, actor="test")
    harbour.settle(endpoint, rounds=2)
    assert phase(endpoint) is Phase.DELETED
    assert harbour.cluster.writes == 0
    assert neighbours.closed == [deployment_of(endpoint).id]


def test_a_delete_bills_to_the_request_and_not_to_the_last_pod(harbour, tenant):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    endpoint_delete(endpoint=endpoint, actor="test")
    harbour.look()
    harbour.settle(endpoint)
    endpoint.refresh_from_db()
    facts = {fact["event"]: fact["at"] for fact in events(endpoint)}
    assert set(facts) == {"from", "to"}
    assert facts["from"] <= facts["to"] <= endpoint.deletion_requested_at.isoformat()


def test_a_pause_twice_ends_the_bill_once_and_a_resume_starts_another(harbour, tenant, neighbours):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    endpoint_pause(endpoint=endpoint, actor="test")
    endpoint_pause(endpoint=endpoint, actor="test")
    assert phase(endpoint) is Phase.PAUSING
    harbour.settle(endpoint)
    assert phase(endpoint) is Phase.PAUSED
    assert [fact["event"] for fact in events(endpoint)] == ["from", "to"]
    assert neighbours.closed == [deployment_of(endpoint).id]
    assert Pool.objects.get(id=harbour.pool.id).reserved == 0
    endpoint_resume(endpoint=endpoint, actor="test")
    harbour.settle(endpoint)
    assert phase(endpoint) is Phase.RUNNING
    assert [fact["event"] for fact in events(endpoint)] == ["from", "to", "from"]
    assert len({fact["pod_uid"] for fact in events(endpoint)}) == 2


def test_a_resume_during_the_pause_keeps_its_money(harbour, tenant, neighbours, monkeypatch):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    endpoint_pause(endpoint=endpoint, actor="test")
    reconcile(endpoint.id)
    harbour.cluster.step()
    harbour.look()
    load = run.load

    def resume_behind_its_back(held, endpoint_ids):
        loaded = list(load(held, endpoint_ids))
        monkeypatch.setattr(run, "load", load)
        endpoint_resume(endpoint=endpoint, actor="test")
        return loaded

    monkeypatch.setattr(run, "load", resume_behind_its_back)
    reconcile(endpoint.id)
    assert neighbours.closed == []
    assert deployment_of(endpoint).held
    harbour.settle(endpoint)
    assert phase(endpoint) is Phase.RUNNING


def test_a_pod_that_vanishes_is_billed_to_its_last_sight_and_replaced(harbour, tenant):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    harbour.look()
    last_sight = ClusterListing.objects.get(cluster=harbour.pool.cluster).listed_at
    harbour.cluster.kill_pods()
    harbour.look()
    assert [fact["event"] for fact in events(endpoint)] == ["from", "to"]
    assert events(endpoint)[-1]["at"] == last_sight.isoformat()
    reconcile(endpoint.id)
    assert phase(endpoint) is Phase.DEGRADED
    harbour.settle(endpoint)
    assert phase(endpoint) is Phase.RUNNING
    assert [fact["event"] for fact in events(endpoint)] == ["from", "to", "from"]


def test_a_living_replica_is_proven_once_per_slot(harbour, tenant):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    Replica.objects.update(alive_at=database_now() - timedelta(minutes=6))
    for _ in range(3):
        harbour.look()
    assert [fact["event"] for fact in events(endpoint)] == ["from", "alive"]


def test_fault_33_an_unready_pod_is_not_billed(harbour, tenant, neighbours):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    last_sight = ClusterListing.objects.get(cluster=harbour.pool.cluster).listed_at
    harbour.cluster.step(ready=False)
    harbour.look()
    assert [fact["event"] for fact in events(endpoint)] == ["from", "to"]
    assert events(endpoint)[1]["at"] == last_sight.isoformat()
    reconcile(endpoint.id)
    assert phase(endpoint) is Phase.DEGRADED
    assert deployment_of(endpoint).held
    harbour.look()
    harbour.cluster.step()
    neighbours.blind = True
    harbour.settle(endpoint)
    assert [fact["event"] for fact in events(endpoint)] == ["from", "to"]
    neighbours.blind = False
    harbour.settle(endpoint)
    assert phase(endpoint) is Phase.RUNNING
    first, ended, second = events(endpoint)
    assert (first["pod_uid"], second["event"]) == (second["pod_uid"], "from")
    assert first["from_at"] == ended["from_at"] == first["at"] < ended["at"] < second["at"] == second["from_at"]


def test_fault_33_an_engine_that_ran_out_of_memory_between_two_looks_is_not_billed_meanwhile(harbour, tenant):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    (pod,) = harbour.cluster.pods.values()
    pod["status"]["containerStatuses"][0]["restartCount"] = 1
    harbour.look()
    assert [fact["event"] for fact in events(endpoint)] == ["from", "to"]
    reconcile(endpoint.id)
    assert [fact["event"] for fact in events(endpoint)] == ["from", "to", "from"]


def test_fault_33_a_pod_that_nobody_saw_for_a_slot_is_not_billed_meanwhile_and_serves_on(harbour, tenant, neighbours):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    long_ago = database_now() - timedelta(minutes=6)
    Observed.objects.update(observed_at=long_ago)
    ClusterListing.objects.filter(cluster=harbour.pool.cluster).update(listed_at=long_ago)
    Replica.objects.update(alive_at=long_ago, serving_at=long_ago)
    harbour.look()
    assert [pod.state for pod in neighbours.pods[deployment_of(endpoint).id]] == ["serving"]
    assert [fact["event"] for fact in events(endpoint)] == ["from", "to"]
    assert events(endpoint)[1]["at"] == long_ago.isoformat()
    assert endpoint.id in set(due())
    sweep()
    assert [fact["event"] for fact in events(endpoint)] == ["from", "to", "from"]
    assert phase(endpoint) is Phase.RUNNING


def test_fault_34_a_full_pool_makes_the_next_endpoint_wait_until_room_appears(harbour, tenant):
    Pool.objects.filter(id=harbour.pool.id).update(capacity=1)
    first, second = create(tenant), create(tenant, name="second")
    harbour.settle(first)
    harbour.settle(second)
    assert (phase(first), phase(second)) == (Phase.RUNNING, Phase.WAITING_CAPACITY)
    assert events(second) == []
    assert "0 accelerators free and 1 more are needed" in condition(second, "CapacityReserved")["message"]
    endpoint_delete(endpoint=first, actor="test")
    harbour.settle(first)
    harbour.settle(second)
    assert phase(second) is Phase.RUNNING


def test_the_pools_count_is_the_sum_of_its_deployments(harbour, tenant):
    endpoints = [create(tenant, name=f"e{number}", replicas=number) for number in (1, 2, 4)]
    for endpoint in endpoints:
        harbour.settle(endpoint)
    endpoint_scale(endpoint=endpoints[1], actor="test", replicas=1)
    for endpoint in endpoints:
        harbour.settle(endpoint)
    total = Deployment.objects.filter(pool=harbour.pool).aggregate(total=Sum("reserved"))["total"]
    assert Pool.objects.get(id=harbour.pool.id).reserved == total == 6
    assert phase(endpoints[1]) is Phase.RUNNING


def test_scaling_to_zero_keeps_the_endpoint_and_waking_says_so(harbour, tenant):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    endpoint_scale(endpoint=endpoint, actor="test", replicas=0)
    harbour.settle(endpoint)
    assert phase(endpoint) is Phase.SCALED_TO_ZERO
    endpoint_scale(endpoint=endpoint, actor="test", replicas=1)
    reconcile(endpoint.id)
    harbour.cluster.step(ready=False)
    harbour.look()
    reconcile(endpoint.id)
    assert phase(endpoint) is Phase.WAKING
    harbour.settle(endpoint)
    assert phase(endpoint) is Phase.RUNNING


def test_a_suspended_tenants_engines_end_and_come_back_with_its_standing(harbour, tenant, neighbours):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    standing_set(tenant_id=tenant.id, standing=Standing.SUSPENDED, actor="test")
    assert endpoint.id in set(due())
    harbour.settle(endpoint)
    assert phase(endpoint) is Phase.SUSPENDED
    assert harbour.cluster.pods == {}
    assert [fact["event"] for fact in events(endpoint)] == ["from", "to"]
    view = endpoint_view(endpoint)
    assert (view.reason, view.message) == (
        "Suspended",
        "The tenant's money is used up: top up, and it runs again by itself.",
    )
    assert not deployment_of(endpoint).held
    neighbours.poor = True
    standing_set(tenant_id=tenant.id, standing=Standing.ACTIVE, actor="test")
    harbour.settle(endpoint)
    assert condition(endpoint, "CapacityReserved")["reason"] == "CreditExhausted"
    neighbours.poor = False
    harbour.settle(endpoint)
    assert phase(endpoint) is Phase.RUNNING
    assert [fact["event"] for fact in events(endpoint)] == ["from", "to", "from"]


def test_a_suspension_is_found_by_the_sweep_alone_and_by_no_pass_again(harbour, tenant):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    standing_set(tenant_id=tenant.id, standing=Standing.SUSPENDED, actor="test")
    for _ in range(3):
        sweep()
        harbour.cluster.step()
    assert phase(endpoint) is Phase.SUSPENDED
    assert harbour.cluster.pods == {}
    sweep()
    assert endpoint.id not in set(due())


def test_drift_is_found_by_a_listing_and_repaired(harbour, tenant):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    ref = next(ref for ref in harbour.cluster.objects if ref.kind == "Deployment")
    harbour.cluster.objects[ref]["spec"]["replicas"] = 3
    harbour.look()
    assert endpoint.id in set(due())
    reconcile(endpoint.id)
    assert harbour.cluster.objects[ref]["spec"]["replicas"] == 1


NEW_IMAGE = "engine.moorage.local/vllm-cpu:0.33.0"


def images(harbour) -> list[str]:
    return sorted(pod["spec"]["containers"][0]["image"] for pod in harbour.cluster.pods.values())


def bring_new_image(harbour) -> None:
    known = {"engine.moorage.local/vllm-cpu": {"image": NEW_IMAGE, "version": "0.33.0"}}
    Pool.objects.filter(id=harbour.pool.id).update(engine_images=known)
    endpoints_revisit(harbour.pool)


def one_round(harbour, **step) -> None:
    sweep()
    harbour.cluster.step(**step)
    harbour.look()
    sweep()


def test_an_update_surges_where_accelerators_are_free(harbour, tenant, neighbours):
    endpoint = create(tenant, replicas=2)
    harbour.settle(endpoint)
    bring_new_image(harbour)
    served, most = [], 0
    for _ in range(8):
        one_round(harbour)
        served.append(len([pod for pod in neighbours.pods[deployment_of(endpoint).id] if pod.state == "serving"]))
        most = max(most, Pool.objects.get(id=harbour.pool.id).reserved)
    assert min(served) >= 2
    assert images(harbour) == [NEW_IMAGE, NEW_IMAGE]
    assert phase(endpoint) is Phase.RUNNING
    assert (most, Pool.objects.get(id=harbour.pool.id).reserved) == (3, 2)
    assert endpoint.id not in set(due())


def test_a_pool_that_changes_during_a_pass_is_not_missed(harbour, tenant, monkeypatch):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    record = run._record

    def change_behind_its_back(*arguments):
        bring_new_image(harbour)
        record(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(run, "_record", change_behind_its_back)
        reconcile(endpoint.id)
    assert endpoint.id in set(due())


def test_an_update_recreates_where_no_accelerator_is_free(harbour, tenant, neighbours):
    Pool.objects.filter(id=harbour.pool.id).update(capacity=2)
    endpoint = create(tenant, replicas=2)
    harbour.settle(endpoint)
    bring_new_image(harbour)
    counts = []
    for _ in range(8):
        one_round(harbour)
        counts.append(len(harbour.cluster.pods))
    assert max(counts) == 2
    assert min(counts) == 1
    assert images(harbour) == [NEW_IMAGE, NEW_IMAGE]
    assert phase(endpoint) is Phase.RUNNING


def test_an_update_whose_engine_never_answers_leaves_the_old_replicas_serving(harbour, tenant, neighbours):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    (old,) = harbour.cluster.pods.values()
    bring_new_image(harbour)
    for _ in range(4):
        one_round(harbour, broken=NEW_IMAGE)
    assert len(harbour.cluster.pods) == 2
    assert [pod.pod_uid for pod in neighbours.pods[deployment_of(endpoint).id]] == [old["metadata"]["uid"]]
    assert phase(endpoint) is Phase.UPDATE_FAILED
    assert [fact["event"] for fact in events(endpoint)] == ["from"]
    # The way back is an update as well.
    Pool.objects.filter(id=harbour.pool.id).update(engine_images=harbour.pool.engine_images)
    endpoints_revisit(harbour.pool)
    for _ in range(4):
        one_round(harbour, broken=NEW_IMAGE)
    assert [pod["metadata"]["uid"] for pod in harbour.cluster.pods.values()] == [old["metadata"]["uid"]]
    assert phase(endpoint) is Phase.RUNNING
    assert Pool.objects.get(id=harbour.pool.id).reserved == 1


@pytest.mark.parametrize(
    ("fault", "word", "kind", "reason"),
    [
        (Invalid("spec.x is unknown"), Phase.FAILED, "Accepted", perform.MANIFEST_REFUSED),
        (Quota("exceeded quota"), Phase.WAITING_CAPACITY, "CapacityReserved", "QuotaExceeded"),
        (Retry(5, "no answer"), Phase.PROVISIONING, "Scheduled", perform.CLUSTER_UNREACHABLE),
    ],
)
def test_what_the_cluster_refuses_is_said_and_tried_again(harbour, tenant, fault, word, kind, reason):
    endpoint = create(tenant)
    harbour.cluster.fault = fault
    reconcile(endpoint.id)
    assert phase(endpoint) is word
    assert condition(endpoint, kind)["reason"] == reason
    assert endpoint.due_at is not None
    harbour.cluster.fault = None
    harbour.settle(endpoint)
    assert phase(endpoint) is Phase.RUNNING


def test_deaf_gateways_delay_the_route_and_nothing_else(harbour, tenant, neighbours):
    endpoint = create(tenant)
    neighbours.deaf = True
    reconcile(endpoint.id)
    assert condition(endpoint, "RouteProgrammed")["status"] == "False"
    assert harbour.cluster.writes > 0
    neighbours.deaf = False
    harbour.settle(endpoint)
    assert phase(endpoint) is Phase.RUNNING


def test_a_silent_cluster_keeps_its_facts(harbour, tenant):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    harbour.cluster.is_silent = True
    sweep()
    assert phase(endpoint) is Phase.RUNNING
    assert [fact["event"] for fact in events(endpoint)] == ["from"]


def test_older_facts_never_replace_newer_ones(harbour, tenant):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    record(harbour.pool.cluster, {}, as_of=database_now() - timedelta(minutes=5))
    assert Replica.objects.get(deployment=deployment_of(endpoint)).state == ReplicaState.SERVING
    assert phase(endpoint) is Phase.RUNNING


def test_older_facts_that_wait_for_newer_ones_do_not_replace_them(harbour, tenant):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    rows = Deployment.objects.filter(endpoint=endpoint)
    older, is_locked = database_now(), threading.Event()

    def write_newer() -> None:
        with as_role("system"), transaction.atomic():
            rows.select_for_update().get()
            is_locked.set()
            time.sleep(0.3)
            Observed.objects.filter(deployment__endpoint=endpoint).update(observed_at=database_now())
        connection.close()

    other = threading.Thread(target=write_newer)
    other.start()
    is_locked.wait()
    record(harbour.pool.cluster, {}, as_of=older)
    other.join()
    assert Observed.objects.get(deployment__endpoint=endpoint).facts is not None
    assert Replica.objects.get(deployment__endpoint=endpoint).state == ReplicaState.SERVING


def test_a_lagging_watch_ends_no_pod_that_it_was_not_told_about(harbour, tenant):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    record(harbour.pool.cluster, {}, as_of=database_now(), only=[deployment_of(endpoint).id], gone=())
    assert Replica.objects.get(deployment=deployment_of(endpoint)).state == ReplicaState.SERVING


def test_pods_that_redis_lost_are_published_by_the_next_sweep(harbour, tenant, neighbours):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    neighbours.pods.clear()
    sweep()
    assert [pod.state for pod in neighbours.pods[deployment_of(endpoint).id]] == ["serving"]


def test_one_broken_endpoint_does_not_stop_the_sweep(harbour, tenant):
    broken, whole = create(tenant, name="broken"), create(tenant, name="whole")
    Endpoint.objects.filter(id=broken.id).update(conditions=[{"type": "no condition of ours"}])
    sweep()
    assert phase(whole) is Phase.PROVISIONING
    assert reconcile(broken.id) == 0


def test_what_breaks_the_pass_over_one_endpoint_holds_up_no_other(harbour, tenant, monkeypatch):
    broken, *whole = (create(tenant, name=f"e-{number}") for number in range(4))
    apply, name = harbour.cluster.apply, name_of(deployment_of(broken).id)

    def break_on_one(objects):
        if any(item["metadata"]["name"] == name for item in objects):
            raise RuntimeError("no answer that anybody thought of")
        return apply(objects)

    monkeypatch.setattr(harbour.cluster, "apply", break_on_one)
    run.drain()
    assert {phase(endpoint) for endpoint in whole} == {Phase.PROVISIONING}
    assert phase(broken) is Phase.REQUESTED


FORGOTTEN = [
    ({"release": "local-model"}, {}, "release local-model is no longer in the catalogue; delete the endpoint"),
    ({}, {"recipe": "old-recipe"}, "recipe old-recipe is no longer in the catalogue; delete the endpoint"),
]


@pytest.mark.parametrize(("of_endpoint", "of_deployment", "sentence"), FORGOTTEN)
def test_what_the_catalogue_forgot_is_failed_with_a_sentence_and_can_be_deleted(
    harbour, tenant, neighbours, of_endpoint, of_deployment, sentence
):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    Endpoint.objects.filter(id=endpoint.id).update(**of_endpoint, due_at=database_now())
    Deployment.objects.filter(endpoint=endpoint).update(**of_deployment)
    sweep()
    # Engines that serve are left alone.
    assert phase(endpoint) is Phase.UPDATE_FAILED
    assert endpoint.serving == 1
    # After a restart of the engines nothing vouches for them any more.
    harbour.cluster.kill_pods()
    harbour.settle(endpoint)
    assert phase(endpoint) is Phase.FAILED
    assert sentence in endpoint_view(endpoint).message
    assert [fact["event"] for fact in events(endpoint)] == ["from", "to"]
    assert ids.encode(ids.ENDPOINT, endpoint.id) not in {item.endpoint_id for item in route_list()}
    endpoint_delete(endpoint=endpoint, actor="test")
    harbour.settle(endpoint)
    assert phase(endpoint) is Phase.DELETED
    assert not any(ref.kind == "Deployment" for ref in harbour.cluster.objects)
    assert harbour.cluster.pods == {}
    assert neighbours.closed == [deployment_of(endpoint).id]
    assert Pool.objects.get(id=harbour.pool.id).reserved == 0


def test_what_the_catalogue_forgot_can_be_paused_and_runs_again_when_it_remembers(harbour, tenant, neighbours):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    Deployment.objects.filter(endpoint=endpoint).update(recipe="old-recipe")
    endpoint_pause(endpoint=endpoint, actor="test")
    harbour.settle(endpoint)
    assert phase(endpoint) is Phase.PAUSED
    assert harbour.cluster.pods == {}
    assert neighbours.removed == [endpoint.id]
    Endpoint.objects.filter(id=endpoint.id).update(release="local-model")
    with pytest.raises(Problem, match="release 'local-model' is not in the catalogue"):
        endpoint_resume(endpoint=endpoint, actor="test")
    Endpoint.objects.filter(id=endpoint.id).update(release="tiny-deepseek")
    Deployment.objects.filter(endpoint=endpoint).update(recipe="tiny-deepseek-cpu")
    endpoint_resume(endpoint=endpoint, actor="test")
    harbour.settle(endpoint)
    assert phase(endpoint) is Phase.RUNNING


def test_a_pool_that_lost_its_engine_image_says_so(harbour, tenant):
    endpoint = create(tenant)
    Pool.objects.filter(id=harbour.pool.id).update(engine_images={})
    harbour.settle(endpoint)
    assert phase(endpoint) is Phase.FAILED
    assert f"pool {harbour.pool.name} no longer has an engine image" in endpoint_view(endpoint).message
    assert harbour.cluster.writes == 0


def test_a_life_reaches_every_phase(harbour, tenant):
    seen: list[Phase] = []

    def note(endpoint: Endpoint) -> None:
        if phase(endpoint) not in seen:
            seen.append(phase(endpoint))

    def rounds(endpoint: Endpoint, **step) -> None:
        for _ in range(5):
            note(endpoint)
            reconcile(endpoint.id)
            note(endpoint)
            harbour.cluster.step(**step)
            harbour.look()

    endpoint = create(tenant)
    rounds(endpoint, ready=False)
    rounds(endpoint)
    harbour.cluster.kill_pods()
    harbour.look()
    rounds(endpoint)
    bring_new_image(harbour)
    rounds(endpoint, broken=NEW_IMAGE)
    rounds(endpoint)
    endpoint_scale(endpoint=endpoint, actor="test", replicas=0)
    rounds(endpoint)
    endpoint_scale(endpoint=endpoint, actor="test", replicas=1)
    rounds(endpoint, ready=False)
    rounds(endpoint)
    endpoint_pause(endpoint=endpoint, actor="test")
    rounds(endpoint)
    endpoint_resume(endpoint=endpoint, actor="test")
    rounds(endpoint)
    standing_set(tenant_id=tenant.id, standing=Standing.SUSPENDED, actor="test")
    rounds(endpoint)
    standing_set(tenant_id=tenant.id, standing=Standing.ACTIVE, actor="test")
    Pool.objects.filter(id=harbour.pool.id).update(capacity=0)
    rounds(endpoint)
    Pool.objects.filter(id=harbour.pool.id).update(capacity=6)
    harbour.cluster.fault = Invalid("spec.x is unknown")
    rounds(endpoint)
    harbour.cluster.fault = None
    endpoint_delete(endpoint=endpoint, actor="test")
    rounds(endpoint)
    assert seen == [
        Phase.REQUESTED,
        Phase.PROVISIONING,
        Phase.LOADING,
        Phase.RUNNING,
        Phase.DEGRADED,
        Phase.UPDATE_FAILED,
        Phase.UPDATING,
        Phase.SCALED_TO_ZERO,
        Phase.WAKING,
        Phase.PAUSING,
        Phase.PAUSED,
        Phase.SUSPENDED,
        Phase.WAITING_CAPACITY,
        Phase.FAILED,
        Phase.DELETING,
        Phase.DELETED,
    ]
    assert set(seen) == set(Phase)
