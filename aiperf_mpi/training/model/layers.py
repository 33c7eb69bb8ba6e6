# SPDX-License-Identifier: Apache-2.0
"""Batch norm, with the addition and the ReLU behind it, as one function with a backward pass written by hand.

Differentiated as it stands, a batch norm in half precision keeps its centred input in float32, and the masks
of its ReLU: memory that is written and read again in every step, where a step's limit is the memory. Here the
backward pass gets the input (and, behind an addition, the output) in the precision of the activations, and
three numbers for each channel; the rest is computed again. Ioffe and Szegedy (2015, section 3) give the
gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from aiperf_mpi.network.architecture import Layer

#: Batch norm: decay of the running statistics, and what is added to the variance (the usual values of Flax).
NORM_MOMENTUM = 0.9
NORM_EPSILON = 1e-5


@dataclass(frozen=True, slots=True)
class Tail:
    """What follows a batch norm in the same function: the scopes of an addition and of a ReLU, to which
    profiles and operation counts assign them, empty for what is not there."""

    add: str = ""
    relu: str = ""


#: Nothing follows.
ALONE = Tail()


class BatchNorm(nn.Module):
    """A batch norm over all axes but the last, `x [..., C] -> [..., C]`, and what follows it in one function.

    Parameters `scale` and `bias`, running statistics `mean` and `var` (float32 [C]) as in
    `flax.linen.BatchNorm`, which it equals but for rounding: between the input and the output nothing is
    rounded to `dtype`.

    Attributes:
        dtype: of the output.
        axis: the devices' axis along which the statistics are averaged; None for those of this device's
            images.
    """

    dtype: Any = jnp.float32
    axis: str | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, shortcut: jax.Array | None = None, tail: Tail = ALONE
    ) -> jax.Array:
        """Normalises, adds `shortcut` (of the same shape) if there is one, and cuts off below 0 if `tail`
        says so.

        Training uses the statistics of these images and moves the running ones, without a gradient; else
        those are used.
        """
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        if not train:
            inverse = jax.lax.rsqrt(var.value + NORM_EPSILON)
            return _output(x, scale, bias, mean.value, inverse, shortcut, tail).astype(self.dtype)

        y, batch_mean, batch_var = normalise_batch(x, scale, bias, shortcut, tail, self.dtype, self.axis)
        if not self.is_initializing():
            mean.value = NORM_MOMENTUM * mean.value + (1 - NORM_MOMENTUM) * batch_mean
            var.value = NORM_MOMENTUM * var.value + (1 - NORM_MOMENTUM) * batch_var
        return y


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
    """Batch norm by the batch's own statistics, plus `shortcut`, cut off below 0 if `tail` says so.

    Arguments:
        x: [..., C], in the precision of the activations.
        scale, bias: float32 [C].
        shortcut: like x, or None.
        dtype: of the output.
        axis: the devices' axis along which the batch is spread; None where this device has all of it. The
            gradients are then those of the sum of all devices' losses; scale's and bias's are this device's
            share of them.

    Returns the output like x, and mean and biased variance of the batch (float32 [C]); these two are for the
    running statistics only: gradients that arrive at them are dropped.
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
    mean, var = _statistics(x, axis)
    inverse = jax.lax.rsqrt(var + NORM_EPSILON)
    y = _output(x, scale, bias, mean, inverse, shortcut, tail).astype(dtype)

    # Without an addition the mask of the ReLU follows from the input. The output of an addition is the input
    # of the layers behind it, which keep it anyway.
    masking = y if tail.relu and shortcut is not None else None
    return (y, mean, var), (x, scale, bias, mean, inverse, masking, _like(shortcut))


def _backward(
    tail: Tail, dtype: Any, axis: str | None, kept: tuple[Any, ...], gradients: tuple[jax.Array, ...]
) -> tuple[Any, ...]:
    x, scale, bias, mean, inverse, masking, shortcut = kept
    passed, axes, count = gradients[0], tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    centred = x.astype(jnp.float32) - mean
    if tail.relu:
        positive = masking > 0 if masking is not None else centred * (inverse * scale) + bias > 0
        with jax.named_scope(tail.relu):
            passed = jnp.where(positive, passed, jnp.zeros_like(passed))

    # Both sums in one pass over the memory, then the gradient of the input in another. What the statistics
    # pass back to the input is the sum over all images that they were taken from, here divided by the images
    # of this device.
    wide = passed.astype(jnp.float32)
    of_bias = jnp.sum(wide, axes)
    of_scale = jnp.sum(wide * centred, axes) * inverse
    shift, slope = (of_bias, of_scale) if axis is None else jax.lax.pmean((of_bias, of_scale), axis)
    of_x = (wide - shift / count - centred * (inverse * slope / count)) * (inverse * scale)
    return (
        of_x.astype(x.dtype),
        of_scale,
        of_bias,
        None if shortcut is None else passed.astype(shortcut.dtype),
    )


normalise_batch.defvjp(_forward, _backward)


def _statistics(x: jax.Array, axis: str | None) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance over all axes but the last, in float32 and in one pass over the memory, as
    Flax does; over the devices too where they have an `axis`."""
    axes, wide = tuple(range(x.ndim - 1)), x.astype(jnp.float32)
    mean, square = jnp.mean(wide, axes), jnp.mean(jax.lax.square(wide), axes)
    if axis is not None:
        mean, square = jax.lax.pmean((mean, square), axis)
    return mean, jnp.maximum(0.0, square - jax.lax.square(mean))


def _output(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    mean: jax.Array,
    inverse: jax.Array,
    shortcut: jax.Array | None,
    tail: Tail,
) -> jax.Array:
    """The output in float32; `inverse` is 1 over the standard deviation."""
    y = (x.astype(jnp.float32) - mean) * (inverse * scale) + bias
    if shortcut is not None:
        with jax.named_scope(tail.add):
            y = y + shortcut
    if tail.relu:
        with jax.named_scope(tail.relu):
            y = nn.relu(y)
    return y


def _like(array: jax.Array | None) -> jax.Array | None:
    """An empty array of the same dtype: a backward pass may keep arrays only."""
    return None if array is None else jnp.zeros((0,), array.dtype)


@dataclass(frozen=True, slots=True)
class Fused:
    """A ReLU that is computed with what is before it: the batch norm `norm`, and the addition `add` of the
    output of `shortcut`, if there is one (names of layers)."""

    norm: Layer
    add: str = ""
    shortcut: str = ""


def fusions(layers: Sequence[Layer]) -> tuple[dict[str, Fused], frozenset[str]]:
    """Which ReLUs take in the batch norm before them, or the batch norm and the addition.

    A layer is taken in only if nothing else reads its output. Of an addition of two batch norms the first one
    is taken in, the other one is its shortcut.

    Returns ReLU's name -> what it takes in, and the names of all layers that are taken in.
    """
    named = {layer.name: layer for layer in layers}
    readers: dict[str, int] = {}
    for layer in layers:
        for name in layer.inputs:
            readers[name] = readers.get(name, 0) + 1

    def alone(name: str, kind: str) -> bool:
        return name in named and named[name].kind == kind and readers[name] == 1

    found: dict[str, Fused] = {}
    taken: set[str] = set()
    for layer in layers:
        if layer.kind != "relu":
            continue
        before = layer.inputs[0]
        if alone(before, "batch_norm"):
            found[layer.name] = Fused(named[before])
            taken.add(before)
        elif alone(before, "add"):
            norm = next((name for name in named[before].inputs if alone(name, "batch_norm")), None)
            if norm is not None:
                (other,) = (name for name in named[before].inputs if name != norm)
                found[layer.name] = Fused(named[norm], before, other)
                taken |= {before, norm}
    return found, frozenset(taken)
