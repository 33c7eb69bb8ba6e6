# SPDX-License-Identifier: Apache-2.0
"""The checks, on results that the writer made of what dishonest or broken ranks report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from aiperf_mpi import hdf5
from aiperf_mpi.config import load
from aiperf_mpi.results.file.rows import REJECTED
from aiperf_mpi.results.judge.checks import CHECKS
from aiperf_mpi.results.judge.judge import judge
from aiperf_mpi.results.output import process
from aiperf_mpi.trials.record import seal
from tests.helpers.results.example_run import Example, example_run


def written(example: Example, folder: Path) -> Path:
    """The example's result file, as the writer makes it."""
    hdf5.write(folder / "result.h5", process.final_image(example.run()))
    return folder / "result.h5"


def rebuilt(example: Example, change: Callable[[Example], object], folder: Path) -> tuple[str, ...]:
    """The reasons against a result that the writer made of changed reports: what a dishonest rank could
    send."""
    change(example)
    return judge(written(example, folder)).reason_ids


def replaced(example: Example, index: int, **changes: object) -> None:
    """Another record in place of that of candidate `index`."""
    candidate = dataclasses.replace(example.candidates[index], **changes)  # type: ignore[arg-type]
    slot = example.slots.index(candidate.trial_id)
    example.records[slot] = candidate.to_record(0.0)


def test_samples_that_nobody_used_are_found(tmp_path: Path) -> None:
    def change(example: Example) -> None:
        # One more step in an epoch and its trial: sums agree, but the data set has only 22 batches of 64.
        example.epochs["steps"][0] += 1
        example.epochs["train_samples"][0] += 64
        example.trials["train_samples"][0] += 64

    assert rebuilt(example_run(), change, tmp_path) == ("I09",)


def test_a_nominal_validation_is_found(tmp_path: Path) -> None:
    def change(example: Example) -> None:
        # 384 images by padding the last batch of 64; the set has 360.
        example.epochs["val_samples"][0] = 384
        example.trials["val_samples"][0] += 24

    assert rebuilt(example_run(), change, tmp_path) == ("I09",)


def test_a_lost_epoch_row_is_found(tmp_path: Path) -> None:
    def change(example: Example) -> None:
        example.epochs = example.epochs[1:]

    assert {"I02", "V05"} <= set(rebuilt(example_run(), change, tmp_path))


def test_a_lost_proposal_is_found(tmp_path: Path) -> None:
    def change(example: Example) -> None:
        del example.slots[0], example.records[0]

    assert {"I02", "I04", "I05"} <= set(rebuilt(example_run(), change, tmp_path))


def test_a_candidate_trained_twice_is_found(tmp_path: Path) -> None:
    def change(example: Example) -> None:
        # The second child of trial 0 becomes the first one again: same parent, same morphs, same network.
        first = example.candidates[1]
        replaced(
            example,
            2,
            parent_id=first.parent_id,
            architecture=first.architecture,
            own_morphs=first.own_morphs,
            key=first.key,
            seed=first.seed,
        )

    assert "I06" in rebuilt(example_run(), change, tmp_path)


def test_a_child_of_another_parent_is_found(tmp_path: Path) -> None:
    example = example_run()
    # A record that names trial 2 as the parent, but whose network comes from trial 0.
    record = example.records[example.slots.index(4)].copy()
    record["parent"] = 2
    example.records[example.slots.index(4)] = seal(record)
    assert "I05" in judge(written(example, tmp_path)).reason_ids


def test_a_rejected_record_that_does_not_replay_costs_only_itself(tmp_path: Path) -> None:
    example = example_run()
    record = example.records[example.slots.index(9)].copy()
    record["arch_hash"][0] ^= 1
    example.records[example.slots.index(9)] = seal(record)
    example.epochs = example.epochs[example.epochs["trial_id"] != 9]
    row = example.trial(9)
    for name in ("epochs", "epochs_max", "train_samples", "val_samples"):
        example.trials[name][row] = 0
    example.trials["best_error"][row] = np.nan
    example.trials["status"][row] = REJECTED
    verdict = judge(written(example, tmp_path))
    assert verdict.valid, verdict.reasons


def test_another_seed_is_found(tmp_path: Path) -> None:
    assert rebuilt(example_run(), lambda example: replaced(example, 1, seed=1), tmp_path) == ("V16",)


def test_a_hidden_kernel_is_found(tmp_path: Path) -> None:
    assert rebuilt(example_run(), lambda example: replaced(example, 1, kernel_size=5), tmp_path) == (
        "I05",
        "I19",
    )


def test_trials_that_overlap_on_a_replica_are_found(tmp_path: Path) -> None:
    def change(example: Example) -> None:
        # Everything of trial 4 half a second earlier, when its replica still trained trial 0.
        example.epochs["t_start"][example.epochs["trial_id"] == 4] -= 0.5
        example.epochs["t_end"][example.epochs["trial_id"] == 4] -= 0.5
        row = example.trial(4)
        example.trials["t_start"][row] -= 0.5
        example.trials["t_first_step"][row] -= 0.5
        example.trials["t_end"][row] -= 0.5

    assert rebuilt(example_run(), change, tmp_path) == ("V12",)


def test_two_seconds_that_no_phase_has_are_found(tmp_path: Path) -> None:
    def change(example: Example) -> None:
        # Of 10 s: more than 2 %. A tenth of a second would pass.
        example.ranks["phase_seconds"][1, -1] -= 2.0

    assert rebuilt(example_run(), change, tmp_path) == ("V13",)
    example = example_run()
    example.ranks["phase_seconds"][1, -1] -= 0.1
    assert judge(written(example, tmp_path)).valid


def test_a_run_that_stopped_at_its_best_moment_is_found(tmp_path: Path) -> None:
    def change(example: Example) -> None:
        example.core_seconds -= 0.5

    assert rebuilt(example_run(), change, tmp_path) == ("V02",)


def test_a_final_error_of_another_model_is_found(tmp_path: Path) -> None:
    def change(example: Example) -> None:
        example.final = (0, 0.1)

    assert rebuilt(example_run(), change, tmp_path) == ("I08",)


def test_class_and_division_are_those_of_the_configuration(tmp_path: Path) -> None:
    def change(example: Example) -> None:
        example.header = dataclasses.replace(example.header, cls="official", division="closed")

    example = example_run()
    change(example)
    verdict = judge(written(example, tmp_path))
    assert (verdict.cls, verdict.division, verdict.valid) == ("trial", "open", False)
    assert math.isnan(verdict.score_ops)


def test_another_configuration_is_found(tmp_path: Path) -> None:
    def change(example: Example) -> None:
        config = load("imagenet")
        example.header = dataclasses.replace(
            example.header, config_toml=config.to_toml(), config_sha256=config.sha256
        )

    assert "V01" in rebuilt(example_run(), change, tmp_path)


def test_the_best_model_may_be_any_of_equal_ones(tmp_path: Path) -> None:
    example = example_run()
    # Trial 4 gets the best error as well, that of trial 6, which was loaded again.
    last = np.flatnonzero(example.epochs["trial_id"] == 4)[-1]
    example.epochs["val_error"][last] = example.trials["best_error"][example.trial(4)] = 63 / 360
    verdict = judge(written(example, tmp_path))
    assert verdict.valid, verdict.reasons
    assert (verdict.best_trial, example.final) == (4, (6, 63 / 360))


def test_sums_beyond_64_bits_are_judged_as_integers(tmp_path: Path) -> None:
    # ResNet-50 of 400 filters on pictures of 4096 pixels takes 3e14 operations an image, 4e17 an epoch of
    # 1408 images: each fits 64 bits, 60 of them do not (2^64 is 1.8e19).
    sets = ("model.width=400", "data.image_size=4096", "search.max_parameters=4000000000")
    example = example_run(trials_each=6, epochs_each=5, sets=sets)
    verdict = judge(written(example, tmp_path))
    assert verdict.valid, verdict.reasons
    assert verdict.total_ops > 2**64
    with h5py.File(tmp_path / "result.h5") as file:
        series = file["score_series/cumulative_ops"].asstr()[...]
        assert int(series[-1]) == verdict.total_ops == sum(map(int, file["trials/ops_credited"].asstr()[...]))
        assert verdict.total_ops == sum(file["epochs/ops_credited"][...].tolist())


def test_every_check_says_what_it_checks() -> None:
    assert all(check.about.endswith(".") and check.limit for check in CHECKS)
    assert {check.severity for check in CHECKS} <= {"fatal", "official"}
    assert len({check.id for check in CHECKS}) == len(CHECKS)


# -- the plan --------------------------------------------------------------------------------------


def test_a_budget_that_is_not_stated_switches_no_check_off(tmp_path: Path) -> None:
    def change(example: Example) -> None:
        # The first trial ends "done" after two of its three epochs, with a budget of 0.
        own = example.epochs["trial_id"] == 0
        example.epochs = example.epochs[~(own & (example.epochs["epoch"] == 2))]
        left, row = example.epochs[example.epochs["trial_id"] == 0], example.trial(0)
        for name in ("train_samples", "val_samples"):
            example.trials[name][row] = left[name].sum()
        example.trials["epochs"][row], example.trials["best_error"][row] = 2, left["val_error"].min()
        example.trials["epochs_max"][row] = example.trials["patience"][row] = 0

    assert set(rebuilt(example_run(), change, tmp_path)) == {"I13", "I18"}


def test_a_child_without_a_budget_still_keeps_its_parents_function(tmp_path: Path) -> None:
    example = example_run(sets=("model.initial_weight='inherit'",))
    example.trials["morph_max_abs_diff"] = np.nan
    example.trials["epochs_max"] = 0
    assert {"I13", "V08"} <= set(judge(written(example, tmp_path)).reason_ids)


def test_a_validation_without_its_training_is_no_work(tmp_path: Path) -> None:
    def change(example: Example) -> None:
        row = int(np.flatnonzero(example.epochs["partial"])[0])
        example.epochs["val_samples"][row] = 360
        example.trials["val_samples"][example.trial(int(example.epochs["trial_id"][row]))] += 360

    assert rebuilt(example_run(), change, tmp_path) == ("I09",)


@pytest.mark.parametrize(
    "sets",
    [
        ("search.max_morphs=1",),
        ("search.morphs=['skip']",),
        ("search.max_parameters=100000",),
        ("search.max_units=49",),
        ("train.batch_per_device=16",),
        ("hpo.from_round=2", "hpo.batches=[16]"),
    ],
)
def test_candidates_of_another_configuration_are_found(sets: tuple[str, ...], tmp_path: Path) -> None:
    # The example's candidates have up to three morphs of all kinds, and batches of 32 on each device.
    assert judge(written(example_run(sets=sets), tmp_path)).reason_ids == ("I19",)


@pytest.mark.parametrize("end", ["time_limit", "drained"])
def test_a_run_without_a_step_is_invalid_however_it_ended(end: str, tmp_path: Path) -> None:
    def change(example: Example) -> None:
        # Drained while the first candidate compiled: trial 0 has neither an epoch nor times.
        example.end, example.core_seconds = end, 8.5 if end == "time_limit" else 3.25
        example.epochs, example.final = example.epochs[:0], None
        example.trials = example.trials[:0]
        example.samples = example.samples[example.samples["t"] < 3]

    assert "I15" in rebuilt(example_run(), change, tmp_path)


def test_validations_without_training_are_invalid(tmp_path: Path) -> None:
    def change(example: Example) -> None:
        # 64 devices x batch 32 = 2,048 of 1,437 images: no epoch has a step, and each validates 360 images.
        example.epochs["steps"] = example.epochs["train_samples"] = 0
        example.trials["train_samples"] = 0

    reasons = rebuilt(example_run(), change, tmp_path)
    assert {"I15", "I20"} <= set(reasons)

    # One epoch alone is one too many.
    def one(example: Example) -> None:
        example.epochs["steps"][0] = example.epochs["train_samples"][0] = 0
        example.trials["train_samples"][0] -= 1408

    reasons = rebuilt(example_run(), one, tmp_path)
    assert "I20" in reasons and "I15" not in reasons
