# SPDX-License-Identifier: Apache-2.0
"""Trainings of a tiny network on a few random images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aiperf_mpi.phases import PhaseTimer
from aiperf_mpi.training.checkpoint import digest
from aiperf_mpi.training.epoch import EpochResult
from aiperf_mpi.training.epoch_files import newest_epoch
from aiperf_mpi.training.epoch_state import EpochState, Trained, TrialStart
from aiperf_mpi.training.fit import FitSettings, Training
from aiperf_mpi.training.steps.compile import Compiled
from aiperf_mpi.training.steps.step import TrainState
from tests.helpers.training.cases import TINY, batches, random_batch, started

#: 40 images to train on, 10 batches of 4; 14 to validate, 3 batches of 4 and one with 2 of 4.
TRAIN = [x[0] for x in random_batch(TINY, 1, 40, seed=1)]
VAL = [x[0] for x in random_batch(TINY, 1, 14, seed=2)]


def train_images(epoch: int) -> Any:
    return batches(TRAIN[0], TRAIN[1], 1, 4)


def val_images() -> Any:
    return batches(VAL[0], VAL[1], 1, 4)


def training(compiled: Compiled, **changes: Any) -> Training:
    """A training of three epochs of the images above, with anything else that a test asks for."""
    rate = changes.pop("rate", 0.01)
    settings = FitSettings(
        changes.pop("epochs", 3), changes.pop("patience", 10), lambda epoch: rate / (epoch + 1)
    )
    usual = {
        "train_batches": train_images,
        "val_batches": val_images,
        "timer": PhaseTimer(),
        "poll": lambda: False,
    }
    state = changes.pop("state", None) or started(compiled)
    return Training(compiled, state, settings=settings, **{**usual, **changes})


class KeptStates:
    """A keeper of the states after all epochs but the last, in memory."""

    def __init__(self) -> None:
        self.states: list[TrainState] = []
        self.trained: list[Trained] = []

    def due(self) -> bool:
        return True

    def keep(self, state: TrainState, trained: Trained) -> None:
        self.states.append(state)
        self.trained.append(trained)

    def after(self, epochs: int, compiled: Compiled, trial_id: int = 5) -> EpochState:
        """Return the state after so many epochs, as that of a trial."""
        start = TrialStart(trial_id, 77, compiled.architecture, compiled.settings.accumulate)
        return EpochState(start, self.states[epochs - 1], self.trained[epochs - 1])


def continued(compiled: Compiled, folder: Path, most: int, **changes: Any) -> Training:
    """A training that goes on from the newest file of the trial in `folder`, after at most `most` epochs."""
    found, refused = newest_epoch(folder, 5, 77, compiled.architecture, most)
    assert found is not None, refused
    assert found.start.parts == compiled.settings.accumulate
    return training(compiled, state=compiled.resume(found.state), trained=found.trained, **changes)


def marks(run: Training) -> list[list[str]]:
    """Train, and return what must be equal to the bit: epoch, rate, losses and error of each epoch; at last
    the digest of the best weights, the best error, and why it ended."""
    rows = [[row.epoch, row.lr, row.train_loss, row.val_loss, row.val_error, row.steps] for row in run]
    assert run.best_variables is not None
    last = [digest(run.best_variables), run.best_error.hex(), run.end, str(run.epochs)]
    return [[float(value).hex() for value in row] for row in rows] + [last]


def rows_until(run: Training, error: type[Exception], match: str) -> list[EpochResult]:
    rows = []
    with pytest.raises(error, match=match):
        for row in run:
            rows.append(row)
    return rows
