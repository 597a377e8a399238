"""Payment notices: believed by signature, credited once, whatever order they come in."""

import json
import time
from typing import Any
from uuid import uuid4

import pytest
from django.db import IntegrityError, transaction
from django.test import Client

from billing import ledger, payments
from billing.core.payments import signature
from billing.models import LedgerTx, Quarantine
from billing.selectors import balance_for
from kernel import ids
from kernel.clock import utcnow
from tenants.services import tenant_create
from tests.billing.harbour import UNIT, Harbour, harbour, run
from tests.conftest import as_role

SECRET = "a-secret-of-the-provider"


@pytest.fixture(autouse=True)
def provider(settings: Any) -> None:
    settings.PAYMENT_WEBHOOK_SECRET = SECRET


def notice(berth: Harbour, *, payment: str, kind: str = "payment.succeeded", **changes: Any) -> bytes:
    value = {
        "id": f"evt_{uuid4().hex}",
        "type": kind,
        "payment": payment,
        "tenant": ids.encode(ids.TENANT, berth.tenant_id),
        "currency": "USD",
        "amount": "25.00",
    }
    return json.dumps(value | changes).encode()


def send(body: bytes, *, header: str | None = None) -> Any:
    with as_role("web"):
        return Client().post(
            "/webhooks/payments",
            data=body,
            content_type="application/json",
            headers={"Payment-Signature": header or signature(body, secret=SECRET, at=int(time.time()))},
        )


def pay() -> str:
    return f"pay_{uuid4().hex}"


def test_fault_23_a_payment_told_twice_and_by_two_notices_credits_once(database: None) -> None:
    berth, payment = harbour(money=0), pay()
    first = notice(berth, payment=payment)
    for body in (first, first, notice(berth, payment=payment)):
        assert send(body).status_code == 204
        payments.notices_take()
    assert berth.posted() == {"prepaid": 25 * UNIT}


def test_fault_23_a_refund_that_overtakes_its_payment_waits_for_it(database: None) -> None:
    berth, payment = harbour(money=0), pay()
    send(notice(berth, payment=payment, kind="payment.refunded"))
    assert payments.notices_take() == 0
    assert berth.posted() == {}
    send(notice(berth, payment=payment))
    payments.notices_take()
    payments.notices_take()
    assert LedgerTx.objects.filter(tenant_id=berth.tenant_id).count() == 2
    assert berth.posted() == {}


def test_refunds_that_wait_forever_keep_no_payment_waiting(database: None) -> None:
    berth = harbour(money=0)
    send(notice(berth, payment=pay(), kind="payment.refunded"))
    send(notice(berth, payment=pay()))
    assert payments.notices_take(limit=1) == 1
    assert berth.posted() == {"prepaid": 25 * UNIT}


def test_what_contradicts_a_payment_goes_to_quarantine_and_the_first_stands(database: None) -> None:
    berth, payment = harbour(money=0), pay()
    send(notice(berth, payment=payment))
    for body in (
        notice(berth, payment=payment, amount="26.00"),
        notice(berth, payment=payment, kind="payment.refunded", amount="1.00"),
        notice(berth, payment=pay(), currency="EUR"),
    ):
        before = Quarantine.objects.count()
        send(body)
        payments.notices_take()
        assert Quarantine.objects.count() == before + 1
    assert berth.posted() == {"prepaid": 25 * UNIT}


def test_a_payment_credits_one_tenant_whoever_else_is_named_and_in_one_currency(database: None) -> None:
    berth, other, payment = harbour(money=0), harbour(money=0), pay()
    send(notice(berth, payment=payment))
    payments.notices_take()
    send(notice(other, payment=payment))
    before = Quarantine.objects.count()
    payments.notices_take()
    assert Quarantine.objects.count() == before + 1
    assert "was credited to another tenant" in Quarantine.objects.latest("at").reason
    assert (berth.posted(), other.posted()) == ({"prepaid": 25 * UNIT}, {})
    # Refunded and told anew for the other one: still spent.
    send(notice(berth, payment=payment, kind="payment.refunded"))
    send(notice(other, payment=payment))
    payments.notices_take()
    assert (berth.posted(), other.posted()) == ({}, {})
    with pytest.raises(IntegrityError, match="ledger_tx_payment_once"), transaction.atomic():
        ledger.tx_open(
            tenant_id=other.tenant_id,
            kind="topup",
            idem_key=str(uuid4()),
            source_type="payment",
            source_id=f"USD:{payment}",
            effective_at=utcnow(),
        )
    # Another currency is another payment.
    euros = tenant_create(name="Euros", currency="EUR")
    body = json.loads(notice(berth, payment=payment, currency="EUR"))
    send(json.dumps(body | {"tenant": ids.encode(ids.TENANT, euros.id)}).encode())
    payments.notices_take()
    assert balance_for(euros.id).posted_pico == 25 * UNIT


def test_only_a_fresh_signature_of_the_very_body_is_believed(database: None) -> None:
    berth = harbour(money=0)
    body, now = notice(berth, payment=pay()), int(time.time())
    for header in (
        "nonsense",
        signature(body, secret="another", at=now),
        signature(body + b" ", secret=SECRET, at=now),
        signature(body, secret=SECRET, at=now - 310),
        signature(body, secret=SECRET, at=now + 310),
    ):
        assert send(body, header=header).status_code == 401
    for wrong in (
        b"{}",
        b"[]",
        notice(berth, payment="a b"),
        notice(berth, payment=pay(), amount="-1"),
        notice(berth, payment=pay(), kind="payment.disputed"),
        notice(berth, payment=pay(), type=[]),
        notice(berth, payment=pay(), tenant=3),
        notice(berth, payment=pay(), amount=3),
        notice(berth, payment=pay(), currency={}),
        notice(berth, payment=pay()).decode().encode("utf-16"),
        notice(berth, payment=pay(), tenant="ten_x"),
    ):
        assert send(wrong).status_code == 400
    assert send(b" " * 20_001).status_code == 413
    assert payments.notices_take() == 0


def test_without_a_secret_nothing_is_believed(database: None, settings: Any) -> None:
    body = notice(harbour(money=0), payment=pay())
    settings.PAYMENT_WEBHOOK_SECRET = ""
    assert send(body, header=signature(body, secret="", at=int(time.time()))).status_code == 401


def test_a_web_process_that_forges_a_notice_moves_no_money(database: None) -> None:
    berth = harbour(money=0)
    body = notice(berth, payment=pay())
    with as_role("web"):
        run("SELECT payment_notice(%s, %s, %s)", f"payment:{uuid4()}", "t=1,v1=" + "0" * 64, body.decode())
    before = Quarantine.objects.count()
    payments.notices_take()
    assert Quarantine.objects.count() == before + 1
    assert berth.posted() == {}
