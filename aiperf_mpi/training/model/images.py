# SPDX-License-Identifier: Apache-2.0
"""DOCSTRING."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

#: Pixels around an image before a random crop takes its size out of it (He et al., 2016, section 4.2).
CROP_PADDING = 4


def augment(images: jax.Array, key: jax.Array) -> jax.Array:
    """Random crops out of the images [B, H, W, C] padded by CROP_PADDING zeros, half of them mirrored, same
    dtype."""
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
    """Images uint8 [B, H, W, C] as float32: scaled to 0..1, then less `mean`, over `deviation` (one value per
    channel or one for all)."""
    offset, scale = np.asarray(mean, np.float32), np.asarray(deviation, np.float32)
    return (images.astype(jnp.float32) / 255 - offset) / scale
