# SPDX-License-Identifier: Apache-2.0
"""Record the end of a trial once its best weights are written, in a thread, while the next trial begins."""

from __future__ import annotations

import os
from concurrent.futures import Future
from functools import partial

from aiperf_mpi.parallel.launch.job import write_error
from aiperf_mpi.parallel.replica.best import Best, keep_weights
from aiperf_mpi.parallel.replica.weights import Kept, checkpoint_path
from aiperf_mpi.parallel.shared.context import Context
from aiperf_mpi.parallel.shared.outcomes import withdraw
from aiperf_mpi.parallel.trainer.epochs import EpochRecorder
from aiperf_mpi.parallel.trainer.trial import Trial, record_end
from aiperf_mpi.parallel.trainer.worker import Worker
from aiperf_mpi.results.file.rows import UNFINISHED
from aiperf_mpi.training.fit import Training
from aiperf_mpi.training.steps.compile import Compiled
from aiperf_mpi.trials.record import FAILED


class TrialRecorder:
    """Record trials that have ended, one at a time. Kept weights are on disk before any rank learns of
    them."""

    def __init__(self, context: Context, best: Best, epochs: EpochRecorder | None = None) -> None:
        self._context, self._best, self._epochs = context, best, epochs
        self._worker = Worker("keep")
        self._trial: Trial | None = None
        self._written: Future[Kept | None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a trial is still to be recorded."""
        return self._trial is not None

    def begin(self, trial: Trial, training: Training | None, compiled: Compiled | None) -> None:
        """Record the end of a trial: at once, or when its weights are on disk if they are among the replica's
        best. Raises RuntimeError while another trial is still to be recorded."""
        if self._trial is not None:
            raise RuntimeError(
                f"trial {trial.candidate.trial_id} ends before {self._trial.candidate.trial_id} is kept"
            )
        self._trial = trial
        kept = training is not None and training.best_variables is not None
        if (
            training is None
            or compiled is None
            or not kept
            or not self._best.kept_weights.takes(training.best_error)
        ):
            self._record()
            return
        trial_id = trial.candidate.trial_id
        path = checkpoint_path(self._context.config, trial_id)
        self._written = self._worker.submit(
            partial(keep_weights, self._best, path, trial_id, training, compiled)
        )

    def advance(self) -> None:
        """Record the trial, if its weights are written by now."""
        if self._trial is None or self._written is None or not self._written.done():
            return
        written, self._written = self._written, None
        context, trial, displaced = self._context, self._trial, None
        path = checkpoint_path(context.config, trial.candidate.trial_id)
        try:
            displaced, trial.kept = written.result(), True
        except OSError as error:
            # The training counts all the same; only its weights are missing.
            reason = os.strerror(error.errno) if error.errno else str(error)
            trial.cause = f"its weights are not kept: {reason}: {path}"
            write_error(
                f"aiperf_mpi: rank {context.ranks.rank} on {context.ranks.host}: "
                f"{path} not written: {reason}\n"
            )
        except Exception as error:
            trial.status, trial.cause = FAILED, f"{type(error).__name__}: {error}"
        self._record()
        if displaced is not None and context.config.model.inherits:
            withdraw(context, displaced.trial_id)

    def close(self) -> None:
        """End the thread."""
        self._worker.close()

    def _record(self) -> None:
        if self._trial is not None:
            record_end(self._context, self._trial)
            if self._epochs is not None and self._trial.status != UNFINISHED:
                self._epochs.ended(self._trial.candidate.trial_id)
        self._trial = None
