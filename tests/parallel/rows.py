# SPDX-License-Identifier: Apache-2.0
"""Sealed records for the tests of log and queue, and what the rank programs share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from aiperf_mpi.search import record as rec


def proposed(replica: int = 0, round: int = 1, generator: int = 0) -> np.void:
    """A sealed PROPOSED record that is told apart by its numbers; its other fields follow from them."""
    record = rec.new_record()
    record["kind"], record["replica"], record["round"], record["generator"] = rec.PROPOSED, replica, round, generator
    record["key"] = replica * 1_000_003 + round
    record["cause"] = f"{replica}/{round}/{generator}".encode()
    return rec.seal(record)


def outcome(trial: int, error: float, replica: int = 0) -> np.void:
    """A sealed OUTCOME record of a trial that was done."""
    record = rec.new_record()
    record["kind"], record["status"], record["trial"] = rec.OUTCOME, rec.DONE, trial
    record["best_error"], record["replica"] = error, replica
    return rec.seal(record)


def report(folder: str, rank: int, **values: Any) -> None:
    """What a rank program found, for the test that started it."""
    (Path(folder) / f"{rank}.json").write_text(json.dumps(values))


def node_of(world: Any) -> Any:
    """The communicator of all ranks but 0, on each of them; rank 0's own on rank 0."""
    return world.Split(min(world.rank, 1), world.rank)
