"""One token from one pod, through the gateway's internal listener: what makes a replica `serving`."""

import json
from uuid import UUID

from django.conf import settings
from urllib3 import PoolManager
from urllib3.exceptions import HTTPError
from urllib3.util import Timeout

_http = PoolManager(timeout=Timeout(connect=2, read=60), retries=False)


def probe(deployment_id: UUID, pod_uid: UUID) -> bool:
    """True once that pod answered a completion of one token; False for every failure."""
    try:
        response = _http.request(
            "POST",
            f"{settings.GATEWAY_INTERNAL_URLS[0]}/v1/completions",
            headers={
                "Authorization": f"Bearer {settings.INTERNAL_TOKEN}",
                "Content-Type": "application/json",
                "X-Moorage-Pod": f"{deployment_id}/{pod_uid}",
            },
            body=json.dumps({"prompt": "ready?", "max_tokens": 1}),
        )
        answer = response.json() if response.status == 200 else {}
    except (HTTPError, ValueError):
        return False
    return bool(answer.get("usage", {}).get("completion_tokens"))
