"""What was used and at which price: meters, price sheets, usage events, rated lines, receipts, journals."""

from django.contrib.postgres.constraints import ExclusionConstraint
from django.contrib.postgres.fields import DateTimeRangeField, RangeOperators
from django.db import models
from django.db.models import F, Func, Q
from django.db.models.functions import Length

from billing.fields import ClockTimestamp, PicoField
from billing.models.ledger import LedgerTx
from kernel.ids import new_id
from tenants.models import Tenant

models.BinaryField.register_lookup(Length)


class Meter(models.Model):
    """A countable; `cumulative` ones are priced as round(after) - round(before)."""

    name = models.TextField(primary_key=True)
    unit = models.TextField()
    cumulative = models.BooleanField(default=False, db_default=False)

    class Meta:
        db_table = "meter"

    def __str__(self) -> str:
        return self.name


class PriceSheet(models.Model):
    """One immutable sheet, named by its hash. `body` None ends this owner's prices from there on."""

    sha256 = models.BinaryField(primary_key=True)
    sku = models.TextField()
    region = models.TextField()
    currency = models.CharField(max_length=3)
    tenant = models.ForeignKey(Tenant, models.PROTECT, null=True, related_name="+")
    effective_from = models.DateTimeField()
    published_at = models.DateTimeField(db_default=ClockTimestamp())
    body = models.JSONField(null=True)

    class Meta:
        db_table = "price_sheet"
        constraints = (
            models.UniqueConstraint(
                fields=("sku", "region", "currency", "tenant", "effective_from"),
                nulls_distinct=False,
                name="price_sheet_once",
            ),
            models.CheckConstraint(condition=Q(sha256__length=32), name="price_sheet_sha256"),
        )

    def __str__(self) -> str:
        return f"{self.sku} {self.region} {self.currency} from {self.effective_from}"


class CapacityReservation(models.Model):
    """A slot of accelerator capacity for one tenant; no second of a slot is sold twice."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="+")
    accelerator_slot = models.BigIntegerField()
    period = DateTimeRangeField()
    status = models.TextField(choices=[(word, word) for word in ("held", "active", "ended", "cancelled")])

    class Meta:
        db_table = "capacity_reservation"
        constraints = (
            models.CheckConstraint(
                condition=Q(status__in=("held", "active", "ended", "cancelled")), name="capacity_status"
            ),
            models.CheckConstraint(
                condition=Q(period__isempty=False) & Q(period__upper_inc=False), name="capacity_half_open"
            ),
            # A scalar beside a range needs no extension when it is written as a range of one.
            ExclusionConstraint(
                name="capacity_once",
                expressions=[
                    (
                        Func(
                            F("accelerator_slot"),
                            F("accelerator_slot"),
                            models.Value("[]"),
                            function="int8range",
                        ),
                        RangeOperators.OVERLAPS,
                    ),
                    ("period", RangeOperators.OVERLAPS),
                ],
                condition=Q(status__in=("held", "active")),
            ),
        )

    def __str__(self) -> str:
        return f"slot {self.accelerator_slot} {self.status}"


class UsageEvent(models.Model):
    """One immutable fact: a request's tokens, an hour of a pod, a day of reserved kTPM, a rebate on a month."""

    event_id = models.UUIDField(primary_key=True)
    source = models.TextField()
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="+", db_index=False)
    api_key_id = models.UUIDField(null=True)
    subject_id = models.UUIDField()
    attempt = models.SmallIntegerField(default=1, db_default=1)
    kind = models.TextField()
    sku = models.TextField()
    region = models.TextField()
    pod_uid = models.UUIDField(null=True)
    accelerator = models.TextField(null=True)  # noqa: DJ001  absent is not empty
    accelerator_count = models.IntegerField(null=True)
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField()
    received_at = models.DateTimeField(db_default=ClockTimestamp())
    counts = models.JSONField()
    engine_usage = models.JSONField(null=True)
    # A trigger proves that the sheet exists and is public or this tenant's own, which a key cannot say.
    sheet = models.ForeignKey(
        PriceSheet, models.PROTECT, db_column="sheet", related_name="+", db_constraint=False, db_index=False
    )
    quoted_pico = PicoField()
    provenance = models.TextField()
    finish = models.TextField()
    corrects = models.ForeignKey(
        "self",
        models.PROTECT,
        null=True,
        db_column="corrects",
        related_name="+",
        db_constraint=False,
        db_index=False,
    )
    payload_sha256 = models.BinaryField()
    gateway_id = models.TextField(null=True)  # noqa: DJ001
    boot_id = models.UUIDField(null=True)
    journal_seq = models.BigIntegerField(null=True)
    endpoint_id = models.TextField(default="", db_default="")
    deployment_id = models.TextField(default="", db_default="")
    purse = models.TextField(null=True)  # noqa: DJ001
    generation = models.IntegerField(null=True)
    waste = models.IntegerField(default=0, db_default=0)
    end_user = models.TextField(default="", db_default="")

    class Meta:
        db_table = "usage_event"
        constraints = (
            # Also the order in which a tenant's usage is listed: event ids sort by time.
            models.UniqueConstraint(fields=("tenant", "event_id"), name="usage_event_tenant_id"),
            models.UniqueConstraint(fields=("gateway_id", "boot_id", "journal_seq"), name="usage_event_journal"),
            models.UniqueConstraint(
                fields=("subject_id", "attempt"),
                condition=Q(kind="tokens") & ~Q(provenance="correction"),
                name="one_original_per_attempt",
            ),
            models.UniqueConstraint(
                fields=("subject_id", "kind", "started_at", "pod_uid"),
                condition=~Q(kind="tokens") & ~Q(provenance="correction"),
                nulls_distinct=False,
                name="one_slice",
            ),
            models.CheckConstraint(condition=Q(kind__in=("tokens", "accel", "reserved", "rebate")), name="usage_kind"),
            models.CheckConstraint(
                condition=Q(provenance__in=("engine_final", "engine_partial", "estimated", "correction")),
                name="usage_provenance",
            ),
            models.CheckConstraint(condition=Q(payload_sha256__length=32), name="usage_payload_sha256"),
            models.CheckConstraint(condition=Q(journal_seq=None) | Q(journal_seq__gt=0), name="usage_journal_seq"),
            models.CheckConstraint(
                condition=(Q(kind="tokens") & ~Q(provenance="correction") & Q(journal_seq__isnull=False))
                | ((~Q(kind="tokens") | Q(provenance="correction")) & Q(journal_seq=None)),
                name="usage_journalled",
            ),
            models.CheckConstraint(condition=Q(ended_at__gte=F("started_at")), name="usage_order"),
            models.CheckConstraint(
                condition=(Q(provenance="correction") & Q(corrects__isnull=False))
                | (~Q(provenance="correction") & Q(corrects=None)),
                name="usage_corrects",
            ),
        )
        indexes = (
            models.Index(fields=("pod_uid", "ended_at"), name="usage_event_pod"),
            # A tenant's month: what an invoice, a rebate, a cap and the usage page add up.
            models.Index(fields=("tenant", "started_at"), name="usage_event_month"),
            models.Index(fields=("corrects",), condition=Q(corrects__isnull=False), name="usage_event_corrects"),
        )

    def __str__(self) -> str:
        return f"{self.kind} {self.event_id}"


class RatedLine(models.Model):
    """quantity x num_pico / den = amount, of one event and meter; free lines have no transaction."""

    pk = models.CompositePrimaryKey("event_id", "meter_id")
    event = models.ForeignKey(UsageEvent, models.PROTECT, related_name="lines", db_index=False)
    meter = models.ForeignKey(Meter, models.PROTECT, db_column="meter", related_name="+", db_index=False)
    quantity = models.BigIntegerField()
    num_pico = PicoField()
    den = models.BigIntegerField()
    amount = PicoField()
    tx = models.ForeignKey(LedgerTx, models.PROTECT, null=True, related_name="+")

    class Meta:
        db_table = "rated_line"
        constraints = (
            models.CheckConstraint(
                condition=~Q(quantity=0) & Q(num_pico__gte=0) & Q(den__gt=0), name="rated_line_numbers"
            ),
            models.CheckConstraint(
                condition=(Q(amount=0) & Q(tx=None)) | (~Q(amount=0) & Q(tx__isnull=False)),
                name="rated_line_posted",
            ),
        )

    def __str__(self) -> str:
        return f"{self.meter_id} {self.quantity} = {self.amount}"


class ReceiptTree(models.Model):
    """The Merkle tree of a tenant's billing period; `size` counts its leaves."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="+")
    period_start = models.DateTimeField()
    size = models.BigIntegerField(default=0, db_default=0)

    class Meta:
        db_table = "receipt_tree"
        constraints = (models.UniqueConstraint(fields=("tenant", "period_start"), name="receipt_tree_once"),)

    def __str__(self) -> str:
        return f"{self.period_start:%Y-%m}: {self.size}"


class ReceiptLeaf(models.Model):
    """Canonical bytes of one rated event, or of a carry or funding statement (no event), and their hash."""

    pk = models.CompositePrimaryKey("tree_id", "idx")
    tree = models.ForeignKey(ReceiptTree, models.PROTECT, related_name="leaves", db_index=False)
    idx = models.BigIntegerField()
    event = models.OneToOneField(UsageEvent, models.PROTECT, null=True, related_name="leaf")
    body = models.BinaryField()
    hash = models.BinaryField()

    class Meta:
        db_table = "receipt_leaf"
        constraints = (models.CheckConstraint(condition=Q(idx__gte=0) & Q(hash__length=32), name="receipt_leaf_shape"),)

    def __str__(self) -> str:
        return f"leaf {self.idx}"


class GatewayJournal(models.Model):
    """How far one boot's journal is booked, and what its gateway last said of itself.

    `pulled_seq`: everything up to it has had its effect. `posted_low_at`: every request admitted before
    it is posted. `closed_seq` and `closed_at` are set once the boot writes no more.
    """

    pk = models.CompositePrimaryKey("gateway_id", "boot_id")
    gateway_id = models.TextField()
    boot_id = models.UUIDField()
    closed_seq = models.BigIntegerField(null=True)
    closed_at = models.DateTimeField(null=True)
    pulled_seq = models.BigIntegerField(default=0, db_default=0)
    posted_low_at = models.DateTimeField(null=True)
    run_id = models.TextField(default="", db_default="")
    seen_at = models.DateTimeField(db_default=ClockTimestamp())

    class Meta:
        db_table = "gateway_journal"
        constraints = (
            models.CheckConstraint(
                condition=(Q(closed_seq=None) & Q(closed_at=None))
                | (Q(closed_seq__isnull=False) & Q(closed_at__isnull=False)),
                name="gateway_journal_closed",
            ),
        )

    def __str__(self) -> str:
        return f"{self.gateway_id}/{self.boot_id}: {self.pulled_seq}"


class EngineCounterDelta(models.Model):
    """What an engine's own counters grew by in a window: the check beside the bill."""

    pk = models.CompositePrimaryKey("pod_uid", "meter", "period")
    pod_uid = models.UUIDField()
    meter = models.TextField()
    period = DateTimeRangeField()
    tokens = models.BigIntegerField()
    resets = models.IntegerField(default=0, db_default=0)

    class Meta:
        db_table = "engine_counter_delta"
        constraints = (models.CheckConstraint(condition=Q(tokens__gte=0), name="engine_counter_tokens"),)

    def __str__(self) -> str:
        return f"{self.pod_uid} {self.meter} {self.tokens}"


class EngineCounter(models.Model):
    """The open window of one pod's counter: its last value, and what it grew by since the last delta."""

    pk = models.CompositePrimaryKey("pod_uid", "meter")
    pod_uid = models.UUIDField()
    meter = models.TextField()
    since_at = models.DateTimeField()
    until_at = models.DateTimeField()
    value = models.BigIntegerField()
    tokens = models.BigIntegerField()
    resets = models.IntegerField()

    class Meta:
        db_table = "engine_counter"

    def __str__(self) -> str:
        return f"{self.pod_uid} {self.meter} {self.value}"


class Quarantine(models.Model):
    """What could not be booked, kept whole, with the reason; its journal number counts as delivered.

    `corrects` is the usage event that a correction waits for.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    tenant_id = models.UUIDField(null=True)
    event_id = models.UUIDField(null=True)
    reason = models.TextField()
    payload = models.TextField()  # JSON as text: what jsonb refuses must be kept too
    gateway_id = models.TextField(null=True)  # noqa: DJ001
    boot_id = models.UUIDField(null=True)
    journal_seq = models.BigIntegerField(null=True)
    corrects = models.UUIDField(null=True)
    at = models.DateTimeField(db_default=ClockTimestamp())

    class Meta:
        db_table = "quarantine"
        constraints = (
            models.UniqueConstraint(fields=("gateway_id", "boot_id", "journal_seq"), name="quarantine_journal"),
        )
        indexes = (models.Index(fields=("at",), condition=Q(corrects__isnull=False), name="quarantine_corrections"),)

    def __str__(self) -> str:
        return self.reason


class BillableSpan(models.Model):
    """One stretch of a pod's billable time, of inference's facts: from, proven until, ended at, rated until.

    A pod that stops answering ends its span and begins another: what lies between is not billed. `pool` is
    `region/name` of the one that it runs on.
    """

    pk = models.CompositePrimaryKey("pod_uid", "from_at")
    pod_uid = models.UUIDField()
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="+")
    deployment_id = models.UUIDField()
    endpoint_id = models.UUIDField()
    sku = models.TextField()
    region = models.TextField()
    pool = models.TextField(default="", db_default="")
    accelerator = models.TextField()
    accelerator_count = models.IntegerField()
    from_at = models.DateTimeField()
    proven_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    rated_until = models.DateTimeField(null=True)
    finished = models.BooleanField(default=False, db_default=False)

    class Meta:
        db_table = "billable_span"
        indexes = (models.Index(fields=("deployment_id",), condition=Q(finished=False), name="billable_span_running"),)

    def __str__(self) -> str:
        return f"{self.pod_uid} from {self.from_at}"


class ReservedSpan(models.Model):
    """Billing's copy of inference's facts of one reservation; the next charge of its days is due at `due_at`."""

    pk = models.CompositePrimaryKey("endpoint_id", "from_at")
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="+")
    endpoint_id = models.UUIDField()
    sku = models.TextField()
    region = models.TextField()
    pool = models.TextField(default="", db_default="")
    ktpm = models.BigIntegerField()
    from_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    due_at = models.DateTimeField()
    finished = models.BooleanField(default=False, db_default=False)

    class Meta:
        db_table = "reserved_span"
        constraints = (models.CheckConstraint(condition=Q(ktpm__gt=0), name="reserved_span_ktpm"),)
        indexes = (models.Index(fields=("tenant",), condition=Q(finished=False), name="reserved_span_running"),)

    def __str__(self) -> str:
        return f"{self.endpoint_id} {self.ktpm} kTPM from {self.from_at}"
