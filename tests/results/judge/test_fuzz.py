# SPDX-License-Identifier: Apache-2.0
"""One value of a result is changed at random, with the hash and the verdict made to fit: nothing passes that
bears on rate, error, class, end, time or devices, but what docs say that no check binds."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from aiperf_mpi.results.file import resultfile
from aiperf_mpi.results.file.schema import ATTRIBUTES, DTYPES, TABLES, Column
from aiperf_mpi.results.judge.judge import judge, judge_content
from aiperf_mpi.results.judge.rules import UNCHECKED
from tests.helpers.results.forging import reseal

# Each change writes and judges a whole file.
pytestmark = pytest.mark.slow

#: Number of changes with --full; some always.
CHANGES, ALWAYS = 300, 12

#: Columns and attributes that are bound, but not to the last digit: a change within a bound passes. By how
#: much, in s or as a part.
WITHIN = {
    "/trials/t_end": "after its last epoch and before the next trial",
    "/trials/t_start": "after the trial before and before its first epoch",
    "/trials/t_first_step": "in its first epoch and after its compilation",
    "/epochs/t_end": "between its beginning and the next epoch, and within a sample of the series",
    "/ranks/wall_seconds": "2 % of the sum of its phases",
    "/ranks/seconds_init": "2 % of the wall time",
    "/ranks/seconds_idle": "2 % of the wall time",
    "/ranks/bytes_read": "more than the bytes of its images; none here",
    "/ranks/node": "another node of its host",
    "/ranks/hostname": "of rank 0, which has no node",
    "/ranks/device_uuid": "why a rank has none",
    "/messages/rank": "another rank that counts none of its kind",
    "/samples/t": "in its window",
}


def other_value(rng: np.random.Generator, column: Column, values: np.ndarray, row: int) -> object:
    """Return another value of a column's type: of another row, or near the old one."""
    value = values[row]
    others = [other for other in values.tolist() if other != value and other == other]
    if others and rng.random() < 0.5:
        return others[int(rng.integers(len(others)))]
    if column.dtype == "str":
        text = value.decode() if isinstance(value, bytes) else str(value)
        return f"{text}7" if text.isdigit() else ("x", "", f"{text} ", "1")[int(rng.integers(4))]
    if column.dtype == "f8":
        if not np.isfinite(value):
            return float(rng.random())
        scale = (0.5, 0.9, 0.999, 1.001, 1.1, 2.0)[int(rng.integers(6))]
        return float(value) * scale if value else float(rng.random())
    limits = np.iinfo(DTYPES[column.dtype])
    step = (1, 2, 64, -1)[int(rng.integers(4))]
    near = int(value) + step
    return near if limits.min <= near <= limits.max else int(value) + 1


def change_one(file: h5py.File, rng: np.random.Generator) -> tuple[str, object, object]:
    """Change one value of a file; return its name, the old and the new one."""
    if rng.random() < 0.25:
        names = [
            attribute for attribute in ATTRIBUTES if attribute.name not in ("content_sha256", "complete")
        ]
        attribute = names[int(rng.integers(len(names)))]
        old = file.attrs[attribute.name]
        new = other_value(rng, attribute, np.array([old], object if attribute.dtype == "str" else None), 0)
        resultfile.set_attributes(file, {attribute.name: new})
        return attribute.name, old, new
    tables = [table for table in TABLES.values() if len(file[table.name][table.names[0]])]
    table = tables[int(rng.integers(len(tables)))]
    column = table.columns[int(rng.integers(len(table.columns)))]
    dataset = file[table.name][column.name]
    row = int(rng.integers(len(dataset)))
    old = dataset[row]
    new = other_value(rng, column, dataset[...], row)
    dataset[row] = new
    return f"/{table.name}/{column.name}", old, dataset[row]


@pytest.mark.parametrize(
    "seed", [pytest.param(n, marks=() if n < ALWAYS else pytest.mark.full) for n in range(CHANGES)]
)
def test_no_change_that_matters_passes(seed: int, path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "changed.h5"
    shutil.copy(path, copy)
    with h5py.File(copy, "r+") as file:
        name, old, new = change_one(file, np.random.default_rng(seed))
        verdict = judge_content(resultfile.load(file)).attributes()
    reseal(copy)
    if not judge(copy, own=True).valid:
        return
    # What the verdict sets is as it was; the rest is not bound, or not to the last digit.
    assert name in UNCHECKED or name in WITHIN or name in verdict, (name, old, new)
