# SPDX-License-Identifier: Apache-2.0
"""The surrogate of the search: a Gaussian process over architectures, exact, with noise on the whole diagonal.

Kernel: s2 exp(-sum_g gamma_g L1_g(a, b)) over the resolutions g of :mod:`aiperf_mpi.search.features`. An L1 distance
is conditionally negative definite, a non-negative sum of such distances is, too, and so the kernel is positive
definite (Schoenberg, 1938), whatever the gammas. Hyperparameters are those of the largest marginal likelihood under a
weak prior. Everything here is a function of its arguments: the same data give the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize

from aiperf_mpi.search.features import LEVELS, Features, Plan, resolutions

#: Rows that the hyperparameters are fitted on: the cost grows with the third power.
FIT_ROWS = 200

#: Steps of the optimiser at most; from the prior's mode it is within 1 % of the likelihood's maximum by then.
FIT_STEPS = 40

#: Rows whose covariances with those before them are computed at once.
BLOCK = 256

#: Prior of the hyperparameters, normal in their logarithms: what share of the median distance's decay each level
#: causes, signal and noise variance for values of variance 1, and how far (in logarithms) data must speak to move them.
PRIOR_DECAY, PRIOR_SIGNAL, PRIOR_NOISE = 0.1, 1.0, 0.1
PRIOR_SPREAD = np.array([0.7] * len(LEVELS) + [0.7, 1.0])

#: Bounds of the logarithms beyond the prior's mode; noise never falls below 1e-4 of the values' variance.
REACH = 5.0
LEAST_NOISE = 1e-4

#: Variance of a predicted value's noise (warm-up) over that of a measured one: twice the standard deviation.
PREDICTED_NOISE = 4.0

#: Values worse than the median by more than this many (normalised) median deviations count as just that bad: a
#: diverged trial says "bad", and must not stretch the scale on which the good ones are told apart.
WORST_DEVIATIONS = 4.0


# -- distances -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Table:
    """Rows at every resolution, ready for distances.

    The L1 distance of counts is |a| + |b| - 2 sum min(a, b), and the sum of minima is a product of matrices if each
    count is written as that many ones. Only counts between the least and the largest of the reference rows need
    columns; what lies outside of that box adds its own distance to it. All sums are of small integers, so they are
    exact in float32.

    Attributes:
        ones: per level with counts the columns, float32 [rows, columns], those of the reference's thresholds.
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
        """Some of the rows."""
        return Table(tuple(a[rows] for a in self.ones), tuple(a[rows] for a in self.inside),
                     tuple(a[rows] for a in self.outside), self.size[rows], self.thresholds)


def tabulate(rows: Sequence[Features], plan: Plan, reference: Table | None = None) -> Table:
    """The table of some rows; `reference` is the one that they will be compared with, their own if None."""
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
    """L1 distances at every level, float64 [levels, rows of first, rows of second].

    At least one of both must lie inside of the box of their common thresholds.
    """
    found = np.empty((len(LEVELS), len(first), len(second)))
    for level, (a, b) in enumerate(zip(first.ones, second.ones, strict=True)):
        beside = (first.inside[level] + first.outside[level])[:, None] + second.inside[level] + second.outside[level]
        found[level] = beside - 2.0 * (a @ b.T)
    found[-1] = np.abs(first.size[:, None, :] - second.size[None, :, :]).sum(axis=2)
    return found


# -- hyperparameters -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Hyper:
    """Kernel and noise for values of mean 0 and variance 1.

    Attributes:
        gamma: decay per unit of each level's distance, float64 [levels].
        signal: variance of the process.
        noise: variance of one measured value.
    """

    gamma: np.ndarray
    signal: float
    noise: float

    def kernel(self, distances: np.ndarray) -> np.ndarray:
        """Covariances for distances [levels, n, m]: float64 [n, m]."""
        return self.signal * np.exp(-np.tensordot(self.gamma, distances, axes=1))

    def covariance(self, first: Table, second: Table) -> np.ndarray:
        """`kernel(differences(first, second))`, without keeping the levels apart: float64 [rows, rows]."""
        *counted, size = self.gamma

        # What belongs to one row alone, then the common ones of both (see Table) level by level.
        beside = [sum(gamma * (inside.astype(np.float64) + outside)
                      for gamma, inside, outside in zip(counted, table.inside, table.outside, strict=True))
                  for table in (first, second)]  # fmt: skip
        total = beside[0][:, None] + beside[1]
        scratch = np.empty_like(total)
        for gamma, a, b in zip(counted, first.ones, second.ones, strict=True):
            np.multiply(a @ b.T, 2.0 * gamma, out=scratch)
            total -= scratch
        for a, b in zip(first.size.T, second.size.T, strict=True):
            np.abs(np.subtract(a[:, None], b, out=scratch), out=scratch)
            scratch *= size
            total += scratch
        np.exp(np.negative(total, out=total), out=total)
        total *= self.signal
        return total

    def among(self, table: Table, noise: np.ndarray) -> np.ndarray:
        """Covariances of the rows of one table with noise on the whole diagonal; only the lower triangle is filled.

        Arguments:
            noise: variance of each row's noise over that of one measured value, float64 [rows].
        """
        found = np.zeros((len(table), len(table)))
        for start in range(0, len(table), BLOCK):
            end = min(start + BLOCK, len(table))
            found[start:end, :end] = self.covariance(table.part(slice(start, end)), table.part(slice(end)))
        found[np.diag_indices(len(table))] += self.noise * noise
        return found


def fit(distances: np.ndarray, values: np.ndarray, noise: np.ndarray) -> Hyper:
    """The hyperparameters of the largest marginal likelihood times prior, from the prior's mode on.

    Arguments:
        distances: between the rows, float64 [levels, n, n].
        values: standardised values, float64 [n].
        noise: variance of each value's noise over that of one measured value, float64 [n].
    """
    n = len(values)
    apart = distances[:, *np.triu_indices(n, 1)] if n > 1 else np.ones((len(LEVELS), 1))
    scale = np.maximum(np.median(apart, axis=1), 1e-2)
    mode = np.log(np.concatenate([PRIOR_DECAY / scale, [PRIOR_SIGNAL, PRIOR_NOISE]]))
    flat = distances.reshape(len(LEVELS), -1)

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        """Negative log of likelihood times prior, and its gradient; the constant mean is the best one for each x."""
        hyper = _hyper(x)
        signal = hyper.kernel(distances)
        covariance = signal + np.diag(hyper.noise * noise)
        factor, _ = stable_factor(covariance)
        inverse = inverse_of(factor)
        mean = (inverse @ values).sum() / inverse.sum()
        weights = inverse @ (values - mean)
        pull = (x - mode) / PRIOR_SPREAD
        value = (0.5 * (values - mean) @ weights + np.log(np.diag(factor)).sum() + 0.5 * pull @ pull)

        # d loss / d theta = -1/2 tr((w w' - K^-1) dK / d theta), where dK / d log gamma = -gamma L1 K.
        outer = (inverse - np.outer(weights, weights)) * 0.5
        by_signal = outer * signal
        slopes = -hyper.gamma * (flat @ by_signal.ravel())
        gradient = np.array([*slopes, by_signal.sum(), hyper.noise * (np.diag(outer) * noise).sum()])
        return float(value), gradient + pull / PRIOR_SPREAD

    bounds = [(m - REACH, m + REACH) for m in mode]
    bounds[-1] = (np.log(LEAST_NOISE), 3.0)
    found = minimize(loss, mode, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": FIT_STEPS})
    return _hyper(found.x if np.all(np.isfinite(found.x)) else mode)


def _hyper(x: np.ndarray) -> Hyper:
    values = np.exp(x)
    return Hyper(values[:-2], float(values[-2]), float(values[-1]))


def stable_factor(covariance: np.ndarray) -> tuple[np.ndarray, float]:
    """Lower Cholesky factor, with as little added to the diagonal as it needs (0 at first); and how much that is.

    Raises ValueError if the matrix is not finite.
    """
    if not np.isfinite(covariance).all():
        raise ValueError("surrogate: the covariance matrix holds values that are not finite")
    jitter = 0.0
    while True:
        try:
            lower = cholesky(covariance + jitter * np.eye(len(covariance)) if jitter else covariance, lower=True,
                             check_finite=False)
            return lower, jitter
        except LinAlgError:
            jitter = max(jitter * 10.0, 1e-10 * float(np.abs(np.diag(covariance)).max()), 1e-12)


def inverse_of(factor: np.ndarray) -> np.ndarray:
    """The inverse of the symmetric matrix whose lower Cholesky factor is given, both triangles (LAPACK's dpotri)."""
    lower, _ = dpotri(factor, lower=1)
    return lower + np.tril(lower, -1).T


# -- the process -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Observations:
    """What has been observed.

    Attributes:
        rows: features of the architectures.
        values: an error of each, finite, float64 [n].
        predicted: whether it was predicted from a learning curve, bool [n].
    """

    rows: tuple[Features, ...]
    values: np.ndarray
    predicted: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def same(self, other: Observations) -> bool:
        """Whether both hold the same numbers of the very same rows."""
        return (
            len(self) == len(other)
            and all(a is b for a, b in zip(self.rows, other.rows, strict=True))
            and np.array_equal(self.values, other.values)
            and np.array_equal(self.predicted, other.predicted)
        )

    @property
    def noise(self) -> np.ndarray:
        """Variance of each value's noise over that of one measured value, float64 [n]."""
        return np.where(self.predicted, PREDICTED_NOISE, 1.0)


@dataclass(frozen=True, eq=False)
class Units:
    """How errors are standardised: cut off at `worst`, then (error - centre) / scale."""

    centre: float
    scale: float
    worst: float

    @staticmethod
    def of(values: np.ndarray) -> Units:
        """Mean 0 and variance 1 for these values, after the cut."""
        median = float(np.median(values))
        deviation = 1.4826 * float(np.median(np.abs(values - median))) or float(values.std())
        worst = median + WORST_DEVIATIONS * deviation
        kept = np.minimum(values, worst)
        return Units(float(kept.mean()), float(kept.std()) or 1.0, worst)

    def standardise(self, values: np.ndarray) -> np.ndarray:
        """Errors as the process takes them."""
        return (np.minimum(values, self.worst) - self.centre) / self.scale


@dataclass(frozen=True, eq=False)
class Process:
    """A Gaussian process that has seen some rows; those that are fantasies come last.

    Attributes:
        plan: of the base network.
        units, hyper: as learnt from the rows it was first given.
        rows, table: features of all rows.
        lower: Cholesky factor of their covariance with noise, float64 [n, n].
        values, noise: standardised values of the observed rows, and the variance of their noise over that of one
            measured value, float64 [observed].
        places: the row of each observation, as duplicates share one, int64 [observations].
        weights: of the observed rows in the posterior mean, covariance^-1 (values - mean), float64 [observed].
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
        """Posterior mean and standard deviation of the noise-free error of each row (float64 [m] both)."""
        cross = self.hyper.covariance(tabulate(rows, self.plan, self.table), self.table)
        half = solve_triangular(self.lower, cross.T, lower=True, check_finite=False)
        variance = np.maximum(self.hyper.signal - np.einsum("ij,ij->j", half, half), 0.0)
        mean = self.mean + cross[:, : len(self.weights)] @ self.weights
        return self.units.centre + self.units.scale * mean, self.units.scale * np.sqrt(variance)

    def expected(self) -> np.ndarray:
        """Posterior mean of the noise-free error at each observation, in their order (float64 [observations]).

        What `predict` says of their rows, without a distance: (K + N) w = y - m, so m + K w = y - N w.
        """
        mean = self.values - self.hyper.noise * self.noise * self.weights
        return self.units.centre + self.units.scale * mean[self.places]

    def append(self, seen: Observations) -> Process:
        """The process after more observations, hyperparameters kept. Raises ValueError if it holds fantasies."""
        if len(self.values) != len(self):
            raise ValueError("surrogate: observations cannot come behind fantasies")
        if not len(seen):
            return self
        table, lower = self._extended(seen.rows, seen.noise)
        values = np.concatenate([self.values, self.units.standardise(seen.values)])
        mean, weights = _posterior(lower, values)
        return replace(self, rows=self.rows + seen.rows, table=table, lower=lower, values=values, weights=weights,
                       mean=mean, noise=np.concatenate([self.noise, seen.noise]),
                       places=np.concatenate([self.places, np.arange(len(self), len(table))]))

    def imagine(self, rows: Sequence[Features]) -> Process:
        """The process as if these rows had been observed, too, each with the value that it expects.

        Such a fantasy (kriging believer) leaves every posterior mean where it is and lowers the uncertainty around.
        """
        if not rows:
            return self
        table, lower = self._extended(tuple(rows), np.ones(len(rows)))
        return replace(self, rows=self.rows + tuple(rows), table=table, lower=lower)

    def _extended(self, rows: tuple[Features, ...], noise: np.ndarray) -> tuple[Table, np.ndarray]:
        """Table and factor with rows appended: [[L, 0], [B, C]] with B = K21 L^-T and C C' = K22 - B B'."""
        old, table = len(self), tabulate(self.rows + rows, self.plan)
        covariance = self.hyper.covariance(table.part(slice(old, None)), table)
        beside = solve_triangular(self.lower, covariance[:, :old].T, lower=True, check_finite=False).T
        corner = covariance[:, old:] + np.diag(self.hyper.noise * noise) - beside @ beside.T
        lower = np.zeros((len(table), len(table)))
        lower[:old, :old], lower[old:, :old] = self.lower, beside
        lower[old:, old:], _ = stable_factor(corner)
        return table, lower


def learn(seen: Observations, plan: Plan) -> Process:
    """A process from scratch: duplicates merged, hyperparameters fitted on at most 200 rows, all rows factorised.

    Arguments:
        seen: at least one observation.
        plan: of the base network.

    Raises ValueError without an observation, or for a value that is not finite.
    """
    if not len(seen) or not np.isfinite(seen.values).all():
        raise ValueError(f"surrogate: {len(seen)} observations, of which "
                         f"{int(np.isfinite(seen.values).sum())} have a finite value; it needs one, and all finite")
    units = Units.of(seen.values)
    places, rows, values, noise = merge(seen.rows, units.standardise(seen.values), seen.noise)
    table, chosen = tabulate(rows, plan), _spread(values, FIT_ROWS)
    fitted = table.part(chosen)
    hyper = fit(differences(fitted, fitted), values[chosen], noise[chosen])
    lower, _ = stable_factor(hyper.among(table, noise))
    mean, weights = _posterior(lower, values)
    return Process(plan, units, hyper, rows, table, lower, values, noise, places, weights, mean)


def merge(rows: Sequence[Features], values: np.ndarray,
          noise: np.ndarray) -> tuple[np.ndarray, tuple[Features, ...], np.ndarray, np.ndarray]:
    """(places, rows, values, noise) without duplicates, rows in the order of their first appearance, and at which of
    them each given row is now; values are averaged by precision, the variance of the noise falls with their number."""
    first: dict[tuple[bytes, int, int], int] = {}
    place = np.array([first.setdefault(row.key, len(first)) for row in rows])
    unique = [rows[int(i)] for i in np.unique(place, return_index=True)[1]]
    precision = np.bincount(place, 1.0 / noise)
    return place, tuple(unique), np.bincount(place, values / noise) / precision, 1.0 / precision


def _spread(values: np.ndarray, count: int) -> np.ndarray:
    """At most `count` rows for the fit: every k-th by value, so that good and bad ones are there (int64, ascending)."""
    if len(values) <= count:
        return np.arange(len(values))
    ranks = np.linspace(0, len(values) - 1, count).round().astype(np.int64)
    return np.sort(np.argsort(values, kind="stable")[ranks])


def _posterior(lower: np.ndarray, values: np.ndarray) -> tuple[float, np.ndarray]:
    """The constant mean by generalised least squares, and the weights of the rows."""
    ones = cho_solve((lower, True), np.ones(len(values)), check_finite=False)
    mean = float(ones @ values / ones.sum())
    return mean, cho_solve((lower, True), values - mean, check_finite=False)
