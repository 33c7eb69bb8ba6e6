# SPDX-License-Identifier: Apache-2.0
"""Runs that are copies of one another: they share measured numbers, which no two runs have in common."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from aiperf_mpi.results.file.resultfile import Result
from aiperf_mpi.results.file.schema import Columns

#: Measured columns that show a copy together with the durations of epochs.
_TOGETHER = (("trials", "t_first_step"), ("ranks", "wall_seconds"))

#: Two runs may have this share of the numbers of a column in common, and one number by chance.
_SHARE, _CHANCE = 0.02, 1

#: Decimal places of durations that are compared, as shifted times differ in their last ones, and those that a
#: measured number has at least: 0.5 s is a setting.
_DIGITS, _MEASURED = 7, 4


def copied(results: Sequence[Result], weights: Sequence[str] = ()) -> str:
    """Return why two of these runs are copies of one run, or "" if none are.

    Losses, times and durations of independent runs differ in almost all numbers, with another seed as well.

    Arguments:
        results: the results of the runs.
        weights: SHA-256 of the best checkpoint of each, if known.
    """
    for (first, one), (second, other) in itertools.combinations(enumerate(results), 2):
        names = " and ".join(str(result.attributes.get("run_id")) for result in (one, other))
        if weights and weights[first] and weights[first] == weights[second]:
            return f"the runs {names} have the same weights: they are copies of one run"
        for (name, its), others in zip(
            _alone(one.tables).items(), _alone(other.tables).values(), strict=True
        ):
            if _shared(its, others):
                return f"the runs {names} have the same {name}: they are copies of one run"
        if _shared(_durations(one.tables), _durations(other.tables)) and all(
            _shared(one.tables[table][column], other.tables[table][column]) for table, column in _TOGETHER
        ):
            return f"the runs {names} have the same times: they are copies of one run"
    return ""


def _alone(tables: Mapping[str, Columns]) -> dict[str, np.ndarray]:
    """Return measured numbers by their names in a message, each kind of which shows a copy.

    Of losses two in a row are compared: they are sums of float32 numbers, some of which two runs of a million
    epochs have in common.
    """
    return {
        "training losses": _pairs(tables["epochs"]["train_loss"]),
        "validation losses": _pairs(tables["epochs"]["val_loss"]),
        "times of compilations": tables["trials"]["compile_seconds"],
    }


def _durations(tables: Mapping[str, Columns]) -> np.ndarray:
    """Return the duration of each epoch in s."""
    return np.round(tables["epochs"]["t_end"] - tables["epochs"]["t_start"], _DIGITS)


def _measured(values: np.ndarray) -> np.ndarray:
    """Return the values that are measured numbers."""
    return values[np.isfinite(values) & (np.round(values, _MEASURED) != values)]


def _pairs(values: np.ndarray) -> np.ndarray:
    """Return each measured number with the next one, as a complex number."""
    measured = _measured(values)
    return measured[:-1] + 1j * measured[1:]


def _shared(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two columns have more numbers in common than by chance."""
    one, other = (np.unique(_measured(values)) for values in (one, other))
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common > max(_CHANCE, _SHARE * min(len(one), len(other)))
