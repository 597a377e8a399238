"""Tables of the tenants room. Every table with a tenant is protected by row level security."""

from django.conf import settings
from django.db import models

from kernel.ids import new_id


class TenantKind(models.TextChoices):
    CUSTOMER = "customer"
    OPERATOR = "operator"


class Standing(models.TextChoices):
    """Written by billing, read by inference and the projection: a one-way mailbox."""

    ACTIVE = "active"
    SUSPENDED = "suspended"


class Role(models.TextChoices):
    OWNER = "owner"
    DEVELOPER = "developer"
    FINANCE = "finance"
    VIEWER = "viewer"


class Tenant(models.Model):
    """A paying organisation. `operator` runs the shared endpoints."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    name = models.TextField()
    kind = models.TextField(choices=TenantKind.choices, default=TenantKind.CUSTOMER)
    standing = models.TextField(choices=Standing.choices, default=Standing.ACTIVE)
    currency = models.CharField(max_length=3)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        db_table = "tenant"
        constraints = (
            models.CheckConstraint(
                condition=models.Q(kind__in=TenantKind.values) & models.Q(standing__in=Standing.values),
                name="tenant_words",
            ),
        )

    def __str__(self) -> str:
        return self.name


class Membership(models.Model):
    """A person in a tenant, with one role."""

    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="memberships")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="memberships")
    role = models.TextField(choices=Role.choices)

    class Meta:
        db_table = "membership"
        constraints = (
            models.UniqueConstraint(fields=("tenant", "user"), name="membership_once"),
            models.CheckConstraint(condition=models.Q(role__in=Role.values), name="membership_role"),
        )

    def __str__(self) -> str:
        return f"{self.user} is {self.role} of {self.tenant}"


class Invitation(models.Model):
    """A role that waits for a person. Only the digest of its link is stored; an accepted one is gone."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="invitations")
    role = models.TextField(choices=Role.choices)
    note = models.TextField()
    digest = models.BinaryField(max_length=32, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()

    class Meta:
        db_table = "invitation"
        constraints = (models.CheckConstraint(condition=models.Q(role__in=Role.values), name="invitation_role"),)

    def __str__(self) -> str:
        return f"{self.note} as {self.role}"


class SignInCount(models.Model):
    """Failed sign-ins of a subject (an account or an address) in the window that began at `since`."""

    subject = models.TextField(primary_key=True)
    since = models.DateTimeField()
    failures = models.PositiveIntegerField()

    class Meta:
        db_table = "sign_in_count"

    def __str__(self) -> str:
        return f"{self.subject}: {self.failures}"


class Scope(models.TextChoices):
    INFERENCE = "inference"
    MANAGE = "manage"
    BILLING = "billing"


class ApiKey(models.Model):
    """A tenant's key. Only its digest is stored; `version` grows with every change of the record.

    `tpm_…` are tokens per minute, `…_cap_pico` pico-units of the tenant's currency per calendar month; 0 is no limit.
    `rotated_from` is the id of the key that this one succeeds.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="api_keys")
    public_id = models.CharField(max_length=12, unique=True)
    secret_hmac = models.BinaryField(max_length=32, unique=True)
    pepper_id = models.TextField(default="1")
    name = models.TextField()
    scopes = models.JSONField()
    allowed_models = models.JSONField(null=True, db_column="models")
    rpm = models.PositiveIntegerField(default=600)
    concurrency = models.PositiveIntegerField(default=64)
    tpm_cached = models.PositiveIntegerField(default=0)
    tpm_uncached = models.PositiveIntegerField(default=0)
    tpm_generated = models.PositiveIntegerField(default=0)
    spend_cap_pico = models.PositiveBigIntegerField(default=0)
    user_cap_pico = models.PositiveBigIntegerField(default=0)
    version = models.PositiveIntegerField(default=1)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)
    rotated_from = models.UUIDField(null=True)

    class Meta:
        db_table = "api_key"
        constraints = (models.UniqueConstraint(fields=("tenant", "id"), name="api_key_tenant_id"),)

    def __str__(self) -> str:
        return f"{self.name} ({self.public_id})"


class EndpointCap(models.Model):
    """The most that a tenant spends at one endpoint in a calendar month, in pico-units of its currency."""

    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="endpoint_caps")
    endpoint_id = models.TextField()
    cap_pico = models.PositiveBigIntegerField()

    class Meta:
        db_table = "endpoint_cap"
        constraints = (models.UniqueConstraint(fields=("tenant", "endpoint_id"), name="endpoint_cap_once"),)

    def __str__(self) -> str:
        return f"{self.endpoint_id} <= {self.cap_pico}"


class Quota(models.Model):
    """How much a tenant may hold at once; `resource` is 'endpoints' or 'accelerators'."""

    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="quotas")
    resource = models.TextField()
    limit = models.PositiveIntegerField()

    class Meta:
        db_table = "quota"
        constraints = (models.UniqueConstraint(fields=("tenant", "resource"), name="quota_once"),)

    def __str__(self) -> str:
        return f"{self.resource} <= {self.limit}"


class Outbox(models.Model):
    """Facts on their way from one room to another; written in the transaction that made them true."""

    id = models.BigAutoField(primary_key=True)
    topic = models.TextField()
    dedupe_key = models.TextField(unique=True)
    payload = models.JSONField()
    created_at = models.DateTimeField(auto_now_add=True)
    published_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "outbox"
        indexes = (
            models.Index(
                fields=("topic", "id"),
                condition=models.Q(published_at__isnull=True),
                name="outbox_unpublished",
            ),
        )

    def __str__(self) -> str:
        return f"{self.topic} {self.dedupe_key}"


class Idempotency(models.Model):
    """What an Idempotency-Key answered, scoped by tenant and principal."""

    pk = models.CompositePrimaryKey("tenant_id", "principal", "key")
    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="+")
    principal = models.TextField()
    key = models.TextField()
    route = models.TextField()
    fingerprint = models.BinaryField()
    status = models.SmallIntegerField(null=True)
    body = models.JSONField(null=True)
    locked_until = models.DateTimeField(null=True)
    expires_at = models.DateTimeField()

    class Meta:
        db_table = "idempotency"

    def __str__(self) -> str:
        return self.key


class AuditLog(models.Model):
    """Who did what; each row carries the hash of the one before it."""

    seq = models.BigIntegerField(primary_key=True)
    at = models.DateTimeField()
    actor = models.TextField()
    tenant_id = models.UUIDField(null=True)
    action = models.TextField()
    detail = models.JSONField()
    prev_hash = models.BinaryField(null=True)
    hash = models.BinaryField()

    class Meta:
        db_table = "audit_log"

    def __str__(self) -> str:
        return f"{self.seq} {self.action}"
