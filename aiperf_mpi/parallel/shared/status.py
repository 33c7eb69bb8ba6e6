# SPDX-License-Identifier: Apache-2.0
"""What a replica does at the moment, as its first trainer tells rank 0: for the view alone, never for the
result."""

from __future__ import annotations

import struct
from typing import NamedTuple

from aiperf_mpi.phases import PHASES

#: Seconds between two messages of a replica in the same phase and epoch, and the replicas whose messages rank
#: 0 takes in such a time: with more replicas each sends less often. A message takes rank 0 up to 60
#: microseconds on a loaded core (tests/programs/parallel/shared/status_storm.py): 500 take 3 % of a second.
SECONDS, REPLICAS = 1.0, 500

#: The trial of a replica that waits for a candidate, and of one that has retired.
NO_TRIAL, RETIRED = -1, -2

_FORM = struct.Struct("<iqBiiqqdd")


class ReplicaStatus(NamedTuple):
    """What a replica does.

    Attributes:
        replica: its index.
        trial_id: the trial that it prepares or trains; NO_TRIAL between two of them, RETIRED after all.
        phase: what its first trainer does or waits for, one of PHASES.
        epoch, epochs_max: the epoch that runs, counted from 0, and the most epochs of the trial.
        train_samples, val_samples: images of this epoch that are trained and validated.
        loss: mean loss over the images of the running pass; NaN without one.
        t: core seconds.
    """

    replica: int
    trial_id: int = NO_TRIAL
    phase: str = "idle"
    epoch: int = 0
    epochs_max: int = 0
    train_samples: int = 0
    val_samples: int = 0
    loss: float = float("nan")
    t: float = 0.0

    @property
    def trains(self) -> bool:
        """Whether the replica trains or validates an epoch."""
        return self.phase in ("train", "validate")

    @property
    def change(self) -> tuple[int, str, int]:
        """What a person sees change: the trial, the phase, the epoch."""
        return self.trial_id, self.phase, self.epoch


def packed(status: ReplicaStatus) -> bytes:
    """Return a status as the bytes of its message. Raises ValueError for an unknown phase."""
    return _FORM.pack(*status._replace(phase=PHASES.index(status.phase)))  # type: ignore[arg-type]


def unpacked(data: bytes) -> ReplicaStatus:
    """Return the status of a message. Raises struct.error or IndexError for other bytes."""
    replica, trial_id, phase, *rest = _FORM.unpack(data)
    return ReplicaStatus(replica, trial_id, PHASES[phase], *rest)


def seconds_between(replicas: int) -> float:
    """Return the seconds between two messages of each of so many replicas, without a change."""
    return SECONDS * max(1.0, replicas / REPLICAS)
