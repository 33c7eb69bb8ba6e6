# SPDX-License-Identifier: Apache-2.0
"""Copies of a result with a change, and the check that finds a change of each column and attribute."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from aiperf_mpi import hdf5
from aiperf_mpi.results.file import resultfile
from aiperf_mpi.results.file.schema import DOCUMENTS, TABLES
from aiperf_mpi.results.judge.judge import Verdict, judge
from aiperf_mpi.results.output import process
from tests.helpers.results.example_run import Example


def written(example: Example, folder: Path) -> Path:
    """The example's result file, as the writer makes it."""
    hdf5.write(folder / "result.h5", process.final_image(example.run()))
    return folder / "result.h5"


def changed(
    path: Path, folder: Path, change: Callable[[h5py.File], object], *, rehash: bool = True
) -> Verdict:
    """The verdict on a copy with a change; with `rehash` the content hash is that of the changed content."""
    copy = folder / "changed.h5"
    shutil.copy(path, copy)
    with h5py.File(copy, "r+") as file:
        change(file)
        if rehash:
            resultfile.set_attributes(file, {"content_sha256": resultfile.content_hash(file)})
    return judge(copy)


def breaks_seal(path: Path, folder: Path, change: Callable[[h5py.File], object]) -> bool:
    """Whether a change to a copy changes its content hash."""
    copy = folder / "unsealed.h5"
    shutil.copy(path, copy)
    with h5py.File(copy, "r+") as file:
        sealed = resultfile.content_hash(file)
        assert sealed == file.attrs["content_sha256"]
        change(file)
        return resultfile.content_hash(file) != sealed


def altered(file: h5py.File, table: str, column: str, row: int = 2) -> None:
    """Change one value to another one of its type."""
    dataset = file[table][column]
    row = min(row, len(dataset) - 1)
    value = dataset[row]
    match TABLES[table].columns[TABLES[table].names.index(column)].dtype:
        case "str":
            dataset[row] = f"{value.decode()}7" if value.decode().isdigit() else "x"
        case "f8":
            dataset[row] = 0.123 if np.isnan(value) else value * 1.25 + 0.125
        case _:
            dataset[row] = value + 1


#: What finds a changed value of each column once the content hash is made to fit. Columns without an entry
#: bear on no score: descriptions, losses, how the phases share a rank's time, counts of messages.
FINDS = {
    "trials": {
        "trial_id": "I02",
        "parent_id": "I05",
        "replica": "V12",
        "round": "I13",
        "batch_per_device": "V11",
        "batch_global": "I09",
        "kernel_size": "I05",
        "epochs": "I10",
        "epochs_max": "I13",
        "patience": "I13",
        "seed": "V16",
        "lr": "I13",
        "arch_hash": "I05",
        "group": "I05",
        "arch_json": "I05",
        "morphs": "I05",
        "status": "I03",
        "train_ops_per_image": "I07",
        "val_ops_per_image": "I07",
        "opcount_methods": "I07",
        "jaxpr_ops": "V06",
        "train_samples": "V05",
        "val_samples": "V05",
        "ops": "V05",
        "ops_f64": "V05",
        "ops_credited": "V05",
        "ops_credited_f64": "V05",
        "precision": "V10",
        "t_start": "V12",
        "t_end": "V12",
        "t_first_step": "V12",
        "micro_batch": "I09",
        "accumulation": "I09",
        "best_error": "I10",
        "morph_max_abs_diff": "V08",
    },
    "epochs": {
        "trial_id": "I02",
        "epoch": "I02",
        "steps": "I09",
        "t_end": "V12",
        "train_samples": "I09",
        "val_samples": "I09",
        "ops": "V05",
        "ops_credited": "V05",
        "lr": "I13",
        "val_error": "I10",
        "partial": "I09",
    },
    "score_series": {
        "t": "I08",
        "cumulative_ops": "I08",
        "cumulative_ops_f64": "I08",
        "rate": "I08",
        "best_error": "I08",
        "regulated": "I08",
    },
    "ranks": {
        "rank": "V11",
        "segment": "V11",
        "role": "V11",
        "wall_seconds": "V13",
        "seconds_init": "V13",
        "seconds_idle": "V13",
        "bytes_read": "I22",
        "node": "V11",
        "hostname": "V11",
        "device": "V11",
        "device_uuid": "V11",
    },
    "messages": {"rank": "I11", "kind": "I11", "channel": "I11", "segment": "I11"},
    "segments": dict.fromkeys(
        (
            *("segment", "start_utc", "t_start", "t_end", "total_seconds", "end", "n_ranks", "n_nodes"),
            *("n_replicas", "n_devices", "n_generators", "time_limit", "lost_trials", "lost_epochs"),
        ),
        "I23",
    ),
    "samples": {
        "segment": "I17",
        "t": "I17",
        "node": "I17",
        "window": "I17",
        "power_watts": "I17",
        "energy_joules": "I17",
    },
}

#: The same of attributes and documents.
ATTRIBUTE_FINDS = {
    "schema": "I01",
    "schema_version": "I01",
    "class": "V01",
    "division": "V01",
    "end": "I03",
    "complete": "V21",
    "valid": "I12",
    "invalid_reasons": "I12",
    "score_ops": "I12",
    "score_regulated": "I12",
    "trial_rate_ops": "I12",
    "unscored_rate_ops": "I12",
    "peak_ops": "I12",
    "peak_source": "I12",
    "mfu": "I12",
    "total_ops": "V05",
    "best_error": "I08",
    "best_trial": "I08",
    "error_final_trial": "I08",
    "core_start_utc": "I03",
    "core_stop_utc": "V02",
    "core_seconds": "I08",
    "time_limit": "V01",
    "tick": "I08",
    "seed": "V01",
    "precision": "V01",
    "dataset": "V01",
    "train_images": "V01",
    "val_images": "V01",
    "staging_seconds": "I22",
    "staged_bytes": "I22",
    "hash_seconds": "I22",
    "base_json": "V01",
    "n_ranks": "V11",
    "n_nodes": "V11",
    "n_replicas": "V11",
    "n_devices": "V11",
    "n_generators": "V11",
    "energy_joules": "I12",
    "energy_level": "I12",
    "ops_per_watt": "I12",
    "total_seconds": "I23",
    "n_trials": "I01",
    "n_epochs": "I01",
    "opcount_method": "I07",
    "config_sha256": "V01",
    **{document: "I01" for document in DOCUMENTS},
    "config/resolved_toml": "V01",
}
