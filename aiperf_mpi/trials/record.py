# SPDX-License-Identifier: Apache-2.0
"""The fixed-width records of the history, and the candidate that one of them describes.

A candidate's life leaves two records in the log: PROPOSED, by the generator before anybody trains it, and
OUTCOME, when it is over. Both hold all of its fields; the architecture is stored as what distinguishes it
from its parent's (at most eight morphs), so it is replayed from the parent and checked against its hash.
Where weights are inherited, a third one, WITHDRAWN, says that the weights of a trial are kept no longer.
"""

from __future__ import annotations

import math
import zlib

import numpy as np

#: Version of the layout below; stored in each record, so that a journal of another version is refused, not
#: misread.
RECORD_FORMAT = 1

# Kinds of records. ABANDONED is never written as a record: it is how a summary shows a slot whose writer
# died.
PROPOSED, OUTCOME, ABANDONED, WITHDRAWN = 1, 2, 3, 4

# How a candidate ended (NONE in a PROPOSED record). STOPPED is the early stop by patience, a success as DONE
# is.
NONE, DONE, STOPPED, FAILED, REJECTED, DROPPED = range(6)
STATUS_NAMES = ("none", "done", "stopped", "failed", "rejected", "dropped")
SUCCESSES = (DONE, STOPPED)

# Bits in `flags`. In an OUTCOME: the value that the search uses is predicted from a learning curve, not
# measured; the trial's best weights are kept, so that children may inherit them. In both records of a
# candidate: it starts from the weights that were kept of its parent; a `deeper` of its own has the kernel
# size that the record says, where without this bit that number stands for nothing in the network.
PREDICTED, KEPT, FROM_CHECKPOINT, TAKES_KERNEL = 1, 2, 4, 8

#: Morphs between a candidate and its parent (section 4.1 of the paper takes the authors' chains; theirs are
#: short).
MAX_OWN_MORPHS = 8

CAUSE_BYTES = 64

#: One record: 256 bytes, little-endian, each field aligned to its size, the checksum of all before it at the
#: end.
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
        (
            "trial",
            "<i8",
        ),  # the slot of the PROPOSED record; -1 in that record itself, as no writer knows it yet
        ("parent", "<i8"),  # trial id of the parent; -1 for the initial architecture
        ("key", "<u8"),
        ("seed", "<u8"),
        ("train_ops", "<u8"),  # operations per image, forward and backward
        ("val_ops", "<u8"),  # operations per image, forward
        ("morphs", "<u4", (MAX_OWN_MORPHS,)),  # Morph.pack(), the first n_morphs of them
        ("arch_hash", "u1", (16,)),
        ("group", "u1", (16,)),
        ("t", "<f8"),  # seconds since core start
        ("best_error", "<f8"),  # NaN where nothing was measured
        ("predicted_error", "<f8"),  # NaN where nothing was predicted
        ("cause", f"S{CAUSE_BYTES}"),
        ("format", "<u2"),
        ("spare", "u1", (18,)),
        ("crc32", "<u4"),
    ]
)

#: What the search needs of every record, in 32 bytes: readers fetch these first and full records on demand.
SUMMARY_DTYPE = np.dtype(
    [
        ("kind", "u1"),  # PROPOSED, OUTCOME, ABANDONED or WITHDRAWN
        ("status", "u1"),
        ("n_morphs", "u1"),
        ("flags", "u1"),
        ("round", "<i4"),
        ("trial", "<i8"),
        ("parent", "<i8"),
        (
            "value",
            "<f4",
        ),  # error that the search uses: predicted where there is one, else best; NaN without success
        ("batch_per_device", "<u2"),  # cut off at 65535
        ("kernel_size", "u1"),
        ("spare", "u1"),
    ]
)


class RecordError(ValueError):
    """A record that is torn, of another version, or not the candidate that it claims to be."""


def new_record() -> np.void:
    """An unsealed record: zeros, no ids (-1), no errors (NaN)."""
    record = np.zeros(1, RECORD_DTYPE)[0]
    record["trial"] = record["parent"] = -1
    record["best_error"] = record["predicted_error"] = math.nan
    record["format"] = RECORD_FORMAT
    return record


def seal(record: np.void) -> np.void:
    """A copy of `record` with its checksum set; whatever the field held before is ignored."""
    data = bytearray(record.tobytes())
    data[-4:] = zlib.crc32(data[:-4]).to_bytes(4, "little")
    return np.frombuffer(data, RECORD_DTYPE)[0]


def check(record: np.void) -> bool:
    """Whether `record` is whole: checksum and version fit, and kind, status and number of morphs are
    possible."""
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
    """The sealed OUTCOME record that rejects a PROPOSED one as it is: what is wrong in it stays to be seen.

    Arguments:
        trial_id: slot of the PROPOSED record.
        t: seconds since core start.
        cause: what is wrong; cut to 64 ASCII characters.
        status: REJECTED, or DROPPED where nothing is wrong and its key is free again.
    """
    record = proposed.copy()
    record["kind"], record["status"], record["trial"], record["t"] = OUTCOME, status, trial_id, t
    record["cause"] = cause.encode("ascii", "replace")[:CAUSE_BYTES]
    return seal(record)


def withdrawal(trial_id: int, replica: int, t: float) -> np.void:
    """The sealed WITHDRAWN record: the weights of a trial, which its outcome said are kept, are so no longer.

    Arguments:
        trial_id: slot of the trial's PROPOSED record.
        replica: whose weights they are.
        t: seconds since core start.
    """
    record = new_record()
    record["kind"], record["trial"], record["replica"], record["t"] = WITHDRAWN, trial_id, replica, t
    return seal(record)


def summarise(record: np.void) -> np.void:
    """The 32 bytes of `record` that go beside it (dtype SUMMARY_DTYPE)."""
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
    """What the summaries show for a slot that its writer never filled."""
    summary = np.zeros(1, SUMMARY_DTYPE)[0]
    summary["kind"] = ABANDONED
    summary["trial"] = summary["parent"] = -1
    summary["value"] = math.nan
    return summary
