"""Writes of the billing room that others call: accounts, money in, price sheets, deployments' holds."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.db.models import QuerySet, Sum

from billing import ledger, recall, selectors
from billing.bulk import hex_bytes, insert_rows
from billing.models import SPENDING, AccountKind, Hold, LedgerAccount, LedgerTx, PriceSheet
from billing.models.ledger import PAYMENT
from kernel.clock import utcnow
from kernel.money import MINOR_DIGITS, to_string
from kernel.pricing import ACCEL_SECOND, KTPM_DAY, Sheet, canonical
from kernel.problems import (
    CONFLICT,
    IDEMPOTENCY_MISMATCH,
    INSUFFICIENT_BALANCE,
    INVALID_PARAMETER,
    NOT_FOUND,
    UNRATED,
    Problem,
)
from kernel.wire import GENERAL, purses_for
from tenants.services import audit_write

# A closed hold still pays for slices whose facts are on their way; then the rest goes back.
CLOSING = timedelta(hours=1)
# Raises a subject's live holds to what is needed, wholly or not at all; what is missing (zero or less: nothing).
HOLD_FILL = """
SELECT more - CASE WHEN more > 0 THEN
  hold_place(%(tenant)s::uuid, %(currency)s, %(subject)s, generation, transfer, more, true, %(purses)s) ELSE 0 END
FROM (
  SELECT %(needed)s::numeric - COALESCE(sum(h.open) FILTER (WHERE h.live), 0) AS more,
    COALESCE(max(h.generation) FILTER (WHERE NOT h.live), 0) + 1 AS generation,
    COALESCE(max(h.transfer) FILTER (WHERE h.live), 0) + 1 AS transfer
  FROM (
    SELECT h.open, h.generation, h.sealed_at IS NULL AS live,
      (SELECT max(m.transfer) FROM hold_move m WHERE m.hold_id = h.id) AS transfer
    FROM hold h JOIN ledger_account a ON a.id = h.account_id
    WHERE h.subject = %(subject)s AND a.tenant_id = %(tenant)s AND a.currency = %(currency)s) h) held
"""


def accounts_open(*, tenant_id: UUID, currency: str, credit_limit_pico: int | None = None) -> None:
    """Open a tenant's accounts of one currency, and the house's; a repeat only changes the credit limit.

    With `credit_limit_pico` the tenant also pays afterwards, up to that much.
    Problem INVALID_PARAMETER for a currency that cannot be invoiced.
    """
    if currency not in MINOR_DIGITS:
        raise Problem(INVALID_PARAMETER, f"currency is one of {', '.join(MINOR_DIGITS)}", param="currency")
    revenue = LedgerAccount.objects.filter(tenant_id=tenant_id, currency=currency, kind=AccountKind.REVENUE)
    if credit_limit_pico is None and revenue.exists():
        return
    if credit_limit_pico is not None and credit_limit_pico < 0:
        raise Problem(INVALID_PARAMETER, "credit_limit_pico is 0 or more", param="credit_limit_pico")
    with transaction.atomic():
        _accounts_open(tenant_id, currency, credit_limit_pico)


@transaction.atomic
def credit_limit_set(*, tenant_id: UUID, currency: str, limit_pico: int, actor: str) -> None:
    """Agree how much a tenant may pay afterwards; 0 is nothing more.

    Problem INVALID_PARAMETER for a limit below zero, or below what is owed or held already.
    """
    ledger.accounts_lock(tenant_id=tenant_id, currency=currency)
    owed = LedgerAccount.objects.filter(tenant_id=tenant_id, currency=currency, kind=AccountKind.RECEIVABLE).first()
    used_pico = owed.held - owed.posted if owed else 0
    if limit_pico < used_pico:
        raise Problem(
            INVALID_PARAMETER,
            f"amount is below the {to_string(used_pico)} {currency} that are owed or held; have that paid first",
            param="amount",
        )
    accounts_open(tenant_id=tenant_id, currency=currency, credit_limit_pico=limit_pico)
    detail = {"limit": to_string(limit_pico), "currency": currency}
    audit_write(actor=actor, tenant_id=tenant_id, action="tenant.credit_limit", detail=detail)


def topup(
    *, tenant_id: UUID, currency: str, amount_pico: int, idem_key: str, actor: str, payment: str | None = None
) -> UUID:
    """Credit money that came in; what is owed in overrun is settled first. The id of the transaction.

    The same `idem_key` credits once, and `payment`, the provider's id of it in that currency, one tenant only.
    Problems: invalid_parameter (amount), idempotency_mismatch, conflict (another tenant was credited).
    """
    return _money_in(
        tenant_id=tenant_id,
        currency=currency,
        amount_pico=amount_pico,
        idem_key=idem_key,
        actor=actor,
        kind="topup",
        payment=payment,
    )


def promo_grant(*, tenant_id: UUID, currency: str, amount_pico: int, idem_key: str, actor: str) -> UUID:
    """Give promotional credit, which is spent before own money and written off by us. As `topup` else."""
    return _money_in(
        tenant_id=tenant_id,
        currency=currency,
        amount_pico=amount_pico,
        idem_key=idem_key,
        actor=actor,
        kind="promo",
    )


def money_key(kind: str, tenant_id: UUID, idem_key: str) -> str:
    """The idempotency key of a top-up or grant on the books."""
    return f"{kind}:{tenant_id}:{idem_key}"


@transaction.atomic
def topup_reverse(*, tx_id: UUID, actor: str) -> UUID:
    """Mirror a top-up or grant exactly, from what gateways have idle too.

    Problems: not_found, conflict (reversed before), insufficient_balance.
    """
    original = LedgerTx.objects.filter(id=tx_id, kind__in=("topup", "promo")).first()
    if original is None or original.tenant_id is None:
        raise Problem(NOT_FOUND, f"there is no top-up {tx_id}")
    mirrored = {entry.account_id: -entry.amount for entry in original.entries.all()}
    currency = original.entries.values_list("currency", flat=True)[0]
    if short := _short(mirrored):
        general: dict[str, Any] = {"tenant_id": original.tenant_id, "currency": currency, "purses": [GENERAL]}
        recall.bring_back(**general, needed_pico=selectors.purses_available(**general) + short)
    ledger.accounts_lock(tenant_id=original.tenant_id, currency=currency)
    if LedgerTx.objects.filter(reverses=original).exists():
        raise Problem(CONFLICT, f"top-up {tx_id} is reversed already")
    if short := _short(mirrored):
        raise Problem(
            INSUFFICIENT_BALANCE,
            f"{to_string(short)} {currency} of this top-up are spent or set aside; wait or correct less",
        )
    reversal = ledger.tx_open(
        tenant_id=original.tenant_id,
        kind=f"{original.kind}_reversal",
        idem_key=f"reversal:{tx_id}",
        source_type="operator",
        source_id=actor,
        effective_at=utcnow(),
        reverses_id=tx_id,
    )
    ledger.entries_write(tx_id=reversal, currency=currency, amounts=mirrored)
    audit_write(actor=actor, tenant_id=original.tenant_id, action="money.reversed", detail={"tx": str(tx_id)})
    return reversal


@transaction.atomic
def sheet_publish(*, sheet: Sheet, actor: str) -> bytes:
    """Publish an immutable price sheet; a repeat changes nothing. Its SHA-256.

    Problem INVALID_PARAMETER where the sheet says something impossible, and where a sheet of this key exists and
    the new one starts in under ten minutes.
    """
    for wrong in sheet.wrongs():
        raise Problem(INVALID_PARAMETER, wrong, param="sheet")
    name = sheet.sha256()
    if PriceSheet.objects.filter(sha256=name).exists():
        return name
    key = {"sku": sheet.sku, "region": sheet.region, "currency": sheet.currency, "tenant_id": sheet.tenant_id}
    known = PriceSheet.objects.filter(**key)
    if known.exists() and sheet.effective_from < utcnow() + timedelta(minutes=10, seconds=5):
        raise Problem(
            INVALID_PARAMETER,
            "effective_from lies at least ten minutes ahead of now for a price change",
            param="effective_from",
        )
    body = canonical(sheet.body()).decode() if sheet.meters else None
    insert_rows(
        PriceSheet,
        [key | {"sha256": hex_bytes(name), "effective_from": sheet.effective_from, "body": body and sheet.body()}],
    )
    audit_write(
        actor=actor,
        tenant_id=UUID(sheet.tenant_id) if sheet.tenant_id else None,
        action="price.published",
        detail={"sku": sheet.sku, "region": sheet.region, "sha256": name.hex()},
    )
    return name


def hold_place(
    *, tenant_id: UUID, deployment_id: UUID, sku: str, region: str, pool: str, accelerator_seconds: int
) -> None:
    """Set aside the price of that much time of a dedicated SKU; a repeat tops up to it and places no more.

    One statement places all of it or nothing, so a caller's transaction needs no savepoint around this.
    `pool` is `region/name` of the one that it runs on. Works under the web role inside its tenant's scope.
    Problems: insufficient_balance, unrated.
    """
    _hold_place(tenant_id, deployment_id, sku, region, pool, ACCEL_SECOND, accelerator_seconds)


def reserved_hold_place(*, tenant_id: UUID, endpoint_id: UUID, sku: str, region: str, pool: str, ktpm: int) -> None:
    """Set aside the price of one UTC day of that many kTPM; a repeat tops up to it and places no more.

    For a raise within a day, `ktpm` is what comes on top. `hold_close` with the endpoint's id ends it. As
    `hold_place` else.
    """
    _hold_place(tenant_id, endpoint_id, sku, region, pool, KTPM_DAY, ktpm)


def deployment_hold_fill(
    *, tenant_id: UUID, currency: str, deployment_id: UUID, purses: list[str], needed_pico: int
) -> int:
    """Raise a deployment's hold to `needed_pico` from those purses in order, wholly or not at all.

    What is missing (0: done).
    """
    wanted: dict[str, Any] = {
        "tenant": tenant_id,
        "currency": currency,
        "subject": deployment_subject(deployment_id),
        "needed": needed_pico,
        "purses": purses,
    }
    with connection.cursor() as cursor:
        cursor.execute(HOLD_FILL, wanted)
        missing = int(cursor.fetchone()[0])
    if missing <= 0:
        return 0
    return max(1, missing - selectors.purses_available(tenant_id=tenant_id, currency=currency, purses=purses))


def hold_close(*, deployment_id: UUID) -> None:
    """Close a deployment's hold: nothing more is placed, the last slices draw, then the rest goes back."""
    now = utcnow()
    Hold.objects.filter(subject=deployment_subject(deployment_id), sealed_at=None).update(
        sealed_at=now, expires_at=now + CLOSING
    )


def _hold_place(tenant_id: UUID, subject_id: UUID, sku: str, region: str, pool: str, meter: str, quantity: int) -> None:
    sheet = selectors.terms_for(sku=sku, region=region, tenant_id=tenant_id)
    currency, unrated, needed = sheet.currency, sheet.unrated(), selectors.sheet_ahead(sheet, meter, quantity)
    if unrated or needed is None:
        meters = ", ".join(unrated)
        raise Problem(UNRATED, f"{sku} has no price for {meters} in {currency} in region {region}; choose another")
    room = selectors.purses_room(tenant_id, currency)
    purses = purses_for(list(room), sku, pool=pool)
    if needed > sum(room[purse] for purse in purses):
        held = _live(tenant_id, currency, subject_id).aggregate(total=Sum("open", default=0))["total"]
        recall.bring_back(tenant_id=tenant_id, currency=currency, purses=purses, needed_pico=needed - int(held))
    missing = deployment_hold_fill(
        tenant_id=tenant_id, currency=currency, deployment_id=subject_id, purses=purses, needed_pico=needed
    )
    if missing:
        raise Problem(
            INSUFFICIENT_BALANCE,
            f"{to_string(needed)} {currency} must be available to start and {to_string(missing)} are missing; top up",
            extra={"currency": currency, "required": to_string(needed), "missing": to_string(missing)},
        )


def deployment_subject(deployment_id: UUID) -> str:
    """The subject of the holds of a deployment, or of an endpoint with reserved kTPM."""
    return f"deployment:{deployment_id}"


def _live(tenant_id: UUID, currency: str, deployment_id: UUID) -> "QuerySet[Hold]":
    """A deployment's open holds, one per account."""
    return Hold.objects.filter(
        subject=deployment_subject(deployment_id),
        account__tenant_id=tenant_id,
        account__currency=currency,
        sealed_at=None,
    )


def _short(amounts: Mapping[int, int]) -> int:
    """Pico-units that accounts which pay lack for entries of these amounts, account id → amount."""
    rows = LedgerAccount.objects.filter(id__in=amounts, kind__in=SPENDING)
    return sum(max(0, -amounts[row.id] - row.available) for row in rows)


def _accounts_open(tenant_id: UUID, currency: str, credit_limit_pico: int | None) -> None:
    for kind in ledger.HOUSE:
        ledger.account_open(tenant_id=None, currency=currency, kind=kind, min_available=None)
    for kind, floor in (
        (AccountKind.PROMO, 0),
        (AccountKind.PREPAID, 0),
        (AccountKind.REVENUE, None),
        (AccountKind.OVERRUN, None),
    ):
        ledger.account_open(tenant_id=tenant_id, currency=currency, kind=kind, min_available=floor)
    if credit_limit_pico is None:
        return
    kind = AccountKind.RECEIVABLE
    ledger.account_open(tenant_id=tenant_id, currency=currency, kind=kind, min_available=-credit_limit_pico)
    LedgerAccount.objects.filter(tenant_id=tenant_id, currency=currency, kind=kind).update(
        min_available=-credit_limit_pico
    )


@transaction.atomic
def _money_in(
    *,
    tenant_id: UUID,
    currency: str,
    amount_pico: int,
    idem_key: str,
    actor: str,
    kind: str,
    payment: str | None = None,
) -> UUID:
    if amount_pico <= 0:
        raise Problem(INVALID_PARAMETER, "amount is above zero", param="amount")
    accounts_open(tenant_id=tenant_id, currency=currency)
    accounts = ledger.accounts_lock(tenant_id=tenant_id, currency=currency)
    house_kind = AccountKind.CASH if kind == "topup" else AccountKind.WRITEOFF
    house = ledger.house_account(currency=currency, kind=house_kind)
    scoped_key = money_key(kind, tenant_id, idem_key)
    known = LedgerTx.objects.filter(idem_key=scoped_key).first()
    if known is not None:
        entry = known.entries.filter(account_id=house.id).first()
        if entry is None or entry.amount != -amount_pico:
            raise Problem(IDEMPOTENCY_MISMATCH, "this key credited another amount; use a new key")
        return known.id
    source = ("operator", actor) if payment is None else (PAYMENT, f"{currency}:{payment}")
    if LedgerTx.objects.filter(source_type=PAYMENT, source_id=source[1]).exists():
        raise Problem(CONFLICT, f"payment {payment} was credited to another tenant")
    overrun = accounts[AccountKind.OVERRUN]
    settled = min(amount_pico, max(0, -overrun.posted)) if kind == "topup" else 0
    target = accounts[AccountKind.PREPAID if kind == "topup" else AccountKind.PROMO]
    tx_id = ledger.tx_open(
        tenant_id=tenant_id,
        kind=kind,
        idem_key=scoped_key,
        source_type=source[0],
        source_id=source[1],
        effective_at=utcnow(),
    )
    amounts = {target.id: amount_pico - settled, overrun.id: settled, house.id: -amount_pico}
    ledger.entries_write(tx_id=tx_id, currency=currency, amounts=amounts)
    audit_write(
        actor=actor,
        tenant_id=tenant_id,
        action=f"money.{kind}",
        detail={"amount": to_string(amount_pico), "currency": currency, "tx": str(tx_id)},
    )
    return tx_id
