"""Which nodes of a pool are free as a whole, by its reservations and by where pods are."""

import pytest

from inference.core.placement import whole_nodes, whole_nodes_at_best, with_room
from inference.models import Pool
from inference.reconciler.run import reconcile
from inference.selectors import nodes_free
from tests.inference.conftest import create

NODES = {"a": 8, "b": 4, "c": 8, "d": 16}


@pytest.mark.parametrize(
    ("taken", "unplaced", "free"),
    [
        ((), 0, (16, 8, 8, 4)),
        (("a", "d"), 0, (8, 4)),
        (("elsewhere",), 0, (16, 8, 8, 4)),
        ((), 2, (8, 4)),
        (("a",), 1, (8, 4)),
        (("a", "b", "c"), 2, ()),
    ],
)
def test_a_node_is_free_where_nobody_is_and_nobody_may_be(taken, unplaced, free):
    assert whole_nodes(NODES, taken=taken, unplaced=unplaced) == free


@pytest.mark.parametrize(("cards", "count"), [(1, 4), (4, 4), (8, 3), (9, 1), (17, 0)])
def test_a_node_that_is_too_small_is_no_room(cards, count):
    assert with_room(NODES.values(), cards) == count


@pytest.mark.parametrize(
    ("taken", "cards", "free"), [(0, 8, 3), (4, 8, 3), (5, 8, 2), (20, 8, 2), (21, 8, 1), (36, 8, 0), (1, 16, 1)]
)
def test_at_best_those_that_are_taken_lie_where_they_cost_the_fewest_nodes(taken, cards, free):
    assert whole_nodes_at_best(list(NODES.values()), taken=taken, cards=cards) == free


def test_a_replica_without_a_pod_counts_as_one_on_a_node_of_its_own(harbour, tenant):
    Pool.objects.filter(id=harbour.pool.id).update(nodes={f"node-{number}": 2 for number in range(1, 4)})
    harbour.pool.refresh_from_db()
    assert nodes_free(harbour.pool, 2) == 3
    assert nodes_free(harbour.pool, 3) == 0
    endpoints = [create(tenant, name=f"tiny-{number}") for number in range(2)]
    for endpoint in endpoints:
        reconcile(endpoint.id)
    assert nodes_free(harbour.pool, 2) == 1
    for endpoint in endpoints:
        harbour.settle(endpoint)
    # Both are on node-1 now.
    assert nodes_free(harbour.pool, 2) == 2
