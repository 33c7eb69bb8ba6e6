# SPDX-License-Identifier: Apache-2.0
"""The edit distance by search, as the authors compute it: the best alignment of the units by dynamic
programming, the best assignment of the skips by the Hungarian method. The reference of the closed form; far
too slow for the search.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from aiperf_mpi.network.architecture import Architecture, Unit


def unit_distance(a: Unit, b: Unit) -> float:
    """The authors' layer_distance for convolutions: mean relative difference of filters, kernel and
    stride."""
    pairs = ((a.filters, b.filters), (a.kernel, b.kernel), (a.stride, b.stride))
    return sum(abs(x - y) / max(x, y) for x, y in pairs) / 3


def aligned_distance(first: Architecture, second: Architecture) -> float:
    """Edit distance of the main chains: insert or delete a unit for 1, change one into another for their
    distance."""
    a, b = first.units, second.units
    cost = np.zeros((len(a) + 1, len(b) + 1))
    cost[:, 0], cost[0, :] = np.arange(len(a) + 1), np.arange(len(b) + 1)
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            cost[i + 1, j + 1] = min(
                cost[i, j + 1] + 1, cost[i + 1, j] + 1, cost[i, j] + unit_distance(left, right)
            )
    return float(cost[-1, -1])


def added_edges(architecture: Architecture) -> list[tuple[int, int]]:
    """(position of the source, position of the target) of every skip that the base network does not have."""
    own = {unit.id: len(unit.edges) for unit in Architecture(architecture.base).units}
    position = {unit.id: i for i, unit in enumerate(architecture.units)}
    return [
        (position[edge.source], position[unit.id])
        for unit in architecture.units
        for edge in unit.edges[own.get(unit.id, 0) :]
    ]


def skip_distance(a: tuple[int, int], b: tuple[int, int]) -> float:
    """The authors' skip_connection_distance: relative difference of start and length."""
    length_a, length_b = a[1] - a[0], b[1] - b[0]
    return (abs(a[0] - b[0]) + abs(length_a - length_b)) / (max(a[0], b[0]) + max(length_a, length_b))


def assigned_distance(first: Architecture, second: Architecture) -> float:
    """Cost of the best assignment of the skips, and 1 for each without a partner (authors' code,
    Hungarian)."""
    a, b = added_edges(first), added_edges(second)
    if not a or not b:
        return float(abs(len(a) - len(b)))
    cost = np.array([[skip_distance(x, y) for y in b] for x in a])
    return float(cost[linear_sum_assignment(cost)].sum() + abs(len(a) - len(b)))
