# SPDX-License-Identifier: Apache-2.0
"""The reports of ranks on a run: its header, and rows of epochs, trials, ranks and samples.

Rows are fixed-width structured dtypes (little-endian, aligned as a C compiler would), because MPI messages
and a pipe carry them as plain bytes. Types of their columns are those of the schema.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from aiperf_mpi.phases import PHASES
from aiperf_mpi.results.file.schema import DTYPES, EPOCHS, SAMPLES, TRIALS, Table
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
    "row_of",
]

#: Status of a trial by the code in TRIAL_ROW. Codes are those of the history; a trial without an outcome was
#: cut short by core stop or by the end of the job.
UNFINISHED = NONE
STATUS = ("unfinished", *STATUS_NAMES[1:])

#: Status of trials whose work is credited. A failed trial is not; rejected and dropped ones never trained.
CREDITED = (UNFINISHED, DONE, STOPPED)

#: Kinds of point-to-point messages (rows and stop messages), and of traffic through windows.
ROW_MESSAGES = ("epoch", "trial", "rank", "final", "sample", "stop")
WINDOW_MESSAGES = ("history", "claim", "candidate")
MESSAGE_KINDS = ROW_MESSAGES + WINDOW_MESSAGES

#: Largest difference (`morph_max_abs_diff`) between a child that inherits weights and its parent: a hundred
#: times the measured rounding of float32. Above it the trial fails before it is trained.
MORPH_TOLERANCE = 1e-4

#: Number of a trial's first epoch (the learning rate is lr0 (1 - epoch/60)).
FIRST_EPOCH = 0


def _row(table: Table, names: Iterable[str], **own: str) -> np.dtype:
    """Return the dtype of a row with columns of a table, in this order.

    Types are those of the schema, or given in `own` by name (codes, text of a fixed width).
    """
    types = {column.name: DTYPES[column.dtype] for column in table.columns}
    return np.dtype([(name, own.get(name) or types[name]) for name in names], align=True)


#: One epoch, or the part of it that was trained: the columns of /epochs except those that are computed from
#: them. Samples were really used (padding adds none), `val_error` is NaN unless the validation is whole.
EPOCH_ROW = _row(EPOCHS, (name for name in EPOCHS.names if name not in ("ops", "ops_credited")))

#: One trial at its end: the columns of /trials that only its trainer knows, in the order of the message.
#: Samples are sums over its epochs; `cause` is why it failed, stopped or was rejected.
TRIAL_ROW = _row(
    TRIALS,
    "trial_id status resumed epochs epochs_max patience micro_batch accumulation lr t_start t_first_step "
    "t_end trace_seconds compile_seconds best_error predicted_error morph_max_abs_diff jaxpr_ops "
    "xla_ops xla_model_ops train_samples val_samples precision cause".split(),
    status="u1",
    precision="S16",
    cause="S160",
)

#: One rank at the end of the run: `device` is a number of devices of a kind (`4 x NVIDIA H200`),
#: `device_uuid` has room for the UUIDs of 16 devices (40 characters each, with commas between) or the reason
#: for none; `messages_*` and `message_bytes` (sent plus received) are by MESSAGE_KINDS.
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
        ("bytes_read", "<i8"),
        ("phase_seconds", "<f8", (len(PHASES),)),
        ("messages_sent", "<i8", (len(MESSAGE_KINDS),)),
        ("messages_received", "<i8", (len(MESSAGE_KINDS),)),
        ("message_bytes", "<i8", (len(MESSAGE_KINDS),)),
    ],
    align=True,
)

#: The validation error of the best model, loaded again after core stop.
FINAL_ROW = np.dtype([("trial_id", "<i8"), ("error", "<f8")], align=True)

#: What the monitor of a node measured in a window: all columns of /samples but the segment. A node sends one
#: row for each window, however many devices it has.
SAMPLE_ROW = _row(SAMPLES, (name for name in SAMPLES.names if name != "segment"))


def new_row(dtype: np.dtype, **values: Any) -> np.ndarray:
    """Return one row of `dtype` (shape (1,)) with `values` by column, NaN in other floats, and 0 elsewhere.

    Text is stored as UTF-8 and cut to its column's width. Raises ValueError for an unknown column.
    """
    row = np.zeros(1, dtype)
    for name in dtype.names or ():
        if dtype[name].kind == "f":
            row[name] = np.nan
    for name, value in values.items():
        if name not in (dtype.names or ()):
            raise ValueError(f"row has no column {name!r}; it has {', '.join(dtype.names or ())}")
        # A character that the cut divides is left out.
        if isinstance(value, str):
            value = value.encode()[: dtype[name].itemsize].decode(errors="ignore").encode()
        row[name] = value
    return row


def row_of(dtype: np.dtype, *sources: Any, **values: Any) -> np.ndarray:
    """Return one row of `dtype` (shape (1,)) from dataclasses with fields of its columns' names.

    `values` gives the columns that are not a field of a source; other fields of the sources are ignored.
    Raises ValueError for a column without a value, or with two.
    """
    names = dtype.names or ()
    given = list(values.items())
    for source in sources:
        given += [
            (field.name, getattr(source, field.name)) for field in fields(source) if field.name in names
        ]
    if sorted(name for name, _ in given) != sorted(names):
        missing = set(names) - {name for name, _ in given}
        raise ValueError(f"row needs each column once: without a value {sorted(missing)}, given {given}")
    return new_row(dtype, **dict(given))


@dataclass(frozen=True)
class RunHeader:
    """The description of a run before its core time starts (the journal's first event; times in s).

    `base` is the JSON of the initial architecture, from which all others are replayed; `train_images` and
    `val_images` are the sizes of the sets in use; `inventory` and `packages` are JSON objects. `manifest` is
    the JSON text of a packed set's manifest.
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
    manifest: str = "{}"
    staging_seconds: float = 0.0
    staged_bytes: int = 0
    hash_seconds: float = 0.0
    config_toml: str = ""
    config_sha256: str = ""
    argv: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None
    inventory: Mapping[str, Any] | None = None
    packages: Mapping[str, str] | None = None
    version: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the header as a JSON object."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> RunHeader:
        """Return a header from its JSON object, without keys of later versions.

        Raises TypeError if a key is missing.
        """
        known = {f.name for f in fields(RunHeader)}
        values: dict[str, Any] = {key: value for key, value in data.items() if key in known}
        for key in ("departures", "argv"):
            values[key] = tuple(values.get(key, ()))
        return RunHeader(**values)
