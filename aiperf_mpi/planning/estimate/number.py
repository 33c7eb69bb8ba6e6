# SPDX-License-Identifier: Apache-2.0
"""One number of an estimate."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Number:
    """One estimated number: a single value or a range, its unit, and its assumption."""

    group: str
    name: str
    value: int | float | tuple[float, float]
    unit: str
    assumption: str
