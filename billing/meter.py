"""The meter: pulls every gateway's journal from the position that PostgreSQL has and books what it holds.

That position moves in the transaction of the effect and is the gateway's acknowledgement: a crash at
any point pulls the same records again, which has no effect.
"""

import json
import logging
import threading
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import orjson
import urllib3
from django.conf import settings
from django.db import Error, connection, transaction
from django.db.models.functions import Now

from billing import holds, ledger
from billing.advisory import alone
from billing.ingest import Ingested, Journalled, events_ingest
from billing.models import GatewayJournal
from kernel.clock import from_ms, utcnow
from kernel.problems import CONFLICT, NOT_FOUND, Problem
from tenants import outbox
from tenants.services import audit_write

log = logging.getLogger(__name__)
# Behind a backlog a page is one transaction per tenant in it: the more records share one, the less each costs.
PAGE = 4000
IDLE_S = 0.5
RETRY_S = 2.0
TIMEOUT = urllib3.Timeout(connect=2, read=10)


class JournalError(Exception):
    """A gateway's answer that is no journal."""


@dataclass(frozen=True, slots=True)
class Boot:
    """One boot's journal as its gateway announces it."""

    gateway_id: str
    boot_id: UUID
    head: int
    closed: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What a gateway says of itself: its boots, its Redis, and that what it admitted before `low_at` has ended."""

    gateway_id: str
    boots: tuple[Boot, ...]
    low_at: datetime
    run_id: str


class Gateway:
    """The internal listener of one gateway."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self._pool = urllib3.PoolManager(headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT, retries=False)

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object at `path`. JournalError for every other answer, HTTPError where nobody is there."""
        response = self._pool.request("GET", self.url + path)
        try:
            body = _json(response.data)
        except (ValueError, RecursionError) as error:
            raise JournalError(f"{self.url}{path}: no JSON") from error
        if response.status != 200 or not isinstance(body, dict):
            raise JournalError(f"{self.url}{path}: {response.status}")
        return body


def run(stop: threading.Event) -> None:
    """Pull until `stop` is set; a gateway that does not answer keeps no other from being pulled."""
    gateways = [Gateway(url, settings.INTERNAL_TOKEN) for url in settings.GATEWAY_INTERNAL_URLS]
    silent: set[str] = set()
    while not stop.is_set():
        moved = 0
        for gateway in gateways:
            try:
                done = gateway_pull(gateway)
                moved += done.booked + done.quarantined
                silent.discard(gateway.url)
            except (urllib3.exceptions.HTTPError, JournalError, Error) as error:
                if gateway.url not in silent:
                    log.warning("cannot pull %s for now: %s", gateway.url, error)
                silent.add(gateway.url)
                if isinstance(error, Error):
                    connection.close()
                    stop.wait(RETRY_S)
        if not moved:
            stop.wait(IDLE_S)


def gateway_pull(gateway: Gateway) -> Ingested:
    """Book everything that one gateway has, boot by boot, and note what it says of its open requests.

    A boot whose journal cannot be read on raises the alarm and stops no other: nothing beyond that place is
    booked, and until it can be, nothing counts as posted. JournalError where the gateway tells no boots.
    """
    report = _report(gateway.get("/internal/journal"))
    GatewayJournal.objects.bulk_create(
        [GatewayJournal(gateway_id=report.gateway_id, boot_id=boot.boot_id) for boot in report.boots],
        ignore_conflicts=True,
    )
    total = Ingested()
    complete = True
    for boot in report.boots:
        with alone("meter", f"{boot.gateway_id}/{boot.boot_id}") as granted:
            complete = granted and _boot_pull(gateway, boot, total) and complete
    if complete:
        # Every request admitted before `low` had ended when the heads were read, and those are booked now.
        rows = GatewayJournal.objects.filter(
            gateway_id=report.gateway_id, boot_id__in=[boot.boot_id for boot in report.boots]
        )
        rows.update(posted_low_at=report.low_at, run_id=report.run_id, seen_at=Now())
    alarms_log()
    return total


@transaction.atomic
def alarms_log() -> int:
    """Log the alarms that billing raised; how many."""
    rows = outbox.take(topic=ledger.ALARM)
    for row in rows:
        log.error("%s: %s", row.dedupe_key, row.payload["sentence"])
    outbox.mark(rows)
    return len(rows)


@transaction.atomic
def boot_forget(*, gateway_id: str, boot_id: UUID, actor: str) -> int:
    """Wait no longer for a boot whose disk is lost; how many of its records are booked.

    What else it journalled is never billed, unless the disk is found after all. Problems: not_found; conflict (it
    was heard of within ten minutes).
    """
    row = GatewayJournal.objects.filter(gateway_id=gateway_id, boot_id=boot_id, closed_seq=None)
    known = row.select_for_update().first()
    if known is None:
        raise Problem(NOT_FOUND, f"{gateway_id} has no boot {boot_id} that is waited for")
    if known.seen_at > utcnow() - holds.GRACE:
        raise Problem(
            CONFLICT, f"{gateway_id} was heard of at {known.seen_at.isoformat()}; stop it and wait 10 minutes"
        )
    row.update(closed_seq=known.pulled_seq, closed_at=Now())
    detail = {"gateway": gateway_id, "boot": str(boot_id), "booked": known.pulled_seq}
    audit_write(actor=actor, tenant_id=None, action="journal.forgotten", detail=detail)
    return known.pulled_seq


def _report(answer: dict[str, Any]) -> Report:
    try:
        gateway_id = str(answer["gateway_id"])
        boots = tuple(
            Boot(gateway_id, UUID(boot["boot_id"]), int(boot["head"]), bool(boot["closed"])) for boot in answer["boots"]
        )
        return Report(gateway_id, boots, from_ms(answer["low"]), answer["run_id"] or "")
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise JournalError(f"a gateway told no boots: {error!r}") from error


def _boot_pull(gateway: Gateway, boot: Boot, total: Ingested) -> bool:
    """Book what a boot has; False, with the alarm, where its journal cannot be read to the end."""
    row = GatewayJournal.objects.filter(gateway_id=boot.gateway_id, boot_id=boot.boot_id)
    at = row.values_list("pulled_seq", flat=True)[0]
    try:
        while True:
            if boot.closed and at >= boot.head:
                row.exclude(closed_seq=boot.head).update(closed_seq=boot.head, closed_at=Now())
            batch = _page(gateway, boot, at)
            if not batch:
                return True
            at = batch[-1].seq
            done = events_ingest(batch, then=partial(row.update, pulled_seq=at))
            total.booked += done.booked
            total.repeated += done.repeated
            total.quarantined += done.quarantined
    except JournalError as error:
        where = f"{boot.gateway_id}/{boot.boot_id}"
        with transaction.atomic():
            ledger.alarm(key=f"journal:{where}/{at}", sentence=f"journal {where} stops after {at}: {error}")
        return False


def _page(gateway: Gateway, boot: Boot, at: int) -> list[Journalled]:
    """The records after `at`, whose asking acknowledges everything up to it. JournalError where they do not follow."""
    page = gateway.get(f"/internal/journal/{boot.boot_id}?from={at + 1}&limit={PAGE}")
    try:
        records = [(item["seq"], item["event"]) for item in page["events"]]
    except (KeyError, TypeError) as error:
        raise JournalError(f"a record without number or event: {error!r}") from error
    if [seq for seq, _ in records] != list(range(at + 1, at + 1 + len(records))):
        raise JournalError("a gap")
    return [Journalled(boot.gateway_id, boot.boot_id, at + place, event) for place, (_, event) in enumerate(records, 1)]


def _json(data: bytes) -> Any:
    """JSON, and what only the laxer reader takes (a lone surrogate): one such record must not hide its neighbours."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return json.loads(data)
