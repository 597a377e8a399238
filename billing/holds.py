"""Holds beyond one deployment: writing returns, sealing, and giving back what closed holds have left."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from django.db import transaction
from django.db.models import F, Max, Q
from django.db.models.functions import Now

from billing.bulk import insert_rows
from billing.models import BillableSpan, GatewayJournal, Hold, HoldMove, LedgerAccount, MoveKind, ReservedSpan
from kernel import wire
from kernel.clock import utcnow

# What was reserved longer ago than this cannot be running.
LONGEST_REQUEST = timedelta(seconds=wire.LONGEST_REQUEST_S)
GRACE = timedelta(minutes=10)
# Facts of the last moments reach us within this time after a deployment's hold was closed.
LAST_FACTS = timedelta(seconds=60)
# How far the clocks of Redis and PostgreSQL may lie apart, with room to spare.
CLOCKS_APART = timedelta(seconds=5)
# Boots that are over and booked to their end.
PULLED = Q(closed_seq__isnull=False, pulled_seq__gte=F("closed_seq"))
_NEVER = datetime.min.replace(tzinfo=UTC)


def accounts_lock_of(holds: Sequence[Hold]) -> None:
    """Lock the holds' accounts in id order: everybody takes accounts before holds."""
    ids = {hold.account_id for hold in holds}
    list(LedgerAccount.objects.select_for_update().filter(id__in=ids).order_by("id").values_list("id"))


def returns_write(parts: Sequence[tuple[Hold, int]], *, transfer: int) -> None:
    """Give money of holds back to their accounts as one numbered transfer, in the caller's transaction."""
    accounts_lock_of([hold for hold, _ in parts])
    last = dict(
        Hold.objects.filter(id__in=[hold.id for hold, _ in parts])
        .annotate(last=Max("moves__seq"))
        .values_list("id", "last")
    )
    insert_rows(
        HoldMove,
        [
            {
                "hold_id": hold.id,
                "seq": last[hold.id] + 1,
                "kind": MoveKind.RETURN.value,
                "amount": str(amount),
                "transfer": transfer,
            }
            for hold, amount in parts
            if amount
        ],
    )


def gateway_holds_seal(*, region: str) -> int:
    """Seal every live hold of a region's gateways; how many. Their rest goes back by `holds_return`."""
    return Hold.objects.filter(subject__startswith="gateway:", subject__endswith=f":{region}", sealed_at=None).update(
        sealed_at=Now(), expires_at=Now() + LONGEST_REQUEST + GRACE
    )


def gateway_holds_return(*, region: str, run_id: str, now: datetime) -> int:
    """Give back the rest of a region's sealed holds that nothing can draw from any more; how many.

    That is so once every boot that may have reserved from it talks to the Redis `run_id` and has posted
    everything admitted until well after the seal, or has closed and is pulled to its end; a boot that is
    gone is waited for until the hold expires.
    """
    sealed = Hold.objects.filter(
        subject__startswith="gateway:", subject__endswith=f":{region}", sealed_at__isnull=False, open__gt=0
    )
    return sum(_return_rest(hold) for hold in sealed if _gateways_done(hold, run_id, now))


def posted_until() -> datetime:
    """Every request that was admitted before it is on the books, or its gateway will never tell."""
    rows = GatewayJournal.objects.exclude(PULLED).values_list("posted_low_at", flat=True)
    return min((at - CLOCKS_APART if at else _NEVER for at in rows), default=utcnow())


def deployment_holds_return(*, now: datetime) -> int:
    """Give back the rest of closed deployments' holds once their last slices are booked; how many."""
    sealed = Hold.objects.filter(subject__startswith="deployment:", sealed_at__isnull=False, open__gt=0)
    done = 0
    for hold in sealed:
        deployment_id = hold.subject.removeprefix("deployment:")
        running = (
            BillableSpan.objects.filter(deployment_id=deployment_id, finished=False).exists()
            or ReservedSpan.objects.filter(endpoint_id=deployment_id, finished=False).exists()
        )
        settled = not running and hold.sealed_at is not None and hold.sealed_at + LAST_FACTS < now
        if settled or _expired(hold, now):
            done += _return_rest(hold)
    return done


def _gateways_done(hold: Hold, run_id: str, now: datetime) -> bool:
    if _expired(hold, now):
        return True
    if hold.sealed_at is None:
        return False
    posted = Q(run_id=run_id, posted_low_at__gt=hold.sealed_at + CLOCKS_APART)
    return not GatewayJournal.objects.exclude(posted | PULLED).exists()


def _expired(hold: Hold, now: datetime) -> bool:
    return hold.expires_at is not None and hold.expires_at < now


@transaction.atomic
def _return_rest(hold: Hold) -> int:
    accounts_lock_of([hold])
    fresh = Hold.objects.annotate(last=Max("moves__transfer")).get(id=hold.id)
    if fresh.open == 0:
        return 0
    returns_write([(fresh, fresh.open)], transfer=(fresh.last or 0) + 1)
    return 1
