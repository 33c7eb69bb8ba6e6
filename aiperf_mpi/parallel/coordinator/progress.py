# SPDX-License-Identifier: Apache-2.0
"""The progress of a run, which rank 0 derives from rows and records."""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

from aiperf_mpi.parallel.coordinator.rates import PresentRate, ReplicaRate
from aiperf_mpi.parallel.coordinator.view import MOST_LINES, SLOWEST, ReplicaLine, ViewSnapshot
from aiperf_mpi.parallel.shared.status import RETIRED, ReplicaStatus
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
        credited, total: operations of each trial that trains, and of all, by the rows of their epochs.
        running, under_way: operations by steps of the epoch that each trial runs, and of all of them. They
            are shown, and become credit only by the epoch's row.
        lost_ops: operations of trials that failed.
        statuses, rates: what each replica does, and how fast.
        present: the rate of the last seconds.
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
    running: dict[int, int] = field(default_factory=dict)
    under_way: int = 0
    lost_ops: int = 0
    epochs: dict[int, int] = field(default_factory=dict)
    statuses: dict[int, ReplicaStatus] = field(default_factory=dict)
    rates: dict[int, ReplicaRate] = field(default_factory=dict)
    present: PresentRate = field(default_factory=PresentRate)
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

    def status(self, status: ReplicaStatus) -> None:
        """Take what a replica does: count the steps of the epoch that it runs."""
        self.statuses[status.replica] = status
        rate = self.rates.setdefault(status.replica, ReplicaRate())
        if not status.trains:
            rate.stop()
        elif status.epoch >= self.epochs.get(status.trial_id, 0):
            done = self._operations(status.trial_id, status.train_samples, status.val_samples)
            self._run(status.trial_id, done)
            rate.step((status.trial_id, status.epoch), status.t, done)

    def _operations(self, trial_id: int, train_samples: int, val_samples: int) -> int:
        train_ops, val_ops = self.operations.get(trial_id, (0, 0))
        return train_ops * train_samples + val_ops * val_samples

    def _run(self, trial_id: int, done: int) -> None:
        """Set the operations of the epoch that a trial runs; 0 after its end."""
        self.under_way += done - self.running.pop(trial_id, 0)
        if done:
            self.running[trial_id] = done

    def epoch(self, row: np.void) -> None:
        """Take an epoch's row: add its operations, which take the place of those by steps."""
        trial_id = int(row["trial_id"])
        done = self._operations(trial_id, int(row["train_samples"]), int(row["val_samples"]))
        self._run(trial_id, 0)
        self.epochs[trial_id] = int(row["epoch"]) + 1
        replica = self.proposed.get(trial_id, -1)
        if replica in self.statuses and self.statuses[replica].trial_id == trial_id:
            self.rates[replica].whole(done, float(row["t_end"]) - float(row["t_start"]))
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
        work, begun = self.credited.pop(trial_id, 0), self.running.get(trial_id, 0)
        self._run(trial_id, 0)
        self.epochs.pop(trial_id, None)
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
            self.lost_ops += work + begun
        if math.isfinite(row["best_error"]):
            line += f", best error {row['best_error']:.4f} in {row['epochs']} epochs"
        line += f": {cause}" if cause else ""
        self.lines.append(line)
        return line

    def hopeless(self) -> str:
        """Return why the run should stop: too many failures in a row, or no replica trains any more; "" while
        it may go on."""
        retired = sum(status.trial_id == RETIRED for status in self.statuses.values())
        if retired == self.replicas:
            return f"all replicas have retired, at last: {self.last_cause}"
        if self.lost < max(LOST_IN_A_ROW, LOST_BY_REPLICA * self.replicas):
            return ""
        return f"{self.lost} candidates in a row were rejected or failed, at last: {self.last_cause}"

    def snapshot(self, elapsed: float, time_limit: float, phase: str) -> ViewSnapshot:
        """Return the state that the view shows.

        `elapsed` and `time_limit` are in s of the core phase. In phase "ending" no replica is busy.
        """
        best = self.best_error if math.isfinite(self.best_error) else None
        # After the end no replica takes a candidate that waits in its queue.
        ending = phase == ENDING
        shown = self.total + self.under_way
        self.present.add(elapsed, shown + self.lost_ops)
        return ViewSnapshot(
            elapsed,
            time_limit,
            self.replicas,
            0 if ending else self.busy,
            self.ended,
            self.failed,
            best,
            shown / elapsed if elapsed > 0 else 0.0,
            tuple(self.lines),
            phase,
            under_way=self.under_way / shown if shown else 0.0,
            present=None if ending else self.present.value,
            phases=tuple(Counter(status.phase for status in self.statuses.values()).most_common()),
            lines=self._replica_lines(),
        )

    def _replica_lines(self) -> tuple[ReplicaLine, ...]:
        """Return what each replica does; of more than MOST_LINES replicas only the slowest that train."""
        if self.replicas <= MOST_LINES:
            return tuple(self._line(replica) for replica in sorted(self.statuses))
        trains = ((self.rates[r].value, r) for r, status in self.statuses.items() if status.trains)
        slowest = heapq.nsmallest(SLOWEST, ((rate, r) for rate, r in trains if rate is not None))
        return tuple(self._line(replica) for _, replica in slowest)

    def _line(self, replica: int) -> ReplicaLine:
        return ReplicaLine(self.statuses[replica], self.rates[replica].value)
