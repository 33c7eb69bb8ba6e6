# SPDX-License-Identifier: Apache-2.0
"""Build the columns of a result from a run: a pure function of the reported rows and records.

Architectures are replayed from the PROPOSED records. Operations follow from them and from the reported
samples: no count of a rank enters the result.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np

from aiperf_mpi.opcount import TRIAL_METHODS
from aiperf_mpi.results.file import score
from aiperf_mpi.results.file.attributes import attributes, documents
from aiperf_mpi.results.file.collector import Run
from aiperf_mpi.results.file.replay import Network, replay
from aiperf_mpi.results.file.rows import (
    CREDITED,
    MESSAGE_KINDS,
    PHASES,
    ROW_MESSAGES,
    SAMPLE_ROW,
    STATUS,
    TRIAL_ROW,
    UNFINISHED,
    RunHeader,
    new_row,
)
from aiperf_mpi.results.file.schema import EPOCHS, RANKS, TRIALS, Columns
from aiperf_mpi.results.file.segments import segment_table
from aiperf_mpi.trials.origin import origin_of
from aiperf_mpi.trials.record import OUTCOME, PROPOSED

#: Columns of /trials that the PROPOSED records have under the same name.
_OF_RECORD = ("replica", "round", "batch_per_device", "batch_global", "kernel_size", "seed")


@dataclass(frozen=True)
class Tables:
    """All content of a result except its verdict: tables, root attributes, documents by path."""

    tables: dict[str, Columns]
    attributes: dict[str, Any]
    documents: dict[str, str] = field(default_factory=dict)


def build(run: Run, networks: dict[int, Network] | None = None) -> Tables:
    """Return the content of a result.

    Arguments:
        run: the run, finished or not; missing rows are derived (a trial that never ended is `unfinished`).
        networks: replayed networks by trial id; those of new trials are added, so that a rebuild need not
            repeat them.

    Raises ValueError for a run without a header, as its architectures cannot be replayed.
    """
    header = run.header
    if header is None:
        raise ValueError("the run has no header: nothing was reported before its end")

    # Proposals in the order of their slots, so that parents come before their children.
    networks = {} if networks is None else networks
    proposed = np.flatnonzero(run.records["kind"] == PROPOSED)
    slots, first = np.unique(run.slots[proposed], return_index=True)
    records = run.records[proposed[first]]
    replay(header, slots, records, networks)

    order = np.lexsort((run.epochs["t_end"], run.epochs["epoch"], run.epochs["trial_id"]))
    epochs = trained_last(run.epochs[order])
    rows = _trial_rows(run, slots, epochs)
    own = [networks[slot] for slot in slots.tolist()]
    epoch_table, of_trial = _epoch_table(run, slots, rows, own, epochs)
    credited = _credited_ops(len(slots), epoch_table, of_trial)
    trial_table = _trial_table(header, slots, records, rows, own, credited)
    series = _series_table(run, header, rows, epoch_table, of_trial)
    tables = {
        "trials": trial_table,
        "epochs": epoch_table,
        "score_series": series,
        "ranks": _rank_table(run),
        "messages": _message_table(run),
        "samples": _sample_table(run),
        "segments": segment_table(run.segments),
    }
    counts = counting(rows["status"], of_trial)
    return Tables(tables, attributes(run, header, tables, counts), documents(header))


# -- trials ----------------------------------------------------------------------------------------


def trained_last(epochs: np.ndarray) -> np.ndarray:
    """Return epochs (ordered by trial, number and time) without those that were trained again, or that follow
    one which was: a resumed run whose newest state of a trial is damaged goes on from an older one."""
    same = (epochs["trial_id"][1:] == epochs["trial_id"][:-1]) & (epochs["epoch"][1:] == epochs["epoch"][:-1])
    keep = np.ones(len(epochs), bool)
    for trial in np.unique(epochs["trial_id"][1:][same]).tolist():
        own = np.flatnonzero(epochs["trial_id"] == trial)
        least = np.iinfo(np.int32).max
        for row in own[np.argsort(-epochs["t_end"][own], kind="stable")].tolist():
            keep[row] = epochs["epoch"][row] < least
            least = min(least, int(epochs["epoch"][row]))
    return epochs[keep]


#: What the first row of a trial says of its beginning, also where a later segment goes on with it.
_OF_BEGINNING = ("t_start", "t_first_step", "trace_seconds", "compile_seconds", "morph_max_abs_diff")


def _trial_rows(run: Run, slots: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """Return a row of TRIAL_ROW for each slot: the reported one, or else one derived from records and
    epochs."""
    reported = {int(row["trial_id"]): row for row in run.trials}
    begun = {int(row["trial_id"]): row for row in run.trials[::-1]}
    outcomes = {int(record["trial"]): record for record in run.records[run.records["kind"] == OUTCOME]}
    starts = np.searchsorted(epochs["trial_id"], slots, side="left")
    stops = np.searchsorted(epochs["trial_id"], slots, side="right")

    rows = np.zeros(len(slots), TRIAL_ROW)
    for index, slot in enumerate(slots.tolist()):
        outcome = outcomes.get(slot)
        if slot in reported and np.isfinite(reported[slot]["t_end"]):
            rows[index] = reported[slot]
        else:
            own = epochs[starts[index] : stops[index]]
            rows[index] = _derived_row(slot, own, outcome, reported.get(slot))[0]

        if rows[index]["resumed"] and slot in begun:
            for name in _OF_BEGINNING:
                rows[index][name] = begun[slot][name]

        # A trial without a report (rejected, dropped) has its outcome in the history.
        if outcome is not None and rows[index]["status"] == UNFINISHED:
            rows[index]["status"] = outcome["status"]
            rows[index]["cause"] = rows[index]["cause"] or outcome["cause"]
    return rows


def _derived_row(slot: int, epochs: np.ndarray, outcome: np.void | None, begun: np.void | None) -> np.ndarray:
    """Return the row of a trial that did not report its end, from its epochs, its outcome record, and the
    row that it sent with its first epoch."""
    row = new_row(TRIAL_ROW, trial_id=slot, t_start=epochs["t_start"].min() if len(epochs) else math.nan)
    if begun is not None:
        row[0] = begun
    row["epochs"] = len(epochs)
    row["t_end"] = epochs["t_end"].max() if len(epochs) else math.nan
    row["best_error"] = _least(epochs["val_error"])
    row["predicted_error"] = math.nan if outcome is None else outcome["predicted_error"]
    row["train_samples"], row["val_samples"] = epochs["train_samples"].sum(), epochs["val_samples"].sum()
    return row


def _least(errors: np.ndarray) -> float:
    """Return the lowest of the errors that are numbers, or NaN without one."""
    known = errors[errors >= 0]
    return float(known.min()) if len(known) else math.nan


def _trial_table(
    header: RunHeader,
    slots: np.ndarray,
    records: np.ndarray,
    rows: np.ndarray,
    networks: list[Network],
    credited: list[int],
) -> Columns:
    """Return /trials: columns of the rows, of the PROPOSED records, of the networks, and computed sums.

    `credited` has the exact credited operations of each trial. The others are by trial as well.
    """
    columns = {name: _stored(rows[name]) for name in TRIAL_ROW.names or ()}
    columns |= {name: records[name] for name in _OF_RECORD}
    columns |= _network_columns(networks) | _sum_columns(networks, rows, credited) | _origin_columns(records)
    columns |= {
        "trial_id": slots.astype("<i8"),
        "parent_id": records["parent"],
        "arch_hash": _texts(record["arch_hash"].tobytes().hex() for record in records),
        "opcount_methods": _texts(TRIAL_METHODS for _ in networks),
        "status": _texts(
            STATUS[code] if code < len(STATUS) else f"code {code}" for code in rows["status"].tolist()
        ),
        "precision": _texts(text or header.precision for text in columns["precision"]),
    }
    return {name: columns[name] for name in TRIALS.names}


def _network_columns(networks: list[Network]) -> Columns:
    """Return the columns of /trials that follow from the replayed networks."""
    return {
        "group": _texts(network.group for network in networks),
        "arch_json": _texts(network.arch_json for network in networks),
        "morphs": _texts(network.morphs for network in networks),
        "train_ops_per_image": _unsigned(network.train_ops for network in networks),
        "val_ops_per_image": _unsigned(network.val_ops for network in networks),
    }


def _origin_columns(records: np.ndarray) -> Columns:
    """Return what chose each candidate, and the error that was expected of it."""
    origins = [origin_of(record) for record in records]
    expected = [
        (math.nan, math.nan) if origin.expected is None else astuple(origin.expected) for origin in origins
    ]
    errors, deviations = np.array(expected, "<f8").reshape(-1, 2).T
    return {
        "chosen_by": _texts(origin.chosen_by for origin in origins),
        "tuned_by": _texts(origin.tuned_by for origin in origins),
        "expected_error": errors,
        "expected_deviation": deviations,
    }


def _sum_columns(networks: list[Network], rows: np.ndarray, credited: list[int]) -> Columns:
    """Return executed and credited operations of each trial, as exact decimals and as floats."""
    executed = [
        score.operations(network.train_ops, network.val_ops, row["train_samples"], row["val_samples"])
        for network, row in zip(networks, rows, strict=True)
    ]
    columns: Columns = {}
    for name, values in (("ops", executed), ("ops_credited", credited)):
        columns[name] = _texts(str(value) for value in values)
        columns[f"{name}_f64"] = np.array([float(value) for value in values], "<f8")
    return columns


def _credited_ops(n_trials: int, epochs: Columns, of_trial: np.ndarray) -> list[int]:
    """Return the sum of credited operations of each trial, exact."""
    credited = [0] * n_trials
    for index, ops in zip(of_trial.tolist(), epochs["ops_credited"].tolist(), strict=True):
        if index >= 0:
            credited[index] += ops
    return credited


# -- epochs and score ------------------------------------------------------------------------------


def _epoch_table(
    run: Run, slots: np.ndarray, rows: np.ndarray, networks: list[Network], epochs: np.ndarray
) -> tuple[Columns, np.ndarray]:
    """Return /epochs, and the row in /trials of each epoch (-1: unknown trial, without credit)."""
    of_trial = np.full(len(epochs), -1)
    if len(slots):
        place = np.minimum(np.searchsorted(slots, epochs["trial_id"]), len(slots) - 1)
        of_trial = np.where(slots[place] == epochs["trial_id"], place, -1)

    status = rows["status"].tolist()
    ops, credited = [], []
    samples = zip(epochs["train_samples"].tolist(), epochs["val_samples"].tolist(), strict=True)
    for index, (train, val), t_end in zip(of_trial.tolist(), samples, epochs["t_end"].tolist(), strict=True):
        known = index >= 0
        done = (
            score.operations(networks[index].train_ops, networks[index].val_ops, train, val) if known else 0
        )
        ops.append(done)
        credited.append(done if known and score.is_credited(status[index], t_end, run.core_seconds) else 0)
    columns = {"ops": _unsigned(ops), "ops_credited": _unsigned(credited)}
    return {name: columns[name] if name in columns else epochs[name] for name in EPOCHS.names}, of_trial


def counting(status: np.ndarray, of_trial: np.ndarray) -> np.ndarray:
    """Return a bool for each epoch: whether its trial has a status (code) with errors that count."""
    if not len(status):
        return np.zeros(len(of_trial), bool)
    return (of_trial >= 0) & np.isin(status, CREDITED)[of_trial]


def _series_table(
    run: Run, header: RunHeader, rows: np.ndarray, epochs: Columns, of_trial: np.ndarray
) -> Columns:
    """Return /score_series."""
    samples = score.score_series(
        score.tick_times(run.core_seconds, header.tick),
        epochs["t_end"],
        epochs["ops_credited"].tolist(),
        epochs["val_error"],
        epochs["val_samples"],
        counting(rows["status"], of_trial),
    )
    return {
        "t": np.array([s.t for s in samples], "<f8"),
        "cumulative_ops": _texts(str(s.ops) for s in samples),
        "cumulative_ops_f64": np.array([float(s.ops) for s in samples], "<f8"),
        **{
            name: np.array([getattr(s, name) for s in samples], "<f8")
            for name in ("rate", "best_error", "regulated")
        },
    }


# -- ranks, messages, samples ----------------------------------------------------------------------


def _last_by_rank(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Return the last row of each rank of each segment, by segment and rank; and the segment of each row."""
    segments = run.of_segment["rank"]
    places = zip(segments.tolist(), run.ranks["rank"].tolist(), strict=True)
    last = {place: index for index, place in enumerate(places)}
    chosen = np.array([last[place] for place in sorted(last)], np.int64)
    return run.ranks[chosen], segments[chosen]


def _rank_table(run: Run) -> Columns:
    """Return /ranks, with a column for the seconds of each phase."""
    rows, segments = _last_by_rank(run)
    columns = {f"seconds_{phase}": rows["phase_seconds"][:, i] for i, phase in enumerate(PHASES)}
    columns["segment"] = segments
    return {name: columns[name] if name in columns else _stored(rows[name]) for name in RANKS.names}


def _message_table(run: Run) -> Columns:
    """Return /messages: a row for each rank and kind with a message."""
    rows, segments = _last_by_rank(run)
    counts = [rows[name] for name in ("messages_sent", "messages_received", "message_bytes")]
    used = np.argwhere(np.any([count != 0 for count in counts], axis=0))
    place, kind = used[:, 0], used[:, 1]
    names = [MESSAGE_KINDS[i] for i in kind]
    sent, received, size = (count[place, kind] for count in counts)
    return {
        "rank": rows["rank"][place],
        "segment": segments[place],
        "kind": _texts(names),
        "channel": _texts("point-to-point" if name in ROW_MESSAGES else "window" for name in names),
        "sent": sent,
        "received": received,
        "bytes": size,
    }


def _sample_table(run: Run) -> Columns:
    """Return /samples by segment, node and time: of each node up to the first one after its segment's end."""
    segments = run.of_segment["sample"]
    order = np.lexsort((run.samples["t"], run.samples["node"], segments))
    rows, segments = run.samples[order], segments[order]
    stops = np.array([segment.stop for segment in run.segments], "<f8")
    over = rows["t"] >= stops[segments - 1] if len(stops) else np.zeros(len(rows), bool)
    same = (rows["node"][1:] == rows["node"][:-1]) & (segments[1:] == segments[:-1])
    second = over & np.append(False, over[:-1] & same)[: len(rows)]
    return {"segment": segments[~second]} | {name: rows[name][~second] for name in SAMPLE_ROW.names or ()}


def _stored(values: np.ndarray) -> np.ndarray:
    """Return a column of rows as the file stores it: text of a fixed width becomes strings."""
    return _texts(_text(value) for value in values) if values.dtype.kind == "S" else values


def _text(value: bytes) -> str:
    """Return text of a fixed-width column, without NUL, which HDF5's strings cannot hold."""
    return bytes(value).decode(errors="replace").replace("\0", "")


def _texts(values: Any) -> np.ndarray:
    """Return a column of strings."""
    return np.array(list(values), dtype=object)


def _unsigned(values: Any) -> np.ndarray:
    """Return a u8 column; a value beyond 64 bits becomes the largest, which the judge finds and refuses."""
    return np.array([min(value, score.U8_MAX) for value in values], "<u8")
