# SPDX-License-Identifier: Apache-2.0
"""The best models of a replica: the weights that it keeps, and the last validation of the best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aiperf_mpi.config import Config
from aiperf_mpi.data.loader import Batch, val_batches
from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.parallel.launch.job import write_error
from aiperf_mpi.parallel.replica.errors import RUN_ERRORS
from aiperf_mpi.parallel.replica.resources import Resources
from aiperf_mpi.parallel.replica.team import Team
from aiperf_mpi.parallel.replica.weights import Kept, KeptWeights, checkpoint_path
from aiperf_mpi.parallel.shared.context import Context, owns_best
from aiperf_mpi.parallel.shared.messages import Kind
from aiperf_mpi.results.file.rows import FINAL_ROW, new_row
from aiperf_mpi.training.checkpoint import load_checkpoint, save_checkpoint
from aiperf_mpi.training.fit import Training
from aiperf_mpi.training.lockstep import BROKEN, GO, FailedElsewhere
from aiperf_mpi.training.model.initial import Variables
from aiperf_mpi.training.settings import settings_of
from aiperf_mpi.training.steps.compile import Compiled, compile_steps
from aiperf_mpi.training.steps.memory import compile_fitting
from aiperf_mpi.training.validation import validation_error
from aiperf_mpi.trials.view import HistoryView


@dataclass
class Best:
    """The best models of a replica so far.

    Attributes:
        kept_weights: the weights that are on disk.
        error: validation error of the best model; infinite before any.
        trial_id: its trial, -1 before any.
        path: file of its weights, on the trainer that writes them.
        compiled: steps that evaluate it.
        unwritten: its weights where they could not be written, for another try at the end.
    """

    kept_weights: KeptWeights
    error: float = math.inf
    trial_id: int = -1
    path: Path | None = None
    compiled: Compiled | None = None
    unwritten: Variables | None = None


def room_for_weights(config: Config) -> KeptWeights:
    """Return room for the weights that a replica keeps. Where weights are inherited, as many more as a queue
    is deep stay on disk: waiting candidates may be their children."""
    return KeptWeights(
        config.result.keep_checkpoints, config.search.queue_depth if config.model.inherits else 0
    )


def restored_best(context: Context) -> Best:
    """Return the best models of this rank's replica up to now: those of the segments before this one, in a
    run that goes on.

    Replica 0 takes the best model of the run, on whatever replica it was trained, so that no other one is
    validated as the best at the end.
    """
    config, past, replica = context.config, context.resumed, context.ranks.replica
    room, own = room_for_weights(config), past.weights.get(replica, ())
    files = [Kept(error, trial_id, checkpoint_path(config, trial_id)) for trial_id, error in own]
    room.kept.extend(files[: room.room])
    room.displaced.extend(kept.path for kept in files[room.room :])
    best = Best(room)
    if replica == 0 and past.best[0] >= 0:
        best.trial_id, best.error = past.best
        path = checkpoint_path(config, best.trial_id)
        best.path = path if path.is_file() else None
    return best


def keep_weights(
    best: Best, path: Path, trial_id: int, training: Training, compiled: Compiled
) -> Kept | None:
    """Write the best weights of a training, which are to be kept, to `path`; return those that they displace.

    Raises OSError if the file cannot be written. Then the kept weights are unchanged, and the new ones stay
    in memory if they are the best: the other trainers of the replica count this trial as the best, too.
    """
    if training.best_variables is None:
        raise ValueError(f"trial {trial_id}: no weights to keep")
    best_so_far = training.best_error < best.error
    try:
        displaced = best.kept_weights.put(
            path, trial_id, training.best_error, compiled.architecture, training.best_variables
        )
    except OSError:
        if best_so_far:
            best.path, best.unwritten = path, training.best_variables
            update_best(best, trial_id, training, compiled)
        raise
    if best_so_far:
        best.path, best.unwritten = path, None
        update_best(best, trial_id, training, compiled)
    return displaced


def update_best(best: Best, trial_id: int, training: Training, compiled: Compiled) -> None:
    """Note a trial as the replica's best if its error is the lowest, with the steps that evaluate its
    weights. Only the first trainer writes the weights; the others keep no more than this."""
    if training.best_variables is not None and training.best_error < best.error:
        best.error, best.trial_id, best.compiled = training.best_error, trial_id, compiled


def validate_best(context: Context, resources: Resources, best: Best, retired: str = "") -> None:
    """After core stop, load the machine's best model again, validate it, and send its error to rank 0.

    Collective over all ranks except 0; only the replica that owns the model validates. Nothing is validated
    where no trial has completed a validation, or the owner has `retired` for this reason. If it fails, the
    result has no `error_final`, but is written all the same.
    """
    leads, team = context.ranks.leads, context.ranks.team
    owner = owns_best(context, best.error, best.trial_id) if leads else owns_best(context)
    with context.timer("io"):
        # No replica trains any more, so no child needs displaced weights.
        best.kept_weights.clear()
    # All trainers of the owner's replica validate together, as they trained.
    path, trial_id = write_best(context, best) if owner else None, best.trial_id
    if team is not None:
        path, trial_id = team.bcast((path, trial_id))
    if path is None:
        return
    if retired:
        write_error(
            f"aiperf_mpi: rank {context.ranks.rank} on {context.ranks.host}: the best model, trial "
            f"{trial_id}, is not validated again, so the result has no error_final: its replica has retired\n"
        )
        return
    try:
        error = validate_again(context, resources, best, trial_id, path)
    except RUN_ERRORS:
        raise
    except Exception as failure:
        write_error(
            f"aiperf_mpi: rank {context.ranks.rank} on {context.ranks.host}: the best model, trial "
            f"{trial_id}, could not be validated again, so the result has no error_final: "
            f"{type(failure).__name__}: {failure}\n"
        )
        return
    if leads:
        context.windows.messages.send(Kind.FINAL, new_row(FINAL_ROW, trial_id=best.trial_id, error=error)[0])


def write_best(context: Context, best: Best) -> Path | None:
    """Return the file of the best weights, None if there is none. Weights that could not be written when
    their trial ended are written now, as other files may have been removed; None if that fails again."""
    path, variables, compiled = best.path, best.unwritten, best.compiled
    if path is None or variables is None or compiled is None:
        return path
    try:
        with context.timer("io"):
            save_checkpoint(path, best.trial_id, compiled.architecture, variables)
    except OSError as error:
        write_error(
            f"aiperf_mpi: rank {context.ranks.rank} on {context.ranks.host}: the best model, trial "
            f"{best.trial_id}, could not be written again, so the result has no error_final: "
            f"{error}\n"
        )
        return None
    return path


def validate_again(context: Context, resources: Resources, best: Best, trial_id: int, path: Path) -> float:
    """Return the validation error of a trial's weights in `path`. Collective over the replica: an error on
    one trainer is raised on all of them."""
    team, compiled = Team(context.ranks.team), best.compiled
    try:
        if best.trial_id != trial_id:
            raise ValueError(f"this trainer has no steps of trial {trial_id}")
        if compiled is None:
            # A trial of a segment before this one.
            with context.timer("compile"):
                compiled = compiled_again(context, resources, trial_id)
        with context.timer("io"):
            checkpoint = load_checkpoint(path)
    except Exception:
        team.agree(BROKEN)
        raise
    if team.agree(GO) != GO:
        raise FailedElsewhere("another trainer of the replica could not load it")
    with context.timer("validate"):
        batch = compiled.settings.batch_per_device
        batches = val_batches(
            resources.dataset, len(resources.devices), batch, resources.mine, resources.reader
        )
        return validation_error(compiled, checkpoint.variables, read_together(team, batches))


def compiled_again(context: Context, resources: Resources, trial_id: int) -> Compiled:
    """Return the steps of a trial that this process has not compiled, from its record. Raises what a trial's
    own compilation does."""
    config, history, dataset = context.config, context.windows.history, resources.dataset
    history.refresh()
    view = HistoryView(history.summaries(), history.record, Architecture(config.base))
    candidate = view.candidate(trial_id)
    settings = settings_of(config, candidate.batch_per_device, dataset.mean, dataset.deviation)
    compiler = partial(
        compile_steps, candidate.architecture, devices=resources.devices, dispatch=config.parallel.dispatch
    )
    return compile_fitting(compiler, settings, resources.memory, alone=True)


def read_together(team: Team, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield each batch once all trainers of the replica have theirs. Collective; all have as many.

    An error of `batches` on one trainer is raised on all of them: the devices of the others would wait for
    its part of the step.
    """
    own = iter(batches)
    while True:
        try:
            batch = next(own, None)
        except Exception:
            team.agree(BROKEN)
            raise
        if team.agree(GO) != GO:
            raise FailedElsewhere("another trainer of the replica could not read the images")
        if batch is None:
            return
        yield batch
