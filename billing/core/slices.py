"""Dedicated time: a pod's billable span cut into whole seconds, hours and prices."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from kernel.clock import DAY, HOUR, day_of
from kernel.ids import derived_id

_SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Slice:
    """Half-open [start, end) in whole seconds, inside one UTC hour and under one price."""

    start: datetime
    end: datetime

    @property
    def seconds(self) -> int:
        """Length in seconds."""
        return (self.end - self.start) // _SECOND


def hour_of(at: datetime) -> datetime:
    """The UTC hour that holds `at`."""
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def inner_seconds(start: datetime, end: datetime) -> tuple[datetime, datetime]:
    """The whole seconds inside [start, end): both ends are rounded in the tenant's favour."""
    late = start.astimezone(UTC)
    if late.microsecond:
        late = late.replace(microsecond=0) + _SECOND
    return late, end.astimezone(UTC).replace(microsecond=0)


def cut(start: datetime, end: datetime, changes: Iterable[datetime], *, ended: bool) -> Iterator[Slice]:
    """Slices of [start, end), cut at UTC hours and price changes, in order.

    While the span goes on (`ended` false) the last slice is given only once it is complete: a slice's
    end never depends on when the job runs.
    """
    start, end = inner_seconds(start, end)
    borders = sorted({at.astimezone(UTC).replace(microsecond=0) for at in changes})
    while start < end:
        border = min([hour_of(start) + HOUR, *(at for at in borders if at > start)])
        if border > end and not ended:
            return
        yield Slice(start, min(border, end))
        start = border


def slice_id(part: Slice, *, deployment_id: UUID, pod_uid: UUID, accelerator: str, count: int) -> UUID:
    """The same event id for the same slice, however often the job runs."""
    return derived_id(part.start, str(deployment_id), str(pod_uid), accelerator, str(count), part.start.isoformat())


def charges_due(due_at: datetime, *, ended_at: datetime | None, now: datetime) -> Iterator[datetime]:
    """Instants at which a reservation's days are charged, from the one due: it, then every midnight up to `now`."""
    while due_at <= now and (ended_at is None or due_at < ended_at):
        yield due_at
        due_at = day_of(due_at) + DAY
