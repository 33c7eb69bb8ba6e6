# SPDX-License-Identifier: Apache-2.0
"""A training step that executes more than its network has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.training.steps.step import StepSettings

Step = Callable[..., Any]


def with_product(make: Callable[..., Step]) -> Callable[..., Step]:
    """Return `make` with one more product in its step: of the flattened images with themselves."""

    def tampered(architecture: Architecture, settings: StepSettings) -> Step:
        step = make(architecture, settings)

        def more(state: Any, images: jax.Array, *rest: Any) -> Any:
            new, metrics = step(state, images, *rest)
            flat = images.reshape(images.shape[0], -1).astype(jnp.float32)
            return new, metrics._replace(loss=metrics.loss + 0 * jnp.sum(flat @ flat.T))

        return more

    return tampered
