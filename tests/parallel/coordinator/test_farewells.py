# SPDX-License-Identifier: Apache-2.0
"""What rank 0 does about ranks that never send their last row."""

from __future__ import annotations

import math

import numpy as np

from aiperf_mpi.parallel.coordinator.farewells import (
    DRAIN_SECONDS,
    LIMIT_SECONDS,
    ROW_SECONDS,
    WRITE_SECONDS,
    Farewells,
    describe_missing,
    stuck_trials,
)
from aiperf_mpi.parallel.launch.placement import Place, arrange
from aiperf_mpi.parallel.shared.messages import Reason
from aiperf_mpi.parallel.shared.status import ReplicaStatus
from aiperf_mpi.planning.walltime import DEFAULT_RESERVE
from aiperf_mpi.results.file.rows import EPOCH_ROW, FAILED, TRIAL_ROW, new_row


def places() -> tuple[Place, ...]:
    """Two nodes of a trainer and a generator: ranks 1, 2 on a, ranks 3, 4 on b; rank 0 on a."""
    return arrange(["a", "a", "a", "b", "b"], [0, 1, 1, 3, 3])


def begun(trial_id: int) -> np.void:
    return new_row(TRIAL_ROW, trial_id=trial_id, t_start=1.0, t_first_step=1.5, lr=0.1, jaxpr_ops=7)[0]


def epoch(trial_id: int, start: float, end: float, error: float = math.nan) -> np.void:
    return new_row(
        EPOCH_ROW,
        trial_id=trial_id,
        t_start=start,
        t_end=end,
        train_samples=256,
        val_samples=60,
        val_error=error,
    )[0]


def test_the_end_is_complete_with_the_last_row_of_every_other_rank() -> None:
    farewells = Farewells(places())
    for rank in (1, 2, 3):
        farewells.farewell(rank, b"")
        assert not farewells.complete
        farewells.farewell(rank, b"row")
    assert not farewells.complete and farewells.missing == (4,)
    farewells.farewell(4, b"row")
    assert farewells.complete and farewells.missing == ()


def test_without_the_missing_ranks_only_those_that_have_ended_are_waited_for() -> None:
    """Ranks 1 and 3 wait for rank 4; rank 2 has sent its last row."""
    farewells = Farewells(places())
    for rank in (1, 2, 3):
        farewells.farewell(rank, b"")
    farewells.farewell(2, b"row")
    assert farewells.missing == (1, 3, 4) and farewells.awaited == (4,)
    assert describe_missing(farewells.awaited, farewells.places) == "no answer of rank 4 (generator) on b"

    farewells.alone = True
    farewells.farewell(1, b"row")
    assert not farewells.complete
    farewells.farewell(3, b"row")
    assert farewells.complete and farewells.missing == (4,)


def test_a_rank_that_hangs_in_the_last_validation_is_named_as_well() -> None:
    farewells = Farewells(places())
    for rank in (1, 2, 3, 4):
        farewells.farewell(rank, b"")
    for rank in (2, 3, 4):
        farewells.farewell(rank, b"row")
    assert farewells.awaited == (1,)


def test_patience_lies_within_the_reserve_unless_validations_are_longer() -> None:
    """A validation is shorter than an epoch, and a compilation may take half of the reserve before it."""
    farewells = Farewells(places())
    assert DRAIN_SECONDS < farewells.patience(Reason.LIMIT) == LIMIT_SECONDS < DEFAULT_RESERVE
    assert farewells.patience(Reason.DRAIN) == farewells.patience(Reason.FULL) == DRAIN_SECONDS < 60
    farewells.epoch(epoch(0, 0.0, 20.0))
    assert farewells.patience(Reason.LIMIT) == LIMIT_SECONDS
    farewells.epoch(epoch(0, 20.0, 320.0))
    assert farewells.patience(Reason.LIMIT) == 60 + 300


def test_a_drain_waits_for_long_steps() -> None:
    """Two steps under way and one that begins, of 160 s / 8 = 20 s each, are 60 s on top."""
    farewells = Farewells(places(), in_flight=2)
    row = epoch(0, 0.0, 160.0).copy()
    row["steps"] = 8
    farewells.epoch(row)
    assert farewells.patience(Reason.DRAIN) == DRAIN_SECONDS + 60


def test_steps_of_the_first_epoch_are_told_by_the_statuses() -> None:
    """A step of 20 s: its images change from 0 to 32 between 1 and 21 s; a later one takes 5 s."""
    farewells = Farewells(places(), in_flight=2)
    for t, images in ((1.0, 0), (2.0, 0), (21.0, 32), (26.0, 64)):
        farewells.status(ReplicaStatus(0, 0, "train", 0, 15, images, 0, 2.3, t))
    assert farewells.step == 20.0
    # Another epoch begins anew, whatever was between them.
    farewells.status(ReplicaStatus(0, 0, "train", 1, 15, 0, 0, 2.3, 90.0))
    farewells.status(ReplicaStatus(0, 1, "compile", 0, 15, t=200.0))
    farewells.status(ReplicaStatus(0, 1, "train", 0, 15, 32, 0, 2.3, 300.0))
    assert farewells.step == 20.0
    assert farewells.patience(Reason.DRAIN) == DRAIN_SECONDS + 3 * 20
    assert farewells.patience(Reason.LIMIT) == 60 + 3 * 20


def test_the_end_of_the_job_leaves_time_for_the_result() -> None:
    """The limit at 1,000 s, the job's end at 1,120: the last rows until 1,120 - 30 - 5."""
    farewells = Farewells(places(), job_end=1120.0)
    farewells.epoch(epoch(0, 0.0, 500.0))
    assert farewells.patience(Reason.LIMIT, 1000.0) == 1120 - WRITE_SECONDS - ROW_SECONDS - 1000
    assert farewells.patience(Reason.DRAIN, 300.0) == DRAIN_SECONDS
    assert farewells.patience(Reason.DRAIN, 1119.0) == 0


def test_the_trial_of_a_missing_trainer_has_failed() -> None:
    """Trials 5 and 6 of replicas 0 and 1 train; rank 3, the trainer of replica 1, is missing. Trial 7 of
    replica 1 has ended, trial 8 of it waits."""
    farewells = Farewells(places())
    for trial_id in (5, 6, 7):
        farewells.trial(begun(trial_id))
        farewells.epoch(epoch(trial_id, 2.0, 4.0, error=0.75))
    farewells.epoch(epoch(6, 4.0, 7.0, error=0.5))
    farewells.epoch(epoch(6, 7.0, 8.0))
    farewells.trial(new_row(TRIAL_ROW, trial_id=7, t_end=5.0)[0])
    for rank in (1, 2, 4):
        farewells.farewell(rank, b"row")

    (data,) = stuck_trials(farewells, {5: 0, 6: 1, 8: 1}, now=30.0)
    row = np.frombuffer(data, TRIAL_ROW)[0]
    assert row["trial_id"] == 6 and row["status"] == FAILED
    assert row["cause"] == b"stuck: rank 3 on b does not answer"
    # What its first row told stays; the sums are those of its three epochs.
    assert (row["t_first_step"], row["lr"], row["jaxpr_ops"]) == (1.5, 0.1, 7)
    assert (row["t_start"], row["t_end"], row["epochs"]) == (1.0, 30.0, 3)
    assert (row["train_samples"], row["val_samples"], row["best_error"]) == (3 * 256, 3 * 60, 0.5)
