# SPDX-License-Identifier: Apache-2.0
"""Epochs, patience, learning rate, the early stop and the predicted accuracy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from aiperf_mpi.config import load
from aiperf_mpi.trials.budget import Budget, DefaultRules, budget, learning_rate, should_stop
from aiperf_mpi.trials.prediction import fit_log_curve, predict_error

# -- rounds ----------------------------------------------------------------------------------------


def test_budgets_of_the_paper() -> None:
    # Epochs 15, 30, 45, then 60; patience min(6 + 2 (r - 1), 20), so 20 from round 8 on.
    budgets = [budget(r) for r in range(1, 11)]
    assert [b.epochs_max for b in budgets] == [15, 30, 45, 60, 60, 60, 60, 60, 60, 60]
    assert [b.patience for b in budgets] == [6, 8, 10, 12, 14, 16, 18, 20, 20, 20]
    assert [b.warm_up for b in budgets] == [True] * 3 + [False] * 7


def test_budgets_of_a_configuration() -> None:
    assert [budget(r, load().train) for r in (1, 4, 40)] == [budget(r) for r in (1, 4, 40)]
    rules = DefaultRules(epochs=8, round_epochs=(6, 8), patience_base=4, patience_step=3, patience_max=8)
    assert [budget(r, rules) for r in (1, 2, 3)] == [
        Budget(6, 4, True),
        Budget(8, 7, False),
        Budget(8, 8, False),
    ]


@pytest.mark.parametrize("round", [0, -1])
def test_rounds_count_from_one(round: int) -> None:
    with pytest.raises(ValueError, match="count from 1"):
        budget(round)


def test_learning_rate_falls_on_a_line() -> None:
    assert learning_rate(0.1, 0) == 0.1
    assert learning_rate(0.1, 30) == pytest.approx(0.05, rel=1e-15)
    assert learning_rate(0.1, 59) == pytest.approx(0.1 / 60, rel=1e-12)
    for epoch in (-1, 60):
        with pytest.raises(ValueError, match="outside of the schedule"):
            learning_rate(0.1, epoch)


# -- the early stop --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "patience", "stops"),
    [
        ([], 1, False),
        ([1.0], 1, False),
        ([1.0, 1.0], 1, True),
        ([1.0, 0.9, 0.8, 0.7], 1, False),
        ([1.0, 0.9995, 0.9991], 2, True),  # 0.0009 below the best is no progress
        ([1.0, 0.9995, 0.998], 2, False),  # 0.002 is, against the best and not against the epoch before
        ([1.0, 0.5, 0.6, 0.6, 0.6], 3, True),
        ([1.0, 0.5, 0.6, 0.6, 0.4], 3, False),
        ([math.nan, math.nan], 2, True),
        ([1.0, math.nan, 0.5], 2, False),
    ],
)
def test_stop_after_patience_without_progress(losses: list[float], patience: int, stops: bool) -> None:
    assert should_stop(losses, patience) is stops


# -- the predicted accuracy ------------------------------------------------------------------------


def authors_prediction(accuracy: np.ndarray) -> float:
    """Return what the authors' formula gives with their optimiser.

    One more point (120, 0.75); least squares; the value at 90 less twice the root mean square residual. If
    that is below the best observed accuracy or above 1, the best observed accuracy.
    """
    x, y = np.append(np.arange(1, len(accuracy) + 1), 120.0), np.append(accuracy, 0.75)

    def curve(x: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
        return a * np.log2(x + b) + c

    fitted, _ = curve_fit(curve, x, y, maxfev=100_000)
    prediction = curve(np.array(90.0), *fitted) - 2 * np.sqrt(np.mean((y - curve(x, *fitted)) ** 2))
    best = accuracy.max()
    return float(best if prediction < best or prediction > 1 else prediction)


@pytest.mark.filterwarnings(
    "ignore:invalid value:RuntimeWarning"
)  # curve_fit tries logarithms of negative numbers
@pytest.mark.parametrize("seed", range(12))
def test_prediction_is_the_authors(seed: int) -> None:
    rng = np.random.default_rng(seed)
    epochs = int(rng.integers(5, 46))
    x = np.arange(1, epochs + 1)
    accuracy = 0.05 + rng.uniform(0.05, 0.13) * np.log2(x + rng.uniform(0, 2)) + rng.normal(0, 0.02, epochs)
    prediction = predict_error(1.0 - accuracy)
    assert 1.0 - prediction.error == pytest.approx(authors_prediction(accuracy), abs=1e-5)


def test_the_fit_finds_the_curve_that_made_the_data() -> None:
    x = np.append(np.arange(1.0, 16.0), 120.0)
    a, b, c, residual = fit_log_curve(x, 0.11 * np.log2(x + 2.5) + 0.04)
    assert (a, b, c) == pytest.approx((0.11, 2.5, 0.04), rel=1e-3)
    assert residual < 1e-6


def test_a_fifteen_epoch_curve_is_lifted_and_flagged() -> None:
    # The authors' code gave 0.715 for a curve of 15 epochs that peaks at 0.54.
    accuracy = 0.54 * np.log2(np.arange(1, 16) + 0.3) / math.log2(15.3)
    prediction = predict_error(1.0 - accuracy)
    assert prediction.predicted
    assert 1.0 - prediction.error == pytest.approx(0.713, abs=0.005)


def test_above_the_prior_the_best_observed_is_taken() -> None:
    # The prior is 0.75 late in training; a curve above it is not pulled down to it.
    errors = [0.5, 0.2, 0.1, 0.05, 0.04, 0.03]
    prediction = predict_error(errors, schedule=8)
    assert (prediction.error, prediction.predicted) == (pytest.approx(0.03), False)


@pytest.mark.parametrize("errors", [[], [math.nan], [math.nan] * 20])
def test_without_an_observation_there_is_no_value(errors: list[float]) -> None:
    prediction = predict_error(errors)
    assert math.isnan(prediction.error) and not prediction.predicted


@pytest.mark.parametrize("errors", [[0.4], [0.4, 0.6], [math.nan, 0.6, math.nan, 0.4]])
def test_short_curves_keep_their_best(errors: list[float]) -> None:
    prediction = predict_error(errors)
    assert (prediction.error, prediction.predicted) == (pytest.approx(0.4), False)


@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=60), st.integers(1, 120))
@settings(max_examples=200, deadline=None)
def test_no_curve_raises_or_gets_worse_than_observed(errors: list[float], schedule: int) -> None:
    prediction = predict_error(errors, schedule)
    seen = [error for error in errors if not math.isnan(error)]
    if seen:
        assert 0.0 <= prediction.error <= min(seen) + 1e-12
    else:
        assert math.isnan(prediction.error)
