# SPDX-License-Identifier: Apache-2.0
"""Weak scaling over several results: the efficiency at each size, and the exponent of rate = c x devices^a.

Perfect weak scaling has exponent 1 and efficiency 1. Figure 6 of the paper shows the same rates as bars.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import linregress
from scipy.stats import t as student

from aiperf_mpi.results.report.interval import CONFIDENCE, Estimate, Interval, ratio


@dataclass(frozen=True, slots=True)
class Size:
    """All runs on one number of devices.

    Attributes:
        runs: number of runs.
        rate: their rate with its error.
        efficiency: rate per device over that of the smallest size.
    """

    devices: int
    runs: int
    rate: Estimate
    efficiency: Interval


@dataclass(frozen=True, slots=True)
class Scaling:
    """Weak scaling over at least two sizes; `constant` is the fitted rate of one device in op/s."""

    sizes: tuple[Size, ...]
    exponent: Interval
    constant: float

    def rate_at(self, devices: float) -> float:
        """Return the fitted rate of this number of devices in op/s."""
        return self.constant * devices**self.exponent.value


def fit(rates: Mapping[int, Sequence[float]], estimates: Mapping[int, Estimate]) -> Scaling | None:
    """Fit weak scaling to the rates of valid runs; return None for fewer than two numbers of devices.

    Arguments:
        rates: by number of devices, the rate of each run in op/s (above 0).
        estimates: by number of devices, the rate of that size with its error.

    The exponent is the slope of a straight line through the logarithms, with one point for each run. Its
    interval is that of the least squares and needs three runs.
    """
    if len(rates) < 2:
        return None
    base = min(rates)
    sizes = []
    for devices in sorted(rates):
        # The smallest size is compared with itself, exactly.
        own = Interval(1.0, 1.0, 1.0) if devices == base else ratio(estimates[devices], estimates[base])
        efficiency = own if devices == base else own.over(devices / base)
        sizes.append(Size(devices, len(rates[devices]), estimates[devices], efficiency))

    points = [(math.log(devices), math.log(rate)) for devices in sorted(rates) for rate in rates[devices]]
    x, y = np.array(points).T
    line = linregress(x, y)
    exponent = Interval(float(line.slope))
    if len(points) > 2:
        half = float(student.ppf((1 + CONFIDENCE) / 2, len(points) - 2)) * float(line.stderr)
        exponent = Interval(float(line.slope), float(line.slope) - half, float(line.slope) + half)
    return Scaling(tuple(sizes), exponent, math.exp(float(line.intercept)))
