# SPDX-License-Identifier: Apache-2.0
"""The network and the step that the command line of `flops` describes, and their measured counts."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from aiperf_mpi.commands.architecture_file import read_architecture
from aiperf_mpi.config.setting import shown
from aiperf_mpi.network.architecture import Architecture, resnet50
from aiperf_mpi.opcount.forms import FORM_SETS, STEMS
from aiperf_mpi.paper import IMAGENET_IMAGES

if TYPE_CHECKING:
    from aiperf_mpi.crosscheck.check import Difference
    from aiperf_mpi.crosscheck.xla import Analysis


#: Most images of a step, as of train.batch_per_device.
MOST_BATCH = 2**20


@dataclass(frozen=True)
class Request:
    """What to count.

    Attributes:
        architecture: the network.
        images: training and validation images of an epoch.
        batch: images of the traced step.
        precision, augmentation, stored_size, stem: settings of the traced step.
        lean: its forms that read and write less memory, those of `train.forms`.
    """

    architecture: Architecture
    images: tuple[int, int]
    batch: int
    precision: str
    augmentation: str
    stored_size: int
    stem: str
    lean: tuple[str, ...] = ()

    @property
    def forms(self) -> tuple[str, ...]:
        """Optimised forms that the step uses, names of `forms.FORMS`."""
        return (*STEMS[self.stem], *self.lean)


def read_request(arguments: argparse.Namespace) -> Request:
    """Return the request of a command line. Raises ValueError with a message that names the wrong option."""
    if not 1 <= arguments.batch <= MOST_BATCH:
        raise ValueError(
            f"--batch is {shown(arguments.batch)}, but a step takes at least 1 image and at most {MOST_BATCH}"
        )

    # The network comes from a file, from a preset, or is the paper's.
    architecture, images = resnet50(), IMAGENET_IMAGES
    precision, augmentation, stored, stem = "float32", "none", 0, "plain"
    forms = "plain"
    if arguments.arch is not None:
        architecture = read_architecture(arguments.arch)
    elif arguments.preset is not None:
        from aiperf_mpi.config import load
        from aiperf_mpi.planning.precision import precisions

        config = load(arguments.preset)
        architecture = Architecture(config.base)
        images = config.data.train_images, config.data.val_images
        # The step is traced on the CPU, where forms that are left to the devices are the plain ones.
        precision, stem = precisions(config, "cpu")[0], config.train.stem
        forms = config.train.forms
        augmentation, stored = config.data.augmentation_form, config.data.stored_size

    # --image-size and --classes apply to any network: morphs do not depend on them.
    given = {"image_size": arguments.image_size, "classes": arguments.classes}
    changes = {name: value for name, value in given.items() if value is not None}
    if changes:
        architecture = Architecture(replace(architecture.base, **changes), architecture.morphs)
    if architecture.base.image_size > stored:
        stored = 0
    lean = FORM_SETS.get(arguments.forms or forms, ())
    return Request(architecture, images, arguments.batch, precision, augmentation, stored, stem, lean)


def measure(request: Request) -> tuple[Analysis, tuple[Difference, ...]]:
    """Trace the training step; return its counts (by JAX and XLA) and their differences from the tables."""
    # The counts are the same on any backend, so do not occupy an accelerator.
    if "jax" not in sys.modules:
        os.environ["JAX_PLATFORMS"] = "cpu"
    from aiperf_mpi.crosscheck.check import compare
    from aiperf_mpi.crosscheck.trace import trace_eval
    from aiperf_mpi.crosscheck.xla import analyse
    from aiperf_mpi.training.steps.step import StepSettings

    # Tracing makes almost no garbage, but a tenth of its time would go into collecting it.
    settings = StepSettings(
        request.batch,
        request.precision,
        augmentation=request.augmentation,
        stored_size=request.stored_size,
        stem=request.stem,
        forms=request.lean,
    )
    gc.disable()
    try:
        analysis = analyse(request.architecture, settings)
        evaluate = trace_eval(request.architecture, settings).count()
    finally:
        gc.enable()
    return analysis, compare(request.architecture, request.batch, analysis.executed, evaluate, request.forms)


def per_image(kinds: dict[str, tuple[int, int]], batch: int) -> dict[str, tuple[int, int]]:
    """Divide the counts of a step by its images, rounded to integers (matrix products divide exactly)."""
    return {kind: (round(fp / batch), round(bp / batch)) for kind, (fp, bp) in kinds.items()}
