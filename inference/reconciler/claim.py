"""Claims: one worker at a time per endpoint, by a token that expires. No transaction stays open meanwhile."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db.models import Q

from inference.clock import database_after
from inference.models import Endpoint
from kernel.ids import new_id

# Longer than the slowest step between two renewals: an apply that times out, a probe.
CLAIM = timedelta(seconds=120)


class StaleClaim(Exception):
    """The claim expired and another worker has the endpoint: drop every result."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Proof that this worker may write the endpoint's status."""

    endpoint_id: UUID
    token: UUID

    def renew(self) -> None:
        """Hold it for another while. StaleClaim where it is lost."""
        self.write(lock_until=database_after(CLAIM))

    def write(self, **fields: Any) -> None:
        """Write status columns of the endpoint, guarded by the token. StaleClaim where it is lost."""
        if not Endpoint.objects.filter(id=self.endpoint_id, lock_token=self.token).update(**fields):
            raise StaleClaim(str(self.endpoint_id))

    def stands_at(self, generation: int) -> bool:
        """Lock the row until the transaction ends, and say whether its intent is still that generation."""
        self.renew()
        return Endpoint.objects.filter(id=self.endpoint_id, generation=generation).exists()

    def release(self, **fields: Any) -> None:
        """Write the last status and let go."""
        self.write(lock_token=None, lock_until=None, **fields)


def claim(endpoint_id: UUID) -> Claim | None:
    """The endpoint's claim; None where it is archived or somebody works on it."""
    token = new_id()
    free = Q(lock_token__isnull=True) | Q(lock_until__lt=database_after(timedelta()))
    taken = Endpoint.objects.filter(free, id=endpoint_id, archived_at__isnull=True).update(
        lock_token=token, lock_until=database_after(CLAIM)
    )
    return Claim(endpoint_id, token) if taken else None
