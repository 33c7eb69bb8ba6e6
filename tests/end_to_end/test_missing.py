# SPDX-License-Identifier: Apache-2.0
"""A rank that never answers again: the others end, and the result is written and judged without it."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest

from aiperf_mpi.parallel.coordinator.farewells import DRAIN_SECONDS, LIMIT_SECONDS, ROW_SECONDS
from aiperf_mpi.results.output import journal
from tests.helpers import launch
from tests.helpers.end_to_end import runs, starts

pytestmark = [pytest.mark.mpi, pytest.mark.full]

#: Two replicas of one trainer and one generator: ranks 1, 2 and ranks 3, 4.
PAIRS = ("parallel.ranks_per_node=2",)

#: Seconds for writing, judging and the end of the job, with all cores busy.
_REST = 30.0


def wait_for_epoch_of(replica: int, folder: Path, timeout: float = 150) -> int:
    """Wait until a trial of the replica has an epoch; return its id."""
    limit, path = time.monotonic() + timeout, folder / "journal.jsonl"
    while time.monotonic() < limit:
        found = runs.trained(journal.replay(path)) if path.exists() else {}
        for trial, record in found.items():
            if record["replica"] == replica:
                return trial
        time.sleep(0.2)
    raise TimeoutError(f"{path}: no epoch of replica {replica} after {timeout:g} s")


@pytest.mark.parametrize("mpi", ["mpich", "openmpi"])
def test_a_stopped_generator_costs_nothing_but_a_warning(mpi: str, tmp_path: Path) -> None:
    """Rank 4 is stopped in the core time: the time limit comes, the last rows of the others too."""
    if not launch.available(mpi):
        pytest.skip(f"there is no environment for {mpi}: see bin/test")
    folder, seconds = tmp_path / "run", 40
    job = runs.start(5, folder, PAIRS, seconds=seconds, mpi=mpi)
    wait_for_epoch_of(1, folder)
    begun = time.monotonic()
    rank = starts.process_of(job, 4)
    rank.suspend()
    ended = runs.finish(job, folder, timeout=seconds + LIMIT_SECONDS + ROW_SECONDS + _REST)
    assert time.monotonic() - begun < seconds + LIMIT_SECONDS + ROW_SECONDS + _REST
    assert psutil.wait_procs([rank], timeout=10)[0], "the stopped rank outlives the job"

    assert "no answer of rank 4 (generator) on " in ended.err, ended.text()
    assert ended.lines["end"] == "time_limit", ended.text()
    ranks = ended.table("ranks")
    assert set(ranks["rank"]) >= {0, 1, 2, 3}
    with h5py.File(ended.result) as file:
        assert "no answer of rank 4" in file.attrs["end_cause"]


@pytest.mark.parametrize("mpi", ["mpich", "openmpi"])
def test_a_trainer_that_hangs_loses_its_trial_alone(mpi: str, tmp_path: Path) -> None:
    """Rank 3 is stopped while it trains, as by a device that hangs; then the run is drained."""
    if not launch.available(mpi):
        pytest.skip(f"there is no environment for {mpi}: see bin/test")
    folder = tmp_path / "run"
    job = runs.start(
        5, folder, (*PAIRS, "train.epochs=400", "train.round_epochs=[400]"), seconds=600, mpi=mpi
    )
    trial = wait_for_epoch_of(1, folder)
    rank = starts.process_of(job, 3)
    rank.suspend()
    time.sleep(3)
    sent = time.monotonic()
    job.send_signal(signal.SIGUSR1)
    ended = runs.finish(job, folder, timeout=DRAIN_SECONDS + ROW_SECONDS + _REST)
    assert time.monotonic() - sent < 60 + _REST
    assert psutil.wait_procs([rank], timeout=10)[0], "the stopped rank outlives the job"

    assert "no answer of rank 3 (trainer) on " in ended.err, ended.text()
    trials = ended.table("trials")
    row = int(np.flatnonzero(trials["trial_id"] == trial)[0])
    assert trials["status"][row] == "failed" and "stuck: rank 3 on " in trials["cause"][row], ended.text()
    assert trials["ops_credited"][row] == "0" and trials["ops"][row] != "0"
    assert ended.lines["end"] == "drained"
