# SPDX-License-Identifier: Apache-2.0
"""Stand-ins of a trainer's state for tests; they need JAX."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax

from aiperf_mpi.data.dataset import Dataset
from aiperf_mpi.data.loader import Reader
from aiperf_mpi.network.architecture import resnet50
from aiperf_mpi.parallel.replica.resources import Resources
from aiperf_mpi.parallel.replica.team import Team
from aiperf_mpi.parallel.shared.context import Context
from aiperf_mpi.parallel.trainer.reporter import StatusReporter
from aiperf_mpi.parallel.trainer.state import TrainerState
from aiperf_mpi.trials.candidate import Candidate
from tests.helpers.training.cases import TINY


def one_device(dataset: Dataset | None = None) -> Resources:
    """Return the resources of a replica with this process's first device, and without a cache of its own."""
    unused: Any = None
    return Resources(tuple(jax.devices()[:1]), None, dataset or unused, Reader(1), unused)


def tiny_candidate(trial_id: int, seed: int = 0) -> Candidate:
    """Return the tiny network as the first candidate of replica 0, with a batch of 4."""
    made = Candidate.new(
        resnet50(TINY),
        (),
        parent_id=-1,
        replica=0,
        generator=0,
        round=1,
        batch_per_device=4,
        devices=1,
        seed=seed,
    )
    return replace(made, trial_id=trial_id)


def fake_trainer(context: Context, **overrides: Any) -> TrainerState:
    """Return the state of a replica's only trainer, with any of its fields given by name; others are None."""
    values: dict[str, Any] = {"resources": None, "queue": None, "best": None, "team": Team(None)}
    values["reporter"] = StatusReporter(context, sends=False)
    return TrainerState(context, **(values | overrides))
