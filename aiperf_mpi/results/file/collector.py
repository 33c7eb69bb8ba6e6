# SPDX-License-Identifier: Apache-2.0
"""Collect the events, records and rows of a run, as the writer receives them or a journal replays them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aiperf_mpi.results.file.rows import EPOCH_ROW, RANK_ROW, SAMPLE_ROW, TRIAL_ROW, RunHeader
from aiperf_mpi.trials.record import RECORD_DTYPE

#: The dtypes of collected rows, by the name of their kind.
ROW_DTYPES = {
    "record": RECORD_DTYPE,
    "epoch": EPOCH_ROW,
    "trial": TRIAL_ROW,
    "rank": RANK_ROW,
    "sample": SAMPLE_ROW,
}


@dataclass(frozen=True)
class Run:
    """A run up to some moment (times in s since core start on rank 0's clock).

    `slots[i]` is the slot of `records[i]` in the history. `core_seconds` of a run that never stopped is the
    last time in its rows and records. `final` is (trial, validation error) of the best model loaded
    again, or None.
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

    def view(self) -> np.ndarray:
        """Return all rows so far, without a copy."""
        return self._array[: self._length]


class RunCollector:
    """Collect events, records and rows in any order that a run can produce; `snapshot` returns the Run so
    far."""

    def __init__(self) -> None:
        self._rows = {kind: _Rows(dtype) for kind, dtype in ROW_DTYPES.items()}
        self._slots = _Rows(np.dtype("<i8"))
        self._header: RunHeader | None = None
        self._facts: dict[str, Any] = {}
        self._final: tuple[int, float] | None = None
        self._problems: list[str] = []

    @property
    def header(self) -> RunHeader | None:
        """The header of the `open` event; None before it."""
        return self._header

    def event(self, name: str, data: Mapping[str, Any]) -> None:
        """Add an event: open (the header), start (core_start_utc), final (trial_id, error), stop
        (core_seconds, total_seconds, end, cause), or note (text).

        Raises ValueError for another name or missing data.
        """
        try:
            match name:
                case "open":
                    self._header = RunHeader.from_dict(data)
                case "start":
                    self._facts["core_start_utc"] = str(data["core_start_utc"])
                case "final":
                    self._final = int(data["trial_id"]), float(data["error"])
                case "stop":
                    self._facts |= {
                        "core_seconds": float(data["core_seconds"]),
                        "total_seconds": float(data["total_seconds"]),
                        "end": str(data["end"]),
                        "end_cause": str(data["cause"]),
                    }
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

    def snapshot(self, *, end: str = "", journal_complete: bool = True) -> Run:
        """Return the run so far; `end` is how a run without a stop event ended ("" leaves it running)."""
        epochs, records = self._rows["epoch"].view(), self._rows["record"].view()
        facts = dict(self._facts)
        if "end" not in facts:
            times = np.concatenate([epochs["t_end"], records["t"], [0.0]])
            facts["core_seconds"] = float(times[np.isfinite(times)].max())
            facts["end"] = end or "running"
        return Run(
            header=self._header,
            slots=self._slots.view(),
            records=records,
            epochs=epochs,
            trials=self._rows["trial"].view(),
            ranks=self._rows["rank"].view(),
            samples=self._rows["sample"].view(),
            final=self._final,
            journal_complete=journal_complete,
            problems=tuple(self._problems),
            **facts,
        )
