"""Payments by a provider's webhook: the web process keeps a notice, a timer of the system credits it.

The web role may keep text and nothing else: what moves money is the signature, which is checked again here.
"""

import hashlib
from itertools import islice

from django.conf import settings
from django.db import connection, transaction

from billing import ledger, services
from billing.core.payments import REFUNDED, Notice, Unbelievable, parse, verify
from billing.models import LedgerTx, Quarantine
from kernel.clock import utcnow
from kernel.problems import IDEMPOTENCY_MISMATCH, INVALID_PARAMETER, NOT_FOUND, UNAUTHENTICATED, Problem
from tenants import outbox
from tenants.models import Outbox, Tenant

TOPIC = "payment.notice"
ACTOR = "payment webhook"
MAX_BODY_BYTES = 20_000


def notice_keep(*, header: str, body: bytes) -> None:
    """Keep a provider's notice for `notices_take`; the same one again changes nothing.

    Problems: unauthenticated (signature, or older than five minutes); invalid_parameter (its content).
    """
    try:
        verify(header, body, secret=settings.PAYMENT_WEBHOOK_SECRET, now=utcnow())
    except Unbelievable as error:
        raise Problem(UNAUTHENTICATED, str(error)) from error
    try:
        notice = parse(body)
    except Unbelievable as error:
        raise Problem(INVALID_PARAMETER, str(error)) from error
    key = f"payment:{notice.notice_id}:{hashlib.sha256(body).hexdigest()}"
    with connection.cursor() as cursor:
        cursor.execute("SELECT payment_notice(%s, %s, %s)", [key, header, body.decode()])


def notices_take(*, limit: int = 100) -> int:
    """Credit what notices say was paid and take back what was refunded; how many took effect.

    Two notices of one payment credit once; a refund waits for its payment. What cannot be booked goes to
    quarantine, with an alarm.
    """
    waiting = Outbox.objects.filter(topic=TOPIC, published_at=None).order_by("id")
    # One transaction each, so that one notice stops no other; refunds that wait count for nothing.
    taken = (True for notice_id in list(waiting.values_list("id", flat=True)) if _take(notice_id))
    return sum(islice(taken, limit))


@transaction.atomic
def _take(notice_id: int) -> bool:
    row = Outbox.objects.select_for_update(skip_locked=True).filter(id=notice_id, published_at=None).first()
    if row is None or not _settled(row):
        return False
    outbox.mark([row])
    return True


def _settled(row: Outbox) -> bool:
    """False where the notice has to wait for another one."""
    body = str(row.payload["body"]).encode()
    try:
        verify(str(row.payload["header"]), body, secret=settings.PAYMENT_WEBHOOK_SECRET, now=None)
        notice = parse(body)
        with transaction.atomic():
            return _book(notice)
    except (Unbelievable, Problem) as error:
        Quarantine.objects.create(reason=f"payment notice: {error}", payload=body.decode())
        ledger.alarm(key=f"quarantine:{row.dedupe_key}", sentence=f"{row.dedupe_key}: {error}")
        return True


def _book(notice: Notice) -> bool:
    if not Tenant.objects.filter(id=notice.tenant_id, currency=notice.currency).exists():
        raise Problem(NOT_FOUND, f"no tenant {notice.tenant_id} pays in {notice.currency}")
    idem_key = f"payment:{notice.payment}"
    if notice.type != REFUNDED:
        services.topup(
            tenant_id=notice.tenant_id,
            currency=notice.currency,
            amount_pico=notice.amount_pico,
            idem_key=idem_key,
            actor=ACTOR,
            payment=notice.payment,
        )
        return True
    paid = LedgerTx.objects.filter(idem_key=services.money_key("topup", notice.tenant_id, idem_key)).first()
    if paid is None:
        return False
    if not paid.entries.filter(account__tenant=None, amount=-notice.amount_pico).exists():
        raise Problem(IDEMPOTENCY_MISMATCH, f"payment {notice.payment} was of another amount; it is refunded whole")
    if not LedgerTx.objects.filter(reverses=paid).exists():
        services.topup_reverse(tx_id=paid.id, actor=ACTOR)
    return True
