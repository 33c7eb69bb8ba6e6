# SPDX-License-Identifier: Apache-2.0
"""The candidate behind the one that trains, made ready meanwhile, so that the devices need not wait for it.

It is taken from its queue for that, so that no generator replaces it when it has become stale: what was made
ready would be lost. Its slot is free for another ticket at its turn, as if it had been taken only then.
"""

from __future__ import annotations

import time

import jax

from aiperf_mpi.parallel.replica.agreements import PendingAgreement
from aiperf_mpi.parallel.shared.queue import Taken
from aiperf_mpi.parallel.shared.slots import Slot
from aiperf_mpi.parallel.trainer.preparation import Preparation
from aiperf_mpi.parallel.trainer.state import TrainerState, refuse
from aiperf_mpi.training.lockstep import GO
from aiperf_mpi.trials.log import HistoryFull


def compiles_ahead(setting: str, devices: tuple[jax.Device, ...]) -> bool:
    """Whether the next candidate is made ready while the present one trains: `parallel.compile_ahead`, where
    auto means that it is unless the cores that would do it are the accelerator."""
    return setting == "on" or (setting == "auto" and devices[0].platform != "cpu")


class Lookahead:
    """The next candidate of `replica` on its way to its turn: while the one before trains, if `enabled`, by
    `advance` between the steps, and at its turn by `next`."""

    def __init__(self, replica: TrainerState, enabled: bool) -> None:
        self._replica, self._enabled = replica, enabled
        self._preparation: Preparation | None = None
        self._taken: Taken | None = None
        self._asked: PendingAgreement | None = None
        self._look_at = 0.0

    @property
    def phase(self) -> str:
        """What a main thread that waits for `next` waits for."""
        return "idle" if self._preparation is None else self._preparation.phase

    def advance(self) -> None:
        """Go on with the next candidate while the present one trains, with its last part at the time that it
        takes to look at the queue."""
        now = time.monotonic()
        if not self._enabled or not self._replica.training or now < self._look_at:
            return
        self._look_at = now + self._replica.context.config.parallel.poll_seconds
        try:
            self._advance(beside=True)
        except HistoryFull:
            # Rank 0 sees the same and drains the run: nothing is made ready any more.
            self._enabled = False

    def next(self) -> Preparation | None:
        """The preparation of the next candidate, whose turn it is, as soon as nothing can reject it any more:
        on all trainers of the replica the same one. Raises HistoryFull where a rejection cannot be
        recorded."""
        self._advance(beside=False)
        preparation = self._preparation
        if preparation is None or not preparation.checked:
            return None
        self._preparation = None
        # Its trainer goes on with it, and trains only when it is done.
        self._replica.preparing = False
        return preparation

    def close(self) -> None:
        """Drop what was made ready; nothing is made ready any more."""
        self._enabled = False
        if self._preparation is not None:
            self._preparation.drop()
        self._preparation = None
        self._replica.preparing = False

    def _advance(self, beside: bool) -> None:
        if self._preparation is None and (taken := self._find()) is not None:
            self._preparation = Preparation(self._replica, taken)
        preparation = self._preparation
        if preparation is None:
            return
        preparation.beside = beside
        preparation.advance()
        self._replica.preparing = not preparation.done

        # Rejected at once, so that its ticket is filled again before its turn comes.
        if preparation.wrong:
            preparation.drop()
            self._preparation = None
            refuse(self._replica, preparation.taken, preparation.wrong)

    def _find(self) -> Taken | None:
        """The next candidate: the first trainer takes it and tells the others, all of which have heard of it
        then."""
        queue, agreements = self._replica.queue, self._replica.agreements
        if self._asked is None:
            if queue is not None:
                self._taken = queue.take()
                if self._taken is None:
                    return None
            self._asked = agreements.post(GO, None if self._taken is None else self._taken.record)
        if not self._asked.done():
            return None
        taken = self._taken or Taken(Slot(0, 0), self._asked.record)
        self._taken = self._asked = None
        return taken
