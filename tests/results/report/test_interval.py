# SPDX-License-Identifier: Apache-2.0
"""Confidence intervals of rates and ratios: computed by hand, and how often they cover the true value."""

from __future__ import annotations

import math

import numpy as np
import pytest

from aiperf_mpi.results.report.interval import Estimate, ratio, repetitions, within_run

#: Quantiles 0.975 of Student's t, from its published tables, by degrees of freedom.
T = {1: 12.7062, 2: 4.3027, 4: 2.7764, 9: 2.2622}


def test_windows_of_one_run() -> None:
    # Core time 2 s, epochs of 1 s with 3 and 1 operations: two windows with the rates 3 and 1. Their
    # deviation is sqrt(2), that of their mean 1, which is half of the rate.
    start, end, ops = np.array([0.0, 1.0]), np.array([1.0, 2.0]), np.array([3.0, 1.0])
    estimate = within_run(2.0, start, end, ops, 2.0)
    assert (estimate.rate, estimate.error, estimate.freedom) == (2.0, pytest.approx(0.5), 1)
    assert estimate.interval.high == pytest.approx(2 * math.exp(T[1] * 0.5), rel=1e-4)
    assert estimate.interval.low * estimate.interval.high == pytest.approx(4.0)


def test_an_epoch_counts_where_it_was_trained() -> None:
    # Three epochs of 2 s in 4 s make 2 windows; the middle one, of 4 operations, is half in each: 3 + 2 and
    # 2 + 1 operations, rates 2.5 and 1.5 around 2: deviation sqrt(0.5), of the mean 0.5, relative 0.25.
    start, end, ops = np.array([0.0, 1.0, 2.0]), np.array([2.0, 3.0, 4.0]), np.array([3.0, 4.0, 1.0])
    assert within_run(2.0, start, end, ops, 4.0).error == pytest.approx(0.25)


def test_a_run_too_short_for_two_windows_has_no_interval() -> None:
    for epochs in (0, 1):
        estimate = within_run(1.0, np.zeros(epochs), np.full(epochs, 3.0), np.full(epochs, 3.0), 3.0)
        assert estimate.freedom == 0 and not estimate.interval.known and estimate.interval.value == 1.0
    assert not ratio(Estimate(1.0), Estimate(2.0, 0.1, 3)).known


def test_repetitions() -> None:
    # Logarithms 0, ln 2, 2 ln 2: mean ln 2, deviation ln 2, of the mean ln 2 / sqrt(3).
    estimate = repetitions([1.0, 2.0, 4.0])
    assert estimate.rate == pytest.approx(2.0) and estimate.freedom == 2
    assert estimate.error == pytest.approx(math.log(2) / math.sqrt(3))
    assert estimate.interval.high == pytest.approx(2 * math.exp(T[2] * estimate.error), rel=1e-4)
    assert not repetitions([5.0]).interval.known


def test_ratio() -> None:
    # Equal errors s with 2 degrees of freedom each: error sqrt(2) s, Welch's degrees (2s²)² / (2 s⁴/2) = 4.
    quotient = ratio(Estimate(6.0, 0.1, 2), Estimate(3.0, 0.1, 2))
    assert quotient.value == 2.0
    assert quotient.high == pytest.approx(2 * math.exp(T[4] * 0.1 * math.sqrt(2)), rel=1e-4)
    exact = ratio(Estimate(6.0, 0.0, 2), Estimate(3.0, 0.0, 2))
    assert (exact.low, exact.high) == (2.0, 2.0)


def test_intervals_cover_the_truth_nineteen_times_in_twenty() -> None:
    # 2,000 pairs of 3 repetitions with a spread of 10 % (what the authors' rerun differed by): of 0.95 the
    # binomial deviation is 0.0049, and Welch's interval is a little wide for samples this small.
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(2000):
        above, below = (
            repetitions(np.exp(rng.normal(math.log(mean), 0.1, 3)).tolist()) for mean in (8.0, 4.0)
        )
        quotient = ratio(above, below)
        inside += quotient.low <= 2.0 <= quotient.high
    assert 0.935 <= inside / 2000 <= 0.985


def test_windows_cover_the_truth_for_independent_epochs() -> None:
    # 100 epochs of 1 s with operations that vary by 20 %: ten windows of ten epochs.
    rng = np.random.default_rng(6)
    start = np.arange(100.0)
    inside = 0
    for _ in range(1000):
        ops = rng.normal(1.0, 0.2, 100)
        limits = within_run(float(ops.sum() / 100), start, start + 1, ops, 100.0).interval
        inside += limits.low <= 1.0 <= limits.high
    assert 0.93 <= inside / 1000 <= 0.97
