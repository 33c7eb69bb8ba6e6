# SPDX-License-Identifier: Apache-2.0
"""What ranks report of a run: its header, and the rows of epochs, trials, ranks and samples.

Rows are fixed-width structured dtypes (little-endian, aligned as a C compiler would), because they cross MPI
messages and a pipe as plain bytes. Everything that names a status, a phase or a kind of message reads it
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from aiperf_mpi.phases import PHASES
from aiperf_mpi.trials.record import DONE, DROPPED, FAILED, NONE, REJECTED, STATUS_NAMES, STOPPED

__all__ = [
    "CREDITED",
    "DONE",
    "DROPPED",
    "EPOCH_ROW",
    "FAILED",
    "FINAL_ROW",
    "FIRST_EPOCH",
    "MESSAGE_KINDS",
    "MORPH_TOLERANCE",
    "PHASES",
    "RANK_ROW",
    "REJECTED",
    "ROW_MESSAGES",
    "SAMPLE_ROW",
    "STATUS",
    "STOPPED",
    "TRIAL_ROW",
    "UNFINISHED",
    "WINDOW_MESSAGES",
    "RunHeader",
    "new_row",
]

#: Status of a trial by the code in TRIAL_ROW: the history's codes, where no outcome means a trial that core
#: stop (or the end of the job) cut short.
UNFINISHED = NONE
STATUS = ("unfinished", *STATUS_NAMES[1:])

#: Trials whose work is credited. A failed trial costs its time and earns nothing; the last two never trained.
CREDITED = (UNFINISHED, DONE, STOPPED)

#: What crosses point-to-point messages (rows and stop messages), and what crosses windows.
ROW_MESSAGES = ("epoch", "trial", "rank", "final", "sample", "stop")
WINDOW_MESSAGES = ("history", "claim", "candidate")
MESSAGE_KINDS = ROW_MESSAGES + WINDOW_MESSAGES

#: How far a child that inherits its parent's weights may compute another function than it
#: (`morph_max_abs_diff`): room for the rounding of float32, a hundred times what is measured. Beyond it the
#: trial fails before it is trained.
MORPH_TOLERANCE = 1e-4

#: Number of an epoch in its trial starts here (the learning rate is lr0 (1 - epoch/60)).
FIRST_EPOCH = 0

#: One epoch, or the part of it that was trained: times in s since core start on rank 0's clock, samples that
#: were really used (padding adds none), errors as fractions. `val_error` is NaN unless the validation is
#: whole.
EPOCH_ROW = np.dtype(
    [
        ("trial_id", "<i8"),
        ("epoch", "<i4"),
        ("steps", "<i4"),
        ("t_start", "<f8"),
        ("t_end", "<f8"),
        ("train_samples", "<u8"),
        ("val_samples", "<u8"),
        ("lr", "<f8"),
        ("train_loss", "<f8"),
        ("val_loss", "<f8"),
        ("val_error", "<f8"),
        ("partial", "u1"),
    ],
    align=True,
)

#: One trial at its end; samples are the sums over its epochs, `cause` says why it failed, stopped or was
#: rejected.
TRIAL_ROW = np.dtype(
    [
        ("trial_id", "<i8"),
        ("status", "u1"),
        ("resumed", "u1"),
        ("epochs", "<i4"),
        ("epochs_max", "<i4"),
        ("patience", "<i4"),
        ("micro_batch", "<i4"),
        ("accumulation", "<i4"),
        ("lr", "<f8"),
        ("t_start", "<f8"),
        ("t_first_step", "<f8"),
        ("t_end", "<f8"),
        ("trace_seconds", "<f8"),
        ("compile_seconds", "<f8"),
        ("best_error", "<f8"),
        ("predicted_error", "<f8"),
        ("morph_max_abs_diff", "<f8"),
        ("jaxpr_ops", "<u8"),
        ("xla_ops", "<u8"),
        ("xla_model_ops", "<u8"),
        ("train_samples", "<u8"),
        ("val_samples", "<u8"),
        ("precision", "S16"),
        ("cause", "S160"),
    ],
    align=True,
)

#: One rank at the end of the run: `device` is a number of devices of a kind (`4 x NVIDIA H200`),
#: `device_uuid` has room for the UUIDs of 16 (40 characters each, with commas between), or says why there are
#: none; `messages_*` and `message_bytes` (sent plus received) are by MESSAGE_KINDS.
RANK_ROW = np.dtype(
    [
        ("rank", "<i4"),
        ("node", "<i4"),
        ("replica", "<i4"),
        ("local_rank", "<i4"),
        ("role", "S16"),
        ("hostname", "S64"),
        ("device", "S64"),
        ("device_uuid", "S656"),
        ("cpus", "S128"),
        ("numa", "S64"),
        ("clock_offset", "<f8"),
        ("clock_uncertainty", "<f8"),
        ("wall_seconds", "<f8"),
        ("phase_seconds", "<f8", (len(PHASES),)),
        ("messages_sent", "<i8", (len(MESSAGE_KINDS),)),
        ("messages_received", "<i8", (len(MESSAGE_KINDS),)),
        ("message_bytes", "<i8", (len(MESSAGE_KINDS),)),
    ],
    align=True,
)

#: The validation error of the best model, loaded again after core stop.
FINAL_ROW = np.dtype([("trial_id", "<i8"), ("error", "<f8")], align=True)


#: What a node's monitor measured in a window, which ends at `t` and begins at the node's row before (or at
#: core start): see SAMPLES. One row for a node and window, whatever the number of its devices.
SAMPLE_ROW = np.dtype(
    [
        ("t", "<f8"),
        ("node", "<i4"),
        ("window", "<i4"),
        ("count", "<i4"),
        ("devices", "<i4"),
        ("cpu_percent", "<f8"),
        ("process_percent", "<f8"),
        ("memory_bytes", "<f8"),
        ("process_bytes", "<f8"),
        ("device_percent", "<f8"),
        ("device_memory_bytes", "<f8"),
        ("device_mhz", "<f8"),
        ("device_celsius", "<f8"),
        ("device_watts", "<f8"),
        ("power_watts", "<f8"),
        ("energy_joules", "<f8"),
        ("read_bytes", "<f8"),
        ("write_bytes", "<f8"),
        ("net_bytes", "<f8"),
        ("fabric_bytes", "<f8"),
        ("sample_seconds", "<f8"),
    ],
    align=True,
)


def new_row(dtype: np.dtype, **values: Any) -> np.ndarray:
    """One row of `dtype` (shape (1,)) with `values` in their columns, NaN in other floats, 0 in the rest.

    Text is stored as UTF-8 and cut to its column's width. Raises ValueError for a name that is no column.
    """
    row = np.zeros(1, dtype)
    for name in dtype.names or ():
        if dtype[name].kind == "f":
            row[name] = np.nan
    for name, value in values.items():
        if name not in (dtype.names or ()):
            raise ValueError(f"row has no column {name!r}; it has {', '.join(dtype.names or ())}")
        # A cut in the middle of a character takes the whole character away.
        if isinstance(value, str):
            value = value.encode()[: dtype[name].itemsize].decode(errors="ignore").encode()
        row[name] = value
    return row


@dataclass(frozen=True)
class RunHeader:
    """What is known of a run before its core time starts (the journal's first event; times in s).

    `base` is the JSON of the initial architecture, from which all others are replayed; `train_images` and
    `val_images` are the sizes of the sets that are really used; `inventory` and `packages` are JSON objects.
    """

    run_id: str
    seed: int
    time_limit: float
    tick: float
    base: str
    train_images: int
    val_images: int
    n_ranks: int
    n_nodes: int
    n_replicas: int
    n_devices: int
    n_generators: int = 0
    cls: str = "trial"
    division: str = "open"
    departures: tuple[str, ...] = ()
    precision: str = "float32"
    dataset: str = ""
    dataset_sha256: str = ""
    config_toml: str = ""
    config_sha256: str = ""
    argv: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None
    inventory: Mapping[str, Any] | None = None
    packages: Mapping[str, str] | None = None
    version: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The header as a JSON object."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> RunHeader:
        """A header from its JSON object; keys of later versions are left out. Raises TypeError if one is
        missing."""
        known = {f.name for f in fields(RunHeader)}
        values: dict[str, Any] = {key: value for key, value in data.items() if key in known}
        for key in ("departures", "argv"):
            values[key] = tuple(values.get(key, ()))
        return RunHeader(**values)
