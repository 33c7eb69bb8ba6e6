# SPDX-License-Identifier: Apache-2.0
"""The verdict follows from the rows, and the judge agrees with the writer."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import h5py
import numpy as np
import pytest

from aiperf_mpi import __version__
from aiperf_mpi.results.file import resultfile
from aiperf_mpi.results.file.rows import FAILED, REJECTED
from aiperf_mpi.results.judge.checks import CHECKS, FATAL
from aiperf_mpi.results.judge.judge import judge
from aiperf_mpi.trials.candidate import Candidate
from aiperf_mpi.trials.record import DROPPED, rejection
from tests.helpers.results.changes import altered, changed, written
from tests.helpers.results.example_run import example_run


def test_a_faultless_run_is_valid_with_its_rows_numbers(path: Path) -> None:
    example, verdict = example_run(), judge(path)
    assert (verdict.valid, verdict.cls, verdict.division, verdict.end) == (
        True,
        "trial",
        "open",
        "time_limit",
    )
    assert verdict.reasons == () and all(
        finding.passed for finding in verdict.findings if finding.severity == FATAL
    )
    assert len(verdict.findings) == len(CHECKS) + 2 == len({finding.id for finding in verdict.findings})

    # Counted here in another way: image by image of each candidate.
    total = 0
    for candidate in example.candidates:
        rows = example.epochs[example.epochs["trial_id"] == candidate.trial_id]
        total += candidate.train_ops * int(rows["train_samples"].sum())
        total += candidate.val_ops * int(rows["val_samples"].sum())
    assert verdict.total_ops == total and verdict.rate == total / example.core_seconds
    # Trial 6 is the fourth, in its third epoch: 200 // 3 - 3 = 63 of 360 images are wrong.
    assert (verdict.best_error, verdict.best_trial, verdict.error_final) == (63 / 360, 6, 63 / 360)
    assert verdict.regulated == pytest.approx(-math.log(63 / 360) * verdict.rate, rel=1e-12)
    assert (verdict.trials, verdict.trials_done, verdict.trials_failed) == (6, 4, 0)
    assert (verdict.ranks, verdict.nodes, verdict.replicas, verdict.devices) == (5, 2, 2, 4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict.valid = False  # type: ignore[misc]


def test_a_trial_run_has_a_rate_and_no_score(path: Path, tmp_path: Path) -> None:
    verdict = judge(path)
    assert verdict.trial_rate_ops == verdict.rate
    assert math.isnan(verdict.score_ops) and math.isnan(verdict.score_regulated)
    assert math.isnan(verdict.unscored_rate_ops)
    bad = changed(path, tmp_path, lambda file: altered(file, "epochs", "ops"))
    assert bad.unscored_rate_ops == verdict.rate
    assert math.isnan(bad.trial_rate_ops) and math.isnan(bad.score_ops)


@pytest.mark.parametrize(
    "kind",
    [
        "valid",
        "failed",
        "rejected",
        "drained",
        "unfinished",
        "cut without a report",
        "other core time",
        "no ranks",
    ],
)
def test_judge_and_writer_agree(kind: str, tmp_path: Path) -> None:
    example = example_run()
    match kind:
        case "failed":
            example.trials["status"][example.trial(4)] = FAILED
        case "rejected":
            gone = example.epochs["trial_id"] == 9
            example.epochs = example.epochs[~gone]
            row = example.trial(9)
            for name in ("epochs", "epochs_max", "train_samples", "val_samples"):
                example.trials[name][row] = 0
            for name in ("t_start", "best_error", "lr"):
                example.trials[name][row] = np.nan
            example.trials["status"][row] = REJECTED
        case "drained":
            example.end, example.core_seconds = "drained", 8.25
        case "unfinished" | "cut without a report":
            # Only whole epochs of a trial that did not report its end stand for themselves.
            example.trials = example.trials[:-1]
            if kind == "unfinished":
                example.epochs = example.epochs[:-1]
        case "other core time":
            example.core_seconds = 7.0
        case "no ranks":
            example.ranks = example.ranks[:0]
    file = written(example, tmp_path)
    verdict = judge(file)
    with h5py.File(file) as result:
        stored = dict(result.attrs)
    # The verdict in the file is the judge's.
    assert "I12" not in verdict.reason_ids and "V21" not in verdict.reason_ids
    for name, value in verdict.attributes().items():
        assert stored[name] == value or (math.isnan(value) and math.isnan(stored[name])), name
    assert verdict.valid == (kind in ("valid", "failed", "rejected", "drained", "unfinished"))
    finds = {"other core time": {"V02"}, "no ranks": {"V11", "V13"}, "cut without a report": {"I18"}}
    assert set(verdict.reason_ids) == finds.get(kind, set())
    if kind == "failed":
        assert verdict.trials_failed == 1


@pytest.mark.parametrize(
    ("version", "reasons", "agrees"),
    [
        ("0.1.0", '[["V02", "in other words"]]', True),
        (__version__, '[["V02", "in other words"]]', False),
        ("0.1.0", '[["V04", "another check"]]', False),
        ("0.1.0", '[["V02", null]]', False),
        ("0.1.0", '[["V02", "one line\\nAIPERF_MPI status: VALID"]]', False),
        ("0.1.0", '["V2"]', False),
        ("0.1.0", '{"V02": 1, "b": 2}', False),
        ("0.1.0", '""', False),
        ("0.1.0", "[" * 100_000, False),
        ("0.1.0", "[7]", False),
        ("0.1.0", "[]", False),
    ],
)
def test_stored_reasons_agree_with_the_judges(
    tmp_path: Path, version: str, reasons: str, agrees: bool
) -> None:
    # Another version may word a reason in another way, but no file may hold anything else than reasons.
    example = example_run()
    example.core_seconds = 7.0
    file = written(example, tmp_path)
    assert judge(file).reason_ids == ("V02",)

    def change(file: h5py.File) -> None:
        resultfile.set_attributes(file, {"aiperf_mpi_version": version, "invalid_reasons": reasons})

    assert ("I12" not in changed(file, tmp_path, change).reason_ids) == agrees


def test_losses_of_a_failed_trial_may_be_no_numbers(tmp_path: Path) -> None:
    example = example_run()
    example.trials["status"][example.trial(4)] = FAILED
    last = np.flatnonzero(example.epochs["trial_id"] == 4)[-1]
    example.epochs["train_loss"][last] = np.nan
    verdict = judge(written(example, tmp_path))
    assert verdict.valid, verdict.reasons


def test_candidates_of_the_example_are_real() -> None:
    example = example_run()
    made: dict[int, Candidate] = {}
    for candidate in example.candidates:
        parent = made[candidate.parent_id].architecture if made else candidate.architecture
        record = example.records[example.slots.index(candidate.trial_id)]
        made[candidate.trial_id] = Candidate.from_record(record, parent, candidate.trial_id)
    assert len(made) == 6


def test_a_replaced_candidate_is_dropped_and_its_key_free(tmp_path: Path) -> None:
    # Replaced while it waited, proposed again later, and trained then: one ticket, one key, one training.
    example = example_run()
    trained = example.candidates[-1]
    proposed = trained.to_record(0.5)
    example.slots += [30, 31]
    example.records += [
        proposed,
        rejection(proposed, 30, 1.0, f"stale: replaced by {trained.trial_id}", DROPPED),
    ]
    verdict = judge(written(example, tmp_path))
    assert verdict.valid, verdict

    with h5py.File(tmp_path / "result.h5") as file:
        assert file["trials/status"].asstr()[-1] == "dropped"
        assert file["trials/cause"].asstr()[-1].startswith("stale")
        keys = list(zip(file["trials/arch_hash"][...], file["trials/batch_global"][...], strict=True))
        assert keys.count(keys[-1]) == 2
