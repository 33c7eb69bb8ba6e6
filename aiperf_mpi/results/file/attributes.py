# SPDX-License-Identifier: Apache-2.0
"""The attributes and documents of a result, which describe the run as a whole."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from aiperf_mpi import __version__
from aiperf_mpi.machine.energy import NOT_MEASURED, core_energy
from aiperf_mpi.opcount.analytical import METHOD_VERSION
from aiperf_mpi.results.file.collector import Run
from aiperf_mpi.results.file.rows import RunHeader
from aiperf_mpi.results.file.schema import ATTRIBUTES, SCHEMA, SCHEMA_VERSION, Columns

#: Attributes that the header has under the same name.
_OF_HEADER = (
    "run_id",
    "division",
    "time_limit",
    "tick",
    "seed",
    "precision",
    "dataset",
    "dataset_sha256",
    "train_images",
    "val_images",
    "staging_seconds",
    "staged_bytes",
    "hash_seconds",
    "n_ranks",
    "n_nodes",
    "n_replicas",
    "n_devices",
    "n_generators",
    "config_sha256",
)


def energy_of(
    samples: Columns, ranks: Columns, core_seconds: float, inventory: str, segments: int = 1
) -> tuple[float, str]:
    """Return energy (J) of the core time and its level.

    Arguments:
        samples, ranks: the columns of /samples and /ranks.
        core_seconds: length of the core time in s.
        inventory: the inventory's JSON.
        segments: of the run; with more than one the energy is not known, as none proves it up to its end.
    """
    if segments > 1:
        return math.nan, f"{NOT_MEASURED}: the run has {segments} segments"
    hosts = dict(zip(ranks["node"].tolist(), ranks["hostname"].tolist(), strict=True))
    return core_energy(samples, hosts, core_seconds, power_sources(json.loads(inventory)))


def power_sources(inventory: Mapping[str, Any]) -> list[str]:
    """Return what the nodes of an inventory measure their power by, each text once."""
    return list(
        dict.fromkeys(str(entry["power"]) for entry in inventory.get("nodes", ()) if "power" in entry)
    )


def core_stop(core_start_utc: str, core_seconds: float) -> str:
    """Return the end of the core time, ISO 8601 to the millisecond; "" for a run that never started.

    Raises ValueError for a start that is not a time.
    """
    if not core_start_utc:
        return ""
    return (datetime.fromisoformat(core_start_utc) + timedelta(seconds=core_seconds)).isoformat(
        timespec="milliseconds"
    )


def _last_stop(run: Run) -> str:
    """Return the end of the core time, which is that of the last segment."""
    if not run.segments:
        return core_stop(run.core_start_utc, run.core_seconds)
    return core_stop(run.segments[-1].start_utc, run.segments[-1].seconds)


def attributes(run: Run, header: RunHeader, tables: dict[str, Columns], counts: np.ndarray) -> dict[str, Any]:
    """Return the root attributes in the schema's order, with a verdict that is still empty.

    `counts` is a bool for each epoch, whether its trial did not fail.
    """
    values = {name: getattr(header, name) for name in _OF_HEADER}
    values |= {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "aiperf_mpi_version": header.version or __version__,
        "class": header.cls,
        "base_json": header.base,
        "opcount_method": METHOD_VERSION,
        "content_sha256": "",
    }
    values |= _run_values(run) | _row_values(run, header, tables, counts) | _empty_verdict()
    return {attribute.name: values[attribute.name] for attribute in ATTRIBUTES}


def _run_values(run: Run) -> dict[str, Any]:
    """Return the attributes that the events of the run give."""
    final_trial, final_error = run.final or (-1, math.nan)
    return {
        "end": run.end,
        "end_cause": run.end_cause,
        "error_final": final_error,
        "error_final_trial": final_trial,
        "core_start_utc": run.core_start_utc,
        "core_stop_utc": _last_stop(run),
        "core_seconds": run.core_seconds,
        "total_seconds": run.total_seconds,
        "journal_complete": int(run.journal_complete),
    }


def _row_values(
    run: Run, header: RunHeader, tables: dict[str, Columns], counts: np.ndarray
) -> dict[str, Any]:
    """Return the attributes that are computed from the tables."""
    best_error, best_trial = best_validation(tables["epochs"], counts, run.core_seconds)
    inventory = documents(header)["system/inventory_json"]
    energy, level = energy_of(
        tables["samples"], tables["ranks"], run.core_seconds, inventory, len(run.segments)
    )
    return {
        "total_ops": str(sum(tables["epochs"]["ops_credited"].tolist())),
        "best_error": best_error,
        "best_trial": best_trial,
        "n_trials": len(tables["trials"]["trial_id"]),
        "n_epochs": len(counts),
        "energy_joules": energy,
        "energy_level": level,
    }


def _empty_verdict() -> dict[str, Any]:
    """Return the attributes of the verdict for a file that is not judged yet."""
    unknown = (
        "score_ops",
        "score_regulated",
        "trial_rate_ops",
        "unscored_rate_ops",
        "peak_ops",
        "mfu",
        "ops_per_watt",
    )
    return dict.fromkeys(unknown, math.nan) | {
        "complete": 0,
        "valid": 0,
        "invalid_reasons": "[]",
        "peak_source": "",
    }


def best_validation(epochs: Columns, counts: np.ndarray, core_seconds: float) -> tuple[float, int]:
    """Return the lowest validation error that counts and its trial, or (NaN, -1) without one.

    Of trials with equal errors it is the one with the lowest id.

    Arguments:
        epochs: the columns of /epochs.
        counts: bool [epochs], whether the epoch's trial did not fail.
        core_seconds: validations that ended later do not count.
    """
    rows = np.flatnonzero(counts & (epochs["val_error"] >= 0) & (epochs["t_end"] <= core_seconds))
    if not len(rows):
        return math.nan, -1
    best = rows[np.lexsort((epochs["trial_id"][rows], epochs["val_error"][rows]))[0]]
    return float(epochs["val_error"][best]), int(epochs["trial_id"][best])


def documents(header: RunHeader) -> dict[str, str]:
    """Return the documents of the file by path: the configuration, and JSON of everything else."""
    return {
        "config/resolved_toml": header.config_toml,
        "config/argv": json.dumps(list(header.argv)),
        "config/env_json": json.dumps(dict(header.environment or {})),
        "config/departures_json": json.dumps(list(header.departures)),
        "data/manifest_json": header.manifest,
        "system/inventory_json": json.dumps(header.inventory or {}),
        "system/packages_json": json.dumps(dict(header.packages or {})),
    }
