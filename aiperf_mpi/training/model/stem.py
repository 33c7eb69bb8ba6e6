# SPDX-License-Identifier: Apache-2.0
"""The first convolution on blocks of 2x2 pixels: the same function and the same weights in another order.

Three channels of an image use a matrix unit poorly. Here each block of 2x2 pixels becomes one pixel with four
times the channels. The stride 2 becomes 1, and the kernel is padded to whole blocks. This form executes more
operations, by the difference in :mod:`aiperf_mpi.opcount.forms`; only those of the plain form are credited.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from aiperf_mpi.opcount.forms import STEMS
from aiperf_mpi.training.model.layers import UNUSED

#: Forms of the first convolution: on pixels, or on blocks of pixels.
PLAIN, SPACE_TO_DEPTH = STEMS


class BlockConv(nn.Module):
    """A convolution of stride 2 on images [B, H, W, C] of even height and width, computed on 2x2 blocks.

    It equals a `flax.linen.Conv` with (K - 1) // 2 pixels of padding before and the rest after, except for
    rounding. Its parameter `kernel` [K, K, C, filters] is the same, so checkpoints and initial weights fit
    both.

    Attributes:
        filters: channels of the output.
        kernel: size K of the kernel.
        dtype: dtype of the operands and the output.
    """

    filters: int
    kernel: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        (_, height, width, channels), size = x.shape, self.kernel
        if height % 2 or width % 2:
            raise ValueError(f"an image of {height}x{width} pixels has no blocks of 2x2: use the plain stem")
        kernel = self.param("kernel", UNUSED, (size, size, channels, self.filters), jnp.float32)

        # Pad the kernel with zeros before and after, so that it begins and ends at block boundaries.
        before = (size - 1) // 2
        count = blocks_of(size)
        margin = (before % 2, 2 * count - size - before % 2)
        padded = jnp.pad(kernel.astype(self.dtype), (margin, margin, (0, 0), (0, 0)))
        parts = padded.reshape(count, 2, count, 2, channels, self.filters).transpose(0, 2, 1, 3, 4, 5)
        weights = parts.reshape(count, count, 4 * channels, self.filters)

        padding = (before + before % 2) // 2
        return jax.lax.conv_general_dilated(
            to_blocks(x.astype(self.dtype)),
            weights,
            (1, 1),
            ((padding, count - 1 - padding),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


def blocks_of(kernel: int) -> int:
    """Return the number of two-pixel blocks, per dimension, that a kernel of this size touches.

    If its padding before is odd, the first block begins one pixel earlier.
    """
    return -(-(kernel + (kernel - 1) // 2 % 2) // 2)


def to_blocks(images: jax.Array) -> jax.Array:
    """Reshape images [B, H, W, C] to [B, H/2, W/2, 4C]: the channels of a block's pixels, row by row."""
    batch, height, width, channels = images.shape
    blocks = images.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(batch, height // 2, width // 2, 4 * channels)
