# SPDX-License-Identifier: Apache-2.0
"""The state of a trial, and what its trainer reports of it: rows to rank 0, an outcome to the history."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from aiperf_mpi.crosscheck.account import StepAccount
from aiperf_mpi.parallel.shared.context import Context
from aiperf_mpi.parallel.shared.messages import Kind
from aiperf_mpi.parallel.trainer.preparation import Preparation
from aiperf_mpi.results.file.rows import EPOCH_ROW, TRIAL_ROW, UNFINISHED, row_of
from aiperf_mpi.training.epoch import EpochResult
from aiperf_mpi.training.epoch_state import Trained
from aiperf_mpi.trials.budget import Budget
from aiperf_mpi.trials.candidate import Candidate
from aiperf_mpi.trials.log import HistoryFull
from aiperf_mpi.trials.prediction import predict_error
from aiperf_mpi.trials.record import DONE, STOPPED


@dataclass
class Trial:
    """A trial up to now; fields with the name of a column of TRIAL_ROW are sent as that column.

    Times are s since core start; `kept` is whether its weights were kept for children to inherit, `resumed`
    whether it goes on with what an earlier process of the run has trained.
    """

    candidate: Candidate
    budget: Budget
    t_start: float
    t_end: float = math.nan
    status: int = UNFINISHED
    cause: str = ""
    precision: str = ""
    morph_max_abs_diff: float = math.nan
    t_first_step: float = math.nan
    trace_seconds: float = math.nan
    compile_seconds: float = math.nan
    micro_batch: int = 0
    accumulation: int = 0
    account: StepAccount = StepAccount()
    kept: bool = False
    resumed: bool = False
    epochs: int = 0
    train_samples: int = 0
    val_samples: int = 0
    val_errors: list[float] = field(default_factory=list)

    def describe(self, preparation: Preparation) -> None:
        """Copy what its preparation and its training know: compilation, counts, time of the first step."""
        self.morph_max_abs_diff, self.account = preparation.difference, preparation.account
        if (compiled := preparation.compiled) is not None:
            self.precision = compiled.precision
            self.trace_seconds, self.compile_seconds = compiled.trace_seconds, compiled.compile_seconds
            self.micro_batch, self.accumulation = compiled.settings.micro_batch, compiled.settings.accumulate
        if preparation.training is not None:
            self.t_first_step = preparation.training.t_first_step

    def go_on(self, trained: Trained) -> None:
        """Add the whole epochs that an earlier process of the run has trained, whose rows are kept."""
        self.resumed, self.epochs = True, len(trained.epochs)
        self.train_samples = sum(epoch.train_samples for epoch in trained.epochs)
        self.val_samples = sum(epoch.val_samples for epoch in trained.epochs)
        self.val_errors = [epoch.val_error for epoch in trained.epochs]

    def add(self, epoch: EpochResult) -> None:
        """Add an epoch, or the completed part of one, to the sums."""
        self.epochs += 1
        self.train_samples += epoch.train_samples
        self.val_samples += epoch.val_samples
        if math.isfinite(epoch.val_error):
            self.val_errors.append(epoch.val_error)


def send_epoch(context: Context, candidate: Candidate, epoch: EpochResult) -> None:
    """Send rank 0 the row of an epoch, or of the completed part of one."""
    row = row_of(EPOCH_ROW, epoch, trial_id=candidate.trial_id)
    with context.timer("communicate"):
        context.windows.messages.send(Kind.EPOCH, row[0])


def send_begin(context: Context, trial: Trial) -> None:
    """Send rank 0 what is known of a trial before its first epoch's row: settings, counts, the first step.

    The row of its end replaces it. Without that, because its rank was killed or hangs, the result knows what
    the trial's epochs have trained.
    """
    with context.timer("communicate"):
        context.windows.messages.send(Kind.TRIAL, _row(context, trial, math.nan, math.nan)[0])


def record_end(context: Context, trial: Trial) -> None:
    """Record how a trial ended: an outcome in the history for the search, and a row for the result."""
    best = min(trial.val_errors, default=math.nan)
    predicted = _predicted_error(context, trial)
    with context.timer("communicate"):
        if trial.status != UNFINISHED:
            _append_outcome(context, trial, best, predicted)
        context.windows.messages.send(Kind.TRIAL, _row(context, trial, best, predicted)[0])


def _row(context: Context, trial: Trial, best: float, predicted: float) -> np.ndarray:
    """Return the row of a trial as it is now (TRIAL_ROW); its `t_end` is NaN while it trains."""
    return row_of(
        TRIAL_ROW,
        trial,
        trial.budget,
        trial.account,
        trial_id=trial.candidate.trial_id,
        lr=context.config.train.lr,
        best_error=best,
        predicted_error=predicted,
    )


def _predicted_error(context: Context, trial: Trial) -> float:
    """Predict the error of a whole training, which steers the search in the warm-up rounds (section 4.5 of
    the paper).

    Return NaN after the warm-up, for a trial that did not end well, and where nothing can be predicted.
    """
    if not trial.budget.warm_up or trial.status not in (DONE, STOPPED):
        return math.nan
    prediction = predict_error(trial.val_errors, context.config.train.epochs)
    return prediction.error if prediction.predicted else math.nan


def _append_outcome(context: Context, trial: Trial, best: float, predicted: float) -> None:
    """Append the trial's OUTCOME record to the history; set its cause if the history is full."""
    outcome = trial.candidate.outcome(
        trial.status,
        trial.t_end,
        epochs=trial.epochs,
        best_error=best,
        predicted_error=predicted,
        kept=trial.kept and context.config.model.inherits,
        cause=trial.cause,
    )
    try:
        context.windows.history.append(outcome)
    except HistoryFull:
        # Rank 0 then drains the run; the trial's row still reports how it ended.
        trial.cause = trial.cause or "the history is full: its outcome is in the result alone"
