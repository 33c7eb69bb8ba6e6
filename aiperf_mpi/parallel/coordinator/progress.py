# SPDX-License-Identifier: Apache-2.0
"""The progress of a run, which rank 0 derives from rows and records."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from aiperf_mpi.parallel.coordinator.view import ViewSnapshot
from aiperf_mpi.printable import plain
from aiperf_mpi.results.file.rows import FAILED, REJECTED, STATUS, UNFINISHED
from aiperf_mpi.trials.record import OUTCOME, PROPOSED

#: Stop the run after this many consecutive rejected or failed candidates, and at least this many per replica:
#: the program or the machine is broken, not the candidates. Scaled by replicas, since thousands may each fail
#: a few before the first success.
LOST_IN_A_ROW, LOST_BY_REPLICA = 64, 4


#: Phases of the run that the view shows.
TRAINING, ENDING = "training", "ending"


#: Lines about candidates that are kept for the live view.
_SHOWN = 8


@dataclass
class Progress:
    """The state of the run, for the view and for the decision to end it; only the judge computes the score.

    Attributes:
        operations: operations per image (training, validation) of each trial.
        credited, total: operations of each trial that trains, and of all.
        ended, failed: trials that ended, and those of them that failed.
        proposed: the replica of each trial that is proposed and not over.
        lost, last_cause: candidates rejected or failed since the last success, and the last one's cause.
        last_t: core seconds of the last record or row.
        over, read: trials that were over before their proposal was read, and the slots read so far.
    """

    replicas: int
    operations: dict[int, tuple[int, int]] = field(default_factory=dict)
    credited: dict[int, int] = field(default_factory=dict)
    total: int = 0
    ended: int = 0
    failed: int = 0
    proposed: dict[int, int] = field(default_factory=dict)
    best_error: float = math.inf
    lost: int = 0
    last_cause: str = ""
    last_t: float = 0.0
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_SHOWN))
    over: set[int] = field(default_factory=set)
    read: int = 0

    def record(self, slot: int, record: np.void) -> None:
        """Take a record of the history: keep a proposed trial's operations per image and its replica."""
        self.last_t = max(self.last_t, float(record["t"]))
        if record["kind"] == PROPOSED:
            self.operations[slot] = int(record["train_ops"]), int(record["val_ops"])
            if slot in self.over:
                self.over.remove(slot)
            else:
                self.proposed[slot] = int(record["replica"])
        elif record["kind"] == OUTCOME:
            self.leave(int(record["trial"]))
        self.read = slot + 1

    def leave(self, trial_id: int) -> None:
        """Take the end of a trial. Its row may arrive before its proposal is read."""
        self.proposed.pop(trial_id, None)
        if trial_id >= self.read:
            self.over.add(trial_id)

    @property
    def busy(self) -> int:
        """The number of replicas that have a candidate to compile, train or validate."""
        return len(set(self.proposed.values()))

    def epoch(self, row: np.void) -> None:
        """Take an epoch's row: add its operations."""
        trial_id = int(row["trial_id"])
        train_ops, val_ops = self.operations.get(trial_id, (0, 0))
        done = train_ops * int(row["train_samples"]) + val_ops * int(row["val_samples"])
        self.credited[trial_id] = self.credited.get(trial_id, 0) + done
        self.total += done
        self.last_t = max(self.last_t, float(row["t_end"]))
        if row["val_error"] < self.best_error:
            self.best_error = float(row["val_error"])

    def trial(self, row: np.void) -> str:
        """Take a trial's row: count how it ended, and return a line about it."""
        trial_id, status = int(row["trial_id"]), int(row["status"])
        self.leave(trial_id)
        self.last_t = max(self.last_t, float(row["t_end"]))
        work = self.credited.pop(trial_id, 0)
        self.ended += status not in (REJECTED, UNFINISHED)
        cause = plain(row["cause"].decode(errors="replace"))
        if status in (REJECTED, FAILED):
            self.lost, self.last_cause = self.lost + 1, cause
        elif status != UNFINISHED:
            self.lost = 0
        line = f"trial {trial_id} {STATUS[status]}"
        if status == FAILED:
            self.failed += 1
            self.total -= work
        if math.isfinite(row["best_error"]):
            line += f", best error {row['best_error']:.4f} in {row['epochs']} epochs"
        line += f": {cause}" if cause else ""
        self.lines.append(line)
        return line

    def hopeless(self) -> str:
        """Return why the run should stop after too many failures in a row; "" while it may go on."""
        if self.lost < max(LOST_IN_A_ROW, LOST_BY_REPLICA * self.replicas):
            return ""
        return f"{self.lost} candidates in a row were rejected or failed, at last: {self.last_cause}"

    def snapshot(self, elapsed: float, time_limit: float, phase: str) -> ViewSnapshot:
        """Return the state that the view shows.

        `elapsed` and `time_limit` are in s of the core phase. In phase "ending" no replica is busy.
        """
        best = self.best_error if math.isfinite(self.best_error) else None
        # After the end no replica takes a candidate that waits in its queue.
        busy = 0 if phase == ENDING else self.busy
        return ViewSnapshot(
            elapsed,
            time_limit,
            self.replicas,
            busy,
            self.ended,
            self.failed,
            best,
            self.total / elapsed if elapsed > 0 else 0.0,
            tuple(self.lines),
            phase,
        )
