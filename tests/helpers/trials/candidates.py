# SPDX-License-Identifier: Apache-2.0
"""A small candidate for tests, any of its fields changed."""

from __future__ import annotations

from typing import Any

from aiperf_mpi.network.architecture import Architecture, Base, Morph
from aiperf_mpi.trials.candidate import Candidate

SMALL = Base(image_size=32, channels=1, classes=10, width=4)
OWN = (Morph("deeper", 5, 0, 3), Morph("skip", 1, 9), Morph("wider", 8))


def child(parent: Architecture | None = None, own: tuple[Morph, ...] = OWN, **changes: Any) -> Candidate:
    fields: dict[str, Any] = {
        "parent_id": 0,
        "replica": 3,
        "generator": 1,
        "round": 2,
        "batch_per_device": 32,
        "devices": 4,
        "seed": 7,
    }
    return Candidate.new((parent or Architecture(SMALL)).apply(*own), own, **(fields | changes))
