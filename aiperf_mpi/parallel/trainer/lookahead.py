# SPDX-License-Identifier: Apache-2.0
"""Prepare the next candidate while the present one trains, so that the devices need not wait for it.

The candidate is taken from its queue first, so that no generator replaces it when it has become stale and the
preparation is not lost. Its slot becomes free at the candidate's turn, as if it had been taken only then.
"""

from __future__ import annotations

import time

import jax

from aiperf_mpi.parallel.launch.job import write_error
from aiperf_mpi.parallel.replica.agreements import PendingAgreement
from aiperf_mpi.parallel.shared.queue import CandidateQueue, Taken
from aiperf_mpi.parallel.shared.slots import Slot
from aiperf_mpi.parallel.shared.status import NO_TRIAL
from aiperf_mpi.parallel.trainer.preparation import Preparation
from aiperf_mpi.parallel.trainer.state import TrainerState, refuse
from aiperf_mpi.training.lockstep import GO
from aiperf_mpi.trials.log import HistoryFull
from aiperf_mpi.trials.record import RecordError


def compiles_ahead(setting: str, devices: tuple[jax.Device, ...]) -> bool:
    """Return whether the next candidate is prepared while the present one trains.

    `setting` is `parallel.compile_ahead`: "auto" means on, except where the
    CPU that would compile also trains.
    """
    return setting == "on" or (setting == "auto" and devices[0].platform != "cpu")


class Lookahead:
    """Prepare the next candidate of a replica: by `advance` between the steps of the present one, if
    `enabled`, and by `next` at its turn."""

    def __init__(self, state: TrainerState, enabled: bool) -> None:
        self._state, self._enabled = state, enabled
        self._preparation: Preparation | None = None
        self._taken: Taken | None = None
        self._agreement: PendingAgreement | None = None
        self._advance_at = 0.0

    @property
    def phase(self) -> str:
        """The phase to book while the main thread waits for `next`."""
        return "idle" if self._preparation is None else self._preparation.phase

    @property
    def trial_id(self) -> int:
        """The trial of the candidate under preparation; NO_TRIAL without one."""
        return NO_TRIAL if self._preparation is None else int(self._preparation.taken.record["trial"])

    def advance(self) -> None:
        """Go on with the next candidate while the present one trains, once every `parallel.poll_seconds`."""
        now = time.monotonic()
        if not self._enabled or not self._state.training or now < self._advance_at:
            return
        self._advance_at = now + self._state.context.config.parallel.poll_seconds
        try:
            self._advance(during_trial=True)
        except HistoryFull:
            # Rank 0 sees the same and drains the run: no candidate is prepared any more.
            self._enabled = False

    def next(self) -> Preparation | None:
        """Return the preparation of the next candidate, whose turn it is, once nothing can reject it any
        more; None until then. All trainers of the replica get the same candidate. Raises HistoryFull where a
        rejection cannot be recorded."""
        self._advance(during_trial=False)
        preparation = self._preparation
        if preparation is None or not preparation.checked:
            return None
        self._preparation = None
        # From here on the trainer advances it, and trains only when it is done.
        self._state.preparing = False
        return preparation

    def close(self) -> None:
        """Drop the preparation under way, and begin no other."""
        self._enabled = False
        if self._preparation is not None:
            self._preparation.drop()
        self._preparation = None
        self._state.preparing = False

    def _advance(self, during_trial: bool) -> None:
        if self._preparation is None and (taken := self._find()) is not None:
            self._preparation = Preparation(self._state, taken)
        preparation = self._preparation
        if preparation is None:
            return
        preparation.during_trial = during_trial
        preparation.advance()
        self._state.preparing = not preparation.done

        # Reject it at once, so that its ticket is filled again before its turn comes.
        if preparation.problem:
            preparation.drop()
            self._preparation = None
            refuse(self._state, preparation.taken, preparation.problem)

    def _find(self) -> Taken | None:
        """Return the next candidate once all trainers of the replica have its record: the first trainer takes
        it from the queue and sends the record to the others."""
        queue, agreements = self._state.queue, self._state.agreements
        if self._agreement is None:
            if queue is not None:
                self._taken = self._take(queue)
                if self._taken is None:
                    return None
            self._agreement = agreements.post(GO, None if self._taken is None else self._taken.record)
        if not self._agreement.done():
            return None
        taken = self._taken or Taken(Slot(0, 0), self._agreement.record)
        self._taken = self._agreement = None
        return taken

    def _take(self, queue: CandidateQueue) -> Taken | None:
        """Take the next candidate; None without one, and where its record is damaged: another one then fills
        its ticket."""
        try:
            return queue.take()
        except RecordError as error:
            ranks = self._state.context.ranks
            write_error(
                f"aiperf_mpi: rank {ranks.rank} on {ranks.host}: a candidate of replica {ranks.replica} is "
                f"dropped: {error}\n"
            )
            return None
