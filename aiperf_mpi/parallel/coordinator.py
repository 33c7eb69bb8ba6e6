# SPDX-License-Identifier: Apache-2.0
"""Rank 0: hosts the windows, keeps the time, hands all rows and records to the writer, and trains nothing.

It returns to MPI every millisecond and runs no long Python, as other ranks' one-sided operations may wait for it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from aiperf_mpi.parallel.context import Context
from aiperf_mpi.parallel.drain import Drain
from aiperf_mpi.parallel.messages import Kind, Message, Reason
from aiperf_mpi.results.client import WriterClient
from aiperf_mpi.results.rows import EPOCH_ROW, FAILED, FINAL_ROW, REJECTED, STATUS, TRIAL_ROW, UNFINISHED
from aiperf_mpi.search.architecture import Architecture
from aiperf_mpi.search.record import OUTCOME, PROPOSED, Candidate
from aiperf_mpi.system.view import View, ViewSnapshot

#: Seconds of sleep in each turn of the loop.
TURN_SECONDS = 0.001

#: Seconds between two looks for new records, and for slots whose writers died.
RECORD_SECONDS, LEASE_LOOK_SECONDS = 0.05, 5.0

#: Seconds that ranks have for their last rows, the validation of the best model among them, before the job is ended.
FAREWELL_SECONDS = 3600.0

#: Candidates rejected or failed, with no trial that ended well between them, which show a fault of the program or the
#: machine and not of a candidate: at least so many, and so many for each replica, as thousands of replicas may have
#: some each before the first trial ends.
LOST_IN_A_ROW, LOST_BY_REPLICA = 64, 4

#: Phases of the run that the view shows.
TRAINING, ENDING = "training", "ending"

#: Lines about candidates that the live view may show.
_SHOWN = 8


class RanksMissing(RuntimeError):
    """Ranks that have not said farewell long after the run's end; the message names them."""


@dataclass(frozen=True)
class End:
    """How the core time ended: `name` as in the result (time_limit or drained), its length in s, and why."""

    name: str
    core_seconds: float
    cause: str


@dataclass
class Progress:
    """What rank 0 knows of the run, for the view and for the end; the score is the judge's alone."""

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
    farewells: set[int] = field(default_factory=set)
    over: set[int] = field(default_factory=set)
    read: int = 0

    def record(self, slot: int, record: np.void) -> None:
        """A record of the history: keep the operations per image of a proposed trial, and whose it is."""
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
        """A trial is over, which its row may say before its proposal is read."""
        self.proposed.pop(trial_id, None)
        if trial_id >= self.read:
            self.over.add(trial_id)

    @property
    def busy(self) -> int:
        """Replicas that have a candidate to compile, train or validate: they take it as soon as it is there."""
        return len(set(self.proposed.values()))

    def epoch(self, row: np.void) -> None:
        """An epoch's row: add its operations."""
        trial_id = int(row["trial_id"])
        train_ops, val_ops = self.operations.get(trial_id, (0, 0))
        done = train_ops * int(row["train_samples"]) + val_ops * int(row["val_samples"])
        self.credited[trial_id] = self.credited.get(trial_id, 0) + done
        self.total += done
        self.last_t = max(self.last_t, float(row["t_end"]))
        if row["val_error"] < self.best_error:
            self.best_error = float(row["val_error"])

    def trial(self, row: np.void) -> str:
        """A trial's row: count how it ended; returns a line about it."""
        trial_id, status = int(row["trial_id"]), int(row["status"])
        self.leave(trial_id)
        self.last_t = max(self.last_t, float(row["t_end"]))
        work = self.credited.pop(trial_id, 0)
        self.ended += status not in (REJECTED, UNFINISHED)
        cause = row["cause"].decode(errors="replace")
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
        """Why no further candidate is worth its time, "" while there is hope: a night of failures has no score."""
        if self.lost < max(LOST_IN_A_ROW, LOST_BY_REPLICA * self.replicas):
            return ""
        return f"{self.lost} candidates in a row were rejected or failed, at last: {self.last_cause}"

    def snapshot(self, elapsed: float, time_limit: float, phase: str) -> ViewSnapshot:
        """The state that a person sees."""
        best = self.best_error if math.isfinite(self.best_error) else None
        # What waits in the queues at the end is never taken.
        busy = 0 if phase == ENDING else self.busy
        return ViewSnapshot(
            elapsed, time_limit, self.replicas, busy, self.ended, self.failed, best,
            self.total / elapsed if elapsed > 0 else 0.0, tuple(self.lines), phase,
        )  # fmt: skip


def commit_initial(context: Context) -> None:
    """Claim and commit trial 0, the initial architecture for replica 0, before any search."""
    config = context.config
    candidate = Candidate.new(
        Architecture(config.base), (), parent_id=-1, replica=0, generator=0, round=1,
        batch_per_device=config.train.batch_per_device, devices=context.n_devices, seed=config.run.seed,
    )  # fmt: skip
    context.windows.claims.claim(candidate.key)
    slot = context.windows.history.append(candidate.to_record(0.0))
    if slot != 0:
        raise RuntimeError(f"the initial architecture got slot {slot} of the history, but it must be trial 0")


def coordinate(context: Context, writer: WriterClient, drain: Drain, view: View) -> End:
    """Serve the run until every other rank has said farewell; returns how its core time ended."""
    windows, ranks, timer = context.windows, context.ranks, context.timer
    progress = Progress(ranks.n_replicas)
    records = 0
    stopped_at, reason, cause = math.inf, Reason.LIMIT, ""
    next_records = next_lease = next_view = 0.0

    while len(progress.farewells) < ranks.size - 1:
        now = context.clock.now()
        with timer("communicate"):
            messages = windows.messages.poll()
            if now >= next_records:
                records = take_records(context, writer, progress, records)
                next_records = now + RECORD_SECONDS
            if now >= next_lease:
                windows.history.abandon_stale()
                next_lease = now + LEASE_LOOK_SECONDS
        with timer("io"):
            for message in messages:
                take_row(message, writer, progress, view)
            writer.pump()
            if now >= next_view:
                phase = TRAINING if now < stopped_at else ENDING
                view.update(progress.snapshot(min(now, context.limit), context.limit, phase))
                next_view = now + 0.1

        # The first reason to end counts; a drain that comes behind the time limit changes nothing any more.
        if stopped_at == math.inf:
            reason, cause = why_end(context, writer, drain, progress)
            if cause or now >= context.limit:
                stopped_at = min(now, context.limit)
                windows.messages.stop(reason, stopped_at)
                view.log(cause or "the time limit is reached")
        elif now - stopped_at > FAREWELL_SECONDS:
            missing = sorted(set(range(1, ranks.size)) - progress.farewells)
            raise RanksMissing(f"ranks {missing[:16]} have not ended {FAREWELL_SECONDS:g} s after the run's end")
        context.pause(TURN_SECONDS)

    # Slots of writers that never committed end with the run; what came last is taken over.
    windows.history.abandon_stale(0)
    take_records(context, writer, progress, records)
    if reason is Reason.LIMIT:
        return End("time_limit", context.limit, "")
    return End("drained", min(max(stopped_at, progress.last_t), context.limit), cause)


def why_end(context: Context, writer: WriterClient, drain: Drain, progress: Progress) -> tuple[Reason, str]:
    """The reason to end the run now and its cause in words; no cause where only the time limit will end it."""
    errors = writer.status().errors
    if drain.signal:
        return Reason.DRAIN, f"signal {drain.signal} asked the run to drain"
    if errors:
        return Reason.DRAIN, errors[0]
    if context.windows.history.reserved >= room(context):
        return Reason.FULL, "the history is full; raise parallel.history_capacity"
    if cause := progress.hopeless():
        return Reason.DRAIN, cause
    return Reason.LIMIT, ""


def room(context: Context) -> int:
    """Slots of the history after which the run drains: what is left takes the outcomes of those that still train."""
    capacity, depth = context.windows.history.capacity, context.config.search.queue_depth
    return capacity - min(2 * context.ranks.n_replicas * (depth + 2), capacity // 4)


def take_records(context: Context, writer: WriterClient, progress: Progress, first: int) -> int:
    """Hand new records of the history to the writer; returns the slot behind the last one."""
    history = context.windows.history
    for slot, record in history.committed_since(first):
        if record is not None:
            writer.send_record(slot, record.tobytes())
            progress.record(slot, record)
        first = slot + 1
    return first


def take_row(message: Message, writer: WriterClient, progress: Progress, view: View) -> None:
    """Hand a row to the writer, and note what the view and the end need of it."""
    match message.kind:
        case Kind.EPOCH:
            writer.send_epoch(message.data)
            progress.epoch(np.frombuffer(message.data, EPOCH_ROW)[0])
        case Kind.TRIAL:
            writer.send_trial(message.data)
            view.trial(progress.trial(np.frombuffer(message.data, TRIAL_ROW)[0]))
        case Kind.FINAL:
            row = np.frombuffer(message.data, FINAL_ROW)[0]
            writer.send_error_final(int(row["trial_id"]), float(row["error"]))
        case Kind.SAMPLE:
            writer.send_sample(message.data)
        case _:
            writer.send_rank(message.data)
            progress.farewells.add(message.source)


def utc_now() -> str:
    """The time of day in ISO 8601, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
