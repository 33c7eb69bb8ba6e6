# SPDX-License-Identifier: Apache-2.0
"""One trainer's state while it works, and what it does between its steps."""

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
from aiperf_mpi.parallel.trainer.worker import Worker
from aiperf_mpi.trials.view import ArchitectureCache

#: Seconds between two looks for what is not ready.
WAIT_SECONDS = 0.005


class BackgroundWork(Protocol):
    """Work that goes on in small parts between a trainer's steps, such as the making of candidates."""

    def advance(self) -> object:
        """Do what can be done now without waiting."""


@dataclass
class TrainerState:
    """One trainer's state while it works.

    Attributes:
        queue: of the candidates; None where this trainer is not the replica's first.
        team: the replica's trainers.
        exchange: what they agree on while they train.
        worker: makes the next trial ready.
        between: what is to be advanced between steps and while waiting.
        training: whether a trial is at its steps now.
        preparing: whether the worker has parts of the next trial before it, and must not begin with anything
            else.
    """

    context: Context
    resources: Resources
    queue: CandidateQueue | None
    best: Best
    team: Team
    agreements: Agreements = field(default_factory=Agreements)
    worker: Worker = field(default_factory=lambda: Worker("prepare"))
    background: list[BackgroundWork] = field(default_factory=list)
    architectures: ArchitectureCache = field(default_factory=ArchitectureCache)
    training: bool = False
    preparing: bool = False

    def poll(self) -> bool:
        """Return to MPI, between steps and while waiting; whether the run ends. Raises GenerationError, with
        the name of the work, where something that is done between steps failed, which is no fault of the
        trial that runs."""
        with self.context.timer("communicate"):
            stop = self.context.windows.messages.stop_requested() is not None
            if not stop:
                for work in self.background:
                    try:
                        work.advance()
                    except RUN_ERRORS:
                        raise
                    except Exception as error:
                        what = f"{type(work).__name__} between steps"
                        raise GenerationError(f"{what}: {type(error).__name__}: {error}") from error
        return stop


def accept(replica: TrainerState, taken: Taken) -> None:
    """Train a candidate that was taken: its round is used."""
    if replica.queue is not None:
        replica.queue.accept(taken)


def refuse(replica: TrainerState, taken: Taken, wrong: str) -> None:
    """Reject a candidate that was taken; its ticket is filled again, but for the initial architecture's."""
    if replica.queue is None:
        return
    trial_id = int(taken.record["trial"])
    reject(replica.context, taken.record, trial_id, wrong)
    replica.queue.accept(taken) if trial_id == 0 else replica.queue.reject(taken)
