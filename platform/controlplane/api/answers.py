"""How the provisioning API spells objects: public ids, decimal strings, ISO instants in UTC."""

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from billing import selectors as billing
from billing.models import Credit, Invoice, LedgerEntry, UsageEvent
from inference.selectors import EndpointView, ReleaseView
from kernel import ids, money
from kernel.pricing import Sheet
from tenants.models import ApiKey


def endpoint_id(value: UUID) -> str:
    """`ep_…`, as clients put it in `model`."""
    return ids.encode(ids.ENDPOINT, value)


def endpoint(view: EndpointView, reader: UUID) -> dict[str, Any]:
    """An endpoint with its phase, conditions and deployment.

    Messages name nodes, pods and log lines: they are empty for a reader that is not the endpoint's tenant.
    """
    own = view.tenant_id == reader
    return {
        "id": view.id,
        "name": view.name,
        "release": view.release,
        "rung": view.rung,
        "visibility": view.visibility,
        "region": view.region,
        "replicas": view.replicas,
        "tpm": view.tpm,
        "serving": view.serving,
        "generation": view.generation,
        "observed_generation": view.observed_generation,
        "phase": str(view.phase),
        "reason": view.reason,
        "message": view.message if own else "",
        "paused": view.paused_at is not None,
        "conditions": [item if own else {**item, "message": ""} for item in view.conditions],
        "deployments": [
            {
                "id": ids.encode(ids.DEPLOYMENT, view.deployment_id),
                "pool": view.pool,
                "recipe": view.recipe,
                "accelerator": view.accelerator,
                "accelerators": view.accelerators,
                "replicas": view.replicas,
                "sku": view.sku,
            }
        ],
        "created_at": view.created_at.isoformat(),
    }


def release(view: ReleaseView, *, skus: Sequence[str]) -> dict[str, Any]:
    """A release of the catalogue, where it can run, and as which SKUs it is on sale."""
    return {
        "id": view.release.id,
        "repository": view.release.repo,
        "test_model": view.release.test,
        "licence": view.release.licence,
        "context_tokens": view.max_model_len,
        "pools": [
            {
                "name": pool.name,
                "region": pool.region,
                "accelerator": pool.accelerator,
                "capacity": pool.capacity,
                "free": pool.free,
            }
            for pool in view.pools
        ],
        "recipes": [
            {
                "id": recipe.id,
                "accelerators": list(recipe.accelerators),
                "accelerators_per_replica": recipe.cards,
                "context_tokens": recipe.max_model_len,
                "verified": recipe.verified,
            }
            for recipe in view.recipes
        ],
        "skus": list(skus),
        "reservable": {
            "min_tpm": view.offer.min_tpm,
            "total_tpm": view.offer.total_tpm,
            "free_tpm": view.offer.free_tpm,
        }
        if view.offer
        else None,
        "source": list(view.release.source),
    }


def price(sheet: Sheet) -> dict[str, Any]:
    """A sheet's body, whose SHA-256 is the `sheet` of every usage event that it priced."""
    return {"sheet": sheet.sha256().hex(), **sheet.body()}


def api_key(key: ApiKey) -> dict[str, Any]:
    """A key without its text."""
    return {
        "id": ids.encode(ids.KEY, key.id),
        "public_id": key.public_id,
        "name": key.name,
        "scopes": key.scopes,
        "models": key.allowed_models,
        "rpm": key.rpm,
        "concurrency": key.concurrency,
        "tpm_cached": key.tpm_cached,
        "tpm_uncached": key.tpm_uncached,
        "tpm_generated": key.tpm_generated,
        "spend_cap": money.to_string(key.spend_cap_pico),
        "user_cap": money.to_string(key.user_cap_pico),
        "created_at": key.created_at.isoformat(),
        "expires_at": key.expires_at.isoformat() if key.expires_at else None,
        "revoked_at": key.revoked_at.isoformat() if key.revoked_at else None,
    }


def balance(found: billing.Balance, scoped: Iterable[Credit]) -> dict[str, Any]:
    """Money as decimal strings of the tenant's currency; scoped credit is none of the sums, it lies beside them."""
    return {
        "currency": found.currency,
        "balance": money.to_string(found.posted_pico),
        "held": money.to_string(found.held_pico),
        "available": money.to_string(found.available_pico),
        "spent_this_month": money.to_string(found.spent_month_pico),
        "accruing": money.to_string(found.accruing_pico),
        "accounts": [
            {
                "kind": account.kind,
                "balance": money.to_string(account.posted_pico),
                "held": money.to_string(account.held_pico),
                "available": money.to_string(account.available_pico),
            }
            for account in found.accounts
        ],
        "credits": [
            {
                "scope": credit.scope,
                "value": credit.value,
                "currency": credit.account.currency,
                "given": money.to_string(int(credit.amount)),
                "balance": money.to_string(credit.account.posted),
                "expires_at": credit.expires_at.isoformat(),
            }
            for credit in scoped
        ],
    }


def usage_event(event: UsageEvent, currency: str) -> dict[str, Any]:
    """A usage event with its rated lines; `request_id` is what the gateway answered in x-request-id."""
    lines = list(event.lines.all())
    return {
        "event_id": str(event.event_id),
        "kind": event.kind,
        "request_id": str(event.subject_id) if event.kind == "tokens" else None,
        "endpoint_id": event.endpoint_id,
        "sku": event.sku,
        "region": event.region,
        "started_at": event.started_at.isoformat(),
        "ended_at": event.ended_at.isoformat(),
        "finish": event.finish,
        "provenance": event.provenance,
        "counts": event.counts,
        "amount": money.to_string(sum(line.amount for line in lines)),
        "currency": currency,
        "sheet": bytes(event.sheet_id).hex(),
        "lines": [
            {
                "meter": line.meter_id,
                "quantity": line.quantity,
                "num_pico": str(line.num_pico),
                "den": str(line.den),
                "amount": money.to_string(line.amount),
            }
            for line in lines
        ],
    }


def ledger_entry(entry: LedgerEntry) -> dict[str, Any]:
    """One leg of a transaction, credit-positive."""
    return {
        "transaction_id": str(entry.tx_id),
        "kind": entry.tx.kind,
        "account": entry.account.kind,
        "amount": money.to_string(entry.amount),
        "currency": entry.currency,
        "effective_at": entry.tx.effective_at.isoformat(),
        "recorded_at": entry.tx.recorded_at.isoformat(),
    }


def invoice(found: Invoice) -> dict[str, Any]:
    """An invoice with its lines; the total is in whole minor units, rounded once."""
    lines = list(found.lines.all())
    minor = money.MINOR_DIGITS[found.currency]
    return {
        "id": ids.encode(ids.INVOICE, found.id),
        "kind": found.kind,
        "status": found.status,
        "number": found.number,
        "issued_at": found.issued_at.isoformat() if found.issued_at else None,
        "corrects": ids.encode(ids.INVOICE, found.corrects_id) if found.corrects_id else None,
        "credit_notes": [ids.encode(ids.INVOICE, note.id) for note in found.credit_notes.order_by("number")],
        "currency": found.currency,
        "period_start": found.period.lower.isoformat(),
        "period_end": found.period.upper.isoformat(),
        "total": money.to_string(found.total_minor * 10 ** (12 - minor)),
        "lines": [
            {
                "line_no": line.line_no,
                "sku": line.sku,
                "meter": line.meter,
                "quantity": line.quantity,
                "amount": money.to_string(line.amount_pico),
                "num_pico": str(line.num_pico),
                "den": str(line.den),
                "billed": money.to_string(line.amount_minor * 10 ** (12 - minor)),
                "credits_line_no": line.credits_line_no,
            }
            for line in sorted(lines, key=lambda line: line.line_no)
        ],
    }
