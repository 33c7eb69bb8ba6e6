# SPDX-License-Identifier: Apache-2.0
"""Where a candidate comes from: what chose its network and its hyperparameters, and the error expected of it.

Records and results keep this, so that a reader can compare what the search expected with what came. No score
depends on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

#: What chose a network, by the code in a record: not recorded; the initial network; the random design that
#: the surrogate starts with; the surrogate; evolution; random search.
CHOSEN_BY = ("", "initial", "design", "surrogate", "evolution", "random")

#: What chose the hyperparameters, by the code in a record: not recorded; the configuration's defaults (in the
#: warm-up, or if HPO is off); the design that the optimiser starts with; the optimiser; the grid; a random
#: cell.
TUNED_BY = ("", "default", "design", "optimiser", "grid", "random")

SURROGATE, OPTIMISER = CHOSEN_BY[3], TUNED_BY[3]


@dataclass(frozen=True)
class Expectation:
    """The error that a model expects of a trial, and its standard deviation with the noise of one trial.

    Both are rounded to float32, as records keep them. Make one with `expectation`.
    """

    error: float
    deviation: float


@dataclass(frozen=True)
class Origin:
    """What chose a candidate, names of CHOSEN_BY and TUNED_BY, and what was expected (None: nothing)."""

    chosen_by: str = ""
    tuned_by: str = ""
    expected: Expectation | None = None


#: An origin that was not recorded.
UNKNOWN = Origin()


def expectation(error: float, deviation: float) -> Expectation | None:
    """Return an expectation as records keep it, None unless both numbers are finite."""
    kept = float(np.float32(error)), float(np.float32(deviation))
    return Expectation(*kept) if all(map(math.isfinite, kept)) else None


def fill(record: np.void, origin: Origin) -> None:
    """Write an origin into the fields of an unsealed record. Raises ValueError for an unknown name."""
    record["chosen_by"] = CHOSEN_BY.index(origin.chosen_by)
    record["tuned_by"] = TUNED_BY.index(origin.tuned_by)
    if origin.expected is not None:
        record["expected_error"] = origin.expected.error
        record["expected_deviation"] = origin.expected.deviation


def origin_of(record: np.void) -> Origin:
    """Return the origin that a record holds; codes of later versions count as not recorded.

    A deviation is never 0, so zeros (records of earlier versions) say that nothing was expected.
    """
    expected = None
    if record["expected_deviation"] > 0:
        expected = expectation(float(record["expected_error"]), float(record["expected_deviation"]))
    return Origin(
        _name(CHOSEN_BY, int(record["chosen_by"])), _name(TUNED_BY, int(record["tuned_by"])), expected
    )


def _name(names: tuple[str, ...], code: int) -> str:
    """Return the name of a code, "" for a code of a later version."""
    return names[code] if code < len(names) else ""
