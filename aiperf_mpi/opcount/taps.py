# SPDX-License-Identifier: Apache-2.0
"""The products of a training step as XLA counts them: without the taps of convolutions in the padding."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from aiperf_mpi.network.architecture import Layer
from aiperf_mpi.opcount.analytical import MATRIX_KINDS, MATRIX_ROLES, WEIGHTS


def valid_taps(
    size: int,
    kernel: int,
    *,
    stride: int = 1,
    before: int = 0,
    after: int = 0,
    size_dilation: int = 1,
    kernel_dilation: int = 1,
) -> int:
    """Return the number of pairs of output position and kernel tap, in one dimension, that meet an input.

    No input exists in the padding, nor between the elements of a dilated input.
    """
    dilated = (size - 1) * size_dilation + 1 if size else 0
    reach = (kernel - 1) * kernel_dilation + 1
    outputs = max((dilated + before + after - reach) // stride + 1, 0)
    places = np.arange(outputs)[:, None] * stride + np.arange(kernel)[None, :] * kernel_dilation - before
    return int(((places >= 0) & (places < dilated) & (places % size_dilation == 0)).sum())


def valid_products(layers: Iterable[Layer]) -> int:
    """Return the operations per image of convolutions and dense layers in a training step, in plain form,
    without taps in the padding. Forward pass and gradients have the same taps; the first convolution has no
    gradient of its input."""
    total = 0
    for layer in layers:
        if layer.kind in MATRIX_KINDS:
            products = len(MATRIX_ROLES) - (layer.inputs == ("input",))
            channels = layer.in_shape[2] * layer.out_shape[2]
            total += WEIGHTS["mac"] * products * channels * _taps(layer)
    return total


def _taps(layer: Layer) -> int:
    """Return the valid taps of a layer's kernel at all positions; 1 for a dense layer."""
    if layer.kind == "dense":
        return 1
    height, width = (
        _taps_along(layer.in_shape[axis], layer.out_shape[axis], layer.kernel, layer.stride)
        for axis in (0, 1)
    )
    return height * width


@lru_cache(maxsize=1 << 12)
def _taps_along(size: int, outputs: int, kernel: int, stride: int) -> int:
    """Return the valid taps in one dimension, with (K - 1) // 2 padded before the input."""
    before = (kernel - 1) // 2
    after = max((outputs - 1) * stride + kernel - size - before, 0)
    return valid_taps(size, kernel, stride=stride, before=before, after=after)
