# SPDX-License-Identifier: Apache-2.0
"""Collect the events, records and rows of a run, as the writer receives them or a journal replays them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from aiperf_mpi.results.file.rows import EPOCH_ROW, RANK_ROW, SAMPLE_ROW, TRIAL_ROW, RunHeader
from aiperf_mpi.results.file.segments import Continuation, Segment
from aiperf_mpi.trials.record import RECORD_DTYPE

#: The dtypes of collected rows, by the name of their kind.
ROW_DTYPES = {
    "record": RECORD_DTYPE,
    "epoch": EPOCH_ROW,
    "trial": TRIAL_ROW,
    "rank": RANK_ROW,
    "sample": SAMPLE_ROW,
}

#: Kinds of rows that belong to a segment, not to a trial.
_BY_SEGMENT = ("rank", "sample")

#: More epochs than a trial has: all of them stay.
_ALL = 1 << 62


@dataclass(frozen=True)
class Run:
    """A run up to some moment (times in s since core start on rank 0's clock).

    `slots[i]` is the slot of `records[i]` in the history. `core_seconds` of a run that never stopped is the
    last time that its epochs, records and time marks prove. `final` is (trial, validation error) of the best
    model loaded again, or None. `segments` are the starts of the program on its folder that came to their
    core time, `of_segment` the number of the segment (from 1) of each row of `ranks` and `samples`.
    """

    header: RunHeader | None
    slots: np.ndarray
    records: np.ndarray
    epochs: np.ndarray
    trials: np.ndarray
    ranks: np.ndarray
    samples: np.ndarray = field(default_factory=lambda: np.zeros(0, SAMPLE_ROW))
    core_start_utc: str = ""
    core_seconds: float = 0.0
    total_seconds: float = math.nan
    end: str = "running"
    end_cause: str = ""
    final: tuple[int, float] | None = None
    journal_complete: bool = True
    problems: tuple[str, ...] = ()
    segments: tuple[Segment, ...] = ()
    of_segment: Mapping[str, np.ndarray] = field(default_factory=dict)


class _Rows:
    """Rows of one dtype in a growing array; a view of it stays valid, as rows are only appended."""

    def __init__(self, dtype: np.dtype) -> None:
        self._array = np.zeros(64, dtype)
        self._length = 0

    def append(self, rows: np.ndarray) -> None:
        """Append rows, and double the array when it is full."""
        needed = self._length + len(rows)
        if needed > len(self._array):
            grown = np.zeros(max(needed, 2 * len(self._array)), self._array.dtype)
            grown[: self._length] = self._array[: self._length]
            self._array = grown
        self._array[self._length : needed] = rows
        self._length = needed

    def keep(self, chosen: np.ndarray) -> None:
        """Keep the chosen rows (bool) in a new array: views of the old one stay as they are."""
        if not chosen.all():
            kept = self.view()[chosen]
            self._array, self._length = np.zeros(max(64, len(kept)), kept.dtype), 0
            self.append(kept)

    def view(self) -> np.ndarray:
        """Return all rows so far, without a copy."""
        return self._array[: self._length]


class RunCollector:
    """Collect events, records and rows in any order that a run can produce; `snapshot` returns the Run so
    far."""

    def __init__(self) -> None:
        self._rows = {kind: _Rows(dtype) for kind, dtype in ROW_DTYPES.items()}
        self._slots = _Rows(np.dtype("<i8"))
        self._of_segment = {kind: _Rows(np.dtype("<i4")) for kind in _BY_SEGMENT}
        self._header: RunHeader | None = None
        self._facts: dict[str, Any] = {}
        self._proven = 0.0
        self._segments: list[Segment] = []
        self._final: tuple[int, float] | None = None
        self._problems: list[str] = []

    @property
    def header(self) -> RunHeader | None:
        """The header of the last `open` event; None before it."""
        return self._header

    def event(self, name: str, data: Mapping[str, Any]) -> None:
        """Add an event: open (the header), start (core_start_utc), mark (t), final (trial_id, error), stop
        (core_seconds, total_seconds, end, cause), resume (a Continuation), or note (text).

        Raises ValueError for another name or missing data.
        """
        try:
            match name:
                case "open":
                    self._header = RunHeader.from_dict(data)
                case "start":
                    self._facts["core_start_utc"] = str(data["core_start_utc"])
                case "mark":
                    self._proven = max(self._proven, float(data["t"]))
                case "final":
                    self._final = int(data["trial_id"]), float(data["error"])
                case "stop":
                    self._facts |= {
                        "core_seconds": float(data["core_seconds"]),
                        "total_seconds": float(data["total_seconds"]),
                        "end": str(data["end"]),
                        "end_cause": str(data["cause"]),
                    }
                case "resume":
                    self._resume(Continuation.from_dict(data))
                case "note":
                    self._problems.append(str(data["text"]))
                case _:
                    raise ValueError(f"event {name!r} is unknown")
        except (KeyError, TypeError) as error:
            raise ValueError(f"event {name!r}: {error!r} in {dict(data)}") from None

    def record(self, slot: int, record: np.ndarray) -> None:
        """Add a record of the history (shape (1,)) and its slot."""
        self._rows["record"].append(record)
        self._slots.append(np.array([slot], "<i8"))

    def rows(self, kind: str, rows: np.ndarray) -> None:
        """Add epoch, trial, rank or sample rows."""
        self._rows[kind].append(rows)
        if kind in _BY_SEGMENT:
            self._of_segment[kind].append(np.full(len(rows), len(self._segments) + 1, "<i4"))

    def snapshot(self, *, end: str = "", journal_complete: bool = True) -> Run:
        """Return the run so far; `end` is how a run without a stop event ended ("" leaves it running)."""
        header, facts, segments = self._header, dict(self._facts), list(self._segments)
        begun = segments[-1].stop if segments else 0.0
        if segments and "core_start_utc" not in facts:
            # The last start came to no core time: the run is that of the segments before it.
            last = segments[-1]
            header, total, stopped = last.header, last.begin + last.total_seconds, last.stop
            facts |= {"end": last.end, "end_cause": last.cause}
        else:
            total = begun + facts.pop("total_seconds", math.nan)
            stopped = facts.pop("core_seconds", None)
            facts.setdefault("end", end or "running")
            if stopped is None:
                stopped = max(begun, self._last_moment())
            if header is not None and "core_start_utc" in facts:
                segments.append(self._segment(header, begun, stopped, facts["end"]))
        facts |= {"core_seconds": stopped, "total_seconds": total}
        if segments:
            facts["core_start_utc"] = segments[0].start_utc
        return Run(
            header=header,
            slots=self._slots.view(),
            records=self._rows["record"].view(),
            epochs=self._rows["epoch"].view(),
            trials=self._rows["trial"].view(),
            ranks=self._rows["rank"].view(),
            samples=self._rows["sample"].view(),
            final=self._final,
            journal_complete=journal_complete,
            problems=tuple(self._problems),
            segments=tuple(segments),
            of_segment={kind: rows.view() for kind, rows in self._of_segment.items()},
            **facts,
        )

    # -- segments

    def _last_moment(self) -> float:
        """Return the last core second that epochs, records and time marks prove."""
        epochs, records = self._rows["epoch"].view(), self._rows["record"].view()
        times = np.concatenate([epochs["t_end"], records["t"], [self._proven]])
        return float(times[np.isfinite(times)].max())

    def _segment(self, header: RunHeader, begin: float, stop: float, end: str) -> Segment:
        """Return the present segment, which stops at `stop`."""
        return Segment(
            header,
            self._facts.get("core_start_utc", ""),
            begin,
            stop,
            self._facts.get("total_seconds", math.nan),
            end,
            self._facts.get("end_cause", ""),
        )

    def _resume(self, taken: Continuation) -> None:
        """End the present segment, and take out the rows and records that the next one makes again."""
        lost_trials, lost_epochs = self._take_out(taken)
        if self._header is not None and "core_start_utc" in self._facts:
            begin = self._segments[-1].stop if self._segments else 0.0
            end = self._facts.get("end", "killed")
            self._segments.append(self._segment(self._header, begin, taken.core_seconds, end))
        if self._segments:
            last = self._segments[-1]
            self._segments[-1] = replace(
                last, lost_trials=last.lost_trials + lost_trials, lost_epochs=last.lost_epochs + lost_epochs
            )
        self._facts, self._final, self._proven = {}, None, taken.core_seconds

    def _take_out(self, taken: Continuation) -> tuple[int, int]:
        """Remove the epochs of trials that begin again from their last checkpoint on, the rows of their ends,
        and reopened outcomes; return how many trials and epochs were there."""
        epochs, trials = self._rows["epoch"].view(), self._rows["trial"].view()
        kept = np.array([taken.again.get(trial, _ALL) for trial in epochs["trial_id"].tolist()], np.int64)
        gone = epochs["epoch"] >= kept
        self._rows["epoch"].keep(~gone)

        # The row with which a trial began stays where some of its epochs do.
        first = np.array([taken.again.get(trial, _ALL) for trial in trials["trial_id"].tolist()], np.int64)
        begun = set(trials["trial_id"].tolist()) & set(taken.again)
        self._rows["trial"].keep((first > 0) & ((first == _ALL) | ~np.isfinite(trials["t_end"])))
        left = ~np.isin(self._slots.view(), taken.reopened)
        self._rows["record"].keep(left)
        self._slots.keep(left)
        return len(begun), int(gone.sum())
