# SPDX-License-Identifier: Apache-2.0
"""The interface of the history of all trials.

The log is append-only. A writer reserves a slot, fills it and commits it. A slot whose writer died is
abandoned. Readers see the longest prefix in which every slot is committed or abandoned, so the length alone
describes a snapshot: two readers at the same length see the same rows.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np


class HistoryFull(RuntimeError):
    """The log or the table of claims has reached its capacity; the run must drain."""


class HistoryLog(Protocol):
    """An append-only log of sealed records, as one process sees it."""

    def append(self, record: np.void) -> int:
        """Write a sealed record; returns its slot. Raises HistoryFull if there is none left."""

    def refresh(self) -> int:
        """Look for rows that have become visible; returns how many are new. Nothing else extends what is
        seen."""

    def __len__(self) -> int:
        """Rows visible since the last refresh."""

    def summaries(self) -> np.ndarray:
        """The visible rows (dtype SUMMARY_DTYPE, one per slot, read-only); abandoned slots have kind
        ABANDONED."""

    def record(self, slot: int) -> np.void:
        """The full record of a visible, committed slot. Raises IndexError beyond it, KeyError if
        abandoned."""
