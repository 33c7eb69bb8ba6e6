# SPDX-License-Identifier: Apache-2.0
"""A replica with stuck or broken devices retires, and the others go on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aiperf_mpi.parallel.coordinator.progress import Progress
from aiperf_mpi.parallel.replica.best import Best
from aiperf_mpi.parallel.replica.team import Team
from aiperf_mpi.parallel.replica.weights import KeptWeights
from aiperf_mpi.parallel.shared.status import RETIRED, ReplicaStatus
from aiperf_mpi.parallel.trainer.preparation import Preparation
from aiperf_mpi.parallel.trainer.recorder import TrialRecorder
from aiperf_mpi.parallel.trainer.retirement import FAILED_IN_A_ROW, Retirement
from aiperf_mpi.parallel.trainer.trainer import retire_after, run_trial
from aiperf_mpi.results.file.rows import DONE, FAILED, TRIAL_ROW, UNFINISHED
from aiperf_mpi.training.lockstep import FailedElsewhere, Stuck
from tests.helpers.parallel.contexts import FakeMessages, fake_context
from tests.helpers.parallel.past import small
from tests.helpers.parallel.resuming import child
from tests.helpers.parallel.rows import outcome
from tests.helpers.parallel.trainers import fake_trainer
from tests.helpers.trials.twins import ArrayHistory

UUIDS = "GPU-0b9e,GPU-71c2"


def trainer(folder: Path, team: Team | None = None) -> Any:
    """A trainer of replica 0 with two devices, whose trials fail as its `failures` say."""
    config = small()
    config = replace(config, run=replace(config.run, output=str(folder), time_limit=1e9))
    context = fake_context(config=config, history=ArrayHistory(100), messages=FakeMessages())
    state = fake_trainer(
        context, team=team or Team(None), best=Best(KeptWeights(1)), retirement=Retirement(UUIDS)
    )
    return SimpleNamespace(state=state, recorder=TrialRecorder(context, state.best), lookahead=None)


def fail(made: Any, failure: Exception) -> np.void:
    """Let a trial fail while it is prepared; return its row."""
    taken: Any = SimpleNamespace(record=None)
    preparation = Preparation(made.state, taken)
    preparation.done, preparation.failure = True, failure
    preparation.candidate = child(made.state.context.config, 32)
    run_trial(made, preparation)
    _, row = made.state.context.windows.messages.rows[-1]
    assert int(row["status"]) == FAILED
    return row


def succeed(made: Any, **changes: Any) -> None:
    """Let a trial of another replica end well."""
    made.state.context.windows.history.append(outcome(**({"trial": 9, "error": 0.5, "replica": 1} | changes)))


def test_a_stuck_device_retires_its_replica_at_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = trainer(tmp_path)
    row = fail(made, Stuck("epoch 3, training: step 12", 301.2))
    place = "replica 0 (rank 1 on here, device GPU-0b9e and 1 more) retires"
    why = "stuck: epoch 3, training: step 12 has not ended for 301 s"
    assert row["cause"].decode() == f"{why}; {place}"
    assert made.state.retirement.stuck and made.state.retirement.why == why
    told = capfd.readouterr().err
    assert f"{place}, and trains no more in this run: {why}; look whether" in told


def test_three_failures_in_a_row_retire_a_replica_while_others_succeed(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    # What succeeded before its first failure says nothing of the program now.
    succeed(made)
    for _ in range(FAILED_IN_A_ROW + 1):
        fail(made, RuntimeError("an error of the device"))
        assert not made.state.retirement.why, "nothing has succeeded since: the program may be wrong"
    succeed(made)
    row = fail(made, RuntimeError("an error of the device"))
    retirement = made.state.retirement
    assert retirement.why == "5 trials in a row failed, while those of others succeed"
    assert not retirement.stuck and b"RuntimeError: an error of the device; replica 0 (rank 1" in row["cause"]


def test_a_success_or_a_cut_trial_starts_the_count_again(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    retirement, context = made.state.retirement, made.state.context
    for status in (DONE, UNFINISHED):
        for _ in range(FAILED_IN_A_ROW - 1):
            fail(made, RuntimeError("an error"))
            succeed(made)
        assert retirement.reason(context, status, None) == "" and retirement.failed == 0
    for _ in range(FAILED_IN_A_ROW - 1):
        fail(made, RuntimeError("an error"))
    assert not retirement.why


class Peer(Team):
    """A team of two, whose other trainer agrees on these values."""

    def __init__(self, theirs: int) -> None:
        super().__init__(None)
        self.size, self.theirs = 2, theirs

    def agree(self, value: int) -> int:
        return max(value, self.theirs)


def test_all_trainers_of_a_replica_retire_together(tmp_path: Path) -> None:
    made = trainer(tmp_path, Peer(2))
    trial: Any = SimpleNamespace(status=FAILED, cause="stuck: elsewhere")
    retire_after(made.state, trial, FailedElsewhere("another trainer of the replica failed"))
    retirement = made.state.retirement
    assert retirement.stuck and retirement.why == "another trainer of the replica retires"
    assert trial.cause.startswith("stuck: elsewhere; replica 0 (rank 1 on here, ")


def test_a_rank_without_uuids_is_named_by_its_host() -> None:
    context = fake_context(config=small())
    for devices in ("", "none: the devices are CPUs"):
        assert Retirement(devices).place(context) == "replica 0 (rank 1 on here)"
    assert Retirement("GPU-1").place(context) == "replica 0 (rank 1 on here, device GPU-1)"


def test_a_run_ends_when_all_of_its_replicas_have_retired() -> None:
    progress = Progress(replicas=2)
    row = np.zeros(1, TRIAL_ROW)[0]
    row["status"], row["cause"], row["best_error"] = FAILED, b"stuck: a step", np.nan
    progress.trial(row)
    progress.status(ReplicaStatus(0, RETIRED))
    progress.status(ReplicaStatus(1, 4, "train"))
    assert progress.hopeless() == ""
    progress.status(ReplicaStatus(1, RETIRED))
    assert progress.hopeless() == "all replicas have retired, at last: stuck: a step"
    assert "has retired" in str(progress.snapshot(1.0, 2.0, "training").lines[0])
