"""Money on loan to gateways comes back where a tenant's own hold needs it: asked through Redis, done by the lender."""

import logging
import time
from collections.abc import Sequence
from functools import cache
from uuid import UUID

import redis
from django.conf import settings

from billing.models import Hold
from billing.selectors import purses_available
from kernel import wire

log = logging.getLogger(__name__)
WAIT_S = 1.0
POLL_S = 0.02


def ask(*, tenant_id: UUID, currency: str, purses: Sequence[str], amount_pico: int) -> bool:
    """Ask this region's floats of those purses for what they have idle, up to `amount_pico` of each.

    False where nothing can come.
    """
    lent = Hold.objects.filter(
        account__tenant_id=tenant_id,
        account__currency=currency,
        subject__startswith="gateway:",
        subject__endswith=f":{settings.REGION}",
        account__purse__in=purses,
        sealed_at=None,
        open__gt=0,
    )
    names = sorted({subject.split(":")[1] for subject in lent.values_list("subject", flat=True)})
    wants = [wire.dumps(wire.Want(str(tenant_id), name, currency, -amount_pico)) for name in names]
    if not wants:
        return False
    try:
        _client().rpush(wire.WANT, *wants)
    except redis.RedisError as error:
        log.warning("idle money cannot be asked back for now: %s", error)
        return False
    return True


def bring_back(*, tenant_id: UUID, currency: str, purses: Sequence[str], needed_pico: int) -> None:
    """Ask for what those purses miss of `needed_pico` and wait until it is available, a second at most.

    The caller has locked none of the tenant's accounts: the lender returns into them.
    """

    def missing() -> int:
        return needed_pico - purses_available(tenant_id=tenant_id, currency=currency, purses=purses)

    short = missing()
    if short <= 0 or not ask(tenant_id=tenant_id, currency=currency, purses=purses, amount_pico=short):
        return
    until = time.monotonic() + WAIT_S
    while missing() > 0 and time.monotonic() < until:
        time.sleep(POLL_S)


@cache
def _client() -> "redis.Redis":
    return redis.Redis.from_url(settings.REDIS_GATEWAY_URL, socket_timeout=1, socket_connect_timeout=1)
