"""The clusters that this installation runs, by the name that pools give; their credentials are sealed at rest."""

import base64
import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from cryptography.fernet import Fernet, InvalidToken
from django.conf import settings
from django.db import transaction

from inference.catalogue_files import catalogue
from inference.clock import database_now
from inference.core.pools import pool_fields
from inference.models import ClusterAccess, ClusterListing, Endpoint, Pool
from k8s.cluster import Cluster, UnreachableError
from k8s.local.cluster import LocalCluster
from kernel.problems import CONFLICT, FORBIDDEN, INVALID_PARAMETER, Problem
from tenants.services import audit_write

LOCAL = "local"


def names() -> list[str]:
    """The clusters that pools are on."""
    return list(Pool.objects.exclude(cluster="").values_list("cluster", flat=True).distinct().order_by("cluster"))


def cluster(name: str) -> Cluster:
    """The cluster of that name, with the credentials of now. UnreachableError where there are none to use."""
    if name == LOCAL:
        return _local()
    access = ClusterAccess.objects.filter(name=name).first()
    if access is None:
        raise UnreachableError(f"no cluster {name!r} is known here; `manage.py cluster add` makes it so")
    return _kubernetes(name, bytes(access.sealed))


def cluster_add(
    *, name: str, region: str, kubeconfig: Mapping[str, Any], pools: Iterable[Any], actor: str
) -> list[Pool]:
    """Keep a cluster's credentials and its pools, or bring both up to date; the pools.

    `kubeconfig` stands alone; `pools` are entries of a pools file. The cluster is asked first, so UnreachableError
    where it does not answer. Problems: invalid_parameter, forbidden (names the rights that the account lacks),
    conflict (a region has one cluster, and a cluster one region).
    """
    from k8s.client.cluster import KubernetesCluster

    if name == LOCAL:
        raise Problem(INVALID_PARAMETER, f"{LOCAL!r} is this machine; choose another name", param="name")
    try:
        found = KubernetesCluster(kubeconfig)
    except ValueError as error:
        raise Problem(INVALID_PARAMETER, str(error), param="kubeconfig") from error
    if lacking := found.missing_rights():
        raise Problem(
            FORBIDDEN,
            f"the account may not {', '.join(lacking)}; bind it to the role of k8s/client/rights.yaml",
            param="kubeconfig",
        )
    nodes, identity = found.list().nodes, found.identity()
    fields = [pool_fields(entry, nodes, catalogue().accelerators) for entry in pools]
    with transaction.atomic():
        _refuse_second(name, region, identity)
        sealed = _seal().encrypt(json.dumps(kubeconfig).encode())
        access = {"region": region, "sealed": sealed, "identity": identity}
        ClusterAccess.objects.update_or_create(name=name, defaults=access)
        kept = [_keep_pool(name, region, item) for item in fields]
        audit_write(actor=actor, tenant_id=None, action="cluster.added", detail={"name": name, "region": region})
    return kept


@transaction.atomic
def cluster_remove(*, name: str, actor: str) -> None:
    """Forget a cluster and its credentials. Problems: invalid_parameter (unknown), conflict (endpoints are on it)."""
    access = ClusterAccess.objects.select_for_update().filter(name=name).first()
    if access is None:
        raise Problem(INVALID_PARAMETER, f"no cluster {name!r} is known here", param="name")
    pools = Pool.objects.filter(cluster=name)
    live = Endpoint.objects.filter(deployments__pool__in=pools, archived_at__isnull=True).distinct().count()
    if live:
        raise Problem(CONFLICT, f"{live} endpoints are on cluster {name!r}; delete them first", param="name")
    pools.filter(deployments__isnull=True).delete()
    # What ended deployments ran on stays as history, with no room and no cluster.
    pools.update(cluster="", capacity=0)
    ClusterListing.objects.filter(cluster=name).delete()
    access.delete()
    audit_write(actor=actor, tenant_id=None, action="cluster.removed", detail={"name": name})


def endpoints_revisit(pool: Pool) -> None:
    """Have the sweep pass over every endpoint of a pool whose description changed."""
    live = Endpoint.objects.filter(archived_at__isnull=True, deployments__pool=pool)
    Endpoint.objects.filter(id__in=live.values("id")).update(due_at=database_now())


def _refuse_second(name: str, region: str, identity: str) -> None:
    """A tenant has one namespace per region, of the same name: two regions in one cluster would fight over it."""
    others = ClusterAccess.objects.exclude(name=name)
    if (other := others.filter(region=region).first()) is not None:
        raise Problem(CONFLICT, f"region {region!r} has cluster {other.name!r}; choose another region", param="region")
    if (same := others.filter(identity=identity).first()) is not None:
        sentence = (
            f"this API server is cluster {same.name!r} of region {same.region!r} already; "
            "give the kubeconfig of another, or remove that one first"
        )
        raise Problem(CONFLICT, sentence, param="kubeconfig")
    if (known := ClusterAccess.objects.filter(name=name).exclude(region=region).first()) is not None:
        sentence = f"cluster {name!r} is region {known.region!r}; remove it before it becomes another"
        raise Problem(CONFLICT, sentence, param="region")


def _keep_pool(cluster_name: str, region: str, fields: Mapping[str, Any]) -> Pool:
    theirs = Pool.objects.filter(region=region, name=fields["name"]).exclude(cluster__in=("", cluster_name)).first()
    if theirs is not None:
        raise Problem(
            CONFLICT, f"pool {theirs.name!r} of region {region!r} is on cluster {theirs.cluster!r}", param="name"
        )
    pool, _ = Pool.objects.update_or_create(
        region=region, name=fields["name"], defaults={**fields, "cluster": cluster_name}
    )
    endpoints_revisit(pool)
    return pool


@cache
def _local() -> Cluster:
    return LocalCluster(settings.STATE_DIR / "cluster")


@cache
def _kubernetes(name: str, sealed: bytes) -> Cluster:
    """One client per credentials: a process that never asks for it never loads the client's library."""
    from k8s.client.cluster import KubernetesCluster

    try:
        return KubernetesCluster(json.loads(_seal().decrypt(sealed)))
    except InvalidToken as error:
        raise UnreachableError(
            f"the credentials of cluster {name!r} were sealed under another secret; "
            "`manage.py cluster add` with its kubeconfig seals them anew"
        ) from error


def _seal() -> Fernet:
    return Fernet(base64.urlsafe_b64encode(settings.KUBECONFIG_KEY))
