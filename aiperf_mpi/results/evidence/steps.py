# SPDX-License-Identifier: Apache-2.0
"""Operations of a network's training step: those credited, those of its jaxpr, and bounds of XLA's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.opcount import XLA_LEAST, XLA_OF_IMAGE, XLA_OF_PARAMETER, XLA_OF_PIXEL, XLA_OTHERS
from aiperf_mpi.opcount.analytical import matrix_operations, operations
from aiperf_mpi.opcount.forms import LEAN, difference_of_passes, executed_difference
from aiperf_mpi.opcount.taps import valid_products


@dataclass(frozen=True, slots=True)
class StepCount:
    """Operations per image of a network; all 0 for one that cannot be replayed.

    Attributes:
        train, val: of training and of validation, by the paper's tables.
        products: of convolutions and dense layers in a training step, in the forms that the step uses.
        of_part: the same for each of its micro-batches, whatever its number of images.
        valid: the products without taps in the padding, and with the first convolution in plain form.
        others: of training, without products.
        parameters: number of the network's parameters.
    """

    train: int = 0
    val: int = 0
    products: int = 0
    of_part: int = 0
    valid: int = 0
    others: int = 0
    parameters: int = 0

    def executed(self, images: int, parts: int) -> int:
        """Return the products of a step of so many images, cut into so many micro-batches."""
        return self.products * images + self.of_part * parts

    def xla_bounds(self, images: int, pixels: int) -> tuple[int, int]:
        """Return the lowest and the highest number that XLA's rules can give for a step on one device.

        XLA counts a loop over micro-batches once, so that `images` is the number in a micro-batch; `pixels`
        are the values of an image as it arrives on the device.
        """
        least = images * self.valid + self.of_part
        others = XLA_OTHERS * self.others + XLA_OF_PIXEL * pixels + XLA_OF_IMAGE
        return round(XLA_LEAST * least), least + images * others + XLA_OF_PARAMETER * self.parameters


def count_steps(architectures: Iterable[Architecture | str], forms: Sequence[str]) -> list[StepCount]:
    """Return the operations of networks, 0 for one that is the reason why it cannot be replayed."""
    # Counted on copies, so that the lists of layers are not kept: ten thousand of them fill 600 MB.
    return [StepCount() if isinstance(a, str) else count_step(a.apply(), forms) for a in architectures]


def count_step(architecture: Architecture, forms: Sequence[str]) -> StepCount:
    """Return the operations of a network whose step uses these optimised forms."""
    layers = architecture.layers()
    plain, lean = sum(matrix_operations(layers).values()), [form for form in forms if form in LEAN]
    train, val = operations(architecture)
    return StepCount(
        train,
        val,
        plain + sum(executed_difference(layers, forms).values()),
        sum(difference_of_passes(layers, forms).values()),
        valid_products(layers) + sum(executed_difference(layers, lean).values()),
        train - plain,
        architecture.parameters,
    )
