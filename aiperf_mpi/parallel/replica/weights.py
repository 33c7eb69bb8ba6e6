# SPDX-License-Identifier: Apache-2.0
"""Weights between trials: what a trial starts from, and which trained ones a replica keeps.

Kept weights lie in OUTPUT/checkpoints/<trial>.h5 on the file system that all ranks share, so a child may be
trained by another replica than its parent. Nothing here speaks MPI; `begin_with` and `load_parent` run in a
trainer's thread.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aiperf_mpi.config import Config
from aiperf_mpi.data.dataset import Dataset
from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.streams import INIT, stream
from aiperf_mpi.training.checkpoint import load_checkpoint, save_checkpoint
from aiperf_mpi.training.model.inheritance import function_difference, inherited_variables
from aiperf_mpi.training.model.initial import Variables, initial_variables
from aiperf_mpi.trials.candidate import Candidate

#: Validation images, the first of the set, on which a child is compared with its parent.
COMPARED_IMAGES = 8


def checkpoint_path(config: Config, trial_id: int) -> Path:
    """Where the weights of a trial lie while they are kept."""
    return Path(config.run.output) / "checkpoints" / f"{trial_id}.h5"


# -- what a trial starts from ----------------------------------------------------------------------


@dataclass(frozen=True)
class Beginning:
    """What a trial starts from: `variables`, and how far their function is from the parent's (NaN: none
    inherited)."""

    variables: Variables
    difference: float = float("nan")


def missing_weights(config: Config, candidate: Candidate) -> str:
    """Why the candidate cannot inherit the weights that its record names, "" where it can, or need not.

    A parent's weights may have gone between the proposal of its child and now.
    """
    if not config.model.inherits or candidate.parent_id < 0:
        return ""
    if not candidate.from_checkpoint:
        return f"no weights of its parent {candidate.parent_id} are kept" if candidate.parent_id else ""
    path = checkpoint_path(config, candidate.parent_id)
    return "" if path.exists() else f"the weights of its parent {candidate.parent_id} are gone"


def load_parent(config: Config, candidate: Candidate, initial_seed: int) -> Variables:
    """The variables of the candidate's parent: those that were kept, or trial 0's initial ones, drawn again.

    Arguments:
        initial_seed: seed of trial 0.

    Raises OSError where the file is gone, ValueError where it is damaged or another trial's.
    """
    if not candidate.from_checkpoint:
        return initial_weights(config, Architecture(config.base), initial_seed)
    path = checkpoint_path(config, candidate.parent_id)
    checkpoint = load_checkpoint(path)
    if (checkpoint.trial_id, checkpoint.architecture) != (candidate.parent_id, parent_of(candidate)):
        raise ValueError(
            f"{path}: holds trial {checkpoint.trial_id} and another network than the parent's, trial "
            f"{candidate.parent_id}"
        )
    return checkpoint.variables


def begin_with(config: Config, dataset: Dataset, candidate: Candidate, parent: Variables | None) -> Beginning:
    """The weights that the candidate starts from: its parent's, transformed, or without `parent` its own
    initial ones.

    Raises ValueError where `parent` does not fit the parent's architecture.
    """
    if parent is None:
        return Beginning(initial_weights(config, candidate.architecture, candidate.seed))
    architecture, rng = parent_of(candidate), stream(INIT, candidate.seed)
    variables = inherited_variables(architecture, parent, candidate.own_morphs, rng)
    images = np.asarray(dataset.val_images[:COMPARED_IMAGES])
    return Beginning(
        variables,
        function_difference(
            architecture, parent, candidate.architecture, variables, images, dataset.mean, dataset.deviation
        ),
    )


def initial_weights(config: Config, architecture: Architecture, seed: int) -> Variables:
    """The seeded initial weights of a trial that inherits none."""
    return initial_variables(architecture, stream(INIT, seed), config.model.zero_gamma)


def parent_of(candidate: Candidate) -> Architecture:
    """The architecture of the candidate's parent."""
    morphs = candidate.architecture.morphs
    return Architecture(candidate.architecture.base, morphs[: len(morphs) - len(candidate.own_morphs)])


# -- what is kept of it ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """Weights that are kept: their trial, its best validation error, and the file."""

    error: float
    trial_id: int
    path: Path


@dataclass
class KeptWeights:
    """The best weights of a replica, at most `room` of them, best first; of equal ones the earlier are
    better.

    What is pushed out stays on disk until `grace` others have been, as candidates that wait in queues may
    descend from it.
    """

    room: int
    grace: int = 0
    kept: list[Kept] = field(default_factory=list)
    leaving: deque[Path] = field(default_factory=deque)

    def takes(self, error: float) -> bool:
        """Whether weights of this error (NaN: of none) would be kept."""
        return error == error and (len(self.kept) < self.room or error < self.kept[-1].error)

    def put(
        self,
        path: Path,
        trial_id: int,
        error: float,
        architecture: Architecture,
        variables: Mapping[str, Any],
    ) -> Kept | None:
        """Write weights that `takes` accepts; returns what they push out, if anything. Raises OSError if it
        cannot."""
        save_checkpoint(path, trial_id, architecture, variables)
        place = bisect_right([kept.error for kept in self.kept], error)
        self.kept.insert(place, Kept(error, trial_id, path))
        if len(self.kept) <= self.room:
            return None
        out = self.kept.pop()
        self.leaving.append(out.path)
        self.clear(self.grace)
        return out

    def clear(self, grace: int = 0) -> None:
        """Remove the files of all that was pushed out but the last `grace`."""
        while len(self.leaving) > grace:
            self.leaving.popleft().unlink(missing_ok=True)
