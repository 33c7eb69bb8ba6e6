# SPDX-License-Identifier: Apache-2.0
"""Max pooling of 3x3 with stride 2 without a scatter: alone, or fused with a batch norm and ReLU before it.

The backward pass of `flax.linen.max_pool` searches each window again and adds to the places that it finds,
one by one. Here the forward pass keeps the place in each window (one byte), and the backward pass reads at
each pixel the windows around it. After a batch norm and its ReLU neither the normalised images nor their
gradient is in memory, and the sums of the batch norm's gradients run over a quarter of the pixels.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from aiperf_mpi.training.model.layers import NORM_EPSILON, BatchNorm, batch_statistics, input_terms, two_sums

#: Size and stride of the windows, and the pixels of padding on each side.
WINDOW, STRIDE, PADDING = 3, 2, 1

#: The place of a window from which no gradient comes: its maximum is not positive.
NOWHERE = 255


class NormPool(BatchNorm):
    """A batch norm, its ReLU and the max pooling after it as one function, for training only.

    It maps `x [B, H, W, C]` to [B, H/2, W/2, C], and has the variables of `BatchNorm`.
    """

    @nn.compact
    def __call__(self, x: jax.Array, grouped: bool = False) -> jax.Array:  # type: ignore[override]
        scale, bias, mean, var = self.declare(x.shape[-1])
        y, batch_mean, batch_var = normalise_pool(x, scale, bias, self.dtype, self.axis, grouped)
        self.follow(mean, var, batch_mean, batch_var)
        return y


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """Return the maxima of the windows of `x [B, H, W, C]`, [B, H/2, W/2, C] with sizes rounded up."""
    return _pool_forward(x)[0]


def _pool_forward(x: jax.Array) -> tuple[jax.Array, tuple[Any, ...]]:
    best, place, _ = _largest(_windows(x, -jnp.inf), None)
    return best, (place, jnp.zeros((0, *x.shape[1:3]), x.dtype))


def _pool_backward(kept: tuple[Any, ...], gradient: jax.Array) -> tuple[jax.Array]:
    place, like = kept
    return (_spread(gradient, place, *like.shape[1:3]).astype(like.dtype),)


max_pool.defvjp(_pool_forward, _pool_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalise_pool(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    dtype: Any,
    axis: str | None = None,
    grouped: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalise `x [B, H, W, C]` by its own statistics, and return the maxima of the windows of its ReLU.

    The arguments and results are those of `layers.normalise_batch`, the output is [B, H/2, W/2, C]. `grouped`
    is that of `layers.two_sums`.
    """
    return _norm_forward(x, scale, bias, dtype, axis, grouped)[0]


def _norm_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, dtype: Any, axis: str | None, grouped: bool
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[Any, ...]]:
    mean, var = batch_statistics(x, axis, grouped)
    inverse = lax.rsqrt(var + NORM_EPSILON)
    normalised = (x.astype(jnp.float32) - mean) * (inverse * scale) + bias
    best, place, chosen = _largest(_windows(normalised, -jnp.inf), _windows(x, 0))
    place = jnp.where(best > 0, place, jnp.uint8(NOWHERE))

    # Behind the barrier what follows reads the results, and does not compute them again from x.
    y, place, chosen = lax.optimization_barrier((nn.relu(best).astype(dtype), place, chosen))
    return (y, mean, var), (x, scale, bias, mean, inverse, place, chosen)


def _norm_backward(
    dtype: Any, axis: str | None, grouped: bool, kept: tuple[Any, ...], gradients: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, bias, mean, inverse, place, chosen = kept
    passed = gradients[0]

    # Gradients arrive at the chosen pixels only, so the sums over all pixels are those over the windows.
    centred = chosen.astype(jnp.float32) - mean
    wide = jnp.where(centred * (inverse * scale) + bias > 0, passed.astype(jnp.float32), 0)
    of_bias, along = two_sums(wide, wide * centred, grouped)
    of_scale, slope = along * inverse, inverse * scale
    arrived = _spread(passed, place, *x.shape[1:3])
    centred = x.astype(jnp.float32) - mean
    shift, tilt = input_terms(slope, inverse, of_bias, of_scale, x.size // x.shape[-1], axis)
    of_x = arrived * slope - shift - centred * tilt
    return of_x.astype(x.dtype), of_scale, of_bias


normalise_pool.defvjp(_norm_forward, _norm_backward)


def _windows(x: jax.Array, fill: float) -> list[jax.Array]:
    """Return the views [B, H/2, W/2, C] of x, padded by `fill`, for each place in a window, row by row."""
    height, width = x.shape[1:3]
    border = (PADDING, PADDING, 0)
    x = lax.pad(x, jnp.asarray(fill, x.dtype), ((0, 0, 0), border, border, (0, 0, 0)))
    places = [divmod(place, WINDOW) for place in range(WINDOW**2)]
    return [x[:, i : i + height : STRIDE, j : j + width : STRIDE] for i, j in places]


def _largest(
    values: list[jax.Array], sources: list[jax.Array] | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Return the largest of `values`, its place (the first one, uint8), and `sources` at that place."""
    best, place = values[0], jnp.zeros(values[0].shape, jnp.uint8)
    chosen = None if sources is None else sources[0]
    for number in range(1, len(values)):
        better = values[number] > best
        best = jnp.where(better, values[number], best)
        place = jnp.where(better, jnp.uint8(number), place)
        if sources is not None and chosen is not None:
            chosen = jnp.where(better, sources[number], chosen)
    return best, place, chosen


def _spread(pooled: jax.Array, place: jax.Array, height: int, width: int) -> jax.Array:
    """Return the sums float32 [B, H, W, C] at each pixel of `pooled [B, H/2, W/2, C]` where it was chosen."""
    total = jnp.zeros((), jnp.float32)
    for number in range(WINDOW**2):
        part = jnp.where(place == number, pooled, jnp.zeros_like(pooled)).astype(jnp.float32)
        offsets = (place - PADDING for place in divmod(number, WINDOW))
        sizes = zip(offsets, (height, width), pooled.shape[1:3], strict=True)
        borders = [(offset, size - offset - (STRIDE * (n - 1) + 1), STRIDE - 1) for offset, size, n in sizes]
        total = total + lax.pad(part, jnp.float32(0), ((0, 0, 0), *borders, (0, 0, 0)))
    return total
