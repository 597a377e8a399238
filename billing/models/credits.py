"""Scoped credit: what it pays for, until when, and the account that it lies in."""

from django.db import models

from billing.fields import PicoField
from billing.models.ledger import LedgerAccount, LedgerTx
from kernel.ids import new_id
from tenants.models import Tenant


class Credit(models.Model):
    """Promotional money for one model, accelerator or pool; `amount` was given, `account.posted` is left of it."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="+")
    tx = models.OneToOneField(LedgerTx, models.PROTECT, related_name="+", db_constraint=False)
    account = models.OneToOneField(LedgerAccount, models.PROTECT, related_name="credit_of", db_constraint=False)
    scope = models.TextField()
    value = models.TextField()
    amount = PicoField()
    expires_at = models.DateTimeField()

    class Meta:
        db_table = "credit"
        constraints = (
            models.CheckConstraint(condition=models.Q(scope__in=("model", "accelerator", "pool")), name="credit_scope"),
        )

    def __str__(self) -> str:
        return f"{self.amount} for {self.scope} {self.value} until {self.expires_at}"
