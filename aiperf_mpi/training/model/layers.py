# SPDX-License-Identifier: Apache-2.0
"""Batch norm fused with the addition and the ReLU after it, with a backward pass written by hand.

Differentiated automatically, a batch norm in half precision keeps its centred input in float32, and the mask
of its ReLU. A step is limited by memory traffic, and these arrays are written and read again in every step.
Here the backward pass keeps the input in the precision of the activations (after an addition also the
output), and three numbers for each channel. It computes the rest again. Ioffe and Szegedy (2015, section 3)
give the gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import gcd, isqrt
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

#: Batch norm: decay of the running statistics, and the constant added to the variance (Flax's usual values).
NORM_MOMENTUM = 0.9
NORM_EPSILON = 1e-5

#: The initial kernels of the Flax modules. No training begins with them: `initial_variables` draws what does.
#: Flax traces this function for each kernel whenever it applies a network. For a normal distribution that was
#: a quarter of a candidate's tracing time.
UNUSED = nn.initializers.zeros


@dataclass(frozen=True, slots=True)
class Tail:
    """The layers fused after a batch norm: scope names of an addition and of a ReLU, "" for none.

    Profiles and operation counts assign the operations to these scopes. `again` says that each pass of the
    backward pass masks the gradient itself, so that neither the masked gradient nor a mask is written.
    `grouped` says that the sums over a batch are finished together, see `two_sums`.
    """

    add: str = ""
    relu: str = ""
    again: bool = False
    grouped: bool = False


#: A batch norm that is not fused with other layers.
ALONE = Tail()


class BatchNorm(nn.Module):
    """A batch norm over all axes except the last, `x [..., C] -> [..., C]`, and its `Tail`, as one function.

    It has the parameters `scale` and `bias` and the running statistics `mean` and `var` (float32 [C]) of
    `flax.linen.BatchNorm`. The results are equal except for rounding: no intermediate value is rounded to
    `dtype`.

    Attributes:
        dtype: dtype of the output.
        axis: axis of the devices over which the statistics are averaged; None for the statistics of this
            device's images.
    """

    dtype: Any = jnp.float32
    axis: str | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, shortcut: jax.Array | None = None, tail: Tail = ALONE
    ) -> jax.Array:
        """Normalise `x`, add `shortcut` (of the same shape) if given, and apply the ReLU if `tail` has one.

        Training uses the statistics of these images, and updates the running statistics without a gradient.
        Otherwise the running statistics are used.
        """
        scale, bias, mean, var = self.declare(x.shape[-1])
        if not train:
            inverse = jax.lax.rsqrt(var.value + NORM_EPSILON)
            return _output(x, inverse * scale, bias, mean.value, shortcut, tail).astype(self.dtype)

        y, batch_mean, batch_var = normalise_batch(x, scale, bias, shortcut, tail, self.dtype, self.axis)
        self.follow(mean, var, batch_mean, batch_var)
        return y

    def declare(self, channels: int) -> tuple[jax.Array, jax.Array, nn.Variable, nn.Variable]:
        """Return scale and bias, and the variables of the running mean and variance, float32 [channels]."""
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        return scale, bias, mean, var

    def follow(
        self, mean: nn.Variable, var: nn.Variable, batch_mean: jax.Array, batch_var: jax.Array
    ) -> None:
        """Move the running statistics towards those of a batch."""
        if not self.is_initializing():
            mean.value = NORM_MOMENTUM * mean.value + (1 - NORM_MOMENTUM) * batch_mean
            var.value = NORM_MOMENTUM * var.value + (1 - NORM_MOMENTUM) * batch_var


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def normalise_batch(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shortcut: jax.Array | None,
    tail: Tail,
    dtype: Any,
    axis: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalise `x` by its own statistics, add `shortcut` if given, and apply the ReLU if `tail` has one.

    Arguments:
        x: [..., C], in the precision of the activations.
        scale, bias: float32 [C].
        shortcut: an array like x, or None.
        dtype: dtype of the output.
        axis: axis of the devices over which the batch is spread; None if this device has the whole batch.
            With an axis, the gradient of x is that of the sum of all devices' losses. The gradients of scale
            and bias are this device's share.

    Return the output, and mean and biased variance of the batch (float32 [C]). The last two are for the
    running statistics only, and pass no gradient on.
    """
    return _forward(x, scale, bias, shortcut, tail, dtype, axis)[0]


def _forward(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shortcut: jax.Array | None,
    tail: Tail,
    dtype: Any,
    axis: str | None,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[Any, ...]]:
    mean, var = batch_statistics(x, axis, tail.grouped)
    inverse = jax.lax.rsqrt(var + NORM_EPSILON)
    slope = inverse * scale
    y = _output(x, slope, bias, mean, shortcut, tail).astype(dtype)

    # Without an addition the ReLU's mask is computed again from the input. After an addition keep the output,
    # which the next layers keep as their input anyway.
    masking = y if tail.relu and shortcut is not None else None
    return (y, mean, var), (x, bias, mean, inverse, slope, masking, _like(shortcut))


def _backward(
    tail: Tail, dtype: Any, axis: str | None, kept: tuple[Any, ...], gradients: tuple[jax.Array, ...]
) -> tuple[Any, ...]:
    x, bias, mean, inverse, slope, masking, shortcut = kept
    again = tail.again and tail.relu and masking is None
    if again:
        mean, slope, bias = unshared(mean, slope, bias)
    passed, centred = gradients[0], x.astype(jnp.float32) - mean
    if tail.relu:
        positive = masking > 0 if masking is not None else centred * slope + bias > 0
        with jax.named_scope(tail.relu):
            passed = jnp.where(positive, passed, jnp.zeros_like(passed))

    # Both sums take one pass over the memory, and the gradient of the input takes another.
    wide = passed.astype(jnp.float32)
    of_bias, along = two_sums(wide, wide * centred, tail.grouped)
    of_scale = along * inverse
    shift, tilt = input_terms(slope, inverse, of_bias, of_scale, x.size // x.shape[-1], axis)
    if again:
        mean, slope, bias, shift, tilt = unshared(mean, slope, bias, shift, tilt)
        centred = x.astype(jnp.float32) - mean
        with jax.named_scope(tail.relu):
            wide = jnp.where(centred * slope + bias > 0, gradients[0], jnp.zeros_like(passed)).astype(
                jnp.float32
            )
    of_x = wide * slope - shift - centred * tilt
    return (
        of_x.astype(x.dtype),
        of_scale,
        of_bias,
        None if shortcut is None else passed.astype(shortcut.dtype),
    )


normalise_batch.defvjp(_forward, _backward)


def batch_statistics(x: jax.Array, axis: str | None, grouped: bool = False) -> tuple[jax.Array, jax.Array]:
    """Return mean and biased variance over all axes except the last, and over the devices if `axis` is given.

    They are computed in float32 and in one pass over the memory, as in Flax.
    """
    wide, count = x.astype(jnp.float32), x.size // x.shape[-1]
    total, squares = two_sums(wide, jax.lax.square(wide), grouped)
    mean, square = total / count, squares / count
    if axis is not None:
        mean, square = jax.lax.pmean((mean, square), axis)
    return mean, jnp.maximum(0.0, square - jax.lax.square(mean))


def two_sums(first: jax.Array, second: jax.Array, grouped: bool) -> tuple[jax.Array, jax.Array]:
    """Return the sums of two arrays [..., C] over all axes except the last, [C].

    An accelerator sums many rows in parts, and then the parts. If `grouped`, one kernel does the latter for
    both arrays.
    """
    if grouped:
        return finish_sums(sum_parts(first), sum_parts(second))
    axes = tuple(range(first.ndim - 1))
    return jnp.sum(first, axes), jnp.sum(second, axes)


def sum_parts(x: jax.Array) -> jax.Array:
    """Return the sums of parts of `x [..., C]`, [parts, C]: about as many parts as each has rows.

    There are up to twice as many as XLA takes by itself, so that it computes a mask for both sums of a
    gradient rather than write it.
    """
    rows = x.size // x.shape[-1]
    parts = gcd(rows, 1 << isqrt(rows).bit_length())
    return jnp.sum(x.reshape(parts, rows // parts, x.shape[-1]), 1)


def finish_sums(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the sums of two matrices of C columns over their rows, float32 [C], as one operation."""
    most = max(len(first), len(second))
    zero = jnp.zeros((), jnp.float32)
    terms = [jax.lax.pad(x, zero, ((0, most - len(x), 0), (0, 0, 0))) for x in (first, second)]
    first, second = jax.lax.reduce(terms, [zero, zero], _add_pairs, (0,))
    return first, second


def _add_pairs(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return a[0] + b[0], a[1] + b[1]


def unshared(*vectors: jax.Array) -> tuple[jax.Array, ...]:
    """Return vectors as others to the compiler: it does not share what follows from them with other passes.

    Sharing is dear if it writes an array of an activation's size to read it again, and vectors are cheap.
    """
    return tuple(jax.lax.optimization_barrier(vectors))


def input_terms(
    slope: jax.Array,
    inverse: jax.Array,
    of_bias: jax.Array,
    of_scale: jax.Array,
    count: int,
    axis: str | None,
) -> tuple[jax.Array, jax.Array]:
    """Return `shift` and `tilt`: the gradient of a batch norm's input is passed slope - shift - centred tilt.

    `passed` is the gradient of the output, and `centred` the input less its mean.

    Arguments:
        slope, inverse: the factor of the centred input, and 1 over its standard deviation, float32 [C].
        of_bias, of_scale: gradients of bias and scale by this device's images. The statistics pass back sums
            over all images of the batch; the mean over devices is divided by this device's images.
        count: number of this device's pixels.
    """
    if axis is not None:
        of_bias, of_scale = jax.lax.pmean((of_bias, of_scale), axis)
    return slope * of_bias / count, slope * inverse * of_scale / count


def _output(
    x: jax.Array, slope: jax.Array, bias: jax.Array, mean: jax.Array, shortcut: jax.Array | None, tail: Tail
) -> jax.Array:
    """Return the output in float32; `slope` is the scale over the standard deviation."""
    y = (x.astype(jnp.float32) - mean) * slope + bias
    if shortcut is not None:
        with jax.named_scope(tail.add):
            y = y + shortcut
    if tail.relu:
        with jax.named_scope(tail.relu):
            y = nn.relu(y)
    return y


def _like(array: jax.Array | None) -> jax.Array | None:
    """Return an empty array of the same dtype, to keep the dtype: a backward pass may keep only arrays."""
    return None if array is None else jnp.zeros((0,), array.dtype)
