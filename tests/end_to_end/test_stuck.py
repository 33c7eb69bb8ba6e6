# SPDX-License-Identifier: Apache-2.0
"""A step that never ends: its trial fails, its replica retires, others go on, and the exit does not hang."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from aiperf_mpi.results.judge.judge import judge
from tests.helpers import launch
from tests.helpers.end_to_end import runs, starts

pytestmark = [pytest.mark.mpi, pytest.mark.full]

#: A step of a tiny network takes milliseconds.
STUCK_SECONDS = 6

#: Replica 1 hangs in its second round.
HANGS = (f"run.stuck_seconds={STUCK_SECONDS}", "fault.hang_in_round=2", "fault.hang_replica=1")


@pytest.mark.parametrize("mpi", ["mpich", "openmpi"])
def test_two_of_three_replicas_go_on_without_the_one_that_hangs(mpi: str, tmp_path: Path) -> None:
    if not launch.available(mpi):
        pytest.skip(f"there is no environment for {mpi}: see bin/test")
    folder, seconds = tmp_path / "run", 70
    sets = (*HANGS, "parallel.ranks_per_node=1")
    job = runs.start(4, folder, sets, seconds=seconds, mpi=mpi)
    begun = time.monotonic()
    while not (folder / "journal.jsonl").exists():
        assert time.monotonic() - begun < 60
        time.sleep(0.2)
    ranks = [starts.process_of(job, rank) for rank in range(4)]
    ended = runs.finish(job, folder, timeout=seconds + 120)
    assert time.monotonic() - begun < seconds + 90
    assert not psutil.wait_procs(ranks, timeout=10)[1], "a rank outlives the job"
    assert ended.code == 0 and ended.lines["end"] == "time_limit", ended.text()
    assert ended.lines["status"] == "VALID" and judge(ended.result).valid

    trials, ranks_table = ended.table("trials"), ended.table("ranks")
    failed = np.flatnonzero(trials["status"] == "failed")
    assert len(failed) == 1, ended.text()
    row = int(failed[0])
    cause = trials["cause"][row]
    assert cause.startswith("stuck: epoch 0, training: step ") and "; replica 1 (rank 2 on " in cause, cause
    assert (int(trials["replica"][row]), int(trials["round"][row])) == (1, 2)
    assert trials["ops_credited"][row] == "0"
    assert "replica 1 (rank 2 on " in ended.err and "retires, and trains no more in this run" in ended.err
    assert "stuck" in ended.err

    # It trains no more, and the others do; the time of all ranks counts.
    later = trials["t_start"] > trials["t_end"][row]
    assert later.any() and 1 not in set(trials["replica"][later].tolist())
    assert set(ranks_table["rank"].tolist()) == {0, 1, 2, 3}


def test_a_run_whose_only_replica_hangs_ends_early(tmp_path: Path) -> None:
    sets = (f"run.stuck_seconds={STUCK_SECONDS}", "fault.hang_in_round=1")
    begun = time.monotonic()
    ended = runs.run(2, tmp_path / "run", sets, seconds=600, timeout=150)
    assert time.monotonic() - begun < 120
    assert ended.code == 4 and ended.lines["end"] == "drained", ended.text()
    assert "all replicas have retired, at last: stuck: epoch 0, training: step " in ended.err


def test_the_trainers_of_a_replica_retire_together(tmp_path: Path) -> None:
    """Both processes of replica 1 wait for a step that never ends; those of replica 0 go on."""
    ended = runs.run(5, tmp_path / "run", (*runs.TEAMS, *HANGS), seconds=90, timeout=260)
    assert ended.code == 0 and ended.lines["status"] == "VALID", ended.text()
    trials = ended.table("trials")
    (row,) = np.flatnonzero(trials["status"] == "failed")
    assert trials["cause"][row].startswith("stuck: ") and int(trials["replica"][row]) == 1
    assert ended.err.count(" retires, and trains no more in this run") == 2, "each trainer names its place"
    later = trials["t_start"] > trials["t_end"][row]
    assert later.any() and set(trials["replica"][later].tolist()) == {0}
