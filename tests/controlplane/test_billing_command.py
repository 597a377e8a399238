"""manage.py billing: what operators do, by the same services as everybody, in the audit log under their name."""

import json
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command

from billing import holds, services
from billing.invoicing import invoice_draft
from billing.meter import gateway_pull
from billing.models import GatewayJournal, Invoice, PriceSheet
from billing.operations import corrections_apply
from billing.selectors import balance_for
from controlplane.listings import UnratedListing, listings_are_rated, listings_unrated, skus_on_sale
from inference.models import Pool
from inference.pools import LOCAL_POOL, pool_ensure_local
from kernel import ids
from kernel.clock import month_of, utcnow
from kernel.pricing import ACCEL_SECOND, OUT, Package, Rate, Sheet
from tenants.models import AuditLog, Tenant
from tenants.selectors import quota_limits
from tenants.services import tenant_create
from tests.billing.harbour import FREE_TOKENS, LONG_AGO, REGION, UNIT, Harbour, harbour, one
from tests.billing.journal import listener


def billing(*arguments: object, actor: str = "ann") -> str:
    out = StringIO()
    call_command("billing", arguments[0], "--as", actor, *map(str, arguments[1:]), stdout=out)
    return out.getvalue().strip()


def month(berth: Harbour) -> Invoice:
    """Last month's draft, of one request."""
    end = month_of(utcnow())[0]
    at = end - timedelta(hours=1)
    berth.ingest(berth.event(started_at=at, ended_at=at, counts={OUT: 100_000}))
    return invoice_draft(tenant_id=berth.tenant_id, currency="USD", period=month_of(at))


def test_credit_is_booked_once_per_reference_and_waits_above_the_limit(database: None, settings: Any) -> None:
    settings.TWO_PERSON_ABOVE = "10"
    berth = harbour(money=0)
    tenant = ids.encode(ids.TENANT, berth.tenant_id)
    hers = partial(billing, actor=f"dora-{uuid4()}")  # what a person does alone adds up over a day
    for _ in range(2):
        assert hers("topup", tenant, "2.50", "wire-1") == "done"
    assert hers("grant", berth.tenant_id, "1", "welcome") == "done"
    assert hers("scoped-grant", tenant, "1", "spring", "model", "m", "2099-01-01T00:00:00Z") == "done"
    assert hers("scoped-grant", tenant, "1", "berths", "pool", f"{REGION}/berths", "2099-01-01T00:00:00Z") == "done"
    with pytest.raises(CommandError, match="expires_at has no zone"):
        hers("scoped-grant", tenant, "1", "autumn", "model", "m", "2099-01-01")
    operation = hers("topup", tenant, "11", "wire-2").split()[1]
    assert operation in billing("waiting")
    with pytest.raises(CommandError, match="a second person"):
        hers("approve", operation)
    billing("approve", operation, actor="bob")
    assert berth.posted()["prepaid"] == 135 * UNIT // 10
    assert balance_for(berth.tenant_id).available_pico == 145 * UNIT // 10
    assert one("SELECT count(*) FROM audit_log WHERE actor = 'bob' AND tenant_id = %s", berth.tenant_id) == 2
    other = hers("topup", tenant, "12", "wire-3").split()[1]
    billing("refuse", other)
    assert other not in billing("waiting")


def test_a_correction_of_what_is_still_on_its_way_waits_for_it(database: None) -> None:
    berth = harbour()
    event = berth.event()
    said = billing("correct", event.event_id, json.dumps({OUT: -5}), "garbled")
    assert said == f"a correction by ann waits for usage event {event.event_id}"
    assert said in billing("waiting")
    berth.ingest(event)
    corrections_apply()
    assert said not in billing("waiting")


def test_a_tenant_is_suspended_and_let_back_by_hand_with_a_reason(database: None) -> None:
    berth = harbour(money=0)
    tenant = ids.encode(ids.TENANT, berth.tenant_id)
    for standing in ("suspended", "active"):
        assert billing("standing", tenant, standing, "--reason", f"why {standing}") == f"{tenant} is {standing}"
        assert Tenant.objects.get(id=berth.tenant_id).standing == standing
        said = AuditLog.objects.get(tenant_id=berth.tenant_id, action=f"tenant.{standing}")
        assert (said.actor, said.detail) == ("ann", {"reason": f"why {standing}"})
    with pytest.raises(CommandError, match="standing is one of active, suspended"):
        billing("standing", tenant, "away", "--reason", "a slip")
    with pytest.raises(CommandError, match="there is no tenant"):
        billing("standing", uuid4(), "active", "--reason", "a slip")


def test_agreed_credit_is_set_by_hand_and_waits_above_the_limit(database: None, settings: Any) -> None:
    settings.TWO_PERSON_ABOVE = "10"
    berth, eve = harbour(money=0), f"eve-{uuid4()}"
    assert billing("credit-limit", berth.tenant_id, "5", actor=eve) == "done"
    assert balance_for(berth.tenant_id).available_pico == 5 * UNIT
    operation = billing("credit-limit", berth.tenant_id, "11", actor=eve).split()[1]
    assert balance_for(berth.tenant_id).available_pico == 5 * UNIT
    billing("approve", operation, actor="bob")
    assert balance_for(berth.tenant_id).available_pico == 11 * UNIT
    said = AuditLog.objects.filter(tenant_id=berth.tenant_id, action="tenant.credit_limit").order_by("seq")
    assert [(row.actor, row.detail["limit"]) for row in said] == [(eve, "5"), ("bob", "11")]
    berth.hold(3 * UNIT)
    with pytest.raises(CommandError, match="below the 3 USD that are owed or held"):
        billing("credit-limit", berth.tenant_id, "2", actor="fay")
    with pytest.raises(CommandError, match="amount"):
        billing("credit-limit", berth.tenant_id, "-1", actor="fay")


def test_an_invoice_goes_from_draft_to_void_by_hand(database: None) -> None:
    berth = harbour()
    berth.hold(UNIT)
    draft = month(berth)
    assert "issued 4 USD" in billing("issue", draft.id)
    facts = billing("facts", draft.id).splitlines()
    assert len(facts) == 2
    event = facts[1].split(",")[1]
    assert facts[1].split(",")[-3:] == ["100000", "0.00000042", "0.042"]
    with pytest.raises(CommandError, match="still bills"):
        billing("void", draft.id, "a mistake")
    billing("correct", event, json.dumps({OUT: -100_000}), "garbled")
    assert "issued -4 USD" in billing("credit", draft.id)
    assert "void" in billing("void", draft.id, "a mistake")


def test_an_invoice_is_paid_by_hand(database: None) -> None:
    berth = harbour()
    berth.hold(UNIT)
    draft = month(berth)
    billing("issue", draft.id)
    billing("pay", draft.id, "0")
    draft.refresh_from_db()
    assert draft.status == "paid"


def test_prices_and_quotas_are_set_by_hand(database: None, tmp_path: Path) -> None:
    berth = harbour(money=0)
    offer = Package("ten", 10_000_000, UNIT, 30)
    sheet = Sheet(f"{berth.sku}-file", REGION, "USD", utcnow(), {OUT: Rate(7)}, packages=(offer,))
    file = tmp_path / "sheet.json"
    file.write_text(json.dumps(sheet.body()))
    assert billing("price", file) == sheet.sha256().hex()
    assert PriceSheet.objects.filter(sha256=sheet.sha256()).exists()
    billing("topup", berth.tenant_id, "1", "wire")
    assert billing("package", berth.tenant_id, sheet.sku, "ten", "order-1").startswith(f"ten of {sheet.sku} until")
    assert berth.posted() == {"revenue": UNIT}
    billing("quota", berth.tenant_id, "accelerators", 3)
    assert quota_limits([berth.tenant_id], "accelerators") == {berth.tenant_id: 3}
    with pytest.raises(CommandError, match="there is no invoice"):
        billing("facts", uuid4())
    with pytest.raises(CommandError, match="resource is one of"):
        billing("quota", berth.tenant_id, "moons", 3)


def test_a_boot_whose_disk_is_lost_is_waited_for_no_longer(database: None) -> None:
    with listener() as (world, gateway):
        world.add(2)
        gateway_pull(gateway)
        boot = world.berth.gateway_id, world.berth.boot_id
        with pytest.raises(CommandError, match="was heard of at"):
            billing("forget", *boot)
        GatewayJournal.objects.filter(boot_id=boot[1]).update(seen_at=utcnow() - timedelta(minutes=11))
        assert billing("forget", *boot) == "2 records are booked, no more is waited for"
        assert not GatewayJournal.objects.exclude(holds.PULLED).filter(boot_id=boot[1]).exists()
        assert one("SELECT count(*) FROM audit_log WHERE detail ->> 'boot' = %s", str(boot[1])) == 1
        with pytest.raises(CommandError, match="has no boot"):
            billing("forget", *boot)
        # The disk is found after all.
        world.add(1)
        world.closed = True
        assert gateway_pull(gateway).booked == 1
        assert GatewayJournal.objects.get(boot_id=boot[1]).closed_seq == 3


@pytest.fixture
def local_pool(database: None, tmp_path: Path) -> Iterator[None]:
    """This machine's pool, with weights of one release."""
    (tmp_path / "tiny-deepseek").mkdir()
    (tmp_path / "tiny-deepseek" / "config.json").write_text("{}")
    pool = pool_ensure_local(weights_root=tmp_path)
    yield
    pool.delete()


def test_a_listing_with_an_unrated_meter_is_told_to_the_operator(local_pool: None) -> None:
    tenant_create(name="Kobe", currency="JPY")
    sku = "tiny-deepseek:dedicated:cpu"
    wanted = ["accel_second", "in_hit", "in_miss", "out"]
    assert UnratedListing(sku, REGION, "JPY", wanted) in listings_unrated()
    told = [str(item.msg) for item in listings_are_rated(databases=["default"])]
    assert f"{sku} is not on sale in {REGION} in JPY: no price for {', '.join(wanted)}" in told
    assert f"{REGION} {sku} JPY: {', '.join(wanted)}" in billing("unrated")
    assert listings_are_rated(databases=None) == []
    out = StringIO()
    call_command("check", deploy=True, databases=["default"], stderr=out)
    assert f"{sku} is not on sale in {REGION} in JPY" in out.getvalue()


def test_another_region_goes_on_sale_by_one_file_of_prices(local_pool: None, tmp_path: Path) -> None:
    region = f"far-{uuid4().hex[:8]}"
    pool = Pool.objects.get(region=REGION, name=LOCAL_POOL)
    pool.id, pool.region = ids.new_id(), region
    pool.save(force_insert=True)
    tenant_create(name="Boston", currency="USD")
    lacking = [item.sku for item in listings_unrated() if (item.region, item.currency) == (region, "USD")]
    assert lacking == ["tiny-deepseek:dedicated:cpu"]
    every = {meter: Rate(1) for meter in ("accel_second", "in_hit", "in_miss", "out")}
    bodies = [Sheet(sku, region, "USD", LONG_AGO, every).body() for sku in lacking]
    file = tmp_path / "sheets.json"
    wrong = {**bodies[0], "sku": f"{region}:shared", "meters": {"out": {"num_pico": "-1", "den": "1"}}}
    file.write_text(json.dumps([*bodies, wrong]))
    with pytest.raises(CommandError, match="a price is 0 or more"):
        billing("price", file)
    assert any(item.region == region for item in listings_unrated())
    file.write_text(json.dumps(bodies))
    billing("price", file)
    assert not any((item.region, item.currency) == (region, "USD") for item in listings_unrated())
    pool.delete()


def test_only_what_is_priced_whole_is_on_sale(database: None) -> None:
    sku = f"{uuid4()}:dedicated:cpu"
    kobe, nara = (tenant_create(name=name, currency="JPY") for name in ("Kobe", "Nara"))
    for tenant, meters in ((kobe, {ACCEL_SECOND: Rate(1)}), (nara, {ACCEL_SECOND: Rate(1), **FREE_TOKENS})):
        sheet = Sheet(sku, REGION, "JPY", LONG_AGO, meters, tenant_id=str(tenant.id))
        services.sheet_publish(sheet=sheet, actor="t")
    assert skus_on_sale([sku], kobe) == []
    assert skus_on_sale([sku], nara) == [sku]


@pytest.mark.parametrize(
    ("actor", "tenant", "says"),
    [("ann", "x", "'x' is no tenant; give its id, ten_… or a UUID"), (" ", str(uuid4()), "give the name of who acts")],
)
def test_what_no_act_can_do_without_is_asked_for_by_name(actor: str, tenant: str, says: str) -> None:
    with pytest.raises(CommandError, match=says):
        billing("topup", tenant, "1", "wire-1", actor=actor)
