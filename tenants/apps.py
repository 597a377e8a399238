"""Who: tenants, members, roles, keys, quotas, audit."""

from django.apps import AppConfig


class TenantsConfig(AppConfig):
    name = "tenants"

    def ready(self) -> None:
        from tenants import checks  # noqa: F401  registers the system check
