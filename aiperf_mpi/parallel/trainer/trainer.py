# SPDX-License-Identifier: Apache-2.0
"""A trainer rank: take the candidates of its replica in the order of their rounds, and train them.

    take -> Preparation (in a thread, perhaps while the trial before trains) -> train -> TrialRecorder

A trial that raises or diverges is recorded as failed with its cause; the run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiperf_mpi.parallel.generator.checks import checks_of
from aiperf_mpi.parallel.generator.maker import CandidateMaker
from aiperf_mpi.parallel.replica.agreements import Agreements
from aiperf_mpi.parallel.replica.best import restored_best, update_best
from aiperf_mpi.parallel.replica.errors import RUN_ERRORS
from aiperf_mpi.parallel.replica.resources import Resources
from aiperf_mpi.parallel.replica.team import Team
from aiperf_mpi.parallel.shared.context import Context
from aiperf_mpi.parallel.shared.status import RETIRED
from aiperf_mpi.parallel.trainer.epochs import EpochRecorder
from aiperf_mpi.parallel.trainer.lookahead import Lookahead, compiles_ahead
from aiperf_mpi.parallel.trainer.preparation import Preparation
from aiperf_mpi.parallel.trainer.prewarm import Prewarm
from aiperf_mpi.parallel.trainer.recorder import TrialRecorder
from aiperf_mpi.parallel.trainer.reporter import StatusReporter
from aiperf_mpi.parallel.trainer.retirement import RETIRED_BY_PEER, Retirement
from aiperf_mpi.parallel.trainer.state import WAIT_SECONDS, TrainerState, accept
from aiperf_mpi.parallel.trainer.trial import Trial, send_begin, send_epoch
from aiperf_mpi.parallel.trainer.worker import take_turns
from aiperf_mpi.results.file.rows import UNFINISHED
from aiperf_mpi.training.fit import END_EPOCHS, END_PATIENCE, Training
from aiperf_mpi.training.lockstep import GO, STOP
from aiperf_mpi.trials.budget import budget
from aiperf_mpi.trials.log import HistoryFull
from aiperf_mpi.trials.record import DONE, FAILED, STOPPED


@dataclass(frozen=True)
class Trainer:
    """A trainer's state, and the work that it does between its steps.

    Attributes:
        maker: makes candidates; None where the queue group has generators, or this trainer is not the first.
        recorder: records trials that have ended.
        lookahead: prepares the next candidate.
    """

    state: TrainerState
    maker: CandidateMaker | None
    recorder: TrialRecorder
    lookahead: Lookahead


def propose_initial(context: Context) -> None:
    """Put trial 0, which rank 0 has committed, into the queue of the replica that trains it, before any
    generator can take the first ticket."""
    history, candidates = context.windows.history, context.windows.queues[0]
    while not len(history):
        history.refresh()
        context.pause(WAIT_SECONDS, "communicate")
    slot = candidates.reserve()
    if slot is None or not candidates.publish(slot, history.record(0), 0):
        raise RuntimeError("the first ticket of replica 0 is taken before the core time starts")


def train(
    context: Context, resources: Resources, devices: str = "", resumed: Mapping[int, int] | None = None
) -> Trainer:
    """Train candidates until rank 0 ends the run, or the time is over. Call `finish` after it.

    Arguments:
        devices: the UUIDs of this rank's devices, or why they have none, for the case that the replica
            retires.
        resumed: the trials that go on from their last state, see `TrainerState`.
    """
    take_turns()
    trainer = trainer_of(context, resources, devices, resumed or {})
    state, lookahead = trainer.state, trainer.lookahead
    while not state.retirement.why and (preparation := next_candidate(state, lookahead)) is not None:
        accept(state, preparation.taken)
        run_trial(trainer, preparation)
    state.agreements.settle(state.team)
    lookahead.close()
    wait_until_recorded(trainer)
    if state.retirement.why:
        wait_for_end(trainer)
    return trainer


def wait_for_end(trainer: Trainer) -> None:
    """Serve MPI until the run ends, after the replica has retired."""
    state, context = trainer.state, trainer.state.context
    state.background = [work for work in state.background if work is not trainer.maker]
    state.reporter.begin(RETIRED)
    while not state.poll("idle") and not context.over():
        pause(context, "idle")


def trainer_of(context: Context, resources: Resources, devices: str, resumed: Mapping[int, int]) -> Trainer:
    """Return a trainer with everything that it works with."""
    ranks, config = context.ranks, context.config
    team = Team(ranks.team, context.timer)
    candidates = (
        context.windows.queues[ranks.queue_group_replicas.index(ranks.replica)] if team.leads else None
    )
    state = TrainerState(
        context,
        resources,
        candidates,
        restored_best(context),
        team,
        StatusReporter(context, team.leads),
        Agreements(ranks.team),
        epochs=EpochRecorder(context) if team.leads else None,
        resumed=dict(resumed),
        retirement=Retirement(devices),
    )
    recorder = TrialRecorder(context, state.best, state.epochs)
    lookahead = Lookahead(state, compiles_ahead(config.parallel.compile_ahead, resources.devices))
    maker = None
    if ranks.queue_group_generators == 0 and candidates is not None:
        maker = CandidateMaker(context, checks_of(context), 0, ((ranks.replica, candidates),))
        state.background.append(maker)
    state.background += [recorder, lookahead, Prewarm(state)]
    if state.epochs is not None:
        state.background.append(state.epochs)
    return Trainer(state, maker, recorder, lookahead)


def finish(trainer: Trainer, seconds: float) -> bool:
    """End the trainer's threads; return whether they have ended within `seconds`.

    XLA cannot be interrupted, and a process that exits while it compiles crashes, or waits for ever for a
    device that is stuck.
    """
    if trainer.state.retirement.stuck:
        seconds = 0.0
    context, worker, epochs = trainer.state.context, trainer.state.worker, trainer.state.epochs
    limit = context.clock.now() + seconds
    with context.timer("search"):
        if trainer.maker is not None:
            trainer.maker.close()
    trainer.recorder.close()
    worker.close()
    if epochs is not None:
        epochs.close()
    while worker.busy or (epochs is not None and epochs.busy):
        if context.clock.now() > limit:
            return False
        context.pause(WAIT_SECONDS, "compile")
    return not trainer.state.retirement.stuck


def next_candidate(state: TrainerState, lookahead: Lookahead) -> Preparation | None:
    """Wait for the replica's next candidate, and return its preparation once nothing can reject it.

    Return None on all of the replica's trainers when the run ends.
    """
    context, preparation = state.context, None
    try:
        while preparation is None and not state.poll(lookahead.phase) and not context.over():
            if (preparation := lookahead.next()) is None:
                state.reporter.begin(lookahead.trial_id)
                pause(context, lookahead.phase)
    except HistoryFull:
        # Rank 0 drains the run for this reason, and waits for this rank's last message.
        preparation = None
    if state.team.agree(STOP if preparation is None else GO) == GO:
        return preparation
    if preparation is not None:
        preparation.drop()
    return None


def pause(context: Context, phase: str) -> None:
    """Sleep until the next poll: long for a compilation, which takes seconds, short for all other work."""
    context.pause(context.config.parallel.poll_seconds if phase == "compile" else WAIT_SECONDS, phase)


def wait_for(state: TrainerState, reached: Callable[[], bool], preparation: Preparation) -> bool:
    """Serve MPI until `reached()`; return False if the run ends before."""
    context = state.context
    while not reached():
        if state.poll(preparation.phase) or context.over():
            return False
        pause(context, preparation.phase)
    return True


def wait_until_recorded(trainer: Trainer) -> None:
    """Wait until the trial that has ended is recorded, even when the run ends."""
    while trainer.recorder.busy:
        trainer.state.poll()
        trainer.recorder.advance()
        trainer.state.context.pause(WAIT_SECONDS, "io")


# -- one trial -------------------------------------------------------------------------------------


def run_trial(trainer: Trainer, preparation: Preparation) -> None:
    """Train and record one candidate. An error of its preparation or training fails this trial alone."""
    state, context, candidate = trainer.state, trainer.state.context, preparation.candidate
    if candidate is None:
        raise RuntimeError("a candidate that could not be rebuilt is not rejected")
    trial = Trial(candidate, budget(candidate.round, context.config.train), context.now())
    state.reporter.begin(candidate.trial_id, trial.budget.epochs_max)
    failure: Exception | None = None
    try:
        training = wait_until_ready(state, preparation)
        if training is not None:
            state.training, state.reporter.training = True, training
            if preparation.begun is not None:
                trial.go_on(preparation.begun.trained)
                preparation.begun = None  # the devices hold its arrays
            for epoch in training:
                if state.team.leads and trial.epochs == training.first:
                    trial.describe(preparation)
                    send_begin(context, trial)
                trial.add(epoch)
                if state.team.leads:
                    send_epoch(context, candidate, epoch)
            trial.status = {END_EPOCHS: DONE, END_PATIENCE: STOPPED}.get(training.end, UNFINISHED)
    except RUN_ERRORS:
        raise
    except Exception as error:
        failure = error
        trial.status, trial.cause = FAILED, state.team.cause(error)
    finally:
        state.training = False
        state.reporter.end()
    trial.describe(preparation)
    trial.t_end = context.now()
    preparation.drop()
    retire_after(state, trial, failure)

    # After a very short trial the one before may not be recorded yet.
    wait_until_recorded(trainer)
    # Weights of a failed trial are never the best, however low an error they reached before.
    kept = None if trial.status == FAILED else preparation.training
    if state.team.leads:
        trainer.recorder.begin(trial, kept, preparation.compiled)
    elif kept is not None and preparation.compiled is not None:
        update_best(state.best, candidate.trial_id, kept, preparation.compiled)


def retire_after(state: TrainerState, trial: Trial, failure: Exception | None) -> None:
    """Retire on all trainers of the replica after a trial that gives a reason on one of them; its cause then
    names the first trainer's place."""
    context, retirement = state.context, state.retirement
    why = retirement.reason(context, trial.status, failure)
    agreed = state.team.agree(2 if retirement.stuck else 1 if why else 0)
    if not agreed:
        return
    retirement.stuck = agreed == 2
    retirement.retire(context, why or RETIRED_BY_PEER)
    trial.cause = f"{trial.cause}; {retirement.place(context)} retires"


def wait_until_ready(state: TrainerState, preparation: Preparation) -> Training | None:
    """Wait until a preparation is done on all trainers of the replica, and return its training; None if the
    run ends before.

    Raises the preparation's failure, which all trainers of the replica have agreed on.
    """
    done = wait_for(state, preparation.advance, preparation)
    failure = preparation.failure
    if done and failure is None and preparation.training is None:
        failure = RuntimeError("the preparation has ended without a training")
    if state.team.agree(GO if done else STOP) == STOP:
        return None
    if failure is not None:
        raise failure

    # Each trainer finds by itself into how many parts its memory cuts a step, but all must find the same.
    parts = preparation.compiled.settings.accumulate if preparation.compiled is not None else 0
    most, least = state.team.agree(parts), -state.team.agree(-parts)
    if most != least:
        raise RuntimeError(
            f"the trainers of a replica cut a step into {least} to {most} parts, as their devices differ in "
            "memory: set parallel.memory_limit to what all of them have"
        )
    return preparation.training
