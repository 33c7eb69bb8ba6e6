# SPDX-License-Identifier: Apache-2.0
"""L1 distances between architectures at each resolution, computed as matrix products.

The resolutions are those of :mod:`aiperf_mpi.search.features`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aiperf_mpi.search.features import LEVELS, Features, Plan, resolutions


@dataclass(frozen=True, eq=False)
class Table:
    """Feature rows at each resolution, prepared for distances.

    The L1 distance of two vectors of counts is |a| + |b| - 2 sum min(a, b). If each count is written as that
    many ones, the sum of minima is a matrix product. Only counts between the minimum and the maximum of the
    reference rows (the box) need columns; the distance from a count to the box is added. All sums are of
    small integers, so they are exact in float32.

    Attributes:
        ones: per level with counts the columns, float32 [rows, columns], one for each threshold of the
            reference.
        inside, outside: per level the number of ones, and the distance to the box (float32 [rows]).
        size: logarithms of operations and parameters, float64 [rows, 2].
        thresholds: per level (feature, count) of each column, and the box.
    """

    ones: tuple[np.ndarray, ...]
    inside: tuple[np.ndarray, ...]
    outside: tuple[np.ndarray, ...]
    size: np.ndarray
    thresholds: tuple[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], ...]

    def __len__(self) -> int:
        return len(self.size)

    def part(self, rows: slice | np.ndarray) -> Table:
        """Return a table of some of the rows."""
        return Table(
            tuple(a[rows] for a in self.ones),
            tuple(a[rows] for a in self.inside),
            tuple(a[rows] for a in self.outside),
            self.size[rows],
            self.thresholds,
        )


def tabulate(rows: Sequence[Features], plan: Plan, reference: Table | None = None) -> Table:
    """Return the table of some rows.

    Arguments:
        reference: the table that they will be compared with; None for the rows themselves.
    """
    levels = resolutions(rows, plan)
    counted = [levels[level] for level in LEVELS[:-1]]
    thresholds = tuple(map(_thresholds, counted)) if reference is None else reference.thresholds
    ones, inside, outside = [], [], []
    for counts, (feature, threshold, low, high) in zip(counted, thresholds, strict=True):
        columns = (counts[:, feature] > threshold).astype(np.float32)
        ones.append(columns)
        inside.append(columns.sum(axis=1))
        outside.append(np.abs(counts - np.clip(counts, low, high)).sum(axis=1).astype(np.float32))
    return Table(tuple(ones), tuple(inside), tuple(outside), levels["size"], thresholds)


def _thresholds(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    low, high = counts.min(axis=0), counts.max(axis=0)
    feature = np.repeat(np.arange(len(low)), high - low)
    first = np.cumsum(high - low) - (high - low)
    return feature, (np.arange(len(feature)) - first[feature] + low[feature]).astype(np.int16), low, high


def differences(first: Table, second: Table) -> np.ndarray:
    """Return the L1 distances at each level, float64 [levels, rows of first, rows of second].

    At least one table must lie inside the box of their common thresholds.
    """
    distances = np.empty((len(LEVELS), len(first), len(second)))
    for level, (a, b) in enumerate(zip(first.ones, second.ones, strict=True)):
        sums = (
            (first.inside[level] + first.outside[level])[:, None]
            + second.inside[level]
            + second.outside[level]
        )
        distances[level] = sums - 2.0 * (a @ b.T)
    distances[-1] = np.abs(first.size[:, None, :] - second.size[None, :, :]).sum(axis=2)
    return distances
