# SPDX-License-Identifier: Apache-2.0
"""Sizes of the windows that ranks share (history, claims, queues), and numbers of records and files of a run.

The ranks allocate windows of these sizes; an estimate without MPI reports them.
"""

from __future__ import annotations

import numpy as np

from aiperf_mpi.trials.record import RECORD_DTYPE, SUMMARY_DTYPE
from aiperf_mpi.trials.view import START

#: Bytes of one 64-bit word, the unit of all atomic operations.
WORD = 8

#: Places in the table of claims for each record of the history. A trial has one key and at least one record,
#: so the table is at most half full. A claim then takes about two swaps.
CLAIMS_PER_RECORD = 2

#: Bytes of a claim: a key and its state.
CLAIM_BYTES = 2 * WORD

#: Records that each candidate writes to the history: its proposal and its outcome.
RECORDS_PER_CANDIDATE = 2

#: Fraction of the history's slots after which stale candidates are no longer replaced. The rest is reserved
#: for candidates that are trained.
REPLACING_PART = 0.5

#: States of a trial that trains which are kept. The one before the newest serves where the newest is damaged,
#: or where the journal does not hold its last epoch yet.
KEPT_STATES = 2

#: Bytes before the rows of a node's mirror: its lock and its row count.
MIRROR_HEADER = 64


class LogLayout:
    """Byte offsets in rank 0's window: the counter, then the words, summaries and records of all slots."""

    counter = 0

    def __init__(self, capacity: int) -> None:
        self.words = 64
        self.summaries = self.words + capacity * WORD
        self.records = self.summaries + capacity * SUMMARY_DTYPE.itemsize
        self.size = self.records + capacity * RECORD_DTYPE.itemsize


def history_bytes(capacity: int) -> int:
    """Return the bytes of rank 0's window for a log of `capacity` slots."""
    return LogLayout(capacity).size


def mirror_bytes(capacity: int) -> int:
    """Return the bytes of a node's mirror of the summaries."""
    return MIRROR_HEADER + capacity * SUMMARY_DTYPE.itemsize


def claims_bytes(capacity: int) -> int:
    """Return the bytes of rank 0's window for a table of `capacity` places."""
    return capacity * CLAIM_BYTES


def queue_bytes(depth: int, group_size: int) -> int:
    """Return the bytes of one queue of `depth` slots that `group_size` ranks use."""
    return depth * (WORD + group_size * RECORD_DTYPE.itemsize)


def replacements(trials: int, replicas: int, depth: int, stale_after: float) -> int:
    """Return the maximum number of queued candidates that a replica replaces.

    All replicas are assumed to keep the same pace. A candidate waits in the queue for `depth` trials of its
    replica.
    When it is generated, `made` trials of the whole machine have finished. `taken` have finished when it is
    taken, or at the end of the run if it still waits.
    Each replacement knows more than `stale_after` times as many trials as the candidate that it replaces, and
    at least one more. Counts below START are taken as START; a candidate that knew fewer is replaced once
    more, when START trials have finished.

    Arguments:
        trials: trials that each replica has begun.
        replicas: number of replicas of the machine.
        depth: candidates that wait in each replica's queue.
        stale_after: the setting `search.stale_after`, at least 1.
    """
    turn = np.arange(trials + depth, dtype=np.float64)
    taken, knew = replicas * np.minimum(turn, trials), np.maximum(replicas * (turn - depth), 0)
    made = np.maximum(knew, START)
    times = np.maximum(taken - made, 0.0)
    if stale_after > 1:
        grown = np.log(np.maximum(taken / made, 1.0)) / np.log(stale_after)
        times = np.minimum(times, np.maximum(np.ceil(grown) - 1, 0.0))
    return int(times.sum() + np.count_nonzero((knew < START) & (taken >= START)))
