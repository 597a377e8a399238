"""Clusters that an operator adds: asked before they are kept, sealed at rest, used with the credentials of now."""

from uuid import uuid4

import pytest
import yaml
from django.core.management import CommandError, call_command
from django.db import connection

from inference import clusters
from inference.core.words import Rung
from inference.models import ClusterAccess, Endpoint, Pool
from k8s.cluster import UnreachableError
from tenants.services import tenant_create
from tests.cluster.nodes import machine
from tests.inference.conftest import create, neighbours  # noqa: F401  the other rooms, recorded

pytestmark = pytest.mark.cluster
IMAGE = "engine.moorage.local/vllm-cpu"
POOL = {
    "name": "slots",
    "accelerator": "cpu",
    "resource_name": "moorage.dev/cpu-engine",
    "engine_images": {IMAGE: {"image": f"{IMAGE}:0.32.0", "version": "0.32.0"}},
}


@pytest.fixture
def name(database):
    """The name of a cluster and its region; forgotten afterwards."""
    name = f"added-{uuid4().hex[:8]}"
    yield name
    ClusterAccess.objects.filter(name=name).delete()
    Pool.objects.filter(region=name).update(cluster="")


@pytest.fixture
def add(site, name, tmp_path, capsys):
    """`manage.py cluster add` with this kubeconfig and these pools; what it prints."""

    def add(*pools, account="app", region=name):
        (tmp_path / "pools.yaml").write_text(yaml.safe_dump(list(pools)))
        kubeconfig = site.plane.folder / f"{account}.kubeconfig"
        call_command(
            "cluster", "add", name, f"--region={region}", f"--kubeconfig={kubeconfig}", f"--pools={tmp_path}/pools.yaml"
        )
        return capsys.readouterr().out

    return add


def slots(number, count=2):
    labels = {"moorage.dev/pool": "slots"}
    return machine(f"slots-{number}", labels=labels, resources={"moorage.dev/cpu-engine": count})


def test_an_added_cluster_is_used_and_its_pools_have_what_its_nodes_offer(site, name, add, capsys):
    site.start(slots(0), slots(1))
    assert "pool slots: 0 of 4 moorage.dev/cpu-engine in use, amd64" in add(POOL)
    assert {node["metadata"]["name"] for node in clusters.cluster(name).list().nodes} == {"slots-0", "slots-1"}
    assert name in clusters.names()
    call_command("cluster", "list")
    assert f"{name}  region {name}  2 nodes" in capsys.readouterr().out
    site.start(slots(2))
    assert "0 of 6" in add(POOL)
    assert Pool.objects.get(region=name).nodes == {f"slots-{number}": 2 for number in range(3)}
    call_command("cluster", "remove", name)
    assert name not in clusters.names()
    with pytest.raises(UnreachableError, match="cluster add"):
        clusters.cluster(name)


def test_credentials_are_sealed_at_rest_and_new_ones_hold_at_once(site, name, add, settings):
    add(POOL | {"arch": "amd64"})
    token = site.plane.tokens["app"].encode()
    with connection.cursor() as cursor:
        cursor.execute("SELECT sealed FROM cluster_access WHERE name = %s", [name])
        sealed = bytes(cursor.fetchone()[0])
        assert token not in sealed
        assert b"server" not in sealed
        cursor.execute("SELECT has_table_privilege('moorage_web', 'cluster_access', 'SELECT')")
        assert cursor.fetchone() == (False,)
    before = clusters.cluster(name)
    assert clusters.cluster(name) is before
    add(POOL | {"arch": "amd64"})
    assert clusters.cluster(name) is not before
    settings.KUBECONFIG_KEY = bytes(32)
    ClusterAccess.objects.filter(name=name).update(sealed=sealed)
    clusters._kubernetes.cache_clear()
    with pytest.raises(UnreachableError, match="another secret"):
        clusters.cluster(name)


def test_an_account_without_rights_is_refused_with_what_it_lacks(name, add):
    with pytest.raises(CommandError, match=r"may not .*create namespaces.*rights.yaml"):
        add(POOL | {"arch": "amd64"}, account="scheduler")
    assert not ClusterAccess.objects.filter(name=name).exists()


def test_a_pool_that_makes_no_sense_keeps_nothing(name, add):
    with pytest.raises(CommandError, match="pool 'slots': arch"):
        add(POOL)
    assert not ClusterAccess.objects.filter(name=name).exists()


def test_a_region_has_one_cluster(name, add):
    ClusterAccess.objects.create(name=f"{name}-first", region=f"{name}-region", sealed=b"x")
    with pytest.raises(CommandError, match=f"has cluster '{name}-first'"):
        add(POOL | {"arch": "amd64"}, region=f"{name}-region")
    ClusterAccess.objects.filter(name=f"{name}-first").delete()


def test_an_api_server_is_one_region_whatever_it_is_called(site, name, add, tmp_path):
    add(POOL | {"arch": "amd64"})
    kubeconfig = site.plane.kubeconfig("admin")
    port = kubeconfig["clusters"][0]["cluster"]["server"].rpartition(":")[2]
    kubeconfig["clusters"][0]["cluster"]["server"] = f"https://localhost:{port}"
    (tmp_path / "other.kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    told = f"this API server is cluster '{name}' of region '{name}' already"
    with pytest.raises(CommandError, match=told):
        call_command(
            "cluster",
            "add",
            f"{name}-2",
            f"--region={name}-2",
            f"--kubeconfig={tmp_path}/other.kubeconfig",
            f"--pools={tmp_path}/pools.yaml",
        )
    with pytest.raises(CommandError, match=f"'{name}' is region '{name}'; remove it"):
        add(POOL | {"arch": "amd64"}, region=f"{name}-2")
    assert list(ClusterAccess.objects.filter(name__startswith=name).values_list("region", flat=True)) == [name]
    assert not Pool.objects.filter(region=f"{name}-2").exists()


def test_a_cluster_with_endpoints_stays(name, add, neighbours):  # noqa: F811
    add(POOL | {"arch": "amd64", "capacity": 4})
    endpoint = create(tenant_create(name="Acme", currency="USD"), region=name, rung=Rung.DEDICATED)
    with pytest.raises(CommandError, match="1 endpoints are on cluster"):
        call_command("cluster", "remove", name)
    Endpoint.objects.filter(id=endpoint.id).update(archived_at=endpoint.created_at)
    call_command("cluster", "remove", name)
    assert Pool.objects.get(region=name).capacity == 0
