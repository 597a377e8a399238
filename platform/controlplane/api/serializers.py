"""Input of the provisioning API: shapes and limits; meaning is checked by the services."""

from typing import Any

from rest_framework import serializers

from inference.core.words import Rung
from tenants.models import Scope


class _Body(serializers.Serializer[dict[str, object]]):
    """A field that the call does not have is refused: dropped, it would look as if it had been obeyed."""

    def to_internal_value(self, data: Any) -> Any:
        """As everywhere. ValidationError for the first field that is not ours."""
        strange = next((name for name in data if name not in self.fields), None) if isinstance(data, dict) else None
        if strange is not None:
            known = ", ".join(self.fields)
            raise serializers.ValidationError({str(strange)[:40]: [f"is no field of this call; it has {known}"]})
        return super().to_internal_value(data)


class EndpointCreateIn(_Body):
    """`region` defaults to this installation's. `tpm` is for rung reserved: tokens a minute to keep."""

    name = serializers.CharField(max_length=200)
    release = serializers.CharField(max_length=200)
    rung = serializers.CharField(max_length=20, default=Rung.DEDICATED.value)
    region = serializers.CharField(max_length=64, required=False)
    accelerator = serializers.CharField(max_length=64, required=False, allow_null=True, default=None)
    replicas = serializers.IntegerField(default=1)
    tpm = serializers.IntegerField(default=0, min_value=0)


class EndpointScaleIn(_Body):
    """One of the two: `tpm` of a reservation, `replicas` of any other endpoint."""

    replicas = serializers.IntegerField(required=False)
    tpm = serializers.IntegerField(required=False, min_value=0)

    def validate(self, attrs: dict[str, object]) -> dict[str, object]:
        """The field that was sent. ValidationError for none and for both."""
        if len(attrs) != 1:
            raise serializers.ValidationError({"replicas": ["send replicas, or tpm for a reservation"]})
        return attrs


class EndpointUpdateIn(_Body):
    """A recipe of the endpoint's release, as GET /releases lists them."""

    recipe = serializers.CharField(max_length=64)


class ApiKeyCreateIn(_Body):
    """`models` limits a key to endpoint ids; null allows every endpoint of the tenant."""

    name = serializers.CharField(max_length=200)
    scopes = serializers.ListField(child=serializers.ChoiceField(Scope.choices), required=False)
    models = serializers.ListField(
        child=serializers.CharField(max_length=64),
        required=False,
        allow_null=True,
        default=None,
        max_length=100,
    )
    rpm = serializers.IntegerField(default=600)
    concurrency = serializers.IntegerField(default=64)
    expires_at = serializers.DateTimeField(required=False, allow_null=True, default=None)


class ApiKeyLimitIn(_Body):
    """Limits to change: per minute, at a time, and caps a month as decimal strings of the tenant's currency."""

    rpm = serializers.IntegerField(required=False)
    concurrency = serializers.IntegerField(required=False)
    tpm_cached = serializers.IntegerField(required=False)
    tpm_uncached = serializers.IntegerField(required=False)
    tpm_generated = serializers.IntegerField(required=False)
    spend_cap = serializers.CharField(max_length=40, required=False)
    user_cap = serializers.CharField(max_length=40, required=False)


class Revocation(serializers.Serializer[dict[str, object]]):
    """`cut` also ends the answers that run under the key."""

    cut = serializers.BooleanField(default=False)


class EndpointCapIn(_Body):
    """The most to spend at the endpoint in a month, a decimal string; "0" is no cap."""

    cap = serializers.CharField(max_length=40)


class Page(serializers.Serializer[dict[str, object]]):
    """How many rows, newest first."""

    limit = serializers.IntegerField(default=50, min_value=1, max_value=500)
    endpoint_id = serializers.CharField(max_length=40, required=False, default="")


class UsageMonth(serializers.Serializer[dict[str, object]]):
    """Which month (`YYYY-MM`, UTC; this one where absent), endpoint and key (its public id)."""

    month = serializers.CharField(max_length=7, required=False, default="")
    endpoint_id = serializers.CharField(max_length=40, required=False, default="")
    key = serializers.CharField(max_length=12, required=False, default="")
