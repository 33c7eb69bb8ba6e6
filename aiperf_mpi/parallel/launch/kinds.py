# SPDX-License-Identifier: Apache-2.0
"""Gather the different values of all ranks: one rank of each kind sends its value, the others only a hash."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from aiperf_mpi.parallel.launch.mpi import MPI


def kinds(world: MPI.Intracomm, value: Any) -> list[tuple[Any, tuple[int, ...]]]:
    """Return on rank 0 the different values and the ranks of each, by their first rank; [] elsewhere.
    Collective.

    A value is what JSON can hold; None takes no part. A thousand ranks of one kind send 16 bytes each.
    """
    text = json.dumps(value, sort_keys=True)
    digest = hashlib.sha256(text.encode()).digest()[:16]
    rows = world.gather(digest if value is not None else None, root=0)
    of_kind: dict[bytes, list[int]] = {}
    for rank, row in enumerate(rows or ()):
        if row is not None:
            of_kind.setdefault(row, []).append(rank)
    chosen = world.bcast({ranks[0] for ranks in of_kind.values()}, root=0)
    texts = world.gather(text if world.rank in chosen else None, root=0)
    return [(json.loads(texts[ranks[0]]), tuple(ranks)) for ranks in of_kind.values()] if texts else []
