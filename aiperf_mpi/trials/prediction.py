# SPDX-License-Identifier: Apache-2.0
"""Predicted error of a warm-up trial, which trains too few epochs: the authors' fit of the learning curve.

Section 4.5 of the paper; the constants are from the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aiperf_mpi.paper import SCHEDULE_EPOCHS

#: Prior of the authors' learning-curve fit: an accuracy of 0.75 at epoch 120, twice the schedule. It suits
#: ResNet-50 on ImageNet. On an easier data set the prediction falls back to the best observed accuracy.
PRIOR_ACCURACY = 0.75
PRIOR_SCHEDULES = 2.0

#: The epoch whose accuracy is predicted: 90, one and a half schedules (authors' code).
TARGET_SCHEDULES = 1.5

#: Number of root mean square residuals subtracted from the prediction (authors' code).
CAUTION = 2.0

#: Minimum number of observations for a prediction. With the prior as a fourth point, three observations leave
#: the fit of three parameters one residual.
MIN_OBSERVATIONS = 3


@dataclass(frozen=True)
class Prediction:
    """The error of a trial that the search uses.

    Arguments:
        error: predicted error, or the best observed one if `predicted` is false; NaN without an observation.
        predicted: whether the fit was used.
        residual: root mean square of the fit's residuals in accuracy; NaN without a fit.
    """

    error: float
    predicted: bool
    residual: float = math.nan


def predict_error(val_errors: Sequence[float], schedule: int = SCHEDULE_EPOCHS) -> Prediction:
    """Return the error that a warm-up trial would reach, from its validation errors after each epoch.

    The method is the authors'. The accuracies get the prior (epoch 120, accuracy 0.75) as one more point. The
    curve a log2(x + b) + c is fitted by least squares. The prediction is its value at epoch 90 less twice the
    root mean square residual. If that is below the best observed accuracy or above 1, the best observed
    accuracy is used.
    Both epochs scale with `schedule` (60 in the paper). Epochs with a NaN are left out. A curve of fewer than
    three epochs, or one that reaches the target epoch, keeps its best. No input raises.

    Arguments:
        val_errors: fractions, one per epoch from the first on.
        schedule: length of the learning rate's decay in epochs.
    """
    accuracy = 1.0 - np.asarray(val_errors, dtype=np.float64).reshape(-1)
    epochs = np.arange(1, len(accuracy) + 1, dtype=np.float64)
    seen = np.isfinite(accuracy)
    accuracy, epochs = accuracy[seen], epochs[seen]
    if not len(accuracy):
        return Prediction(math.nan, False)
    best = float(accuracy.max())
    target = TARGET_SCHEDULES * schedule
    if len(accuracy) < MIN_OBSERVATIONS or epochs[-1] >= target:
        return Prediction(1.0 - best, False)

    x = np.append(epochs, PRIOR_SCHEDULES * schedule)
    y = np.append(accuracy, PRIOR_ACCURACY)
    a, b, c, residual = fit_log_curve(x, y)
    predicted = a * math.log2(target + b) + c - CAUTION * residual
    if best <= predicted <= 1.0:
        return Prediction(1.0 - predicted, True, residual)
    return Prediction(1.0 - best, False, residual)


def fit_log_curve(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float, float]:
    """Fit y = a log2(x + b) + c by least squares: return (a, b, c, root mean square residual).

    For a given b the fit is linear in a and c, so only b is searched. The grid is -min(x) + s with s from
    1e-6 to 1e6, then three times finer around the best s. The result is the global minimum within these
    bounds, and equal on every machine.

    Arguments:
        x: abscissae, float64 [n], n >= 2, not all equal.
        y: ordinates, float64 [n].
    """
    low, high = -6.0, 6.0
    best = (math.inf, 0.0, 0.0, 0.0)
    for _ in range(4):
        exponents = np.linspace(low, high, 97)
        offsets = 10.0**exponents - x.min()
        basis = np.log2(x[None, :] + offsets[:, None])

        # Compute slope and intercept of the straight line through (basis, y), one row for each offset.
        centred = basis - basis.mean(axis=1, keepdims=True)
        slopes = centred @ (y - y.mean()) / np.einsum("ij,ij->i", centred, centred)
        intercepts = y.mean() - slopes * basis.mean(axis=1)
        squares = np.mean((y[None, :] - slopes[:, None] * basis - intercepts[:, None]) ** 2, axis=1)

        row = int(np.argmin(squares))
        if squares[row] < best[0]:
            best = (float(squares[row]), float(slopes[row]), float(offsets[row]), float(intercepts[row]))
        step = (high - low) / 96
        low, high = exponents[row] - step, exponents[row] + step
    return best[1], best[2], best[3], math.sqrt(best[0])
