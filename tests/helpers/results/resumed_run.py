# SPDX-License-Identifier: Apache-2.0
"""A run of two segments as its ranks would report it: the first one was killed, the second one went on.

It is the example run with the second trial of each replica cut by the kill: that trial begins again under its
own id in the second segment, and the third one follows it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aiperf_mpi.config import classify, from_toml
from aiperf_mpi.results.file.collector import Run, RunCollector
from aiperf_mpi.results.file.rows import RunHeader
from aiperf_mpi.results.file.segments import Continuation
from aiperf_mpi.results.output.journal import Journal, encode_row
from aiperf_mpi.trials.record import seal
from tests.helpers.results.example_run import Example, example_ranks, example_run, example_samples

#: Core second of the kill, in the second epoch of the second trials; a time mark proves it.
KILLED = 4.25

#: The second trials began at 3 s. They begin again at the start of the second segment.
SHIFT = KILLED - 3.0

#: Starts of the segments, 30 s between the kill and the second one.
STARTS = ("2026-01-02T03:04:05+00:00", "2026-01-02T03:04:40+00:00")

#: Kinds of entries with rows; all others are events.
ROWS = ("epoch", "trial", "rank", "sample")

#: An entry of a journal: its kind, a record's slot (else -1), and the row (shape (1,)) or the event's data.
Entry = tuple[str, int, Any]


@dataclass(frozen=True)
class Resumed:
    """The entries of the two segments, and the example that both are made of."""

    example: Example
    first: list[Entry]
    second: list[Entry]

    @property
    def entries(self) -> list[Entry]:
        return [*self.first, *self.second]


def resumed_run(end: str = "killed") -> Resumed:
    """The run of two segments; the first one was killed, or `end` says how it ended."""
    core_seconds = 8.5 + SHIFT
    example = example_run(sets=(f"run.time_limit={core_seconds}",))
    header = replace(example.header, time_limit=core_seconds, inventory=_inventory(example.header))
    first: list[Entry] = [("open", -1, header.to_dict()), ("start", -1, {"core_start_utc": STARTS[0]})]
    first += [
        ("record", slot, _row(r))
        for slot, r in zip(example.slots, example.records, strict=True)
        if r["t"] <= 3
    ]
    first += [("epoch", -1, row) for row in _rows(example.epochs) if row["t_end"][0] <= KILLED]
    for row in _rows(example.trials):
        if row["t_start"][0] <= KILLED:
            ended = row["t_end"][0] <= KILLED
            first.append(("trial", -1, row if ended else _begun(row)))
    samples = example_samples(header.n_nodes, KILLED)
    first += [("sample", -1, row) for row in _rows(samples) if row["t"][0] <= KILLED]
    first.append(("mark", -1, {"t": KILLED}))
    if end != "killed":
        first += [("rank", -1, row) for row in _rows(example_ranks(header.n_replicas, KILLED))]
        stop = {"core_seconds": KILLED, "total_seconds": KILLED + 2, "end": end, "cause": "signal"}
        first.append(("stop", -1, stop))

    taken = Continuation(
        KILLED,
        {
            int(t): 0
            for t in example.trials["trial_id"]
            if 3 <= example.trials["t_start"][example.trial(int(t))] < 6
        },
    )
    config = from_toml(header.config_toml)
    cls, division, departures = classify(config, None, 2)
    again = replace(header, cls=cls, division=division, departures=tuple(map(str, departures)))
    second: list[Entry] = [
        ("resume", -1, taken.to_dict()),
        ("open", -1, again.to_dict()),
        ("start", -1, {"core_start_utc": STARTS[1]}),
    ]
    for slot, record in zip(example.slots, example.records, strict=True):
        if record["t"] > 3:
            later = record.copy()
            later["t"] += SHIFT
            second.append(("record", slot, _row(seal(later))))
    second += [("epoch", -1, _later(row)) for row in _rows(example.epochs) if row["t_start"][0] >= 3]
    second += [("trial", -1, _later(row)) for row in _rows(example.trials) if row["t_start"][0] >= 3]
    own = core_seconds - KILLED
    second += [("rank", -1, row) for row in _rows(example_ranks(header.n_replicas, own))]
    more_samples = example_samples(header.n_nodes, own)
    more_samples["t"] += KILLED
    second += [("sample", -1, row) for row in _rows(more_samples)]
    trial, error = example.final or (-1, 0.0)
    second.append(("final", -1, {"trial_id": trial, "error": error}))
    stop = {"core_seconds": core_seconds, "total_seconds": own + 2.0, "end": "time_limit", "cause": ""}
    second.append(("stop", -1, stop))
    return Resumed(replace(example, header=header), first, second)


def collected(entries: list[Entry]) -> RunCollector:
    """The collector that has taken these entries."""
    collector = RunCollector()
    for kind, slot, data in entries:
        if kind == "record":
            collector.record(slot, data)
        elif kind in ROWS:
            collector.rows(kind, data)
        else:
            collector.event(kind, data)
    return collector


def run_of(entries: list[Entry]) -> Run:
    """The run of these entries."""
    return collected(entries).snapshot(end="killed")


def write_segment(path: Path, entries: list[Entry], goes_on: bool = False) -> None:
    """Write these entries as a journal, or as the next segment of one."""
    book = Journal(path, goes_on=goes_on)
    for kind, slot, data in entries:
        if kind == "record":
            book.append({"kind": kind, "slot": slot, "row": encode_row(data)})
        elif kind in ROWS:
            book.append({"kind": kind, "row": encode_row(data)})
        else:
            book.append({"kind": kind, "data": data})
    book.close()


def _inventory(header: RunHeader) -> dict[str, Any]:
    return dict(header.inventory or {}) | {"hostname": "head", "mpi": {"vendor": "MPICH 4"}}


def _rows(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[index : index + 1] for index in range(len(rows))]


def _row(record: np.void) -> np.ndarray:
    return np.array([record])


def _begun(row: np.ndarray) -> np.ndarray:
    """The row with which a trial begins."""
    begun = row.copy()
    begun["t_end"], begun["status"], begun["cause"] = np.nan, 0, b""
    begun["epochs"] = begun["train_samples"] = begun["val_samples"] = 0
    begun["best_error"] = np.nan
    return begun


def _later(row: np.ndarray) -> np.ndarray:
    """A row of the second segment, with its times."""
    later = row.copy()
    for name in ("t_start", "t_end", "t_first_step"):
        if name in (row.dtype.names or ()):
            later[name] += SHIFT
    return later
