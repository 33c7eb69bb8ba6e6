# SPDX-License-Identifier: Apache-2.0
"""What rank 0 knows of the run while it goes on, for the view."""

from __future__ import annotations

import numpy as np

from aiperf_mpi.parallel.coordinator import ENDING, TRAINING, Progress
from aiperf_mpi.results.schema import DONE, REJECTED, TRIAL_ROW, UNFINISHED, new_row
from tests.parallel.rows import outcome, proposed


def end(trial_id: int, status: int) -> np.void:
    return new_row(TRIAL_ROW, trial_id=trial_id, status=status, best_error=0.5)[0]


def test_a_replica_is_busy_from_its_first_candidate_on() -> None:
    """A first epoch may take an hour, its compilation minutes: who waits for its row would call the machine idle."""
    progress = Progress(replicas=3)
    assert progress.snapshot(1.0, 60.0, TRAINING).busy == 0
    progress.record(0, proposed(replica=0))
    progress.record(1, proposed(replica=1))
    progress.record(2, proposed(replica=1, round=2))
    assert progress.snapshot(1.0, 60.0, TRAINING).busy == 2

    # Replica 1 goes on with its second candidate; replica 0 has none left, whichever of row and outcome comes first.
    progress.trial(end(1, DONE))
    progress.record(3, outcome(1, 0.5, replica=1))
    progress.record(4, outcome(0, 0.5))
    progress.trial(end(0, DONE))
    assert progress.busy == 1
    assert progress.snapshot(60.0, 60.0, ENDING).busy == 0
    progress.trial(end(2, UNFINISHED))
    assert progress.busy == 0


def test_a_rejection_that_overtakes_its_record_leaves_nobody_busy() -> None:
    """Rows are taken at once, records twenty times a second."""
    progress = Progress(replicas=1)
    progress.trial(end(5, REJECTED))
    progress.record(5, proposed())
    progress.record(6, outcome(5, 0.5))
    assert progress.busy == 0
    assert not progress.over and not progress.proposed
