# SPDX-License-Identifier: Apache-2.0
"""The command line, with one matrix product more in the training step than its network has.

Takes the arguments of `python -m aiperf_mpi`. Whatever the tables say, the step executes more: no candidate may pass.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from aiperf_mpi.__main__ import main
from aiperf_mpi.search.architecture import Architecture
from aiperf_mpi.training import step
from aiperf_mpi.training.step import StepSettings

_train_step = step.train_step


def tampered(architecture: Architecture, settings: StepSettings) -> Callable[..., Any]:
    """The training step, and the product of its images, flattened, with themselves."""
    plain = _train_step(architecture, settings)

    def more(state: Any, images: jax.Array, *rest: Any) -> Any:
        new, metrics = plain(state, images, *rest)
        flat = images.reshape(images.shape[0], -1).astype(jnp.float32)
        return new, metrics._replace(loss=metrics.loss + 0 * jnp.sum(flat @ flat.T))

    return more


if __name__ == "__main__":
    step.train_step = tampered
    sys.exit(main())
