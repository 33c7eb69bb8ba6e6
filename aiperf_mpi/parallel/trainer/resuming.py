# SPDX-License-Identifier: Apache-2.0
"""The state from which a trial of a resumed run goes on, alike on all trainers of its replica."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Protocol, TypeVar

from aiperf_mpi.parallel.launch.job import write_error
from aiperf_mpi.parallel.replica.errors import RUN_ERRORS
from aiperf_mpi.parallel.shared.context import Context
from aiperf_mpi.parallel.trainer.epochs import running_folder
from aiperf_mpi.training.epoch_files import Found, newest_epoch
from aiperf_mpi.training.epoch_state import EpochState
from aiperf_mpi.trials.candidate import Candidate

T = TypeVar("T")

#: Returns the highest value, 0 to 255, of all trainers of the replica; yields the phase of each wait.
Agree = Callable[[int], Generator[str, None, int]]


class InThread(Protocol):
    """Does work in the replica's thread, and returns its result; yields `phase` at each wait."""

    def __call__(self, phase: str, work: Callable[[], T], /) -> Generator[str, None, T]: ...


def find_epoch(
    context: Context, resumed: dict[int, int], candidate: Candidate, in_thread: InThread, agree: Agree
) -> Generator[str, None, EpochState | None]:
    """Find the state from which a trial goes on; None where it begins, or begins again.

    All trainers of the replica go on from the same epoch: where one finds another state, it begins again.

    Arguments:
        resumed: see `TrainerState`; the trial is taken out of it.
    """
    trial_id = candidate.trial_id
    if (most := resumed.pop(trial_id, None)) is None:
        return None
    folder = running_folder(context.config)
    try:
        found = yield from in_thread(
            "io", partial(newest_epoch, folder, trial_id, candidate.seed, candidate.architecture, most)
        )
    except RUN_ERRORS:
        raise
    except Exception as error:
        # The other trainers wait for the agreement.
        found = Found(None, (f"{type(error).__name__}: {error}",))
    epochs = 0 if found.state is None else found.state.epochs
    alike = yield from _alike(epochs, agree)
    goes_on = f"it goes on after {epochs} epochs" if alike and epochs else "it begins again"
    reasons = [*found.refused, *(() if alike else ("the trainers of its replica find other states",))]
    for reason in reasons:
        ranks = context.ranks
        write_error(f"aiperf_mpi: rank {ranks.rank} on {ranks.host}: trial {trial_id}: {reason}; {goes_on}\n")
    return found.state if alike else None


def _alike(number: int, agree: Agree) -> Generator[str, None, bool]:
    """Return whether all trainers of the replica have the same number, below 2^24."""
    for part in number.to_bytes(3, "big"):
        most = yield from agree(part)
        least = yield from agree(255 - part)
        if most != 255 - least:
            return False
    return True
