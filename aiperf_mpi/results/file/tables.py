# SPDX-License-Identifier: Apache-2.0
"""From a run to the columns of its result: a pure function of what was reported.

Architectures are replayed from the PROPOSED records, and operations follow from them and from the samples
that the rows report: no count that a rank computed enters the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aiperf_mpi.opcount import TRIAL_METHODS
from aiperf_mpi.results.file import score
from aiperf_mpi.results.file.attributes import attributes, documents
from aiperf_mpi.results.file.collector import Run
from aiperf_mpi.results.file.replay import Network, replay
from aiperf_mpi.results.file.rows import (
    CREDITED,
    EPOCH_ROW,
    MESSAGE_KINDS,
    PHASES,
    ROW_MESSAGES,
    SAMPLE_ROW,
    STATUS,
    TRIAL_ROW,
    UNFINISHED,
    RunHeader,
)
from aiperf_mpi.results.file.schema import Columns
from aiperf_mpi.trials.record import OUTCOME, PROPOSED


@dataclass(frozen=True)
class Tables:
    """All content of a result but its verdict: tables (columns by name), root attributes, documents by
    path."""

    tables: dict[str, Columns]
    attributes: dict[str, Any]
    documents: dict[str, str] = field(default_factory=dict)


def build(run: Run, networks: dict[int, Network] | None = None) -> Tables:
    """The content of a result.

    Arguments:
        run: the run, finished or not; what its rows leave out is derived (a trial that never ended is
            `unfinished`).
        networks: replayed networks by trial id; those of new trials are added, so that a rebuild need not
            repeat them.

    Raises ValueError for a run without a header, whose architectures nobody can replay.
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
    epochs = run.epochs[order]
    rows = _trial_rows(run, slots, epochs)
    own = [networks[slot] for slot in slots.tolist()]
    epoch_table, of_trial = _epoch_table(run, slots, rows, own, epochs)
    trial_table = _trial_table(header, slots, records, rows, own, epoch_table, of_trial)
    series = _series_table(run, header, rows, epoch_table, of_trial)
    tables = {
        "trials": trial_table,
        "epochs": epoch_table,
        "score_series": series,
        "ranks": _rank_table(run.ranks),
        "messages": _message_table(run.ranks),
        "samples": _sample_table(run),
    }
    counts = counting(rows["status"], of_trial)
    return Tables(tables, attributes(run, header, tables, counts), documents(header))


# -- trials ----------------------------------------------------------------------------------------


def _trial_rows(run: Run, slots: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """A row of TRIAL_ROW for each slot: the one that was reported, or what records and epochs say without
    it."""
    reported = {int(row["trial_id"]): row for row in run.trials}
    outcomes = {int(record["trial"]): record for record in run.records[run.records["kind"] == OUTCOME]}
    starts = np.searchsorted(epochs["trial_id"], slots, side="left")
    stops = np.searchsorted(epochs["trial_id"], slots, side="right")

    rows = np.zeros(len(slots), TRIAL_ROW)
    for index, slot in enumerate(slots.tolist()):
        outcome = outcomes.get(slot)
        if slot in reported:
            rows[index] = reported[slot]
        else:
            _derive(rows, index, slot, epochs[starts[index] : stops[index]], outcome)

        # A trial that ended without a word of its trainer (rejected, dropped) has its outcome in the history.
        if outcome is not None and rows[index]["status"] == UNFINISHED:
            rows[index]["status"] = outcome["status"]
            rows[index]["cause"] = rows[index]["cause"] or outcome["cause"]
    return rows


def _derive(rows: np.ndarray, index: int, slot: int, own: np.ndarray, outcome: np.void | None) -> None:
    """Fill the row of a trial whose own never came."""
    row = rows[index : index + 1]
    row["trial_id"], row["epochs"] = slot, len(own)
    row["train_samples"], row["val_samples"] = own["train_samples"].sum(), own["val_samples"].sum()
    row["lr"] = math.nan
    row["t_start"] = own["t_start"].min() if len(own) else math.nan
    row["t_first_step"] = math.nan
    row["t_end"] = own["t_end"].max() if len(own) else math.nan
    row["trace_seconds"] = row["compile_seconds"] = math.nan
    row["best_error"] = _least(own["val_error"])
    row["predicted_error"] = math.nan if outcome is None else outcome["predicted_error"]
    row["morph_max_abs_diff"] = math.nan


def _least(errors: np.ndarray) -> float:
    """The lowest of the errors that are numbers; NaN without one."""
    known = errors[errors >= 0]
    return float(known.min()) if len(known) else math.nan


def _trial_table(
    header: RunHeader,
    slots: np.ndarray,
    records: np.ndarray,
    rows: np.ndarray,
    networks: list[Network],
    epochs: Columns,
    of_trial: np.ndarray,
) -> Columns:
    ops = [
        score.operations(network.train_ops, network.val_ops, row["train_samples"], row["val_samples"])
        for network, row in zip(networks, rows, strict=True)
    ]
    credited = [0] * len(slots)
    for index, earned in zip(of_trial.tolist(), epochs["ops_credited"].tolist(), strict=True):
        if index >= 0:
            credited[index] += earned
    columns: Columns = {
        "trial_id": slots.astype("<i8"),
        "parent_id": records["parent"],
        **{name: records[name] for name in ("replica", "round", "batch_per_device", "batch_global")},
        **{name: rows[name] for name in ("micro_batch", "accumulation")},
        "kernel_size": records["kernel_size"],
        **{name: rows[name] for name in ("epochs", "epochs_max", "patience")},
        "seed": records["seed"],
        "lr": rows["lr"],
        "arch_hash": _texts(record["arch_hash"].tobytes().hex() for record in records),
        "group": _texts(network.group for network in networks),
        "arch_json": _texts(network.arch_json for network in networks),
        "morphs": _texts(network.morphs for network in networks),
        "status": _texts(
            STATUS[code] if code < len(STATUS) else f"code {code}" for code in rows["status"].tolist()
        ),
        "cause": _texts(_text(cause) for cause in rows["cause"]),
        "precision": _texts(_text(value) or header.precision for value in rows["precision"]),
        "train_ops_per_image": _unsigned(network.train_ops for network in networks),
        "val_ops_per_image": _unsigned(network.val_ops for network in networks),
        "opcount_methods": _texts(TRIAL_METHODS for _ in networks),
        **{name: rows[name] for name in ("jaxpr_ops", "xla_ops", "xla_model_ops")},
        "train_samples": rows["train_samples"],
        "val_samples": rows["val_samples"],
        "ops": _texts(str(value) for value in ops),
        "ops_f64": np.array([float(value) for value in ops], "<f8"),
        "ops_credited": _texts(str(value) for value in credited),
        "ops_credited_f64": np.array([float(value) for value in credited], "<f8"),
        **{
            name: rows[name]
            for name in (
                "t_start",
                "t_first_step",
                "t_end",
                "trace_seconds",
                "compile_seconds",
                "best_error",
                "predicted_error",
                "morph_max_abs_diff",
                "resumed",
            )
        },
    }
    return columns


# -- epochs and score ------------------------------------------------------------------------------


def _epoch_table(
    run: Run, slots: np.ndarray, rows: np.ndarray, networks: list[Network], epochs: np.ndarray
) -> tuple[Columns, np.ndarray]:
    """The epochs, and the row in /trials of each (-1: its trial is unknown, and it earns nothing)."""
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
    columns: Columns = {}
    for name in EPOCH_ROW.names or ():
        columns[name] = epochs[name]
        if name == "val_samples":
            columns |= {"ops": _unsigned(ops), "ops_credited": _unsigned(credited)}
    return columns, of_trial


def counting(status: np.ndarray, of_trial: np.ndarray) -> np.ndarray:
    """bool [epochs]: whether each epoch belongs to a trial (codes in `status`) whose errors count."""
    if not len(status):
        return np.zeros(len(of_trial), bool)
    return (of_trial >= 0) & np.isin(status, CREDITED)[of_trial]


def _series_table(
    run: Run, header: RunHeader, rows: np.ndarray, epochs: Columns, of_trial: np.ndarray
) -> Columns:
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


def _last_by_rank(ranks: np.ndarray) -> np.ndarray:
    """The last row of each rank, by rank."""
    last = {int(row["rank"]): index for index, row in enumerate(ranks)}
    return ranks[[last[rank] for rank in sorted(last)]]


def _rank_table(ranks: np.ndarray) -> Columns:
    rows = _last_by_rank(ranks)
    columns: Columns = {name: rows[name] for name in ("rank", "node", "replica", "local_rank")}
    names = ("role", "hostname", "device", "device_uuid", "cpus", "numa")
    columns |= {name: _texts(_text(value) for value in rows[name]) for name in names}
    columns |= {name: rows[name] for name in ("clock_offset", "clock_uncertainty", "wall_seconds")}
    return columns | {f"seconds_{phase}": rows["phase_seconds"][:, i] for i, phase in enumerate(PHASES)}


def _message_table(ranks: np.ndarray) -> Columns:
    rows = _last_by_rank(ranks)
    counts = [rows[name] for name in ("messages_sent", "messages_received", "message_bytes")]
    used = np.argwhere(np.any([count != 0 for count in counts], axis=0))
    place, kind = used[:, 0], used[:, 1]
    names = [MESSAGE_KINDS[i] for i in kind]
    sent, received, size = (count[place, kind] for count in counts)
    return {
        "rank": rows["rank"][place],
        "kind": _texts(names),
        "channel": _texts("point-to-point" if name in ROW_MESSAGES else "window" for name in names),
        "sent": sent,
        "received": received,
        "bytes": size,
    }


def _sample_table(run: Run) -> Columns:
    """The samples by node and time, of each node up to the first one behind core stop."""
    rows = run.samples[np.lexsort((run.samples["t"], run.samples["node"]))]
    over = rows["t"] >= run.core_seconds
    second = over & np.append(False, over[:-1] & (rows["node"][1:] == rows["node"][:-1]))[: len(rows)]
    return {name: rows[name][~second] for name in SAMPLE_ROW.names or ()}


def _text(value: bytes) -> str:
    """Text of a fixed-width column; a NUL, which HDF5's strings cannot hold, is left out."""
    return bytes(value).decode(errors="replace").replace("\0", "")


def _texts(values: Any) -> np.ndarray:
    return np.array(list(values), dtype=object)


def _unsigned(values: Any) -> np.ndarray:
    """u8 column; a value beyond 64 bits is cut to the largest, which the judge finds and refuses."""
    return np.array([min(value, score.U8_MAX) for value in values], "<u8")
