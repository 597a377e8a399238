"""The independent check: engines' own counters, kept as windows beside the bill that they must cover."""

from collections.abc import Iterable
from uuid import UUID

from django.db import transaction
from django.db.backends.postgresql.psycopg_any import DateTimeTZRange
from django.db.models import F, Q

from billing.core.counters import GENERATION, PROMPT, WINDOW, CounterSample, Window, advance, after
from billing.models import EngineCounter, EngineCounterDelta
from kernel.problems import INVALID_PARAMETER, Problem

Key = tuple[UUID, str]


@transaction.atomic
def engine_counters_record(samples: Iterable[CounterSample]) -> int:
    """Take scraped counters into their pods' windows and write those that are complete; how many.

    A pod that is silent for a window's length has its last one written as far as it went. Repeats and
    samples out of order change nothing. Problem INVALID_PARAMETER for another meter or a value below zero.
    """
    ordered = sorted(samples, key=lambda sample: sample.at)
    for sample in ordered:
        if sample.meter not in {PROMPT, GENERATION} or sample.value < 0:
            raise Problem(INVALID_PARAMETER, f"meter is {PROMPT} or {GENERATION}, value 0 or more", param="samples")
    if not ordered:
        return 0
    scraped = Q(pod_uid__in={sample.pod_uid for sample in ordered})
    growing = Q(until_at__gt=F("since_at"))
    rows = EngineCounter.objects.select_for_update().filter(scraped | growing).order_by("pod_uid", "meter")
    windows = {
        (row.pod_uid, row.meter): Window(row.since_at, row.until_at, row.value, row.tokens, row.resets) for row in rows
    }
    finished: list[tuple[Key, Window]] = []
    for sample in ordered:
        key = (sample.pod_uid, sample.meter)
        window = advance(windows.get(key), sample)
        if window.complete:
            finished.append((key, window))
            window = after(window)
        windows[key] = window
    now = ordered[-1].at
    for key, window in windows.items():
        if window.since < window.until <= now - WINDOW:
            finished.append((key, window))
            windows[key] = after(window)
    EngineCounterDelta.objects.bulk_create(_delta(key, window) for key, window in finished)
    _keep(windows)
    return len(finished)


def _delta(key: Key, window: Window) -> EngineCounterDelta:
    period = DateTimeTZRange(window.since, window.until)
    return EngineCounterDelta(pod_uid=key[0], meter=key[1], period=period, tokens=window.tokens, resets=window.resets)


def _keep(windows: dict[Key, Window]) -> None:
    EngineCounter.objects.bulk_create(
        [
            EngineCounter(
                pod_uid=pod_uid,
                meter=meter,
                since_at=window.since,
                until_at=window.until,
                value=window.value,
                tokens=window.tokens,
                resets=window.resets,
            )
            for (pod_uid, meter), window in windows.items()
        ],
        update_conflicts=True,
        unique_fields=["pod_uid", "meter"],
        update_fields=["since_at", "until_at", "value", "tokens", "resets"],
    )
