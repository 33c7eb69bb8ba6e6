# SPDX-License-Identifier: Apache-2.0
"""The end of the ranks as rank 0 sees it: who has sent its last row, and what is done without the others.

A rank or a device that never answers again must not withhold the result of all the others. Rank 0 waits for a
stated time, and then writes and judges the result without the ranks that are missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from aiperf_mpi.parallel.launch.placement import Place
from aiperf_mpi.parallel.shared.messages import Reason
from aiperf_mpi.parallel.shared.status import ReplicaStatus
from aiperf_mpi.planning.walltime import DEFAULT_RESERVE
from aiperf_mpi.results.file.rows import FAILED

#: Seconds of the reserve that are kept for writing and judging the result.
WRITE_SECONDS = 30.0

#: Seconds that rank 0 waits for the last rows: after the time limit, with the last validation among them, and
#: after a drain, which must end soon.
LIMIT_SECONDS, DRAIN_SECONDS = DEFAULT_RESERVE - WRITE_SECONDS, 40.0

#: Seconds that a compilation and the last steps may take after the time limit, beside the last validation.
_COMPILE_SECONDS = DEFAULT_RESERVE / 2

#: Seconds that the ranks which wait for a missing one have to send their last rows.
ROW_SECONDS = 5.0

#: Most ranks that a message names, and what to do about them.
_NAMED = 8
REMEDY = (
    "the result is written without them; look whether that process is stopped, its device hangs (dmesg, "
    "nvidia-smi), or its host is down"
)


@dataclass
class Running:
    """A trial that trains: the row with which it began, and its epochs' rows."""

    begun: np.void
    epochs: list[np.void] = field(default_factory=list)


@dataclass
class Farewells:
    """What rank 0 knows of the end of the other ranks.

    Attributes:
        places: of all ranks.
        finished, last: ranks that have ended their work, and those that have sent their last row.
        alone: whether rank 0 goes on without the ranks that are missing.
        in_flight: most steps that a trainer has under way when the run ends.
        job_end: core seconds at which the batch system ends the job.
        longest, step: seconds of the longest epoch so far, than which a validation is shorter, and of the
            longest step: means over epochs, and what replicas tell of the epochs that run.
        running: the trials that have begun and not ended.
        steps: of each replica that trains, the epoch that runs, its images so far, and since when.
    """

    places: tuple[Place, ...]
    in_flight: int = 1
    job_end: float = math.inf
    finished: set[int] = field(default_factory=set)
    last: set[int] = field(default_factory=set)
    alone: bool = False
    longest: float = 0.0
    step: float = 0.0
    running: dict[int, Running] = field(default_factory=dict)
    steps: dict[int, tuple[tuple[int, int], int, float]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether all that are waited for have sent their last row."""
        waited = self.finished if self.alone else range(1, len(self.places))
        return len(self.last) >= len(waited)

    @property
    def missing(self) -> tuple[int, ...]:
        """The ranks that have not sent their last row."""
        return tuple(sorted(set(range(1, len(self.places))) - self.last))

    @property
    def awaited(self) -> tuple[int, ...]:
        """Those of the missing ranks that have not ended their work, for which the others wait."""
        return tuple(rank for rank in self.missing if rank not in self.finished) or self.missing

    def epoch(self, row: np.void) -> None:
        """Take an epoch's row."""
        if (trial := self.running.get(int(row["trial_id"]))) is not None:
            trial.epochs.append(row)
        seconds = float(row["t_end"] - row["t_start"])
        if math.isfinite(seconds):
            self.longest = max(self.longest, seconds)
            self.step = max(self.step, seconds / steps if (steps := int(row["steps"])) else 0.0)

    def status(self, status: ReplicaStatus) -> None:
        """Take what a replica does: its step lasts from one change of its images to the next."""
        if not status.trains:
            self.steps.pop(status.replica, None)
            return
        epoch, images = (status.trial_id, status.epoch), status.train_samples + status.val_samples
        before = self.steps.get(status.replica)
        if before is None or before[0] != epoch:
            self.steps[status.replica] = epoch, images, status.t
        elif before[1] != images:
            self.step = max(self.step, status.t - before[2])
            self.steps[status.replica] = epoch, images, status.t

    def trial(self, row: np.void) -> None:
        """Take a trial's row: the first one begins it, the last one ends it."""
        if math.isfinite(row["t_end"]):
            self.running.pop(int(row["trial_id"]), None)
        else:
            self.running[int(row["trial_id"])] = Running(row)

    def farewell(self, rank: int, row: bytes) -> None:
        """Take a message of a rank that has ended its work: its last row, or "" before that."""
        self.finished.add(rank)
        if row:
            self.last.add(rank)

    def patience(self, reason: Reason, stopped_at: float = 0.0) -> float:
        """Return the seconds that rank 0 waits for the last rows after the run's end, at `stopped_at`.

        A trainer first waits for the steps under way and the one that it begins. The last validation of a
        large set may take longer than the reserve, but not longer than an epoch. The end of the job leaves
        time to write the result.
        """
        steps = (self.in_flight + 1) * self.step
        seconds = DRAIN_SECONDS + steps
        if reason is Reason.LIMIT:
            seconds = max(LIMIT_SECONDS, _COMPILE_SECONDS + self.longest + steps)
        return min(seconds, max(0.0, self.job_end - stopped_at - WRITE_SECONDS - ROW_SECONDS))


def describe_missing(missing: tuple[int, ...], places: tuple[Place, ...]) -> str:
    """Return a text that names the missing ranks, their roles and hosts."""
    named = [f"rank {rank} ({places[rank].role}) on {places[rank].host}" for rank in missing[:_NAMED]]
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    return f"no answer of {', '.join(named)}{more}"


def stuck_trials(farewells: Farewells, replicas: Mapping[int, int], now: float) -> list[bytes]:
    """Return the last rows of the trials that never ended, as their trainers are missing; they earn nothing.

    Arguments:
        farewells: with the missing ranks, and the trials that train.
        replicas: of each trial that has not ended.
        now: core seconds at which the trials have failed.
    """
    missing = {farewells.places[rank].replica: rank for rank in reversed(farewells.awaited)}
    return [
        _stuck(trial, farewells.places[missing[replica]], now)
        for trial_id, trial in farewells.running.items()
        if (replica := replicas.get(trial_id, -1)) in missing and replica >= 0
    ]


def _stuck(trial: Running, place: Place, now: float) -> bytes:
    """Return the last row of a trial whose trainer is missing (TRIAL_ROW)."""
    row, epochs = np.array([trial.begun]), trial.epochs
    errors = [float(epoch["val_error"]) for epoch in epochs if math.isfinite(epoch["val_error"])]
    row["status"], row["epochs"], row["t_end"] = FAILED, len(epochs), now
    row["best_error"] = min(errors, default=math.nan)
    for name in ("train_samples", "val_samples"):
        row[name] = sum(int(epoch[name]) for epoch in epochs)
    row["cause"] = f"stuck: rank {place.rank} on {place.host} does not answer".encode()
    return row.tobytes()
