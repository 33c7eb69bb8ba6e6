# SPDX-License-Identifier: Apache-2.0
"""Faster forms of a layer that a trained step may use: what they execute more than the plain form, exactly.

The paper credits an optimisation as speed: the plain form is counted, whatever is executed. A step that uses
a form of this list is checked less the form's difference; whoever adds a form to the step adds its formula
here, under a name.
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
    """One faster form.

    Attributes:
        reason: why what it executes differs.
        difference: layers -> operations per image that it executes more than the plain form, by class.
    """

    reason: str
    difference: Callable[[Sequence[Layer]], Mapping[Class, int]]


def _space_to_depth_stem(layers: Sequence[Layer]) -> dict[Class, int]:
    """The first convolution (stride 2, K x K) on blocks of 2x2 pixels, which become channels.

    Its stride becomes 1, its kernel the blocks that K pixels touch: where (K - 1) // 2 pixels are padded
    before and that is odd, the first block begins one pixel earlier. Each block has 4 Ci channels. Raises
    ValueError for a first convolution of another stride, or an image of odd size.
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


#: Every form that a step may use, by name.
FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "space_to_depth_stem": Form(
            "the first convolution runs on 2x2 blocks with a kernel padded to whole blocks",
            _space_to_depth_stem,
        )
    }
)

#: How the first convolution may be computed (`train.stem`) -> the forms of FORMS that a step then uses.
STEMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"plain": (), "space_to_depth": ("space_to_depth_stem",)}
)


def executed_difference(layers: Sequence[Layer], forms: Iterable[str]) -> dict[Class, int]:
    """Operations per image that the named forms execute more than the plain ones; ValueError for an unknown
    name."""
    total: dict[Class, int] = {}
    for name in forms:
        if name not in FORMS:
            raise ValueError(f"operation count: form {name!r} is none of {', '.join(FORMS)}")
        for key, operations in FORMS[name].difference(layers).items():
            total[key] = total.get(key, 0) + operations
    return total
