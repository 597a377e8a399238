"""One token from one pod, through the gateway's internal listener: what makes a replica `serving`."""

import json
import logging
from uuid import UUID

from django.conf import settings
from urllib3 import PoolManager
from urllib3.exceptions import HTTPError
from urllib3.util import Timeout

log = logging.getLogger(__name__)
# A pass asks eight at a time.
_http = PoolManager(maxsize=8, timeout=Timeout(connect=2, read=60), retries=False)


def probe(deployment_id: UUID, pod_uid: UUID) -> bool:
    """True once that pod streamed a token and counted in every piece unasked; False for every failure."""
    try:
        response = _http.request(
            "POST",
            f"{settings.GATEWAY_INTERNAL_URLS[0]}/v1/completions",
            headers={
                "Authorization": f"Bearer {settings.INTERNAL_TOKEN}",
                "Content-Type": "application/json",
                "X-Moorage-Pod": f"{deployment_id}/{pod_uid}",
            },
            body=json.dumps({"prompt": "ready?", "max_tokens": 1, "stream": True}),
        )
        lines = response.data.decode().splitlines() if response.status == 200 else []
        pieces = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    except (HTTPError, ValueError):
        return False
    if not pieces or "error" in pieces[-1]:
        return False
    if not all(piece.get("usage") for piece in pieces):
        log.warning("pod %s does not serve: it streams without a count in every piece", pod_uid)
        return False
    return bool(pieces[-1]["usage"].get("completion_tokens"))
