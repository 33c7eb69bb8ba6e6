# SPDX-License-Identifier: Apache-2.0
"""Confidence intervals of rates and of their ratios, from one run or from repetitions.

Rates are positive and compared by ratios, so all errors are those of their logarithms (delta method): an
estimate is a rate with the standard error of its logarithm and its degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

#: Probability that an interval covers the true value.
CONFIDENCE = 0.95

#: Most windows that the core time is divided into (batch means; ten is common practice, Law and Kelton 2000,
#: 9.5.3).
MAX_WINDOWS = 10


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with the limits of its confidence interval; the limits are NaN if they are unknown."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def over(self, divisor: float) -> Interval:
        """Return the interval of the value divided by an exact, positive number."""
        return Interval(self.value / divisor, self.low / divisor, self.high / divisor)

    @property
    def known(self) -> bool:
        """Whether the limits are known."""
        return not math.isnan(self.low)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A rate with its error.

    Attributes:
        rate: in op/s.
        error: standard error of the rate's logarithm.
        freedom: degrees of freedom of the error; 0 if the error is unknown.
        origin: source of the error, `within the run` or `repetitions`.
    """

    rate: float
    error: float = math.nan
    freedom: float = 0.0
    origin: str = ""

    @property
    def interval(self) -> Interval:
        """The rate with its confidence interval."""
        return _interval(self.rate, self.error, self.freedom)


def within_run(
    rate: float, t_start: np.ndarray, t_end: np.ndarray, ops: np.ndarray, core_seconds: float
) -> Estimate:
    """Return the rate of one run with its error by batch means.

    The error comes from the spread of the rates in equal windows of the core time.

    Arguments:
        rate: credited operations over core seconds, from the judge.
        t_start, t_end: f8 [epochs], s since core start.
        ops: f8 [epochs], credited operations, taken as evenly spread over the epoch's time.
        core_seconds: length of the core time.

    The windows are at least as long as the median epoch, so that one epoch does not count as several
    measurements. A run too short for two windows has no error. Start-up and idle tails are part of the
    spread, as they are part of the score.
    """
    used = (ops > 0) & (t_end > t_start)
    start, end, work = t_start[used], np.minimum(t_end[used], core_seconds), ops[used]
    if not rate > 0 or not len(work) or not core_seconds > 0:
        return Estimate(rate)
    windows = min(MAX_WINDOWS, int(core_seconds / np.median(end - start)))
    if windows < 2:
        return Estimate(rate)

    # Work done until each edge: all work of epochs that ended, and a share of epochs under way.
    edges = np.linspace(0.0, core_seconds, windows + 1)
    done = np.array([(np.clip((edge - start) / (end - start), 0.0, 1.0) * work).sum() for edge in edges])
    rates = np.diff(done) / (core_seconds / windows)
    error = float(rates.std(ddof=1) / math.sqrt(windows) / rate)
    return Estimate(rate, error, windows - 1, "within the run")


def repetitions(rates: Sequence[float]) -> Estimate:
    """Return the geometric mean of the rates of repeated runs, with its error from their spread.

    A single run gives its rate without an error.
    """
    logs = np.log(np.asarray(rates, float))
    if len(logs) < 2:
        return Estimate(float(rates[0]))
    error = float(logs.std(ddof=1) / math.sqrt(len(logs)))
    return Estimate(float(np.exp(logs.mean())), error, len(logs) - 1, "repetitions")


def ratio(above: Estimate, below: Estimate) -> Interval:
    """Return the ratio of two independent estimates; the degrees of freedom are Welch's."""
    value = above.rate / below.rate
    parts = [(e.error**2, e.freedom) for e in (above, below)]
    variance = sum(part for part, _ in parts)
    if not all(freedom > 0 for _, freedom in parts):
        return Interval(value)
    if variance == 0:
        return Interval(value, value, value)
    freedom = variance**2 / sum(part**2 / own for part, own in parts)
    return _interval(value, math.sqrt(variance), freedom)


def factor(error: float, freedom: float) -> float:
    """Return half the width of the confidence interval of a logarithm with this standard error."""
    return float(student.ppf((1 + CONFIDENCE) / 2, freedom)) * error


def _interval(value: float, error: float, freedom: float) -> Interval:
    """Return the interval of a value whose logarithm has this standard error."""
    if not freedom > 0 or math.isnan(error):
        return Interval(value)
    spread = math.exp(min(factor(error, freedom), 700.0))
    return Interval(value, value / spread, value * spread)
