# SPDX-License-Identifier: Apache-2.0
"""Tell rank 0 what a replica does, for its view: at once after a change, else about once a second."""

from __future__ import annotations

import time

from aiperf_mpi.parallel.shared.context import Context
from aiperf_mpi.parallel.shared.messages import Kind
from aiperf_mpi.parallel.shared.status import NO_TRIAL, ReplicaStatus, packed, seconds_between
from aiperf_mpi.training.fit import Training


class StatusReporter:
    """The messages of a replica on what it does; only its first trainer sends them.

    A message that the network does not take at once is not sent; a later one replaces it.

    Attributes:
        trial_id, epochs_max: the trial that is prepared or trained, and its most epochs.
        training: the training that runs; None before its first step and after its last.
    """

    def __init__(self, context: Context, sends: bool) -> None:
        self.trial_id, self.epochs_max = NO_TRIAL, 0
        self.training: Training | None = None
        self._context, self._sends = context, sends
        self._sent: tuple[int, str, int] | None = None
        self._seconds = seconds_between(context.ranks.n_replicas)
        self._send_at = 0.0

    def begin(self, trial_id: int, epochs_max: int = 0) -> None:
        """Take the trial that is prepared and then trained from now on."""
        self.trial_id, self.epochs_max = trial_id, epochs_max

    def end(self) -> None:
        """Forget the trial, which has ended."""
        self.trial_id, self.epochs_max, self.training = NO_TRIAL, 0, None

    def report(self, phase: str) -> None:
        """Send what the replica does in `phase`, if that has changed or the last message is old."""
        if not self._sends:
            return
        training = self.training
        epoch = 0 if training is None else training.epoch
        change, now = (self.trial_id, phase, epoch), time.monotonic()
        if change == self._sent and now < self._send_at:
            return
        status = ReplicaStatus(
            self._context.ranks.replica, self.trial_id, phase, epoch, self.epochs_max, t=self._context.now()
        )
        if training is not None:
            train, val = training.sums
            loss = val.mean_loss if val.batches else train.mean_loss
            status = status._replace(train_samples=train.images, val_samples=val.images, loss=loss)
        if self._context.windows.messages.offer(Kind.STATUS, packed(status)):
            self._sent, self._send_at = change, now + self._seconds
