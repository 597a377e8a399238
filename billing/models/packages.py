"""Token packages that tenants bought."""

from django.db import models

from billing.fields import PicoField
from kernel.ids import new_id
from tenants.models import Tenant


class TokenPackage(models.Model):
    """So many tokens of one SKU, paid at once; use in [from_at, until_at) takes from it, and its cost is rebated."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="+")
    idem_key = models.TextField()
    sku = models.TextField()
    region = models.TextField()
    currency = models.CharField(max_length=3)
    name = models.TextField()
    tokens = models.BigIntegerField()
    price = PicoField()
    from_at = models.DateTimeField()
    until_at = models.DateTimeField()

    class Meta:
        db_table = "token_package"
        constraints = (models.UniqueConstraint(fields=("tenant", "idem_key"), name="token_package_once"),)

    def __str__(self) -> str:
        return f"{self.name} of {self.sku} until {self.until_at}"
