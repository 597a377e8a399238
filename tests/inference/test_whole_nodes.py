"""Which nodes of a pool are free as a whole, by its reservations and by where pods are."""

import pytest

from inference.core.placement import whole_nodes_free
from inference.reconciler.run import reconcile
from inference.selectors import nodes_free
from tests.inference.conftest import create


@pytest.mark.parametrize(
    ("grouped_cards", "shared_nodes", "free"), [(0, 0, 4), (16, 0, 2), (0, 1, 3), (16, 1, 1), (16, 2, 0), (32, 1, 0)]
)
def test_a_node_is_free_where_neither_a_group_nor_anybody_else_is(grouped_cards, shared_nodes, free):
    assert free == whole_nodes_free(
        capacity=32, cards_per_node=8, grouped_cards=grouped_cards, shared_nodes=shared_nodes
    )


def test_a_replica_without_a_pod_counts_as_one_on_a_node_of_its_own(harbour, tenant):
    assert nodes_free(harbour.pool, 2) == 3
    endpoints = [create(tenant, name=f"tiny-{number}") for number in range(2)]
    for endpoint in endpoints:
        reconcile(endpoint.id)
    assert nodes_free(harbour.pool, 2) == 1
    for endpoint in endpoints:
        harbour.settle(endpoint)
    # Both are on node-1 now.
    assert nodes_free(harbour.pool, 2) == 2
