"""Sign-ins are counted before a password is looked at, per account and per address, so that guessing ends."""

import hashlib
import ipaddress
from datetime import timedelta
from uuid import UUID

from django.contrib.auth.models import User
from django.db import connection
from django.db.models import F

from kernel.clock import utcnow
from kernel.problems import RATE_LIMITED, Problem
from tenants.models import Membership, SignInCount
from tenants.rls import tenant_scope
from tenants.services import audit_write

WINDOW_S = 15 * 60
MAX_FOR_ACCOUNT = 10
MAX_FOR_ADDRESS = 100
IPV6_NETWORK_BITS = 64
# One statement: attempts that arrive together are counted one by one.
_COUNT = """
INSERT INTO sign_in_count AS c (subject, since, failures) VALUES (%(subject)s, now(), 1)
ON CONFLICT (subject) DO UPDATE SET
  since = CASE WHEN c.since < now() - make_interval(secs => %(window_s)s) THEN now() ELSE c.since END,
  failures = CASE WHEN c.since < now() - make_interval(secs => %(window_s)s) THEN 1 ELSE c.failures + 1 END
RETURNING failures, ceil(extract(epoch FROM since + make_interval(secs => %(window_s)s) - now()))::int
"""


def sign_in_attempt(*, username: str, address: str) -> None:
    """Count an attempt as failed until `sign_in_succeeded`. Problem RATE_LIMITED says how long to wait.

    The first attempt beyond a limit is audited; those after it are not, so that nobody can fill the log.
    """
    for subject, most in _subjects(username, address):
        with connection.cursor() as cursor:
            cursor.execute(_COUNT, {"subject": subject, "window_s": WINDOW_S})
            failures, wait_s = cursor.fetchone()
        if failures == most + 1:
            audit_write(actor="anonymous", tenant_id=None, action="session.throttled", detail={"address": address})
        if failures > most:
            minutes = -(-wait_s // 60)
            raise Problem(
                RATE_LIMITED,
                f"too many sign-ins failed; try again in {minutes} minutes",
                retry_after_s=max(1, wait_s),
                extra={"minutes": minutes},
            )


def sign_in_succeeded(*, user: User, address: str) -> None:
    """Forget the account's failures, take this one off the address, and audit it in each of the person's tenants."""
    account, house = (subject for subject, _most in _subjects(user.get_username(), address))
    SignInCount.objects.filter(subject=account).delete()
    SignInCount.objects.filter(subject=house, failures__gt=0).update(failures=F("failures") - 1)
    tenants: list[UUID | None]
    with tenant_scope(None, user_id=user.pk):
        tenants = list(Membership.objects.filter(user=user).values_list("tenant_id", flat=True))
    for tenant_id in tenants or [None]:
        audit_write(actor=f"user:{user.pk}", tenant_id=tenant_id, action="session.opened", detail={"address": address})


def sign_ins_forget() -> None:
    """Drop counts whose window is over; a guesser's many names do not stay."""
    SignInCount.objects.filter(since__lt=utcnow() - timedelta(seconds=WINDOW_S)).delete()


def _subjects(username: str, address: str) -> tuple[tuple[str, int], tuple[str, int]]:
    # What people type into the name's field is sometimes a password: only its digest is kept.
    digest = hashlib.sha256(username.strip().casefold().encode(errors="replace")).hexdigest()
    return (f"account:{digest}", MAX_FOR_ACCOUNT), (f"address:{_network(address)}", MAX_FOR_ADDRESS)


def _network(address: str) -> str:
    """An IPv6 client owns a whole network of addresses; it counts as one."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    return str(ipaddress.ip_network((parsed, IPV6_NETWORK_BITS), strict=False))
