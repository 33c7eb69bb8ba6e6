# SPDX-License-Identifier: Apache-2.0
"""A trainer rank: takes the candidates of its replica in the order of their rounds and trains them, one by one.

A trial that raises or diverges is recorded as failed with its cause and costs only itself.
"""

from __future__ import annotations

from functools import partial

from aiperf_mpi.parallel.best import Best, keep_weights, shelf_of
from aiperf_mpi.parallel.candidates import Taken
from aiperf_mpi.parallel.context import Context
from aiperf_mpi.parallel.errors import RUN_ERRORS
from aiperf_mpi.parallel.generation import Generation, reject
from aiperf_mpi.parallel.generator import checks_of
from aiperf_mpi.parallel.preparation import begin, compile_ahead, find_weights, rebuild
from aiperf_mpi.parallel.replica import LOOK_SECONDS, Replica, in_thread
from aiperf_mpi.parallel.trial import Trial, record_end, send_epoch
from aiperf_mpi.parallel.workshop import Workshop
from aiperf_mpi.results.schema import UNFINISHED
from aiperf_mpi.search.budget import budget
from aiperf_mpi.search.history import HistoryFull
from aiperf_mpi.search.record import DONE, FAILED, STOPPED, Candidate
from aiperf_mpi.training.fit import END_EPOCHS, END_PATIENCE


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
    replica = Replica(context, workshop, candidates, generation, Best(shelf_of(context.config)))

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
            keep_weights(context, replica.best, trial, training, compiled)
    except RUN_ERRORS:
        raise
    except Exception as error:
        trial.status, trial.cause = FAILED, f"{type(error).__name__}: {error}"
    record_end(context, trial)
