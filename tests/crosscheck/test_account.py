# SPDX-License-Identifier: Apache-2.0
"""A compiled step counted by its jaxpr and by XLA, compared with the tables."""

from __future__ import annotations

from dataclasses import replace

import jax
import pytest

from aiperf_mpi.crosscheck.account import account
from aiperf_mpi.network.architecture import Base, resnet50
from aiperf_mpi.opcount import XLA_BAND, XLA_RANDOM_IMAGE, XLA_RANDOM_STEP
from aiperf_mpi.opcount.analytical import matrix_operations
from aiperf_mpi.opcount.forms import STEMS, executed_difference
from aiperf_mpi.training.steps.compile import compile_steps
from aiperf_mpi.training.steps.step import StepSettings

ARCHITECTURE = resnet50(Base(image_size=16, channels=1, classes=3, width=4, blocks=(1,)))
SETTINGS = StepSettings(batch_per_device=8)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulate": 4},
        {
            "precision": "bfloat16",
            "augmentation": "resized_crop",
            "stored_size": 20,
            "stem": "space_to_depth",
        },
    ],
    ids=str,
)
def test_a_compiled_step_is_counted_three_ways(changes: dict) -> None:
    """Count the products of eight images in any number of parts, with the extra ones of an optimised form.

    XLA estimates the same program. It counts the loop over the parts once, as the model does.
    """
    settings = replace(SETTINGS, **changes)
    counts = account(compile_steps(ARCHITECTURE, settings, jax.devices()[:1]))

    layers = ARCHITECTURE.layers()
    more = sum(executed_difference(layers, STEMS[settings.stem]).values())
    assert (more > 0) == (settings.stem != "plain")
    assert counts.jaxpr_ops == 8 * (sum(matrix_operations(layers).values()) + more)
    assert counts.xla_ops > 0
    random = XLA_RANDOM_IMAGE * 8 + XLA_RANDOM_STEP if settings.augmentation != "none" else 0
    assert abs(counts.xla_model_ops - counts.xla_ops) <= XLA_BAND * counts.xla_ops + random
