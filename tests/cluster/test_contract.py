"""What any `Cluster` must do, done by a real API server, scheduler and controllers."""

import pytest

from tests.cluster.nodes import machine
from tests.k8s.harness import SLOT, TENANT_OBJECTS, until
from tests.k8s.test_cluster_contract import *  # noqa: F403  every test of the contract

pytestmark = pytest.mark.cluster


@pytest.fixture
def running(site):
    """A place with a node that has room for two engines."""
    # An earlier test's namespace may still be on its way out.
    until(lambda: all(result.error is None for result in site.cluster.apply(TENANT_OBJECTS)))
    return site.start(machine("contract", resources={SLOT: 2}))
