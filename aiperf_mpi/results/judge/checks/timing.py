# SPDX-License-Identifier: Apache-2.0
"""Checks of numbers and times: everything finite, in order, and accounted for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.evidence.reading import segments_of
from aiperf_mpi.results.evidence.replicas import compiles_ahead, first_trainers
from aiperf_mpi.results.evidence.segments import Part, parts, within
from aiperf_mpi.results.file.attributes import core_stop
from aiperf_mpi.results.file.rows import DROPPED, MESSAGE_KINDS, PHASES, REJECTED, ROW_MESSAGES, UNFINISHED
from aiperf_mpi.results.judge.checks.registry import check, rows_where, short

#: Phases must sum to a rank's wall time within this part of it (V13).
PHASE_SLACK = 0.02

#: Largest uncertainty in s of the difference between a rank's clock and rank 0's.
CLOCK_SKEW = 1.0

#: Times of one rank's clock, as rank 0 knows them, are compared with this slack in s.
CLOCK_SLACK = 0.01

#: Phases in which a trainer's epochs run: between two steps it may also take the next candidate (search).
OF_EPOCHS = ("train", "validate", "data", "io", "communicate", "search")

#: Longest time in s between the row of rank 0 and the end of the run as it takes it, which comes next.
LAST_SECONDS = 60.0


@check(
    "V04",
    "finite losses, errors and rates in every epoch that counts",
    why="Diverged training must not raise a score.",
)
def finite(e: Evidence) -> Iterator[str]:
    """No NaN or infinity in a column that must have a number."""
    trials, epochs = e.table("trials"), e.table("epochs")
    counted = e.counts_for_error
    for name in ("t_start", "t_end", "lr"):
        yield from rows_where("epochs", ~np.isfinite(epochs[name]), f"{name} is not finite")
    no_loss = counted & (epochs["steps"] > 0) & ~np.isfinite(epochs["train_loss"])
    yield from rows_where("epochs", no_loss, "train_loss is not finite, but the epoch counts")
    no_loss = counted & ~np.isnan(epochs["val_error"]) & ~np.isfinite(epochs["val_loss"])
    yield from rows_where("epochs", no_loss, "val_loss is not finite, but the error counts")

    # Times and learning rate of a trial are unknown only if it never started or never reported its end.
    for name in ("t_start", "t_end"):
        yield from rows_where("trials", e.trained & ~np.isfinite(trials[name]), f"{name} is not finite")
    reported = ~np.isin(e.status, (UNFINISHED, REJECTED, DROPPED))
    yield from rows_where("trials", reported & ~np.isfinite(trials["lr"]), "lr is not finite")
    for name in ("ops_f64", "ops_credited_f64"):
        yield from rows_where("trials", ~np.isfinite(trials[name]), f"{name} is not finite")


@check(
    "V12",
    f"times in order, within the core time and the run, to {CLOCK_SLACK} s; a trial's first step after its "
    "compilation, and that after the trial before it",
    why="Time that runs backwards or counts twice gives credit without work.",
)
def time_order(e: Evidence) -> Iterator[str]:
    """Times are in order in an epoch, in a trial, and on a replica, which trains one trial at a time."""
    trials, epochs = e.table("trials"), e.table("epochs")
    start, end = epochs["t_start"], epochs["t_end"]
    yield from rows_where("epochs", start < -CLOCK_SLACK, "starts before core start")
    yield from rows_where("epochs", end < start, "ends before it starts")
    yield from rows_where("epochs", (epochs["steps"] > 0) & (end == start), "has steps, but takes no time")
    late = (epochs["ops_credited"] > 0) & (end > e.attribute("core_seconds"))
    yield from rows_where("epochs", late, "ends after core stop, but is credited")
    follows = np.append(False, (np.diff(e.of_trial) == 0) & (start[1:] < end[:-1] - CLOCK_SLACK))[
        : len(start)
    ]
    yield from rows_where("epochs", follows, "starts before the epoch before it ends")

    # A trial spans its epochs.
    begin, stop = trials["t_start"], trials["t_end"]
    yield from rows_where("trials", stop < begin, "ends before it starts")
    for row, rows in enumerate(e.own_epochs):
        if len(rows) and (
            begin[row] > start[rows[0]] + CLOCK_SLACK or stop[row] < end[rows[-1]] - CLOCK_SLACK
        ):
            yield f"trial {trials['trial_id'][row]} does not span its epochs"

    # Times of a rank with an unknown clock cannot be ordered.
    unsure = e.column("ranks", "clock_uncertainty")
    yield from rows_where(
        "ranks", ~((unsure >= 0) & (unsure <= CLOCK_SKEW)), "its clock's difference is not known"
    )
    yield from rows_where(
        "ranks", ~np.isfinite(e.column("ranks", "clock_offset")), "clock_offset is not finite"
    )

    # A trial's first step is in its first epoch; only a trial that never reported its end has no time of it.
    first = trials["t_first_step"]
    for row, rows in enumerate(e.own_epochs):
        if len(rows) and not np.isnan(first[row]):
            early, late = start[rows[0]] - CLOCK_SLACK, end[rows[0]] + CLOCK_SLACK
            if not early <= first[row] <= late:
                yield f"trial {trials['trial_id'][row]} has its first step outside of its first epoch"
    reported = e.trained & ~np.isnan(trials["lr"]) & (trials["train_samples"] > 0)
    yield from rows_where("trials", reported & ~np.isfinite(first), "t_first_step is not finite")

    # Trials of one replica follow one another.
    used = np.flatnonzero(e.trained)
    order = used[np.lexsort((begin[used], trials["replica"][used]))]
    same = trials["replica"][order][1:] == trials["replica"][order][:-1]
    overlap = same & (begin[order][1:] < stop[order][:-1] - CLOCK_SLACK)
    overlapping = np.isin(np.arange(len(begin)), order[1:][overlap])
    yield from rows_where("trials", overlapping, "overlaps a trial of its replica")
    yield from _late(e)
    yield from _compiled(e)


def _late(e: Evidence) -> Iterator[str]:
    """Check that no trial or epoch ends after the run; its whole time is not known if it was killed."""
    total = e.attribute("total_seconds")
    for table in ("trials", "epochs"):
        for name in ("t_start", "t_end"):
            late = e.column(table, name) > total + CLOCK_SLACK
            yield from rows_where(table, late, f"{name} is after the end of the run")


def _compiled(e: Evidence) -> Iterator[str]:
    """Check that the steps of a trial were compiled before its first one.

    The earliest moment at which a trial's preparation begins is core start, the end of its replica's trial
    before it, or the beginning of that where the next candidate is prepared while a trial trains.
    """
    trials = e.table("trials")
    first, seconds = trials["t_first_step"], trials["trace_seconds"] + trials["compile_seconds"]
    ahead, before = compiles_ahead(e), dict[int, float]()
    begins = np.sort(e.column("segments", "t_start"))
    unsure = float(np.nanmax(e.column("ranks", "clock_uncertainty"), initial=0.0))
    used = np.flatnonzero(e.trained)
    early = np.zeros(len(first), bool)
    for row in used[np.argsort(trials["t_start"][used], kind="stable")].tolist():
        replica = int(trials["replica"][row])
        # No preparation goes on over the start of a segment.
        started = begins[max(0, np.searchsorted(begins, trials["t_start"][row], side="right") - 1)]
        begin = max(before.get(replica, 0.0), float(started) if len(begins) > 1 else 0.0)
        early[row] = first[row] < begin + seconds[row] - CLOCK_SLACK - unsure
        before[replica] = float(trials["t_start" if ahead else "t_end"][row])
    yield from rows_where("trials", early, "its first step is before its compilation can have ended")


@check(
    "V02",
    f"core time = time limit, to {CLOCK_SLACK} s; shorter if drained; the run ends with rank 0",
    why="The clock must not stop early.",
)
def core_time(e: Evidence) -> Iterator[str]:
    """A run that reached its time limit used all of it, and no more; a drained one used less."""
    core_seconds, limit, total = (
        e.attribute(name) for name in ("core_seconds", "time_limit", "total_seconds")
    )
    yield f"= {core_seconds:.3f} s of {limit:.3f} s"
    if e.attribute("end") == "time_limit" and core_seconds < limit - CLOCK_SLACK:
        yield f"ended by its time limit of {limit} s after {core_seconds} s"
    if core_seconds > limit + CLOCK_SLACK:
        yield f"the core time of {core_seconds} s is longer than its limit of {limit} s"
    if total < core_seconds - CLOCK_SLACK:
        yield f"the core time of {core_seconds} s is longer than the whole run of {total} s"
    if core_seconds <= 0:
        yield "the core time is not above 0"

    for part in parts(e):
        yield from _ended(part.evidence)
    stop, stored = parts(e)[-1].evidence.attribute("core_stop_utc"), e.attribute("core_stop_utc")
    if segments_of(e) == 1:
        stop = core_stop(e.attribute("core_start_utc"), core_seconds)
    if stored != stop:
        yield f"attribute core_stop_utc is {short(stored)!r}, but core start and time give {stop!r}"


def _ended(e: Evidence) -> Iterator[str]:
    """Check that a segment ends with rank 0, which takes the time of the whole after that of its row."""
    total = e.attribute("total_seconds")
    for wall in e.column("ranks", "wall_seconds")[e.column("ranks", "rank") == 0][:1].tolist():
        if not wall - CLOCK_SLACK <= total <= wall + LAST_SECONDS:
            yield f"the whole run of {total} s does not end with rank 0, after {wall} s"


@check(
    "V13",
    f"phases sum to the wall time of each rank within {PHASE_SLACK:.0%}, and that covers the core time; the "
    f"epochs of a replica take no longer than its first trainer worked, to {PHASE_SLACK:.0%} and a step",
    why="Idle time counts, so all time must be accounted for.",
)
def phases(e: Evidence) -> Iterator[str]:
    """All time of every rank is accounted for, idle time by its own timer."""
    for part in parts(e):
        if part.proven:
            yield from _phases(part)


def _phases(part: Part) -> Iterator[str]:
    """Check the ranks of one segment."""
    e = part.evidence
    wall = e.column("ranks", "wall_seconds")
    seconds = np.array([e.column("ranks", f"seconds_{phase}") for phase in PHASES])
    yield from rows_where(
        "ranks", np.any(~(seconds >= 0), axis=0), "time in a phase is negative or not a number"
    )
    total = seconds.sum(axis=0)
    off = np.abs(total - wall) / np.where(wall > 0, wall, np.nan)
    if len(wall) and np.isfinite(off).any():
        yield f"= {np.nanmax(off):.3%} at most"
    for row in np.flatnonzero(~(off <= PHASE_SLACK))[:1]:
        yield f"rank {row}: phases sum to {total[row]:.3f} s, but its wall time is {wall[row]:.3f} s"
    needed = e.attribute("core_seconds") * (1 - PHASE_SLACK)
    yield from rows_where("ranks", np.logical_not(wall >= needed), "wall time is shorter than the core time")
    if not len(wall):
        yield "no rank reported its times"
    yield from _worked(part)


def _worked(part: Part) -> Iterator[str]:
    """Check that the first trainer of each replica was in the phases of its epochs as long as these took."""
    e, epochs = part.evidence, part.evidence.table("epochs")
    seconds = epochs["t_end"] - epochs["t_start"]
    known = (e.of_trial >= 0) & within(part, epochs["t_start"], epochs["t_end"])
    replica = e.column("trials", "replica")[e.of_trial] if len(e.of_trial) else e.of_trial
    for number, rank in first_trainers(e).items():
        own = known & (replica == number)
        taken = float(seconds[own].sum())
        worked = sum(float(e.column("ranks", f"seconds_{phase}")[rank]) for phase in OF_EPOCHS)
        step = float(np.max(seconds[own] / np.maximum(epochs["steps"][own], 1), initial=0.0))
        if taken > worked * (1 + PHASE_SLACK) + step:
            yield (
                f"the epochs of replica {number} take {taken:.3f} s, but rank {rank} worked "
                f"for {worked:.3f} s"
            )


@check(
    "I11",
    "counts of known kinds, each once by each rank, not negative",
    why="The messages of ranks belong to the description of a run.",
)
def messages(e: Evidence) -> Iterator[str]:
    """Messages are counted by rank and kind."""
    rows = e.table("messages")
    yield f"= {int(rows['sent'].sum())} sent"
    known = np.isin(rows["kind"].astype(str), MESSAGE_KINDS)
    yield from rows_where("messages", ~known, "kind is unknown")
    pairs = np.isin(rows["kind"].astype(str), ROW_MESSAGES) == (
        rows["channel"].astype(str) == "point-to-point"
    )
    yield from rows_where("messages", known & ~pairs, "channel is not that of its kind")
    yield from rows_where(
        "messages", ~np.isin(rows["rank"], e.column("ranks", "rank")), "its rank does not exist"
    )
    number = np.unique(rows["kind"], return_inverse=True)[1]
    pair = np.stack(
        [rows["segment"].astype(np.int64), rows["rank"].astype(np.int64), number.astype(np.int64)]
    )
    _, group, times = np.unique(pair, axis=1, return_inverse=True, return_counts=True)
    yield from rows_where("messages", times[group] > 1, "its rank counts this kind twice")
    known = np.isin(rows["segment"], e.column("segments", "segment"))
    yield from rows_where("messages", ~known, "its segment does not exist")
    for name in ("sent", "received", "bytes"):
        yield from rows_where("messages", rows[name] < 0, f"{name} is negative")
