"""The operator's door to money: credit, corrections, invoices, prices, quotas, standing; all in the audit log."""

import getpass
import json
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from billing import months, selectors
from billing.access import access_invoice
from billing.corrections import parked_list
from billing.invoicing import invoice_issue
from billing.meter import boot_forget
from billing.models import Invoice, Operation, Quarantine
from billing.operations import operation_approve, operation_ask, operation_refuse
from billing.packages import package_buy
from billing.services import sheet_publish
from billing.settling import credit_note_issue, invoice_void
from controlplane.listings import listings_unrated
from kernel import ids
from kernel.clock import utcnow
from kernel.pricing import sheet_from_body
from kernel.problems import Problem
from tenants.services import quota_set, standing_set

Options = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Act:
    """A subcommand: `arguments` are its positional names, `run` returns the line to print; `reasoned` asks for why."""

    says: str
    arguments: tuple[str, ...]
    run: Callable[[Options], str]
    reasoned: bool = False


class Command(BaseCommand):
    help = "Move money, settle invoices, publish prices, set quotas."

    def add_arguments(self, parser: ArgumentParser) -> None:
        acts = parser.add_subparsers(dest="act", required=True)
        for name, act in ACTS.items():
            sub = acts.add_parser(name, help=act.says, description=act.says)
            sub.add_argument("--as", dest="actor", type=_person, default=getpass.getuser(), help="who acts (audit log)")
            for argument in act.arguments:
                sub.add_argument(argument, type=_TYPES.get(argument, str))
            if act.reasoned:
                sub.add_argument("--reason", required=True, help="why (audit log)")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            self.stdout.write(ACTS[options["act"]].run(options))
        except (Problem, ValueError) as problem:
            raise CommandError(str(problem)) from problem


def _tenant(text: str) -> str:
    """`ten_…` or a UUID, as the UUID's text."""
    try:
        return str(ids.decode(ids.TENANT, text) if text.startswith(f"{ids.TENANT}_") else UUID(text))
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no tenant; give its id, {ids.TENANT}_… or a UUID") from None


def _person(text: str) -> str:
    if not text.strip():
        raise ArgumentTypeError("it is empty; give the name of who acts")
    return text


_TYPES: dict[str, Callable[[str], Any]] = {
    "tenant": _tenant,
    "invoice": UUID,
    "operation": UUID,
    "boot": UUID,
    "limit": int,
    "counts": json.loads,
    "file": Path,
}


def _ask(action: str, options: Options, **arguments: Any) -> str:
    waits = operation_ask(action=action, arguments=arguments, actor=options["actor"])
    if waits is None:
        return "done"
    if isinstance(waits, Quarantine):
        return waits.reason
    return f"operation {waits.id} waits for a second person: manage.py billing approve {waits.id} --as NAME"


def _money(action: str) -> Callable[[Options], str]:
    return lambda o: _ask(action, o, tenant_id=o["tenant"], amount=o["amount"], idem_key=o["reference"])


def _waiting(_: Options) -> str:
    asked = Operation.objects.filter(status="waiting").order_by("asked_at")
    lines = [f"{row.id} {row} (asked by {row.asked_by})" for row in asked]
    lines += [f"{row.id} {row.reason}" for row in parked_list(now=utcnow())]
    return "\n".join(lines) or "nothing waits"


def _moved(invoice: Invoice) -> str:
    return f"{invoice.number} {invoice.status} {invoice.total_minor} {invoice.currency} minor units"


def _price(options: Options) -> str:
    """The file holds a sheet's body, as `kernel.pricing.Sheet.body` spells it, or a list of them: all or none."""
    found = json.loads(options["file"].read_text())
    sheets = [sheet_from_body(body) for body in (found if isinstance(found, list) else [found])]
    with transaction.atomic():
        return "\n".join(sheet_publish(sheet=sheet, actor=options["actor"]).hex() for sheet in sheets)


def _package(options: Options) -> str:
    bought = package_buy(
        tenant_id=UUID(options["tenant"]),
        sku=options["sku"],
        region=settings.REGION,
        name=options["name"],
        idem_key=options["reference"],
        actor=options["actor"],
    )
    return str(bought)


def _quota(options: Options) -> str:
    quota_set(
        tenant_id=UUID(options["tenant"]),
        resource=options["resource"],
        limit=options["limit"],
        actor=options["actor"],
    )
    return "done"


def _facts(options: Options) -> str:
    invoice = Invoice.objects.filter(id=options["invoice"]).first()
    tenant_id = invoice.tenant_id if invoice else UUID(int=0)
    return selectors.invoice_facts_csv(access_invoice(tenant_id=tenant_id, invoice_id=options["invoice"]))


def _forget(options: Options) -> str:
    booked = boot_forget(gateway_id=options["gateway"], boot_id=options["boot"], actor=options["actor"])
    return f"{booked} records are booked, no more is waited for"


def _unrated(_: Options) -> str:
    lines = (f"{item.region} {item.sku} {item.currency}: {', '.join(item.meters)}" for item in listings_unrated())
    return "\n".join(lines) or "none"


def _standing(options: Options) -> str:
    tenant_id = UUID(options["tenant"])
    standing_set(tenant_id=tenant_id, standing=options["standing"], actor=options["actor"], reason=options["reason"])
    return f"{ids.encode(ids.TENANT, tenant_id)} is {options['standing']}"


MONEY = ("tenant", "amount", "reference")
ACTS = {
    "topup": Act("credit money that came in; the same reference credits once", MONEY, _money("topup")),
    "grant": Act("give promotional credit; the same reference gives once", MONEY, _money("grant")),
    "scoped-grant": Act(
        "give credit for one model, accelerator or pool (region/name) that expires",
        (*MONEY, "scope", "value", "expires_at"),
        lambda o: _ask(
            "credit",
            o,
            tenant_id=o["tenant"],
            amount=o["amount"],
            idem_key=o["reference"],
            scope=o["scope"],
            value=o["value"],
            expires_at=o["expires_at"],
        ),
    ),
    "package": Act(
        "sell a tenant a token package of a SKU, from its available money",
        ("tenant", "sku", "name", "reference"),
        _package,
    ),
    "credit-limit": Act(
        "agree how much a tenant may pay afterwards; 0 is nothing more",
        ("tenant", "amount"),
        lambda o: _ask("credit-limit", o, tenant_id=o["tenant"], amount=o["amount"]),
    ),
    "standing": Act(
        "suspend a tenant, or let it back: active or suspended", ("tenant", "standing"), _standing, reasoned=True
    ),
    "reverse": Act("mirror a top-up or grant", ("tx",), lambda o: _ask("reverse", o, tx_id=o["tx"])),
    "correct": Act(
        'take usage back, also what is still on its way: counts are JSON such as {"out": -20}',
        ("event", "counts", "reason"),
        lambda o: _ask("correct", o, event_id=o["event"], counts=o["counts"], reason=o["reason"]),
    ),
    "waiting": Act("list what waits: for a second person, or for the usage that it corrects", (), _waiting),
    "approve": Act(
        "do what waits, as a second person",
        ("operation",),
        lambda o: str(operation_approve(operation_id=o["operation"], actor=o["actor"])),
    ),
    "refuse": Act(
        "drop what waits",
        ("operation",),
        lambda o: str(operation_refuse(operation_id=o["operation"], actor=o["actor"])),
    ),
    "issue": Act(
        "issue a draft", ("invoice",), lambda o: _moved(invoice_issue(invoice_id=o["invoice"], actor=o["actor"]))
    ),
    "close": Act("issue everything that is due", (), lambda _: "\n".join(months.month_close()) or "nothing is due"),
    "credit": Act(
        "credit an invoice's corrections",
        ("invoice",),
        lambda o: _moved(credit_note_issue(invoice_id=o["invoice"], actor=o["actor"])),
    ),
    "pay": Act(
        "mark an invoice paid; received is 0 where the balance paid",
        ("invoice", "received"),
        lambda o: _ask("pay", o, invoice_id=str(o["invoice"]), received=o["received"]),
    ),
    "void": Act(
        "void an invoice that was credited whole",
        ("invoice", "reason"),
        lambda o: _moved(invoice_void(invoice_id=o["invoice"], actor=o["actor"], reason=o["reason"])),
    ),
    "facts": Act("an invoice's rated events as CSV", ("invoice",), _facts),
    "price": Act("publish the price sheets of a JSON file", ("file",), _price),
    "unrated": Act("list what is offered without a price, by region", (), _unrated),
    "forget": Act("wait no longer for a gateway's boot whose disk is lost", ("gateway", "boot"), _forget),
    "quota": Act("set how much a tenant may hold", ("tenant", "resource", "limit"), _quota),
}
