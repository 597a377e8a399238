"""Tables of the inference room: pools, and per tenant endpoints, deployments, replicas and what was seen.

Services write intent (`spec`, `generation`, `paused_at`, `deletion_requested_at`), the reconciler writes
status (the migration's column grants keep them apart), watcher and sweep write `Observed` and `Replica`.
"""

from django.db import models

from inference.core.words import ReplicaState, Rung, Visibility, choices, words
from kernel.ids import new_id
from tenants.models import Tenant


class Pool(models.Model):
    """Nodes of one accelerator in one region, and how its cluster names what an engine needs.

    `capacity` and `reserved` count accelerators, `nodes` those of each node by its name. `engine_images` maps a
    recipe's image repository to {"image", "version"}. `resource_name` and `runtime_class` are "" where there is none.
    `releases` are those whose weights lie under `weights_root`; null means any, fetched by the node. `weights_volume`
    is a volume source, null where the root is on the node itself. `cluster` is "" once its cluster was removed.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    region = models.TextField()
    name = models.TextField()
    cluster = models.TextField()
    accelerator = models.TextField()
    resource_name = models.TextField(default="")
    capacity = models.PositiveIntegerField()
    reserved = models.PositiveIntegerField(default=0)
    nodes = models.JSONField(default=dict)
    runtime_class = models.TextField(default="")
    node_selector = models.JSONField(default=dict)
    tolerations = models.JSONField(default=list)
    arch = models.TextField()
    engine_images = models.JSONField()
    weights_root = models.TextField()
    weights_volume = models.JSONField(null=True)
    releases = models.JSONField(null=True)

    class Meta:
        db_table = "pool"
        constraints = (models.UniqueConstraint(fields=("region", "name"), name="pool_name_once"),)

    def __str__(self) -> str:
        return f"{self.region}/{self.name}"


class ClusterAccess(models.Model):
    """How to reach a region's Kubernetes: a kubeconfig of one context, sealed under the installation's secret.

    `identity` is the cluster's own, whatever it is called here; "" until it was asked for.
    """

    name = models.TextField(primary_key=True)
    region = models.TextField(unique=True)
    sealed = models.BinaryField()
    identity = models.TextField(default="")

    class Meta:
        db_table = "cluster_access"
        constraints = (
            models.UniqueConstraint(
                fields=("identity",), condition=~models.Q(identity=""), name="cluster_access_identity_once"
            ),
        )

    def __str__(self) -> str:
        return f"{self.name} of {self.region}"


class ClusterListing(models.Model):
    """When a cluster was last listed whole: the last proof of life of everything that was in it.

    No sweep lists it before `rests_until`. `silent_at` is since when it keeps whoever asks waiting, null while it
    answers.
    """

    cluster = models.TextField(primary_key=True)
    listed_at = models.DateTimeField(null=True)
    rests_until = models.DateTimeField(null=True)
    silent_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "cluster_listing"

    def __str__(self) -> str:
        return f"{self.cluster} at {self.listed_at:%FT%TZ}" if self.listed_at else self.cluster


class Endpoint(models.Model):
    """A stable id that clients put in `model`. A generation counts the changes of intent."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="+")
    name = models.TextField()
    release = models.TextField()
    rung = models.TextField(choices=choices(Rung))
    visibility = models.TextField(choices=choices(Visibility), default=Visibility.PRIVATE.value)
    region = models.TextField()
    spec = models.JSONField()
    generation = models.PositiveIntegerField(default=1)
    paused_at = models.DateTimeField(null=True)
    deletion_requested_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)
    observed_generation = models.PositiveIntegerField(default=0)
    conditions = models.JSONField(default=list)
    serving = models.PositiveIntegerField(default=0)
    suspended = models.BooleanField(default=False)
    routed = models.TextField(default="")
    finalizers = models.JSONField(default=list)
    archived_at = models.DateTimeField(null=True)
    lock_token = models.UUIDField(null=True)
    lock_until = models.DateTimeField(null=True)
    due_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "endpoint"
        constraints = (
            models.UniqueConstraint(fields=("tenant", "id"), name="endpoint_tenant_id"),
            models.UniqueConstraint(
                fields=("tenant", "name"),
                condition=models.Q(archived_at__isnull=True),
                name="endpoint_name_once",
            ),
            models.CheckConstraint(
                condition=models.Q(rung__in=words(Rung)) & models.Q(visibility__in=words(Visibility)),
                name="endpoint_words",
            ),
            models.CheckConstraint(
                condition=models.Q(visibility=Visibility.PRIVATE.value) | models.Q(rung=Rung.SHARED.value),
                name="endpoint_only_shared_is_public",
            ),
        )
        indexes = (
            models.Index(fields=("due_at",), condition=models.Q(archived_at__isnull=True), name="endpoint_live_due"),
        )

    def __str__(self) -> str:
        return self.name


class Deployment(models.Model):
    """One recipe on one pool behind an endpoint. `accelerators` is what one replica takes.

    `applied` names the manifests that the cluster last accepted, `owned` which fields it then called ours, `fault`
    why it refused the newest.
    `decided_at` is the `observed_at` of the facts that the last pass acted on.

    A reservation's has no engines: its requests are served by `carrier`, a shared one, of whose tokens a
    minute it keeps `tpm`. `metered_ktpm` is what billing was last told of it, `metered_at` since when.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="+")
    endpoint = models.ForeignKey(Endpoint, models.CASCADE, related_name="deployments")
    pool = models.ForeignKey(Pool, models.PROTECT, related_name="deployments")
    recipe = models.TextField()
    replicas = models.PositiveIntegerField()
    accelerators = models.PositiveIntegerField()
    weight = models.PositiveIntegerField(default=100)
    sku = models.TextField()
    reserved = models.PositiveIntegerField(default=0)
    held = models.BooleanField(default=False)
    applied = models.TextField(default="")
    owned = models.TextField(default="")
    applied_at = models.DateTimeField(null=True)
    fault = models.JSONField(null=True)
    decided_at = models.DateTimeField(null=True)
    # The one link across tenants: a trigger, and no plain constraint, lets it lead to public engines alone.
    carrier = models.ForeignKey("self", models.PROTECT, related_name="riders", null=True, db_constraint=False)
    tpm = models.PositiveIntegerField(default=0)
    metered_ktpm = models.PositiveIntegerField(default=0)
    metered_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "deployment"
        constraints = (
            models.UniqueConstraint(fields=("tenant", "id"), name="deployment_tenant_id"),
            models.CheckConstraint(
                condition=models.Q(carrier__isnull=True, tpm=0) | models.Q(carrier__isnull=False, tpm__gt=0),
                name="deployment_rides_for_tpm",
            ),
        )

    def __str__(self) -> str:
        return f"{self.recipe} on {self.pool_id}"


class Replica(models.Model):
    """One pod of a deployment, from first sight to its end.

    `serving_at` is when it last proved itself by a token, null until it does (again); `alive_at` its last
    proof of life.
    """

    pod_uid = models.UUIDField(primary_key=True, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="+")
    deployment = models.ForeignKey(Deployment, models.CASCADE, related_name="replica_rows")
    state = models.TextField(choices=choices(ReplicaState), default=ReplicaState.PROVING.value)
    seen_at = models.DateTimeField(auto_now_add=True)
    serving_at = models.DateTimeField(null=True)
    alive_at = models.DateTimeField(null=True)
    gone_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "replica"
        constraints = (models.CheckConstraint(condition=models.Q(state__in=words(ReplicaState)), name="replica_words"),)

    def __str__(self) -> str:
        return f"{self.pod_uid} {self.state}"


class Observed(models.Model):
    """What the cluster said last of a deployment; `facts` null means that it holds nothing of it."""

    deployment = models.OneToOneField(Deployment, models.CASCADE, primary_key=True, related_name="observed")
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="+")
    observed_at = models.DateTimeField()
    facts = models.JSONField(null=True)

    class Meta:
        db_table = "observed"

    def __str__(self) -> str:
        return f"{self.deployment_id} at {self.observed_at:%FT%TZ}"
