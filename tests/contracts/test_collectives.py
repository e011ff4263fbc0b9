"""Every collective: free when there is nothing to do, never cheaper for more bytes, dearer across the network."""

from __future__ import annotations

import numpy as np
import pytest

from planner.clusters import load_cluster
from planner.costs.collectives import OPERATIONS, Collectives
from planner.costs.groups import group_shape

CLUSTER = load_cluster("4x8-h100")
COLLECTIVES = Collectives(CLUSTER)
INSIDE = group_shape(CLUSTER, [tuple(range(8))])
ACROSS = group_shape(CLUSTER, [tuple(range(i, 32, 8)) for i in range(8)])


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_every_collective_keeps_the_rules(operation: str) -> None:
    """Zero bytes or one rank cost nothing; time never falls with bytes; the network is slower than the domain."""
    sizes = np.array([0, 1, 1e3, 1e5, 1e7, 1e9])
    inside, across = (COLLECTIVES.time(operation, sizes, shape) for shape in (INSIDE, ACROSS))
    assert inside[0] == across[0] == 0.0
    assert COLLECTIVES.time(operation, 1e9, group_shape(CLUSTER, [(3,)])) == 0.0
    assert (np.diff(inside) >= 0).all() and (np.diff(across) >= 0).all()
    assert across[-1] > 2 * inside[-1]
