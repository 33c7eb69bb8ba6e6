# SPDX-License-Identifier: Apache-2.0
"""Prepare a trial: rebuild and check its candidate, find its start weights, compile its steps, and start to
transfer its first batches."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Generator
from functools import partial
from typing import TypeVar

import numpy as np

from aiperf_mpi.crosscheck.account import StepAccount, account
from aiperf_mpi.parallel.generator.checks import checks_of
from aiperf_mpi.parallel.launch.job import write_error
from aiperf_mpi.parallel.replica.errors import RUN_ERRORS
from aiperf_mpi.parallel.replica.weights import StartWeights, load_parent, start_weights
from aiperf_mpi.parallel.shared.outcomes import withdraw
from aiperf_mpi.parallel.shared.queue import Taken
from aiperf_mpi.parallel.trainer.building import build_training, rebuild, step_settings
from aiperf_mpi.parallel.trainer.resuming import find_epoch
from aiperf_mpi.parallel.trainer.state import TrainerState
from aiperf_mpi.parallel.trainer.worker import Worker
from aiperf_mpi.results.file.rows import MORPH_TOLERANCE
from aiperf_mpi.training.epoch_state import EpochState
from aiperf_mpi.training.fit import Training
from aiperf_mpi.training.lockstep import AGAIN, BROKEN, GO, FailedElsewhere, Stuck
from aiperf_mpi.training.steps.compile import Compiled, compile_steps
from aiperf_mpi.training.steps.memory import TooLarge, compile_fitting
from aiperf_mpi.training.waiting import preparation_seconds
from aiperf_mpi.trials.candidate import Candidate

#: Why a candidate is rejected on a trainer that found no problem itself; the one that did has reported it.
REJECTED_BY_PEER = "another trainer of the replica cannot train it (see stderr)"

T = TypeVar("T")


class Preparation:
    """The preparation of one candidate for its first step. The long parts run in the replica's thread;
    `advance`, on the main thread, starts them one after the other and does what needs MPI.

    The trainers of a replica agree on the result of each part, so that none rejects a candidate, fails, or
    prepares it again alone.

    Attributes:
        taken: the candidate as it was taken from the queue.
        during_trial: whether another trial trains meanwhile. If the preparation then fails for lack of
            memory, it is done again after that trial.
        candidate, checked: None before it is rebuilt; whether nothing can reject it any more.
        problem: why the candidate is to be rejected, "" if it is not.
        begun: the state from which its trial goes on; None where it begins.
        done: whether nothing is left to do; then there is a `training`, a `problem`, or a `failure`.
        failure: the error with which its trial fails.
        compiled: its steps.
        account: operations that its training step executes, counted by the methods that check the tables.
        difference: how far the function of inherited weights is from the parent's (NaN: none inherited).
        training: ready for its first step.
        phase: the phase to book while the main thread waits for the preparation.
    """

    def __init__(self, state: TrainerState, taken: Taken) -> None:
        self.taken, self.during_trial = taken, False
        self.candidate: Candidate | None = None
        self.checked = self.done = False
        self.problem = ""
        self.begun: EpochState | None = None
        self.failure: Exception | None = None
        self.compiled: Compiled | None = None
        self.account = StepAccount()
        self.difference = float("nan")
        self.training: Training | None = None
        self.phase = "search"
        self._state = state
        self._steps = self._prepare(taken.record)

    def advance(self) -> bool:
        """Do what can be done now without waiting; return whether all is done.

        Keep errors of the trial in `failure`. Raises errors of the run.
        """
        if not self.done:
            try:
                self.phase = next(self._steps)
            except StopIteration:
                self.done = True
        return self.done

    def drop(self) -> None:
        """End the preparation and its transfers; threads of stuck devices are left."""
        self._steps.close()
        if self.training is not None:
            self.training.close(wait=not self._state.retirement.stuck)

    def _prepare(self, record: np.void) -> Generator[str, None, None]:
        """Do all parts, one after the other; yield the phase to book at each wait."""
        state = self._state
        candidate, problem = rebuild(state, record)
        if candidate is not None and state.context.may_be_unchecked(candidate) and not problem:
            problem = yield from self._in_thread("compile", partial(checks_of(state.context), candidate))

        # The first trainer records a rejection with its own problem; where it has none, the trainer that has
        # one reports it.
        agreed = yield from self._agree(GO if not problem else BROKEN if state.team.leads else AGAIN)
        if agreed == AGAIN and problem:
            ranks = state.context.ranks
            write_error(
                f"aiperf_mpi: rank {ranks.rank} on {ranks.host}: trial {int(record['trial'])} is rejected: "
                f"{problem}\n"
            )
        if agreed != GO:
            problem = problem or REJECTED_BY_PEER
        self.candidate, self.problem, self.checked = candidate, problem, True
        if candidate is None or problem:
            return
        try:
            self.begun = yield from find_epoch(
                state.context, state.resumed, candidate, self._in_thread, self._agree
            )
            while not (yield from self._make_ready(candidate)):
                # Free the devices for the next try.
                self._drop_training()
                self.compiled = None
                while self.during_trial:
                    yield "idle"
        except RUN_ERRORS:
            raise
        except Exception as error:
            # This preparation is kept while the next candidate compiles: it must hold no memory.
            self.failure = without_frames(error)
            self._drop_training()

    def _drop_training(self) -> None:
        """Remove everything of the training from the devices."""
        if self.training is not None:
            self.training.close()
        self.training = None

    def _make_ready(self, candidate: Candidate) -> Generator[str, None, bool]:
        """Find the weights and compile; return whether all trainers of the replica are ready. If not, this is
        to be called again when no trial trains. Raises errors of the trial.

        All trainers have weights before any compiles: some backends exchange data while they compile, and
        would wait for a trainer that does not.
        """
        during_trial = self.during_trial
        start: StartWeights | EpochState | None = self.begun
        if start is None:
            start = yield from self._together(self._find_weights(candidate), during_trial)
        if start is None:
            return False
        self.difference = start.difference
        training = yield from self._together(self._compile(candidate, start, during_trial), during_trial)
        return training is not None

    def _compile(
        self, candidate: Candidate, start: StartWeights | EpochState, during_trial: bool
    ) -> Generator[str, None, Training]:
        """Compile the steps, put the state and the first batches on the devices; return the training."""
        state = self._state
        config, resources = state.context.config, state.resources
        settings = step_settings(config, candidate, resources.dataset, self.begun)
        dispatch = config.parallel.dispatch
        compiler = partial(
            compile_steps, candidate.architecture, devices=resources.devices, dispatch=dispatch
        )
        work = partial(compile_fitting, compiler, settings, resources.memory, alone=not during_trial)
        self.compiled = yield from self._in_thread("compile", work)
        self.account = yield from self._in_thread("compile", partial(account, self.compiled))
        self.training = yield from self._in_thread(
            "init", partial(build_training, state, candidate, self.compiled, start)
        )
        self.training.open()
        return self.training

    def _together(self, steps: Generator[str, None, T], during_trial: bool) -> Generator[str, None, T | None]:
        """Do `steps`, and return their result once all trainers of the replica have done them.

        Return None where they may have failed for lack of memory on one trainer. They are then to be done
        again when no other trial trains. Raises their error, FailedElsewhere where another trainer had it.
        """
        result, failure = None, None
        try:
            result = yield from steps
        except RUN_ERRORS:
            raise
        except Exception as error:
            failure = without_frames(error)
        agreed = yield from self._agree(
            GO if failure is None else AGAIN if during_trial and may_be_out_of_memory(failure) else BROKEN
        )
        if agreed == AGAIN:
            return None
        if failure is not None:
            raise failure
        if agreed == BROKEN:
            raise FailedElsewhere("another trainer of the replica could not prepare it")
        return result

    def _agree(self, value: int) -> Generator[str, None, int]:
        """Return the highest value of all trainers of the replica."""
        agreement = self._state.agreements.post(value)
        while not agreement.done():
            yield "communicate"
        return agreement.value

    def _find_weights(self, candidate: Candidate) -> Generator[str, None, StartWeights]:
        """Find the weights that the trial starts from.

        Raises OSError or ValueError where its parent's cannot be read, or the child does not compute its
        parent's function.
        """
        context = self._state.context
        config, parent = context.config, None
        if config.model.inherits and candidate.parent_id >= 0:
            seed = int(context.windows.history.record(0)["seed"])
            try:
                parent = yield from self._in_thread("io", partial(load_parent, config, candidate, seed))
            except (OSError, ValueError):
                withdraw(context, candidate.parent_id)
                raise

        work = partial(start_weights, config, self._state.resources.dataset, candidate, parent)
        weights = yield from self._in_thread("init", work)
        if parent is not None:
            self.difference = weights.difference
            if not weights.difference <= MORPH_TOLERANCE:
                raise ValueError(
                    f"inherited weights: the child's function differs from its parent's by "
                    f"{weights.difference:.1e} of its outputs, more than {MORPH_TOLERANCE:g}"
                )
        return weights

    def _in_thread(self, phase: str, work: Callable[[], T]) -> Generator[str, None, T]:
        """Do `work` in the replica's thread, and return its result. Raises Stuck where it does not end."""
        seconds = preparation_seconds(self._state.context.config.run.stuck_seconds)
        return (yield from in_thread(self._state.worker, phase, work, seconds))


def in_thread(worker: Worker, phase: str, work: Callable[[], T], seconds: float) -> Generator[str, None, T]:
    """Do `work` in the thread of a worker, and return its result; yield `phase` at each wait. Raises Stuck
    where it does not end within `seconds`."""
    begin, future = time.monotonic(), worker.submit(work)
    # A worker that is not busy holds no reference to the result.
    while worker.busy:
        if (waited := time.monotonic() - begin) > seconds:
            raise Stuck(f"the preparation's {phase}", waited)
        yield phase
    return future.result()


def may_be_out_of_memory(failure: Exception) -> bool:
    """Whether the work that failed may fit when nothing else is on the devices. Their libraries report a lack
    of memory in many ways; a step known to be too large (TooLarge) does not fit alone either."""
    return isinstance(failure, RuntimeError | MemoryError) and not isinstance(failure, TooLarge | Stuck)


def without_frames(failure: Exception) -> Exception:
    """Return `failure` without its frames, and without those of its causes. The frames' variables hold
    weights, compiled steps, and the failure itself, so that all of it would stay on the devices until Python
    collects cycles."""
    left, seen = list[BaseException]([failure]), list[BaseException]()
    while left:
        error = left.pop()
        if not any(error is other for other in seen):
            seen.append(error)
            traceback.clear_frames(error.__traceback__)
            error.__traceback__ = None
            left += [other for other in (error.__cause__, error.__context__) if other is not None]
    return failure
