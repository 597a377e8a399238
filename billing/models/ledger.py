"""Double entry: accounts, transactions, entries, and holds with their numbered moves."""

from django.db import models
from django.db.models import F, Q

from billing.fields import ClockTimestamp, PicoField
from kernel import wire
from kernel.ids import new_id
from tenants.models import Tenant


class AccountKind(models.TextChoices):
    PREPAID = "prepaid"
    PROMO = "promo"
    RECEIVABLE = "receivable"
    REVENUE = "revenue"
    CASH = "cash"
    TAX = "tax"
    ROUNDING = "rounding"
    WRITEOFF = "writeoff"
    SUSPENSE = "suspense"
    OVERRUN = "overrun"


# What pays for usage, in this order: promotional credit first, then own money, then agreed credit.
SPENDING = (AccountKind.PROMO, AccountKind.PREPAID, AccountKind.RECEIVABLE)
# The source of a transaction that a provider's payment made; its id is `currency:payment`.
PAYMENT = "payment"


class LedgerAccount(models.Model):
    """`posted` and `held` are moved by triggers alone; available = posted - held >= min_available."""

    id = models.BigAutoField(primary_key=True)
    tenant = models.ForeignKey(Tenant, models.PROTECT, null=True, related_name="+")
    currency = models.CharField(max_length=3)
    kind = models.TextField(choices=AccountKind.choices)
    # Scoped credit lies in accounts of its own, one per credit.
    purse = models.TextField(default=wire.GENERAL, db_default=wire.GENERAL)
    posted = PicoField(default=0, db_default=0)
    held = PicoField(default=0, db_default=0)
    min_available = PicoField(null=True)  # type: ignore[misc]  # one field class for both

    class Meta:
        db_table = "ledger_account"
        constraints = (
            models.UniqueConstraint(
                fields=("tenant", "currency", "kind", "purse"), nulls_distinct=False, name="ledger_account_once"
            ),
            models.UniqueConstraint(fields=("id", "currency"), name="ledger_account_currency"),
            models.CheckConstraint(condition=Q(kind__in=AccountKind.values), name="ledger_account_kind"),
            models.CheckConstraint(condition=Q(held__gte=0), name="ledger_account_held"),
            models.CheckConstraint(
                condition=Q(min_available=None) | Q(posted__gte=F("min_available") + F("held")),
                name="ledger_account_floor",
            ),
        )

    def __str__(self) -> str:
        return f"{self.kind} {self.currency} {self.posted}"

    @property
    def available(self) -> int:
        """What may still leave the account, pico-units; an account without a floor has none to give."""
        return 0 if self.min_available is None else self.posted - self.held - self.min_available


class LedgerTx(models.Model):
    """A transaction: two or more entries that sum to zero. `db_xid` (SQL) ties entries to its own commit."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, null=True, related_name="+")
    kind = models.TextField()
    idem_key = models.TextField(unique=True)
    source_type = models.TextField()
    source_id = models.TextField()
    effective_at = models.DateTimeField()
    recorded_at = models.DateTimeField(db_default=ClockTimestamp())
    reverses = models.OneToOneField("self", models.PROTECT, null=True, related_name="reversed_by", db_constraint=False)

    class Meta:
        db_table = "ledger_tx"
        constraints = (
            models.UniqueConstraint(fields=("tenant", "id"), name="ledger_tx_tenant_id"),
            models.CheckConstraint(condition=Q(reverses=None) | ~Q(reverses=F("id")), name="ledger_tx_not_itself"),
            models.UniqueConstraint(
                fields=("source_id",), condition=Q(source_type=PAYMENT), name="ledger_tx_payment_once"
            ),
        )
        indexes = (
            models.Index(fields=("tenant", "recorded_at"), name="ledger_tx_recent"),
            # What corrections gave back of one usage transaction.
            models.Index(fields=("source_id",), condition=Q(kind="correction"), name="ledger_tx_correction"),
        )

    def __str__(self) -> str:
        return f"{self.kind} {self.idem_key}"


class LedgerEntry(models.Model):
    """One side of a transaction; credit is positive."""

    pk = models.CompositePrimaryKey("tx_id", "seq")
    tx = models.ForeignKey(LedgerTx, models.PROTECT, related_name="entries")
    seq = models.SmallIntegerField()
    account = models.ForeignKey(
        LedgerAccount, models.PROTECT, related_name="entries", db_constraint=False, db_index=True
    )
    currency = models.CharField(max_length=3)
    amount = PicoField()

    class Meta:
        db_table = "ledger_entry"
        constraints = (models.CheckConstraint(condition=~Q(amount=0), name="ledger_entry_amount"),)

    def __str__(self) -> str:
        return f"{self.tx_id}/{self.seq} {self.amount}"


class Hold(models.Model):
    """Money set aside for 'gateway:<purse>:<region>' or 'deployment:<id>'; `open` is the sum of its moves."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    account = models.ForeignKey(LedgerAccount, models.PROTECT, related_name="holds")
    subject = models.TextField()
    generation = models.IntegerField()
    open = PicoField(default=0, db_default=0)
    opened_at = models.DateTimeField(db_default=ClockTimestamp())
    sealed_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "hold"
        constraints = (
            models.CheckConstraint(condition=Q(open__gte=0), name="hold_open"),
            models.UniqueConstraint(fields=("account", "subject"), condition=Q(sealed_at=None), name="one_live_hold"),
        )
        indexes = (models.Index(fields=("subject", "generation"), name="hold_subject"),)

    def __str__(self) -> str:
        return f"{self.subject} generation {self.generation}: {self.open}"


class MoveKind(models.TextChoices):
    PLACE = "place"
    DRAW = "draw"
    RETURN = "return"


class HoldMove(models.Model):
    """`transfer` numbers places and returns per hold subject and generation; a draw names its transaction."""

    pk = models.CompositePrimaryKey("hold_id", "seq")
    hold = models.ForeignKey(Hold, models.PROTECT, related_name="moves")
    seq = models.IntegerField()
    kind = models.TextField(choices=MoveKind.choices)
    amount = PicoField()
    tx = models.ForeignKey(LedgerTx, models.PROTECT, null=True, related_name="moves")
    transfer = models.IntegerField(null=True)
    at = models.DateTimeField(db_default=ClockTimestamp())

    class Meta:
        db_table = "hold_move"
        constraints = (
            models.UniqueConstraint(fields=("hold", "transfer"), name="hold_move_transfer"),
            models.CheckConstraint(condition=Q(kind__in=MoveKind.values), name="hold_move_kind"),
            models.CheckConstraint(condition=Q(seq__gt=0) & Q(amount__gt=0), name="hold_move_positive"),
            models.CheckConstraint(
                condition=(Q(kind="draw") & Q(tx__isnull=False) & Q(transfer=None))
                | (~Q(kind="draw") & Q(tx=None) & Q(transfer__isnull=False)),
                name="hold_move_source",
            ),
        )

    def __str__(self) -> str:
        return f"{self.kind} {self.amount}"


class Shortfall(models.Model):
    """The most that a deployment's time ahead has lacked since `since_at`, and whether that suspended its tenant."""

    deployment_id = models.UUIDField(primary_key=True)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="+")
    missing_pico = PicoField()
    since_at = models.DateTimeField()
    recorded_at = models.DateTimeField(db_default=ClockTimestamp())
    suspended = models.BooleanField(default=False, db_default=False)

    class Meta:
        db_table = "shortfall"
        constraints = (models.CheckConstraint(condition=Q(missing_pico__gt=0), name="shortfall_missing"),)

    def __str__(self) -> str:
        return f"{self.deployment_id} lacks {self.missing_pico} since {self.since_at}"
