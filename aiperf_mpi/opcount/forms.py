# SPDX-License-Identifier: Apache-2.0
"""Optimised forms of a layer, and the exact number of extra operations each executes over the plain form.

The paper credits an optimisation as speed: the operations of the plain form count, whatever is executed. The
check of a step that uses an optimised form expects the plain count plus the form's difference. A new form
needs a named formula here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from aiperf_mpi.network.architecture import Layer
from aiperf_mpi.opcount.analytical import FORWARD, WEIGHT_GRADIENT, WEIGHTS
from aiperf_mpi.opcount.tally import Class


@dataclass(frozen=True)
class Form:
    """One optimised form.

    Attributes:
        reason: why it executes a different number of operations.
        difference: layers -> extra operations per image over the plain form, by class.
    """

    reason: str
    difference: Callable[[Sequence[Layer]], Mapping[Class, int]]


def _space_to_depth_stem(layers: Sequence[Layer]) -> dict[Class, int]:
    """Return the extra operations of the first convolution (stride 2, K x K) on blocks of 2x2 pixels.

    The pixels of a block become channels, 4 Ci for each block. The stride becomes 1, and the kernel covers
    all blocks that K pixels touch. If the padding before, (K - 1) // 2, is odd, the first block begins one
    pixel earlier. Raises ValueError for a first convolution of another stride, or an image of odd size.
    """
    stem = next(layer for layer in layers if layer.kind == "conv" and layer.inputs == ("input",))
    height, width, channels = stem.in_shape
    if stem.stride != 2 or height % 2 or width % 2:
        raise ValueError(
            f"layer {stem.name}: no space-to-depth form with stride {stem.stride} on {height}x{width}"
        )
    blocks = -(-(stem.kernel + (stem.kernel - 1) // 2 % 2) // 2)

    more = blocks**2 * 4 * channels - stem.kernel**2 * channels
    places = stem.out_shape[0] * stem.out_shape[1] * stem.out_shape[2]
    operations = WEIGHTS["mac"] * more * places
    return {("conv", FORWARD): operations, ("conv", WEIGHT_GRADIENT): operations}


#: All optimised forms that a step may use, by name.
FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "space_to_depth_stem": Form(
            "the first convolution runs on 2x2 blocks with a kernel padded to whole blocks",
            _space_to_depth_stem,
        )
    }
)

#: Values of `train.stem` (the form of the first convolution) -> the names in FORMS that a step then uses.
STEMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"plain": (), "space_to_depth": ("space_to_depth_stem",)}
)


def executed_difference(layers: Sequence[Layer], forms: Iterable[str]) -> dict[Class, int]:
    """Return the extra operations per image that the named forms execute over the plain ones, by class.

    Raises ValueError for an unknown name.
    """
    total: dict[Class, int] = {}
    for name in forms:
        if name not in FORMS:
            raise ValueError(f"operation count: form {name!r} is not one of {', '.join(FORMS)}")
        for key, operations in FORMS[name].difference(layers).items():
            total[key] = total.get(key, 0) + operations
    return total
