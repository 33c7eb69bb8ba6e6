# SPDX-License-Identifier: Apache-2.0
"""Rows that are changed together, so that they agree with one another and every sum, series and hash fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from aiperf_mpi.results.file.rows import FAILED, UNFINISHED
from aiperf_mpi.results.judge import judge
from aiperf_mpi.results.judge.judge import Verdict
from aiperf_mpi.trials.record import OUTCOME
from tests.helpers.results.changes import changed, written
from tests.helpers.results.example_run import Example, example_run

# Each test writes and judges a whole file.
pytestmark = pytest.mark.slow


def judged(change: Callable[[Example], object], folder: Path) -> Verdict:
    """The verdict on what a dishonest rank reports: the writer makes every sum, series and hash of it fit."""
    example = example_run()
    change(example)
    return judge.judge(written(example, folder))


def rows_of(example: Example, trial: int) -> np.ndarray:
    return np.flatnonzero(example.epochs["trial_id"] == trial)


def samples_moved(example: Example) -> None:
    # Two steps of an epoch count in the one before it: the sum stays.
    first, second = rows_of(example, 0)[:2]
    for name, unit in (("steps", 1), ("train_samples", 64)):
        example.epochs[name][first] += 2 * unit
        example.epochs[name][second] -= 2 * unit
    example.epochs["partial"][[first, second]] = 1


def middle_epoch_cut(example: Example) -> None:
    # A quick epoch of half the steps in the middle of a trial, marked as partial.
    row = rows_of(example, 0)[1]
    example.epochs["steps"][row], example.epochs["train_samples"][row] = 11, 704
    example.epochs["val_samples"][row], example.epochs["partial"][row] = 0, 1
    example.epochs["val_error"][row] = example.epochs["val_loss"][row] = np.nan
    trial = example.trial(0)
    example.trials["train_samples"][trial] -= 704
    example.trials["val_samples"][trial] -= 360


def failed_as_unfinished(example: Example) -> None:
    # A failed trial would earn nothing; as one that core stop cut short it would. Its outcome in the history
    # is gone.
    example.trials["status"][example.trial(0)] = UNFINISHED
    example.trials["cause"][example.trial(0)] = b"core stop"
    outcome = next(i for i, r in enumerate(example.records) if r["kind"] == OUTCOME and r["trial"] == 0)
    del example.slots[outcome], example.records[outcome]


def stopped_without_patience(example: Example) -> None:
    # Its losses still fall, so its patience cannot have ended it after three epochs.
    example.trials["status"][example.trial(0)] = judge.STOPPED


def trained_beyond_its_patience(example: Example) -> None:
    # Losses that do not move end a trial after patience + 1 epochs.
    example.epochs["val_loss"][rows_of(example, 0)] = 1.0
    example.trials["patience"][:] = 1


def shifted_before_core_start(example: Example) -> None:
    own = rows_of(example, 0)
    example.epochs["t_start"][own] -= 0.2
    example.epochs["t_end"][own] -= 0.2
    example.trials["t_start"][example.trial(0)] -= 0.2


def shifted_over_a_tick(example: Example) -> None:
    # The second epoch claims to have ended before the tick at 2 s; then the third overlaps the first.
    row = rows_of(example, 0)[1]
    example.epochs["t_start"][row] = 0.5


def late_work_in_time(example: Example) -> None:
    # The epoch that core stop cut short, claimed whole within the same time, ends after core stop.
    row = rows_of(example, 9)[-1]
    example.epochs["t_end"][row] += 0.6
    example.trials["t_end"][example.trial(9)] += 0.6
    example.core_seconds += 0.7


def two_trials_at_once(example: Example) -> None:
    example.epochs["t_start"][rows_of(example, 4)] -= 3
    example.epochs["t_end"][rows_of(example, 4)] -= 3
    for name in ("t_start", "t_end"):
        example.trials[name][example.trial(4)] -= 3


def error_of_half_an_image(example: Example) -> None:
    row = rows_of(example, 0)[2]
    example.epochs["val_error"][row] = 10.5 / 360
    example.trials["best_error"][example.trial(0)] = 10.5 / 360
    example.final = (0, 10.5 / 360)


@pytest.mark.parametrize(
    ("lie", "finds"),
    [
        (samples_moved, "I09"),
        (middle_epoch_cut, "I18"),
        (failed_as_unfinished, "I18"),
        (stopped_without_patience, "I18"),
        (trained_beyond_its_patience, "I13"),
        (shifted_before_core_start, "V12"),
        (shifted_over_a_tick, "V12"),
        (late_work_in_time, "V02"),
        (two_trials_at_once, "V12"),
        (error_of_half_an_image, "I09"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_rows_that_agree_with_one_another_are_found(
    lie: Callable[[Example], object], finds: str, tmp_path: Path
) -> None:
    verdict = judged(lie, tmp_path)
    assert finds in verdict.reason_ids, verdict.reasons


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
