"""Claims: one worker at a time per endpoint, by a token on a short lease. No transaction stays open meanwhile.

A worker that lives renews its lease; what a killed one held is free again within LEASE.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.db import Error, connection, transaction
from django.db.models import Q, QuerySet

from inference.clock import database_after
from inference.models import Deployment, Endpoint
from kernel.ids import new_id

log = logging.getLogger(__name__)

LEASE, RENEW_S = timedelta(seconds=10), 3.0


@dataclass(frozen=True, slots=True)
class Claim:
    """Proof that this worker may write the status of these endpoints: of each for as long as it bears the token."""

    token: UUID
    endpoint_ids: tuple[UUID, ...]

    @property
    def endpoints(self) -> QuerySet[Endpoint]:
        """Those that are still ours."""
        return Endpoint.objects.filter(id__in=self.endpoint_ids, lock_token=self.token)

    @property
    def deployments(self) -> QuerySet[Deployment]:
        """The deployments of those."""
        return Deployment.objects.filter(endpoint__in=self.endpoints)

    def ours(self) -> set[UUID]:
        """The ids of those that are still ours."""
        return set(self.endpoints.values_list("id", flat=True))

    def lock(self) -> dict[UUID, datetime | None]:
        """Lock the rows that are still ours until the transaction ends, in the order of ids; when each is due."""
        return dict(self.endpoints.order_by("id").select_for_update().values_list("id", "due_at"))

    @transaction.atomic
    def renew(self) -> None:
        """Hold them for another while."""
        self.endpoints.filter(id__in=self.lock()).update(lock_until=database_after(LEASE))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renewed from a thread for as long as this lasts."""
        done = threading.Event()
        keeper = threading.Thread(target=self._keep, args=(done,), name="claim", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            done.set()
            keeper.join()

    def _keep(self, done: threading.Event) -> None:
        while not done.wait(RENEW_S):
            try:
                self.renew()
            except Error as error:
                log.warning("a claim is not renewed: %s", error)
            finally:
                connection.close()


def claim(wanted: QuerySet[Endpoint], most: int) -> Claim:
    """A claim on the first of `wanted` that nobody works on; those that are archived stay out.

    All are of the first one's region: no region waits for another's cluster.
    """
    free = Q(lock_until__isnull=True) | Q(lock_until__lt=database_after(timedelta()))
    token = new_id()
    with transaction.atomic():
        rows = wanted.filter(free, archived_at__isnull=True).select_for_update(skip_locked=True, of=("self",))
        found = list(rows.values_list("id", "region")[:most])
        held = Claim(token, tuple(sorted(each for each, region in found if region == found[0][1])))
        if held.endpoint_ids:
            Endpoint.objects.filter(id__in=held.endpoint_ids).update(lock_token=token, lock_until=database_after(LEASE))
    return held
