"""The operator's pages: across tenants for the operator's people, absent for everybody else."""

from datetime import timedelta
from types import SimpleNamespace
from uuid import uuid4

import pytest
from django.db import connection, connections

from billing.ledger import alarm
from billing.models import Invoice, Operation, Quarantine
from billing.selectors import balance_for
from billing.services import accounts_open, topup
from controlplane.across import across_tenants
from inference import clusters
from inference.services import endpoint_create
from k8s.cluster import Snapshot
from k8s.desired import DEPLOYMENT_LABEL, TENANT_LABEL
from kernel import ids
from kernel.clock import month_of, utcnow
from kernel.money import PICO
from tenants.models import AuditLog, Quota, Tenant
from tests.billing.harbour import harbour
from tests.billing.test_corrections import issued
from tests.conftest import as_role
from tests.controlplane.console.conftest import Person
from tests.controlplane.console.markup import Markup

PAGES = ("/operator/tenants", "/operator/invoices", "/operator/pools", "/operator/health")


def public(tenant: Tenant) -> str:
    return ids.encode(ids.TENANT, tenant.id)


def book(operator: Person, tenant: Tenant, **changes: str):
    form = {"action": "topup", "amount": "25.5", "reason": "wire of Monday", "idem_key": str(uuid4())}
    return operator.post(f"/operator/tenants/{public(tenant)}/money", form | changes)


def draft(tenant: Tenant) -> str:
    start, _ = month_of(utcnow())
    period = (start - timedelta(days=31), start - timedelta(days=1))
    invoice = Invoice.objects.create(
        tenant=tenant, kind="regular", currency="USD", period=period, status="draft", total_minor=1234
    )
    return ids.encode(ids.INVOICE, invoice.id)


@pytest.mark.parametrize("language", ["en", "zh-hans", "ar"])
@pytest.mark.parametrize("path", PAGES)
def test_an_operator_sees_the_page_and_its_markup_is_sound(operator, person, pool, path, language):
    operator.post("/language", {"language": language, "next": "/"})
    answer = operator.get(path)
    assert answer.status_code == 200
    assert Markup(answer.content.decode()).faults == []


@pytest.mark.parametrize("path", [*PAGES, "/operator/tenants/ten_x", "/operator/nothing"])
def test_the_pages_are_absent_for_every_other_tenant(person, path):
    answer = person.get(path)
    assert answer.status_code == 404
    assert "/operator/" not in person.get("/").content.decode()


def test_no_post_of_another_tenant_reaches_the_operators_acts(person, newcomer):
    victim = newcomer("Victim")
    assert book(person, victim.tenant).status_code == 404
    assert person.post(f"/operator/tenants/{public(person.tenant)}/quota", {"limit": "9"}).status_code == 404
    assert person.post(f"/operator/invoices/{draft(victim.tenant)}", {"act": "issue"}).status_code == 404
    assert balance_for(victim.tenant.id).posted_pico == 0


def test_the_privilege_ends_with_the_page(operator, newcomer):
    other = newcomer(f"Elsewhere {uuid4().hex[:6]}")
    with as_role("web"):
        with across_tenants(), connection.cursor() as cursor:
            cursor.execute("SELECT current_user, count(*) FROM tenant WHERE id = %s GROUP BY 1", [other.tenant.id])
            assert cursor.fetchone() == ("moorage_system", 1)
        assert connections["default"].alias == "default"
        assert Tenant.objects.filter(id=other.tenant.id).count() == 0
    assert other.tenant.name in operator.get("/operator/tenants?search=Elsewhere").content.decode()
    assert other.tenant.name not in operator.get("/").content.decode()


def test_the_list_shows_balance_standing_and_what_is_used(operator, newcomer, pool):
    other = newcomer(f"Quay {uuid4().hex[:6]}")
    accounts_open(tenant_id=other.tenant.id, currency="USD")
    topup(tenant_id=other.tenant.id, currency="USD", amount_pico=7 * PICO, idem_key="k" * 16, actor="t")
    endpoint_create(
        tenant_id=other.tenant.id, actor="t", name="a", release="tiny-deepseek", rung="dedicated",
        region=pool.region, replicas=2, paused=True,
    )  # fmt: skip
    page = operator.get(f"/operator/tenants?search={other.tenant.name}").content.decode()
    assert 'title="7 USD"' in page
    assert "Active</span>" in page
    assert ">2/16</bdi>" in page


def test_a_top_up_and_a_grant_are_booked_once_with_their_reason(operator, newcomer):
    tenant = newcomer().tenant
    reference = str(uuid4())
    for _ in range(2):
        assert book(operator, tenant, idem_key=reference).status_code == 302
    assert book(operator, tenant, action="grant", amount="4").status_code == 302
    assert balance_for(tenant.id).posted_pico == 29 * PICO + PICO // 2
    audited = AuditLog.objects.filter(tenant_id=tenant.id, action="operator.topup").first()
    assert audited.actor == f"user:{operator.user.pk}"
    assert audited.detail["reason"] == "wire of Monday"
    assert "The amount is booked." in operator.get(f"/operator/tenants/{public(tenant)}").content.decode()


@pytest.mark.parametrize("amount", ["", "0", "-1", "abc", "1e3", "9" * 60])
def test_an_amount_that_is_none_is_refused_on_the_page(operator, newcomer, amount):
    tenant = newcomer().tenant
    answer = book(operator, tenant, amount=amount)
    assert answer.status_code == 422
    assert Markup(answer.content.decode()).faults == []
    assert balance_for(tenant.id).posted_pico == 0


def test_a_large_amount_waits_for_a_second_person(operator, newcomer):
    tenant = newcomer().tenant
    assert book(operator, tenant, amount="5000").status_code == 302
    waiting = Operation.objects.get(tenant=tenant)
    path = f"/operator/operations/{waiting.id}"
    assert "you asked" in operator.get(f"/operator/tenants/{public(tenant)}").content.decode()
    operator.post(path, {"act": "approve"})
    assert balance_for(tenant.id).posted_pico == 0
    second = newcomer("Operator", kind="operator", role="finance")
    page = second.get("/operator/invoices").content.decode()
    assert "Approve" in page
    assert operator.user.username in page
    assert second.post(path, {"act": "approve"}).status_code == 302
    assert balance_for(tenant.id).posted_pico == 5000 * PICO


def test_money_and_quotas_ask_for_their_roles(newcomer):
    tenant = newcomer().tenant
    developer = newcomer("Operator", kind="operator", role="developer")
    path = f"/operator/tenants/{public(tenant)}"
    page = developer.get(path).content.decode()
    assert "Book it" not in page
    assert 'name="limit"' in page
    assert page.count(" disabled") == 2
    assert book(developer, tenant).status_code == 403
    assert developer.post(f"{path}/quota", {"resource": "endpoints", "limit": "3"}).status_code == 403
    assert balance_for(tenant.id).posted_pico == 0


def test_a_quota_is_changed_and_a_bad_one_is_said(operator, newcomer):
    tenant = newcomer().tenant
    path = f"/operator/tenants/{public(tenant)}"
    operator.post(f"{path}/quota", {"resource": "accelerators", "limit": "64"})
    assert Quota.objects.get(tenant=tenant, resource="accelerators").limit == 64
    for limit in ("-1", "many", "9" * 30):
        operator.post(f"{path}/quota", {"resource": "accelerators", "limit": limit})
        assert "limit is a whole number" in operator.get(path).content.decode()
    assert Quota.objects.get(tenant=tenant, resource="accelerators").limit == 64


def test_an_invoice_act_that_is_not_possible_is_said_and_changes_nothing(operator, newcomer):
    tenant = newcomer(f"Pier {uuid4().hex[:6]}").tenant
    invoice_id = draft(tenant)
    page = operator.get(f"/operator/tenants/{public(tenant)}").content.decode()
    assert 'title="12.34 USD"' in page
    assert 'value="issue"' in page
    assert Markup(page).faults == []
    for act, said in (("issue", "nothing is on this draft"), ("pay", "is draft, not issued"), ("void", "not issued")):
        operator.post(f"/operator/invoices/{invoice_id}", {"act": act})
        assert said in operator.get("/operator/invoices").content.decode()
    assert Invoice.objects.get(tenant=tenant).status == "draft"
    assert operator.post(f"/operator/invoices/{invoice_id}", {"act": "burn"}).status_code == 400


def test_a_large_payment_of_an_invoice_waits_for_a_second_person(operator, settings):
    settings.TWO_PERSON_ABOVE = "0.01"
    berth = harbour()
    invoice, _ = issued(berth)
    before = berth.posted()
    operator.post(f"/operator/invoices/{ids.encode(ids.INVOICE, invoice.id)}", {"act": "pay", "received": "0.04"})
    assert "waits for a second person" in operator.get("/operator/invoices").content.decode()
    assert Operation.objects.get(tenant_id=berth.tenant_id).action == "pay"
    invoice.refresh_from_db()
    assert (invoice.status, berth.posted()) == ("issued", before)


def test_a_pool_shows_its_capacity_and_who_holds_it(operator, person, pool):
    endpoint, _ = endpoint_create(
        tenant_id=person.tenant.id, actor="t", name="berth", release="tiny-deepseek", rung="dedicated",
        region=pool.region, paused=True,
    )  # fmt: skip
    endpoint.deployments.update(reserved=2, pool=pool)
    page = operator.get("/operator/pools").content.decode()
    assert pool.name in page
    assert ids.encode(ids.ENDPOINT, endpoint.id) in page


def test_the_pools_page_asks_every_cluster_on_demand(operator, person, pool, monkeypatch):
    assert "does not answer" not in operator.get("/operator/pools").content.decode()
    assert "no cluster" in operator.get("/operator/pools?clusters=check").content.decode()
    left = workload(person.tenant.id)
    monkeypatch.setattr(clusters, "cluster", lambda _: SimpleNamespace(list=lambda: Snapshot((left,), (), (), "1")))
    page = operator.get("/operator/pools?clusters=check").content.decode()
    assert "Deployment n/left" in page
    assert f"manage.py cluster orphans {pool.cluster}" in page


def workload(tenant_id):
    """A Deployment of a tenant of ours, of a deployment that no row accounts for."""
    marks = {TENANT_LABEL: ids.encode(ids.TENANT, tenant_id), DEPLOYMENT_LABEL: ids.encode(ids.DEPLOYMENT, uuid4())}
    meta = {"name": "left", "namespace": "n", "labels": marks, "creationTimestamp": "2020-01-01T00:00:00Z"}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta}


def test_what_is_not_well_is_on_the_health_page(operator):
    sentence = f"a lantern is out {uuid4().hex}"
    reason = f"unknown meter {uuid4().hex}"
    alarm(key=sentence, sentence=sentence)
    Quarantine.objects.create(reason=reason, payload="{}")
    page = operator.get("/operator/health").content.decode()
    assert sentence in page
    assert reason in page
    checked = operator.get("/operator/health?books=check").content.decode()
    assert "invariants hold" in checked or "note-bad" in checked
