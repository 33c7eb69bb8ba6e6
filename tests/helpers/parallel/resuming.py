# SPDX-License-Identifier: Apache-2.0
"""A trainer's trial from its candidate to its last epoch, unbroken or from the file of an epoch.

As a program it trains one and prints its marks: arguments are the output folder, and the settings and the
options of `train_trial` as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

from aiperf_mpi.config import Config
from aiperf_mpi.data.catalogue import open_dataset
from aiperf_mpi.network.architecture import Architecture, Morph
from aiperf_mpi.parallel.shared.clock import CoreClock
from aiperf_mpi.parallel.trainer import preparation as module
from aiperf_mpi.parallel.trainer.epochs import EpochRecorder
from aiperf_mpi.parallel.trainer.preparation import Preparation
from aiperf_mpi.parallel.trainer.state import TrainerState
from aiperf_mpi.training.fit import Training
from aiperf_mpi.trials.candidate import Candidate
from tests.helpers.parallel.contexts import fake_context
from tests.helpers.parallel.past import small
from tests.helpers.parallel.trainers import fake_trainer, one_device
from tests.helpers.training.trainings import marks

#: A tiny network, whose epoch of 8 steps takes some hundredths of a second; a state after each epoch.
SETTINGS = (
    "data.train_images=64",
    "data.val_images=16",
    "data.image_size=8",
    "data.augmentation='cifar'",
    "model.blocks=[1]",
    "model.width=2",
    "train.batch_per_device=8",
    "train.epochs=6",
    "train.round_epochs=[6]",
    "hpo.enabled=false",
    "result.checkpoint_seconds=0.000001",
)

#: The trial that trains.
TRIAL = 5


def settings(output: str, *sets: str) -> Config:
    """Return the configuration of the trial, with any other setting."""
    config = small(*SETTINGS, *sets)
    return replace(config, run=replace(config.run, output=output, time_limit=1e9))


def child(config: Config, batch: int, seed: int = 1) -> Candidate:
    """Return a child of the initial network, as the search makes it from the fourth round on."""
    own = (Morph("deeper", 1, 0, 3),)
    candidate = Candidate.new(
        Architecture(config.base).apply(*own),
        own,
        parent_id=0,
        replica=0,
        generator=0,
        round=5,
        batch_per_device=batch,
        devices=1,
        seed=seed,
    )
    return replace(candidate, trial_id=TRIAL)


def trainer_of(config: Config, history: Any = None, **overrides: Any) -> TrainerState:
    """Return the state of a trainer that writes states of its trial."""
    drawn: Any = SimpleNamespace(record=lambda slot: {"seed": 2021})
    history = drawn if history is None else history
    context = fake_context(config=config, clock=CoreClock(time.monotonic, 0.0), history=history)
    resources = one_device(open_dataset(config))
    return fake_trainer(context, resources=resources, epochs=EpochRecorder(context), **overrides)


def prepare(state: TrainerState, candidate: Candidate) -> Preparation:
    """Prepare a candidate, and return its preparation when it is done."""
    taken: Any = SimpleNamespace(record=None)
    with mock.patch.object(module, "rebuild", lambda state, record: (candidate, "")):
        preparation, limit = Preparation(state, taken), time.monotonic() + 100
        while not preparation.advance():
            assert time.monotonic() < limit, preparation.phase
            time.sleep(0.001)
    return preparation


def train_trial(
    output: str, sets: Sequence[str], batch: int = 8, parts: int = 1, resumed: int = 0
) -> tuple[Preparation, list[list[str]]]:
    """Train a trial in `parts` of a step, from its start, or from its state after at most `resumed` epochs;
    return its preparation and its marks."""
    config = settings(output, *sets)
    state = trainer_of(config, resumed={TRIAL: resumed} if resumed else {})
    compile_fitting = module.compile_fitting

    def fitting(compiler: Any, chosen: Any, *rest: Any, **named: Any) -> Any:
        # A resumed trial takes the parts from its state.
        return compile_fitting(
            compiler, chosen if resumed else replace(chosen, accumulate=parts), *rest, **named
        )

    with mock.patch.object(module, "compile_fitting", fitting):
        preparation = prepare(state, child(config, batch))
    assert preparation.failure is None and preparation.training is not None, preparation.failure
    made = marks(patient(state, preparation.training))
    state.worker.close()
    return preparation, made


def patient(state: TrainerState, training: Training) -> Any:
    """Return the training, which waits after each epoch until its state is written."""
    assert state.epochs is not None
    recorder = state.epochs

    class Waiting:
        def __iter__(self) -> Any:
            for row in training:
                yield row
                while recorder.busy:
                    time.sleep(0.001)
                recorder.advance()

        def __getattr__(self, name: str) -> Any:
            return getattr(training, name)

    return Waiting()


if __name__ == "__main__":
    output, sets, options = sys.argv[1:]
    print(json.dumps(train_trial(output, json.loads(sets), **json.loads(options))[1]))
