# SPDX-License-Identifier: Apache-2.0
"""What comes before a trial: the candidate rebuilt from its record and checked, its first weights, its
compiled steps, its first batches on their way to the devices."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Generator
from functools import partial
from typing import TypeVar

import numpy as np

from aiperf_mpi.crosscheck.account import StepAccount, account
from aiperf_mpi.parallel.generator.checks import checks_of
from aiperf_mpi.parallel.launch.job import write_error
from aiperf_mpi.parallel.replica.errors import RUN_ERRORS
from aiperf_mpi.parallel.replica.weights import Beginning, begin_with, load_parent
from aiperf_mpi.parallel.shared.outcomes import withdraw
from aiperf_mpi.parallel.shared.queue import Taken
from aiperf_mpi.parallel.trainer.building import begin, rebuild, step_settings
from aiperf_mpi.parallel.trainer.state import TrainerState
from aiperf_mpi.results.file.rows import MORPH_TOLERANCE
from aiperf_mpi.training.fit import Training
from aiperf_mpi.training.lockstep import AGAIN, BROKEN, GO, FailedElsewhere
from aiperf_mpi.training.steps.compile import Compiled, compile_steps
from aiperf_mpi.training.steps.memory import TooLarge, compile_fitting
from aiperf_mpi.trials.candidate import Candidate

#: Why a candidate is rejected in which another trainer of the replica has found what is wrong, and has said
#: it.
REJECTED_BY_PEER = "another trainer of the replica cannot train it (see stderr)"

T = TypeVar("T")


class Preparation:
    """A candidate on its way to its first step. Its long parts run in the replica's thread; `advance`, on the
    main thread, looks after them and does what needs MPI.

    On the trainers of a replica all preparations of a candidate go the same way, by the words that they
    exchange: none rejects, fails or begins anew alone.

    Attributes:
        taken: the candidate as it was taken from the queue.
        beside: whether another trial trains meanwhile, whose memory it may lack: then it is tried again
            without it.
        candidate: None before it is rebuilt, and where it cannot be.
        checked: whether everything that may reject the candidate is behind it.
        wrong: why it is to be rejected, "" where nothing is wrong.
        done: whether nothing is left to do; then there is a `training`, or something is `wrong`, or there is
            a
        failure: what its trial fails with.
        compiled: its steps.
        account: what its training step executes, by the methods that the tables are checked with.
        difference: how far the function of inherited weights is from the parent's (NaN: none inherited).
        training: ready for its first step.
        phase: what a main thread that waits for it waits for.
    """

    def __init__(self, replica: TrainerState, taken: Taken) -> None:
        self.taken, self.beside = taken, False
        self.candidate: Candidate | None = None
        self.checked = self.done = False
        self.wrong = ""
        self.failure: Exception | None = None
        self.compiled: Compiled | None = None
        self.account = StepAccount()
        self.difference = float("nan")
        self.training: Training | None = None
        self.phase = "search"
        self._replica = replica
        self._steps = self._prepare(taken.record)

    def advance(self) -> bool:
        """Do what can be done now without waiting; whether all is done. Errors of the run are raised, those
        of the trial kept in `failure`."""
        if not self.done:
            try:
                self.phase = next(self._steps)
            except StopIteration:
                self.done = True
        return self.done

    def drop(self) -> None:
        """End what it has under way; what its thread is at is finished, and forgotten."""
        self._steps.close()
        if self.training is not None:
            self.training.close()

    def _prepare(self, record: np.void) -> Generator[str, None, None]:
        """The steps, one after the other; yields the phase of what it waits for."""
        replica = self._replica
        candidate, wrong = rebuild(replica, record)
        if candidate is not None and candidate.parent_id < 0 and not wrong:
            # No generator has checked the initial architecture.
            wrong = yield from self._thread("compile", partial(checks_of(replica.context), candidate))
        # The leader records the rejection, with its own reason; whoever has one that the leader has not says
        # it.
        word = yield from self._agree(GO if not wrong else BROKEN if replica.team.leads else AGAIN)
        if word == AGAIN and wrong:
            ranks = replica.context.ranks
            write_error(
                f"aiperf_mpi: rank {ranks.rank} on {ranks.host}: trial {int(record['trial'])} is rejected: "
                f"{wrong}\n"
            )
        if word != GO:
            wrong = wrong or REJECTED_BY_PEER
        self.candidate, self.wrong, self.checked = candidate, wrong, True
        if candidate is None or wrong:
            return
        try:
            while not (yield from self._make_ready(candidate)):
                # What it has on the devices would be in its own way.
                self._let_go()
                self.compiled = None
                while self.beside:
                    yield "idle"
        except RUN_ERRORS:
            raise
        except Exception as error:
            # The next candidate is compiled while this one is still known.
            self.failure = without_frames(error)
            self._let_go()

    def _let_go(self) -> None:
        """Leave nothing of the training on the devices."""
        if self.training is not None:
            self.training.close()
        self.training = None

    def _make_ready(self, candidate: Candidate) -> Generator[str, None, bool]:
        """Whether it is ready on all trainers of the replica; it is to begin anew where it is not. Raises
        what fails.

        All have weights before any compiles: some backends exchange what they find out while they compile,
        and would wait for a trainer that does not.
        """
        beside = self.beside
        beginning = yield from self._together(self._find_weights(candidate), beside)
        if beginning is None:
            return False
        training = yield from self._together(self._compile(candidate, beginning, beside), beside)
        return training is not None

    def _compile(
        self, candidate: Candidate, beginning: Beginning, beside: bool
    ) -> Generator[str, None, Training]:
        """The training: its steps compiled, its state on the devices, its first batches on their way
        there."""
        replica = self._replica
        config, resources = replica.context.config, replica.resources
        settings = step_settings(config, candidate, resources.dataset)
        dispatch = config.parallel.dispatch
        made = partial(compile_steps, candidate.architecture, devices=resources.devices, dispatch=dispatch)
        work = partial(compile_fitting, made, settings, resources.memory, alone=not beside)
        self.compiled = yield from self._thread("compile", work)
        self.account = yield from self._thread("compile", partial(account, self.compiled))
        self.training = yield from self._thread(
            "init", partial(begin, replica, candidate, self.compiled, beginning)
        )
        self.training.open()
        return self.training

    def _together(self, steps: Generator[str, None, T], beside: bool) -> Generator[str, None, T | None]:
        """What `steps` return, once they have on all trainers of the replica; None where they are to be tried
        again when no other trial trains, as one of them may have failed for want of memory.

        Raises what they raise, FailedElsewhere where that was on another trainer.
        """
        result, failure = None, None
        try:
            result = yield from steps
        except RUN_ERRORS:
            raise
        except Exception as error:
            failure = without_frames(error)
        word = yield from self._agree(
            GO if failure is None else AGAIN if beside and may_be_out_of_memory(failure) else BROKEN
        )
        if word == AGAIN:
            return None
        if failure is not None:
            raise failure
        if word == BROKEN:
            raise FailedElsewhere("another trainer of the replica could not prepare it")
        return result

    def _agree(self, word: int) -> Generator[str, None, int]:
        """The word that holds for all trainers of the replica."""
        asked = self._replica.agreements.post(word)
        while not asked.done():
            yield "communicate"
        return asked.value

    def _find_weights(self, candidate: Candidate) -> Generator[str, None, Beginning]:
        """The weights that the trial starts from.

        Raises OSError or ValueError where its parent's cannot be had, or the child does not compute its
        parent's function.
        """
        context = self._replica.context
        config, parent = context.config, None
        if config.model.inherits and candidate.parent_id >= 0:
            seed = int(context.windows.history.record(0)["seed"])
            try:
                parent = yield from self._thread("io", partial(load_parent, config, candidate, seed))
            except (OSError, ValueError):
                withdraw(context, candidate.parent_id)
                raise

        work = partial(begin_with, config, self._replica.resources.dataset, candidate, parent)
        beginning = yield from self._thread("init", work)
        if parent is not None:
            self.difference = beginning.difference
            if not beginning.difference <= MORPH_TOLERANCE:
                raise ValueError(
                    f"inherited weights: the child's function differs from its parent's by "
                    f"{beginning.difference:.1e} of its outputs, more than {MORPH_TOLERANCE:g}"
                )
        return beginning

    def _thread(self, phase: str, work: Callable[[], T]) -> Generator[str, None, T]:
        """What `work` returns, from the replica's thread."""
        worker = self._replica.worker
        future = worker.submit(work)
        # A worker that is not busy has let go of the result, too.
        while worker.busy:
            yield phase
        return future.result()


def may_be_out_of_memory(failure: Exception) -> bool:
    """Whether there may be memory enough for what has failed when nothing else is on the devices; their
    libraries say so in many words. What was foreseen to be too large is so alone, too."""
    return isinstance(failure, RuntimeError | MemoryError) and not isinstance(failure, TooLarge)


def without_frames(failure: Exception) -> Exception:
    """`failure`, and what it came from, without the frames that they went through: their variables hold
    weights and compiled steps, and the failure itself, so that all of it stays on the devices until Python
    looks for cycles."""
    left, seen = list[BaseException]([failure]), list[BaseException]()
    while left:
        error = left.pop()
        if not any(error is other for other in seen):
            seen.append(error)
            traceback.clear_frames(error.__traceback__)
            error.__traceback__ = None
            left += [other for other in (error.__cause__, error.__context__) if other is not None]
    return failure
