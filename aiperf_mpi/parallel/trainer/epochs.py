# SPDX-License-Identifier: Apache-2.0
"""The state of the trial that trains, written after an epoch now and then, in a thread.

A run that is resumed goes on with the trial from there. The files of a trial that has ended are removed;
those of one that a drain or the time limit has cut short stay.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from aiperf_mpi.config import Config
from aiperf_mpi.parallel.launch.job import write_error
from aiperf_mpi.parallel.shared.context import Context
from aiperf_mpi.parallel.trainer.worker import Worker
from aiperf_mpi.planning.folder import CHECKPOINTS, RUNNING
from aiperf_mpi.training.epoch_files import remove_epochs, write_epoch
from aiperf_mpi.training.epoch_state import EpochState, Trained, TrialStart
from aiperf_mpi.training.steps.step import TrainState

#: Seconds after the end of a trial for which its files stay: its last row is in the journal by then, as its
#: writer syncs once in `result.fsync_seconds`.
REMOVE_SECONDS = 10.0


def running_folder(config: Config) -> Path:
    """Return the folder of the states of trials that train."""
    return Path(config.run.output) / CHECKPOINTS / RUNNING


class EpochRecorder:
    """Writes the states of a replica's trials, and removes those of trials that have ended. A replica's first
    trainer has one.

    A state that cannot be written costs nothing but what a resumed run would train again: it is told once.
    """

    def __init__(self, context: Context) -> None:
        self._context, self._folder = context, running_folder(context.config)
        self._seconds = context.config.result.checkpoint_seconds
        self._remove_seconds = REMOVE_SECONDS + 2 * context.config.result.fsync_seconds
        self._worker = Worker("epochs")
        self._written_at = self._context.clock.now()
        self._under_way = list[Future[None]]()
        self._ended = list[tuple[float, int]]()
        self._told = False

    @property
    def busy(self) -> bool:
        """Whether a file is written or removed."""
        return self._worker.busy

    def keeper(self, start: TrialStart) -> Keeper | None:
        """Return what keeps the states of a trial; None where none is to be kept."""
        return Keeper(self, start) if self._seconds else None

    def due(self) -> bool:
        """Return whether the last state is old enough, and written."""
        return not self._under_way and self._context.clock.now() - self._written_at >= self._seconds

    def write(self, epoch: EpochState) -> None:
        """Start to write a state."""
        self._written_at = self._context.clock.now()
        self._submit(partial(_write, self._folder, epoch))

    def ended(self, trial_id: int) -> None:
        """Note that a trial has ended, and that its last row is on its way to rank 0."""
        self._ended.append((self._context.clock.now() + self._remove_seconds, trial_id))

    def advance(self) -> None:
        """Take the result of what is done, and remove the files of trials that have ended some time ago."""
        done = [future for future in self._under_way if future.done()]
        self._under_way = [future for future in self._under_way if future not in done]
        for failure in filter(None, (future.exception() for future in done)):
            self._tell(failure)
        self._remove(self._context.clock.now())

    def close(self) -> None:
        """Remove the files of all trials that have ended, and end the thread when that is done."""
        self._remove(math.inf)
        self._worker.close(cancel=False)

    def _remove(self, now: float) -> None:
        """Start to remove the files of trials whose time is over."""
        over = [trial_id for at, trial_id in self._ended if at <= now]
        self._ended = [(at, trial_id) for at, trial_id in self._ended if at > now]
        if over:
            self._submit(partial(_remove, self._folder, over))

    def _submit(self, work: Callable[[], None]) -> None:
        self._under_way.append(self._worker.submit(work))

    def _tell(self, failure: BaseException) -> None:
        """Say once that a state could not be written or removed."""
        if self._told:
            return
        self._told = True
        ranks, reason = self._context.ranks, f"{type(failure).__name__}: {failure}"
        if isinstance(failure, OSError) and failure.errno:
            reason = os.strerror(failure.errno)
        write_error(
            f"aiperf_mpi: rank {ranks.rank} on {ranks.host}: {self._folder}: the state of the running trial "
            f"is not kept: {reason}; the run goes on, and tries again after the next "
            f"{self._seconds:g} s; make room there, or set result.checkpoint_seconds=0\n"
        )


class Keeper:
    """Keeps the states of one trial (a `training.fit.EpochKeeper`)."""

    def __init__(self, recorder: EpochRecorder, start: TrialStart) -> None:
        self._recorder, self._start = recorder, start

    def due(self) -> bool:
        """Return whether the state after the present epoch is to be kept."""
        return self._recorder.due()

    def keep(self, state: TrainState, trained: Trained) -> None:
        """Start to write the state of one device, and what the training has done."""
        self._recorder.write(EpochState(self._start, state, trained))


def _write(folder: Path, epoch: EpochState) -> None:
    write_epoch(folder, epoch)


def _remove(folder: Path, trial_ids: Sequence[int]) -> None:
    for trial_id in trial_ids:
        remove_epochs(folder, trial_id)
