# SPDX-License-Identifier: Apache-2.0
"""A training after a whole epoch, and its file: a training that goes on from there is the same to the bit.

The order of the images follows from the trial's seed and the epoch's number, the random numbers of a step
from the key and the step's number, the learning rate from the epoch's number. So the state of a device, the
weights of the best epoch, and the losses that decide the end are all that the next epoch depends on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import optax

from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.training.checkpoint import Form, attribute, read_arrays, reading, write_arrays
from aiperf_mpi.training.model.initial import Variables
from aiperf_mpi.training.model.resnet import expected_shapes
from aiperf_mpi.training.steps.step import LossScale, TrainState

FORMAT = "aiperf_mpi.epoch/1"

#: Most epochs of a training, as `train.epochs` bounds them: a file that names more is not read.
_MOST_EPOCHS = 100_000


class WholeEpoch(NamedTuple):
    """What remains of a whole epoch: images trained and validated, validation loss and error."""

    train_samples: int
    val_samples: int
    val_loss: float
    val_error: float


#: How the columns of the whole epochs are stored.
_COLUMNS = {
    "train_samples": np.int64,
    "val_samples": np.int64,
    "val_loss": np.float64,
    "val_error": np.float64,
}


@dataclass(frozen=True)
class Trained:
    """What a training has done so far.

    Attributes:
        epochs: the whole epochs, in their order.
        best_variables: `params` and `batch_stats` of the epoch with the lowest validation error, as numpy
            arrays (float32); None before any.
    """

    epochs: tuple[WholeEpoch, ...] = ()
    best_variables: Variables | None = None

    @property
    def best_error(self) -> float:
        """The lowest validation error; NaN before any whole epoch."""
        return self.epochs[best_of(self.epochs)].val_error if self.epochs else math.nan


@dataclass(frozen=True)
class TrialStart:
    """What a trial began with, which a file must have alike or hands on.

    Attributes:
        trial_id, seed, architecture: the trial, its seed and its network. A file of others is refused.
        parts: micro-batches of a step on a device. With another number the sums of a step are rounded in
            another order.
        difference: how far the function of inherited weights was from the parent's (NaN: none inherited).
    """

    trial_id: int
    seed: int
    architecture: Architecture
    parts: int = 1
    difference: float = math.nan


@dataclass(frozen=True)
class EpochState:
    """A training after a whole epoch.

    Attributes:
        start: what the trial began with.
        state: state of one device, equal on all of them, as numpy arrays.
        trained: what it has done so far.
    """

    start: TrialStart
    state: TrainState
    trained: Trained

    @property
    def difference(self) -> float:
        """How far the function of inherited weights was from the parent's."""
        return self.start.difference

    @property
    def epochs(self) -> int:
        """The number of whole epochs, which is the number of the next one."""
        return len(self.trained.epochs)


def best_of(epochs: Sequence[WholeEpoch]) -> int:
    """Return the first epoch with the lowest validation error."""
    return min(range(len(epochs)), key=lambda number: epochs[number].val_error)


def save_epoch(path: str | Path, epoch: EpochState) -> str:
    """Write the file under a temporary name, sync and rename it, so that readers find it whole; return its
    digest, which all of its arrays enter.

    Raises OSError where the file cannot be written.
    """
    start, state, trained = epoch.start, epoch.state, epoch.trained
    arrays: dict[str, Any] = {
        "params": state.params,
        "batch_stats": state.batch_stats,
        "momenta": state.momenta.trace,
        "step": np.int32(state.step),
        "key": np.asarray(state.key, np.uint32),
        "trial_id": np.int64(start.trial_id),
        "seed": np.uint64(start.seed),
        "parts": np.int64(start.parts),
        "difference": np.float64(start.difference),
        "epochs": {
            name: np.array([getattr(one, name) for one in trained.epochs], dtype)
            for name, dtype in _COLUMNS.items()
        },
    }
    if state.scale:
        arrays["scale"] = {"factor": np.float32(state.scale.factor), "steps": np.int32(state.scale.steps)}
    # The weights of the best epoch are those of the state if it is the last.
    if best_of(trained.epochs) != len(trained.epochs) - 1:
        arrays["best"] = trained.best_variables
    facts = {"format": FORMAT, "arch_hash": start.architecture.hash, "epochs": np.int64(len(trained.epochs))}
    return write_arrays(Path(path), facts, arrays)


def load_epoch(path: str | Path, trial_id: int, seed: int, architecture: Architecture) -> EpochState:
    """Read a file of `save_epoch`.

    Arguments:
        trial_id, seed, architecture: the trial; another one's file is refused.

    Raises OSError if HDF5 cannot read the file, ValueError if its content is not what was saved, or another
    trial's; each message is one line.
    """
    with reading(path, FORMAT) as file:
        return _load(file, trial_id, seed, architecture)


def _load(file: h5py.File, trial_id: int, seed: int, architecture: Architecture) -> EpochState:
    if (found := attribute(file, "arch_hash")) != architecture.hash:
        raise ValueError(f"it holds the network {str(found)[:60]}, not {architecture.hash} of the trial")
    count = attribute(file, "epochs")
    if not isinstance(count, np.int64) or not 0 < count <= _MOST_EPOCHS:
        raise ValueError(f"its number of epochs is {str(count)[:60]}, not 1 to {_MOST_EPOCHS}")
    arrays, _ = read_arrays(file, _forms(architecture, int(count), set(file)))
    for name, value in (("trial_id", trial_id), ("seed", seed)):
        if arrays[name] != value:
            raise ValueError(f"its {name} is {arrays[name]}, not {value} of the trial")

    columns = (arrays["epochs"][name].tolist() for name in _COLUMNS)
    epochs = tuple(WholeEpoch(*row) for row in zip(*columns, strict=True))
    last = best_of(epochs) == len(epochs) - 1
    if last == ("best" in arrays):
        raise ValueError("its best epoch is another one than the weights that it holds")
    own = {name: arrays[name] for name in ("params", "batch_stats")}
    scale = LossScale(**arrays["scale"]) if "scale" in arrays else ()
    state = TrainState(
        own["params"],
        own["batch_stats"],
        optax.TraceState(arrays["momenta"]),
        arrays["step"],
        arrays["key"],
        scale,
    )
    start = TrialStart(trial_id, seed, architecture, int(arrays["parts"]), float(arrays["difference"]))
    return EpochState(start, state, Trained(epochs, own if last else arrays["best"]))


def _forms(architecture: Architecture, epochs: int, names: set[str]) -> dict[str, Any]:
    """Return the arrays of a file by their names, with the optional ones among `names`."""
    shapes = expected_shapes(architecture)
    forms: dict[str, Any] = {
        **shapes,
        "momenta": shapes["params"],
        "step": Form((), np.int32),
        "key": Form((2,), np.uint32),
        "trial_id": Form((), np.int64),
        "seed": Form((), np.uint64),
        "parts": Form((), np.int64),
        "difference": Form((), np.float64),
        "epochs": {name: Form((epochs,), dtype) for name, dtype in _COLUMNS.items()},
    }
    if "scale" in names:
        forms["scale"] = {"factor": Form((), np.float32), "steps": Form((), np.int32)}
    if "best" in names:
        forms["best"] = shapes
    return forms
