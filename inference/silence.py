"""Who asks a cluster when, and which ones answer nobody: one lister waits for such a one, and no pass does."""

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta

from django.db.models import Q

from inference.clock import database_after, database_now
from inference.models import ClusterListing
from k8s.cluster import SilentError

LONG_LISTING_S = 1.0
# Longer than a silent cluster is waited for; a lister that was killed holds up the sweep for as long.
LISTING = timedelta(seconds=30)


def rest_s(listing_s: float) -> float:
    """How long to leave a cluster alone after a listing that took so long: a long one takes a fifth of the time."""
    return 4 * listing_s if listing_s > LONG_LISTING_S else 0.0


def turn_take(cluster_name: str, *, idle_s: float) -> bool:
    """Whether the caller is to list a cluster: nobody does, or has for `idle_s` beyond its rest."""
    ClusterListing.objects.get_or_create(cluster=cluster_name)
    idle = Q(rests_until=None) | Q(rests_until__lte=database_after(timedelta(seconds=-idle_s)))
    found = ClusterListing.objects.filter(idle, cluster=cluster_name)
    return bool(found.update(rests_until=database_after(LISTING)))


@contextmanager
def listing(cluster_name: str) -> Iterator[None]:
    """While this lasts, and for a rest after it, no sweep lists the cluster; its silence is remembered."""
    began_s = time.monotonic()
    _write(cluster_name, rests_until=database_now() + LISTING)
    try:
        yield
    except SilentError:
        silence_mark(cluster_name)
        raise
    finally:
        rest = timedelta(seconds=rest_s(time.monotonic() - began_s))
        _write(cluster_name, rests_until=database_now() + rest)


def silence_mark(cluster_name: str) -> None:
    """Nobody answered there in time: until a listing is answered, no pass asks it anything."""
    ClusterListing.objects.get_or_create(cluster=cluster_name)
    ClusterListing.objects.filter(cluster=cluster_name, silent_at=None).update(silent_at=database_now())


def silence_end(cluster_name: str) -> None:
    """It has answered."""
    ClusterListing.objects.filter(cluster=cluster_name, silent_at__isnull=False).update(silent_at=None)


def silences(cluster_names: Collection[str]) -> dict[str, str]:
    """Those of these clusters that are silent, each with a sentence that says since when."""
    found = ClusterListing.objects.filter(cluster__in=cluster_names, silent_at__isnull=False)
    since = {item.cluster: f"{item.silent_at:%FT%TZ}" for item in found}
    return {
        name: f"cluster {name} has not answered since {at}; once it does, this goes on" for name, at in since.items()
    }


def _write(cluster_name: str, **columns: object) -> None:
    ClusterListing.objects.update_or_create(cluster=cluster_name, defaults=columns)
