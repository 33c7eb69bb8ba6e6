# SPDX-License-Identifier: Apache-2.0
"""Find the convolutions that morphs can reach, and compile them before a candidate needs them.

On an accelerator the compiler tries several kernels for each new convolution, and blocks the device while it
does so. It stores the best one in the persistent cache, where the compilation of a candidate finds it. On a
CPU there is nothing to try.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.network.morphism import eligible_morphs


@dataclass(frozen=True, order=True, slots=True)
class Convolution:
    """The shape of a convolution with padding SAME; `side` is the side of its square input in pixels."""

    side: int
    filters_in: int
    filters: int
    kernel: int
    stride: int


def convolutions(architecture: Architecture) -> set[Convolution]:
    """Return the convolutions of a network."""
    return {
        Convolution(layer.in_shape[0], layer.in_shape[2], layer.out_shape[2], layer.kernel, layer.stride)
        for layer in architecture.layers()
        if layer.kind == "conv"
    }


def reachable(architecture: Architecture, ops: Sequence[str], kernels: Iterable[int]) -> list[Convolution]:
    """Return the convolutions that a single morph can add to a network, sorted.

    A new convolution comes in each of `kernels`, the sizes that hyperparameter optimisation may choose.
    Convolutions that the network already has are left out. Longer chains of morphs reach combinations of
    these; most convolutions of a candidate are those of its parent.
    """
    own, children = convolutions(architecture), set[Convolution]()
    shapes = {layer.unit: layer.out_shape for layer in architecture.layers() if layer.kind == "relu"}

    # Skips between units of equal shapes need the same projection: of a thousand skips, some dozens differ.
    morphs = {
        (m.op, shapes[m.a], shapes[m.b]) if m.op == "skip" else m: m
        for m in eligible_morphs(architecture, ops)
    }
    for morph in morphs.values():
        children |= convolutions(architecture.apply(morph))
    new = children - own
    sizes = {
        Convolution(c.side, c.filters_in, c.filters, k, c.stride)
        for c in new
        if c.kernel > 1
        for k in kernels
    }
    return sorted((new | sizes) - own)


def to_compile(
    architecture: Architecture, ops: Sequence[str], kernels: Iterable[int], batches: Sequence[int]
) -> list[tuple[Convolution, int]]:
    """Return convolutions with their batch sizes, in the order in which candidates will need them.

    Arguments:
        architecture: the network with which the search begins.
        ops, kernels: see `reachable`.
        batches: batch sizes. The network is trained with the first one, which compiles its own convolutions
            for that size. Hyperparameter optimisation may choose the others, for which the network's own
            convolutions must be compiled too.
    """
    own, new = sorted(convolutions(architecture)), reachable(architecture, ops, kernels)
    first = [(convolution, batches[0]) for convolution in new]
    others = [batch for batch in dict.fromkeys(batches) if batch != batches[0]]
    # The network's own come first: most convolutions of a candidate are those of its parent.
    return first + [(c, batch) for part in (own, new) for batch in others for c in part]


def compile_convolution(convolution: Convolution, batch: int, precision: str, device: jax.Device) -> None:
    """Compile a convolution and its two gradients for `batch` images on a device, without running them."""
    dtype, place = jnp.dtype(precision), jax.sharding.SingleDeviceSharding(device)
    c = convolution
    images = jax.ShapeDtypeStruct((batch, c.side, c.side, c.filters_in), dtype, sharding=place)
    kernel = jax.ShapeDtypeStruct((c.kernel, c.kernel, c.filters_in, c.filters), jnp.float32, sharding=place)

    def apply(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            images,
            kernel.astype(dtype),
            (c.stride, c.stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def forward_and_back(images: jax.Array, kernel: jax.Array) -> Any:
        outputs, back = jax.vjp(apply, images, kernel)
        return outputs, back(outputs)

    jax.jit(forward_and_back).lower(images, kernel).compile()
