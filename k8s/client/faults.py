"""What an API server's refusal means for whoever applied: one of the protocol's four errors. Pure."""

from k8s.cluster import Conflict, Invalid, Quota, Retry

RETRY_S = 5.0
# Until a person has given rights or credentials, asking again soon is of no use.
RIGHTS_S = 30.0

_MANIFEST = {400, 404, 405, 413, 415, 422}
# A field that the schema lacks is answered as the server's own fault, but it is the manifest's.
_MISTYPED = "failed to create typed patch object"
_BY_ADMISSION = ("violates PodSecurity", "denied the request")


def classify(status: int, message: str, retry_after_s: float | None = None) -> Conflict | Invalid | Quota | Retry:
    """The error of an HTTP status ≥ 400 with the server's message and its Retry-After, if it gave one."""
    if status == 409:
        return Conflict(message)
    if status in _MANIFEST or (status == 500 and _MISTYPED in message):
        return Invalid(message)
    if status == 403 and "exceeded quota" in message:
        return Quota(message)
    if status == 403 and any(words in message for words in _BY_ADMISSION):
        return Invalid(message)
    if status == 403 and "is being terminated" in message:
        return Retry(RETRY_S, message)
    if status in (401, 403):
        return Retry(RIGHTS_S, message)
    return Retry(RETRY_S if retry_after_s is None else retry_after_s, message)
