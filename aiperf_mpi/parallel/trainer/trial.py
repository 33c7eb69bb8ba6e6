# SPDX-License-Identifier: Apache-2.0
"""What has become of a trial, and what is told of it: rows to rank 0, and its outcome in the history for the
search."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from aiperf_mpi.crosscheck.account import StepAccount
from aiperf_mpi.parallel.shared.context import Context
from aiperf_mpi.parallel.shared.messages import Kind
from aiperf_mpi.parallel.trainer.preparation import Preparation
from aiperf_mpi.results.file.rows import EPOCH_ROW, TRIAL_ROW, UNFINISHED, new_row
from aiperf_mpi.training.epoch import EpochResult
from aiperf_mpi.trials.budget import Budget
from aiperf_mpi.trials.log import HistoryFull
from aiperf_mpi.trials.prediction import predict_error
from aiperf_mpi.trials.record import DONE, STOPPED, Candidate


@dataclass
class Trial:
    """What has become of a trial so far."""

    candidate: Candidate
    budget: Budget
    t_start: float
    t_end: float = math.nan
    status: int = UNFINISHED
    cause: str = ""
    precision: str = ""
    difference: float = math.nan
    t_first_step: float = math.nan
    trace_seconds: float = math.nan
    compile_seconds: float = math.nan
    micro_batch: int = 0
    accumulation: int = 0
    account: StepAccount = StepAccount()
    kept: bool = False
    epochs: int = 0
    train_samples: int = 0
    val_samples: int = 0
    val_errors: list[float] = field(default_factory=list)

    def describe(self, preparation: Preparation) -> None:
        """Take over what its preparation and its training say of it."""
        self.difference, self.account = preparation.difference, preparation.account
        if (compiled := preparation.compiled) is not None:
            self.precision = compiled.precision
            self.trace_seconds, self.compile_seconds = compiled.trace_seconds, compiled.compile_seconds
            self.micro_batch, self.accumulation = compiled.settings.micro_batch, compiled.settings.accumulate
        if preparation.training is not None:
            self.t_first_step = preparation.training.t_first_step

    def add(self, epoch: EpochResult) -> None:
        """Count an epoch, or the part of it that was done."""
        self.epochs += 1
        self.train_samples += epoch.train_samples
        self.val_samples += epoch.val_samples
        if math.isfinite(epoch.val_error):
            self.val_errors.append(epoch.val_error)


def send_epoch(context: Context, candidate: Candidate, epoch: EpochResult) -> None:
    """Tell rank 0 of an epoch, or of the part of it that was done."""
    row = new_row(
        EPOCH_ROW,
        trial_id=candidate.trial_id,
        epoch=epoch.epoch,
        steps=epoch.steps,
        t_start=epoch.t_start,
        t_end=epoch.t_end,
        train_samples=epoch.train_samples,
        val_samples=epoch.val_samples,
        lr=epoch.lr,
        train_loss=epoch.train_loss,
        val_loss=epoch.val_loss,
        val_error=epoch.val_error,
        partial=epoch.partial,
    )
    with context.timer("communicate"):
        context.windows.messages.send(Kind.EPOCH, row[0])


def record_end(context: Context, trial: Trial) -> None:
    """Record how a trial ended: an outcome in the history for the search, a row for the result."""
    candidate, config = trial.candidate, context.config
    best = min(trial.val_errors, default=math.nan)
    predicted = math.nan
    if trial.budget.warm_up and trial.status in (DONE, STOPPED):
        # In the warm-up the search is told what the trial would reach (section 4.5 of the paper).
        prediction = predict_error(trial.val_errors, config.train.epochs)
        predicted = prediction.error if prediction.predicted else math.nan

    with context.timer("communicate"):
        if trial.status != UNFINISHED:
            outcome = candidate.outcome(
                trial.status,
                trial.t_end,
                epochs=trial.epochs,
                best_error=best,
                predicted_error=predicted,
                kept=trial.kept and config.model.inherits,
                cause=trial.cause,
            )
            try:
                context.windows.history.append(outcome)
            except HistoryFull:
                # Rank 0 drains the run for it; the row below still tells how this trial ended.
                trial.cause = trial.cause or "the history is full: its outcome is in the result alone"
        row = new_row(
            TRIAL_ROW,
            trial_id=candidate.trial_id,
            status=trial.status,
            epochs=trial.epochs,
            epochs_max=trial.budget.epochs_max,
            patience=trial.budget.patience,
            lr=config.train.lr,
            t_start=trial.t_start,
            t_end=trial.t_end,
            best_error=best,
            predicted_error=predicted,
            t_first_step=trial.t_first_step,
            trace_seconds=trial.trace_seconds,
            compile_seconds=trial.compile_seconds,
            micro_batch=trial.micro_batch,
            accumulation=trial.accumulation,
            jaxpr_ops=trial.account.jaxpr_ops,
            xla_ops=trial.account.xla_ops,
            xla_model_ops=trial.account.xla_model_ops,
            morph_max_abs_diff=trial.difference,
            train_samples=trial.train_samples,
            val_samples=trial.val_samples,
            precision=trial.precision,
            cause=trial.cause,
        )
        context.windows.messages.send(Kind.TRIAL, row[0])
