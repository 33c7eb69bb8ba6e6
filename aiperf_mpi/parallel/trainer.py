# SPDX-License-Identifier: Apache-2.0
"""A trainer rank: takes the candidates of its replica in the order of their rounds and trains them, one by one.

A trial that raises or diverges is recorded as failed with its cause and costs only itself.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
from mpi4py import MPI

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.data.dataset import Dataset, open_dataset
from aiperf_mpi.data.loader import train_batches, val_batches
from aiperf_mpi.opcount.analytical import operations
from aiperf_mpi.parallel.binding import local_devices
from aiperf_mpi.parallel.candidates import CandidateQueue, Taken
from aiperf_mpi.parallel.comm import write_error
from aiperf_mpi.parallel.context import Context, owns_best
from aiperf_mpi.parallel.generation import Generation, reject
from aiperf_mpi.parallel.generator import checks_of
from aiperf_mpi.parallel.messages import Kind, MessageError
from aiperf_mpi.parallel.trial import Trial, record_end, send_epoch
from aiperf_mpi.parallel.weights import Beginning, Shelf, begin_with, checkpoint_path, load_parent, missing_weights
from aiperf_mpi.results.schema import FINAL_ROW, MORPH_TOLERANCE, UNFINISHED, new_row
from aiperf_mpi.search.architecture import Architecture
from aiperf_mpi.search.budget import Budget, budget, learning_rate
from aiperf_mpi.search.history import ArchitectureCache, HistoryFull, HistoryView
from aiperf_mpi.search.record import DONE, FAILED, STOPPED, Candidate, RecordError, withdrawal
from aiperf_mpi.search.streams import AUGMENT, stream
from aiperf_mpi.training.checkpoint import load_checkpoint
from aiperf_mpi.training.compile import Compiled, compile_steps
from aiperf_mpi.training.fit import (
    END_EPOCHS,
    END_PATIENCE,
    Fault,
    FitSettings,
    Training,
)
from aiperf_mpi.training.step import StepSettings
from aiperf_mpi.training.validation import validation_error

#: Seconds between two looks for a candidate that is not ready.
LOOK_SECONDS = 0.005


class GenerationError(RuntimeError):
    """Candidates cannot be made on this rank."""


#: Errors that are the run's and not a trial's: they end the job.
RUN_ERRORS = (MPI.Exception, MessageError, RecordError, GenerationError)

T = TypeVar("T")


@dataclass(frozen=True)
class Workshop:
    """What a replica trains with, from start to end: its devices and its data."""

    devices: tuple[jax.Device, ...]
    dataset: Dataset

    @property
    def device(self) -> str:
        """What the devices are, for the result."""
        return f"{len(self.devices)} x {self.devices[0].device_kind}"


@dataclass
class Best:
    """The best model of a replica so far: its weights lie in `path`, `compiled` can evaluate them."""

    error: float = math.inf
    trial_id: int = -1
    path: Path | None = None
    compiled: Compiled | None = None


@dataclass
class Replica:
    """One trainer's state while it works."""

    context: Context
    workshop: Workshop
    queue: CandidateQueue
    generation: Generation | None
    shelf: Shelf
    worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="compile"))
    working: Future[Any] | None = None
    architectures: ArchitectureCache = field(default_factory=ArchitectureCache)
    best: Best = field(default_factory=Best)

    def poll(self) -> bool:
        """Return to MPI, between steps and while waiting; whether the run ends. Raises GenerationError where the making
        of the next candidate failed, which is no fault of the trial that runs."""
        with self.context.timer("communicate"):
            stop = self.context.windows.messages.stop_requested() is not None
            if self.generation is not None and not stop:
                try:
                    self.generation.advance()
                except Exception as error:
                    raise GenerationError(f"the next candidate: {type(error).__name__}: {error}") from error
        return stop


def prepare(config: Config) -> Workshop:
    """The devices and the data of this trainer, before the core time starts.

    Raises ConfigError for missing data, and where an epoch would have no whole batch over all devices: every trial
    would fail, a night long.
    """
    devices, dataset = tuple(jax.local_devices()), open_dataset(config)
    accelerators = local_devices()
    by_choice = config.parallel.host_devices or os.environ.get("JAX_PLATFORMS")
    if accelerators and not by_choice and all(device.platform == "cpu" for device in devices):
        raise ConfigError(
            f"this host has {len(accelerators)} accelerators, but this JAX sees CPUs alone: install the extra cuda12, "
            "cuda13 or rocm of this package, or set JAX_PLATFORMS=cpu to train on the CPU"
        )
    batches = {"train.batch_per_device": config.train.batch_per_device}
    if config.hpo.enabled:
        batches["hpo.batches"] = max(config.hpo.batches)
    for key, batch in batches.items():
        images, least = len(dataset.train_labels), batch * len(devices)
        if images < least:
            raise ConfigError(
                f"{key}: {batch} images on each of {len(devices)} devices make batches of {least}, more than the "
                f"{images} training images: an epoch would have no whole batch"
            )
    return Workshop(devices, dataset)


def propose_initial(context: Context) -> None:
    """Put trial 0, which rank 0 has committed, into the queue of the replica that trains it, before any generator can
    have the first ticket."""
    history, candidates = context.windows.history, context.windows.queues[0]
    while not len(history):
        history.refresh()
        context.pause(LOOK_SECONDS, "communicate")
    slot = candidates.reserve()
    if slot is None or not candidates.publish(slot, history.record(0), 0):
        raise RuntimeError("the first ticket of replica 0 is taken before the core time starts")


def train(context: Context, workshop: Workshop) -> Replica:
    """Train candidates until rank 0 says that the run ends, or the time is over; follow it by `finish`."""
    ranks = context.ranks
    candidates = context.windows.queues[ranks.node_replicas.index(ranks.replica)]
    generation = None
    if ranks.node_generators == 0:
        generation = Generation(context, checks_of(context), 0, ((ranks.replica, candidates),))
    replica = Replica(context, workshop, candidates, generation, shelf_of(context.config))

    try:
        while (taken := next_candidate(replica)) is not None:
            candidate, wrong = rebuild(replica, taken)
            if candidate is not None and candidate.parent_id < 0:
                # No generator has checked the initial architecture.
                wrong = in_thread(replica, "compile", LOOK_SECONDS, partial(checks_of(context), candidate))
            if wrong is None:
                break
            if candidate is None or wrong:
                refuse(replica, taken, wrong)
                continue
            candidates.accept(taken)
            run_trial(replica, candidate)
    except HistoryFull:
        # Rank 0 drains the run for it, and waits for this rank's farewell.
        return replica
    return replica


def refuse(replica: Replica, taken: Taken, wrong: str) -> None:
    """Reject a candidate that was taken; its ticket is filled again, but for the initial architecture's."""
    trial_id = int(taken.record["trial"])
    reject(replica.context, taken.record, trial_id, wrong)
    replica.queue.accept(taken) if trial_id == 0 else replica.queue.reject(taken)


def finish(replica: Replica, seconds: float) -> bool:
    """End the replica's threads; whether they have ended within `seconds`.

    XLA cannot be interrupted, and a process that exits while it compiles crashes.
    """
    context, limit = replica.context, replica.context.clock.now() + seconds
    with context.timer("search"):
        if replica.generation is not None:
            replica.generation.close()
    while replica.working is not None and not replica.working.done():
        if context.clock.now() > limit:
            replica.worker.shutdown(wait=False)
            return False
        context.pause(LOOK_SECONDS, "compile")
    replica.worker.shutdown()
    return True


def next_candidate(replica: Replica) -> Taken | None:
    """The replica's next candidate, as soon as it is ready; None when the run ends."""
    while not replica.poll() and not replica.context.over():
        if (taken := replica.queue.take()) is not None:
            return taken
        replica.context.pause(LOOK_SECONDS)
    return None


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


# -- one trial ---------------------------------------------------------------------------------------------------------


def run_trial(replica: Replica, candidate: Candidate) -> None:
    """Compile, train and record one candidate; whatever its training raises fails this trial alone."""
    context, config = replica.context, replica.context.config
    trial = Trial(candidate, budget(candidate.round, config.train), context.now())
    try:
        beginning = find_weights(replica, trial)
        compiled = None if beginning is None else compile_ahead(replica, candidate)
        if beginning is not None and compiled is not None:
            trial.precision = compiled.precision
            training = begin(replica, candidate, compiled, beginning, trial.budget)
            for epoch in training:
                trial.add(epoch)
                send_epoch(context, candidate, epoch)
            trial.status = {END_EPOCHS: DONE, END_PATIENCE: STOPPED}.get(training.end, UNFINISHED)
            keep_weights(replica, trial, training, compiled)
    except RUN_ERRORS:
        raise
    except Exception as error:
        trial.status, trial.cause = FAILED, f"{type(error).__name__}: {error}"
    record_end(context, trial)


def in_thread(replica: Replica, phase: str, seconds: float, work: Callable[[], T]) -> T | None:
    """What `work` returns, in a thread, while this one looks after MPI every `seconds`; None when the run ends."""
    context = replica.context
    replica.working = future = replica.worker.submit(work)
    while not future.done():
        if replica.poll() or context.over():
            return None
        context.pause(seconds, phase)
    replica.working = None
    return future.result()


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


# -- the best models ---------------------------------------------------------------------------------------------------


def shelf_of(config: Config) -> Shelf:
    """Room for the weights that a replica keeps. A queue's worth of others may still be somebody's parents."""
    return Shelf(config.result.keep_checkpoints, config.search.queue_depth if config.model.inherits else 0)


def keep_weights(replica: Replica, trial: Trial, training: Training, compiled: Compiled) -> None:
    """Write the trial's best weights to its checkpoint if they are among the replica's best; what they push out has no
    more children."""
    context, shelf, trial_id = replica.context, replica.shelf, trial.candidate.trial_id
    if training.best_variables is None or not shelf.takes(training.best_error):
        return
    path = checkpoint_path(context.config, trial_id)
    try:
        with context.timer("io"):
            out = shelf.put(path, trial_id, training.best_error, compiled.architecture, training.best_variables)
    except OSError as error:
        # The training was real and counts; only its weights are not there for anybody.
        what = os.strerror(error.errno) if error.errno else str(error)
        write_error(f"aiperf_mpi: rank {context.ranks.rank} on {context.ranks.host}: {path} not written: {what}\n")
        return
    trial.kept = True
    if training.best_error < replica.best.error:
        replica.best = Best(training.best_error, trial_id, path, compiled)
    if out is not None and context.config.model.inherits:
        withdraw(context, out.trial_id)


def withdraw(context: Context, trial_id: int) -> None:
    """Tell the search that the weights of a trial are kept no longer."""
    with context.timer("communicate"):
        try:
            context.windows.history.append(withdrawal(trial_id, context.ranks.replica, context.now()))
        except HistoryFull:
            # Rank 0 drains the run for it, and nobody is proposed any more.
            return


def validate_best(replica: Replica) -> None:
    """After core stop: whoever owns the machine's best model loads it again, validates it, and tells rank 0.

    Collective over the ranks but 0. Nothing is validated where no trial has completed a validation. Where it fails, the
    run has its result without `error_final`: hours of rows are worth more than that number.
    """
    context, best = replica.context, replica.best
    owner = owns_best(context.ranks, best.error, best.trial_id)
    with context.timer("io"):
        # Nobody trains any more, so nobody needs what was pushed out.
        replica.shelf.clear()
    if not owner or best.path is None or best.compiled is None:
        return
    try:
        error = validate_again(replica, best.path, best.compiled)
    except RUN_ERRORS:
        raise
    except Exception as failure:
        write_error(f"aiperf_mpi: rank {context.ranks.rank} on {context.ranks.host}: the best model, trial "
                    f"{best.trial_id}, could not be validated again, so the result has no error_final: "
                    f"{type(failure).__name__}: {failure}\n")  # fmt: skip
        return
    context.windows.messages.send(Kind.FINAL, new_row(FINAL_ROW, trial_id=best.trial_id, error=error)[0])


def validate_again(replica: Replica, path: Path, compiled: Compiled) -> float:
    """The validation error of the weights in `path`."""
    workshop, timer = replica.workshop, replica.context.timer
    with timer("io"):
        checkpoint = load_checkpoint(path)
    with timer("validate"):
        batches = val_batches(workshop.dataset, len(workshop.devices), compiled.settings.batch_per_device)
        return validation_error(compiled, checkpoint.variables, batches)
