"""Scoped credit: promotional money for one model, kind of accelerator or pool, in a purse of its own until it expires.

A purse is named by what it pays for, so that a gateway sees from the SKU alone which of a key's purses it may try;
the soonest to expire is tried first, the general one last. A model's is lent to the gateways at once, whole, but for
what dedicated time lacks; an accelerator's or a pool's waits for the holds of such time, which no gateway takes.
What is left at the end goes back to where it came from.
"""

from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import F, Sum

from billing import ledger
from billing.models import AccountKind, Credit, LedgerAccount, LedgerTx, Shortfall
from billing.services import accounts_open, money_key
from kernel import wire
from kernel.clock import utcnow
from kernel.ids import new_id
from kernel.money import to_string
from kernel.problems import IDEMPOTENCY_MISMATCH, INVALID_PARAMETER, Problem
from tenants.services import audit_write, keys_renew

SCOPES = (wire.MODEL, wire.ACCELERATOR, wire.POOL)
# More than any float has free: take back everything.
EVERYTHING = 2**62


@transaction.atomic
def credit_grant(
    *,
    tenant_id: UUID,
    currency: str,
    amount_pico: int,
    scope: str,
    value: str,
    expires_at: datetime,
    idem_key: str,
    actor: str,
) -> Credit:
    """Give credit that pays only for SKUs with `value` in their name, or time on that pool.

    The same `idem_key` gives once. `scope` is model (a release id), accelerator or pool (`region/name`).
    Problems: invalid_parameter, idempotency_mismatch.
    """
    if scope not in SCOPES or not value or set(value) & set(":= ") or (scope == wire.POOL) != ("/" in value):
        sentence = f"scope is one of {', '.join(SCOPES)}, value its id in the catalogue or a pool's region/name"
        raise Problem(INVALID_PARAMETER, sentence, param="scope")
    if amount_pico <= 0:
        raise Problem(INVALID_PARAMETER, "amount is above zero", param="amount")
    if expires_at <= utcnow():
        raise Problem(INVALID_PARAMETER, "expires_at lies ahead", param="expires_at")
    accounts_open(tenant_id=tenant_id, currency=currency)
    ledger.accounts_lock(tenant_id=tenant_id, currency=currency)
    scoped_key = money_key("credit", tenant_id, idem_key)
    known = Credit.objects.filter(tx__idem_key=scoped_key).first()
    if known is not None:
        if (int(known.amount), known.scope, known.value) != (amount_pico, scope, value):
            raise Problem(IDEMPOTENCY_MISMATCH, "this key gave another credit; use a new key")
        return known
    credit_id = new_id()
    purse = f"{scope}={value}={credit_id.hex}"
    ledger.account_open(tenant_id=tenant_id, currency=currency, kind=AccountKind.PROMO, min_available=0, purse=purse)
    tx_id = ledger.tx_open(
        tenant_id=tenant_id,
        kind="credit",
        idem_key=scoped_key,
        source_type="operator",
        source_id=actor,
        effective_at=utcnow(),
    )
    credit = Credit.objects.create(
        id=credit_id,
        tenant_id=tenant_id,
        tx_id=tx_id,
        account=LedgerAccount.objects.get(tenant_id=tenant_id, currency=currency, purse=purse),
        scope=scope,
        value=value,
        amount=amount_pico,
        expires_at=expires_at,
    )
    _move(credit, tx_id, amount_pico)
    _told(credit, actor, "granted", amount_pico)
    return credit


def credits_expire(*, now: datetime | None = None) -> int:
    """Give what is left of expired credit back to where it came from; how many transactions.

    Money that is still lent or reserved follows once the lender has it back.
    """
    now = now or utcnow()
    due = Credit.objects.filter(expires_at__lte=now, account__posted__gt=F("account__held"))
    return sum(_expire(credit_id, now) for credit_id in list(due.values_list("id", flat=True)))


def wants() -> list[wire.Want]:
    """What the lender has to do for scoped credit: lend what pays for models, take back what has expired.

    What dedicated time lacks is not lent anew: the next pass over that time takes it.
    """
    now = utcnow()
    lacking = {
        tenant_id: int(missing)
        for tenant_id, missing in Shortfall.objects.values_list("tenant_id").annotate(Sum("missing_pico"))
    }
    found = Credit.objects.filter(account__posted__gt=0).select_related("account")
    amounts = {
        credit: -EVERYTHING
        if credit.expires_at <= now
        else max(0, credit.account.available - lacking.get(credit.tenant_id, 0)) * (credit.scope == wire.MODEL)
        for credit in found
    }
    return [
        wire.Want(str(credit.tenant_id), credit.account.purse, credit.account.currency, amount)
        for credit, amount in amounts.items()
        if amount
    ]


@transaction.atomic
def _expire(credit_id: UUID, now: datetime) -> int:
    credit = Credit.objects.select_related("account").get(id=credit_id)
    currency = credit.account.currency
    ledger.accounts_lock(tenant_id=credit.tenant_id, currency=currency)
    credit.account.refresh_from_db()
    left = credit.account.available
    if left <= 0:
        return 0
    before = LedgerTx.objects.filter(kind="credit_expiry", source_id=str(credit.id)).count()
    tx_id = ledger.tx_open(
        tenant_id=credit.tenant_id,
        kind="credit_expiry",
        idem_key=f"credit_expiry:{credit.id}:{before}",
        source_type="credit",
        source_id=str(credit.id),
        effective_at=now,
    )
    _move(credit, tx_id, -left)
    _told(credit, "expiry", "expired", left)
    return 1


def _move(credit: Credit, tx_id: UUID, amount: int) -> None:
    currency = credit.account.currency
    house = ledger.house_account(currency=currency, kind=AccountKind.WRITEOFF)
    ledger.entries_write(tx_id=tx_id, currency=currency, amounts={credit.account_id: amount, house.id: -amount})


def _told(credit: Credit, actor: str, verb: str, amount: int) -> None:
    """The audit log, and the gateways: they keep a key's purses until its version changes."""
    keys_renew(tenant_id=credit.tenant_id)
    audit_write(
        actor=actor,
        tenant_id=credit.tenant_id,
        action=f"credit.{verb}",
        detail={
            "credit": str(credit.id),
            "scope": credit.scope,
            "value": credit.value,
            "amount": to_string(amount),
            "currency": credit.account.currency,
        },
    )
