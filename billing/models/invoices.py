"""Invoices: a draft grows by rated lines, an issued one never changes."""

from django.contrib.postgres.fields import DateTimeRangeField
from django.db import models
from django.db.models import F, Func, Q

from billing.fields import PicoField
from kernel.ids import new_id
from tenants.models import Tenant

DRAFT, ISSUED, PAID, VOID = "draft", "issued", "paid", "void"


class Invoice(models.Model):
    """A tenant's bill of one currency and UTC month, or a credit note that corrects one."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="+")
    kind = models.TextField(choices=[("regular", "regular"), ("credit_note", "credit note")])
    number = models.TextField(unique=True, null=True)  # noqa: DJ001  a draft has none
    currency = models.CharField(max_length=3)
    period = DateTimeRangeField()
    status = models.TextField(choices=[(word, word) for word in (DRAFT, ISSUED, PAID, VOID)])
    issued_at = models.DateTimeField(null=True)
    total_minor = models.BigIntegerField()
    lines_sha256 = models.BinaryField(null=True)
    corrects = models.ForeignKey(
        "self", models.PROTECT, null=True, db_column="corrects", related_name="credit_notes", db_constraint=False
    )

    class Meta:
        db_table = "invoice"
        constraints = (
            models.UniqueConstraint(fields=("tenant", "id"), name="invoice_tenant_id"),
            models.UniqueConstraint(
                F("tenant"),
                F("currency"),
                Func(F("period"), function="lower"),
                condition=Q(kind="regular") & ~Q(status=VOID),
                name="one_regular_invoice",
            ),
            models.CheckConstraint(
                condition=Q(kind__in=("regular", "credit_note")) & Q(status__in=(DRAFT, ISSUED, PAID, VOID)),
                name="invoice_words",
            ),
            models.CheckConstraint(
                condition=(Q(status=DRAFT) & Q(issued_at=None)) | (~Q(status=DRAFT) & Q(issued_at__isnull=False)),
                name="invoice_issued_at",
            ),
            models.CheckConstraint(
                condition=Q(status=DRAFT) | (Q(number__isnull=False) & Q(lines_sha256__isnull=False)),
                name="invoice_numbered",
            ),
            models.CheckConstraint(
                condition=(Q(kind="credit_note") & Q(corrects__isnull=False)) | (Q(kind="regular") & Q(corrects=None)),
                name="invoice_corrects",
            ),
        )

    def __str__(self) -> str:
        return self.number or f"draft {self.currency}"


class InvoiceLine(models.Model):
    """Everything of one SKU, meter and price on an invoice."""

    pk = models.CompositePrimaryKey("invoice_id", "line_no")
    invoice = models.ForeignKey(Invoice, models.PROTECT, related_name="lines", db_index=False)
    line_no = models.IntegerField()
    sku = models.TextField()
    meter = models.TextField()
    quantity = models.BigIntegerField()
    amount_pico = PicoField()
    amount_minor = models.BigIntegerField()
    credits_line_no = models.IntegerField(null=True)
    num_pico = PicoField(default=0, db_default=0)
    den = models.BigIntegerField(default=1, db_default=1)

    class Meta:
        db_table = "invoice_line"

    def __str__(self) -> str:
        return f"{self.sku} {self.meter} {self.quantity}"


class RatedLineInvoice(models.Model):
    """Which invoice line bills a rated line: each at most once, for ever."""

    pk = models.CompositePrimaryKey("event_id", "meter")
    event_id = models.UUIDField()
    meter = models.TextField()
    invoice_id = models.UUIDField()
    line_no = models.IntegerField()

    class Meta:
        db_table = "rated_line_invoice"
        indexes = (models.Index(fields=("invoice_id", "line_no"), name="rated_line_invoice_line"),)

    def __str__(self) -> str:
        return f"{self.event_id} {self.meter}"


class InvoiceCounter(models.Model):
    """The last number of a series; its row lock makes numbers gap-free."""

    series = models.TextField(primary_key=True)
    last = models.BigIntegerField()

    class Meta:
        db_table = "invoice_counter"

    def __str__(self) -> str:
        return f"{self.series}{self.last}"
