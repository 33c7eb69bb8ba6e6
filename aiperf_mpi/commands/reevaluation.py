# SPDX-License-Identifier: Apache-2.0
"""Repeat check V03: load the best model of a result from its checkpoint and validate it on the same images.

This needs the result file, the checkpoint and the data set. It runs on any device, without MPI.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding

from aiperf_mpi.config import ConfigError
from aiperf_mpi.data.catalogue import open_dataset
from aiperf_mpi.data.loader import Reader, val_batches
from aiperf_mpi.data.manifest import VAL, Manifest
from aiperf_mpi.data.packed import DataError, needed
from aiperf_mpi.data.staging import Staging, Work
from aiperf_mpi.printable import plain
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.file.resultfile import Result
from aiperf_mpi.results.judge.checks.official import reload_slack
from aiperf_mpi.results.output.package import CHECKPOINTS, best_checkpoint
from aiperf_mpi.training.checkpoint import Checkpoint, load_checkpoint
from aiperf_mpi.training.settings import settings_of
from aiperf_mpi.training.steps.devices import device_sharding
from aiperf_mpi.training.steps.dispatch import over_devices
from aiperf_mpi.training.steps.step import eval_step
from aiperf_mpi.training.validation import validation_error

#: Seconds between two looks at the threads that hash shards.
_LOOK_SECONDS = 0.02


class ReevaluationError(ValueError):
    """The model cannot be validated again; the message is one line."""


@dataclass(frozen=True)
class Evaluator:
    """The evaluation step of one architecture, and the sharding of its arguments."""

    sharding: NamedSharding
    evaluate: Callable[..., Any]


@dataclass(frozen=True)
class Repetition:
    """The error measured now on `images` images, and the error that the result states."""

    trial: int
    error: float
    stated: float
    images: int

    @property
    def agrees(self) -> bool:
        """Whether the two errors are as close as check V03 demands."""
        return abs(self.error - self.stated) <= reload_slack(self.images)

    def __str__(self) -> str:
        outcome = "passed" if self.agrees else "FAILED"
        return (
            f"V03 repeated {outcome}: trial {self.trial}, error {self.error:.6f} now, {self.stated:.6f} in "
            f"the result; limit: a difference of {reload_slack(self.images):.2g}"
        )


def reevaluate(result: Result, folder: Path, data_path: str = "") -> Repetition:
    """Validate the best model of a result again.

    Arguments:
        result: the content of the result file.
        folder: the folder that holds its checkpoints/: the run's output folder, or the unpacked archive.
        data_path: where the data set is on this machine; replaces the run's `data.path` if given.

    Raises ReevaluationError if the checkpoint is missing, damaged or of another trial, or if the images
    differ from those of the run.
    """
    evidence = Evidence(result)
    error, best = evidence.best
    final, trial = evidence.attribute("error_final"), evidence.attribute("error_final_trial")
    stated, trial = (final, trial) if trial >= 0 else (error, best)
    if trial < 0:
        raise ReevaluationError("no trial of this result has a validation error")
    checkpoint = _checkpoint(evidence, folder, trial)
    config = evidence.config
    if data_path:
        config = replace(config, data=replace(config.data, path=data_path))
    try:
        dataset = open_dataset(config)
    except ConfigError as problem:
        raise ReevaluationError(f"{problem} (or name its path on this machine with --data)") from None
    if dataset.sha256 != (expected := evidence.attribute("dataset_sha256")):
        raise ReevaluationError(
            f"the data set here has the hash {dataset.sha256[:16]}..., but that of the run had "
            f"{str(expected)[:16]}...: the sets differ"
        )
    threads = config.data.threads(len(os.sched_getaffinity(0)))
    if dataset.manifest is not None:
        _check_pictures(Path(config.data.path), dataset.manifest, config.data.val_images, threads)

    # One device is enough, and the batch size does not change the prediction for an image.
    devices, batch = jax.local_devices()[:1], config.train.batch_per_device
    settings = settings_of(config, batch, dataset.mean, dataset.deviation)
    step = over_devices(
        eval_step(checkpoint.architecture, settings), devices, in_axes=(0,) * 5, out_axes=None
    )
    evaluator = Evaluator(device_sharding(devices), step)
    try:
        with closing(Reader(threads)) as reader:
            batches = val_batches(dataset, 1, batch, reader=reader)
            error = validation_error(evaluator, checkpoint.variables, batches)
    except DataError as problem:
        raise ReevaluationError(str(problem)) from None
    return Repetition(trial, error, stated, len(dataset.val.labels))


def _check_pictures(folder: Path, manifest: Manifest, count: int, threads: int) -> None:
    """Raise ReevaluationError unless the shards of the first `count` validation pictures have their hashes.

    The hash of a packed set is made of what its manifest says, not of the shards that are here.
    """
    work = Work(Staging(folder, None, manifest, tuple(needed(manifest.splits[VAL], count))), threads)
    while not work.ended():
        time.sleep(_LOOK_SECONDS)
    try:
        work.conclude()
    except ConfigError as problem:
        raise ReevaluationError(str(problem)) from None


def _checkpoint(evidence: Evidence, folder: Path, trial: int) -> Checkpoint:
    """Load the checkpoint of a trial; it must hold the network that the trial's rows describe."""
    name = best_checkpoint(folder, evidence.result)
    if name is None:
        raise ReevaluationError(
            f"{folder / CHECKPOINTS / f'{trial}.h5'}: no such file; --reevaluate needs this checkpoint "
            "of the best model next to the result"
        )
    if isinstance(expected := evidence.architectures[evidence.index[trial]], str):
        raise ReevaluationError(f"trial {trial} has no network: {plain(expected)}")
    try:
        checkpoint = load_checkpoint(folder / name, expected)
    except (OSError, ValueError) as error:
        raise ReevaluationError(
            plain(f"{error}: trial {trial} of the result cannot be validated again")
        ) from None
    if checkpoint.trial_id != trial:
        raise ReevaluationError(f"{folder / name}: it belongs to trial {checkpoint.trial_id}, not to {trial}")
    return checkpoint
