# SPDX-License-Identifier: Apache-2.0
"""The tables that `flops` prints for people, with the reasons why the methods differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aiperf_mpi.commands.flops_request import Request, per_image
from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.opcount.analytical import KINDS, count, count_layer, operations, update_operations
from aiperf_mpi.opcount.forms import FORMS
from aiperf_mpi.opcount.table import Row, describe, footnotes, is_the_papers, table_3, table_a1
from aiperf_mpi.opcount.tally import AUGMENTATION, MADE_IMAGES
from aiperf_mpi.paper import IMAGENET_IMAGES

if TYPE_CHECKING:
    from aiperf_mpi.crosscheck.check import Difference
    from aiperf_mpi.crosscheck.xla import Analysis

#: Width of the text in columns where the output is not a terminal.
WIDTH = 110

#: Why the count of a kind in the traced step, or by XLA, differs from the tables.
REASONS = {
    "conv": "The tables add the update of the parameters (one MAC each) to the BP of every image; the step "
    "executes it once, see update. XLA does not count taps that fall into padding.",
    "dense": "As for conv: the tables have the update in every image's BP; the step executes it once.",
    "batch_norm": "The step also computes the statistics of the batch and their running averages. Its BP "
    "has several operations per element; the authors' profiler has 36 per layer of any size. XLA counts a "
    "division as 1 and a root as 0.",
    "relu": "The FP of the step also records where the input is positive, and its BP selects by that; the "
    "tables have no BP.",
    "max_pool": "The BP of the step searches the largest element of each window again, and adds there; the "
    "tables have no BP. XLA needs one comparison less for each window.",
    "global_pool": "The step's BP divides the gradient; the tables have no BP. XLA counts a division as 1.",
    "add": "The step's BP adds gradients where an output has several consumers; the tables have no BP.",
    "softmax": "The loss of the step is the cross entropy of the logarithm of the softmax with smoothed "
    "labels. XLA counts exp and log separately.",
    "update": "Per step, not per image. The tables have one MAC for each parameter of convolutions and "
    "dense layers. Momentum takes a second one, and the parameters of batch norms are updated too.",
}


class Page:
    """Print tables on standard output."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)
        if not self._console.is_terminal:
            self._console.width = WIDTH

    def analytical(self, request: Request) -> None:
        """Print Tables 3 and A1 by the analytical method."""
        architecture, images = request.architecture, request.images
        train, val = operations(architecture)
        executed = count(architecture.layers(), "executed")
        self._print(describe(architecture))
        self._print(
            f"Per image by the paper's rules, which are credited: training {train:,}, validation {val:,}"
        )
        self._print(
            f"By Table 1 verbatim, without the update (rules `executed`): FP {executed.fp:,}, BP "
            f"{executed.bp:,}; update {executed.update:,} per step\n"
        )

        self._print("Operations per image (Table 3)")
        heads = ("Layer", "FP", "BP", "BP/FP", "Total")
        self._paper_table(heads, table_3(architecture), is_the_papers(architecture))
        self._print(
            f"Operations per epoch of {images[0]:,} training and {images[1]:,} validation images (Table A1)"
        )
        printed = is_the_papers(architecture) and images == IMAGENET_IMAGES
        self._paper_table(("Procedure", "Operations"), table_a1(architecture, images), printed)
        for note in footnotes(architecture):
            self._print(f"* {note}")
        self._print()

    def layers(self, architecture: Architecture) -> None:
        """Print every layer with its shapes and operations."""
        rows = []
        for layer in architecture.layers():
            forward, backward, _ = count_layer(layer)
            shapes = ("x".join(map(str, shape)) for shape in (layer.in_shape, layer.out_shape))
            windowed = layer.kind in ("conv", "max_pool")
            kernel = f"{layer.kernel}x{layer.kernel}/{layer.stride}" if windowed else ""
            rows.append((layer.name, layer.kind, *shapes, kernel, f"{forward:,}", f"{backward:,}"))
        self._print("Operations per image and layer")
        self._table(("Layer", "Kind", "Input", "Output", "Kernel", "FP", "BP"), rows)

    def methods(self, request: Request, analysis: Analysis, differences: Sequence[Difference]) -> None:
        """Print the counts of the three methods next to each other, and why they differ."""
        tables = dict(count(request.architecture.layers()).kinds)
        executed = per_image(analysis.executed.kinds(), request.batch)
        modelled = per_image(analysis.modelled.kinds(), request.batch)
        methods = (tables, executed, modelled)

        # One row for the FP and one for the BP of each kind; kinds with unequal numbers get their reason
        # below.
        rows: list[tuple[str, ...]] = []
        reasons: list[str] = []
        for kind in (*KINDS, "total"):
            for part, name in enumerate(("FP", "BP")):
                numbers = [
                    sum(pair[part] for pair in kinds.values()) if kind == "total" else kinds[kind][part]
                    for kinds in methods
                ]
                rows.append((kind if not part else "", name, *(f"{n:,}" for n in numbers)))
                if len(set(numbers)) > 1 and kind not in (*reasons, "total"):
                    reasons.append(kind)

        self._print(f"Operations per image by three methods, in a training step of {request.batch}")
        self._table(("Kind", "", "Tables (paper)", "Jaxpr of the step", "XLA"), rows, left=2)
        self._print(
            "conv and dense: forward, input gradient and weight gradient of the step equal the tables "
            + ("with the forms' differences " if request.forms else "")
            + (
                "exactly, without the update"
                if not differences
                else f"EXCEPT {'; '.join(map(str, differences))}"
            )
        )
        self._step(request, analysis)
        self._print("\nWhy they differ:")
        for kind in (*reasons, "update"):
            self._print(f"* {kind}: {REASONS[kind]}")

    def _step(self, request: Request, analysis: Analysis) -> None:
        """Print what belongs to the step and not to an image, and XLA's own number."""
        architecture, agreement = request.architecture, analysis.agreement
        stated = count(architecture.layers(), "executed").update
        update = analysis.executed.passes("update")[1]
        other = sum(sum(analysis.executed.passes(kind)) for kind in ("all_reduce", "other"))
        self._print(
            f"update: {stated:,} per step by the tables; {update:,} in the step, where momentum and batch "
            f"norms make it {update_operations(architecture):,}"
        )
        for kind in (AUGMENTATION, MADE_IMAGES):
            if images := sum(analysis.executed.passes(kind)):
                self._print(f"{kind}: {images:,} per step in no table, never credited")
        self._print(f"other: {other:,} per step in no table: normalised images, metrics, biases, collectives")
        for name in request.forms:
            self._print(f"form {name}: {FORMS[name].reason}; the plain form is credited")

        if agreement.estimate is None or agreement.deviation is None:
            self._print(
                "XLA: this backend gives no estimate; its column comes from the model of XLA's rules alone"
            )
            return
        within = "within" if agreement.agrees else "OUTSIDE"
        self._print(
            f"XLA: cost_analysis() of the lowered step gives {agreement.estimate:,}; the model of XLA's "
            f"rules, from which the column comes, gives {agreement.model:,} ({agreement.deviation:+.4%}, "
            f"{within} the band of 0.1 %)"
        )

    def _paper_table(self, heads: tuple[str, ...], rows: tuple[Row, ...], printed: bool) -> None:
        """Print a table of the paper; if `printed`, the last column has the paper's own numbers."""
        cells = []
        for row in rows:
            paper = " ".join(row.paper) + " *" if row.contradicted else "the same"
            cells.append((row.title, *row.cells, *((paper,) if printed else ())))
        self._table(heads + (("Paper prints",) if printed else ()), cells)

    def _table(self, heads: tuple[str, ...], rows: Sequence[tuple[str, ...]], left: int = 1) -> None:
        """Print a table whose first `left` columns are left-aligned."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for place, head in enumerate(heads):
            table.add_column(head, justify="left" if place < left else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row, style="bold" if row[0].lower() == "total" else "")
        self._console.print(table)

    def _print(self, text: str = "") -> None:
        """Print a line of text as it is."""
        self._console.print(text, markup=False)
