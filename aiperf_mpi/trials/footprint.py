# SPDX-License-Identifier: Apache-2.0
"""How large the windows are through which ranks share the history, the claims and the candidates, and how
many records a run writes into the first.

The ranks allocate by these numbers, and an estimate without MPI states them.
"""

from __future__ import annotations

import numpy as np

from aiperf_mpi.trials.record import RECORD_DTYPE, SUMMARY_DTYPE
from aiperf_mpi.trials.view import START

#: Bytes of one 64-bit word, the unit of all atomic operations.
WORD = 8

#: Places of the table of claims for each record of the history: a trial has one key and at least one record,
#: and a table that is at most half full takes two swaps for a claim.
CLAIMS_PER_RECORD = 2

#: A claim is a key and its state.
CLAIM_BYTES = 2 * WORD

#: Records of the history that a candidate takes, whatever becomes of it: its proposal and its outcome.
RECORDS_PER_CANDIDATE = 2

#: Part of the history's slots beyond which nothing is replaced any more: the rest is for candidates that are
#: trained.
REPLACING_PART = 0.5

#: Bytes before the rows of a node's mirror: its lock and its count.
MIRROR_HEADER = 64


class LogLayout:
    """Byte offsets in rank 0's window: the counter, then words, summaries and records of all slots."""

    counter = 0

    def __init__(self, capacity: int) -> None:
        self.words = 64
        self.summaries = self.words + capacity * WORD
        self.records = self.summaries + capacity * SUMMARY_DTYPE.itemsize
        self.size = self.records + capacity * RECORD_DTYPE.itemsize


def history_bytes(capacity: int) -> int:
    """Bytes of rank 0's window for a log of `capacity` slots."""
    return LogLayout(capacity).size


def mirror_bytes(capacity: int) -> int:
    """Bytes of a node's mirror of the summaries."""
    return MIRROR_HEADER + capacity * SUMMARY_DTYPE.itemsize


def claims_bytes(capacity: int) -> int:
    """Bytes of rank 0's window for a table of `capacity` places."""
    return capacity * CLAIM_BYTES


def queue_bytes(depth: int, crew_size: int) -> int:
    """Bytes of one queue of `depth` slots that `crew_size` ranks use."""
    return depth * (WORD + crew_size * RECORD_DTYPE.itemsize)


def replacements(trials: int, replicas: int, depth: int, stale_after: float) -> int:
    """Candidates of a replica that are replaced while they wait, at most, where all replicas keep the same
    pace.

    A candidate waits for `depth` trials of its replica. When it is thought of, `made` trials of the machine
    have finished, and `taken` when it is taken, or at the end if it waits then; each candidate in between
    knew more than `stale_after` times as many as the one that it replaces, and at least one more; fewer than
    START count as so many.

    Arguments:
        trials: trials that each replica has begun.
        replicas: of the machine.
        depth: candidates that wait for each of them.
        stale_after: the setting of that name, at least 1.
    """
    turn = np.arange(trials + depth, dtype=np.float64)
    taken, made = replicas * np.minimum(turn, trials), np.maximum(replicas * (turn - depth), START)
    times = np.maximum(taken - made, 0.0)
    if stale_after > 1:
        grown = np.log(np.maximum(taken / made, 1.0)) / np.log(stale_after)
        times = np.minimum(times, np.maximum(np.ceil(grown) - 1, 0.0))
    return int(times.sum())
