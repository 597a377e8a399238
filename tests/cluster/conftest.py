import pytest

from tests.cluster import groups
from tests.cluster.boot import ControlPlane, build
from tests.cluster.product import product as start_product
from tests.cluster.site import Site, prepare
from tests.k8s.conftest import engines  # noqa: F401  the small program that stands in for an engine


def pytest_collection_modifyitems(config, items):
    """The first run on a machine builds Kubernetes for ten minutes: only `-m cluster` asks for that."""
    if "cluster" not in config.option.markexpr:
        ours = [item for item in items if item.get_closest_marker("cluster")]
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if item not in ours]


@pytest.fixture(scope="session")
def plane(tmp_path_factory):
    """A real control plane in which Moorage's account has the rights of `rights.yaml` and no more."""
    with ControlPlane(build(), tmp_path_factory.mktemp("plane")) as plane:
        prepare(plane)
        groups.install(plane)
        yield plane


@pytest.fixture
def site(plane, tmp_path, engines):  # noqa: F811
    """Moorage's view of the cluster, an administrator's, and nodes; all empty again afterwards."""
    site = Site(plane, tmp_path / "nodes", engines)
    yield site
    site.close()


@pytest.fixture(scope="module")
def product(plane, tmp_path_factory):
    """The whole product, with the control plane as a region; nodes are the tests' to add and take away."""
    with start_product(plane, tmp_path_factory.mktemp("product"), speed=4) as product:
        yield product
