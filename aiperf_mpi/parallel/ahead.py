# SPDX-License-Identifier: Apache-2.0
"""The candidate behind the one that trains, made ready meanwhile, so that the devices need not wait for it.

It stays in the queue, READY, until its turn comes: tickets keep their order, and a generator may still replace it when
it has become stale; then what was made ready is dropped, and the replacement is made ready instead.
"""

from __future__ import annotations

import time

import jax

from aiperf_mpi.parallel.candidates import Slot, Taken
from aiperf_mpi.parallel.preparation import Preparation
from aiperf_mpi.parallel.replica import Replica, refuse
from aiperf_mpi.search.history import HistoryFull


def compiles_ahead(setting: str, devices: tuple[jax.Device, ...]) -> bool:
    """Whether the next candidate is made ready while the present one trains: `parallel.compile_ahead`, where auto means
    that it is unless the cores that would do it are the accelerator."""
    return setting == "on" or (setting == "auto" and devices[0].platform != "cpu")


class Ahead:
    """What `replica` makes ready ahead, if `enabled`; to be advanced between its steps."""

    def __init__(self, replica: Replica, enabled: bool) -> None:
        self._replica, self._enabled = replica, enabled
        self._preparation: Preparation | None = None
        self._slot: Slot | None = None
        self._look_at = 0.0

    def advance(self) -> None:
        """Go on with the next candidate while the present one trains, with its last part at the time that it takes to
        look at the queue."""
        now = time.monotonic()
        if not self._enabled or not self._replica.training or now < self._look_at:
            return
        self._look_at = now + self._replica.context.config.parallel.poll_seconds
        try:
            self._advance()
        except HistoryFull:
            # Rank 0 sees the same and drains the run: nothing is made ready any more.
            self.close()

    def of(self, taken: Taken) -> Preparation:
        """The preparation of the candidate whose turn has come: the one made ahead, or else one that begins now."""
        made, self._preparation = self._preparation, None
        if made is not None and made.trial_id == int(taken.record["trial"]) and made.failure is None:
            return made
        if made is not None:
            # What failed may have failed for the memory of the trial that ran then: alone it is tried again.
            made.drop()
        return Preparation(self._replica, taken.record)

    def close(self) -> None:
        """Drop what was made ready; nothing is made ready any more."""
        self._enabled = False
        self._drop()

    def _advance(self) -> None:
        queue = self._replica.queue
        if queue is None:
            return
        if self._slot is not None and not queue.still(self._slot):
            self._drop()
        if self._preparation is None:
            if (seen := queue.peek()) is None:
                return
            self._preparation, self._slot = Preparation(self._replica, seen.record), seen.slot
        preparation, slot = self._preparation, self._slot
        preparation.advance()

        # Rejected at once, so that its ticket is filled again before its turn comes.
        if preparation.wrong:
            self._drop()
            if slot is not None and (taken := queue.take(slot)) is not None:
                refuse(self._replica, taken, preparation.wrong)

    def _drop(self) -> None:
        if self._preparation is not None:
            self._preparation.drop()
        self._preparation = self._slot = None
