# SPDX-License-Identifier: Apache-2.0
"""The candidate behind the one that trains, made ready meanwhile, so that the devices need not wait for it.

It is taken from its queue for that, so that no generator replaces it when it has become stale: what was made ready
would be lost. Its slot is free for another ticket at its turn, as if it had been taken only then.
"""

from __future__ import annotations

import time

import jax

from aiperf_mpi.parallel.candidates import Taken
from aiperf_mpi.parallel.preparation import Preparation
from aiperf_mpi.parallel.replica import Replica, refuse
from aiperf_mpi.search.history import HistoryFull


def compiles_ahead(setting: str, devices: tuple[jax.Device, ...]) -> bool:
    """Whether the next candidate is made ready while the present one trains: `parallel.compile_ahead`, where auto means
    that it is unless the cores that would do it are the accelerator."""
    return setting == "on" or (setting == "auto" and devices[0].platform != "cpu")


class Ahead:
    """What `replica` makes ready ahead, if `enabled`; to be advanced between its steps.

    Attributes:
        taken: the candidate that is made ready, None while there is none; it is the next one to be trained.
    """

    def __init__(self, replica: Replica, enabled: bool) -> None:
        self._replica, self._enabled = replica, enabled
        self.taken: Taken | None = None
        self._preparation: Preparation | None = None
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
        ahead, made, self.taken, self._preparation = self.taken, self._preparation, None, None
        if made is None or taken is not ahead:
            return Preparation(self._replica, taken.record)
        if made.failure is None:
            return made
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
        if self.taken is None:
            # A torn record is left to whoever takes it at its turn, and says so.
            seen = queue.peek()
            if seen is None or (taken := queue.take(seen.slot)) is None:
                return
            self.taken, self._preparation = taken, Preparation(self._replica, taken.record)
        taken, preparation = self.taken, self._preparation
        if preparation is None:
            return
        preparation.advance()

        # Rejected at once, so that its ticket is filled again before its turn comes.
        if preparation.wrong:
            self._drop()
            self.taken = None
            refuse(self._replica, taken, preparation.wrong)

    def _drop(self) -> None:
        if self._preparation is not None:
            self._preparation.drop()
        self._preparation = None
