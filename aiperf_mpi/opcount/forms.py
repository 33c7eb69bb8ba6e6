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
from aiperf_mpi.opcount.analytical import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, WEIGHTS
from aiperf_mpi.opcount.tally import Class

#: Extra operations of some layers, by class.
Difference = Callable[[Sequence[Layer]], Mapping[Class, int]]


def _none(_: Sequence[Layer]) -> Mapping[Class, int]:
    return {}


@dataclass(frozen=True)
class Form:
    """One optimised form, and its extra operations over the plain form.

    Attributes:
        reason: why it executes a different number of operations.
        difference: those of a training step per image; operations that it does not execute are negative.
        passes: those of a training step for each of its micro-batches, of any number of images.
        evaluation: those of an evaluation step per image.
    """

    reason: str
    difference: Difference = _none
    passes: Difference = _none
    evaluation: Difference = _none


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


def _forward_of_stem(layers: Sequence[Layer]) -> dict[Class, int]:
    return {key: count for key, count in _space_to_depth_stem(layers).items() if key[1] == FORWARD}


def expansions(layers: Sequence[Layer]) -> list[Layer]:
    """Return the convolutions of 1x1 whose output has at least twice the channels of their input.

    Only for these the product of the input with itself is cheaper than what it saves.
    """
    return [
        layer
        for layer in layers
        if layer.kind == "conv"
        and layer.kernel == 1
        and layer.inputs != ("input",)
        and 2 * layer.in_shape[2] <= layer.out_shape[2]
    ]


def _folded_expansions(layers: Sequence[Layer]) -> dict[Class, int]:
    """Return the extra operations of the products in place of expanding convolutions (`model/folding.py`).

    With P positions, K channels to C: x x and x W forward (2 P K K + 2 P K C), and backward x'g, g W' and x
    times a K x K matrix. The statistics of the batch are in all weights of the backward products, so the
    traversal of the jaxpr takes these as weight gradients.
    """
    total: dict[Class, int] = {}
    for layer in expansions(layers):
        channels, filters = layer.in_shape[2], layer.out_shape[2]
        places = layer.out_shape[0] * layer.out_shape[1]
        plain, square = (WEIGHTS["mac"] * places * channels * n for n in (filters, channels))
        for key, operations in (
            *((("conv", role), -plain) for role in (FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT)),
            (("dense", FORWARD), plain + square),
            (("dense", WEIGHT_GRADIENT), 2 * plain + square),
        ):
            total[key] = total.get(key, 0) + operations
    return total


def _products_of_weights(layers: Sequence[Layer]) -> dict[Class, int]:
    """Return the operations of the two products of folded weights for each micro-batch, 2 K K C each."""
    sizes = [(layer.in_shape[2], layer.out_shape[2]) for layer in expansions(layers)]
    operations = WEIGHTS["mac"] * sum(channels**2 * filters for channels, filters in sizes)
    return {("dense", FORWARD): operations, ("dense", WEIGHT_GRADIENT): operations}


#: Forms that read and write less memory; `train.forms` names those of a run.
ROUNDED, POOLED, SELECTED, FOLDED = "rounded", "pooled", "selected", "folded"
MASKED, MERGED, KEPT, GROUPED = "masked", "merged", "kept", "grouped"

#: All optimised forms that a step may use, by name.
FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "space_to_depth_stem": Form(
            "the first convolution runs on 2x2 blocks with a kernel padded to whole blocks",
            _space_to_depth_stem,
            evaluation=_forward_of_stem,
        ),
        ROUNDED: Form("activations are rounded where the network says so: the same operations"),
        POOLED: Form("max pooling keeps the places of its maxima: the same products"),
        SELECTED: Form("pixels are selected once for all strided convolutions of 1x1: the same products"),
        FOLDED: Form(
            "expanding convolutions of 1x1 get their batch norm's statistics from products of their input",
            _folded_expansions,
            _products_of_weights,
        ),
        MASKED: Form("a gradient is masked by a ReLU in each pass that reads it: the same products"),
        MERGED: Form("in evaluation a batch norm is part of the weights before it: the same products"),
        KEPT: Form("the state before a step is kept beside the one after it: the same operations"),
        GROUPED: Form("sums over a batch are finished together: the same products"),
    }
)

#: All forms that read and write less memory, in the order in which they were measured.
LEAN = (ROUNDED, POOLED, SELECTED, FOLDED, MASKED, MERGED, KEPT, GROUPED)

#: Values of `train.forms` -> the names in FORMS that a step then uses.
FORM_SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"plain": (), "lean": (ROUNDED, POOLED, SELECTED, MASKED, MERGED, KEPT, GROUPED), "folded": LEAN}
)

#: Values of `train.stem` (the form of the first convolution) -> the names in FORMS that a step then uses.
STEMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"plain": (), "space_to_depth": ("space_to_depth_stem",)}
)


def executed_difference(layers: Sequence[Layer], forms: Iterable[str]) -> dict[Class, int]:
    """Return the extra operations per image that a training step executes over the plain one, by class.

    Raises ValueError for an unknown name.
    """
    return _sum(form.difference(layers) for form in _named(forms))


def difference_of_passes(layers: Sequence[Layer], forms: Iterable[str]) -> dict[Class, int]:
    """Return the extra operations of each micro-batch of a training step, like `executed_difference`."""
    return _sum(form.passes(layers) for form in _named(forms))


def evaluation_difference(layers: Sequence[Layer], forms: Iterable[str]) -> dict[Class, int]:
    """Return the extra operations per image of an evaluation step, like `executed_difference`."""
    return _sum(form.evaluation(layers) for form in _named(forms))


def _named(forms: Iterable[str]) -> list[Form]:
    names = tuple(forms)
    for name in names:
        if name not in FORMS:
            raise ValueError(f"operation count: form {name!r} is not one of {', '.join(FORMS)}")
    return [FORMS[name] for name in names]


def _sum(differences: Iterable[Mapping[Class, int]]) -> dict[Class, int]:
    total: dict[Class, int] = {}
    for difference in differences:
        for key, operations in difference.items():
            total[key] = total.get(key, 0) + operations
    return total
