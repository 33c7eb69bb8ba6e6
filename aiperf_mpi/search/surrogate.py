# SPDX-License-Identifier: Apache-2.0
"""The surrogate of the search: an exact Gaussian process over architectures with noise on the diagonal.

All functions are pure: the same data give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_solve, solve_triangular

from aiperf_mpi.search.distances import Table, differences, tabulate
from aiperf_mpi.search.features import Features, Plan
from aiperf_mpi.search.kernel import Hyper, fit, stable_factor
from aiperf_mpi.trials.origin import Expectation, expectation

#: Maximum number of rows that the hyperparameters are fitted on: the cost grows with the third power.
FIT_ROWS = 200

#: Noise variance of a predicted value (warm-up), relative to a measured one: twice the standard deviation.
PREDICTED_NOISE = 4.0

#: Values worse than the median by more than this many (normalised) median absolute deviations are clipped
#: there. A diverged trial must not stretch the scale that separates the good ones.
WORST_DEVIATIONS = 4.0


@dataclass(frozen=True, eq=False)
class Observations:
    """Observed errors of architectures.

    Attributes:
        rows: features of the architectures.
        values: their errors, finite, float64 [n].
        predicted: whether each error was predicted from a learning curve, bool [n].
    """

    rows: tuple[Features, ...]
    values: np.ndarray
    predicted: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def same(self, other: Observations) -> bool:
        """Return whether both hold equal values for identical row objects."""
        return (
            len(self) == len(other)
            and all(a is b for a, b in zip(self.rows, other.rows, strict=True))
            and np.array_equal(self.values, other.values)
            and np.array_equal(self.predicted, other.predicted)
        )

    @property
    def noise(self) -> np.ndarray:
        """Variance of each value's noise, relative to that of one measured value, float64 [n]."""
        return np.where(self.predicted, PREDICTED_NOISE, 1.0)


@dataclass(frozen=True, eq=False)
class Units:
    """How errors are standardised: clipped at `worst`, then (error - centre) / scale."""

    centre: float
    scale: float
    worst: float

    @staticmethod
    def of(values: np.ndarray) -> Units:
        """Return the units that give these values mean 0 and variance 1 after clipping."""
        median = float(np.median(values))
        deviation = 1.4826 * float(np.median(np.abs(values - median))) or float(values.std())
        worst = median + WORST_DEVIATIONS * deviation
        kept = np.minimum(values, worst)
        return Units(float(kept.mean()), float(kept.std()) or 1.0, worst)

    def standardise(self, values: np.ndarray) -> np.ndarray:
        """Return errors in the units of the process."""
        return (np.minimum(values, self.worst) - self.centre) / self.scale


@dataclass(frozen=True, eq=False)
class Process:
    """A Gaussian process conditioned on some rows; imagined rows (fantasies) come last.

    Attributes:
        plan: of the base network.
        units, hyper: as fitted to the first rows.
        rows, table: features of all rows.
        lower: Cholesky factor of their covariance with noise, float64 [n, n].
        values: standardised values of the observed rows, float64 [observed].
        noise: variance of their noise, relative to that of one measured value, float64 [observed].
        places: the row of each observation, int64 [observations]; duplicates share a row.
        weights: of the observed rows in the posterior mean, covariance^-1 (values - mean), float64
            [observed].
        mean: the constant mean, by generalised least squares.
    """

    plan: Plan
    units: Units
    hyper: Hyper
    rows: tuple[Features, ...]
    table: Table
    lower: np.ndarray
    values: np.ndarray
    noise: np.ndarray
    places: np.ndarray
    weights: np.ndarray
    mean: float

    def __len__(self) -> int:
        return len(self.rows)

    def predict(self, rows: Sequence[Features]) -> tuple[np.ndarray, np.ndarray]:
        """Return posterior mean and standard deviation of each row's noise-free error (both float64 [m])."""
        cross = self.hyper.covariance(tabulate(rows, self.plan, self.table), self.table)
        half = solve_triangular(self.lower, cross.T, lower=True, check_finite=False)
        variance = np.maximum(self.hyper.signal - np.einsum("ij,ij->j", half, half), 0.0)
        mean = self.mean + cross[:, : len(self.weights)] @ self.weights
        return self.units.centre + self.units.scale * mean, self.units.scale * np.sqrt(variance)

    def expect(self, row: Features) -> Expectation | None:
        """Return what is expected of one trial with these features, with the noise of a measured error."""
        mean, deviation = (float(values[0]) for values in self.predict([row]))
        return expectation(mean, math.hypot(deviation, self.units.scale * math.sqrt(self.hyper.noise)))

    def expected(self) -> np.ndarray:
        """Return the posterior mean of the noise-free error at each observation, float64 [observations].

        Equal to `predict` on their rows, but computed without distances: with (K + N) w = y - m, m + K w = y
        - N w.
        """
        mean = self.values - self.hyper.noise * self.noise * self.weights
        return self.units.centre + self.units.scale * mean[self.places]

    def append(self, seen: Observations) -> Process:
        """Return the process after more observations, hyperparameters kept.

        Raises ValueError if the process holds fantasies.
        """
        if len(self.values) != len(self):
            raise ValueError("surrogate: observations cannot follow fantasies")
        if not len(seen):
            return self
        table, lower = self._extended(seen.rows, seen.noise)
        values = np.concatenate([self.values, self.units.standardise(seen.values)])
        mean, weights = _posterior(lower, values)
        return replace(
            self,
            rows=self.rows + seen.rows,
            table=table,
            lower=lower,
            values=values,
            weights=weights,
            mean=mean,
            noise=np.concatenate([self.noise, seen.noise]),
            places=np.concatenate([self.places, np.arange(len(self), len(table))]),
        )

    def imagine(self, rows: Sequence[Features]) -> Process:
        """Return the process as if these rows had been observed too, each with its expected value.

        Such a fantasy (kriging believer) changes no posterior mean and lowers the uncertainty around it.
        """
        if not rows:
            return self
        table, lower = self._extended(tuple(rows), np.ones(len(rows)))
        return replace(self, rows=self.rows + tuple(rows), table=table, lower=lower)

    def _extended(self, rows: tuple[Features, ...], noise: np.ndarray) -> tuple[Table, np.ndarray]:
        """Return table and factor with rows appended: [[L, 0], [B, C]], B = K21 L^-T, C C' = K22 - B B'."""
        old, table = len(self), tabulate(self.rows + rows, self.plan)
        covariance = self.hyper.covariance(table.part(slice(old, None)), table)
        cross = solve_triangular(self.lower, covariance[:, :old].T, lower=True, check_finite=False).T
        corner = covariance[:, old:] + np.diag(self.hyper.noise * noise) - cross @ cross.T
        lower = np.zeros((len(table), len(table)))
        lower[:old, :old], lower[old:, :old] = self.lower, cross
        lower[old:, old:], _ = stable_factor(corner)
        return table, lower


def learn(seen: Observations, plan: Plan) -> Process:
    """Return a process fitted from scratch: duplicates merged, hyperparameters fitted on at most 200 rows.

    Arguments:
        seen: at least one observation.
        plan: of the base network.

    Raises ValueError without an observation, or for a value that is not finite.
    """
    if not len(seen) or not np.isfinite(seen.values).all():
        raise ValueError(
            f"surrogate: {len(seen)} observations, of which "
            f"{int(np.isfinite(seen.values).sum())} have a finite value; it needs at least one, all finite"
        )
    units = Units.of(seen.values)
    places, rows, values, noise = merge(seen.rows, units.standardise(seen.values), seen.noise)
    table, chosen = tabulate(rows, plan), _spread(values, FIT_ROWS)
    fitted = table.part(chosen)
    hyper = fit(differences(fitted, fitted), values[chosen], noise[chosen])
    lower, _ = stable_factor(hyper.among(table, noise))
    mean, weights = _posterior(lower, values)
    return Process(plan, units, hyper, rows, table, lower, values, noise, places, weights, mean)


def merge(
    rows: Sequence[Features], values: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, tuple[Features, ...], np.ndarray, np.ndarray]:
    """Return (places, rows, values, noise) without duplicates, rows in the order of their first appearance.

    `places` is the new row of each given row. Values are averaged by precision; the noise variance falls with
    their number.
    """
    first: dict[tuple[bytes, int, int], int] = {}
    place = np.array([first.setdefault(row.key, len(first)) for row in rows])
    unique = [rows[int(i)] for i in np.unique(place, return_index=True)[1]]
    precision = np.bincount(place, 1.0 / noise)
    return place, tuple(unique), np.bincount(place, values / noise) / precision, 1.0 / precision


def _spread(values: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of at most `count` rows for the fit (int64, ascending).

    They are evenly spaced by rank of value, so that good and bad rows are included.
    """
    if len(values) <= count:
        return np.arange(len(values))
    ranks = np.linspace(0, len(values) - 1, count).round().astype(np.int64)
    return np.sort(np.argsort(values, kind="stable")[ranks])


def _posterior(lower: np.ndarray, values: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the constant mean by generalised least squares, and the weights of the rows."""
    ones = cho_solve((lower, True), np.ones(len(values)), check_finite=False)
    mean = float(ones @ values / ones.sum())
    return mean, cho_solve((lower, True), values - mean, check_finite=False)
