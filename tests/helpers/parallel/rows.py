# SPDX-License-Identifier: Apache-2.0
"""Sealed records for the tests of log and queue, and functions that the rank programs share."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from aiperf_mpi.parallel.trainer.worker import Worker
from aiperf_mpi.trials import record as rec


def proposed(replica: int = 0, round: int = 1, generator: int = 0) -> np.void:
    """Return a sealed PROPOSED record that its numbers identify; its other fields follow from them."""
    record = rec.new_record()
    record["kind"], record["replica"], record["round"], record["generator"] = (
        rec.PROPOSED,
        replica,
        round,
        generator,
    )
    record["key"] = replica * 1_000_003 + round
    record["cause"] = f"{replica}/{round}/{generator}".encode()
    return rec.seal(record)


def outcome(trial: int, error: float, replica: int = 0) -> np.void:
    """Return a sealed OUTCOME record of a trial with status DONE."""
    record = rec.new_record()
    record["kind"], record["status"], record["trial"] = rec.OUTCOME, rec.DONE, trial
    record["best_error"], record["replica"] = error, replica
    return rec.seal(record)


def report(folder: str, rank: int, **values: Any) -> None:
    """Write the results of a rank program for the test that started it."""
    (Path(folder) / f"{rank}.json").write_text(json.dumps(values))


def node_of(world: Any) -> Any:
    """Return the communicator of all ranks but 0; on rank 0 its own."""
    return world.Split(min(world.rank, 1), world.rank)


T = TypeVar("T")


class Noting(Worker):
    """A worker that records the submitted work, in order."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.submitted: list[Any] = []

    def submit(self, work: Callable[[], T]) -> Future[T]:
        self.submitted.append(work)
        return super().submit(work)
