"""Intent on real PostgreSQL: what may be asked, what is refused, and with which sentence."""

import threading
from dataclasses import replace

import pytest
from django.db import ProgrammingError, connection

from inference.access import access_endpoint
from inference.catalogue_files import catalogue
from inference.core.words import Phase
from inference.models import Deployment, Endpoint
from inference.selectors import endpoint_get, endpoint_list_for, endpoint_list_public, release_list, route_list
from inference.services import (
    endpoint_create,
    endpoint_delete,
    endpoint_pause,
    endpoint_resume,
    endpoint_scale,
    endpoint_update,
)
from kernel import ids
from kernel.problems import Problem
from tenants.models import AuditLog
from tenants.rls import tenant_scope
from tenants.services import tenant_create
from tests.conftest import as_role
from tests.inference.conftest import REGION, create, limit


def refused(call, *args, **kwargs) -> Problem:
    with pytest.raises(Problem) as caught:
        call(*args, **kwargs)
    return caught.value


def test_a_created_endpoint_is_placed_paid_for_audited_and_hinted(harbour, tenant, neighbours):
    endpoint = create(tenant, replicas=2)
    deployment = Deployment.objects.get(endpoint=endpoint)
    assert (deployment.pool, deployment.recipe, deployment.replicas) == (harbour.pool, "tiny-deepseek-cpu", 2)
    assert deployment.sku == "tiny-deepseek:dedicated:cpu"
    assert neighbours.held == {deployment.id: 7200}
    assert len(neighbours.hints) == 1
    assert endpoint_list_for(tenant.id)[0].phase is Phase.REQUESTED
    assert AuditLog.objects.filter(tenant_id=tenant.id, action="endpoint.created").count() == 1


def test_without_money_nothing_is_created(harbour, tenant, neighbours):
    neighbours.poor = True
    assert refused(create, tenant).type.code == "insufficient_balance"
    assert endpoint_list_for(tenant.id) == []
    assert neighbours.hints == []


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"name": ""}, "invalid_parameter", "name"),
        ({"name": "Tiny"}, "invalid_parameter", "name"),
        ({"name": "t\u0456ny"}, "invalid_parameter", "name"),
        ({"name": "t" * 49}, "invalid_parameter", "name"),
        ({"release": "gpt-9"}, "invalid_parameter", "release"),
        ({"release": "janus-pro-7b"}, "invalid_parameter", "release"),
        ({"rung": "stolen"}, "invalid_parameter", "rung"),
        ({"rung": "reserved", "tpm": 1000}, "no_pool_fits", "release"),
        ({"tpm": 1000}, "invalid_parameter", "tpm"),
        ({"rung": "shared"}, "forbidden", "rung"),
        ({"replicas": -1}, "invalid_parameter", "replicas"),
        ({"replicas": 65}, "invalid_parameter", "replicas"),
        ({"replicas": 17}, "no_pool_fits", None),
        ({"release": "deepseek-r1-0528"}, "no_pool_fits", None),
        ({"region": "nowhere"}, "no_pool_fits", None),
        ({"accelerator": "nvidia-h200-141"}, "no_pool_fits", None),
    ],
)
def test_what_cannot_be_is_refused_by_field(harbour, tenant, changes, code, param):
    problem = refused(create, tenant, **changes)
    assert (problem.type.code, problem.param) == (code, param)
    assert Endpoint.objects.filter(tenant_id=tenant.id).count() == 0


def test_a_wide_name_is_folded_rather_than_kept(harbour, tenant):
    assert create(tenant, name="\uff54iny").name == "tiny"


def test_every_pool_says_why_it_was_not_taken(harbour, tenant):
    problem = refused(create, tenant, release="deepseek-r1-0528")
    reasons = {item["pool"]: item["reason"] for item in problem.extra["pools"]}
    assert reasons[harbour.pool.name] == "WeightsMissing"
    assert "holds no weights of deepseek-r1-0528" in problem.detail


def test_a_name_is_taken_once_and_free_again_after_the_end(harbour, tenant):
    first = create(tenant)
    assert refused(create, tenant).type.code == "conflict"
    endpoint_delete(endpoint=first, actor="test")
    harbour.settle(first)
    assert create(tenant).id != first.id


def test_the_accelerator_quota_counts_replicas(harbour, tenant):
    limit(tenant, "accelerators", 3)
    first = create(tenant, replicas=2)
    assert refused(create, tenant, name="other", replicas=2).type.code == "quota_exceeded"
    create(tenant, name="other")
    problem = refused(endpoint_scale, endpoint=first, actor="test", replicas=3)
    assert problem.type.code == "quota_exceeded"
    assert "0 of 3 are left" in problem.detail


def test_fault_67_fifty_creates_at_once_with_a_quota_of_one_make_one(
    harbour, tenant, migrated_database, django_db_blocker
):
    limit(tenant, "endpoints", 1)
    results: list[str] = []
    ready = threading.Barrier(50)

    def attempt(number: int) -> None:
        with as_role("system"):
            ready.wait(timeout=30)
            try:
                create(tenant, name=f"tiny-{number}")
                results.append("created")
            except Problem as problem:
                results.append(problem.type.code)
        connection.close()

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["created"] + ["quota_exceeded"] * 49
    assert Endpoint.objects.filter(tenant_id=tenant.id).count() == 1


def test_scale_pause_resume_and_delete_each_bump_the_generation_once(harbour, tenant, neighbours):
    endpoint = create(tenant)
    deployment = Deployment.objects.get(endpoint=endpoint)
    assert endpoint_scale(endpoint=endpoint, actor="test", replicas=2).generation == 2
    assert neighbours.held[deployment.id] == 7200
    assert neighbours.pools[deployment.id] == f"{deployment.pool.region}/{deployment.pool.name}"
    assert endpoint_scale(endpoint=endpoint, actor="test", replicas=2).generation == 2
    assert endpoint_pause(endpoint=endpoint, actor="test").generation == 3
    paused = endpoint_pause(endpoint=endpoint, actor="test")
    assert paused.generation == 3
    resumed = endpoint_resume(endpoint=endpoint, actor="test")
    assert (resumed.generation, resumed.paused_at) == (4, None)
    assert endpoint_resume(endpoint=endpoint, actor="test").generation == 4
    deleted = endpoint_delete(endpoint=endpoint, actor="test")
    assert endpoint_delete(endpoint=endpoint, actor="test").deletion_requested_at == deleted.deletion_requested_at
    assert refused(endpoint_pause, endpoint=endpoint, actor="test").type.code == "conflict"
    deployment.refresh_from_db()
    assert deployment.replicas == 2
    actions = AuditLog.objects.filter(tenant_id=tenant.id, action__startswith="endpoint.").order_by("seq")
    assert list(actions.values_list("action", flat=True)) == [
        f"endpoint.{verb}" for verb in ("created", "scaled", "paused", "resumed", "deleted")
    ]


def test_a_pool_has_an_end(harbour, tenant):
    endpoint = create(tenant)
    assert refused(endpoint_scale, endpoint=endpoint, actor="test", replicas=7).type.code == "no_pool_fits"


def test_two_tenants_never_see_each_others_endpoints(harbour, tenant):
    other = tenant_create(name="Other", currency="USD")
    endpoint = create(tenant)
    public_id = ids.encode(ids.ENDPOINT, endpoint.id)
    with as_role("web"):
        with tenant_scope(tenant.id):
            assert access_endpoint(tenant_id=tenant.id, endpoint_id=public_id).id == endpoint.id
        with tenant_scope(other.id):
            assert endpoint_list_for(other.id) == []
            assert not Endpoint.objects.filter(tenant_id=tenant.id).exists()
            assert not Deployment.objects.filter(tenant_id=tenant.id).exists()
            # Even a caller that names the wrong tenant is stopped by the database.
            assert refused(access_endpoint, tenant_id=tenant.id, endpoint_id=public_id).type.code == "not_found"
            assert Endpoint.objects.filter(id=endpoint.id).update(spec={}) == 0


@pytest.mark.parametrize("endpoint_id", ["ep_nonsense", "", "dep_01j00000000000000000000000", "ep_" + "0" * 26])
def test_absent_and_malformed_ids_look_the_same(harbour, tenant, endpoint_id):
    problem = refused(access_endpoint, tenant_id=tenant.id, endpoint_id=endpoint_id)
    assert (problem.type.code, problem.param) == ("not_found", "endpoint_id")


def test_a_shared_endpoint_is_read_by_all_and_changed_by_the_operator_alone(harbour, tenant, operator, neighbours):
    shared = create(operator, rung="shared")
    public_id = ids.encode(ids.ENDPOINT, shared.id)
    assert neighbours.held == {}
    with as_role("web"), tenant_scope(tenant.id):
        view = endpoint_get(tenant_id=tenant.id, endpoint_id=public_id)
        assert (view.sku, view.visibility) == ("tiny-deepseek:shared", "public")
        assert public_id in {item.id for item in endpoint_list_public()}
        assert refused(access_endpoint, tenant_id=tenant.id, endpoint_id=public_id).type.code == "not_found"
        assert Endpoint.objects.filter(id=shared.id).update(spec={}) == 0


def test_a_web_session_creates_and_changes_but_cannot_touch_status(harbour, tenant):
    with as_role("web"):
        with tenant_scope(tenant.id):
            endpoint = create(tenant)
            endpoint_scale(endpoint=endpoint, actor="test", replicas=2)
            endpoint_pause(endpoint=endpoint, actor="test")
        with pytest.raises(ProgrammingError, match="permission denied"), tenant_scope(tenant.id):
            Endpoint.objects.filter(id=endpoint.id).update(serving=5)


def test_a_web_session_cannot_create_for_somebody_else(harbour, tenant):
    other = tenant_create(name="Other", currency="USD")
    row = {"name": "x", "release": "tiny-deepseek", "rung": "dedicated", "region": REGION, "spec": {}}
    with as_role("web"), pytest.raises(ProgrammingError, match="row-level security"), tenant_scope(tenant.id):
        Endpoint.objects.create(tenant_id=other.id, **row)
    assert Endpoint.objects.filter(tenant_id=other.id).count() == 0


def test_the_route_tells_gateways_what_to_do(harbour, tenant):
    endpoint = create(tenant)
    [record] = route_list([endpoint.id])
    assert (record.model, record.served_name, record.max_model_len) == ("tiny", "tiny-deepseek", 2048)
    assert (record.running, record.shared) == (True, False)
    endpoint_pause(endpoint=endpoint, actor="test")
    assert route_list([endpoint.id])[0].running is False
    endpoint_delete(endpoint=endpoint, actor="test")
    assert route_list([endpoint.id]) == []


def test_the_catalogue_lists_first_what_runs_here(harbour):
    views = release_list(REGION)
    assert views[0].release.id == "tiny-deepseek"
    assert views[0].skus["dedicated", "cpu"] == "tiny-deepseek:dedicated:cpu"
    assert [pool.free for pool in views[0].pools] == [6]
    assert all(view.recipes for view in views)


def test_services_are_keyword_only(tenant):
    with pytest.raises(TypeError):
        endpoint_create(tenant.id)


def test_a_scale_that_nobody_pays_for_changes_nothing(harbour, tenant, neighbours):
    endpoint = create(tenant)
    neighbours.poor = True
    assert refused(endpoint_scale, endpoint=endpoint, actor="test", replicas=2).type.code == "insufficient_balance"
    assert Deployment.objects.get(endpoint=endpoint).replicas == 1
    assert Endpoint.objects.get(id=endpoint.id).generation == 1
    assert endpoint_scale(endpoint=endpoint, actor="test", replicas=0).generation == 2


@pytest.fixture
def recipes(monkeypatch) -> dict:
    """Two recipes of the test model more: one that answers shorter prompts, one that takes two accelerators."""
    known = catalogue().recipes
    plain = known["tiny-deepseek-cpu"]
    for name, changes in (
        ("tiny-short", {"max_model_len": 1024, "reservable": None}),
        ("tiny-wide", {"cards_per_node": 2}),
    ):
        monkeypatch.setitem(known, name, replace(plain, id=name, args=(*plain.args, f"--seed={name}"), **changes))
    return known


def test_an_endpoint_moves_to_another_recipe_and_keeps_its_id(harbour, tenant, recipes):
    endpoint = harbour.settle(create(tenant))
    with as_role("web"), tenant_scope(tenant.id):
        updated = endpoint_update(endpoint=endpoint, actor="test", recipe="tiny-short")
    assert (updated.id, updated.generation, updated.spec["recipe"]) == (endpoint.id, 2, "tiny-short")
    assert endpoint_update(endpoint=endpoint, actor="test", recipe="tiny-short").generation == 2
    assert route_list([endpoint.id])[0].max_model_len == 1024
    harbour.settle(endpoint)
    (pod,) = harbour.cluster.pods.values()
    assert "--seed=tiny-short" in pod["spec"]["containers"][0]["args"]
    assert endpoint_get(tenant_id=tenant.id, endpoint_id=ids.encode(ids.ENDPOINT, endpoint.id)).recipe == "tiny-short"


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ("nonsense", "there is no recipe nonsense for tiny-deepseek on"),
        ("distill-32b-2card", "there is no recipe distill-32b-2card for tiny-deepseek on"),
        (
            "tiny-wide",
            "recipe tiny-wide takes 2 accelerators a replica and tiny-deepseek-cpu 1; create an endpoint for it",
        ),
    ],
)
def test_a_recipe_that_cannot_take_its_place_is_refused(harbour, tenant, recipes, recipe, sentence):
    endpoint = create(tenant)
    problem = refused(endpoint_update, endpoint=endpoint, actor="test", recipe=recipe)
    assert (problem.type.code, problem.param) == ("no_pool_fits", "recipe")
    assert sentence in problem.detail
    assert Endpoint.objects.get(id=endpoint.id).generation == 1


def test_shared_engines_keep_a_recipe_that_carries_what_is_reserved(harbour, tenant, operator, recipes):
    shared = create(operator, rung="shared")
    create(tenant, rung="reserved", tpm=1000)
    problem = refused(endpoint_update, endpoint=shared, actor="test", recipe="tiny-short")
    assert "1000 tokens a minute are reserved here and 1 replicas of tiny-short carry 0" in problem.detail
