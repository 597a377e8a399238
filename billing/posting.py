"""Book rated usage: events, draws, entries, rated lines and receipt leaves in one database transaction.

The order is fixed: draws release held money before the entries take it (CHECKs are immediate), and
locks are taken as receipt tree, then accounts by id, then holds, by everybody.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db.models import OuterRef, QuerySet, Subquery, Sum

from billing import ledger
from billing.bulk import hex_bytes, insert_rows
from billing.core import receipts
from billing.core.posting import Available, OpenHold, draw, pay_late, spread
from billing.models import (
    AccountKind,
    Hold,
    HoldMove,
    LedgerAccount,
    LedgerEntry,
    MoveKind,
    RatedLine,
    ReceiptLeaf,
    ReceiptTree,
    UsageEvent,
)
from kernel import pricing, usage, wire
from kernel.clock import month_of, utcnow


@dataclass(frozen=True, slots=True)
class Charge:
    """One rated event on its way to the books; `journal` is (gateway, boot, number) for a request.

    `subject` and `generation` name the hold that pays; generation None means whichever has money.
    """

    event: usage.UsageEvent
    lines: tuple[pricing.RatedLine, ...]
    subject: str
    generation: int | None
    payload_sha256: bytes
    journal: tuple[str, UUID, int] | None = None
    seconds_before: int = 0
    corrects: UUID | None = None

    @property
    def cost(self) -> int:
        """Pico-units."""
        return pricing.total(self.lines)


def tenant_lock(*, tenant_id: UUID) -> ReceiptTree:
    """Lock the tenant's open receipt tree: one writer of a tenant's usage at a time, leaves in order."""
    start, _ = month_of(utcnow())
    tree = ReceiptTree.objects.select_for_update().filter(tenant_id=tenant_id, period_start=start).first()
    if tree is not None:
        return tree
    ReceiptTree.objects.bulk_create([ReceiptTree(tenant_id=tenant_id, period_start=start)], ignore_conflicts=True)
    tree = ReceiptTree.objects.select_for_update().get(tenant_id=tenant_id, period_start=start)
    before = (
        ReceiptTree.objects.select_for_update()
        .filter(tenant_id=tenant_id, period_start__lt=start)
        .order_by("-period_start")
        .first()
    )
    if tree.size == 0 and before is not None:
        hashes = ReceiptLeaf.objects.filter(tree=before).order_by("idx").values_list("hash", flat=True)
        root = receipts.root_of([bytes(item) for item in hashes])
        carry = receipts.carry_leaf(period_start=before.period_start, size=before.size, root=root)
        _leaves_write(tree, [(None, carry)])
    return tree


def charges_post(*, tree: ReceiptTree, currency: str, charges: Sequence[Charge], source_id: str) -> None:
    """Book a tenant's new events, in the transaction that locked `tree`. Never fails for want of money.

    Covered costs are drawn from their holds in a transaction of kind `usage`; what no hold covers whole
    goes into one of kind `usage_late`: available money, then overrun, and an alarm.
    """
    charges = sorted(charges, key=lambda charge: charge.event.event_id)
    tenant_id = tree.tenant_id
    accounts = ledger.accounts_lock(tenant_id=tenant_id, currency=currency)
    insert_rows(UsageEvent, [_event_row(charge) for charge in charges])
    scoped = ledger.scoped_accounts(tenant_id=tenant_id, currency=currency)
    draws, late = _plan(charges, [*scoped, *ledger.spending(accounts)])
    late_ids = {charge.event.event_id for charge in late}
    covered = [charge for charge in charges if charge.cost and charge.event.event_id not in late_ids]
    posted: dict[UUID, UUID] = {}
    funding: list[bytes] = []
    for kind, part in (("usage", covered), ("usage_late", late)):
        if not part:
            continue
        tx_id = ledger.tx_open(
            tenant_id=tenant_id,
            kind=kind,
            idem_key=f"{kind}:{part[0].event.event_id}",
            source_type="usage",
            source_id=source_id,
            effective_at=max(charge.event.ended_at for charge in part),
        )
        total = sum(charge.cost for charge in part)
        if kind == "usage":
            paid = _draws_write(tx_id, draws)
        else:
            paid = _late_paid(total, accounts)
            ledger.alarm(key=f"late:{tx_id}", sentence=f"{total} pico {currency} of {tenant_id} had no hold")
        amounts = {account_id: -amount for account_id, amount in paid.items()}
        amounts[accounts[AccountKind.REVENUE].id] = total
        ledger.entries_write(tx_id=tx_id, currency=currency, amounts=amounts)
        posted |= {charge.event.event_id: tx_id for charge in part}
        parts = _parts(paid, [*accounts.values(), *scoped])
        funding.append(receipts.funding_leaf(tx_id=tx_id, currency=currency, parts=parts))
    insert_rows(RatedLine, [_line_row(charge, line, posted) for charge in charges for line in charge.lines])
    _leaves_write(tree, [_leaf(charge) for charge in charges] + [(None, body) for body in funding])


def correction_post(
    *, tree: ReceiptTree, currency: str, charge: Charge, taken: Mapping[int, int], source_id: str
) -> None:
    """Book a correction in the transaction that locked `tree`: its credit raises `posted` and touches no hold.

    For a credit `taken` says by account what was paid and is not given back: the credit goes there, what was spent
    last first, and never more to one than that. What is owed no more (overrun that a top-up settled, a pico of
    rounding) goes to own money. What costs (a rebate that was too much) is taken from available money, first from
    scoped credit that got it (`taken` is below zero); only what nothing covers becomes overrun.
    """
    accounts = ledger.accounts_lock(tenant_id=tree.tenant_id, currency=currency)
    insert_rows(UsageEvent, [_event_row(charge)])
    posted: dict[UUID, UUID] = {}
    leaves = [_leaf(charge)]
    if charge.cost:
        tx_id = ledger.tx_open(
            tenant_id=tree.tenant_id,
            kind="correction",
            idem_key=f"correction:{charge.event.event_id}",
            source_type="usage",
            source_id=source_id,
            effective_at=utcnow(),
        )
        scoped = ledger.scoped_accounts(tenant_id=tree.tenant_id, currency=currency)
        if charge.cost < 0:
            credited = _credited(-charge.cost, accounts, scoped, taken)
            paid = {account_id: -amount for account_id, amount in credited.items()}
        else:
            got = [Available(account.id, min(account.available, -taken.get(account.id, 0))) for account in scoped]
            paid = _late_paid(charge.cost, accounts, first=[item for item in got if item.amount > 0])
        amounts = {account_id: -amount for account_id, amount in paid.items()}
        amounts[accounts[AccountKind.REVENUE].id] = charge.cost
        ledger.entries_write(tx_id=tx_id, currency=currency, amounts=amounts)
        posted[charge.event.event_id] = tx_id
        parts = _parts(paid, [*accounts.values(), *scoped])
        leaves.append((None, receipts.funding_leaf(tx_id=tx_id, currency=currency, parts=parts)))
    insert_rows(RatedLine, [_line_row(charge, line, posted) for line in charge.lines])
    _leaves_write(tree, leaves)


def _parts(paid: dict[int, int], accounts: Sequence[LedgerAccount]) -> dict[str, int]:
    """What each kind of account paid, scoped credit by the name of its purse."""
    names = {account.id: account.kind if account.purse == wire.GENERAL else account.purse for account in accounts}
    return {names[account_id]: amount for account_id, amount in sorted(paid.items())}


def _credited(
    amount: int, accounts: dict[str, LedgerAccount], scoped: Sequence[LedgerAccount], taken: Mapping[int, int]
) -> dict[int, int]:
    """Account id → its part of a credit, none of them zero; scoped credit gets its own back, expired or not."""
    overrun = accounts[AccountKind.OVERRUN]
    order = [overrun, *reversed([*scoped, *ledger.spending(accounts)])]
    most = {**taken, overrun.id: min(taken.get(overrun.id, 0), -overrun.posted)}
    shares = spread(amount, [max(0, most.get(account.id, 0)) for account in order])
    parts = {account.id: share for account, share in zip(order, shares, strict=True) if share}
    rest = amount - sum(shares)
    if rest:
        own = accounts[AccountKind.PREPAID].id
        parts[own] = parts.get(own, 0) + rest
    return parts


def taken_by(entries: "QuerySet[LedgerEntry]") -> dict[int, int]:
    """Account → what these entries took from it and did not give back."""
    sums = entries.values_list("account_id").annotate(total=Sum("amount"))
    return {account_id: -int(total) for account_id, total in sums}


def _plan(charges: Sequence[Charge], payers: Sequence[LedgerAccount]) -> tuple[list[tuple[Hold, int]], list[Charge]]:
    """Draws from holds, and the charges that go late; holds are read under the accounts' locks."""
    groups: dict[tuple[str, int | None], list[Charge]] = defaultdict(list)
    for charge in charges:
        if charge.cost:
            groups[charge.subject, charge.generation].append(charge)
    order = {account.id: place for place, account in enumerate(payers)}
    draws: list[tuple[Hold, int]] = []
    late: list[Charge] = []
    for (subject, generation), members in groups.items():
        found = Hold.objects.filter(account_id__in=order, subject=subject, open__gt=0)
        if generation is not None:
            found = found.filter(generation=generation)
        holds = sorted(found, key=lambda hold: (order[hold.account_id], hold.generation))
        plan = draw(
            [charge.cost for charge in members],
            [OpenHold(hold.id, hold.account_id, hold.open) for hold in holds],
        )
        draws += [(hold, plan.by_hold[hold.id]) for hold in holds if hold.id in plan.by_hold]
        late += [members[index] for index in plan.uncovered]
    return draws, sorted(late, key=lambda charge: charge.event.event_id)


def _draws_write(tx_id: UUID, draws: Sequence[tuple[Hold, int]]) -> dict[int, int]:
    """Write the draws; account id → what left it."""
    # A hold has a move for every batch: its last number is read from the end of the index, not counted.
    latest = HoldMove.objects.filter(hold_id=OuterRef("id")).order_by("-seq").values("seq")[:1]
    last = dict(
        Hold.objects.filter(id__in=[hold.id for hold, _ in draws])
        .annotate(last=Subquery(latest))
        .values_list("id", "last")
    )
    paid: dict[int, int] = defaultdict(int)
    rows = []
    for hold, amount in sorted(draws, key=lambda item: item[0].account_id):
        paid[hold.account_id] += amount
        rows.append(
            {
                "hold_id": hold.id,
                "seq": last[hold.id] + 1,
                "kind": MoveKind.DRAW.value,
                "amount": str(amount),
                "tx_id": tx_id,
            }
        )
    insert_rows(HoldMove, rows)
    return paid


def _late_paid(total: int, accounts: dict[str, LedgerAccount], *, first: Sequence[Available] = ()) -> dict[int, int]:
    """Account id → what it pays, from balances as they are after the draws; `first` before all others."""
    payers = ledger.spending(accounts)
    for account in payers:
        account.refresh_from_db(fields=("posted", "held"))
    available = [Available(account.id, account.available) for account in payers]
    return pay_late(total, [*first, *available], accounts[AccountKind.OVERRUN].id)


def _leaf(charge: Charge) -> tuple[UUID | None, bytes]:
    body = receipts.event_leaf(
        charge.event, charge.lines, corrects=charge.corrects, seconds_before=charge.seconds_before
    )
    return charge.event.event_id, body


def _leaves_write(tree: ReceiptTree, leaves: Iterable[tuple[UUID | None, bytes]]) -> None:
    rows = [
        {
            "tree_id": tree.id,
            "idx": tree.size + place,
            "event_id": event_id,
            "body": hex_bytes(body),
            "hash": hex_bytes(receipts.leaf_hash(body)),
        }
        for place, (event_id, body) in enumerate(leaves)
    ]
    insert_rows(ReceiptLeaf, rows)
    tree.size += len(rows)
    tree.save(update_fields=["size"])


def _line_row(charge: Charge, line: pricing.RatedLine, posted: dict[UUID, UUID]) -> dict[str, Any]:
    return {
        "event_id": charge.event.event_id,
        "meter": line.meter,
        "quantity": line.quantity,
        "num_pico": str(line.num_pico),
        "den": line.den,
        "amount": str(line.amount),
        "tx_id": posted[charge.event.event_id] if line.amount else None,
    }


def _event_row(charge: Charge) -> dict[str, Any]:
    event = charge.event
    gateway_id, boot_id, seq = charge.journal or (None, None, None)
    return {
        "event_id": event.event_id,
        "source": event.source,
        "tenant_id": event.tenant_id,
        "api_key_id": event.api_key_id,
        "subject_id": event.subject_id,
        "attempt": event.attempt,
        "kind": event.kind,
        "sku": event.sku,
        "region": event.region,
        "pod_uid": event.pod_uid,
        "accelerator": event.accelerator,
        "accelerator_count": event.accelerator_count,
        "started_at": event.started_at,
        "ended_at": event.ended_at,
        "counts": dict(event.counts),
        "engine_usage": event.engine_usage,
        "sheet": hex_bytes(event.sheet),
        "quoted_pico": str(event.quoted_pico),
        "provenance": event.provenance,
        "finish": event.finish,
        "corrects": charge.corrects,
        "payload_sha256": hex_bytes(charge.payload_sha256),
        "gateway_id": gateway_id,
        "boot_id": boot_id,
        "journal_seq": seq,
        "endpoint_id": event.endpoint_id,
        "deployment_id": event.deployment_id,
        "purse": event.purse,
        "generation": event.generation,
        "waste": event.waste,
        "end_user": event.end_user,
    }
