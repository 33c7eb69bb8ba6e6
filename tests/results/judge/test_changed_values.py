# SPDX-License-Identifier: Apache-2.0
"""A changed value is found by what it means, with a content hash that fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from aiperf_mpi.results.file import resultfile
from aiperf_mpi.results.file.schema import ATTRIBUTES, DOCUMENTS, TABLES
from tests.helpers.results.changes import ATTRIBUTE_FINDS, FINDS, altered, breaks_seal, changed

# Each test writes and judges a whole file.
pytestmark = pytest.mark.slow


def a_third(cases: Sequence[Any]) -> list[Any]:
    """Return the cases for `parametrize`: every third always, all with --full."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.full if n % 3 else ())
        for n, case in enumerate(cases)
    ]


@pytest.mark.parametrize(
    ("table", "column"),
    a_third([(table.name, column) for table in TABLES.values() for column in table.names]),
)
def test_a_changed_value_is_found(path: Path, tmp_path: Path, table: str, column: str) -> None:
    # With a hash that fits it must be found by what it means, if it means anything for the score; the hash
    # itself finds every bit (test_corruption.py).
    verdict = changed(path, tmp_path, lambda file: altered(file, table, column))
    expected = FINDS[table].get(column)
    assert verdict.valid == (expected is None), verdict.reasons
    assert expected is None or expected in verdict.reason_ids


@pytest.mark.parametrize("name", a_third([*(attribute.name for attribute in ATTRIBUTES), *DOCUMENTS]))
def test_a_changed_attribute_or_document_is_found(path: Path, tmp_path: Path, name: str) -> None:
    def change(file: h5py.File) -> None:
        if name in DOCUMENTS:
            file[name][()] = "x"
            return
        value = file.attrs[name]
        if isinstance(value, str):
            new: object = "x"
        elif value.dtype.kind == "f":
            new = 0.125 if np.isnan(value) else value * 1.25 + 0.125
        else:
            new = 1 - value if value.dtype == np.uint8 else value + 1
        resultfile.set_attributes(file, {name: new})

    # A change breaks the content hash; the judge finds that (test_corruption.py), and what no hash has.
    if name not in resultfile.UNHASHED:
        assert breaks_seal(path, tmp_path, change)
    else:
        assert "V21" in changed(path, tmp_path, change, rehash=False).reason_ids
    if name == "content_sha256":
        return
    verdict, expected = changed(path, tmp_path, change), ATTRIBUTE_FINDS.get(name)
    assert verdict.valid == (expected is None), verdict.reasons
    assert expected is None or expected in verdict.reason_ids


#: Columns of times, rates and shares, and what finds a number in them that is none.
NUMBERS = (
    ("trials", "t_start", "V04 V12"),
    ("trials", "t_end", "V04 V12"),
    ("trials", "best_error", "I10"),
    ("trials", "lr", "I13"),
    ("trials", "ops_f64", "V05"),
    ("trials", "ops_credited_f64", "V05"),
    ("epochs", "t_start", "V04 V12"),
    ("epochs", "t_end", "V04 V12"),
    ("epochs", "lr", "I13"),
    ("epochs", "val_error", "I09 I10"),
    ("score_series", "t", "I08"),
    ("score_series", "rate", "I08"),
    ("ranks", "wall_seconds", "V13"),
    ("ranks", "seconds_train", "V13"),
    ("ranks", "clock_uncertainty", "V12"),
    ("samples", "t", "I17"),
    ("samples", "cpu_percent", "I17"),
    ("samples", "memory_bytes", "I17"),
    ("samples", "power_watts", "I17"),
    ("samples", "energy_joules", "I17"),
    ("samples", "sample_seconds", "I17"),
)

#: Numbers that are none, or none that a table may hold: one for each column, all with --full.
NO_NUMBERS = (math.nan, math.inf, -1.0)


@pytest.mark.parametrize(
    ("table", "column", "finds", "value"),
    [
        pytest.param(*case, value, marks=() if place == number % 3 else pytest.mark.full)
        for number, case in enumerate(NUMBERS)
        for place, value in enumerate(NO_NUMBERS)
    ],
)
def test_no_number_that_is_none_passes(
    path: Path, tmp_path: Path, table: str, column: str, finds: str, value: float
) -> None:
    def change(file: h5py.File) -> None:
        file[table][column][2] = value

    assert set(finds.split()) & set(changed(path, tmp_path, change).reason_ids)


@pytest.mark.parametrize("column", ["train_loss", "val_loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_epoch_that_counts_has_finite_losses(
    path: Path, tmp_path: Path, column: str, value: float
) -> None:
    def change(file: h5py.File) -> None:
        file["epochs"][column][2] = value

    assert changed(path, tmp_path, change).reason_ids == ("V04", "I12")


def test_an_epoch_with_steps_takes_time(path: Path, tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        file["epochs/t_end"][3] = file["epochs/t_start"][3]

    assert ("V12", "/epochs row 3: has steps, but takes no time") in [
        (reason.id, reason.text) for reason in changed(path, tmp_path, change).reasons
    ]
