# SPDX-License-Identifier: Apache-2.0
"""Augment and normalise images on the devices, inside a step."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

#: Pixels of padding on each side of an image before a random crop (He et al., 2016, section 4.2).
CROP_PADDING = 4


def augment(images: jax.Array, key: jax.Array) -> jax.Array:
    """Return random crops of the images [B, H, W, C], in the same shape and dtype.

    Each image is padded by CROP_PADDING zeros on all sides before the crop. Half of the crops are mirrored.
    """
    count, height, width, channels = images.shape
    shift_key, mirror_key = jax.random.split(key)
    shifts = jax.random.randint(shift_key, (count, 2), 0, 2 * CROP_PADDING + 1)
    border = (CROP_PADDING, CROP_PADDING)
    padded = jnp.pad(images, ((0, 0), border, border, (0, 0)))

    def crop(image: jax.Array, shift: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (shift[0], shift[1], 0), (height, width, channels))

    crops = jax.vmap(crop)(padded, shifts)
    mirrored = jax.random.bernoulli(mirror_key, shape=(count, 1, 1, 1))
    return jnp.where(mirrored, crops[:, :, ::-1], crops)


def normalise(images: jax.Array, mean: Sequence[float], deviation: Sequence[float]) -> jax.Array:
    """Return images uint8 [B, H, W, C] as float32: scaled to 0..1, minus `mean`, divided by `deviation`.

    `mean` and `deviation` have one value per channel, or one for all.
    """
    offset, scale = np.asarray(mean, np.float32), np.asarray(deviation, np.float32)
    return (images.astype(jnp.float32) / 255 - offset) / scale
