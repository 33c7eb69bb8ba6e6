# SPDX-License-Identifier: Apache-2.0
"""What comes before a trial: the candidate rebuilt from its record and checked, its first weights, its compiled steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from aiperf_mpi.config import Config
from aiperf_mpi.data.dataset import Dataset
from aiperf_mpi.data.loader import train_batches, val_batches
from aiperf_mpi.opcount.analytical import operations
from aiperf_mpi.parallel.best import withdraw
from aiperf_mpi.parallel.candidates import Taken
from aiperf_mpi.parallel.replica import LOOK_SECONDS, Replica, in_thread
from aiperf_mpi.parallel.trial import Trial
from aiperf_mpi.parallel.weights import Beginning, begin_with, load_parent, missing_weights
from aiperf_mpi.results.schema import MORPH_TOLERANCE
from aiperf_mpi.search.architecture import Architecture
from aiperf_mpi.search.budget import Budget, learning_rate
from aiperf_mpi.search.history import HistoryView
from aiperf_mpi.search.record import Candidate
from aiperf_mpi.search.streams import AUGMENT, stream
from aiperf_mpi.training.compile import Compiled, compile_steps
from aiperf_mpi.training.fit import Fault, FitSettings, Training
from aiperf_mpi.training.step import StepSettings


def rebuild(replica: Replica, taken: Taken) -> tuple[Candidate | None, str | None]:
    """The candidate of a record, replayed from its parent; None and what is wrong where hash or counts differ, or where
    there are no weights that it could inherit."""
    context, trial_id = replica.context, int(taken.record["trial"])
    history, initial = context.windows.history, Architecture(context.config.base)
    with context.timer("search"):
        history.refresh()
        view = HistoryView(history.summaries(), history.record, initial, replica.architectures)
        parent_id = int(taken.record["parent"])
        parent = initial if parent_id < 0 else view.architecture(parent_id)
        try:
            candidate = Candidate.from_record(taken.record, parent, trial_id)
        except ValueError as error:
            # Torn, of another network than it says, or with a morph that its parent cannot take.
            return None, str(error)

        stated, counted = (candidate.train_ops, candidate.val_ops), operations(candidate.architecture)
        if stated != counted:
            return None, f"counts differ: {stated[0]} and {stated[1]} operations stated, {counted[0]} and {counted[1]}"
    if wrong := missing_weights(context.config, candidate):
        # Whoever has not heard that they have gone would propose their children again and again.
        if candidate.from_checkpoint:
            withdraw(context, candidate.parent_id)
        return None, wrong
    return candidate, ""


def find_weights(replica: Replica, trial: Trial) -> Beginning | None:
    """The weights that the trial starts from; None when the run ends.

    Raises OSError or ValueError where its parent's cannot be had, or the child does not compute its parent's function.
    """
    context, config, candidate = replica.context, replica.context.config, trial.candidate
    parent = None
    if config.model.inherits and candidate.parent_id >= 0:
        seed = int(context.windows.history.record(0)["seed"])
        try:
            parent = in_thread(replica, "io", LOOK_SECONDS, partial(load_parent, config, candidate, seed))
        except (OSError, ValueError):
            withdraw(context, candidate.parent_id)
            raise
        if parent is None:
            return None

    work = partial(begin_with, config, replica.workshop.dataset, candidate, parent)
    beginning = in_thread(replica, "init", LOOK_SECONDS, work)
    if beginning is not None and parent is not None:
        trial.difference = beginning.difference
        if not beginning.difference <= MORPH_TOLERANCE:
            raise ValueError(f"inherited weights: the child's function differs from its parent's by "
                             f"{beginning.difference:.1e} of its outputs, more than {MORPH_TOLERANCE:g}")
    return beginning


def compile_ahead(replica: Replica, candidate: Candidate) -> Compiled | None:
    """The candidate's compiled steps, made in a thread; None when the run ends."""
    settings = step_settings(replica.context.config, candidate, replica.workshop.dataset)
    work = partial(compile_steps, candidate.architecture, settings, replica.workshop.devices)
    return in_thread(replica, "compile", replica.context.config.parallel.poll_seconds, work)


def begin(
    replica: Replica, candidate: Candidate, compiled: Compiled, beginning: Beginning, limits: Budget
) -> Training:
    """The training of a compiled candidate, from the weights that it begins with."""
    context, dataset = replica.context, replica.workshop.dataset
    config, devices = context.config, len(replica.workshop.devices)
    with context.timer("init"):
        state = compiled.start(beginning.variables, stream(AUGMENT, candidate.seed))
    batch = candidate.batch_per_device
    return Training(
        compiled,
        state,
        partial(_epoch_batches, dataset, candidate.seed, devices, batch),
        partial(val_batches, dataset, devices, batch),
        FitSettings(
            epochs_max=limits.epochs_max,
            patience=limits.patience,
            learning_rate=partial(_rate, config),
            min_delta=config.train.min_delta,
            in_flight=config.train.in_flight_steps,
        ),
        timer=context.timer,
        poll=replica.poll,
        clock=context.clock.now,
        deadline=context.limit,
        fault=fault_of(config, candidate),
    )


def _epoch_batches(dataset: Dataset, seed: int, devices: int, batch: int, epoch: int) -> Iterator[Any]:
    return train_batches(dataset, seed, epoch, devices, batch)


def _rate(config: Config, epoch: int) -> float:
    return learning_rate(config.train.lr, epoch, config.train.epochs)


def step_settings(config: Config, candidate: Candidate, dataset: Dataset) -> StepSettings:
    """What the compiled steps of a candidate depend on."""
    return StepSettings(
        batch_per_device=candidate.batch_per_device,
        precision=config.train.precision,
        momentum=config.train.momentum,
        label_smoothing=config.train.label_smoothing,
        augment=config.data.augment,
        synchronised=config.train.sync_statistics,
        stem=config.train.stem,
        mean=dataset.mean,
        deviation=dataset.deviation,
    )


def fault_of(config: Config, candidate: Candidate) -> Fault | None:
    """The fault that the configuration injects into this candidate's training, if any: at its second step."""
    fault, here = config.fault, (candidate.round, candidate.replica)
    return Fault(
        raise_at=(0, 1) if here == (fault.raise_in_round, fault.raise_replica) else None,
        nan_at=(0, 1) if here == (fault.nan_in_round, fault.nan_replica) else None,
    )
