# SPDX-License-Identifier: Apache-2.0
"""The bytes that a step's layers need by hand: each pass over an array in a kernel of its own counts once.

A convolution reads the pixels of x that it uses and writes y. Its gradients read dy and write dx, and read dy
and x. A batch norm with its ReLU reads y for its statistics, reads it again and writes; backward it reads dy
and y twice, for its sums and to write. An addition reads the shortcut; backward it reads the output for the
ReLU's mask and writes the masked gradient, which is read where it is added. Weights, statistics and the
update are in one row. This is the least of kernels that are not fused across layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from aiperf_mpi.network.architecture import Layer

#: Bytes for each parameter in a step: read, and cast to 2 bytes for two uses (4 + 2 + 2 + 2), its gradient
#: written and read (8), the momentum read and written (8), the parameter read and written (8).
PARAMETER_BYTES = 34


@dataclass(frozen=True, slots=True)
class LayerBytes:
    """Bytes per image of a layer, forward and backward."""

    name: str
    kind: str
    forward: float
    backward: float


def layer_bytes(
    layers: Sequence[Layer], parameters: int, batch: int, itemsize: int, train: bool = True
) -> list[LayerBytes]:
    """Return the bytes per image of each layer, and of the update as the last row.

    Arguments:
        parameters: number of the network's parameters.
        batch: images of a step, over which the bytes of the parameters are spread.
        itemsize: bytes of an activation.
        train: the training step; otherwise the evaluation step, in which a batch norm takes one pass.
    """
    rows = []
    for layer in layers:
        x, y = (itemsize * prod(shape) for shape in (layer.in_shape, layer.out_shape))
        forward, backward = _passes(layer, x, y, train)
        rows.append(LayerBytes(layer.name, layer.kind, forward, backward if train else 0.0))
    bytes_of_parameter = PARAMETER_BYTES if train else 4
    rows.append(LayerBytes("parameters", "update", 0.0, bytes_of_parameter * parameters / batch))
    return rows


def _passes(layer: Layer, x: float, y: float, train: bool) -> tuple[float, float]:
    match layer.kind:
        case "conv" if layer.inputs == ("input",):
            # The images arrive as bytes; augmented and normalised they are written once. No input gradient.
            pixels = prod(layer.in_shape)
            return pixels + x + x + y, x + y
        case "conv":
            # A stride above the kernel leaves pixels out, but their gradient, zeros, is written.
            used = x * min(1.0, (layer.kernel / layer.stride) ** 2)
            return used + y, x + used + 2 * y
        case "batch_norm":
            return (3 if train else 2) * y, 5 * y
        case "add":
            return y, 3 * y
        case "max_pool":
            # Backward it reads the gradient and the input, and writes the input's gradient.
            return x + y, 2 * x + y
        case "global_pool":
            return x, x
    # ReLUs are part of the batch norm before them; the last layers are small.
    return 0.0, 0.0


def total(rows: Sequence[LayerBytes]) -> float:
    """Return the bytes per image of all layers."""
    return sum(row.forward + row.backward for row in rows)
