"""Who calls: a Bearer key, looked up by its public id, compared in constant time."""

from inference.gateway.projection import Projection
from inference.gateway.reader import Request
from kernel import keys, wire
from kernel.problems import INVALID_API_KEY, Problem

MESSAGES = "/v1/messages"
MODELS = "/v1/models"
_NO_DIGEST = bytes(32)


def is_anthropics(request: Request) -> bool:
    """Whether the caller speaks Anthropic's API: its own paths, and the list of models where its header says so."""
    return request.path.startswith(MESSAGES) or (request.path == MODELS and "anthropic-version" in request.headers)


def presented(request: Request) -> keys.ParsedKey:
    """The well-formed key of a request. Problem where there is none, or where a URL exposes one."""
    if "moorage_live_" in request.query or "moorage_test_" in request.query:
        raise Problem(
            INVALID_API_KEY,
            "The API key stands in the URL, where proxies log it: revoke it, and send a new one in the "
            "Authorization header.",
        )
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    if not scheme and is_anthropics(request):
        scheme, text = "bearer", request.headers.get("x-api-key", "")  # where Anthropic's clients put it
    if scheme.lower() != "bearer" or not text:
        raise Problem(INVALID_API_KEY, "Send an API key in the header `Authorization: Bearer moorage_…`.")
    key = keys.parse(text.strip())
    if key is None:
        raise refused()
    return key


async def authenticate(
    key: keys.ParsedKey, *, projection: Projection, pepper: bytes, kept: bool = True
) -> wire.KeyRecord:
    """The key's record; `kept` False reads it anew. Problem where the key is unknown or its secret wrong.

    Revocation, suspension and expiry are the admission script's to judge, on the newest version.
    """
    record = await projection.key(key.public_id, kept=kept)
    stored = _NO_DIGEST if record is None else bytes.fromhex(record.digest)
    if not keys.matches(pepper, key.text, stored) or record is None:
        raise refused()
    return record


def refused() -> Problem:
    """One answer for an unknown, a revoked and an expired key."""
    return Problem(INVALID_API_KEY, "The API key is unknown, revoked or expired. Create one in the console.")
