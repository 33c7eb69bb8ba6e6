# SPDX-License-Identifier: Apache-2.0
"""Checks of numbers and times: everything finite, in order, and accounted for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.file.attributes import core_stop
from aiperf_mpi.results.file.rows import DROPPED, MESSAGE_KINDS, PHASES, REJECTED, ROW_MESSAGES, UNFINISHED
from aiperf_mpi.results.judge.checks.registry import check, rows_where, short

#: Phases must sum to a rank's wall time within this part of it (V13).
PHASE_SLACK = 0.02

#: Largest uncertainty in s of the difference between a rank's clock and rank 0's.
CLOCK_SKEW = 1.0

#: Times of one rank's clock, as rank 0 knows them, are compared with this slack in s.
CLOCK_SLACK = 0.01


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
    f"times in order and within the core time, to {CLOCK_SLACK} s",
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


@check(
    "V02",
    f"core time = time limit, to {CLOCK_SLACK} s; shorter if drained",
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
    stop, stored = core_stop(e.attribute("core_start_utc"), core_seconds), e.attribute("core_stop_utc")
    if stored != stop:
        yield f"attribute core_stop_utc is {short(stored)!r}, but core start and time give {stop!r}"


@check(
    "V13",
    f"phases sum to the wall time of each rank within {PHASE_SLACK:.0%}, and that covers the core time",
    why="Idle time counts, so all time must be accounted for.",
)
def phases(e: Evidence) -> Iterator[str]:
    """All time of every rank is accounted for, idle time by its own timer."""
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


@check(
    "I11",
    "counts of known kinds, not negative",
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
    for name in ("sent", "received", "bytes"):
        yield from rows_where("messages", rows[name] < 0, f"{name} is negative")
