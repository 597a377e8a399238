"""The operators' door to money: small acts are done at once; what is large, or makes a day large, waits for another."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Sum

from billing import corrections, ledger, scoped, services, settling
from billing.advisory import alone
from billing.core.corrections import check_deltas
from billing.models import Invoice, LedgerTx, Operation, PriceSheet, Quarantine, RatedLine, UsageEvent
from billing.models.operations import ALONE, DONE, REFUSED, WAITING
from kernel import money
from kernel.clock import DAY, utcnow
from kernel.ids import new_id
from kernel.problems import CONFLICT, FORBIDDEN, INVALID_PARAMETER, NOT_FOUND, Problem
from tenants.models import Tenant
from tenants.services import audit_write

Arguments = Mapping[str, Any]
CORRECT = "correct"


@dataclass(frozen=True, slots=True)
class Worth:
    """Whose money an act moves, in which currency, how much (pico-units)."""

    tenant_id: UUID
    currency: str
    amount_pico: int


@dataclass(frozen=True, slots=True)
class Action:
    """`worth` reads the arguments and finds what the act comes to; `do` does it for an actor."""

    worth: Callable[[Arguments], Worth]
    do: Callable[[Worth, Arguments, str], object]


@transaction.atomic
def operation_ask(
    *, action: str, arguments: Arguments, actor: str, operation_id: UUID | None = None
) -> Operation | Quarantine | None:
    """Do an operator's act, or return what waits: for a second person, or a correction for its usage event.

    A second person is needed above the limit, for one act or for all that this person did alone within a day.
    `action` is topup or grant {tenant_id, amount, idem_key}, credit {the same, scope, value, expires_at},
    credit-limit {tenant_id, amount}, reverse {tx_id}, correct {event_id, counts, reason}, pay {invoice_id,
    received}; amounts are decimal strings, instants ISO 8601.
    Problems: invalid_parameter, not_found, and those of the act itself.
    """
    if action not in ACTIONS:
        raise Problem(INVALID_PARAMETER, f"action is one of {', '.join(ACTIONS)}", param="action")
    try:
        worth = _worth(action, arguments)
    except corrections.NotYet:
        return corrections.correction_park(arguments=arguments, actor=actor)
    operation = Operation(
        id=operation_id or new_id(),
        tenant_id=worth.tenant_id,
        action=action,
        arguments=dict(arguments),
        amount=worth.amount_pico,
        currency=worth.currency,
        asked_by=actor,
    )
    if worth.amount_pico + _moved_alone(actor, worth.currency) > money.parse(settings.TWO_PERSON_ABOVE):
        operation.save(force_insert=True)
        _audit(operation, actor, "asked")
        return operation
    ACTIONS[action].do(worth, arguments, actor)
    operation.status, operation.decided_by, operation.decided_at = ALONE, actor, utcnow()
    operation.save(force_insert=True)
    return None


def corrections_apply(*, now: datetime | None = None) -> int:
    """Ask again for every parked correction whose usage event is on the books by now; how many, each of them once.

    What is refused raises an alarm a day and stays where it is.
    """
    done = 0
    with alone("billing", "corrections") as granted:
        if not granted:
            return 0
        for parked in corrections.parked_list(now=now or utcnow()).filter(corrections.BOOKED):
            asked = json.loads(parked.payload)
            with ledger.apart(what=f"the parked correction {parked.id}"):
                operation_ask(action=CORRECT, **asked, operation_id=parked.id)
                done += 1
    return done


@transaction.atomic
def operation_approve(*, operation_id: UUID, actor: str) -> Operation:
    """Do what waits, by the word of a second person. Problems: not_found; forbidden (who asked); conflict (decided)."""
    operation = _waiting(operation_id)
    if actor == operation.asked_by:
        raise Problem(FORBIDDEN, f"{actor} asked for this; a second person approves it")
    ACTIONS[operation.action].do(_worth(operation.action, operation.arguments), operation.arguments, actor)
    return _decided(operation, DONE, actor)


@transaction.atomic
def operation_refuse(*, operation_id: UUID, actor: str) -> Operation:
    """Drop what waits. Problems: not_found; conflict (decided before)."""
    return _decided(_waiting(operation_id), REFUSED, actor)


def _moved_alone(actor: str, currency: str) -> int:
    """Pico-units that a person moved alone within a day; whoever asks twice at once waits for the first answer."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('operator'), hashtext(%s))", [actor])
    lately = Operation.objects.filter(asked_by=actor, status=ALONE, currency=currency, asked_at__gt=utcnow() - DAY)
    return int(lately.aggregate(total=Sum("amount", default=0))["total"])


def _waiting(operation_id: UUID) -> Operation:
    operation = Operation.objects.select_for_update().filter(id=operation_id).first()
    if operation is None:
        raise Problem(NOT_FOUND, f"there is no operation {operation_id}")
    if operation.status != WAITING:
        raise Problem(CONFLICT, f"operation {operation_id} is {operation.status}")
    return operation


def _decided(operation: Operation, status: str, actor: str) -> Operation:
    operation.status, operation.decided_by, operation.decided_at = status, actor, utcnow()
    operation.save(update_fields=["status", "decided_by", "decided_at"])
    _audit(operation, actor, status)
    return operation


def _audit(operation: Operation, actor: str, verb: str) -> None:
    audit_write(
        actor=actor,
        tenant_id=operation.tenant_id,
        action=f"operation.{verb}",
        detail={
            "operation": str(operation.id),
            "action": operation.action,
            "amount": money.to_string(int(operation.amount)),
            "currency": operation.currency,
        },
    )


def _worth(action: str, arguments: Arguments) -> Worth:
    try:
        return ACTIONS[action].worth(arguments)
    except (KeyError, TypeError, ValueError) as error:
        raise Problem(INVALID_PARAMETER, f"an argument of {action} is absent or malformed: {error}") from error


def _money_worth(arguments: Arguments) -> Worth:
    if not arguments["idem_key"]:
        raise ValueError("idem_key is empty")
    return _amount_worth(arguments)


def _amount_worth(arguments: Arguments) -> Worth:
    tenant = Tenant.objects.filter(id=UUID(arguments["tenant_id"])).first()
    if tenant is None:
        raise Problem(NOT_FOUND, f"there is no tenant {arguments['tenant_id']}")
    return Worth(tenant.id, tenant.currency, money.parse(arguments["amount"]))


def _reversal_worth(arguments: Arguments) -> Worth:
    tx = LedgerTx.objects.filter(id=UUID(arguments["tx_id"])).first()
    if tx is None or tx.tenant_id is None:
        raise Problem(NOT_FOUND, f"there is no transaction {arguments['tx_id']}")
    entries = list(tx.entries.all())
    return Worth(tx.tenant_id, entries[0].currency, sum(int(entry.amount) for entry in entries if entry.amount > 0))


def _correction_worth(arguments: Arguments) -> Worth:
    """At most what the deltas cost at the event's own rates: a cumulative rounding may be a pico less."""
    event_id, counts, _ = (arguments[name] for name in ("event_id", "counts", "reason"))
    event = UsageEvent.objects.filter(event_id=UUID(event_id)).first()
    if event is None:
        raise corrections.NotYet
    check_deltas(counts)
    amount = sum(
        -(int(counts.get(line.meter_id, 0)) * int(line.num_pico) // line.den)
        for line in RatedLine.objects.filter(event=event)
    )
    return Worth(event.tenant_id, PriceSheet.objects.get(sha256=event.sheet_id).currency, amount)


def _payment_worth(arguments: Arguments) -> Worth:
    invoice = Invoice.objects.filter(id=UUID(arguments["invoice_id"])).first()
    if invoice is None:
        raise Problem(NOT_FOUND, f"there is no invoice {arguments['invoice_id']}")
    return Worth(invoice.tenant_id, invoice.currency, money.parse(arguments["received"]))


def _given(give: Callable[..., object]) -> Callable[[Worth, Arguments, str], object]:
    return lambda worth, arguments, actor: give(
        tenant_id=worth.tenant_id,
        currency=worth.currency,
        amount_pico=worth.amount_pico,
        idem_key=arguments["idem_key"],
        actor=actor,
    )


def _credit(worth: Worth, arguments: Arguments, actor: str) -> object:
    return scoped.credit_grant(
        tenant_id=worth.tenant_id,
        currency=worth.currency,
        amount_pico=worth.amount_pico,
        scope=arguments["scope"],
        value=arguments["value"],
        expires_at=datetime.fromisoformat(arguments["expires_at"]),
        idem_key=arguments["idem_key"],
        actor=actor,
    )


def _credit_limit(worth: Worth, arguments: Arguments, actor: str) -> object:
    return services.credit_limit_set(
        tenant_id=worth.tenant_id, currency=worth.currency, limit_pico=worth.amount_pico, actor=actor
    )


def _credit_worth(arguments: Arguments) -> Worth:
    if datetime.fromisoformat(arguments["expires_at"]).tzinfo is None:
        raise ValueError("expires_at has no zone")
    return _money_worth(arguments)


def _reverse(worth: Worth, arguments: Arguments, actor: str) -> object:
    return services.topup_reverse(tx_id=UUID(arguments["tx_id"]), actor=actor)


def _correct(worth: Worth, arguments: Arguments, actor: str) -> object:
    return corrections.usage_correct(
        event_id=UUID(arguments["event_id"]),
        counts=arguments["counts"],
        actor=actor,
        reason=arguments["reason"],
    )


def _pay(worth: Worth, arguments: Arguments, actor: str) -> object:
    return settling.invoice_pay(invoice_id=UUID(arguments["invoice_id"]), received_pico=worth.amount_pico, actor=actor)


ACTIONS = {
    "topup": Action(_money_worth, _given(services.topup)),
    "grant": Action(_money_worth, _given(services.promo_grant)),
    "credit": Action(_credit_worth, _credit),
    "credit-limit": Action(_amount_worth, _credit_limit),
    "reverse": Action(_reversal_worth, _reverse),
    CORRECT: Action(_correction_worth, _correct),
    "pay": Action(_payment_worth, _pay),
}
