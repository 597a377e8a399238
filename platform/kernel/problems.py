"""Problem types: what can go wrong, in one table that the REST API and the gateway both speak.

REST answers RFC 9457 problem+json, the gateway OpenAI's or Anthropic's error object; status, code and
meaning come from here, so that the two never disagree.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ProblemType:
    """`code` is stable API; `title` names the class of problem; `openai_type` is OpenAI's `type`."""

    code: str
    status: int
    title: str
    openai_type: str = "invalid_request_error"


def _t(code: str, status: int, title: str, openai_type: str = "invalid_request_error") -> ProblemType:
    return ProblemType(code, status, title, openai_type)


INVALID_JSON = _t("invalid_json", 400, "The body is not valid JSON")
INVALID_PARAMETER = _t("invalid_parameter", 400, "A parameter is not acceptable")
RESERVED_PARAMETER = _t("reserved_parameter", 400, "A parameter is set by the platform")
CONTEXT_LENGTH_EXCEEDED = _t("context_length_exceeded", 400, "The prompt does not fit the context")
IDEMPOTENCY_KEY_MISSING = _t("idempotency_key_missing", 400, "Idempotency-Key is required")
INVALID_API_KEY = _t("invalid_api_key", 401, "The API key is not valid", "authentication_error")
UNAUTHENTICATED = _t("unauthenticated", 401, "Sign in or send an API key", "authentication_error")
INSUFFICIENT_BALANCE = _t("insufficient_balance", 402, "The balance does not cover this", "billing_error")
SPEND_CAPPED = _t("spend_cap_reached", 402, "Your own spend cap is reached", "billing_error")
FORBIDDEN = _t("forbidden", 403, "Not allowed", "permission_error")
TENANT_SUSPENDED = _t("tenant_suspended", 403, "The tenant is suspended", "permission_error")
NOT_FOUND = _t("not_found", 404, "Not found")
MODEL_NOT_FOUND = _t("model_not_found", 404, "No such model or endpoint")
METHOD_NOT_ALLOWED = _t("method_not_allowed", 405, "Method not allowed")
NOT_ACCEPTABLE = _t("not_acceptable", 406, "Only JSON is spoken here")
REQUEST_TIMEOUT = _t("request_timeout", 408, "The request arrived too slowly")
CONFLICT = _t("conflict", 409, "The object's state does not allow this")
IDEMPOTENCY_IN_PROGRESS = _t("idempotency_in_progress", 409, "The same request is still running")
BODY_TOO_LARGE = _t("body_too_large", 413, "The body is too large")
UNSUPPORTED_MEDIA_TYPE = _t("unsupported_media_type", 415, "The content type is not supported")
IDEMPOTENCY_MISMATCH = _t("idempotency_mismatch", 422, "This key was used with another body")
NO_POOL_FITS = _t("no_pool_fits", 422, "No pool can run this")
RATE_LIMITED = _t("rate_limit_exceeded", 429, "Your rate limit is reached", "rate_limit_error")
TOKENS_LIMITED = _t("token_limit_exceeded", 429, "Your limit of tokens is reached", "rate_limit_error")
RESERVATION_EXCEEDED = _t(
    "reservation_exceeded", 429, "The endpoint's reserved throughput is used up", "rate_limit_error"
)
CONCURRENCY_LIMITED = _t("concurrency_limit_exceeded", 429, "Your concurrency limit is reached", "rate_limit_error")
QUOTA_EXCEEDED = _t("quota_exceeded", 429, "Your quota is reached", "rate_limit_error")
HEADERS_TOO_LARGE = _t("headers_too_large", 431, "The request headers are too large")
INTERNAL = _t("internal_error", 500, "Something broke on our side", "server_error")
ENGINE_ERROR = _t("engine_error", 502, "The engine failed", "server_error")
NO_REPLICA_READY = _t("no_replica_ready", 503, "No replica is ready", "server_error")
UNAVAILABLE = _t("unavailable", 503, "Temporarily unavailable", "server_error")
UNRATED = _t("unrated", 503, "No price is in force for this", "server_error")


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


@dataclass(eq=False)
class Problem(Exception):
    """A problem to show: its type, a sentence with the way out, the field, seconds to wait; headers of the answer."""

    type: ProblemType
    detail: str
    param: str | None = None
    retry_after_s: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.type.code}: {self.detail}"

    def as_rfc9457(self) -> dict[str, Any]:
        """The problem+json body."""
        body: dict[str, Any] = {
            "type": f"urn:moorage:problem:{self.type.code}",
            "title": self.type.title,
            "status": self.type.status,
            "code": self.type.code,
            "detail": self.detail,
        }
        if self.param:
            body["param"] = self.param
        return body | self.extra

    def as_openai(self) -> dict[str, Any]:
        """OpenAI's error object."""
        error = {
            "message": self.detail,
            "type": self.type.openai_type,
            "param": self.param,
            "code": self.type.code,
        }
        return {"error": error | self.extra}

    def as_anthropic(self) -> dict[str, Any]:
        """Anthropic's error object; `code` and `param` come along."""
        status = self.type.status
        default = "invalid_request_error" if status < 500 else "api_error"
        error = {
            "type": _ANTHROPIC_TYPES.get(status, default),
            "message": self.detail,
            "param": self.param,
            "code": self.type.code,
        }
        return {"type": "error", "error": error | self.extra}
