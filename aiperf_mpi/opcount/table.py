# SPDX-License-Identifier: Apache-2.0
"""The paper's Tables 3 and A1 from counts, as rows of text, with what the paper prints and why it may
differ."""

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

#: What the paper prints for ResNet-50 on 224x224x3 images and 1000 classes. Table 3: FP, BP, BP/FP, total.
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

#: Table A1, column "Analytical", in its order.
PAPER_TABLE_A1 = ("1.00e16", "1.95e16", "1.9533", "2.95e16", "3.90e14", "2.99e16")

#: The loss of a ratio's last digits below this is why the paper prints 0.00003 with five of them.
_SMALL_RATIO = 0.001


@dataclass(frozen=True)
class Row:
    """A row of a table: its title, its cells, and what the paper prints in their place (empty if it prints
    none)."""

    title: str
    cells: tuple[str, ...]
    paper: tuple[str, ...] = ()

    @property
    def contradicted(self) -> bool:
        """Whether the paper prints something else."""
        return bool(self.paper) and self.paper != self.cells


def scientific(value: float) -> str:
    """Three significant digits as the paper prints them: 7.71e9, and 0 for zero."""
    if not value:
        return "0"
    digits, exponent = f"{value:.2e}".split("e")
    return f"{digits}e{int(exponent)}"


def ratio(backward: int, forward: int) -> str:
    """BP/FP as the paper prints it."""
    if not backward or not forward:
        return "0"
    value = backward / forward
    return f"{value:.5f}" if value < _SMALL_RATIO else f"{value:.4f}"


def is_the_papers(architecture: Architecture) -> bool:
    """Whether the paper's tables are of this architecture."""
    return architecture == resnet50()


def table_3(architecture: Architecture) -> tuple[Row, ...]:
    """FP, BP, BP/FP and total per image of each kind of layer, and of all, by the `paper` rules."""
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
    """Operations of an epoch of `images` (training, validation) images, by the `paper` rules; the paper's
    column is there for the paper's network (and belongs to ImageNet's images)."""
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
    """Where the paper contradicts its own formulas: all values of these rows, and where each comes from."""
    by_paper, executed = count(architecture.layers()), count(architecture.layers(), "executed")
    notes = [
        f"{TITLES[kind]}: the paper's Table 1 gives {executed.kinds[kind][0]:,} ({formula}), the authors' "
        f"profiler "
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
            "BP/FP: the paper prints 1.9531 in Table 3 and 1.9533 in Table A1; both are of the same network."
        )
    return tuple(notes)


def _pooled(architecture: Architecture) -> int:
    layer = next(layer for layer in architecture.layers() if layer.kind == "global_pool")
    return layer.in_shape[0] * layer.in_shape[1] * layer.in_shape[2]


def describe(architecture: Architecture) -> str:
    """One line: which network this is, its input, layers and parameters."""
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
    """The unmorphed network of the same widths and blocks, with the paper's images and classes."""
    base, paper = architecture.base, resnet50().base
    same = (base.width, base.blocks) == (paper.width, paper.blocks)
    return resnet50() if same else Architecture(base)


def as_counts(kinds: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, int]]:
    """The JSON form of one method's counts per image: kind -> fp, bp, and their total."""
    found = {kind: {"fp": fp, "bp": bp} for kind, (fp, bp) in kinds.items()}
    counts = Counts(kinds)
    return found | {"total": {"fp": counts.fp, "bp": counts.bp}}
