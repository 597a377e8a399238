"""The only door to a tenant's invoices: absent and forbidden look the same."""

from uuid import UUID

from billing.models import Invoice
from kernel.problems import NOT_FOUND, Problem


def access_invoice(*, tenant_id: UUID, invoice_id: UUID) -> Invoice:
    """The tenant's invoice with its lines in `lines`. Problem NOT_FOUND otherwise."""
    invoice = Invoice.objects.filter(tenant_id=tenant_id, id=invoice_id).prefetch_related("lines").first()
    if invoice is None:
        raise Problem(NOT_FOUND, f"there is no invoice {invoice_id}")
    return invoice
