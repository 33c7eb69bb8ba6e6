# SPDX-License-Identifier: Apache-2.0
"""Rates and counts of operations as a person reads them: with a decimal prefix, such as 194.5 POPS.

The exact number is printed next to it wherever a rate is a result.
"""

from __future__ import annotations

import math

#: Decimal prefixes of the SI by the power of 1000.
PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def prefixed(value: float, digits: int = 4) -> str:
    """Return a number of at least 0 with `digits` significant digits, a space and its prefix: `194.5 P`.

    The prefix is that of the rounded number: 999.96e9 is `1 T`, not `1000 G`.
    """
    power = 0
    while power < len(PREFIXES) - 1 and float(f"{value / 1000**power:.{digits}g}") >= 1000:
        power += 1
    return f"{value / 1000**power:.{digits}g} {PREFIXES[power]}"


def power_of(value: float) -> int:
    """Return the power of 1000 whose prefix a number takes: 2 for 194.5 M."""
    return PREFIXES.index(prefixed(value).partition(" ")[2])


def ops_text(rate: float) -> str:
    """Return a rate in operations per second with a decimal prefix, for example `283.4 MOPS`; `nan` without
    a rate."""
    return f"{prefixed(rate)}OPS" if math.isfinite(rate) else "nan"


def exact_text(rate: float) -> str:
    """Return a rate with seven digits and its unit: `2.833571e+08 op/s`."""
    return f"{rate:.6e} op/s"


def rate_text(rate: float) -> str:
    """Return a rate exactly, and as a person reads it: `2.833571e+08 op/s (283.4 MOPS)`."""
    return f"{exact_text(rate)} ({ops_text(rate)})" if math.isfinite(rate) else exact_text(rate)
