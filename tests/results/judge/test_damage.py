# SPDX-License-Identifier: Apache-2.0
"""A damaged file gives a verdict or is refused as not a result; it never raises another exception."""

from __future__ import annotations

import json
import math
from pathlib import Path

import h5py
import numpy as np
import pytest

from aiperf_mpi.results.file import resultfile
from aiperf_mpi.results.file.schema import DOCUMENTS, TABLES
from aiperf_mpi.results.judge.judge import NotAResult, judge
from aiperf_mpi.results.report.text import text_report
from tests.helpers.results.changes import changed

# Each test writes and judges a whole file.
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("part", [pytest.param(i, marks=[pytest.mark.full] if i else []) for i in range(4)])
def test_missing_parts_are_reasons_and_no_exceptions(path: Path, tmp_path: Path, part: int) -> None:
    """Each table, and a quarter of the columns by default, all of them with --full."""
    for table in TABLES.values():
        verdict = changed(path, tmp_path, lambda file, name=table.name: file.pop(name))  # type: ignore[misc]
        assert "I01" in verdict.reason_ids, table.name
        for column in table.names[part::4]:

            def change(file: h5py.File, place: str = f"{table.name}/{column}") -> None:
                del file[place]

            assert "I01" in changed(path, tmp_path, change).reason_ids, column


def test_damaged_values_are_reasons_and_no_exceptions(path: Path, tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        trials = file["trials"]
        trials["morphs"][0], trials["morphs"][1] = "[", '[{"op":"wider"}]'
        trials["morphs"][2], trials["arch_json"][3] = "[[[" * 5000, "{}"
        trials["parent_id"][4] = trials["trial_id"][4]
        trials["ops"][5] = "many"
        trials["batch_global"][:] = 0
        file["epochs/epoch"][0] = -5
        resultfile.set_attributes(
            file, {"core_seconds": math.nan, "tick": 0.0, "n_ranks": -1, "n_replicas": 2**31 - 1}
        )

    verdict = changed(path, tmp_path, change)
    assert not verdict.valid and {"I02", "I04", "I05", "I08", "V05"} <= set(verdict.reason_ids)
    assert all("\n" not in reason.text for reason in verdict.reasons)


@pytest.mark.parametrize("name", ["base_json", *DOCUMENTS])
def test_brackets_beyond_the_stack_are_a_reason_and_no_exception(
    path: Path, tmp_path: Path, name: str
) -> None:
    def change(file: h5py.File) -> None:
        if name == "base_json":
            # HDF5 keeps no attribute of 64 KiB and more.
            resultfile.set_attributes(file, {name: "[" * 60_000})
        else:
            file[name][()] = "[" * 100_000

    assert not changed(path, tmp_path, change).valid
    text_report(tmp_path / "changed.h5")


def test_a_huge_initial_network_does_not_keep_the_judge_busy(path: Path, tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        data = json.loads(file.attrs["base_json"])
        data["base"]["blocks"] = [10**12]
        resultfile.set_attributes(file, {"base_json": json.dumps(data)})

    assert "I05" in changed(path, tmp_path, change).reason_ids


@pytest.mark.parametrize("seed", range(20))
def test_random_damage_is_a_verdict_or_no_result(path: Path, tmp_path: Path, seed: int) -> None:
    # 1 to 200 random bytes of a valid file: never an exception, and never valid if any content changed.
    rng = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    for place in rng.integers(0, len(data), int(rng.integers(1, 200))):
        data[place] ^= int(rng.integers(1, 256))
    (tmp_path / "damaged.h5").write_bytes(data)
    try:
        verdict = judge(tmp_path / "damaged.h5")
    except NotAResult as error:
        assert "\n" not in str(error)
        return
    with resultfile.open_file(path) as whole, resultfile.open_file(tmp_path / "damaged.h5") as damaged:
        same = resultfile.load(whole).content_sha256 == resultfile.load(damaged).content_sha256
    assert same or not verdict.valid


def test_random_bytes_are_no_result(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(np.random.default_rng(0).bytes(1000))
    with pytest.raises(NotAResult) as caught:
        judge(tmp_path / "file")
    assert isinstance(caught.value, ValueError) and "\n" not in str(caught.value)


def test_a_copy_that_is_not_whole_is_told_to_be_made_again(path: Path, tmp_path: Path) -> None:
    whole, cut = path.read_bytes(), tmp_path / "cut.h5"
    # A copy may end anywhere; within the first bytes HDF5's own words say nothing of it.
    for size, words in (
        (0, "it is empty"),
        (8, "HDF5 cannot read it"),
        (len(whole) - 1, "it is truncated: "),
    ):
        cut.write_bytes(whole[:size])
        with pytest.raises(
            NotAResult, match=f"not a result: {words}.*; copy it again when its run has ended"
        ):
            judge(cut)
