# SPDX-License-Identifier: Apache-2.0
"""Compute the rows of the paper's Tables 3 and A1 as text, next to the values that the paper prints.

Footnotes explain the differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from aiperf_mpi.network.architecture import Architecture, resnet50
from aiperf_mpi.opcount.analytical import KINDS, Counts, count

#: Names of the kinds of layers in the paper's Table 3.
TITLES: Mapping[str, str] = MappingProxyType(
    {
        "conv": "Convolutional",
        "dense": "Dense",
        "batch_norm": "Batch normalization",
        "relu": "ReLU",
        "max_pool": "Max-pooling",
        "global_pool": "Average-pooling",
        "add": "Add",
        "softmax": "Softmax",
    }
)

#: Table 3 of the paper (FP, BP, BP/FP, total), for ResNet-50 on 224x224x3 images and 1000 classes.
PAPER_TABLE_3: Mapping[str, tuple[str, str, str, str]] = MappingProxyType(
    {
        "conv": ("7.71e9", "1.52e10", "1.9755", "2.29e10"),
        "dense": ("4.10e6", "1.23e7", "3.0005", "1.64e7"),
        "batch_norm": ("7.41e7", "1.91e3", "0.00003", "7.41e7"),
        "relu": ("9.08e6", "0", "0", "9.08e6"),
        "max_pool": ("1.81e6", "0", "0", "1.81e6"),
        "global_pool": ("1.00e5", "0", "0", "1.00e5"),
        "add": ("5.52e6", "0", "0", "5.52e6"),
        "softmax": ("2.10e4", "0", "0", "2.10e4"),
        "total": ("7.81e9", "1.52e10", "1.9531", "2.31e10"),
    }
)

#: Table A1 of the paper, column "Analytical", from top to bottom.
PAPER_TABLE_A1 = ("1.00e16", "1.95e16", "1.9533", "2.95e16", "3.90e14", "2.99e16")

#: The paper prints a ratio below this value with five decimals (0.00003), and all others with four.
_SMALL_RATIO = 0.001


@dataclass(frozen=True)
class Row:
    """A row of a table: its title, its cells, and the paper's values (empty if the paper has none)."""

    title: str
    cells: tuple[str, ...]
    paper: tuple[str, ...] = ()

    @property
    def contradicted(self) -> bool:
        """Whether the paper prints different values."""
        return bool(self.paper) and self.paper != self.cells


def scientific(value: float) -> str:
    """Format a number as the paper does, with three significant digits: 7.71e9, and 0 for zero."""
    if not value:
        return "0"
    digits, exponent = f"{value:.2e}".split("e")
    return f"{digits}e{int(exponent)}"


def ratio(backward: int, forward: int) -> str:
    """Format BP/FP as the paper does."""
    if not backward or not forward:
        return "0"
    value = backward / forward
    return f"{value:.5f}" if value < _SMALL_RATIO else f"{value:.4f}"


def is_the_papers(architecture: Architecture) -> bool:
    """Return whether the paper's tables describe this architecture."""
    return architecture == resnet50()


def table_3(architecture: Architecture) -> tuple[Row, ...]:
    """Return FP, BP, BP/FP and total per image for each kind of layer and for all, by the `paper` rules."""
    counts = count(architecture.layers())
    pairs = {kind: counts.kinds[kind] for kind in KINDS} | {"total": (counts.fp, counts.bp)}
    return tuple(
        Row(
            TITLES.get(kind, "Total"),
            (scientific(fp), scientific(bp), ratio(bp, fp), scientific(fp + bp)),
            PAPER_TABLE_3[kind] if is_the_papers(architecture) else (),
        )
        for kind, (fp, bp) in pairs.items()
    )


def table_a1(architecture: Architecture, images: tuple[int, int]) -> tuple[Row, ...]:
    """Return the operations of an epoch of `images` (training, validation) images, by the `paper` rules.

    Only the paper's network has the paper's values (which are for ImageNet's images).
    """
    counts, (training, validation) = count(architecture.layers()), images
    train, val = training * counts.train, validation * counts.val
    cells = (
        ("FP (training)", scientific(training * counts.fp)),
        ("BP (training)", scientific(training * counts.bp)),
        ("BP/FP (training)", ratio(counts.bp, counts.fp)),
        ("Total (training)", scientific(train)),
        ("FP (validation)", scientific(val)),
        ("Total (training + validation)", scientific(train + val)),
    )
    printed = PAPER_TABLE_A1 if is_the_papers(architecture) else ("",) * len(cells)
    return tuple(
        Row(title, (cell,), (paper,) if paper else ())
        for (title, cell), paper in zip(cells, printed, strict=True)
    )


def footnotes(architecture: Architecture) -> tuple[str, ...]:
    """Return notes on rows in which the paper contradicts its own formulas: all values and their origin."""
    by_paper, executed = count(architecture.layers()), count(architecture.layers(), "executed")
    notes = [
        f"{TITLES[kind]}: the paper's Table 1 gives {executed.kinds[kind][0]:,} ({formula}), "
        f"the authors' profiler "
        f"{by_paper.kinds[kind][0]:,} ({profiler}), which counts here."
        for kind, formula, profiler in (
            ("global_pool", "Hi Wi Ci additions, Ci divisions", "(Hi Wi - 1) Ci additions, Ci divisions"),
            ("softmax", "Co exp, Co additions, Co divisions", "Co exp, Co - 1 additions, Co divisions"),
        )
    ]
    if is_the_papers(architecture):
        additions = _pooled(architecture)
        notes[0] += f" Its Table 3 prints 1.00e5, which is the {additions:,} additions without the divisions."
        notes[1] += " Its Table 3 prints 2.10e4, 21 for each class, which follows from neither."
        notes.append(
            "BP/FP: the paper prints 1.9531 in Table 3 and 1.9533 in Table A1, for the same network."
        )
    return tuple(notes)


def _pooled(architecture: Architecture) -> int:
    layer = next(layer for layer in architecture.layers() if layer.kind == "global_pool")
    return layer.in_shape[0] * layer.in_shape[1] * layer.in_shape[2]


def describe(architecture: Architecture) -> str:
    """Return one line with the network's name, input, layers and parameters."""
    base = architecture.base
    name = (
        "ResNet-50"
        if is_the_papers(resnet_of(architecture))
        else f"ResNet of {base.blocks}, width {base.width}"
    )
    morphs = f" and {len(architecture.morphs)} morphs" if architecture.morphs else ""
    return (
        f"{name}{morphs}, {base.image_size}x{base.image_size}x{base.channels}, {base.classes} classes: "
        f"{len(architecture.layers())} layers, {architecture.parameters:,} parameters"
    )


def resnet_of(architecture: Architecture) -> Architecture:
    """Return the network without morphs; with the paper's images and classes if it is a ResNet-50."""
    base, paper = architecture.base, resnet50().base
    same = (base.width, base.blocks) == (paper.width, paper.blocks)
    return resnet50() if same else Architecture(base)


def as_counts(kinds: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, int]]:
    """Return the JSON form of one method's counts per image: kind (or "total") -> fp and bp."""
    by_kind = {kind: {"fp": fp, "bp": bp} for kind, (fp, bp) in kinds.items()}
    counts = Counts(kinds)
    return by_kind | {"total": {"fp": counts.fp, "bp": counts.bp}}
