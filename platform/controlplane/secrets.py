"""Every secret is derived from one: HMAC-SHA-256 of a purpose under MOORAGE_SECRET_KEY."""

import hashlib
import hmac


def derive(secret: str, purpose: str) -> str:
    """64 hex characters for this purpose; another purpose reveals nothing about it."""
    return hmac.new(secret.encode(), purpose.encode(), hashlib.sha256).hexdigest()


def role_password(secret: str, role: str) -> str:
    """Password of the PostgreSQL role `moorage_<role>`."""
    return derive(secret, f"postgres:{role}")


def internal_token(secret: str) -> str:
    """Bearer of the gateway's internal listener."""
    return derive(secret, "internal-token")


def key_pepper(secret: str) -> str:
    """Pepper of the API key digests, hex."""
    return derive(secret, "api-key-pepper")


def kubeconfig_key(secret: str) -> str:
    """Key under which the clusters' kubeconfigs are sealed, hex."""
    return derive(secret, "kubeconfig")
