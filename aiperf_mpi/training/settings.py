# SPDX-License-Identifier: Apache-2.0
"""The settings of a step that follow from a run's configuration."""

from __future__ import annotations

from aiperf_mpi.config import Config
from aiperf_mpi.data.synthetic import made_images
from aiperf_mpi.opcount.forms import FORM_SETS
from aiperf_mpi.training.steps.step import StepSettings


def settings_of(
    config: Config, batch: int, mean: tuple[float, ...] = (0.5,), deviation: tuple[float, ...] = (0.25,)
) -> StepSettings:
    """Return the settings of a run's steps with `batch` images on a device.

    `mean` and `deviation` are those of the data set; the operations do not depend on them. Forms that are
    left to the devices (`auto`) are the plain ones.
    """
    return StepSettings(
        batch_per_device=batch,
        precision=config.train.precision,
        momentum=config.train.momentum,
        label_smoothing=config.train.label_smoothing,
        augmentation=config.data.augmentation_form,
        stored_size=config.data.stored_side,
        made=made_images(config),
        stem=config.train.stem,
        forms=FORM_SETS.get(config.train.forms, ()),
        synchronised=config.train.sync_statistics,
        mean=mean,
        deviation=deviation,
    )
