# SPDX-License-Identifier: Apache-2.0
"""The convolutions that morphs can reach, compiled one by one before any candidate needs them.

On an accelerator the compiler tries several kernels for each convolution that it has not seen, and stops the
device meanwhile; what it finds goes to the persistent cache, and the compilation of a candidate reads it
there. On a CPU there is nothing to try.
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
    """A convolution with padding SAME, as a step computes it for a batch: sides are in pixels."""

    side: int
    filters_in: int
    filters: int
    kernel: int
    stride: int


def convolutions(architecture: Architecture) -> set[Convolution]:
    """The convolutions of a network."""
    return {
        Convolution(layer.in_shape[0], layer.in_shape[2], layer.out_shape[2], layer.kernel, layer.stride)
        for layer in architecture.layers()
        if layer.kind == "conv"
    }


def reachable(architecture: Architecture, ops: Sequence[str], kernels: Iterable[int]) -> list[Convolution]:
    """The convolutions of a network's children by a single morph, with each kernel size that hyperparameter
    optimisation may give to a new one; sorted, those of the network itself left out.

    Longer chains reach combinations of these; most of a candidate's convolutions are its parent's.
    """
    own, found = convolutions(architecture), set[Convolution]()
    shapes = {layer.unit: layer.out_shape for layer in architecture.layers() if layer.kind == "relu"}

    # Skips between units of the same shapes project alike: of more than a thousand some dozens differ.
    morphs = {
        (m.op, shapes[m.a], shapes[m.b]) if m.op == "skip" else m: m
        for m in eligible_morphs(architecture, ops)
    }
    for morph in morphs.values():
        found |= convolutions(architecture.apply(morph))
    new = found - own
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
    """Convolutions with their batch sizes, in the order in which candidates will need them.

    Arguments:
        architecture: the network that the search begins with.
        ops, kernels: see `reachable`.
        batches: the first one is the network's own, whose convolutions its training compiles; the others are
            those that hyperparameter optimisation may choose instead, with which the network's own are as new
            as the rest.
    """
    own, new = sorted(convolutions(architecture)), reachable(architecture, ops, kernels)
    found = [(convolution, batches[0]) for convolution in new]
    others = [batch for batch in dict.fromkeys(batches) if batch != batches[0]]
    # The network's own first, as most of every candidate's are its parent's.
    return found + [(c, batch) for part in (own, new) for batch in others for c in part]


def compile_convolution(convolution: Convolution, batch: int, precision: str, device: jax.Device) -> None:
    """Compile a convolution and its two gradients for `batch` images on a device, as the steps contain them;
    nothing is computed."""
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
