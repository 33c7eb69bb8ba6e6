# SPDX-License-Identifier: Apache-2.0
"""A history of ended trials for the programs that search; the rows do not depend on the writing rank."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from aiperf_mpi.config import Config, load
from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.network.morphism import random_chain
from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.candidate import Candidate

#: Small networks with room to grow: they must have 2,000 different children.
SMALL = (
    "data.name='synthetic'",
    "data.image_size=32",
    "data.channels=3",
    "data.classes=10",
    "model.blocks=[1,1]",
    "model.width=8",
    "search.max_units=60",
    "search.max_parameters=1000000",
    "train.batch_per_device=32",
    "train.precision=float32",
    "hpo.batches=[16,32]",
)


def small(*sets: str) -> Config:
    """Return a configuration of small networks."""
    return load(sets=[*SMALL, *sets])


def children(config: Config, count: int, seed: int = 3) -> list[Candidate]:
    """Return the initial architecture and different children of it, by random chains of 1 to 4 morphs."""
    initial, rng = Architecture(config.base), np.random.default_rng(seed)
    made = [
        Candidate.new(
            initial,
            (),
            parent_id=-1,
            replica=0,
            generator=0,
            round=1,
            batch_per_device=32,
            devices=1,
            seed=config.run.seed,
        )
    ]
    keys = {made[0].key}
    while len(made) < count:
        architecture, own = random_chain(initial, rng, int(rng.integers(1, 5)))
        child = Candidate.new(
            architecture,
            own,
            parent_id=0,
            replica=0,
            generator=0,
            round=1 + len(made),
            batch_per_device=32,
            devices=1,
            seed=config.run.seed,
        )
        if child.key not in keys:
            keys.add(child.key)
            made.append(child)
    return made


def write_past(history: Any, claims: Any, candidates: list[Candidate], first: int = 0) -> None:
    """Append candidates, each followed by its outcome; `claims` may be None.

    The error depends on the network's size, so that there is something to learn.
    """
    for number, candidate in enumerate(candidates, first):
        if claims is not None and not claims.claim(candidate.key):
            raise ValueError(f"candidate {number} of the past is claimed already")
        trial = history.append(candidate.to_record(float(number)))
        error = 0.2 + 0.5 / (1 + len(candidate.architecture.layers())) + 0.01 * (number % 7)
        ended = replace(candidate, trial_id=trial).outcome(rec.DONE, number + 0.5, epochs=4, best_error=error)
        history.append(ended)
