# SPDX-License-Identifier: Apache-2.0
"""The segments of a run: each start of the program on its output folder, and what it lost at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aiperf_mpi.results.file.rows import RunHeader
from aiperf_mpi.results.file.schema import DTYPES, SEGMENTS, Columns

#: Columns of /segments that the header has under the same name.
_OF_HEADER = ("version", "n_ranks", "n_nodes", "n_replicas", "n_devices", "n_generators", "time_limit")


@dataclass(frozen=True, slots=True)
class Segment:
    """One start of the program on the run's folder (times in s).

    Attributes:
        header: what applied to the run as a whole in it.
        start_utc: start of its core time, ISO 8601.
        begin, stop: core time of the segments before it, and at its end.
        total_seconds: wall time of rank 0; NaN for one that did not come to its end.
        end, cause: how it ended, and why it was drained.
        lost_trials, lost_epochs: trials that its end cut short and that a later segment went on with, and
            their epochs after their last state.
    """

    header: RunHeader
    start_utc: str
    begin: float = 0.0
    stop: float = 0.0
    total_seconds: float = math.nan
    end: str = "running"
    cause: str = ""
    lost_trials: int = 0
    lost_epochs: int = 0

    @property
    def seconds(self) -> float:
        """The core time of the segment."""
        return self.stop - self.begin


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a segment takes over from those before it; the journal's event `resume`.

    Attributes:
        core_seconds: core time of the segments before it.
        again: trials that had not ended, and how many of their epochs stay: later rows leave the result.
        reopened: slots of outcomes that leave the history, as the row of their trial's end was lost.
    """

    core_seconds: float
    again: Mapping[int, int] = field(default_factory=dict)
    reopened: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes for JSON."""
        return {
            "core_seconds": self.core_seconds,
            "again": [[trial, epochs] for trial, epochs in sorted(self.again.items())],
            "reopened": list(self.reopened),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Continuation:
        """Return what `to_dict` described. Raises KeyError, TypeError or ValueError for other data."""
        again = {int(trial): int(epochs) for trial, epochs in data["again"]}
        seconds = float(data["core_seconds"])
        if not 0 <= seconds < math.inf:
            raise ValueError(f"core_seconds is {seconds}")
        return Continuation(seconds, again, tuple(int(slot) for slot in data["reopened"]))


def segment_table(segments: Sequence[Segment]) -> Columns:
    """Return /segments."""
    rows = [_row(number, segment) for number, segment in enumerate(segments, 1)]
    return {
        column.name: np.array(
            [row[column.name] for row in rows], object if column.dtype == "str" else DTYPES[column.dtype]
        )
        for column in SEGMENTS.columns
    }


def _row(number: int, segment: Segment) -> dict[str, Any]:
    """Return the values of a segment's row by column."""
    header, inventory = segment.header, segment.header.inventory or {}
    values = {name: getattr(header, name) for name in _OF_HEADER}
    mpi = inventory.get("mpi", "")
    return values | {
        "segment": number,
        "start_utc": segment.start_utc,
        "t_start": segment.begin,
        "t_end": segment.stop,
        "total_seconds": segment.total_seconds,
        "end": segment.end,
        "end_cause": segment.cause,
        "hostname": str(inventory.get("hostname", "")),
        "mpi": str(mpi.get("vendor", "") if isinstance(mpi, dict) else mpi),
        "lost_trials": segment.lost_trials,
        "lost_epochs": segment.lost_epochs,
    }
