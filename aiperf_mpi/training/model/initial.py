# SPDX-License-Identifier: Apache-2.0
"""Draw the initial variables of a training with numpy, without tracing or compiling anything."""

from __future__ import annotations

import math

import numpy as np

from aiperf_mpi.network.architecture import Architecture, resnet50
from aiperf_mpi.training.model.resnet import expected_shapes, module_name

Variables = dict[str, dict[str, dict[str, np.ndarray]]]


def initial_variables(
    architecture: Architecture, rng: np.random.Generator, zero_gamma: bool = False
) -> Variables:
    """Return He-normal variables (He et al., 2015, equation 10; Table 4 of the paper), as float32.

    Convolutions and the dense kernel are normal with variance 2 / fan-in, and the dense bias is 0. Batch
    norms have scale 1, bias 0, running mean 0 and running variance 1. The same stream gives the same arrays.

    Arguments:
        rng: random stream (`streams.INIT` of the trial); weights are drawn in the order of `layers()`.
        zero_gamma: whether the norms of `closing_norms` have scale 0, so that each residual block begins as
            its shortcut (Goyal et al., 2017, section 5.1).

    Return the collections `params` and `batch_stats`, as `expected_shapes` lists them.
    """
    zero = closing_norms(architecture) if zero_gamma else frozenset()

    def draw(module: str, tensor: str, shape: tuple[int, ...]) -> np.ndarray:
        if tensor == "kernel":
            deviation = math.sqrt(2 / math.prod(shape[:-1]))
            return rng.standard_normal(shape, np.float32) * np.float32(deviation)
        ones = tensor == "var" or (tensor == "scale" and module not in zero)
        return np.full(shape, 1 if ones else 0, np.float32)

    return {
        kind: {
            module: {tensor: draw(module, tensor, shape) for tensor, shape in tensors.items()}
            for module, tensors in modules.items()
        }
        for kind, modules in expected_shapes(architecture).items()
    }


def closing_norms(architecture: Architecture) -> frozenset[str]:
    """Return the modules of the last batch norm of each residual block of the base network.

    The shortcut is added after it.
    """
    return frozenset(
        module_name(f"unit{unit.id:03d}.norm") for unit in resnet50(architecture.base).units if unit.edges
    )
