# SPDX-License-Identifier: Apache-2.0
"""Rank 0's progress of the run, for the view and the end."""

from __future__ import annotations

import numpy as np

from aiperf_mpi.parallel.coordinator.progress import ENDING, TRAINING, Progress
from aiperf_mpi.results.file.rows import DONE, FAILED, REJECTED, STOPPED, TRIAL_ROW, UNFINISHED, new_row
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
