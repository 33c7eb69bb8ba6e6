# SPDX-License-Identifier: Apache-2.0
"""The replicas of a run: the trainer that reports for each, and how it prepares its candidates."""

from __future__ import annotations

import numpy as np

from aiperf_mpi.results.evidence.ceiling import CPU, driven
from aiperf_mpi.results.evidence.evidence import Evidence


def first_trainers(e: Evidence) -> dict[int, int]:
    """Return the row in /ranks of each replica's first trainer, which reports its epochs and trials."""
    replicas = e.column("ranks", "replica")
    trainers = np.flatnonzero(e.column("ranks", "role").astype(str) == "trainer")
    first: dict[int, int] = {}
    for row in trainers.tolist():
        first.setdefault(int(replicas[row]), row)
    return first


def compiles_ahead(e: Evidence) -> bool:
    """Return whether candidates may be prepared while the trial before them trains, by the configuration and
    the devices. Raises ValueError for a trainer whose devices cannot be read."""
    setting = e.config.parallel.compile_ahead
    if setting != "auto":
        return setting == "on"
    devices = e.column("ranks", "device")
    return any(driven(str(devices[row]))[1] != CPU for row in first_trainers(e).values())
