# SPDX-License-Identifier: Apache-2.0
"""Rates with decimal prefixes next to the exact number."""

from __future__ import annotations

import math

import pytest

from aiperf_mpi.opcount.rates import exact_text, ops_text, power_of, prefixed, rate_text


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0.0, "0 OPS"),
        (999.0, "999 OPS"),
        (1e3, "1 kOPS"),
        (283_357_100.0, "283.4 MOPS"),
        (56.1e12, "56.1 TOPS"),
        (194.53e15, "194.5 POPS"),
        (999.94e9, "999.9 GOPS"),
        (999.96e9, "1 TOPS"),
        (2.5e18, "2.5 EOPS"),
        (7e24, "7000 ZOPS"),
    ],
)
def test_a_rate_has_four_digits_and_the_prefix_of_the_rounded_number(rate: float, text: str) -> None:
    assert ops_text(rate) == text


def test_the_exact_number_comes_first() -> None:
    assert rate_text(2.833571e8) == "2.833571e+08 op/s (283.4 MOPS)"
    assert exact_text(2.833571e8) == "2.833571e+08 op/s"
    assert rate_text(math.nan) == "nan op/s"
    assert ops_text(math.nan) == "nan" and ops_text(math.inf) == "nan"
    assert prefixed(1_482_464_321, 6) == "1.48246 G" and power_of(283e6) == 2 and power_of(0) == 0
