# SPDX-License-Identifier: Apache-2.0
"""An expanding convolution of 1x1 and the batch norm after it as one function, by the moments of its input.

The convolution is a product y = x W of the pixels x [P, K] and the weights W [K, C], K < C. The statistics of
y follow from the sums and the second moments of x: the mean of y is that of x times W, and the mean square of
y_c is w_c' (x'x) w_c / P. So the batch norm is folded into the weights before the product, and shortcut, bias
and ReLU are added where the product is written. Neither y nor its gradient is ever in memory. The gradients
need x'g and two products with g and x.

All large products and the sums after them are in the type of x and in the order in which libraries of NVIDIA
take them as one call (product, + matrix, + vector, ReLU). The extra operations are in
:mod:`aiperf_mpi.opcount.forms`; those of the plain form are credited.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from aiperf_mpi.training.model.layers import NORM_EPSILON, BatchNorm, Tail, finish_sums, sum_parts

#: Moments and small products are exact in float32: a batch norm subtracts squares that are nearly equal.
EXACT = lax.Precision.HIGHEST


class PointNorm(BatchNorm):
    """A convolution of 1x1, the batch norm after it and its `Tail` as one function, for training only.

    It has the variables of `BatchNorm`; the weights are an argument.
    """

    @nn.compact
    def __call__(  # type: ignore[override]
        self, x: jax.Array, kernel: jax.Array, shortcut: jax.Array | None, tail: Tail
    ) -> jax.Array:
        """Return [..., C] for `x [..., K]`, `kernel` float32 [1, 1, K, C] and a shortcut like the result."""
        scale, bias, mean, var = self.declare(kernel.shape[-1])
        y, batch_mean, batch_var = normalise_product(x, kernel[0, 0], scale, bias, shortcut, tail, self.axis)
        self.follow(mean, var, batch_mean, batch_var)
        return y


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def normalise_product(
    x: jax.Array,
    kernel: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shortcut: jax.Array | None,
    tail: Tail,
    axis: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Multiply `x [..., K]` by `kernel` float32 [K, C], and normalise, add and cut the product.

    The other arguments and the results are those of `layers.normalise_batch` for the product. The output has
    the dtype of x.
    """
    return _forward(x, kernel, scale, bias, shortcut, tail, axis)[0]


def _forward(
    x: jax.Array,
    kernel: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shortcut: jax.Array | None,
    tail: Tail,
    axis: str | None,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[Any, ...]]:
    # The weights are rounded once, with the norm in them.
    rows, weights = x.reshape(-1, x.shape[-1]), kernel
    count = rows.shape[0]
    total = jnp.sum(rows.astype(jnp.float32), 0)
    moments = _wide(_wide(rows, rows, (0, 0)), weights, (1, 0))
    mean = jnp.sum(total[:, None] * weights, 0) / count
    square = jnp.sum(weights * moments, 0) / count
    if axis is not None:
        mean, square = lax.pmean((mean, square), axis)
    var = jnp.maximum(0.0, square - lax.square(mean))
    inverse = lax.rsqrt(var + NORM_EPSILON)

    slope = inverse * scale
    y = _product(rows, (weights * slope).astype(x.dtype), (1, 0))
    if shortcut is not None:
        with jax.named_scope(tail.add):
            y = y + shortcut.reshape(y.shape)
    y = y + (bias - mean * slope).astype(x.dtype)
    if tail.relu:
        with jax.named_scope(tail.relu):
            y = nn.relu(y)
    y = y.reshape(*x.shape[:-1], -1)
    kept = (x, kernel, scale, mean, inverse, total, moments, y if tail.relu else None)
    return (y, mean, var), (*kept, None if shortcut is None else jnp.zeros((0,), shortcut.dtype))


def _backward(
    tail: Tail, axis: str | None, kept: tuple[Any, ...], gradients: tuple[jax.Array, ...]
) -> tuple[Any, ...]:
    x, kernel, scale, mean, inverse, total, moments, masking, like = kept
    passed = gradients[0]
    if tail.relu:
        with jax.named_scope(tail.relu):
            passed = jnp.where(masking > 0, passed, jnp.zeros_like(passed))
    rows, arrived = x.reshape(-1, x.shape[-1]), passed.reshape(-1, passed.shape[-1])
    weights, count = kernel, rows.shape[0]

    # The sums over the pixels of g and of g y. The statistics pass back sums over all images of the batch;
    # the mean over devices is divided by this device's images.
    product = _wide(rows, arrived, (0, 0))
    if tail.grouped:
        of_bias, along = finish_sums(sum_parts(arrived.astype(jnp.float32)), weights * product)
    else:
        of_bias, along = jnp.sum(arrived.astype(jnp.float32), 0), jnp.sum(weights * product, 0)
    of_scale = (along - mean * of_bias) * inverse
    shift, slope = (of_bias, of_scale) if axis is None else lax.pmean((of_bias, of_scale), axis)
    shift, slope, factor = shift / count, inverse * slope / count, inverse * scale

    # The gradient of y is factor (g - shift - (y - mean) slope). Its products with x and W, by parts:
    of_kernel = (product - total[:, None] * shift - (moments - total[:, None] * mean) * slope) * factor
    normed = (weights * factor).astype(x.dtype)
    back = _product(normed, (weights * -slope).astype(x.dtype), (1, 1))
    constant = jnp.sum(weights * ((shift - slope * mean) * factor), 1)
    correction = _product(rows, back, (1, 0)) + (-constant).astype(x.dtype)
    of_x = _product(arrived, normed, (1, 1)) + correction
    of_shortcut = None if like is None else passed.astype(like.dtype)
    return of_x.reshape(x.shape), of_kernel, of_scale, of_bias, of_shortcut


normalise_product.defvjp(_forward, _backward)


def _wide(a: jax.Array, b: jax.Array, over: tuple[int, int]) -> jax.Array:
    """Return the product over one axis of each matrix, float32; those of 16-bit numbers are exact."""
    precision = EXACT if a.dtype == jnp.float32 else None
    return lax.dot_general(a, b, _over(over), precision=precision, preferred_element_type=jnp.float32)


def _product(a: jax.Array, b: jax.Array, over: tuple[int, int]) -> jax.Array:
    """Return the product over one axis of each matrix, in their type."""
    return lax.dot_general(a, b, _over(over), preferred_element_type=a.dtype)


def _over(axes: tuple[int, int]) -> lax.DotDimensionNumbers:
    return (((axes[0],), (axes[1],)), ((), ()))
