# SPDX-License-Identifier: Apache-2.0
"""The end of a trial on its trainer: its record, and the weights that are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aiperf_mpi.data.dataset import ArrayImages, Dataset
from aiperf_mpi.data.loader import Reader
from aiperf_mpi.parallel.replica.best import Best, validate_best
from aiperf_mpi.parallel.replica.team import Team
from aiperf_mpi.parallel.replica.weights import KeptWeights
from aiperf_mpi.parallel.shared.clock import CoreClock
from aiperf_mpi.parallel.shared.messages import Kind
from aiperf_mpi.parallel.trainer.preparation import Preparation
from aiperf_mpi.parallel.trainer.recorder import TrialRecorder
from aiperf_mpi.parallel.trainer.trainer import run_trial
from aiperf_mpi.training.faults import TrainingFault
from aiperf_mpi.training.fit import FitSettings, Training
from aiperf_mpi.trials.record import DONE, FAILED, KEPT
from tests.helpers.parallel.contexts import FakeMessages, fake_context
from tests.helpers.parallel.past import small
from tests.helpers.parallel.trainers import fake_trainer, tiny_candidate
from tests.helpers.training.cases import TINY, batches, compiled_tiny, random_batch, started
from tests.helpers.trials.twins import ArrayHistory

COMPILED = compiled_tiny()
IMAGES, LABELS = (x[0] for x in random_batch(TINY, 1, 12))
PICTURES = ArrayImages(IMAGES, LABELS)


class Following(Team):
    """The second trainer of a replica, alone here."""

    leads = False


def trained(folder: Path, fault: TrainingFault | None, team: Team) -> tuple[Best, list[Any]]:
    """Train a trial of two epochs; return the replica's best, and the outcomes recorded."""
    config = small()
    config = replace(config, run=replace(config.run, output=str(folder)))
    history = ArrayHistory(4)
    clock = CoreClock(lambda: 1.0, 0.0)
    context = fake_context(config=config, history=history, clock=clock, replica_rank=0 if team.leads else 1)
    best = Best(KeptWeights(1, 0))
    recorder = TrialRecorder(context, best)
    training = Training(
        COMPILED,
        started(COMPILED),
        lambda epoch: batches(IMAGES, LABELS, 1, 4),
        lambda: batches(IMAGES, LABELS, 1, 4),
        FitSettings(2, 5, lambda epoch: 0.01),
        timer=context.timer,
        poll=lambda: False,
        fault=fault,
    )
    replica = fake_trainer(context, team=team, best=best)
    taken: Any = SimpleNamespace(record=None)
    preparation = Preparation(replica, taken)
    preparation.done, preparation.training, preparation.compiled = True, training, COMPILED
    trainer: Any = SimpleNamespace(state=replica, recorder=recorder)
    preparation.candidate = tiny_candidate(0)
    run_trial(trainer, preparation)
    while recorder.busy:
        recorder.advance()
    recorder.close()
    history.refresh()
    return best, [history.record(slot) for slot in range(len(history))]


@pytest.mark.parametrize("team", [Team(None), Following(None)], ids=["leads", "follows"])
def test_weights_of_a_failed_trial_are_never_the_best(tmp_path: Path, team: Team) -> None:
    (tmp_path / "done" / "checkpoints").mkdir(parents=True)
    (tmp_path / "failed" / "checkpoints").mkdir(parents=True)
    best, outcomes = trained(tmp_path / "done", None, team)
    assert best.trial_id == 0 and np.isfinite(best.error) and (best.path is not None) == team.leads
    assert [int(row["status"]) for row in outcomes] == [DONE] * team.leads

    # It has validated once, with an error lower than infinity, and raises in its second epoch.
    best, outcomes = trained(tmp_path / "failed", TrainingFault(raise_at=(1, 1)), team)
    assert best.trial_id == -1 and best.error == np.inf and best.path is None
    assert [int(row["status"]) for row in outcomes] == [FAILED] * team.leads
    assert [path for path in (tmp_path / "failed").rglob("*") if path.is_file()] == []


class Alone:
    """A communicator of one rank."""

    def Iallreduce(self, mine: Any, result: Any, op: Any) -> Any:
        result[0][:] = mine[0]
        return SimpleNamespace(Test=lambda: True)


class Ended:
    """A rank's side of the end of a run, as the only one of it."""

    def __init__(self, config: Any) -> None:
        messages = FakeMessages()
        self.sent: list[Any] = messages.rows
        self.context = fake_context(config=config, messages=messages, workers=Alone())
        self.resources: Any = SimpleNamespace(
            dataset=Dataset("test", PICTURES, PICTURES, 3, "0", (0.5,), (0.5,)),
            reader=Reader(1),
            devices=COMPILED.devices,
            mine=slice(0, 1),
        )


@pytest.mark.parametrize("again", [True, False], ids=["written at the end", "never written"])
def test_best_weights_that_cannot_be_written_stay_the_best(
    tmp_path: Path, again: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    # The first trainer notes the trial as the best, as the others do.
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    best, outcomes = trained(tmp_path, None, Team(None))
    assert (
        best.trial_id == 0
        and np.isfinite(best.error)
        and best.compiled is COMPILED
        and best.kept_weights.kept == []
    )
    assert int(outcomes[0]["status"]) == DONE and outcomes[0]["cause"].startswith(
        b"its weights are not kept: File ex"
    )
    assert not outcomes[0]["flags"] & KEPT and "checkpoints" in capfd.readouterr().err

    # At the end there is another try: the model is validated, and its error is the trial's.
    if again:
        (tmp_path / "checkpoints").unlink()
    end = Ended(None)
    validate_best(end.context, end.resources, best)
    errors = capfd.readouterr().err
    if again:
        ((kind, row),) = end.sent
        assert kind is Kind.FINAL and int(row["trial_id"]) == 0 and float(row["error"]) == best.error
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["0.h5"] and errors == ""
    else:
        assert (
            end.sent == [] and "rank 1 on here: the best model, trial 0, could not be written again" in errors
        )


def test_a_trial_fails_alone_when_keeping_its_weights_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not an error of the disk, but of the program: the trial fails, and the replica's best is unchanged.
    def broken(*arguments: object) -> None:
        raise RuntimeError("not an error of the disk")

    monkeypatch.setattr(KeptWeights, "put", broken)
    (tmp_path / "checkpoints").mkdir()
    best, outcomes = trained(tmp_path, None, Team(None))
    assert [int(row["status"]) for row in outcomes] == [FAILED]
    assert best.trial_id == -1 and best.error == np.inf and best.path is None and best.compiled is None
