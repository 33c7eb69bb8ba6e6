# SPDX-License-Identifier: Apache-2.0
"""The loop that keeps steps in flight: it dispatches the next steps while earlier ones run on the devices.

A pass is one run over the batches of a feed: the training or the validation of an epoch. Only batches that
are complete before the deadline count. The processes of a replica, if it has several, agree before each step
and once more at the end of a pass. All of them thus leave at the same step (see `lockstep`).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding

from aiperf_mpi.phases import PhaseTimer
from aiperf_mpi.training.epoch import Sums
from aiperf_mpi.training.lockstep import (
    BROKEN,
    GO,
    LATE,
    STOP,
    Agree,
    FailedElsewhere,
    Stranded,
    Stuck,
    alone,
)
from aiperf_mpi.training.steps.devices import DeviceBatch, Feed
from aiperf_mpi.training.steps.digest import Agreement, check
from aiperf_mpi.training.steps.step import Metrics
from aiperf_mpi.training.waiting import StepTimes, Waiter, is_ready

#: Seconds after which a rank that waits for data returns to MPI.
POLL_SECONDS = 0.05


class Diverged(RuntimeError):
    """The loss is not a finite number."""


class CutShort(Exception):
    """The training ends before its epoch does; `signal` says why: STOP or LATE."""

    def __init__(self, signal: int) -> None:
        super().__init__({STOP: "the training is to stop", LATE: "the time is over"}[signal])
        self.signal = signal


class Comparison(NamedTuple):
    """A comparison of the devices' copies of the model, under way on the devices.

    `where` names the point in the training, for the message; with `statistics` the running statistics must be
    equal, too.
    """

    agreement: Agreement
    where: str
    statistics: bool


@dataclass
class Pass:
    """One pass over the batches of the open feed.

    Attributes:
        name: names the pass in messages.
        sums: counts the batches that complete.
        dispatch: starts the step of a batch; its arguments are the batch and the step's number.
        all_dispatched: called after the last dispatch, before the wait for the steps still under way.
        before_step: called with each step's number; an error that it raises replaces the step.
        all_complete: called after the last batch is complete, before the processes agree that the pass is
            whole.
        pending: steps that are dispatched and not complete, the oldest first.
        signal: what this process asks for at the next agreement.
        times: durations of the steps that are complete; `completed_at` is when the last one was, by
            `time.monotonic`.
    """

    name: str
    sums: Sums
    dispatch: Callable[[DeviceBatch, int], Metrics]
    all_dispatched: Callable[[], None]
    before_step: Callable[[int], None] = lambda step: None
    all_complete: Callable[[], None] = lambda: None
    pending: deque[Metrics] = field(default_factory=deque)
    signal: int = GO
    times: StepTimes = field(default_factory=StepTimes)
    completed_at: float = math.nan


class Pipeline:
    """Feed batches to the devices and keep at most `in_flight` steps under way.

    Arguments:
        sharding: layout of the replica's devices, see `devices.device_sharding`.
        in_flight: most steps that are dispatched and not complete.
        timer: books the wait for batches as phase `data`.
        poll: returns to MPI; whether the training is to stop.
        clock: seconds; a batch that completes after `deadline` does not count.
        agree: returns the highest signal of the replica's processes, see `lockstep`.
        stuck_seconds: `run.stuck_seconds`, see `StepTimes`.

    Attributes:
        t_end: when the last counted batch completed, by the clock.
    """

    def __init__(
        self,
        sharding: NamedSharding,
        in_flight: int,
        *,
        timer: PhaseTimer,
        poll: Callable[[], bool],
        clock: Callable[[], float],
        deadline: float,
        agree: Agree,
        stuck_seconds: float = 0.0,
    ) -> None:
        if in_flight < 1:
            raise ValueError(f"in_flight is {in_flight}, but at least 1 step must be in flight")
        self.t_end = 0.0
        self._sharding, self._in_flight, self._timer = sharding, in_flight, timer
        self._poll, self._clock, self._deadline, self._agree = poll, clock, deadline, agree
        # Whether the other processes know that this one leaves, so that nothing is left to agree on.
        self._others_know = False
        self._feed: Feed | None = None
        self._comparison: Comparison | None = None
        self._waiter, self._stuck, self._stuck_seconds = Waiter(), False, stuck_seconds

    # -- before and after a pass

    @property
    def is_open(self) -> bool:
        """Whether batches are on their way to the devices."""
        return self._feed is not None

    def open(self, batches: Iterable[Any], whole: bool = False) -> None:
        """Start to transfer the batches of the next pass; arguments as those of `devices.Feed`."""
        self.close()
        self._feed = Feed(batches, self._sharding, whole=whole)

    def close(self, wait: bool = True) -> None:
        """End the transfer of batches; `wait` until its thread has ended, unless the devices are stuck."""
        if self._feed is not None:
            self._feed.close(wait and not self._stuck)
            self._feed = None

    def drop(self) -> None:
        """End the transfer of batches, and drop the comparison that is under way."""
        self.close()
        self._waiter.close()
        self._comparison = None

    def compare(self, agreement: Agreement, where: str, statistics: bool) -> None:
        """Check this comparison of the devices when the next batch completes."""
        self._comparison = Comparison(agreement, where, statistics)

    def leave(self, signal: int) -> int:
        """Send the replica's other processes the signal that this one ends the training, unless they know;
        return the signal that all agree on."""
        if self._others_know:
            return signal
        self._others_know = True
        return self._agree(signal)

    @contextmanager
    def shared_work(self, name: str) -> Iterator[None]:
        """Run a block in which the devices of all processes of the replica meet.

        Where it fails on one of several processes, raise Stranded: the devices of the others wait for it, and
        no signal reaches them.
        """
        try:
            yield
        except Exception as error:
            if self._agree is alone:
                raise
            self._others_know = True
            raise Stranded(f"{name} failed on one process of its replica: {error}") from error

    # -- one pass

    def run(self, one: Pass) -> None:
        """Dispatch the step of each batch of the open feed, and count the batches that complete.

        Raises CutShort where the training is to stop or the deadline is over; Diverged; Disagreement where a
        comparison of the devices fails; Stuck where a step does not end; FailedElsewhere; ValueError where
        the feed has no batch; and any error of the data or the devices.
        """
        feed, step = self._feed, 0
        one.times.configured = self._stuck_seconds
        if feed is None:
            raise RuntimeError(f"{one.name}: no batches are on their way")
        while not feed.ended:
            batch = self._next_batch(feed, one)
            if batch is not None:
                if len(one.pending) >= self._in_flight:
                    self._complete_oldest(one)
                one.before_step(step)

            # A process that is alone leaves at once; one of several waits for the next step's agreement.
            one.signal = max(one.signal, self._wanted_signal())
            if batch is not None or (one.signal != GO and self._agree is alone):
                self._agree_to_go_on(one)
            if batch is not None:
                with self.shared_work(f"step {step}"):
                    one.pending.append(one.dispatch(batch, step))
                step += 1
        self._finish(one)

    def _next_batch(self, feed: Feed, one: Pass) -> DeviceBatch | None:
        """Return the next batch if it is on the devices. Without it, wait for a step that runs; only without
        such a step the time counts as the data's."""
        batch = feed.take()
        if batch is None and not feed.ended and one.pending:
            self._complete_oldest(one)
        elif batch is None and not feed.ended:
            phase = self._timer.switch("data")
            batch = feed.take(POLL_SECONDS)
            self._timer.switch(phase)
        return batch

    def _wanted_signal(self) -> int:
        stop = self._poll()
        return LATE if self._clock() > self._deadline else STOP if stop else GO

    def _agree_to_go_on(self, one: Pass) -> None:
        """Agree with the replica's other processes; return where all go on."""
        agreed = self._agree(one.signal)
        # Steps under way when the training is to stop still count; the processes agree once more after them.
        self._others_know = agreed in (LATE, BROKEN)
        if agreed == BROKEN:
            raise FailedElsewhere("another process of the replica failed")
        while agreed == STOP and one.pending:
            self._complete_oldest(one)
        if agreed != GO:
            raise CutShort(agreed)

    def _finish(self, one: Pass) -> None:
        """Wait for the steps under way, and agree that the pass is whole."""
        one.all_dispatched()
        while one.pending:
            self._complete_oldest(one)
        if not one.sums.images:
            raise ValueError(f"{one.name}: there is no batch; is a batch larger than the data set?")
        one.all_complete()
        self._agree_to_go_on(one)
        one.sums.whole = True

    def _complete_oldest(self, one: Pass) -> None:
        """Wait for the oldest step under way and count its batch, unless the deadline is over."""
        metrics, sums = one.pending.popleft(), one.sums
        comparison, self._comparison = self._comparison, None
        agreement = None if comparison is None else comparison.agreement
        self._wait_for((metrics, agreement), one)
        # An error of a device while it runs is raised here.
        with self.shared_work("a step under way"):
            metrics, agreement = jax.device_get((metrics, agreement))
        if comparison is not None:
            check(agreement, comparison.where, self._sharding.mesh.size, comparison.statistics)

        now = self._clock()
        if now > self._deadline:
            raise CutShort(LATE)
        self.t_end = now
        loss = sums.add(metrics)
        if not math.isfinite(loss):
            raise Diverged(f"{one.name}: the loss is {loss} in step {sums.batches - 1}")

    def _wait_for(self, arrays: Any, one: Pass) -> None:
        """Wait for a step's results, and serve MPI meanwhile. Raises Stuck where they do not come."""
        begin, stopped_at = time.monotonic(), math.inf
        if not is_ready(arrays):
            self._waiter.begin(arrays)
            while not self._waiter.ready(POLL_SECONDS):
                if self._poll():
                    stopped_at = min(stopped_at, time.monotonic())
                now = time.monotonic()
                if now - begin > one.times.patience() or now - stopped_at > one.times.last_patience():
                    self._stuck = True
                    raise Stuck(f"{one.name}: step {one.sums.batches}", now - begin)

        # Without a step before it in this pass, it may have waited for data or for other work.
        now = time.monotonic()
        if not math.isnan(one.completed_at):
            one.times.add(now - one.completed_at)
        one.completed_at = now
