# SPDX-License-Identifier: Apache-2.0
"""States of the trial that trains: when they are written and removed, and what a resumed trial makes of
them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aiperf_mpi.parallel.replica.best import Best
from aiperf_mpi.parallel.replica.weights import KeptWeights
from aiperf_mpi.parallel.shared.clock import CoreClock
from aiperf_mpi.parallel.trainer import epochs as module
from aiperf_mpi.parallel.trainer.epochs import EpochRecorder, running_folder
from aiperf_mpi.parallel.trainer.recorder import TrialRecorder
from aiperf_mpi.parallel.trainer.trial import Trial
from aiperf_mpi.results.file.rows import UNFINISHED
from aiperf_mpi.training.epoch_files import epoch_files, epoch_path
from aiperf_mpi.training.epoch_state import TrialStart
from aiperf_mpi.trials.budget import budget
from aiperf_mpi.trials.record import DONE
from tests.helpers.parallel.contexts import fake_context
from tests.helpers.parallel.resuming import TRIAL, child, prepare, settings, train_trial, trainer_of
from tests.helpers.training.cases import compiled_tiny
from tests.helpers.training.trainings import KeptStates, training

COMPILED = compiled_tiny()


@pytest.fixture(scope="module")
def kept() -> KeptStates:
    states = KeptStates()
    list(training(COMPILED, epochs=5, keeper=states))
    return states


def recorder(folder: Path, seconds: float) -> EpochRecorder:
    """The recorder of a run that writes a state every so many seconds."""
    return EpochRecorder(fake_context(config=settings(str(folder), f"result.checkpoint_seconds={seconds}")))


def finish(one: EpochRecorder, reached: Callable[[], bool] = lambda: True) -> None:
    """Let the recorder do all that it has begun."""
    limit = time.monotonic() + 10
    while one.busy or not reached():
        assert time.monotonic() < limit
        one.advance()
        time.sleep(0.001)
    one.advance()


def numbers(folder: Path, trial_id: int = TRIAL) -> list[int]:
    """The epochs of a trial's files."""
    return [file.epochs for file in epoch_files(folder / "checkpoints" / "running", trial_id)]


# -- when states are written and removed -----------------------------------------------------------


def test_a_state_is_written_once_in_so_many_seconds(kept: KeptStates, tmp_path: Path) -> None:
    now, start = [100.0], TrialStart(TRIAL, 77, COMPILED.architecture)
    clock, config = CoreClock(lambda: now[0], 0.0), settings(str(tmp_path), "result.checkpoint_seconds=600")
    one = EpochRecorder(fake_context(config=config, clock=clock))
    keeper = one.keeper(start)
    assert keeper is not None and not keeper.due(), "the run has just begun"
    now[0] = 699.9
    assert not keeper.due()
    now[0] = 700.0
    assert keeper.due()
    keeper.keep(kept.states[0], kept.trained[0])
    finish(one)
    assert numbers(tmp_path) == [1] and not keeper.due()
    # The time counts from one state to the next, whichever the trial.
    now[0] = 1300.0
    other = one.keeper(replace(start, trial_id=6))
    assert other is not None and other.due()
    assert recorder(tmp_path, 0).keeper(start) is None
    one.close()


def test_no_state_is_begun_while_the_last_one_is_written(kept: KeptStates, tmp_path: Path) -> None:
    one = recorder(tmp_path, 1e-6)
    keeper = one.keeper(TrialStart(TRIAL, 77, COMPILED.architecture))
    assert keeper is not None and keeper.due()
    keeper.keep(kept.states[0], kept.trained[0])
    # Only `advance`, between steps, takes its result.
    while one.busy:
        time.sleep(0.001)
    assert not keeper.due()
    one.advance()
    assert keeper.due()
    one.close()


def test_a_state_that_cannot_be_written_is_told_once(
    kept: KeptStates, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, blocked = recorder(tmp_path, 1e-6), tmp_path / "checkpoints"
    keeper = one.keeper(TrialStart(TRIAL, 77, COMPILED.architecture))
    assert keeper is not None
    blocked.write_text("a file where the folder should be")
    for _ in range(2):
        keeper.keep(kept.states[0], kept.trained[0])
        finish(one)
    told = capfd.readouterr().err
    assert told.count("the state of the running trial is not kept: ") == 1
    assert "rank 1 on here" in told and "result.checkpoint_seconds=0" in told

    # It is tried again, and works once there is a folder.
    blocked.unlink()
    keeper.keep(kept.states[1], kept.trained[1])
    finish(one)
    assert numbers(tmp_path) == [2]
    one.close()


@pytest.mark.parametrize(("status", "left"), [(DONE, []), (UNFINISHED, [2])])
def test_the_states_of_a_trial_that_has_ended_are_removed(
    status: int, left: list[int], kept: KeptStates, tmp_path: Path
) -> None:
    config = settings(str(tmp_path))
    history: Any = SimpleNamespace(append=lambda record: None)
    context = fake_context(config=config, history=history)
    one = EpochRecorder(context)
    keeper = one.keeper(TrialStart(TRIAL, 77, COMPILED.architecture))
    assert keeper is not None
    keeper.keep(kept.states[1], kept.trained[1])
    finish(one)
    ending = TrialRecorder(context, Best(KeptWeights(1)), one)
    trial = Trial(child(config, 8), budget(5, config.train), 0.0, status=status)
    ending.begin(trial, None, None)
    assert not ending.busy
    # Its row may not be in the journal yet.
    one.advance()
    finish(one)
    assert numbers(tmp_path) == [2]
    one.close()
    finish(one)
    assert numbers(tmp_path) == left


def test_the_time_for_the_journal_passes_before_a_state_is_removed(
    kept: KeptStates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One sync of the journal in 0.1 s: removed 0.1 + 2 x 0.1 s after the end.
    monkeypatch.setattr(module, "REMOVE_SECONDS", 0.1)
    one = EpochRecorder(fake_context(config=settings(str(tmp_path), "result.fsync_seconds=0.1")))
    keeper = one.keeper(TrialStart(TRIAL, 77, COMPILED.architecture))
    assert keeper is not None
    keeper.keep(kept.states[0], kept.trained[0])
    finish(one)
    one.ended(TRIAL)
    ended = time.monotonic()
    finish(one, lambda: not numbers(tmp_path))
    assert time.monotonic() - ended >= 0.3
    one.close()


# -- a resumed trial -------------------------------------------------------------------------------


def test_a_resumed_trial_goes_on_to_the_bit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    preparation, unbroken = train_trial(str(tmp_path), ())
    assert preparation.begun is None and numbers(tmp_path) == [5, 4]
    # Of the rows of the fifth epoch nothing is known.
    preparation, rest = train_trial(str(tmp_path), (), resumed=4)
    assert rest == unbroken[4:]
    assert preparation.begun is not None and preparation.begun.epochs == 4
    told = capfd.readouterr().err
    assert "has 5 epochs, but the rows of 4 are kept; it goes on after 4 epochs" in told

    # What its row says includes the epochs before: 64 images trained and 16 validated in each.
    trial = Trial(child(settings(str(tmp_path)), 8), budget(5, settings("").train), 0.0)
    trial.go_on(preparation.begun.trained)
    assert (trial.resumed, trial.epochs, trial.train_samples, trial.val_samples) == (True, 4, 256, 64)
    assert trial.val_errors == [float.fromhex(row[4]) for row in unbroken[:4]]


def test_a_trial_without_a_whole_state_begins_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = settings(str(tmp_path))
    folder = running_folder(config)
    folder.mkdir(parents=True)
    epoch_path(folder, TRIAL, 3).write_bytes(b"damaged")
    state = trainer_of(config, resumed={TRIAL: 3})
    preparation = prepare(state, child(config, 8))
    assert preparation.begun is None and preparation.training is not None and preparation.training.first == 0
    assert state.resumed == {}
    told = capfd.readouterr().err
    assert "5-epoch-3.h5: not a checkpoint: it is not an HDF5 file; it begins again" in told
    preparation.drop()
    state.worker.close()


@pytest.mark.full
@pytest.mark.parametrize("weights", ["he", "inherit"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("batch", "parts"), [(8, 1), (8, 4), (4, 1), (16, 2)], ids=["plain", "parts", "hpo", "hpo in parts"]
)
def test_a_trial_goes_on_in_another_process(
    weights: str, precision: str, batch: int, parts: int, root: Path, tmp_path: Path
) -> None:
    sets = (f"model.initial_weight='{weights}'", f"train.precision='{precision}'")
    preparation, unbroken = train_trial(str(tmp_path), sets, batch=batch, parts=parts)
    assert preparation.compiled is not None and preparation.compiled.settings.accumulate == parts
    assert (preparation.difference == preparation.difference) == (weights == "inherit")
    assert numbers(tmp_path) == [5, 4]
    epoch_path(running_folder(settings(str(tmp_path))), TRIAL, 5).unlink()
    command = [sys.executable, "-m", "tests.helpers.parallel.resuming", str(tmp_path), json.dumps(sets)]
    done = subprocess.run(
        [*command, json.dumps({"batch": batch, "resumed": 5})],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == unbroken[4:]
