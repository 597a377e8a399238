"""The only writer of ledger transactions: accounts are locked in id order, entries written in it."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from uuid import UUID

from django.db import connection, transaction

from billing.bulk import insert_rows
from billing.models import SPENDING, AccountKind, LedgerAccount, LedgerEntry, LedgerTx
from kernel import wire
from kernel.clock import utcnow
from kernel.ids import new_id
from kernel.problems import INVALID_PARAMETER, Problem
from tenants.outbox import publish

log = logging.getLogger(__name__)

ALARM = "billing.alarm"
# Accounts of the house, one per currency; the other kinds belong to a tenant.
HOUSE = (
    AccountKind.CASH,
    AccountKind.ROUNDING,
    AccountKind.TAX,
    AccountKind.WRITEOFF,
    AccountKind.SUSPENSE,
)


def account_open(
    *, tenant_id: UUID | None, currency: str, kind: str, min_available: int | None, purse: str = wire.GENERAL
) -> None:
    """Open one account; a repeat changes nothing. The other columns are not ours to write."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ledger_account (tenant_id, currency, kind, min_available, purse) VALUES (%s, %s, %s, %s, %s) "
            "ON CONFLICT DO NOTHING",
            [tenant_id, currency, kind, min_available, purse],
        )


def accounts_lock(*, tenant_id: UUID, currency: str) -> dict[str, LedgerAccount]:
    """A tenant's general accounts by kind; these and its scoped ones are locked in id order until the transaction ends.

    Empty where none is open.
    """
    rows = LedgerAccount.objects.select_for_update().filter(tenant_id=tenant_id, currency=currency).order_by("id")
    return {account.kind: account for account in rows if account.purse == wire.GENERAL}


def scoped_accounts(*, tenant_id: UUID, currency: str) -> list[LedgerAccount]:
    """The accounts of a tenant's scoped credit, the soonest to expire first; `accounts_lock` has locked them."""
    rows = LedgerAccount.objects.filter(tenant_id=tenant_id, currency=currency).exclude(purse=wire.GENERAL)
    return list(rows.order_by("credit_of__expires_at", "id"))


def house_account(*, currency: str, kind: str) -> LedgerAccount:
    """The house's account of that kind. Problem INVALID_PARAMETER where the currency was never opened."""
    account = LedgerAccount.objects.filter(tenant=None, currency=currency, kind=kind).first()
    if account is None:
        raise Problem(
            INVALID_PARAMETER, f"currency {currency} is not opened; open its accounts first", param="currency"
        )
    return account


def spending(accounts: Mapping[str, LedgerAccount]) -> list[LedgerAccount]:
    """The accounts that pay for usage, in spending order."""
    return [accounts[kind] for kind in SPENDING if kind in accounts]


def tx_open(
    *,
    tenant_id: UUID | None,
    kind: str,
    idem_key: str,
    source_type: str,
    source_id: str,
    effective_at: datetime,
    reverses_id: UUID | None = None,
) -> UUID:
    """Write a transaction's head; its entries follow in the same database transaction."""
    tx_id = new_id()
    row = {
        "id": tx_id,
        "tenant_id": tenant_id,
        "kind": kind,
        "idem_key": idem_key,
        "source_type": source_type,
        "source_id": source_id,
        "effective_at": effective_at,
        "reverses_id": reverses_id,
    }
    insert_rows(LedgerTx, [row])
    return tx_id


def entries_write(*, tx_id: UUID, currency: str, amounts: Mapping[int, int]) -> None:
    """One entry per account id whose amount is not zero; they must sum to zero, which the database checks."""
    written = [(account_id, amount) for account_id, amount in sorted(amounts.items()) if amount]
    insert_rows(
        LedgerEntry,
        [
            {"tx_id": tx_id, "seq": seq, "account_id": account_id, "currency": currency, "amount": str(amount)}
            for seq, (account_id, amount) in enumerate(written, 1)
        ],
    )


@contextmanager
def apart(*, what: str) -> Iterator[None]:
    """One tenant's part of a run, in a transaction of its own: what breaks it raises an alarm and stops no other's."""
    try:
        with transaction.atomic():
            yield
    except Exception as error:
        log.exception("%s does not work", what)
        alarm(key=f"{what}:{utcnow():%Y-%m-%d}", sentence=f"{what} does not work: {error!r}")


def alarm(*, key: str, sentence: str) -> None:
    """Raise an alarm once, in the caller's transaction; the meter's loop logs it."""
    publish(topic=ALARM, dedupe_key=key, payload={"sentence": sentence})
