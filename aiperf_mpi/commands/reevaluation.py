# SPDX-License-Identifier: Apache-2.0
"""V03 again, by anybody: the best model of a result, loaded from its checkpoint and validated on the same
images.

A checkpoint and a result file are all that is needed, and the data set; no MPI, and any device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding

from aiperf_mpi.config import ConfigError
from aiperf_mpi.data.catalogue import open_dataset
from aiperf_mpi.data.loader import val_batches
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.evidence.printable import plain
from aiperf_mpi.results.file.resultfile import Result
from aiperf_mpi.results.judge.checks.official import reload_slack
from aiperf_mpi.results.output.package import best_checkpoint
from aiperf_mpi.training.checkpoint import Checkpoint, load_checkpoint
from aiperf_mpi.training.steps.devices import device_sharding
from aiperf_mpi.training.steps.dispatch import over_devices
from aiperf_mpi.training.steps.step import StepSettings, eval_step
from aiperf_mpi.training.validation import validation_error


class ReevaluationError(ValueError):
    """Something that a model cannot be validated again without; the message is one line."""


@dataclass(frozen=True)
class Evaluator:
    """The evaluation step of one architecture, and where its arguments lie."""

    sharding: NamedSharding
    evaluate: Callable[..., Any]


@dataclass(frozen=True)
class Repetition:
    """The error that was measured now on `images`, the one that the result states, and whether they are near
    enough."""

    trial: int
    error: float
    stated: float
    images: int

    @property
    def agrees(self) -> bool:
        """Whether a model with the stated error was there."""
        return abs(self.error - self.stated) <= reload_slack(self.images)

    def __str__(self) -> str:
        outcome = "passed" if self.agrees else "FAILED"
        return (
            f"V03 repeated {outcome}: trial {self.trial}, error {self.error:.6f} now, {self.stated:.6f} in "
            f"the "
            f"result; limit: a difference of {reload_slack(self.images):.2g}"
        )


def reevaluate(result: Result, folder: Path, data_path: str = "") -> Repetition:
    """Validate the best model of a result again.

    Arguments:
        result: the content of the result file.
        folder: where its checkpoints are, the run's output folder or the unpacked archive.
        data_path: where the data set lies here, in place of `data.path` of the run.

    Raises ReevaluationError where the checkpoint is missing, damaged or of another trial, or the images are
    others.
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
        raise ReevaluationError(f"{problem} (or name its place here with --data)") from None
    if dataset.sha256 != (expected := evidence.attribute("dataset_sha256")):
        raise ReevaluationError(
            f"the data set here has the hash {dataset.sha256[:16]}..., that of the run "
            f"{str(expected)[:16]}...: these are other images"
        )

    # One device is enough, and its batch changes no image's answer.
    devices, batch = jax.local_devices()[:1], config.train.batch_per_device
    settings = StepSettings(
        batch, config.train.precision, stem=config.train.stem, mean=dataset.mean, deviation=dataset.deviation
    )
    step = over_devices(
        eval_step(checkpoint.architecture, settings), devices, in_axes=(0,) * 5, out_axes=None
    )
    evaluator = Evaluator(device_sharding(devices), step)
    error = validation_error(evaluator, checkpoint.variables, val_batches(dataset, 1, batch))
    return Repetition(trial, error, stated, len(dataset.val_labels))


def _checkpoint(evidence: Evidence, folder: Path, trial: int) -> Checkpoint:
    """The checkpoint of a trial, which must hold the network that the rows give it."""
    name = best_checkpoint(folder, evidence.result)
    if name is None:
        raise ReevaluationError(f"{folder}: the checkpoint of the best model, trial {trial}, is missing")
    if isinstance(expected := evidence.architectures[evidence.index[trial]], str):
        raise ReevaluationError(f"trial {trial} has no network: {plain(expected)}")
    try:
        checkpoint = load_checkpoint(folder / name, expected)
    except (OSError, ValueError) as error:
        raise ReevaluationError(
            plain(f"{error}: trial {trial} of the result cannot be validated again")
        ) from None
    if checkpoint.trial_id != trial:
        raise ReevaluationError(f"{folder / name}: it is of trial {checkpoint.trial_id}, not {trial}")
    return checkpoint
