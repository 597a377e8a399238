"""Money on the pages: quotes before a deploy, metered lines after it, and amounts that are never rounded away."""

import csv
import io
from collections.abc import Iterator
from datetime import timedelta
from uuid import uuid4

import pytest
from django.conf import settings
from django.db import transaction

from billing.corrections import usage_correct
from billing.invoicing import drafts_update, invoice_draft, invoice_issue
from billing.models import Invoice, LedgerAccount
from billing.models import UsageEvent as EventRow
from billing.selectors import balance_for
from billing.services import sheet_publish
from billing.settling import credit_note_issue
from billing.spans import facts_take, slices_rate
from controlplane import usage
from controlplane.api import answers
from controlplane.console import words
from controlplane.console.templatetags.console import decimals, headline
from inference.billable import TOPIC
from inference.models import Endpoint
from inference.selectors import endpoint_get
from inference.services import endpoint_create
from kernel import ids
from kernel.clock import month_of, utcnow
from kernel.money import PICO
from kernel.pricing import ACCEL_SECOND, IN_MISS, OUT, Rate, Sheet
from tenants.outbox import publish
from tenants.services import api_key_create
from tests.controlplane.console.conftest import Person
from tests.controlplane.console.markup import Markup
from tests.controlplane.console.purse import DEDICATED, HOUR_PICO, give, use

NOON = "2026-11-24T12:00:00+00:00"


def deploy(person: Person, **changes: str):
    form = {
        "release": "tiny-deepseek",
        "rung": "dedicated",
        "region": settings.REGION,
        "replicas": "2",
        "name": "support-bot",
    }
    return person.post("/endpoints/new", form | changes)


@pytest.mark.parametrize(
    ("pico", "shown"),
    [
        (0, "0.00"),
        (1, "<0.000001"),
        (-1, "-<0.000001"),
        (123_456_789, "0.000123"),
        (PICO, "1.00"),
        (1_234_567 * PICO + 500_000_000_000, "1,234,567.50"),
        (-2 * PICO - 123_456_499_999, "-2.123456"),
        (999_999_999_999, "1.00"),
    ],
)
def test_an_amount_keeps_two_to_six_places_and_never_becomes_nothing(pico, shown):
    assert decimals(pico) == shown


def test_a_headline_is_in_cents_and_carries_the_exact_amount():
    text = headline(98_765_432_100_001, "USD")
    assert "98.77" in text
    assert 'title="98.765432100001 USD"' in text


def test_the_form_says_what_it_costs_and_what_is_held_before_anything_starts(person, prices):
    give(person, 20 * PICO)
    asked = f"/endpoints/quote?release=tiny-deepseek&region={settings.REGION}&replicas=2"
    page = person.get(asked).content.decode()
    for exact in ("0.36 USD", "8.64 USD", "20 USD", "0 USD"):
        assert f'title="{exact}"' in page
    assert page.count('title="0.36 USD"') == 2
    assert "does not cover" not in page
    assert "&quot;replicas&quot;: 2" in page


def test_a_quote_says_when_the_balance_is_too_small(person, prices):
    page = person.get(f"/endpoints/quote?release=tiny-deepseek&region={settings.REGION}&replicas=1")
    assert "does not cover the first hour" in page.content.decode()


def test_what_is_not_priced_whole_is_neither_quoted_nor_deployed(person, prices):
    give(person, 20 * PICO)
    assert "Dedicated, an hour of" in person.get("/catalogue").content.decode()
    start = month_of(utcnow())[0]
    meters = {ACCEL_SECOND: Rate(1)}
    sheet = Sheet(DEDICATED, settings.REGION, "USD", start, meters, tenant_id=str(person.tenant.id))
    sheet_publish(sheet=sheet, actor="test")
    page = person.get(f"/endpoints/quote?release=tiny-deepseek&region={settings.REGION}&replicas=1").content.decode()
    assert "No price is in force for this release on this accelerator." in page
    assert "Dedicated, an hour of" not in person.get("/catalogue").content.decode()
    assert "No price is in force" in deploy(person).content.decode()
    assert not Endpoint.objects.filter(tenant=person.tenant).exists()


def test_deploying_holds_the_hour_and_leads_to_the_endpoints_page(person, prices):
    give(person, 20 * PICO)
    answer = deploy(person)
    endpoint = Endpoint.objects.get(tenant=person.tenant)
    assert answer["Location"] == f"/endpoints/{ids.encode(ids.ENDPOINT, endpoint.id)}"
    assert LedgerAccount.objects.get(tenant=person.tenant, kind="prepaid").held == 2 * HOUR_PICO
    page = person.get(answer["Location"]).content.decode()
    assert Markup(page).faults == []
    assert 'title="8.64 USD"' in page


def test_deploying_without_money_is_refused_with_the_sum_that_is_missing(person, prices):
    answer = deploy(person)
    page = answer.content.decode()
    assert answer.status_code == 422
    assert "0.36 USD must be available" in page
    assert Markup(page).faults == []
    assert Endpoint.objects.filter(tenant=person.tenant).count() == 0


def test_a_second_press_of_deploy_makes_no_second_endpoint(person, prices):
    give(person, 20 * PICO)
    assert deploy(person).status_code == 302
    again = deploy(person)
    assert again.status_code == 422
    assert "is taken" in again.content.decode()


def test_a_metered_request_is_on_the_usage_page_line_by_line(person, prices):
    give(person, 20 * PICO)
    use(person, endpoint_id="ep_1", counts={IN_MISS: 1_000, OUT: 500})
    use(person, endpoint_id="ep_1", counts={OUT: 7})
    use(person, endpoint_id="ep_2", counts={OUT: 1})
    page = person.get("/usage").content.decode()
    assert Markup(page).faults == []
    assert 'title="0.000028 USD"' in page
    assert 'title="0.00021294 USD"' in page
    assert f'title="{"0.00024136"} USD"' in page
    one = person.get("/usage?endpoint=ep_2").content.decode()
    assert 'title="0.00000042 USD"' in one
    assert 'title="0.000028 USD"' not in one


def test_usage_of_another_tenant_is_not_there(newcomer, prices):
    owner, stranger = newcomer(), newcomer()
    give(owner, PICO)
    use(owner, endpoint_id="ep_1", counts={OUT: 9})
    page = stranger.get("/usage?endpoint=ep_1").content.decode()
    assert "Nothing was metered" in page


def test_the_billing_page_shows_accounts_and_entries_that_add_up(person, prices):
    give(person, 5 * PICO)
    use(person, endpoint_id="ep_1", counts={OUT: 1_000_000})
    page = person.get("/billing").content.decode()
    assert Markup(page).faults == []
    assert balance_for(person.tenant.id).posted_pico == 4 * PICO + 580_000_000_000
    assert 'title="4.58 USD"' in page
    assert "</span> -0.42</bdi>" in page


def test_the_overview_shows_balance_and_spend(person, prices):
    give(person, 5 * PICO)
    use(person, endpoint_id="ep_1", counts={OUT: 1_000_000})
    page = person.get("/").content.decode()
    assert 'title="4.58 USD"' in page
    assert 'title="0.42 USD"' in page


def test_the_catalogue_shows_prices_per_hour_and_per_million(person, prices):
    page = person.get("/catalogue").content.decode()
    assert 'title="0.18 USD"' in page
    assert 'title="0.028 USD"' in page
    assert "Random weights" in page


def serve_an_hour(person: Person, endpoint: Endpoint) -> None:
    """One replica served for an hour that is over: inference's facts, billed as billing bills them."""
    deployment = endpoint.deployments.get()
    end = utcnow().replace(microsecond=0)
    start = end - timedelta(hours=1)
    pod_uid = str(uuid4())
    for event, at in (("from", start), ("to", end)):
        publish(
            topic=TOPIC,
            dedupe_key=f"billable:{pod_uid}:{event}",
            payload={
                "deployment_id": str(deployment.id),
                "endpoint_id": str(endpoint.id),
                "tenant_id": str(person.tenant.id),
                "pod_uid": pod_uid,
                "sku": deployment.sku,
                "region": endpoint.region,
                "accelerator": "cpu",
                "accelerator_count": 1,
                "event": event,
                "from_at": start.isoformat(),
                "at": at.isoformat(),
            },
        )
    with transaction.atomic():
        facts_take()
    slices_rate()


def test_a_dedicated_hour_is_on_its_endpoints_usage_and_on_the_draft_invoice(person, prices):
    give(person, 20 * PICO)
    deploy(person, replicas="1")
    endpoint = Endpoint.objects.get(tenant=person.tenant)
    serve_an_hour(person, endpoint)
    page = person.get(f"/usage?endpoint={ids.encode(ids.ENDPOINT, endpoint.id)}").content.decode()
    assert "Accelerator seconds" in page
    assert 'title="0.18 USD"' in page
    drafts_update()
    bill = person.get("/billing").content.decode()
    assert Markup(bill).faults == []
    assert "Draft</span>" in bill
    found = Invoice.objects.get(tenant=person.tenant)
    page = person.get(f"/billing/{ids.encode(ids.INVOICE, found.id)}").content.decode()
    assert Markup(page).faults == []
    assert DEDICATED in page
    assert 'title="0.18 USD"' in page


def issued(person: Person) -> str:
    """An invoice of last month with one line of two events, issued: its public id."""
    start, end = month_of(month_of(utcnow())[0] - timedelta(seconds=1))
    for counts in ({OUT: 1_000_000}, {OUT: 500_000}):
        use(person, endpoint_id="ep_1", counts=counts, at=end - timedelta(days=1))
    draft = invoice_draft(tenant_id=person.tenant.id, currency="USD", period=(start, end))
    return ids.encode(ids.INVOICE, invoice_issue(invoice_id=draft.id, actor="test", books_whole=True).id)


def test_an_issued_invoice_leads_from_its_total_to_the_events(person, prices):
    give(person, 20 * PICO)
    path = f"/billing/{issued(person)}"
    page = person.get(path).content.decode()
    number = Invoice.objects.get(tenant=person.tenant).number
    assert Markup(page).faults == []
    assert number in page
    assert page.count('title="0.63 USD"') == 3
    line = person.get(f"{path}/1").content.decode()
    assert Markup(line).faults == []
    assert "1,500,000" in line
    assert line.count("<code>ep_1</code>") == 2
    assert person.get(f"{path}/2").status_code == 404
    rows = list(csv.DictReader(io.StringIO(person.get(f"{path}.csv").content.decode())))
    assert [(row["invoice"], row["quantity"], row["amount"], row["billed"]) for row in rows] == [
        (number, "1500000", "0.63", "0.63")
    ]
    facts = list(csv.DictReader(io.StringIO(person.get(f"{path}/facts.csv").content.decode())))
    assert sorted(row["amount"] for row in facts) == ["0.21", "0.42"]


def test_a_credit_note_and_its_invoice_point_at_each_other(person, prices):
    give(person, 20 * PICO)
    path = f"/billing/{issued(person)}"
    event = EventRow.objects.filter(tenant=person.tenant).order_by("event_id").first()
    usage_correct(event_id=event.event_id, counts={OUT: -1_000_000}, actor="test", reason="outage")
    invoice = Invoice.objects.get(tenant=person.tenant)
    note = credit_note_issue(invoice_id=invoice.id, actor="test")
    note_path = f"/billing/{ids.encode(ids.INVOICE, note.id)}"
    assert note_path in person.get(path).content.decode()
    page = person.get(note_path).content.decode()
    assert Markup(page).faults == []
    assert path in page
    assert 'title="-0.42 USD"' in page
    assert f'Credit note on <bdi dir="ltr">{invoice.number}</bdi>' in person.get("/billing").content.decode()


def test_another_tenants_invoice_looks_absent_in_every_form(newcomer, prices):
    owner, stranger = newcomer(), newcomer()
    give(owner, 20 * PICO)
    path = f"/billing/{issued(owner)}"
    for suffix in ("", ".csv", "/facts.csv", "/1"):
        assert stranger.get(path + suffix).status_code == 404
        assert owner.get(path + suffix).status_code == 200


def test_usage_is_split_by_key_filtered_and_downloaded(person, prices):
    give(person, 20 * PICO)
    key, _ = api_key_create(tenant_id=person.tenant.id, name="nightly job", actor="test")
    use(person, endpoint_id="ep_1", counts={OUT: 1_000_000}, key_id=key.id)
    use(person, endpoint_id="ep_1", counts={OUT: 500_000})
    page = person.get("/usage").content.decode()
    assert Markup(page).faults == []
    assert 'title="0.42 USD"' in page
    assert 'title="0.21 USD"' in page
    one = person.get(f"/usage?key={key.public_id}").content.decode()
    assert 'title="0.21 USD"' not in one
    assert "nightly job</bdi></td>" in one
    rows = list(csv.DictReader(io.StringIO(person.get(f"/usage.csv?key={key.public_id}").content.decode())))
    assert [(row["endpoint_id"], row["api_key"], row["meter"], row["quantity"], row["amount"]) for row in rows] == [
        ("ep_1", key.public_id, OUT, "1000000", "0.42")
    ]
    assert person.get("/usage.csv?month=1999-01").status_code == 200
    assert "Nothing was metered" in person.get(f"/usage?month={usage.months()[1]}").content.decode()
    used = person.get(f"/keys/{key.public_id}").content.decode()
    assert "not in 31 days" not in used


def test_the_spend_of_the_first_page_is_polled(person, prices):
    give(person, 5 * PICO)
    page = person.get("/").content.decode()
    assert 'hx-get="/spend"' in page
    use(person, endpoint_id="ep_1", counts={OUT: 1_000_000})
    part = person.get("/spend").content.decode()
    assert 'title="0.42 USD"' in part
    assert 'id="spend"' in part


@pytest.fixture
def shared_engines(newcomer, prices) -> Iterator[Endpoint]:
    """The operator's shared endpoint of the test model, with a sentence that is nobody else's business."""
    operator = newcomer("Operator", kind="operator")
    made, _ = endpoint_create(
        tenant_id=operator.tenant.id, actor="t", name=f"shared-{uuid4().hex[:8]}", release="tiny-deepseek",
        rung="shared", region=settings.REGION,
    )  # fmt: skip
    made.conditions = [
        {"type": name, "status": "False", "reason": "CrashLoop", "message": "node-7: secret line", "at": NOON}
        for name in words.CONDITIONS
    ]
    made.save(update_fields=["conditions"])
    yield made
    Endpoint.objects.filter(id=made.id).update(archived_at=utcnow())


def test_a_reservation_says_its_price_and_is_bought(person, shared_engines):
    give(person, 20 * PICO)
    asked = f"/endpoints/quote?release=tiny-deepseek&rung=reserved&region={settings.REGION}&tpm=2000"
    page = person.get(asked).content.decode()
    assert page.count('title="0.8 USD"') == 2
    assert "&quot;tpm&quot;: 2000" in page
    assert "&quot;replicas&quot;" not in page
    answer = deploy(person, rung="reserved", tpm="2000")
    assert answer.status_code == 302
    bought = Endpoint.objects.get(tenant=person.tenant)
    assert (bought.rung, bought.deployments.get().tpm) == ("reserved", 2000)
    endpoint_page = person.get(answer["Location"]).content.decode()
    assert Markup(endpoint_page).faults == []
    assert 'title="0.8 USD"' in endpoint_page
    assert "Change the reservation" in endpoint_page
    assert person.post(f"{answer['Location']}/scale", {"tpm": "3000"}).status_code == 302
    assert bought.deployments.get().tpm == 3000


@pytest.mark.parametrize(("tpm", "said"), [("1500", "a multiple of 1000"), ("999999000", "are left to reserve")])
def test_a_reservation_that_cannot_be_is_refused_before_it_is_bought(person, shared_engines, tpm, said):
    give(person, 20 * PICO)
    asked = f"/endpoints/quote?release=tiny-deepseek&rung=reserved&region={settings.REGION}&tpm={tpm}"
    assert said in person.get(asked).content.decode()
    answer = deploy(person, rung="reserved", tpm=tpm)
    assert answer.status_code == 422
    assert Markup(answer.content.decode()).faults == []


def test_the_operators_own_sentences_are_for_the_operator_alone(person, shared_engines):
    public_id = ids.encode(ids.ENDPOINT, shared_engines.id)
    page = person.get(f"/endpoints/{public_id}")
    assert page.status_code == 200
    assert "secret line" not in page.content.decode()
    assert "secret line" not in person.get(f"/endpoints/{public_id}/live").content.decode()
    body = answers.endpoint(endpoint_get(tenant_id=person.tenant.id, endpoint_id=public_id), person.tenant.id)
    assert "secret line" not in str(body)
    own = answers.endpoint(
        endpoint_get(tenant_id=shared_engines.tenant_id, endpoint_id=public_id), shared_engines.tenant_id
    )
    assert own["message"] == "node-7: secret line"
