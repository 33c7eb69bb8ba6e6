# SPDX-License-Identifier: Apache-2.0
"""The attributes and documents of a result: what is said of the run as a whole."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from aiperf_mpi import __version__
from aiperf_mpi.machine.energy import core_energy
from aiperf_mpi.opcount.analytical import METHOD_VERSION
from aiperf_mpi.results.file.collector import Run
from aiperf_mpi.results.file.rows import RunHeader
from aiperf_mpi.results.file.schema import ATTRIBUTES, SCHEMA, SCHEMA_VERSION, Columns


def energy_of(samples: Columns, ranks: Columns, core_seconds: float, inventory: str) -> tuple[float, str]:
    """Energy (J) of the core time and its level, from the columns of /samples and /ranks and the inventory's
    JSON."""
    hosts = dict(zip(ranks["node"].tolist(), ranks["hostname"].tolist(), strict=True))
    return core_energy(samples, hosts, core_seconds, power_sources(json.loads(inventory)))


def power_sources(inventory: Mapping[str, Any]) -> list[str]:
    """What the descriptions of nodes in an inventory say of their power, each text once."""
    return list(
        dict.fromkeys(str(entry["power"]) for entry in inventory.get("nodes", ()) if "power" in entry)
    )


def core_stop(core_start_utc: str, core_seconds: float) -> str:
    """The end of the core time, ISO 8601 to the millisecond; "" of a run that never started.

    Raises ValueError for a start that is no time.
    """
    if not core_start_utc:
        return ""
    return (datetime.fromisoformat(core_start_utc) + timedelta(seconds=core_seconds)).isoformat(
        timespec="milliseconds"
    )


def attributes(run: Run, header: RunHeader, tables: dict[str, Columns], counts: np.ndarray) -> dict[str, Any]:
    """The root attributes in the schema's order; those of the verdict say that there is none yet.

    `counts` is a bool for each epoch, whether its trial did not fail.
    """
    best_error, best_trial = best_validation(tables["epochs"], counts, run.core_seconds)
    final_trial, final_error = run.final or (-1, math.nan)
    texts = documents(header)
    energy, level = energy_of(
        tables["samples"], tables["ranks"], run.core_seconds, texts["system/inventory_json"]
    )
    values = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "aiperf_mpi_version": header.version or __version__,
        "run_id": header.run_id,
        "class": header.cls,
        "division": header.division,
        "end": run.end,
        "end_cause": run.end_cause,
        "complete": 0,
        "valid": 0,
        "invalid_reasons": "[]",
        "score_ops": math.nan,
        "score_regulated": math.nan,
        "trial_rate_ops": math.nan,
        "unscored_rate_ops": math.nan,
        "total_ops": str(sum(tables["epochs"]["ops_credited"].tolist())),
        "best_error": best_error,
        "best_trial": best_trial,
        "error_final": final_error,
        "error_final_trial": final_trial,
        "peak_ops": math.nan,
        "peak_source": "",
        "mfu": math.nan,
        "core_start_utc": run.core_start_utc,
        "core_stop_utc": core_stop(run.core_start_utc, run.core_seconds),
        "core_seconds": run.core_seconds,
        "total_seconds": run.total_seconds,
        "time_limit": header.time_limit,
        "tick": header.tick,
        "seed": header.seed,
        "precision": header.precision,
        "dataset": header.dataset,
        "dataset_sha256": header.dataset_sha256,
        "train_images": header.train_images,
        "val_images": header.val_images,
        "base_json": header.base,
        "n_ranks": header.n_ranks,
        "n_nodes": header.n_nodes,
        "n_replicas": header.n_replicas,
        "n_devices": header.n_devices,
        "n_generators": header.n_generators,
        "n_trials": len(tables["trials"]["trial_id"]),
        "n_epochs": len(counts),
        "opcount_method": METHOD_VERSION,
        "energy_joules": energy,
        "energy_level": level,
        "ops_per_watt": math.nan,
        "config_sha256": header.config_sha256,
        "journal_complete": int(run.journal_complete),
        "content_sha256": "",
    }
    return {attribute.name: values[attribute.name] for attribute in ATTRIBUTES}


def best_validation(epochs: Columns, counts: np.ndarray, core_seconds: float) -> tuple[float, int]:
    """The lowest validation error that counts, and its trial (the lowest id of equal ones); (NaN, -1) without
    one.

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
    """The texts of the file by their paths: the configuration, and JSON of everything else."""
    return {
        "config/resolved_toml": header.config_toml,
        "config/argv": json.dumps(list(header.argv)),
        "config/env_json": json.dumps(dict(header.environment or {})),
        "config/departures_json": json.dumps(list(header.departures)),
        "system/inventory_json": json.dumps(header.inventory or {}),
        "system/packages_json": json.dumps(dict(header.packages or {})),
    }
