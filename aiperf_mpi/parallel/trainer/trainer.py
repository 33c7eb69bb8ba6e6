# SPDX-License-Identifier: Apache-2.0
"""A trainer rank: takes the candidates of its replica in the order of their rounds and trains them, one by
one.

    take -> Preparation (a thread makes it ready, perhaps while the trial before trains) -> train -> Closing

A trial that raises or diverges is recorded as failed with its cause and costs only itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aiperf_mpi.parallel.generator.checks import checks_of
from aiperf_mpi.parallel.generator.maker import CandidateMaker
from aiperf_mpi.parallel.replica.agreements import Agreements
from aiperf_mpi.parallel.replica.best import Best, remember, shelf_of
from aiperf_mpi.parallel.replica.errors import RUN_ERRORS
from aiperf_mpi.parallel.replica.resources import Resources
from aiperf_mpi.parallel.replica.team import Team
from aiperf_mpi.parallel.shared.context import Context
from aiperf_mpi.parallel.trainer.lookahead import Lookahead, compiles_ahead
from aiperf_mpi.parallel.trainer.preparation import Preparation
from aiperf_mpi.parallel.trainer.prewarm import Prewarm
from aiperf_mpi.parallel.trainer.recorder import TrialRecorder
from aiperf_mpi.parallel.trainer.state import WAIT_SECONDS, TrainerState, accept
from aiperf_mpi.parallel.trainer.trial import Trial, send_epoch
from aiperf_mpi.parallel.trainer.worker import take_turns
from aiperf_mpi.results.file.rows import UNFINISHED
from aiperf_mpi.training.fit import END_EPOCHS, END_PATIENCE
from aiperf_mpi.training.lockstep import GO, STOP
from aiperf_mpi.trials.budget import budget
from aiperf_mpi.trials.log import HistoryFull
from aiperf_mpi.trials.record import DONE, FAILED, STOPPED


@dataclass(frozen=True)
class Trainer:
    """A replica and what works for it beside its steps: making candidates (None where the node has
    generators), recording trials that have ended, making the next one ready."""

    replica: TrainerState
    generation: CandidateMaker | None
    recorder: TrialRecorder
    lookahead: Lookahead


def propose_initial(context: Context) -> None:
    """Put trial 0, which rank 0 has committed, into the queue of the replica that trains it, before any
    generator can have the first ticket."""
    history, candidates = context.windows.history, context.windows.queues[0]
    while not len(history):
        history.refresh()
        context.pause(WAIT_SECONDS, "communicate")
    slot = candidates.reserve()
    if slot is None or not candidates.publish(slot, history.record(0), 0):
        raise RuntimeError("the first ticket of replica 0 is taken before the core time starts")


def train(context: Context, resources: Resources) -> Trainer:
    """Train candidates until rank 0 says that the run ends, or the time is over; follow it by `finish`."""
    take_turns()
    trainer = trainer_of(context, resources)
    replica, lookahead = trainer.replica, trainer.lookahead
    while (preparation := next_candidate(replica, lookahead)) is not None:
        accept(replica, preparation.taken)
        run_trial(trainer, preparation)
    replica.agreements.settle(replica.team)
    lookahead.close()
    await_record(trainer)
    return trainer


def trainer_of(context: Context, resources: Resources) -> Trainer:
    """What a trainer works with, made ready."""
    ranks, config = context.ranks, context.config
    team = Team(ranks.team, context.timer)
    candidates = (
        context.windows.queues[ranks.queue_group_replicas.index(ranks.replica)] if team.leads else None
    )
    replica = TrainerState(
        context, resources, candidates, Best(shelf_of(config)), team, Agreements(ranks.team)
    )
    recorder = TrialRecorder(context, replica.best)
    lookahead = Lookahead(replica, compiles_ahead(config.parallel.compile_ahead, resources.devices))
    generation = None
    if ranks.queue_group_generators == 0 and candidates is not None:
        generation = CandidateMaker(context, checks_of(context), 0, ((ranks.replica, candidates),))
        replica.background.append(generation)
    replica.background += [recorder, lookahead, Prewarm(replica)]
    return Trainer(replica, generation, recorder, lookahead)


def finish(trainer: Trainer, seconds: float) -> bool:
    """End the trainer's threads; whether they have ended within `seconds`.

    XLA cannot be interrupted, and a process that exits while it compiles crashes.
    """
    context, worker = trainer.replica.context, trainer.replica.worker
    limit = context.clock.now() + seconds
    with context.timer("search"):
        if trainer.generation is not None:
            trainer.generation.close()
    trainer.recorder.close()
    worker.close()
    while worker.busy:
        if context.clock.now() > limit:
            return False
        context.pause(WAIT_SECONDS, "compile")
    return True


def next_candidate(replica: TrainerState, lookahead: Lookahead) -> Preparation | None:
    """The preparation of the replica's next candidate, which nothing rejects; None when the run ends, on all
    of its trainers alike."""
    context, found = replica.context, None
    try:
        while found is None and not replica.poll() and not context.over():
            if (found := lookahead.next()) is None:
                pause(context, lookahead.phase)
    except HistoryFull:
        # Rank 0 drains the run for it, and waits for this rank's farewell.
        found = None
    if replica.team.agree(STOP if found is None else GO) == GO:
        return found
    if found is not None:
        found.drop()
    return None


def pause(context: Context, phase: str) -> None:
    """Sleep until the next look at what is waited for: a compilation takes seconds, the rest hardly longer
    than a look."""
    context.pause(context.config.parallel.poll_seconds if phase == "compile" else WAIT_SECONDS, phase)


def wait_for(replica: TrainerState, reached: Callable[[], bool], preparation: Preparation) -> bool:
    """Look after MPI until something of a preparation is reached; False when the run ends before."""
    context = replica.context
    while not reached():
        if replica.poll() or context.over():
            return False
        pause(context, preparation.phase)
    return True


def await_record(trainer: Trainer) -> None:
    """Wait until the trial that has ended is recorded, also when the run ends."""
    while trainer.recorder.busy:
        trainer.replica.poll()
        trainer.recorder.advance()
        trainer.replica.context.pause(WAIT_SECONDS, "io")


# -- one trial -------------------------------------------------------------------------------------


def run_trial(trainer: Trainer, preparation: Preparation) -> None:
    """Train and record one candidate; whatever its preparation or training raises fails this trial alone."""
    replica, context, candidate = trainer.replica, trainer.replica.context, preparation.candidate
    if candidate is None:
        raise RuntimeError("a preparation without a candidate is rejected")
    trial = Trial(candidate, budget(candidate.round, context.config.train), context.now())
    try:
        if all_ready(replica, preparation):
            train_prepared(replica, preparation, trial)
    except RUN_ERRORS:
        raise
    except Exception as error:
        trial.status, trial.cause = FAILED, replica.team.cause(error)
    trial.describe(preparation)
    trial.t_end = context.now()
    preparation.drop()

    # Only of very short trials the one before is not recorded yet.
    await_record(trainer)
    # The weights of a trial that has failed are nobody's best, however low an error they reached before.
    kept = None if trial.status == FAILED else preparation.training
    if replica.team.leads:
        trainer.recorder.begin(trial, kept, preparation.compiled)
    elif kept is not None and preparation.compiled is not None:
        remember(replica.best, candidate.trial_id, kept, preparation.compiled)


def all_ready(replica: TrainerState, preparation: Preparation) -> bool:
    """Wait until a preparation is done on all trainers of the replica; False when the run ends before.

    Raises what made it fail, FailedElsewhere where that was on another trainer.
    """
    there = wait_for(replica, preparation.advance, preparation)
    failure = preparation.failure
    if there and failure is None and preparation.training is None:
        failure = RuntimeError("the preparation has ended without a training")
    if replica.team.agree(GO if there else STOP) == STOP:
        return False
    if failure is not None:
        # On all of them: the preparations have agreed on that.
        raise failure

    # What fits in memory is found out by each for itself, but their steps must be the same.
    parts = preparation.compiled.settings.accumulate if preparation.compiled is not None else 0
    most, least = replica.team.agree(parts), -replica.team.agree(-parts)
    if most != least:
        raise RuntimeError(
            f"the trainers of a replica cut a step into {least} to {most} parts, as their devices differ in "
            f"memory: "
            "set parallel.memory_limit to what all of them have"
        )
    return True


def train_prepared(replica: TrainerState, preparation: Preparation, trial: Trial) -> None:
    """Train what is ready, and tell of each epoch. Raises what its training raises."""
    training = preparation.training
    if training is None:
        raise RuntimeError("there is no training")
    replica.training = True
    try:
        for epoch in training:
            trial.add(epoch)
            if replica.team.leads:
                send_epoch(replica.context, trial.candidate, epoch)
    finally:
        replica.training = False
    trial.status = {END_EPOCHS: DONE, END_PATIENCE: STOPPED}.get(training.end, UNFINISHED)
