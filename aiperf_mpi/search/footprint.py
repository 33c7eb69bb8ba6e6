# SPDX-License-Identifier: Apache-2.0
"""How large the windows are through which ranks share the history, the claims and the candidates.

The ranks allocate by these numbers, and an estimate without MPI states them.
"""

from __future__ import annotations

from aiperf_mpi.search.record import RECORD_DTYPE, SUMMARY_DTYPE

#: Bytes of one 64-bit word, the unit of all atomic operations.
WORD = 8

#: Places of the table of claims for each record of the history: a trial has one key and at least one record, and a
#: table that is at most half full takes two swaps for a claim.
CLAIMS_PER_RECORD = 2

#: A claim is a key and its state.
CLAIM_BYTES = 2 * WORD

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


def queue_bytes(depth: int, node_size: int) -> int:
    """Bytes of one queue of `depth` slots that `node_size` ranks use."""
    return depth * (WORD + node_size * RECORD_DTYPE.itemsize)
