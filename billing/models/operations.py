"""Money that operators move: what one did alone, and what waits for a second one."""

from django.db import models
from django.db.models import F, Q

from billing.fields import ClockTimestamp, PicoField
from kernel.ids import new_id
from tenants.models import Tenant

WAITING, DONE, REFUSED, ALONE = "waiting", "done", "refused", "alone"


class Operation(models.Model):
    """One act as it was asked for: done alone, or waiting, where whoever asked may refuse it but never approve it."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="+")
    action = models.TextField()
    arguments = models.JSONField()
    amount = PicoField()
    currency = models.CharField(max_length=3)
    status = models.TextField(default=WAITING, db_default=WAITING)
    asked_by = models.TextField()
    asked_at = models.DateTimeField(db_default=ClockTimestamp())
    decided_by = models.TextField(default="", db_default="")
    decided_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "operation"
        constraints = (
            models.CheckConstraint(
                condition=Q(status=WAITING, decided_at=None)
                | Q(status__in=(DONE, REFUSED, ALONE), decided_at__isnull=False) & ~Q(decided_by=""),
                name="operation_decided",
            ),
            models.CheckConstraint(condition=~Q(status=DONE) | ~Q(decided_by=F("asked_by")), name="operation_two"),
            models.CheckConstraint(condition=~Q(status=ALONE) | Q(decided_by=F("asked_by")), name="operation_alone"),
        )
        indexes = (models.Index(fields=("asked_by", "asked_at"), name="operation_of_person"),)

    def __str__(self) -> str:
        return f"{self.action} {self.amount} {self.currency}: {self.status}"
