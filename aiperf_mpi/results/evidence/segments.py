# SPDX-License-Identifier: Apache-2.0
"""The segments of a run, each as the evidence of a run of its own: times and ranks are judged by segment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.file.attributes import core_stop
from aiperf_mpi.results.file.resultfile import Result
from aiperf_mpi.results.file.schema import Columns

#: Attributes of a run that each segment has of its own, under the same name.
_OWN = ("n_ranks", "n_nodes", "n_replicas", "n_devices", "n_generators", "end", "end_cause", "total_seconds")

#: Tables with rows of a segment.
_OF_SEGMENT = ("ranks", "messages", "samples")

#: Most segments that are judged one by one: a damaged file must not keep the judge busy for ever.
MOST_SEGMENTS = 1000


@dataclass(frozen=True)
class Part:
    """One segment of a run.

    Attributes:
        number: from 1.
        evidence: its rows and attributes, as of a run that began with it; of the trials and their epochs it
            has all rows, with times of the whole run.
        begin, stop: core seconds of the run between which its times are; infinite for the first segment's
            begin and the last one's stop.
        proven: whether it came to its end, or is the last one; else its ranks have reported nothing.
    """

    number: int
    evidence: Evidence
    begin: float
    stop: float
    proven: bool


def parts(e: Evidence) -> list[Part]:
    """Return the segments of a run. Raises MissingError, and ValueError for more than MOST_SEGMENTS."""
    rows = e.table("segments")
    count = len(rows["segment"])
    if count == 1:
        return [Part(1, e, -math.inf, math.inf, True)]
    if count > MOST_SEGMENTS:
        raise ValueError(f"/segments has {count} rows, more than {MOST_SEGMENTS}")
    return [_part(e, rows, row, row == count - 1) for row in range(count)]


def _part(e: Evidence, rows: Columns, row: int, last: bool) -> Part:
    """Return the segment in a row of /segments."""
    begin, stop = float(rows["t_start"][row]), float(rows["t_end"][row])
    of_row: Mapping[str, Any] = {name: values[row : row + 1].tolist()[0] for name, values in rows.items()}
    tables = dict(e.result.tables)
    for name in _OF_SEGMENT:
        table = e.table(name)
        own = table["segment"] == row + 1
        tables[name] = {column: values[own] for column, values in table.items()}
    tables["samples"]["t"] = tables["samples"]["t"] - begin
    attributes = dict(e.result.attributes) | {name: of_row[name] for name in _OWN}
    seconds = stop - begin
    attributes |= {
        "core_start_utc": of_row["start_utc"],
        "core_stop_utc": core_stop(of_row["start_utc"], seconds),
        "core_seconds": seconds,
    }
    result = Result(tables, attributes, e.result.documents, e.result.problems, e.result.content_sha256)
    return Part(
        row + 1,
        Evidence(result, e.rules),
        begin if row else -math.inf,
        math.inf if last else stop,
        last or of_row["end"] != "killed",
    )


def within(part: Part, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return whether the middle of each time of the whole run is in a segment (bool)."""
    middle = (starts + ends) / 2
    return ~((middle < part.begin) | (middle > part.stop))
