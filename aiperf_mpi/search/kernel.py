# SPDX-License-Identifier: Apache-2.0
"""The covariance function (kernel) of the surrogate, and the fit of its hyperparameters.

The kernel is s2 exp(-sum_g gamma_g L1_g(a, b)), a sum over the resolutions g of
:mod:`aiperf_mpi.search.features`. An L1 distance is conditionally negative definite, and so is a non-negative
sum of such distances. The kernel is therefore positive definite (Schoenberg, 1938) for all gammas.
Hyperparameters maximise the marginal likelihood under a weak prior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cholesky
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize

from aiperf_mpi.search.distances import Table
from aiperf_mpi.search.features import LEVELS

#: Maximum number of optimiser steps; starting at the prior's mode, 40 come within 1 % of the likelihood's
#: maximum.
FIT_STEPS = 40

#: Number of rows whose covariances with all earlier rows are computed at once.
BLOCK = 256

#: Prior of the hyperparameters, normal in their logarithms. PRIOR_DECAY: each level's part of the exponent at
#: its median distance. PRIOR_SIGNAL, PRIOR_NOISE: signal and noise variance for values of variance 1.
#: PRIOR_SPREAD: standard deviations of the logarithms.
PRIOR_DECAY, PRIOR_SIGNAL, PRIOR_NOISE = 0.1, 1.0, 0.1
PRIOR_SPREAD = np.array([0.7] * len(LEVELS) + [0.7, 1.0])

#: Bounds of the logarithms, as distance from the prior's mode; noise is at least 1e-4 of the values'
#: variance.
REACH = 5.0
LEAST_NOISE = 1e-4


@dataclass(frozen=True, eq=False)
class Hyper:
    """Hyperparameters of kernel and noise, for values of mean 0 and variance 1.

    Attributes:
        gamma: decay per unit of each level's distance, float64 [levels].
        signal: variance of the process.
        noise: variance of one measured value.
    """

    gamma: np.ndarray
    signal: float
    noise: float

    def kernel(self, distances: np.ndarray) -> np.ndarray:
        """Return the covariances for distances [levels, n, m]: float64 [n, m]."""
        return self.signal * np.exp(-np.tensordot(self.gamma, distances, axes=1))

    def covariance(self, first: Table, second: Table) -> np.ndarray:
        """Return `kernel(differences(first, second))` without storing the levels separately.

        float64 [rows of first, rows of second].
        """
        *counted, size = self.gamma

        # Sum the terms of single rows, then subtract the ones that both rows share (see Table), level by
        # level.
        sums = [
            sum(
                gamma * (inside.astype(np.float64) + outside)
                for gamma, inside, outside in zip(counted, table.inside, table.outside, strict=True)
            )
            for table in (first, second)
        ]
        total = sums[0][:, None] + sums[1]
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
        """Return the covariances of the rows of one table, with noise on the diagonal.

        Only the lower triangle is filled.

        Arguments:
            noise: variance of each row's noise, relative to that of one measured value, float64 [rows].
        """
        covariances = np.zeros((len(table), len(table)))
        for start in range(0, len(table), BLOCK):
            end = min(start + BLOCK, len(table))
            covariances[start:end, :end] = self.covariance(
                table.part(slice(start, end)), table.part(slice(end))
            )
        covariances[np.diag_indices(len(table))] += self.noise * noise
        return covariances


def fit(distances: np.ndarray, values: np.ndarray, noise: np.ndarray) -> Hyper:
    """Return the hyperparameters that maximise marginal likelihood times prior, starting at the prior's mode.

    Arguments:
        distances: between the rows, float64 [levels, n, n].
        values: standardised values, float64 [n].
        noise: variance of each value's noise, relative to that of one measured value, float64 [n].
    """
    n = len(values)
    apart = distances[:, *np.triu_indices(n, 1)] if n > 1 else np.ones((len(LEVELS), 1))
    scale = np.maximum(np.median(apart, axis=1), 1e-2)
    mode = np.log(np.concatenate([PRIOR_DECAY / scale, [PRIOR_SIGNAL, PRIOR_NOISE]]))
    flat = distances.reshape(len(LEVELS), -1)

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        """Return -log(likelihood times prior) and its gradient.

        The constant mean is the generalised least-squares estimate at each x.
        """
        hyper = _hyper(x)
        signal = hyper.kernel(distances)
        covariance = signal + np.diag(hyper.noise * noise)
        factor, _ = stable_factor(covariance)
        inverse = inverse_of(factor)
        mean = (inverse @ values).sum() / inverse.sum()
        weights = inverse @ (values - mean)
        pull = (x - mode) / PRIOR_SPREAD
        value = 0.5 * (values - mean) @ weights + np.log(np.diag(factor)).sum() + 0.5 * pull @ pull

        # d loss / d theta = -1/2 tr((w w' - K^-1) dK / d theta), where dK / d log gamma = -gamma L1 K.
        outer = (inverse - np.outer(weights, weights)) * 0.5
        by_signal = outer * signal
        slopes = -hyper.gamma * (flat @ by_signal.ravel())
        gradient = np.array([*slopes, by_signal.sum(), hyper.noise * (np.diag(outer) * noise).sum()])
        return float(value), gradient + pull / PRIOR_SPREAD

    bounds = [(m - REACH, m + REACH) for m in mode]
    bounds[-1] = (np.log(LEAST_NOISE), 3.0)
    result = minimize(loss, mode, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": FIT_STEPS})
    return _hyper(result.x if np.all(np.isfinite(result.x)) else mode)


def _hyper(x: np.ndarray) -> Hyper:
    values = np.exp(x)
    return Hyper(values[:-2], float(values[-2]), float(values[-1]))


def stable_factor(covariance: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the lower Cholesky factor, and the jitter added to the diagonal to obtain it (0 if possible).

    Raises ValueError if the matrix is not finite.
    """
    if not np.isfinite(covariance).all():
        raise ValueError("surrogate: the covariance matrix holds values that are not finite")
    jitter = 0.0
    while True:
        try:
            lower = cholesky(
                covariance + jitter * np.eye(len(covariance)) if jitter else covariance,
                lower=True,
                check_finite=False,
            )
            return lower, jitter
        except LinAlgError:
            jitter = max(jitter * 10.0, 1e-10 * float(np.abs(np.diag(covariance)).max()), 1e-12)


def inverse_of(factor: np.ndarray) -> np.ndarray:
    """Return the inverse, both triangles, of the matrix with this lower Cholesky factor (LAPACK's dpotri)."""
    lower, _ = dpotri(factor, lower=1)
    return lower + np.tril(lower, -1).T
