# SPDX-License-Identifier: Apache-2.0
"""Rank 0's progress of the run, for the view and the end."""

from __future__ import annotations

import numpy as np

from aiperf_mpi.parallel.coordinator.progress import ENDING, TRAINING, Progress
from aiperf_mpi.parallel.shared.status import ReplicaStatus
from aiperf_mpi.results.file.rows import (
    DONE,
    EPOCH_ROW,
    FAILED,
    REJECTED,
    STOPPED,
    TRIAL_ROW,
    UNFINISHED,
    new_row,
)
from tests.helpers.parallel.rows import outcome, proposed


def end(trial_id: int, status: int, cause: bytes = b"") -> np.void:
    return new_row(TRIAL_ROW, trial_id=trial_id, status=status, best_error=0.5, cause=cause)[0]


def test_a_replica_is_busy_from_its_first_candidate_on() -> None:
    """A first epoch may take an hour, its compilation minutes; the replica is busy before its row arrives."""
    progress = Progress(replicas=3)
    assert progress.snapshot(1.0, 60.0, TRAINING).busy == 0
    progress.record(0, proposed(replica=0))
    progress.record(1, proposed(replica=1))
    progress.record(2, proposed(replica=1, round=2))
    assert progress.snapshot(1.0, 60.0, TRAINING).busy == 2

    # Replica 1 goes on with its second candidate; replica 0 has none, whether row or outcome comes first.
    progress.trial(end(1, DONE))
    progress.record(3, outcome(1, 0.5, replica=1))
    progress.record(4, outcome(0, 0.5))
    progress.trial(end(0, DONE))
    assert progress.busy == 1
    assert progress.snapshot(60.0, 60.0, ENDING).busy == 0
    progress.trial(end(2, UNFINISHED))
    assert progress.busy == 0


def test_a_rejection_before_its_record_leaves_no_replica_busy() -> None:
    """Rows are taken at once, records twenty times a second."""
    progress = Progress(replicas=1)
    progress.trial(end(5, REJECTED))
    progress.record(5, proposed())
    progress.record(6, outcome(5, 0.5))
    assert progress.busy == 0
    assert not progress.over and not progress.proposed


def test_a_machine_that_only_fails_is_stopped_early() -> None:
    """64 rejected or failed in a row are not an accident; a success starts the count again."""
    progress = Progress(replicas=3)
    for trial_id in range(63):
        progress.trial(end(trial_id, FAILED if trial_id % 2 else REJECTED))
    assert not progress.hopeless()
    progress.trial(end(63, UNFINISHED))
    progress.trial(end(64, STOPPED))
    assert progress.lost == 0

    for trial_id in range(100, 163):
        progress.trial(end(trial_id, FAILED))
    assert not progress.hopeless()
    progress.trial(end(163, FAILED, b"no convolution on this device"))
    assert progress.hopeless() == (
        "64 candidates in a row were rejected or failed, at last: no convolution on this device"
    )

    # Four for each of many replicas: all of a hundred may lose their first candidates.
    many = Progress(replicas=100)
    for trial_id in range(399):
        many.trial(end(trial_id, FAILED))
    assert not many.hopeless()
    many.trial(end(399, FAILED))
    assert many.hopeless()


# -- rates, and what replicas do -------------------------------------------------------------------

#: Operations per image of training and validation in these tests.
TRAIN, VAL = 300, 100


def trial_of(replica: int, trial_id: int, progress: Progress) -> None:
    """Propose a trial of TRAIN and VAL operations per image."""
    record = proposed(replica=replica)
    record["train_ops"], record["val_ops"] = TRAIN, VAL
    progress.record(trial_id, record)


def epoch(trial_id: int, number: int, times: tuple[float, float], train: int, val: int) -> np.void:
    return new_row(
        EPOCH_ROW,
        trial_id=trial_id,
        epoch=number,
        t_start=times[0],
        t_end=times[1],
        train_samples=train,
        val_samples=val,
    )[0]


def test_running_epochs_count_by_steps_until_their_row_comes() -> None:
    progress = Progress(replicas=1)
    trial_of(0, 0, progress)
    assert progress.snapshot(1.0, 60.0, TRAINING).rate == 0

    # Ten images are trained: 3,000 operations in 4 s, all of them in the running epoch.
    progress.status(ReplicaStatus(0, 0, "train", 0, 5, train_samples=4, t=2.0))
    progress.status(ReplicaStatus(0, 0, "train", 0, 5, train_samples=10, t=4.0))
    shown = progress.snapshot(4.0, 60.0, TRAINING)
    assert (shown.rate, shown.under_way, progress.total) == (750.0, 1.0, 0)
    assert shown.present == 750.0
    # From 4 images at 2 s to 10 at 4 s: 1,800 operations in 2 s.
    assert [(line.status.trial_id, line.rate) for line in shown.lines] == [(0, 900.0)]

    # The epoch's row takes the place of the steps: 20 images trained and 5 validated, 6,500 operations.
    progress.status(ReplicaStatus(0, 0, "validate", 0, 5, train_samples=20, val_samples=3, t=7.0))
    progress.epoch(epoch(0, 0, (0.0, 8.0), 20, 5))
    shown = progress.snapshot(8.0, 60.0, TRAINING)
    assert (progress.total, shown.under_way, shown.rate) == (6500, 0.0, 6500 / 8)

    # A message of an epoch that has its row already, and a trial that fails, leave nothing.
    progress.status(ReplicaStatus(0, 0, "validate", 0, 5, train_samples=20, val_samples=4, t=7.5))
    assert progress.under_way == 0
    progress.status(ReplicaStatus(0, 0, "train", 1, 5, train_samples=2, t=9.0))
    assert progress.under_way == 600
    progress.trial(end(0, FAILED))
    shown = progress.snapshot(10.0, 60.0, TRAINING)
    assert (shown.rate, progress.under_way, progress.running) == (0.0, 0, {})
    # The rate of the last seconds is that of the work, which was done: 7,100 operations in 10 s.
    assert shown.present == 710.0
    assert progress.snapshot(10.0, 60.0, ENDING).present is None


def test_the_present_rate_forgets_what_is_old() -> None:
    """3,000 operations up to 4 s, none after it: from 14 s on the present rate is 0."""
    progress = Progress(replicas=1)
    trial_of(0, 0, progress)
    for second in range(1, 20):
        progress.status(ReplicaStatus(0, 0, "train", 0, 5, train_samples=min(10, 5 * second // 2), t=second))
        shown = progress.snapshot(float(second), 60.0, TRAINING)
        if second == 13:
            # Since 3 s, when 7 images were trained.
            assert shown.present == 3 * TRAIN / 10
    assert shown.present == 0 and shown.rate == 3000 / 19


def test_many_replicas_are_counted_and_the_slowest_named() -> None:
    """300 replicas: 280 train at 300 op/s each but for three, 15 compile, 5 wait."""
    progress = Progress(replicas=300)
    slow = {17: 1, 40: 2, 260: 3}
    for replica in range(300):
        trial_of(replica, replica, progress)
        phase = "train" if replica < 280 else "compile" if replica < 295 else "idle"
        for t, samples in ((10.0, 0), (20.0, slow.get(replica, 10))):
            progress.status(ReplicaStatus(replica, replica, phase, 2, 15, samples, t=t))
    shown = progress.snapshot(20.0, 60.0, TRAINING)
    assert dict(shown.phases) == {"train": 280, "compile": 15, "idle": 5}
    assert [(line.status.replica, line.rate) for line in shown.lines] == [(17, 30.0), (40, 60.0), (260, 90.0)]
