# SPDX-License-Identifier: Apache-2.0
"""How a candidate becomes a training: rebuilt from its record, with the settings of its steps, its budget
and its batches."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from aiperf_mpi.config import Config
from aiperf_mpi.data.dataset import Dataset
from aiperf_mpi.data.loader import train_batches, val_batches
from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.opcount.analytical import operations
from aiperf_mpi.parallel.replica.errors import RUN_ERRORS
from aiperf_mpi.parallel.replica.weights import StartWeights, missing_weights
from aiperf_mpi.parallel.shared.outcomes import withdraw
from aiperf_mpi.parallel.trainer.state import TrainerState
from aiperf_mpi.streams import AUGMENT, stream
from aiperf_mpi.training.epoch_state import EpochState, TrialStart
from aiperf_mpi.training.faults import training_fault
from aiperf_mpi.training.fit import BEGINS, FitSettings, Training
from aiperf_mpi.training.lockstep import alone
from aiperf_mpi.training.settings import settings_of
from aiperf_mpi.training.steps.compile import Compiled
from aiperf_mpi.training.steps.step import StepSettings
from aiperf_mpi.trials.budget import budget, learning_rate
from aiperf_mpi.trials.candidate import Candidate
from aiperf_mpi.trials.view import HistoryView


def rebuild(state: TrainerState, record: np.void) -> tuple[Candidate | None, str]:
    """Rebuild the candidate of a record from its parent; return it and "", or None and the problem: hash or
    counts that differ from the record's, or no weights to inherit."""
    context, trial_id = state.context, int(record["trial"])
    history, initial = context.windows.history, Architecture(context.config.base)
    with context.timer("search"):
        history.refresh()
        view = HistoryView(history.summaries(), history.record, initial, state.architectures)
        parent_id = int(record["parent"])
        try:
            parent = initial if parent_id < 0 else view.architecture(parent_id)
            candidate = Candidate.from_record(record, parent, trial_id)
            counted = operations(candidate.architecture)
        except ValueError as error:
            # A record is torn, its hash is another network's, or its parent cannot take a morph.
            return None, str(error)
        except RUN_ERRORS:
            raise
        except Exception as error:
            return None, f"it cannot be built: {type(error).__name__}: {error}"

        stated = candidate.train_ops, candidate.val_ops
        if stated != counted:
            return (
                None,
                f"counts differ: {stated[0]} and {stated[1]} operations stated, {counted[0]} and "
                f"{counted[1]}",
            )
    # A trial that goes on from its own state needs its parent's weights no more.
    if trial_id not in state.resumed and (problem := missing_weights(context.config, candidate)):
        # A generator that does not know that the weights are gone would go on to propose their children.
        if candidate.from_checkpoint:
            withdraw(context, candidate.parent_id)
        return None, problem
    return candidate, ""


def build_training(
    state: TrainerState, candidate: Candidate, compiled: Compiled, start: StartWeights | EpochState
) -> Training:
    """Return the training of a compiled candidate, with its start weights on the devices, or the state from
    which it goes on."""
    context, resources = state.context, state.resources
    dataset, reader, mine = resources.dataset, resources.reader, resources.mine
    config, devices = context.config, len(resources.devices)
    if isinstance(start, EpochState):
        initial, trained = compiled.resume(start.state), start.trained
    else:
        initial, trained = compiled.start(start.variables, stream(AUGMENT, candidate.seed)), BEGINS
    began = TrialStart(
        candidate.trial_id,
        candidate.seed,
        candidate.architecture,
        compiled.settings.accumulate,
        start.difference,
    )
    batch, limits = candidate.batch_per_device, budget(candidate.round, config.train)
    return Training(
        compiled,
        initial,
        lambda epoch: train_batches(dataset, candidate.seed, epoch, devices, batch, mine, reader),
        lambda: val_batches(dataset, devices, batch, mine, reader),
        FitSettings(
            epochs_max=limits.epochs_max,
            patience=limits.patience,
            learning_rate=partial(_rate, config),
            min_delta=config.train.min_delta,
            in_flight=config.train.in_flight_steps,
            stuck_seconds=config.run.stuck_seconds,
        ),
        timer=context.timer,
        poll=state.poll,
        clock=context.clock.now,
        deadline=context.limit,
        fault=training_fault(config.fault, candidate, state.team.rank),
        agree=state.team.agree if state.team.size > 1 else alone,
        trained=trained,
        keeper=None if state.epochs is None else state.epochs.keeper(began),
    )


def _rate(config: Config, epoch: int) -> float:
    return learning_rate(config.train.lr, epoch, config.train.epochs)


def step_settings(
    config: Config, candidate: Candidate, dataset: Dataset, begun: EpochState | None = None
) -> StepSettings:
    """Return the settings that the compiled steps of a candidate depend on. A trial that goes on from `begun`
    has as many parts of a step as before."""
    settings = settings_of(config, candidate.batch_per_device, dataset.mean, dataset.deviation)
    return settings if begun is None else replace(settings, accumulate=begun.start.parts)
