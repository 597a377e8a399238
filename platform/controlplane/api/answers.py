"""How the provisioning API spells objects: public ids, decimal strings, ISO instants in UTC."""

from typing import Any
from uuid import UUID

from inference.selectors import EndpointView, ReleaseView
from kernel import ids
from tenants.models import ApiKey


def endpoint_id(value: UUID) -> str:
    """`ep_…`, as clients put it in `model`."""
    return ids.encode(ids.ENDPOINT, value)


def endpoint(view: EndpointView) -> dict[str, Any]:
    """An endpoint with its phase, conditions and deployment."""
    return {
        "id": view.id,
        "name": view.name,
        "release": view.release,
        "rung": view.rung,
        "visibility": view.visibility,
        "region": view.region,
        "replicas": view.replicas,
        "serving": view.serving,
        "generation": view.generation,
        "observed_generation": view.observed_generation,
        "phase": str(view.phase),
        "reason": view.reason,
        "message": view.message,
        "paused": view.paused_at is not None,
        "conditions": list(view.conditions),
        "deployments": [
            {
                "id": ids.encode(ids.DEPLOYMENT, view.deployment_id),
                "pool": view.pool,
                "recipe": view.recipe,
                "accelerator": view.accelerator,
                "accelerators": view.accelerators,
                "replicas": view.replicas,
                "sku": view.sku,
            }
        ],
        "created_at": view.created_at.isoformat(),
    }


def release(view: ReleaseView) -> dict[str, Any]:
    """A release of the catalogue and where it can run."""
    return {
        "id": view.release.id,
        "repository": view.release.repo,
        "test_model": view.release.test,
        "licence": view.release.licence,
        "context_tokens": view.max_model_len,
        "pools": [
            {
                "name": pool.name,
                "region": pool.region,
                "accelerator": pool.accelerator,
                "capacity": pool.capacity,
                "free": pool.free,
            }
            for pool in view.pools
        ],
        "skus": sorted(view.skus.values()),
        "source": list(view.release.source),
    }


def api_key(key: ApiKey) -> dict[str, Any]:
    """A key without its text."""
    return {
        "id": ids.encode(ids.KEY, key.id),
        "public_id": key.public_id,
        "name": key.name,
        "scopes": key.scopes,
        "models": key.allowed_models,
        "rpm": key.rpm,
        "concurrency": key.concurrency,
        "created_at": key.created_at.isoformat(),
        "expires_at": key.expires_at.isoformat() if key.expires_at else None,
        "revoked_at": key.revoked_at.isoformat() if key.revoked_at else None,
    }
