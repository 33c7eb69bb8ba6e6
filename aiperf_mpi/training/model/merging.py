# SPDX-License-Identifier: Apache-2.0
"""A convolution and the batch norm after it as one convolution, in evaluation.

There the statistics are constants, so the norm is part of the weights. Shortcut, bias and ReLU are added
where the convolution is written, and its output without them is never in memory.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from aiperf_mpi.training.model.layers import NORM_EPSILON, UNUSED, BatchNorm, Tail


class Kernel(nn.Module):
    """The weights float32 [size, size, channels, filters] of a convolution, named as by `flax.linen.Conv`."""

    size: int
    channels: int
    filters: int

    @nn.compact
    def __call__(self) -> jax.Array:
        shape = (self.size, self.size, self.channels, self.filters)
        return self.param("kernel", UNUSED, shape, jnp.float32)


class MergedNorm(BatchNorm):
    """A convolution, the batch norm after it and its `Tail` as one function, for evaluation only.

    It has the variables of `BatchNorm`; the weights are an argument.
    """

    @nn.compact
    def __call__(  # type: ignore[override]
        self, x: jax.Array, kernel: jax.Array, stride: int, shortcut: jax.Array | None, tail: Tail
    ) -> jax.Array:
        """Return [B, H/stride, W/stride, C] for `x [B, H, W, K]` and `kernel` float32 [size, size, K, C]."""
        scale, bias, mean, var = self.declare(kernel.shape[-1])
        slope = scale * lax.rsqrt(var.value + NORM_EPSILON)
        before = (kernel.shape[0] - 1) // 2
        y = lax.conv_general_dilated(
            x,
            (kernel * slope).astype(x.dtype),
            (stride, stride),
            ((before, kernel.shape[0] - 1 - before),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if shortcut is not None:
            with jax.named_scope(tail.add):
                y = y + shortcut
        y = y + (bias - mean.value * slope).astype(x.dtype)
        if tail.relu:
            with jax.named_scope(tail.relu):
                y = nn.relu(y)
        return y
