"""The clusters that this installation runs, by the name that pools give."""

from functools import cache

from django.conf import settings

from k8s.cluster import Cluster
from k8s.local.cluster import LocalCluster

LOCAL = "local"


@cache
def cluster(name: str) -> Cluster:
    """The cluster of that name. KeyError for one that is not configured."""
    if name != LOCAL:
        raise KeyError(f"no cluster named {name!r} is configured; this installation has {LOCAL!r}")
    return LocalCluster(settings.STATE_DIR / "cluster")
