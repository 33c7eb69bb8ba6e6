# SPDX-License-Identifier: Apache-2.0
"""Rank 0's loop: host the windows, keep the time, and send all rows and records to the writer.

Rank 0 trains nothing. It returns to MPI every millisecond and runs no long Python, as other ranks' one-sided
operations may wait for it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np

from aiperf_mpi.ending import Watch
from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.parallel.coordinator.farewells import (
    REMEDY,
    ROW_SECONDS,
    Farewells,
    describe_missing,
    stuck_trials,
)
from aiperf_mpi.parallel.coordinator.progress import ENDING, TRAINING, Progress
from aiperf_mpi.parallel.coordinator.view import View
from aiperf_mpi.parallel.shared.context import Context
from aiperf_mpi.parallel.shared.messages import Kind, Message, Reason, Stop
from aiperf_mpi.parallel.shared.status import REPLICAS, unpacked
from aiperf_mpi.results.file.rows import EPOCH_ROW, FINAL_ROW, TRIAL_ROW
from aiperf_mpi.results.output.client import WriterClient
from aiperf_mpi.trials.candidate import Candidate
from aiperf_mpi.trials.origin import Origin

#: Seconds of sleep in each turn of the loop.
TURN_SECONDS = 0.001

#: Seconds between two searches for new records, and for slots of dead writers.
RECORD_SECONDS, LEASE_LOOK_SECONDS = 0.05, 5.0

#: Seconds between two time marks in the journal: of a run that is killed, they prove the core time.
MARK_SECONDS = 10.0

#: Seconds between two states of the view; a state takes the longer, the more replicas there are.
VIEW_SECONDS = 0.1


@dataclass(frozen=True)
class End:
    """The end of the core time: its name in the result (time_limit or drained), length in s, and cause.

    `missing` are the ranks that have not answered after it.
    """

    name: str
    core_seconds: float
    cause: str
    missing: tuple[int, ...] = ()


def commit_initial(context: Context) -> None:
    """Claim trial 0, the initial architecture for replica 0, and commit its record, before any search."""
    config = context.config
    candidate = Candidate.new(
        Architecture(config.base),
        (),
        parent_id=-1,
        replica=0,
        generator=0,
        round=1,
        batch_per_device=config.train.batch_per_device,
        devices=context.n_devices,
        seed=config.run.seed,
        origin=Origin("initial", "default"),
    )
    context.windows.claims.claim(candidate.key)
    slot = context.windows.history.append(candidate.to_record(0.0))
    if slot != 0:
        raise RuntimeError(f"the initial architecture got slot {slot} of the history, but it must be trial 0")


def coordinate(
    context: Context,
    writer: WriterClient,
    drain: Watch,
    view: View,
    progress: Progress,
    job_end: float = math.inf,
) -> End:
    """Serve the run until every other rank has sent its last row, or is missing; return the core time's end.

    `progress` is that of the segments before this one, `job_end` the end of the job in core seconds.
    """
    windows, ranks, timer = context.windows, context.ranks, context.timer
    farewells = Farewells(ranks.places, context.config.train.in_flight_steps, job_end)
    records = context.resumed.slots
    stopped_at, reason, cause = math.inf, Reason.LIMIT, ""
    next_records = next_lease = next_view = next_mark = 0.0

    while not farewells.complete:
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
                take_row(message, writer, progress, farewells, view)
            next_mark = mark(writer, now, next_mark) if now < stopped_at else next_mark
            writer.pump()
            if now >= next_view:
                phase = TRAINING if now < stopped_at else ENDING
                view.update(progress.snapshot(min(now, context.limit), context.limit, phase))
                next_view = now + VIEW_SECONDS * max(1.0, ranks.n_replicas / REPLICAS)

        # The first reason to end counts: a drain after the time limit changes nothing.
        if stopped_at == math.inf:
            reason, cause = why_end(context, writer, drain, progress)
            if cause or now >= context.limit:
                stopped_at = min(now, context.limit)
                windows.messages.stop(reason, stopped_at)
                view.log(cause or "the time limit is reached")
        elif (over := now - stopped_at - farewells.patience(reason, stopped_at)) > 0:
            if not farewells.alone:
                waited = f"{now - stopped_at:.0f} s after the run's end"
                view.log(f"{waited}: {describe_missing(farewells.awaited, ranks.places)}; {REMEDY}")
                windows.messages.stop(Reason.ALONE, stopped_at)
                farewells.alone = True
            elif over > ROW_SECONDS:
                break
        context.pause(TURN_SECONDS)

    # Close the slots that their writers never committed, and send the last records.
    windows.history.abandon_stale(0)
    take_records(context, writer, progress, records)
    return end_of(context, writer, progress, farewells, Stop(reason, stopped_at), cause)


def end_of(
    context: Context, writer: WriterClient, progress: Progress, farewells: Farewells, stop: Stop, cause: str
) -> End:
    """Return the end of the core time, and send the last rows of trials whose ranks are missing."""
    reason, stopped_at = stop.reason, stop.t
    drained = min(max(stopped_at, progress.last_t), context.limit)
    end = End("time_limit", context.limit, "") if reason is Reason.LIMIT else End("drained", drained, cause)
    if not farewells.missing:
        return end
    for row in stuck_trials(farewells, progress.proposed, end.core_seconds):
        writer.send_trial(row)
    told = describe_missing(farewells.awaited, context.ranks.places)
    return replace(end, cause=f"{cause}; {told}" if cause else told, missing=farewells.missing)


def mark(writer: WriterClient, now: float, due: float) -> float:
    """Send a time mark if one is due; return when the next one is."""
    if now < due:
        return due
    writer.send_mark(now)
    return now + MARK_SECONDS


def why_end(context: Context, writer: WriterClient, drain: Watch, progress: Progress) -> tuple[Reason, str]:
    """Return the reason to end the run now, and its cause as a text; "" where the run goes on."""
    errors = writer.status().errors
    if drain.signal:
        return Reason.DRAIN, f"signal {drain.signal} asked the run to drain"
    if asked := context.windows.messages.asked:
        return Reason.DRAIN, f"signal {asked.signal} to rank {asked.rank} asked the run to drain"
    if errors:
        return Reason.DRAIN, errors[0]
    if context.windows.history.reserved >= drain_threshold(context):
        return Reason.FULL, "the history is full; raise parallel.history_capacity"
    if cause := progress.hopeless():
        return Reason.DRAIN, cause
    return Reason.LIMIT, ""


def drain_threshold(context: Context) -> int:
    """Return the number of used slots of the history at which the run drains.

    The slots that are left take the outcomes of the trials that still train.
    """
    capacity, depth = context.windows.history.capacity, context.config.search.queue_depth
    return capacity - min(2 * context.ranks.n_replicas * (depth + 2), capacity // 4)


def take_records(context: Context, writer: WriterClient, progress: Progress, first: int) -> int:
    """Send new records of the history to the writer; return the slot after the last one."""
    history = context.windows.history
    for slot, record in history.committed_since(first):
        if record is not None:
            writer.send_record(slot, record.tobytes())
            progress.record(slot, record)
        first = slot + 1
    return first


def take_row(
    message: Message, writer: WriterClient, progress: Progress, farewells: Farewells, view: View
) -> None:
    """Send a row to the writer, and update the progress, the farewells and the view from it."""
    match message.kind:
        case Kind.EPOCH:
            writer.send_epoch(message.data)
            row = np.frombuffer(message.data, EPOCH_ROW)[0]
            progress.epoch(row)
            farewells.epoch(row)
        case Kind.TRIAL:
            writer.send_trial(message.data)
            row = np.frombuffer(message.data, TRIAL_ROW)[0]
            farewells.trial(row)
            if math.isfinite(row["t_end"]):
                view.trial(progress.trial(row))
        case Kind.FINAL:
            row = np.frombuffer(message.data, FINAL_ROW)[0]
            writer.send_error_final(int(row["trial_id"]), float(row["error"]))
        case Kind.SAMPLE:
            writer.send_sample(message.data)
        case Kind.STATUS:
            status = unpacked(message.data)
            progress.status(status)
            farewells.status(status)
        case _:
            farewells.farewell(message.source, message.data)
            if message.data:
                writer.send_rank(message.data)


def utc_now() -> str:
    """Return the time of day in ISO 8601, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
