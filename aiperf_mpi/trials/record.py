# SPDX-License-Identifier: Apache-2.0
"""Fixed-width records of the history: layout, checksum, summary.

A candidate writes two records to the log. Its generator writes PROPOSED before any rank trains it; OUTCOME
follows when it has ended. Both hold all fields of the candidate. The architecture is stored as its difference
from the parent's (at most eight morphs). A reader replays it from the parent and checks its hash. If weights
are inherited, a third record, WITHDRAWN, says that the weights of a trial are no longer kept.
"""

from __future__ import annotations

import math
import zlib

import numpy as np

#: Version of the layout below. It is stored in each record, so that a journal of another version is refused.
RECORD_FORMAT = 1

# Kinds of records. ABANDONED is never written: a summary shows it for the slot of a dead writer.
PROPOSED, OUTCOME, ABANDONED, WITHDRAWN = 1, 2, 3, 4

# How a candidate ended (NONE in a PROPOSED record). STOPPED is the early stop by patience, a success like
# DONE.
NONE, DONE, STOPPED, FAILED, REJECTED, DROPPED = range(6)
STATUS_NAMES = ("none", "done", "stopped", "failed", "rejected", "dropped")
SUCCESSES = (DONE, STOPPED)

# Bits in `flags`. PREDICTED (OUTCOME): the value that the search uses is predicted from a learning curve, not
# measured. KEPT (OUTCOME): the trial's best weights are kept, so that children may inherit them.
# FROM_CHECKPOINT (both records of a candidate): training starts from the parent's kept weights. TAKES_KERNEL
# (both): one of the candidate's own `deeper` morphs has the record's kernel size; without this bit that
# number has no effect on the network.
PREDICTED, KEPT, FROM_CHECKPOINT, TAKES_KERNEL = 1, 2, 4, 8

#: Maximum number of morphs between a candidate and its parent (section 4.1 of the paper uses the authors'
#: chains, which are short).
MAX_OWN_MORPHS = 8

#: Bytes of a record's field `cause`: why a candidate failed or was rejected.
CAUSE_BYTES = 64

#: One record: 256 bytes, little-endian, each field aligned to its size. The last field is the checksum of all
#: bytes before it.
RECORD_DTYPE = np.dtype(
    [
        ("kind", "u1"),
        ("status", "u1"),
        ("n_morphs", "u1"),
        ("flags", "u1"),
        ("replica", "<i4"),
        ("generator", "<i4"),
        ("round", "<i4"),
        ("batch_per_device", "<i4"),
        ("batch_global", "<i4"),
        ("kernel_size", "<i4"),
        ("epochs", "<i4"),  # epochs trained; 0 in a PROPOSED record
        ("trial", "<i8"),  # slot of the PROPOSED record; -1 in that record itself: its slot is not known yet
        ("parent", "<i8"),  # trial id of the parent; -1 for the initial architecture
        ("key", "<u8"),
        ("seed", "<u8"),
        ("train_ops", "<u8"),  # operations per image, forward and backward
        ("val_ops", "<u8"),  # operations per image, forward
        ("morphs", "<u4", (MAX_OWN_MORPHS,)),  # Morph.pack(), the first n_morphs of them
        ("arch_hash", "u1", (16,)),
        ("group", "u1", (16,)),
        ("t", "<f8"),  # seconds since core start
        ("best_error", "<f8"),  # NaN if nothing was measured
        ("predicted_error", "<f8"),  # NaN if nothing was predicted
        ("cause", f"S{CAUSE_BYTES}"),
        ("format", "<u2"),
        ("chosen_by", "u1"),  # what chose network and hyperparameters, see trials/origin.py
        ("tuned_by", "u1"),
        ("expected_error", "<f4"),  # 0 with a deviation of 0 if nothing was expected
        ("expected_deviation", "<f4"),
        ("unused", "u1", (8,)),  # journals of version 0.1 have 18 bytes `spare` instead of these five fields
        ("crc32", "<u4"),
    ]
)

#: What the search needs of every record, in 32 bytes. Readers fetch summaries first and full records on
#: demand.
SUMMARY_DTYPE = np.dtype(
    [
        ("kind", "u1"),  # PROPOSED, OUTCOME, ABANDONED or WITHDRAWN
        ("status", "u1"),
        ("n_morphs", "u1"),
        ("flags", "u1"),
        ("round", "<i4"),
        ("trial", "<i8"),
        ("parent", "<i8"),
        ("value", "<f4"),  # error that the search uses: the predicted one, else the best; NaN without success
        ("batch_per_device", "<u2"),  # at most 65535
        ("kernel_size", "u1"),
        ("spare", "u1"),
    ]
)


class RecordError(ValueError):
    """A record that is torn, of another version, or inconsistent with its candidate."""


def new_record() -> np.void:
    """Return an unsealed record: zeros, ids -1, errors NaN."""
    record = np.zeros(1, RECORD_DTYPE)[0]
    record["trial"] = record["parent"] = -1
    record["best_error"] = record["predicted_error"] = math.nan
    record["format"] = RECORD_FORMAT
    return record


def seal(record: np.void) -> np.void:
    """Return a copy of `record` with its checksum set. The checksum's old value is ignored."""
    data = bytearray(record.tobytes())
    data[-4:] = zlib.crc32(data[:-4]).to_bytes(4, "little")
    return np.frombuffer(data, RECORD_DTYPE)[0]


def check(record: np.void) -> bool:
    """Return whether `record` is whole.

    Checksum and version must match; kind, status and number of morphs must be possible.
    """
    data = record.tobytes()
    return (
        zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little")
        and record["format"] == RECORD_FORMAT
        and record["kind"] in (PROPOSED, OUTCOME, WITHDRAWN)
        and (record["status"] == NONE) == (record["kind"] != OUTCOME)
        and record["status"] <= DROPPED
        and record["n_morphs"] <= MAX_OWN_MORPHS
    )


def rejection(proposed: np.void, trial_id: int, t: float, cause: str, status: int = REJECTED) -> np.void:
    """Return the sealed OUTCOME record that rejects a PROPOSED record.

    All other fields are copied, errors included.

    Arguments:
        trial_id: slot of the PROPOSED record.
        t: seconds since core start.
        cause: the reason; cut to 64 ASCII characters.
        status: REJECTED, or DROPPED for a candidate without a fault; its key is free again.
    """
    record = proposed.copy()
    record["kind"], record["status"], record["trial"], record["t"] = OUTCOME, status, trial_id, t
    record["cause"] = cause.encode("ascii", "replace")[:CAUSE_BYTES]
    return seal(record)


def withdrawal(trial_id: int, replica: int, t: float) -> np.void:
    """Return the sealed WITHDRAWN record: the weights of a trial are no longer kept.

    Arguments:
        trial_id: slot of the trial's PROPOSED record.
        replica: the replica that kept the weights.
        t: seconds since core start.
    """
    record = new_record()
    record["kind"], record["trial"], record["replica"], record["t"] = WITHDRAWN, trial_id, replica, t
    return seal(record)


def summarise(record: np.void) -> np.void:
    """Return the 32-byte summary of `record` (dtype SUMMARY_DTYPE)."""
    summary = np.zeros(1, SUMMARY_DTYPE)[0]
    for name in ("kind", "status", "n_morphs", "flags", "round", "trial", "parent"):
        summary[name] = record[name]

    value = math.nan
    if record["status"] in SUCCESSES:
        value = record["predicted_error"] if record["flags"] & PREDICTED else record["best_error"]
    summary["value"] = value
    summary["batch_per_device"] = min(int(record["batch_per_device"]), 0xFFFF)
    summary["kernel_size"] = record["kernel_size"]
    return summary


def abandoned_summary() -> np.void:
    """Return the summary of a slot that its writer never filled."""
    summary = np.zeros(1, SUMMARY_DTYPE)[0]
    summary["kind"] = ABANDONED
    summary["trial"] = summary["parent"] = -1
    summary["value"] = math.nan
    return summary
