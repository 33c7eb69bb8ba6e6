# SPDX-License-Identifier: Apache-2.0
"""Weights between trials: the weights that a trial starts from, and the trained ones that a replica keeps.

Kept weights are in OUTPUT/checkpoints/<trial>.h5 on the file system that all ranks share, so a child may be
trained by another replica than its parent. Nothing here calls MPI; `start_weights` and `load_parent` run in
a trainer's thread.
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
from aiperf_mpi.data.synthetic import made_images, pixels
from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.streams import INIT, stream
from aiperf_mpi.training.checkpoint import load_checkpoint, save_checkpoint
from aiperf_mpi.training.model.inheritance import function_difference, inherited_variables
from aiperf_mpi.training.model.initial import Variables, initial_variables
from aiperf_mpi.trials.candidate import Candidate

#: Validation images, the first of the set, on which a child is compared with its parent.
COMPARED_IMAGES = 8


def checkpoint_path(config: Config, trial_id: int) -> Path:
    """Return the file of a trial's weights while they are kept."""
    return Path(config.run.output) / "checkpoints" / f"{trial_id}.h5"


# -- what a trial starts from ----------------------------------------------------------------------


@dataclass(frozen=True)
class StartWeights:
    """The weights that a trial starts from: `variables`, and the difference between their function and the
    parent's (NaN: none inherited)."""

    variables: Variables
    difference: float = float("nan")


def missing_weights(config: Config, candidate: Candidate) -> str:
    """Return why the candidate cannot inherit the weights that its record names, "" if it can or need not.

    A parent's weights may have been removed since its child was proposed.
    """
    if not config.model.inherits or candidate.parent_id < 0:
        return ""
    if not candidate.from_checkpoint:
        return f"no weights of its parent {candidate.parent_id} are kept" if candidate.parent_id else ""
    path = checkpoint_path(config, candidate.parent_id)
    return "" if path.exists() else f"the weights of its parent {candidate.parent_id} are gone"


def load_parent(config: Config, candidate: Candidate, initial_seed: int) -> Variables:
    """Return the weights of the candidate's parent: those that were kept, or trial 0's initial ones, drawn
    again.

    Arguments:
        initial_seed: seed of trial 0.

    Raises OSError if the file is missing, ValueError if it is damaged or another trial's.
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


def start_weights(
    config: Config, dataset: Dataset, candidate: Candidate, parent: Variables | None
) -> StartWeights:
    """Return the weights that the candidate starts from: its parent's, transformed, or without `parent` its
    own initial ones.

    Raises ValueError where `parent` does not fit the parent's architecture.
    """
    if parent is None:
        return StartWeights(initial_weights(config, candidate.architecture, candidate.seed))
    architecture, rng = parent_of(candidate), stream(INIT, candidate.seed)
    variables = inherited_variables(architecture, parent, candidate.own_morphs, rng)
    images = _compared_images(config, dataset)
    return StartWeights(
        variables,
        function_difference(
            architecture, parent, candidate.architecture, variables, images, dataset.mean, dataset.deviation
        ),
    )


def _compared_images(config: Config, dataset: Dataset) -> np.ndarray:
    """Return the images on which a child is compared with its parent, uint8 [N, S, S, C]."""
    images, data = dataset.val_sample(COMPARED_IMAGES), config.data
    if (made := made_images(config)) is None:
        return images
    return pixels(images, made, (data.stored_side, data.stored_side, data.channels), data.classes)


def initial_weights(config: Config, architecture: Architecture, seed: int) -> Variables:
    """Return the seeded initial weights of a trial that inherits none."""
    return initial_variables(architecture, stream(INIT, seed), config.model.zero_gamma)


def parent_of(candidate: Candidate) -> Architecture:
    """Return the architecture of the candidate's parent."""
    morphs = candidate.architecture.morphs
    return Architecture(candidate.architecture.base, morphs[: len(morphs) - len(candidate.own_morphs)])


# -- weights that are kept ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """Kept weights: their trial, its best validation error, and the file."""

    error: float
    trial_id: int
    path: Path


@dataclass
class KeptWeights:
    """The best weights of a replica, at most `room` of them, best first; of equal ones the earlier are
    better.

    Weights that better ones displace stay on disk until `grace` others are displaced after them, as
    candidates that wait in queues may be their children.
    """

    room: int
    grace: int = 0
    kept: list[Kept] = field(default_factory=list)
    displaced: deque[Path] = field(default_factory=deque)

    def takes(self, error: float) -> bool:
        """Return whether weights of this error would be kept; those with NaN would not."""
        return error == error and (len(self.kept) < self.room or error < self.kept[-1].error)

    def put(
        self,
        path: Path,
        trial_id: int,
        error: float,
        architecture: Architecture,
        variables: Mapping[str, Any],
    ) -> Kept | None:
        """Write weights that `takes` accepts; return the weights that they displace, if any. Raises OSError
        if the file cannot be written."""
        save_checkpoint(path, trial_id, architecture, variables)
        place = bisect_right([kept.error for kept in self.kept], error)
        self.kept.insert(place, Kept(error, trial_id, path))
        if len(self.kept) <= self.room:
            return None
        out = self.kept.pop()
        self.displaced.append(out.path)
        self.clear(self.grace)
        return out

    def clear(self, grace: int = 0) -> None:
        """Remove the files of displaced weights, except the last `grace`."""
        while len(self.displaced) > grace:
            self.displaced.popleft().unlink(missing_ok=True)
