# SPDX-License-Identifier: Apache-2.0
"""One trainer's state, and the work that it does between its steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from aiperf_mpi.parallel.replica.agreements import Agreements
from aiperf_mpi.parallel.replica.best import Best
from aiperf_mpi.parallel.replica.errors import RUN_ERRORS, GenerationError
from aiperf_mpi.parallel.replica.resources import Resources
from aiperf_mpi.parallel.replica.team import Team
from aiperf_mpi.parallel.shared.context import Context
from aiperf_mpi.parallel.shared.outcomes import reject
from aiperf_mpi.parallel.shared.queue import CandidateQueue, Taken
from aiperf_mpi.parallel.trainer.epochs import EpochRecorder
from aiperf_mpi.parallel.trainer.reporter import StatusReporter
from aiperf_mpi.parallel.trainer.retirement import Retirement
from aiperf_mpi.parallel.trainer.worker import Worker
from aiperf_mpi.trials.view import ArchitectureCache

#: Seconds between two polls while a trainer waits.
WAIT_SECONDS = 0.005


class BackgroundWork(Protocol):
    """Work that a trainer does in small parts between its steps, such as to make candidates."""

    def advance(self) -> object:
        """Do what can be done now without waiting."""


@dataclass
class TrainerState:
    """One trainer's state.

    Attributes:
        resources: the replica's devices and data.
        queue: of the replica's candidates; None where this trainer is not the replica's first.
        best: the replica's best models so far.
        team: the replica's trainers.
        agreements: of the team while it prepares candidates.
        worker: the thread that prepares the next trial.
        background: work to be advanced between steps and while waiting.
        architectures: those rebuilt so far.
        training: whether a trial takes its steps now.
        reporter: tells rank 0 what the replica does.
        epochs: writes states of the trial that trains; None where this trainer is not the replica's first.
        resumed: trials that trained when an earlier process of this run ended, and the number of their epochs
            whose rows are kept; all trainers of the replica have the same.
        retirement: whether the replica has retired, and why.
        preparing: whether the worker still has parts of the next trial to do, and must not begin other work.
    """

    context: Context
    resources: Resources
    queue: CandidateQueue | None
    best: Best
    team: Team
    reporter: StatusReporter
    agreements: Agreements = field(default_factory=Agreements)
    worker: Worker = field(default_factory=lambda: Worker("prepare"))
    background: list[BackgroundWork] = field(default_factory=list)
    architectures: ArchitectureCache = field(default_factory=ArchitectureCache)
    epochs: EpochRecorder | None = None
    resumed: dict[int, int] = field(default_factory=dict)
    retirement: Retirement = field(default_factory=Retirement)
    training: bool = False
    preparing: bool = False

    def poll(self, phase: str = "") -> bool:
        """Return to MPI, between steps and while waiting, and advance the background work; return whether the
        run ends. `phase` is what this rank waits for, if not for the phase that its timer is in.

        Raises GenerationError, with the name of the work, where background work fails: the trial that runs
        did not cause it.
        """
        phase = phase or self.context.timer.phase or "idle"
        with self.context.timer("communicate"):
            self.reporter.report(phase)
            stop = self.context.windows.messages.stop_requested() is not None
            if not stop:
                for work in self.background:
                    try:
                        work.advance()
                    except RUN_ERRORS:
                        raise
                    except Exception as error:
                        name = f"{type(work).__name__} between steps"
                        raise GenerationError(f"{name}: {type(error).__name__}: {error}") from error
        return stop


def accept(state: TrainerState, taken: Taken) -> None:
    """Use up the round of a candidate that was taken, as its training begins."""
    if state.queue is not None:
        state.queue.accept(taken)


def refuse(state: TrainerState, taken: Taken, problem: str) -> None:
    """Reject a candidate that was taken; its ticket is filled again, except the initial architecture's."""
    if state.queue is None:
        return
    trial_id = int(taken.record["trial"])
    reject(state.context, taken.record, trial_id, problem)
    state.queue.accept(taken) if trial_id == 0 else state.queue.reject(taken)
