# SPDX-License-Identifier: Apache-2.0
"""Whatever is changed in a valid file makes it invalid: bits, rows, other runs' rows, cut files."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from aiperf_mpi import hdf5
from aiperf_mpi.results.file import resultfile
from aiperf_mpi.results.file.schema import ATTRIBUTES, TABLES
from aiperf_mpi.results.judge import judge
from aiperf_mpi.results.judge.judge import NotAResult
from aiperf_mpi.results.judge.rules import UNCHECKED
from aiperf_mpi.results.output import process
from tests.helpers.results.changes import ATTRIBUTE_FINDS, FINDS, changed
from tests.helpers.results.example_run import example_run

# Each test writes and judges a whole file.
pytestmark = pytest.mark.slow


def rewritten(file: h5py.File, table: str, rows: np.ndarray) -> None:
    """The table with other rows of its own: `rows` are indices, in their new order."""
    group = file[table]
    columns = {name: group[name][...] for name in TABLES[table].names}
    for name, values in columns.items():
        kind, about = group[name].dtype, dict(group[name].attrs)
        del group[name]
        dataset = group.create_dataset(name, data=values[rows], dtype=kind)
        dataset.attrs["description"] = about["description"]


# -- bits ------------------------------------------------------------------------------------------


def one_bit(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a column with one random bit of one row changed; a text loses a bit of its first letter."""
    values, row = values.copy(), int(rng.integers(len(values)))
    if values.dtype == object:
        text = values[row].decode()
        values[row] = chr(ord(text[0]) ^ 1) + text[1:] if text else "x"
    else:
        data = bytearray(values[row].tobytes())
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        values[row] = np.frombuffer(bytes(data), values.dtype)[0]
    return values


@pytest.mark.parametrize("table", TABLES)
def test_one_bit_of_any_column_is_found(path: Path, tmp_path: Path, table: str) -> None:
    # Each column alone breaks the content hash. The judge finds a broken one: one column of each table.
    rng = np.random.default_rng(sorted(TABLES).index(table))

    def flip_each(file: h5py.File) -> None:
        sealed = file.attrs["content_sha256"]
        for column in TABLES[table].columns:
            dataset = file[table][column.name]
            values = dataset[...]
            dataset[...] = one_bit(values, rng)
            assert resultfile.content_hash(file) != sealed, f"/{table}/{column.name}"
            dataset[...] = values
            assert column.name != TABLES[table].names[0] or resultfile.content_hash(file) == sealed
        dataset[...] = one_bit(values, rng)

    assert "V21" in changed(path, tmp_path, flip_each, rehash=False).reason_ids


def test_columns_without_a_check_have_a_reason() -> None:
    # FINDS and ATTRIBUTE_FINDS say what finds a change once the hash fits; UNCHECKED has all others.
    free = {f"/{t.name}/{name}" for t in TABLES.values() for name in t.names if name not in FINDS[t.name]}
    free |= {attribute.name for attribute in ATTRIBUTES if attribute.name not in ATTRIBUTE_FINDS}
    assert free - {"content_sha256"} == set(UNCHECKED)


# -- rows ------------------------------------------------------------------------------------------


#: How rows are changed, and tables of rows.
HOW = ("first removed", "last removed", "one twice", "reversed", "two swapped", "none left")
ROWS = ("trials", "epochs", "score_series", "ranks", "samples")


@pytest.mark.parametrize(
    ("table", "how"),
    [
        # Each way in half of the tables, each table in half of the ways; all with --full.
        pytest.param(table, how, marks=pytest.mark.full if (row + way) % 2 else ())
        for row, table in enumerate(ROWS)
        for way, how in enumerate(HOW)
    ],
)
def test_rows_removed_added_or_moved_are_found(path: Path, tmp_path: Path, table: str, how: str) -> None:
    def change(file: h5py.File) -> None:
        rows = np.arange(len(file[table][TABLES[table].names[0]]))
        match how:
            case "first removed":
                rows = rows[1:]
            case "last removed":
                rows = rows[:-1]
            case "one twice":
                rows = np.append(rows[:2], rows[1:])
            case "reversed":
                rows = rows[::-1]
            case "two swapped":
                rows[[1, 2]] = rows[[2, 1]]
            case "none left":
                rows = rows[:0]
        rewritten(file, table, rows)

    for rehash in (False, True):
        verdict = changed(path, tmp_path, change, rehash=rehash)
        assert not verdict.valid and np.isnan(verdict.trial_rate_ops)
        # Something finds it by its meaning, and not only by the hash or by the verdict that the file holds.
        assert set(verdict.reason_ids) - {"V21", "I12"}, verdict.reasons


@pytest.mark.parametrize("table", ["trials", "epochs", "score_series"])
def test_rows_of_another_run_are_found(path: Path, tmp_path: Path, table: str) -> None:
    other = tmp_path / "other.h5"
    hdf5.write(other, process.final_image(example_run(seed=8).run()))

    def change(file: h5py.File) -> None:
        with h5py.File(other) as source:
            for name in TABLES[table].names:
                file[table][name][...] = source[table][name][...]

    verdict = changed(path, tmp_path, change)
    assert set(verdict.reason_ids) - {"V21", "I12"}, verdict.reasons


def test_a_nominal_epoch_is_found(path: Path, tmp_path: Path) -> None:
    # 1437 images of the set in place of 22 x 64 = 1408, and every sum made to fit, as a careful liar would.
    def change(file: h5py.File) -> None:
        train = file["epochs/train_samples"][...]
        file["epochs/train_samples"][...] = np.where(train == 1408, 1437, train)

    assert "I09" in changed(path, tmp_path, change).reason_ids


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_cut_file_is_no_result_or_invalid(path: Path, tmp_path: Path, part: float) -> None:
    data = path.read_bytes()
    (tmp_path / "cut.h5").write_bytes(data[: int(part * len(data))])
    try:
        verdict = judge.judge(tmp_path / "cut.h5")
    except NotAResult as error:
        assert "\n" not in str(error)
        return
    assert not verdict.valid
