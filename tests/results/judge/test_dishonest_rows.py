# SPDX-License-Identifier: Apache-2.0
"""Rows that are changed together, so that they agree with one another and every sum, series and hash fits.

The table of forgeries is in tests/helpers/results/forgeries.py (test_forgeries.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from aiperf_mpi.results.file.rows import FAILED
from aiperf_mpi.results.judge import judge
from aiperf_mpi.results.judge.judge import Verdict
from tests.helpers.results.changes import changed, written
from tests.helpers.results.example_run import Example, example_run

# Each test writes and judges a whole file.
pytestmark = pytest.mark.slow


def judged(change: Callable[[Example], object], folder: Path) -> Verdict:
    """The verdict on what a dishonest rank reports: the writer makes every sum, series and hash of it fit."""
    example = example_run()
    change(example)
    return judge.judge(written(example, folder))


def test_architectures_of_equal_counts_cannot_be_swapped_alone(path: Path, tmp_path: Path) -> None:
    """Every column of the network of two trials, but not their seeds: these follow from the networks."""

    def change(file: h5py.File) -> None:
        for name in (
            "arch_json",
            "arch_hash",
            "group",
            "morphs",
            "parent_id",
            "kernel_size",
            "train_ops_per_image",
            "val_ops_per_image",
        ):
            values = file["trials"][name][...]
            values[[1, 2]] = values[[2, 1]]
            file["trials"][name][...] = values

    assert "V16" in changed(path, tmp_path, change).reason_ids


def test_an_error_of_whole_images_is_left_to_the_checkpoint(tmp_path: Path) -> None:
    """One image less in every place agrees with all rows. The checkpoint does not: V03 measures it again."""

    def lie(example: Example) -> None:
        best = int(np.nanargmin(example.epochs["val_error"]))
        better = 40 / 360
        example.epochs["val_error"][best] = better
        trial = int(example.epochs["trial_id"][best])
        example.trials["best_error"][example.trial(trial)] = better

    verdict = judged(lie, tmp_path)
    found = {finding.id: finding for finding in verdict.findings}
    assert not found["V03"].passed and "was claimed in training" in str(found["V03"].wrong)


def test_a_failed_trial_cannot_be_the_best_one(tmp_path: Path) -> None:
    def lie(example: Example) -> None:
        example.trials["status"][example.trial(6)] = FAILED

    assert "I08" in judged(lie, tmp_path).reason_ids
