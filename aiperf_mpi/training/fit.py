# SPDX-License-Identifier: Apache-2.0
"""The training of one candidate: epochs of steps and validations, of which only what really completed
counts."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import jax

from aiperf_mpi.paper import MIN_DELTA
from aiperf_mpi.training.epoch import EpochResult, Sums, result_of
from aiperf_mpi.training.fault import Fault, disturbed
from aiperf_mpi.training.lockstep import BROKEN, GO, LATE, STOP, Agree, FailedElsewhere, Stranded, alone
from aiperf_mpi.training.steps.compile import Compiled
from aiperf_mpi.training.steps.devices import DeviceBatch, Feed
from aiperf_mpi.training.steps.digest import Agreement, check
from aiperf_mpi.training.steps.step import Metrics, TrainState
from aiperf_mpi.trials.budget import should_stop

#: Seconds after which a rank that waits for data returns to MPI.
POLL_SECONDS = 0.05

#: Why a training ended: all epochs done, no better validation loss for too long, asked to stop, or out of
#: time.
END_EPOCHS, END_PATIENCE, END_STOPPED, END_DEADLINE = "epochs", "patience", "stopped", "deadline"

#: What a training that is cut short ends by, for the word that its processes agreed on.
_ENDS = {STOP: END_STOPPED, LATE: END_DEADLINE}

T = TypeVar("T")


class Diverged(RuntimeError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How long to train, and how fast.

    Arguments:
        epochs_max: most epochs.
        patience: epochs without a better validation loss after which training ends.
        learning_rate: of an epoch, counted from 0.
        min_delta: by how much a validation loss must be lower to be better.
        in_flight: most steps that are dispatched and not complete.
    """

    epochs_max: int
    patience: int
    learning_rate: Callable[[int], float]
    min_delta: float = MIN_DELTA
    in_flight: int = 2


class _Cut(Exception):
    """The training ends before its epoch does; `word`, STOP or LATE, says why."""

    def __init__(self, word: int) -> None:
        super().__init__(_ENDS[word])
        self.end, self.word = _ENDS[word], word


class Timer(Protocol):
    """What is needed of `aiperf_mpi.phases.PhaseTimer`."""

    def switch(self, phase: str | None) -> str | None: ...


class Training:
    """One training: iterate over it for its epochs' results, once; then ask it for the rest.

    Iteration raises, behind the result of what had completed: Diverged; Disagreement, as after the first step
    all devices must hold the same parameters, and after each epoch's training the same averaged statistics
    too; what an injected fault raises, and whatever the data or the devices raise. Where a replica has
    several processes, they agree before each step, and leave at the same one: FailedElsewhere on those that
    had no error of their own, and Stranded on one whose step fails after that.

    Attributes:
        end: why it ended (one of the END_ constants); empty before, and after an exception.
        epochs: whole epochs done.
        t_first_step: when its first step was dispatched, by the clock; NaN before.
        best_error: lowest validation error, NaN before any whole validation.
        best_epoch: the epoch of `best_error`, -1 before.
        best_variables: `params` and `batch_stats` of that epoch, as numpy arrays; None before.
    """

    def __init__(
        self,
        compiled: Compiled,
        state: TrainState,
        train_batches: Callable[[int], Iterable[Any]],
        val_batches: Callable[[], Iterable[Any]],
        settings: FitSettings,
        *,
        timer: Timer,
        poll: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        deadline: float = math.inf,
        fault: Fault | None = None,
        agree: Agree = alone,
    ) -> None:
        if settings.in_flight < 1:
            raise ValueError(f"in_flight is {settings.in_flight}, but at least 1 step must be in flight")
        self.end = ""
        self.epochs = 0
        self.t_first_step = math.nan
        self.best_error = math.nan
        self.best_epoch = -1
        self.best_variables: dict[str, Any] | None = None
        self._compiled, self._state, self._settings = compiled, state, settings
        self._train_batches, self._val_batches = train_batches, val_batches
        self._timer, self._poll, self._clock, self._deadline = timer, poll, clock, deadline
        self._fault = fault or Fault()
        # How the replica's processes agree, and whether they have nothing more to agree on.
        self._agree, self._known = agree, False
        self._feed: Feed | None = None
        self._compared: tuple[Agreement, str, bool] | None = None
        self._t_end = 0.0

    def open(self) -> None:
        """Put the first batches on their way to the devices, before the training begins."""
        self._open_train_feed(0)

    def close(self) -> None:
        """End what is on its way to the devices; a training that has begun does so by itself."""
        self._close_feed()

    def __iter__(self) -> Iterator[EpochResult]:
        outer = self._timer.switch("train")
        try:
            self._sleep_untimed()
            yield from self._all_epochs(outer)
        finally:
            # Beside the next candidate's state and the one that trains then there is no room for a third.
            self._close_feed()
            del self._state
            self._compared = None
            self._timer.switch(outer)

    def _all_epochs(self, outer: str | None) -> Iterator[EpochResult]:
        settings, val_losses = self._settings, list[float]()
        if self._feed is None:
            self.open()
        for epoch in range(settings.epochs_max):
            # Whatever cuts the epoch short, what had completed by then is reported first.
            train, val = Sums(), Sums()
            failure: Exception | None = None
            t_start = self._t_end = self._clock()
            rate = settings.learning_rate(epoch)
            try:
                self._train(epoch, rate, train)
                self._validate(epoch, val)
            except _Cut as cut:
                self.end = cut.end
                if self._leave(cut.word) == BROKEN:
                    failure = FailedElsewhere("another process of the replica failed")
            except Exception as error:
                failure = error
                self._leave(BROKEN)

            if val.whole and failure is None:
                self.epochs += 1
                val_losses.append(val.mean_loss)
                if self.epochs == settings.epochs_max:
                    self.end = END_EPOCHS
                elif should_stop(val_losses, settings.patience, settings.min_delta):
                    self.end = END_PATIENCE

            self._timer.switch(outer)
            if train.batches:
                yield result_of(epoch, rate, (t_start, self._t_end), train, val)
            if failure is not None:
                raise failure
            if self.end:
                return
            self._timer.switch("train")

    def _train(self, epoch: int, rate: float, sums: Sums) -> None:
        compiled, fault = self._compiled, self._fault
        usual, broken = compiled.scalar(rate), compiled.scalar(math.nan)

        def before(step: int) -> None:
            if fault.raise_at == (epoch, step):
                raise RuntimeError(f"injected fault: epoch {epoch}, step {step} raises")

        def dispatch(batch: DeviceBatch, step: int) -> Metrics:
            used = broken if fault.nan_at == (epoch, step) else usual
            if math.isnan(self.t_first_step):
                self.t_first_step = self._clock()
            self._state, metrics = compiled.train(self._state, batch.images, batch.labels, used)
            if fault.disturb_at == (epoch, step):
                self._state = self._state._replace(params=disturbed(self._state.params))
            if (epoch, step) == (0, 0):
                self._compare("after the first step", statistics=False)
            return metrics

        self._pass(f"epoch {epoch}, training", dispatch, sums, then=self._open_val_feed, before=before)

    def _validate(self, epoch: int, sums: Sums) -> None:
        compiled = self._compiled
        self._timer.switch("validate")

        def average() -> None:
            self._state = self._state._replace(batch_stats=compiled.average(self._state.batch_stats))
            self._compare(f"epoch {epoch}, after its training", statistics=True)

        self._shared(f"the average of epoch {epoch}", average)

        def dispatch(batch: DeviceBatch, _: int) -> Metrics:
            return compiled.evaluate(self._state.params, self._state.batch_stats, *batch)

        best: list[dict[str, Any]] = []

        def last() -> None:
            # The lowest error so far: these weights are kept on the host.
            if not sums.error >= self.best_error:
                self._timer.switch("io")
                best.append(compiled.variables(self._state))

        self._pass(
            f"epoch {epoch}, validation", dispatch, sums, lambda: self._open_train_feed(epoch + 1), last=last
        )
        for variables in best:
            self.best_variables, self.best_error, self.best_epoch = variables, sums.error, epoch

    def _compare(self, where: str, statistics: bool) -> None:
        """Starts a comparison of what the devices hold; the next batch that completes looks at it."""
        agree = self._compiled.agree
        if agree is not None:
            self._compared = (agree(self._state.params, self._state.batch_stats), where, statistics)

    def _pass(
        self,
        where: str,
        dispatch: Callable[[DeviceBatch, int], Metrics],
        sums: Sums,
        then: Callable[[], None],
        before: Callable[[int], None] = lambda step: None,
        last: Callable[[], None] = lambda: None,
    ) -> None:
        """Puts all batches of the open feed through `dispatch`, and calls `then` before it waits for the last
        ones; `before` is called with the number of each step, and what it raises is raised instead of the
        step. `last` is called when all are complete, before the processes agree that the pass is whole.

        Counts what completes in `sums`; raises _Cut when it is to stop or out of time.
        """
        feed, step, word = self._feed, 0, GO
        pending: deque[Metrics] = deque()
        if feed is None:
            raise RuntimeError(f"{where}: no batches are on their way")

        def complete_oldest() -> None:
            loss = self._complete(pending.popleft(), sums)
            if not math.isfinite(loss):
                raise Diverged(f"{where}: the loss is {loss} in step {sums.batches - 1}")

        def agree() -> None:
            agreed = self._agree(word)
            # What runs when the training is to stop still counts; how that went is agreed on once more.
            self._known = agreed in (LATE, BROKEN)
            if agreed == BROKEN:
                raise FailedElsewhere("another process of the replica failed")
            while agreed == STOP and pending:
                complete_oldest()
            if agreed != GO:
                raise _Cut(agreed)

        while not feed.ended:
            # Without a batch, wait for a step that runs; only without such a step the time is the data's.
            batch = feed.take()
            if batch is None and not feed.ended and pending:
                complete_oldest()
            elif batch is None and not feed.ended:
                phase = self._timer.switch("data")
                batch = feed.take(POLL_SECONDS)
                self._timer.switch(phase)
            if batch is not None:
                if len(pending) >= self._settings.in_flight:
                    complete_oldest()
                before(step)

            # Alone, a process leaves as soon as it is to; one of several waits for the next step to agree on
            # it.
            word = max(word, STOP if self._poll() else GO, LATE if self._clock() > self._deadline else GO)
            if batch is not None or (word != GO and self._agree is alone):
                agree()
            if batch is not None:
                pending.append(self._shared(f"step {step}", partial(dispatch, batch, step)))
                step += 1

        then()
        while pending:
            complete_oldest()
        if not sums.images:
            raise ValueError(f"{where}: there is no batch; is a batch larger than the data set?")
        last()
        agree()
        sums.whole = True

    def _leave(self, word: int) -> int:
        """Tell the replica's other processes, unless they know, that this one ends the training; what all
        agree on."""
        if self._known:
            return word
        self._known = True
        return self._agree(word)

    def _shared(self, what: str, work: Callable[[], T]) -> T:
        """`work`, in which the devices of all processes of the replica meet; where it fails on one, those of
        the others wait for it there, and none of them would hear a word."""
        try:
            return work()
        except Exception as error:
            if self._agree is alone:
                raise
            self._known = True
            raise Stranded(f"{what} failed on one process of its replica: {error}") from error

    def _complete(self, metrics: Metrics, sums: Sums) -> float:
        """Waits for a batch, counts it and returns its mean loss; raises _Cut if it completed after the
        deadline, and Disagreement if a comparison that is under way fails."""
        compared, self._compared = self._compared, None
        found = None if compared is None else compared[0]
        # What fails on a device while it runs is raised here.
        host, words = self._shared("a step under way", lambda: jax.device_get((metrics, found)))
        if compared is not None:
            _, where, statistics = compared
            check(words, where, len(self._compiled.devices), statistics)
        now = self._clock()
        if now > self._deadline:
            raise _Cut(LATE)
        self._t_end = now
        return sums.add(host)

    def _open_train_feed(self, epoch: int) -> None:
        self._close_feed()
        if epoch < self._settings.epochs_max:
            self._feed = Feed(self._train_batches(epoch), self._compiled.sharding, whole=True)

    def _open_val_feed(self) -> None:
        self._close_feed()
        self._feed = Feed(self._val_batches(), self._compiled.sharding)

    def _close_feed(self) -> None:
        if self._feed is not None:
            self._feed.close()
            self._feed = None

    def _sleep_untimed(self) -> None:
        if self._fault.untimed_sleep:
            phase = self._timer.switch(None)
            time.sleep(self._fault.untimed_sleep)
            self._timer.switch(phase)
