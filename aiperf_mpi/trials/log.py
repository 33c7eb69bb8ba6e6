# SPDX-License-Identifier: Apache-2.0
"""The interface of the history of all trials.

The log is append-only. A writer reserves a slot, fills it and commits it. A dead writer's slot is
abandoned. Readers see the longest prefix in which every slot is committed or abandoned, so the length alone
describes a snapshot: two readers at the same length see the same rows.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np


class HistoryFull(RuntimeError):
    """The log or the table of claims has reached its capacity, so the run must drain."""


class HistoryLog(Protocol):
    """Append-only log of sealed records, as one process sees it."""

    def append(self, record: np.void) -> int:
        """Write a sealed record and return its slot. Raises HistoryFull if no slot is left."""

    def refresh(self) -> int:
        """Make newly settled rows visible and return their number.

        No other method makes rows visible.
        """

    def __len__(self) -> int:
        """Return the number of rows that are visible since the last refresh."""

    def summaries(self) -> np.ndarray:
        """Return the visible rows (dtype SUMMARY_DTYPE, one per slot, read-only).

        An abandoned slot has the kind ABANDONED.
        """

    def record(self, slot: int) -> np.void:
        """Return the full record of a visible, committed slot.

        Raises IndexError for a slot that is not visible, KeyError for an abandoned one.
        """
