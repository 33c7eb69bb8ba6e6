# SPDX-License-Identifier: Apache-2.0
"""The training of one candidate: for each epoch train, average, validate, keep the best weights, and decide
whether to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from aiperf_mpi.paper import MIN_DELTA
from aiperf_mpi.phases import PhaseTimer
from aiperf_mpi.training.epoch import EpochResult, Sums, result_of
from aiperf_mpi.training.epoch_state import Trained, WholeEpoch
from aiperf_mpi.training.faults import TrainingFault
from aiperf_mpi.training.lockstep import BROKEN, LATE, STOP, Agree, FailedElsewhere, alone
from aiperf_mpi.training.pipeline import CutShort, Pass, Pipeline
from aiperf_mpi.training.steps.compile import Compiled
from aiperf_mpi.training.steps.devices import DeviceBatch
from aiperf_mpi.training.steps.step import Metrics, TrainState
from aiperf_mpi.trials.budget import should_stop

#: Why a training ended: all epochs are done, the validation loss was no better for too long, it was asked to
#: stop, or its time was over.
END_EPOCHS, END_PATIENCE, END_STOPPED, END_DEADLINE = "epochs", "patience", "stopped", "deadline"

#: What a training has done that begins with its first epoch.
BEGINS = Trained()

#: Why a training that was cut short ended, by the signal that its processes agreed on.
_ENDS = {STOP: END_STOPPED, LATE: END_DEADLINE}


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How long to train, and how fast.

    Arguments:
        epochs_max: maximum number of epochs.
        patience: epochs without a better validation loss after which training ends.
        learning_rate: returns the rate of an epoch, counted from 0.
        min_delta: by how much a validation loss must be lower to be better.
        in_flight: maximum number of steps that are dispatched and not complete.
        stuck_seconds: `run.stuck_seconds`, see `waiting.StepTimes`.
    """

    epochs_max: int
    patience: int
    learning_rate: Callable[[int], float]
    min_delta: float = MIN_DELTA
    in_flight: int = 2
    stuck_seconds: float = 0.0


def end_after(val_losses: Sequence[float], settings: FitSettings) -> str:
    """Return why a training ends after the epoch with the last of these losses; "" if it goes on."""
    if len(val_losses) == settings.epochs_max:
        return END_EPOCHS
    return END_PATIENCE if should_stop(val_losses, settings.patience, settings.min_delta) else ""


class EpochKeeper(Protocol):
    """Keeps the state after an epoch, so that the training can go on from there in another process."""

    def due(self) -> bool:
        """Return whether the state after the present epoch is to be kept."""

    def keep(self, state: TrainState, trained: Trained) -> None:
        """Take the state of one device, as numpy arrays, and what the training has done; do not wait."""


class Training:
    """One training. Iterate over it once for the results of its epochs; its attributes then hold the rest.

    Arguments:
        trained: what an earlier process has done of this training, which goes on with the next epoch;
            `state` is then the one after it.
        keeper: keeps states after epochs that are not the last; None: none is kept.

    Iteration raises after the result of what was complete by then: Diverged; Disagreement, where the devices
    hold different parameters after the first step, or different parameters or statistics after an epoch's
    average; Stuck, where a step does not end; the error of an injected fault; any error of the data or the
    devices. Where a replica has several processes, they agree before each step and leave at the same one.
    Then FailedElsewhere is raised on those without an error of their own, and Stranded on one whose step
    fails after the agreement.

    Attributes:
        end: why it ended (one of the END_ constants); empty before, and after an exception.
        epochs: whole epochs done, those of `trained` included.
        first: the first epoch that it trains, counted from 0.
        epoch, sums: the epoch that runs, or ran last, and the sums of its training and its validation.
        t_first_step: when its first step was dispatched, by the clock; NaN before.
        best_error: lowest validation error, NaN before any whole validation.
        best_variables: `params` and `batch_stats` of the epoch of `best_error`, as numpy arrays; None before.
    """

    def __init__(
        self,
        compiled: Compiled,
        state: TrainState,
        train_batches: Callable[[int], Iterable[Any]],
        val_batches: Callable[[], Iterable[Any]],
        settings: FitSettings,
        *,
        timer: PhaseTimer,
        poll: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        deadline: float = math.inf,
        fault: TrainingFault | None = None,
        agree: Agree = alone,
        trained: Trained = BEGINS,
        keeper: EpochKeeper | None = None,
    ) -> None:
        self.end = ""
        self._whole = list(trained.epochs)
        self.first = self.epoch = self.epochs = len(self._whole)
        if self.first >= settings.epochs_max:
            raise ValueError(f"{self.first} epochs of {settings.epochs_max} are done: none is left to train")
        self.sums = Sums(), Sums()
        self.t_first_step = math.nan
        self.best_error, self.best_variables = trained.best_error, trained.best_variables
        self._compiled, self._state, self._settings = compiled, state, settings
        self._train_batches, self._val_batches = train_batches, val_batches
        self._timer, self._clock, self._fault = timer, clock, fault or TrainingFault()
        self._keeper = keeper
        self._pipeline = Pipeline(
            compiled.sharding,
            settings.in_flight,
            timer=timer,
            poll=poll,
            clock=clock,
            deadline=deadline,
            agree=agree,
            stuck_seconds=settings.stuck_seconds,
        )

    def open(self) -> None:
        """Start to transfer the first batches to the devices, before the training begins."""
        self._open_training(self.first)

    def close(self, wait: bool = True) -> None:
        """End the transfer of batches; `wait` until its thread has ended, which it may not where devices are
        stuck."""
        self._pipeline.close(wait)

    def __iter__(self) -> Iterator[EpochResult]:
        outer = self._timer.switch("train")
        try:
            if not self._pipeline.is_open:
                self.open()
            for epoch in range(self.first, self._settings.epochs_max):
                train, val, rate = Sums(), Sums(), self._settings.learning_rate(epoch)
                self.epoch, self.sums = epoch, (train, val)
                t_start = self._pipeline.t_end = self._clock()
                failure: Exception | None = None
                try:
                    self._train(epoch, rate, train)
                    self._average(epoch)
                    if (weights := self._validate(epoch, val)) is not None:
                        self.best_variables, self.best_error = weights, val.error
                    self._decide_end(train, val)
                    self._keep_epoch()
                except CutShort as cut:
                    self.end = _ENDS[cut.signal]
                    if self._pipeline.leave(cut.signal) == BROKEN:
                        failure = FailedElsewhere("another process of the replica failed")
                except Exception as error:
                    failure = error
                    self._pipeline.leave(BROKEN)

                # An epoch that was cut short or failed reports first what was complete by then.
                self._timer.switch(outer)
                if train.batches:
                    yield result_of(epoch, rate, (t_start, self._pipeline.t_end), train, val)
                if failure is not None:
                    raise failure
                if self.end:
                    return
                self._timer.switch("train")
        finally:
            # The devices have no room for this state in addition to the next candidate's and the one that
            # trains then.
            self._pipeline.drop()
            del self._state
            self._timer.switch(outer)

    def _train(self, epoch: int, rate: float, sums: Sums) -> None:
        """Run the training pass of an epoch."""
        compiled, fault = self._compiled, self._fault
        usual_rate = compiled.scalar(rate)

        def dispatch(batch: DeviceBatch, step: int) -> Metrics:
            used = compiled.scalar(math.nan) if fault.spoils_rate(epoch, step) else usual_rate
            if math.isnan(self.t_first_step):
                self.t_first_step = self._clock()
            self._state, metrics = compiled.train(self._state, batch.images, batch.labels, used)
            self._state = self._state._replace(params=fault.after_step(epoch, step, self._state.params))
            if (epoch, step) == (self.first, 0):
                self._compare("after the first step", statistics=False)
            return metrics

        self._pipeline.run(
            Pass(
                f"epoch {epoch}, training",
                sums,
                dispatch,
                all_dispatched=self._open_validation,
                before_step=partial(fault.before_step, epoch),
            )
        )

    def _average(self, epoch: int) -> None:
        """Average the running statistics over the devices, and compare what the devices hold."""
        self._timer.switch("validate")
        with self._pipeline.shared_work(f"the average of epoch {epoch}"):
            averaged = self._compiled.average(self._state.batch_stats)
            self._state = self._state._replace(batch_stats=averaged)
            self._compare(f"epoch {epoch}, after its training", statistics=True)

    def _validate(self, epoch: int, sums: Sums) -> dict[str, Any] | None:
        """Run the validation pass of an epoch; return its weights, on the host, where its error is the lowest
        so far."""
        weights = list[dict[str, Any]]()

        def dispatch(batch: DeviceBatch, _: int) -> Metrics:
            return self._compiled.evaluate(self._state.params, self._state.batch_stats, *batch)

        def fetch_weights() -> None:
            if not sums.error >= self.best_error:
                self._timer.switch("io")
                weights.append(self._compiled.variables(self._state))

        self._pipeline.run(
            Pass(
                f"epoch {epoch}, validation",
                sums,
                dispatch,
                all_dispatched=partial(self._open_training, epoch + 1),
                all_complete=fetch_weights,
            )
        )
        return weights[0] if weights else None

    def _decide_end(self, train: Sums, val: Sums) -> None:
        """Count a whole epoch, and set `end` where it is the last."""
        self.epochs += 1
        self._whole.append(WholeEpoch(train.images, val.images, val.mean_loss, val.error))
        self.end = end_after([whole.val_loss for whole in self._whole], self._settings)

    def _keep_epoch(self) -> None:
        """Keep the state after a whole epoch that is not the last, where it is due."""
        if self._keeper is None or self.best_variables is None or self.end or not self._keeper.due():
            return
        self._timer.switch("io")
        self._keeper.keep(self._compiled.held(self._state), Trained(tuple(self._whole), self.best_variables))

    def _compare(self, where: str, statistics: bool) -> None:
        """Start to compare what the devices hold, where there are several."""
        if self._compiled.agree is not None:
            agreement = self._compiled.agree(self._state.params, self._state.batch_stats)
            self._pipeline.compare(agreement, where, statistics)

    def _open_training(self, epoch: int) -> None:
        """Start to transfer the training batches of an epoch, if there is such an epoch."""
        self._pipeline.close()
        if epoch < self._settings.epochs_max:
            self._pipeline.open(self._train_batches(epoch), whole=True)

    def _open_validation(self) -> None:
        """Start to transfer the validation batches."""
        self._pipeline.open(self._val_batches())
