"""The reserved rung: what may be reserved, how it follows the shared engines, and what billing is told."""

import threading
from datetime import timedelta
from functools import partial
from uuid import uuid4

import pytest
from django.db import IntegrityError, ProgrammingError, connection, transaction

from inference.clock import database_now
from inference.core import conditions as c
from inference.core import decide as do
from inference.core.reserved import FINALIZERS, ReservedRow, decide
from inference.core.words import Finalizer, Phase
from inference.models import Deployment, Endpoint, Replica
from inference.reconciler.run import reconcile
from inference.refusals import check_tpm
from inference.selectors import carrier_of, endpoint_get, endpoint_view, release_list, route_list
from inference.services import (
    endpoint_delete,
    endpoint_pause,
    endpoint_reserve,
    endpoint_resume,
    endpoint_scale,
)
from inference.sweep import due, sweep
from kernel import ids
from kernel.problems import NO_POOL_FITS, Problem
from tenants.models import Outbox, Standing, Tenant
from tenants.rls import tenant_scope
from tenants.services import standing_set, tenant_create
from tests.conftest import as_role
from tests.inference.conftest import REGION, create
from tests.inference.values import NOW

LET_TPM = 40_000  # what one replica of the test model lets


@pytest.fixture
def shared(harbour, operator) -> Endpoint:
    """The operator's shared endpoint, serving."""
    return harbour.settle(create(operator, rung="shared"))


def reserve(tenant: Tenant, tpm: int = 3000, **changes) -> Endpoint:
    return create(tenant, rung="reserved", tpm=tpm, **changes)


def refused(call, *args, **kwargs) -> Problem:
    with pytest.raises(Problem) as caught:
        call(*args, **kwargs)
    return caught.value


def phase(endpoint: Endpoint) -> Phase:
    endpoint.refresh_from_db()
    return endpoint_view(endpoint).phase


def facts(endpoint: Endpoint) -> list[tuple[str, int]]:
    return [(fact["event"], fact["ktpm"]) for fact in payloads(endpoint)]


def payloads(endpoint: Endpoint) -> list[dict]:
    rows = Outbox.objects.filter(topic="inference.reserved", payload__endpoint_id=str(endpoint.id)).order_by("id")
    return [row.payload for row in rows]


def test_a_reservation_rides_on_the_shared_engines_under_a_name_of_its_own(harbour, shared, tenant, neighbours):
    endpoint = reserve(tenant)
    assert (neighbours.held[endpoint.id], neighbours.pools[endpoint.id]) == (3, f"{REGION}/{harbour.pool.name}")
    assert phase(endpoint) is Phase.REQUESTED
    reconcile(endpoint.id)
    assert phase(endpoint) is Phase.RUNNING
    assert neighbours.routes[-1] == endpoint.id
    [record] = route_list([endpoint.id])
    carrier = Deployment.objects.get(endpoint=shared)
    assert (record.tpm, record.shared, record.served_name) == (3000, False, "tiny-deepseek")
    assert [(d.deployment_id, d.sku) for d in record.deployments] == [(str(carrier.id), "tiny-deepseek:reserved")]
    (fact,) = payloads(endpoint)
    assert fact == {
        "endpoint_id": str(endpoint.id),
        "tenant_id": str(tenant.id),
        "sku": "tiny-deepseek:reserved",
        "region": REGION,
        "pool": f"{REGION}/{harbour.pool.name}",
        "ktpm": 3,
        "event": "from",
        "at": Deployment.objects.get(endpoint=endpoint).metered_at.isoformat(),
    }
    view = endpoint_view(endpoint)
    assert (view.tpm, view.serving, view.replicas, view.accelerators) == (3000, 1, 1, 0)


@pytest.mark.parametrize("change", [endpoint_delete, endpoint_pause, partial(endpoint_scale, replicas=0)])
def test_shared_engines_that_change_before_they_are_locked_let_nothing(shared, change):
    read_before = carrier_of(shared.release, REGION)
    assert read_before is not None
    change(endpoint=shared, actor="t")
    assert refused(check_tpm, read_before, 3000).type is NO_POOL_FITS


def test_a_reservation_in_sync_is_not_due_and_a_pass_tells_billing_nothing_new(shared, tenant):
    endpoint = reserve(tenant)
    for _ in range(3):
        reconcile(endpoint.id)
    assert facts(endpoint) == [("from", 3)]
    assert endpoint.id not in set(due())


@pytest.mark.parametrize(
    ("changes", "code", "param", "sentence"),
    [
        ({"tpm": 0}, "invalid_parameter", "tpm", "tpm is a multiple of 1000 and at least 1000"),
        ({"tpm": 1500}, "invalid_parameter", "tpm", "tpm is a multiple of 1000"),
        ({"tpm": 41_000}, "no_pool_fits", "tpm", "40000 of the 40000 tokens a minute that are let here are free"),
        ({"replicas": 2}, "invalid_parameter", "rung", "leave out accelerator, replicas and paused"),
        ({"accelerator": "cpu"}, "invalid_parameter", "rung", "leave out accelerator"),
        ({"region": "nowhere"}, "no_pool_fits", "release", "no shared engines of tiny-deepseek run in region nowhere"),
    ],
)
def test_what_cannot_be_reserved_is_refused_by_field(shared, tenant, changes, code, param, sentence):
    problem = refused(reserve, tenant, **changes)
    assert (problem.type.code, problem.param) == (code, param)
    assert sentence in problem.detail


def test_a_recipe_that_nobody_measured_lets_nothing(shared, tenant):
    Deployment.objects.filter(endpoint=shared).update(recipe="distill-32b-2card")
    assert "has no measured throughput" in refused(reserve, tenant).detail


def test_without_money_nothing_is_reserved(shared, tenant, neighbours):
    neighbours.poor = True
    assert refused(reserve, tenant).type.code == "insufficient_balance"
    assert Endpoint.objects.filter(tenant_id=tenant.id).count() == 0


def test_reservations_of_all_tenants_share_what_is_let(shared, tenant):
    other = tenant_create(name="Other", currency="USD")
    reserve(other, LET_TPM - 2000)
    problem = refused(reserve, tenant)
    assert "tpm 3000 is too much: 2000 of the 40000 tokens a minute" in problem.detail
    endpoint = reserve(tenant, 2000)
    assert refused(endpoint_reserve, endpoint=endpoint, actor="test", tpm=3000).param == "tpm"
    (view,) = [view for view in release_list(REGION) if view.release.id == "tiny-deepseek"]
    assert (view.offer.total_tpm, view.offer.free_tpm) == (LET_TPM, 0)
    assert view.skus["reserved", ""] == "tiny-deepseek:reserved"
    # A web session sees one tenant, and counts all.
    with as_role("web"), tenant_scope(tenant.id):
        assert Endpoint.objects.filter(rung="reserved").count() == 1
        assert "0 of the 40000" in refused(reserve, tenant, name="more").detail


def test_fifty_reservations_at_once_never_take_more_than_is_let(shared, migrated_database):
    tenants = [tenant_create(name=f"T{number}", currency="USD") for number in range(50)]
    results: list[str] = []
    ready = threading.Barrier(50)

    def attempt(tenant: Tenant) -> None:
        with as_role("system"):
            ready.wait(timeout=30)
            try:
                reserve(tenant, 10_000)
                results.append("reserved")
            except Problem as problem:
                results.append(problem.type.code)
        connection.close()

    threads = [threading.Thread(target=attempt, args=(tenant,)) for tenant in tenants]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["no_pool_fits"] * 46 + ["reserved"] * 4


def test_more_and_less_hold_at_once_and_billing_is_told_without_a_gap(shared, tenant, neighbours):
    endpoint = reserve(tenant)
    reconcile(endpoint.id)
    endpoint = endpoint_reserve(endpoint=endpoint, actor="test", tpm=8000)
    assert neighbours.held[endpoint.id] == 5
    assert (endpoint.generation, endpoint.spec) == (2, {"tpm": 8000})
    reconcile(endpoint.id)
    assert route_list([endpoint.id])[0].tpm == 8000
    endpoint_reserve(endpoint=endpoint, actor="test", tpm=2000)
    reconcile(endpoint.id)
    assert facts(endpoint) == [("from", 3), ("to", 3), ("from", 8), ("to", 8), ("from", 2)]
    told = payloads(endpoint)
    assert (told[1]["at"], told[3]["at"]) == (told[2]["at"], told[4]["at"])
    assert endpoint_reserve(endpoint=endpoint, actor="test", tpm=2000).generation == 3


def test_a_raise_that_nobody_pays_for_changes_nothing(shared, tenant, neighbours):
    endpoint = reserve(tenant)
    neighbours.poor = True
    assert refused(endpoint_reserve, endpoint=endpoint, actor="test", tpm=4000).type.code == "insufficient_balance"
    assert Deployment.objects.get(endpoint=endpoint).tpm == 3000
    assert endpoint_reserve(endpoint=endpoint, actor="test", tpm=1000).spec == {"tpm": 1000}


def test_a_reservation_has_no_replicas_and_cannot_be_paused(shared, tenant):
    endpoint = reserve(tenant)
    assert "change its tpm" in refused(endpoint_scale, endpoint=endpoint, actor="test", replicas=2).detail
    assert "kept by paying" in refused(endpoint_pause, endpoint=endpoint, actor="test").detail
    assert endpoint_resume(endpoint=endpoint, actor="test").generation == 1
    own = create(tenant, name="own")
    assert "tpm is of reservations" in refused(endpoint_reserve, endpoint=own, actor="test", tpm=1000).detail


def test_a_delete_ends_the_bill_at_the_request_and_returns_the_money(shared, tenant, neighbours):
    endpoint = reserve(tenant)
    reconcile(endpoint.id)
    endpoint_delete(endpoint=endpoint, actor="test")
    assert phase(endpoint) is Phase.DELETING
    reconcile(endpoint.id)
    assert phase(endpoint) is Phase.DELETED
    assert endpoint.finalizers == []
    assert (neighbours.removed, neighbours.closed) == ([endpoint.id], [endpoint.id])
    assert facts(endpoint) == [("from", 3), ("to", 3)]
    assert payloads(endpoint)[-1]["at"] == endpoint.deletion_requested_at.isoformat()
    reserve(tenant_create(name="Next", currency="USD"), LET_TPM)


def test_time_without_a_shared_engine_is_not_billed_and_the_sweep_alone_finds_it(harbour, shared, tenant):
    endpoint = reserve(tenant)
    reconcile(endpoint.id)
    long_ago = database_now() - timedelta(minutes=2)
    Deployment.objects.filter(endpoint=endpoint).update(metered_at=long_ago - timedelta(minutes=1))
    harbour.cluster.kill_pods()
    harbour.look()
    Replica.objects.filter(deployment__endpoint=shared).update(alive_at=long_ago)
    reconcile(shared.id)
    assert endpoint.id in set(due())
    sweep()
    assert phase(endpoint) is Phase.DEGRADED
    assert facts(endpoint) == [("from", 3), ("to", 3)]
    assert payloads(endpoint)[-1]["at"] == long_ago.isoformat()
    harbour.settle(shared)
    sweep()
    assert phase(endpoint) is Phase.RUNNING
    assert facts(endpoint) == [("from", 3), ("to", 3), ("from", 3)]


def test_before_the_shared_engines_serve_a_reservation_costs_nothing_and_says_what_is_missing(
    harbour, operator, tenant
):
    shared = create(operator, rung="shared")
    endpoint = reserve(tenant)
    reconcile(endpoint.id)
    assert phase(endpoint) is Phase.PROVISIONING
    reconcile(shared.id)
    harbour.cluster.step(ready=False)
    harbour.look()
    reconcile(shared.id)
    reconcile(endpoint.id)
    assert phase(endpoint) is Phase.LOADING
    assert facts(endpoint) == []
    harbour.settle(shared)
    sweep()
    assert phase(endpoint) is Phase.RUNNING


def test_a_suspended_tenants_reservation_ends_and_comes_back_with_its_standing(shared, tenant, neighbours):
    endpoint = reserve(tenant)
    reconcile(endpoint.id)
    standing_set(tenant_id=tenant.id, standing=Standing.SUSPENDED, actor="test")
    sweep()
    assert phase(endpoint) is Phase.SUSPENDED
    assert "top up" in endpoint_view(endpoint).message
    assert route_list([endpoint.id])[0].running is False
    assert neighbours.closed == [endpoint.id]
    assert endpoint.id not in set(due())
    standing_set(tenant_id=tenant.id, standing=Standing.ACTIVE, actor="test")
    sweep()
    assert phase(endpoint) is Phase.RUNNING
    assert facts(endpoint) == [("from", 3), ("to", 3), ("from", 3)]


def test_the_operator_cannot_take_engines_from_under_a_reservation(harbour, shared, tenant):
    endpoint_scale(endpoint=shared, actor="test", replicas=2)
    endpoint = reserve(tenant, LET_TPM + 1000)
    problem = refused(endpoint_scale, endpoint=shared, actor="test", replicas=1)
    assert "41000 tokens a minute are reserved here and 1 replicas of tiny-deepseek-cpu carry 40000" in problem.detail
    assert refused(endpoint_pause, endpoint=shared, actor="test").type.code == "conflict"
    assert refused(endpoint_delete, endpoint=shared, actor="test").type.code == "conflict"
    endpoint_reserve(endpoint=endpoint, actor="test", tpm=LET_TPM)
    assert endpoint_scale(endpoint=shared, actor="test", replicas=1).spec["replicas"] == 1


def test_a_reservation_of_a_release_that_the_catalogue_forgot_says_so_and_can_be_deleted(shared, tenant):
    endpoint = reserve(tenant)
    Endpoint.objects.filter(id=endpoint.id).update(release="local-model")
    Endpoint.objects.filter(id=shared.id).update(serving=0)
    reconcile(endpoint.id)
    assert phase(endpoint) is Phase.FAILED
    assert "release local-model is no longer in the catalogue" in endpoint_view(endpoint).message
    endpoint_delete(endpoint=endpoint, actor="test")
    reconcile(endpoint.id)
    assert phase(endpoint) is Phase.DELETED


def test_a_web_session_reserves_reads_and_changes_its_own(shared, tenant):
    with as_role("web"):
        with tenant_scope(tenant.id):
            endpoint = reserve(tenant)
            endpoint_reserve(endpoint=endpoint, actor="test", tpm=4000)
            view = endpoint_get(tenant_id=tenant.id, endpoint_id=ids.encode(ids.ENDPOINT, endpoint.id))
            assert (view.tpm, view.recipe) == (4000, "tiny-deepseek-cpu")
        with tenant_scope(uuid4()):
            assert not Deployment.objects.filter(endpoint_id=endpoint.id).exists()


def test_a_web_session_cannot_ride_on_somebody_elses_engines(harbour, shared, tenant):
    other = create(tenant_create(name="Other", currency="USD"), name="private")
    foreign = Deployment.objects.get(endpoint=other)
    mine = reserve(tenant)
    columns = {"pool": foreign.pool, "recipe": "x", "replicas": 0, "accelerators": 0, "sku": "x", "tpm": 1000}
    with as_role("web"):
        with pytest.raises(IntegrityError, match="rides on public engines"), tenant_scope(tenant.id):
            Deployment.objects.create(tenant=tenant, endpoint=mine, carrier=foreign, **columns)
        with pytest.raises(ProgrammingError, match="permission denied"), tenant_scope(tenant.id):
            Deployment.objects.filter(endpoint=mine).update(carrier=foreign)


def test_only_what_rides_has_tokens_a_minute(shared):
    with pytest.raises(IntegrityError, match="deployment_rides_for_tpm"), transaction.atomic():
        Deployment.objects.filter(endpoint=shared).update(tpm=1000)


def row(**changes) -> ReservedRow:
    """A reservation of 3 kTPM that nothing was done for yet; its carrier serves."""
    values = {
        "deployment_id": uuid4(),
        "generation": 1,
        "stop": "",
        "deleting": False,
        "routed": "",
        "conditions": (),
        "ktpm": 3,
        "metered_ktpm": 0,
        "held": True,
        "absent": "",
        "carried": (),
        "serving": 1,
        "ends_at": None,
    }
    return ReservedRow(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "actions"),
    [
        ({}, [do.ProgramRoute, do.Meter]),
        ({"serving": 0}, [do.ProgramRoute]),
        ({"routed": "1:run", "metered_ktpm": 3}, []),
        ({"routed": "1:run", "metered_ktpm": 2}, [do.Meter]),
        ({"routed": "1:run", "metered_ktpm": 3, "serving": 0}, [do.Meter]),
        ({"routed": "1:run", "metered_ktpm": 3, "stop": c.SUSPENDED}, [do.ProgramRoute, do.Meter]),
        ({"routed": "1:Suspended", "stop": c.SUSPENDED}, [do.CloseHold]),
        ({"routed": "1:Suspended", "stop": c.SUSPENDED, "held": False}, []),
        ({"absent": "forgotten", "serving": 0}, []),
        ({"routed": "1:run", "metered_ktpm": 3, "deleting": True}, [do.RemoveRoute, do.Meter]),
        ({"deleting": True}, [do.CloseHold]),
        ({"deleting": True, "held": False}, []),
    ],
)
def test_a_reservation_is_decided_step_by_step(changes, actions):
    assert [type(action) for action in decide(row(**changes)).actions] == actions


def test_a_bill_that_ends_says_when():
    (meter,) = [a for a in decide(row(metered_ktpm=3, serving=0, ends_at=NOW)).actions if isinstance(a, do.Meter)]
    assert (meter.ktpm, meter.at) == (0, NOW)


def test_what_is_left_to_undo_keeps_a_reservation():
    deleting = row(routed="1:run", metered_ktpm=3, deleting=True)
    assert decide(deleting).finalizers == FINALIZERS
    assert decide(row(deleting=True)).finalizers == (Finalizer.HOLD,)
    assert decide(row(deleting=True, held=False)).archived
