# SPDX-License-Identifier: Apache-2.0
"""What a run of a preset is expected to give: section `expected` of its file, which no setting is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: The section of a preset's file.
SECTION = "expected"


@dataclass(frozen=True, slots=True)
class Expected:
    """The outcome of a preset on a machine of its kind.

    Attributes:
        machine: the machine, in words.
        minutes: the whole run, from the launch to the verdict.
        trials: least and most trials that come to an end.
        error: the lowest validation error is at most this; 1 where it has no meaning, or was not measured.
        basis: how the numbers were found: measured, or estimated with a stated rate.
    """

    machine: str
    minutes: float
    trials: tuple[int, int]
    error: float
    basis: str

    def __str__(self) -> str:
        low, high = self.trials
        number = f"{low}" if low == high else f"{low} to {high}"
        error = f", an error of at most {self.error:g}" if self.error < 1 else ""
        return f"on {self.machine}: {number} trials{error}, in {self.minutes:g} minutes ({self.basis})"

    def holds(self, minutes: float, trials: int, error: float) -> bool:
        """Return whether the outcome of a run is as expected; fewer minutes and a lower error are."""
        return (
            minutes <= self.minutes and self.trials[0] <= trials <= self.trials[1] and not error > self.error
        )


def expected_of(tables: Mapping[str, Any]) -> Expected:
    """Return the expectation in the tables of a preset's file.

    Raises KeyError without one, TypeError for other keys than those of Expected.
    """
    values = dict(tables[SECTION])
    return Expected(**values | {"trials": tuple(values["trials"])})
