# SPDX-License-Identifier: Apache-2.0
"""The check of the segments: they follow one another, and the last one is that of the run's attributes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime

import numpy as np

from aiperf_mpi.printable import counted
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.evidence.segments import MOST_SEGMENTS
from aiperf_mpi.results.file.schema import ENDS, Columns
from aiperf_mpi.results.judge.checks.registry import check, rows_where, short
from aiperf_mpi.results.judge.checks.timing import CLOCK_SLACK

#: Most seconds by which the clocks of two hosts may differ in their time of day.
UTC_SLACK = 60.0

#: Attributes that the last segment has, too.
_LAST = ("end", "n_ranks", "n_nodes", "n_replicas", "n_devices", "n_generators", "time_limit")


@check(
    "I23",
    "numbers from 1; each begins where the one before it ended, and by UTC not before that, to "
    f"{UTC_SLACK:.0f} s; as many devices of each replica in all; the last one as in the attributes",
    why="The core time is the sum of the segments, so none may overlap another or be left out.",
)
def segments(e: Evidence) -> Iterator[str]:
    """The segments of the run make up its core time."""
    rows = e.table("segments")
    count = len(rows["segment"])
    yield f"= {counted(count, 'segment')}"
    if not 1 <= count <= MOST_SEGMENTS:
        yield f"/segments has {count} rows, but 1 to {MOST_SEGMENTS} are possible"
        return
    yield from rows_where(
        "segments", rows["segment"] != np.arange(1, count + 1), "segments are not 1, 2, ..."
    )

    # In core time.
    begin, stop, limit = rows["t_start"], rows["t_end"], rows["time_limit"]
    yield from rows_where(
        "segments", begin != np.append(0.0, stop[:-1]), "does not begin where the one before it ended"
    )
    yield from rows_where("segments", ~(stop >= begin), "ends before it begins")
    # The last one is held against its time limit as the run is (V02).
    earlier, ended = np.arange(count) < count - 1, rows["end"].astype(str)
    long = earlier & ~(stop <= limit + CLOCK_SLACK)
    yield from rows_where("segments", long, "is longer than the time limit")
    early = earlier & (ended == "time_limit") & (stop < limit - CLOCK_SLACK)
    yield from rows_where("segments", early, "ended by its time limit before that")
    yield from rows_where(
        "segments", np.diff(limit, prepend=limit[:1]) < 0, "its time limit is shorter than before"
    )

    # Earlier segments have ended, and lost what the next one trained again.
    allowed = np.array(
        [text in ENDS and (row == count - 1 or text != "running") for row, text in enumerate(ended)]
    )
    yield from rows_where("segments", ~allowed, "end is not one of a segment there")
    lost = rows["lost_trials"] + rows["lost_epochs"]
    odd = (
        (rows["lost_trials"] < 0) | (rows["lost_epochs"] < 0) | (lost != 0) & (np.arange(count) == count - 1)
    )
    yield from rows_where("segments", odd, "lost_trials or lost_epochs is not possible")
    total = rows["total_seconds"]
    known = np.where(ended == "killed", np.isnan(total), total >= stop - begin - CLOCK_SLACK)
    yield from rows_where("segments", ~known & (ended != "running"), "total_seconds is not possible")
    yield from _devices(rows)
    yield from _times_of_day(rows)
    yield from _last(e, rows)


def _devices(rows: Columns) -> Iterator[str]:
    """Check that a replica has as many devices in all segments."""
    devices, replicas = (rows[name].astype(np.int64) for name in ("n_devices", "n_replicas"))
    other = devices * replicas[-1] != devices[-1] * replicas
    yield from rows_where("segments", other, "a replica has other devices than in the last segment")


def _times_of_day(rows: Columns) -> Iterator[str]:
    """Check that no segment starts before the one before it has ended."""
    if len(rows["segment"]) == 1:
        return
    starts = [datetime.fromisoformat(text).timestamp() for text in rows["start_utc"].tolist()]
    seconds = rows["t_end"] - rows["t_start"]
    early = np.diff(starts) < seconds[:-1] - UTC_SLACK
    yield from rows_where("segments", np.append(False, early), "starts before the one before it has ended")


def _last(e: Evidence, rows: Columns) -> Iterator[str]:
    """Check that the attributes are those of the first segment's start and of the last segment."""
    for name in _LAST:
        if (value := rows[name][-1]) != e.attribute(name):
            yield f"attribute {name} is {short(e.attribute(name))!r}, but the last segment has {value!r}"
    if (stop := float(rows["t_end"][-1])) != e.attribute("core_seconds"):
        yield f"the last segment ends at {stop} s, but the core time is {e.attribute('core_seconds')} s"
    if (start := rows["start_utc"][0]) != e.attribute("core_start_utc"):
        yield f"attribute core_start_utc is not the start of the first segment, {short(start)!r}"
    total, whole = e.attribute("total_seconds"), float(rows["t_start"][-1] + rows["total_seconds"][-1])
    if total != whole and not (math.isnan(total) and math.isnan(whole)):
        yield f"attribute total_seconds is {total}, but the segments give {whole}"
