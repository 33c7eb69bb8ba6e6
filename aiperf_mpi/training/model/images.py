# SPDX-License-Identifier: Apache-2.0
"""Make images, take their centre and normalise them: on the devices, inside a step."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from aiperf_mpi.data.synthetic import MadeImages, pixels
from aiperf_mpi.opcount.tally import MADE_IMAGES


def make(numbers: jax.Array, made: MadeImages, shape: tuple[int, int, int], classes: int) -> jax.Array:
    """Return the images uint8 [B, *shape] of the data set `synthetic` that have the numbers uint32 [B].

    They do not depend on the labels that arrive with them, as a forward pass must not. The operations count
    as those of made-up images, see `opcount.tally`; they are never credited.
    """
    with jax.named_scope(MADE_IMAGES):
        return pixels(numbers, made, shape, classes, jnp)


def centre(images: jax.Array, size: int) -> jax.Array:
    """Return the central `size` x `size` pixels of the images [B, S, S, C], S >= size.

    If the border has an odd width, its wider part is at the right and at the bottom.
    """
    edge = (images.shape[1] - size) // 2
    return images[:, edge : edge + size, edge : edge + size]


def normalise(images: jax.Array, mean: Sequence[float], deviation: Sequence[float]) -> jax.Array:
    """Return images [B, H, W, C] of values 0 to 255 as float32, with a mean of 0 and a deviation of 1.

    The values are scaled to 0..1, less `mean`, divided by `deviation`. Both have one value per channel, or
    one for all.
    """
    offset, scale = np.asarray(mean, np.float32), np.asarray(deviation, np.float32)
    return (images.astype(jnp.float32) / 255 - offset) / scale
