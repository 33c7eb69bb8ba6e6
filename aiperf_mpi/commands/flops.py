# SPDX-License-Identifier: Apache-2.0
"""The `flops` subcommand: operations of a network by three methods, like the paper's Tables 3 and A1.

The analytical part needs neither JAX nor MPI and is printed first; the two others trace the training step.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiperf_mpi.commands.refusal import refuse
from aiperf_mpi.exits import EXIT_INVALID
from aiperf_mpi.network.architecture import Architecture, resnet50
from aiperf_mpi.opcount.analytical import KINDS, count, count_layer, operations, update_operations
from aiperf_mpi.opcount.forms import FORMS, STEMS
from aiperf_mpi.opcount.table import Row, as_counts, describe, footnotes, is_the_papers, table_3, table_a1
from aiperf_mpi.paper import IMAGENET_IMAGES

if TYPE_CHECKING:
    from aiperf_mpi.crosscheck.check import Difference
    from aiperf_mpi.crosscheck.xla import Analysis

#: Columns of text where the output is no terminal.
WIDTH = 110

#: Why a kind's count by the traced step, or by XLA, is not the tables'.
REASONS = {
    "conv": "The tables add the update of the parameters (one MAC each) to every image's BP; the step "
    "executes it "
    "once, see update. XLA counts no taps that fall into padding.",
    "dense": "As conv: the update, which the step executes once, is in every image's BP.",
    "batch_norm": "The step also computes the batch's statistics and their running averages, and its BP has "
    "several "
    "operations per element, where the authors' profiler has 36 per layer of any size. XLA weighs a "
    "division 1 and a "
    "root 0.",
    "relu": "The step's FP also notes where the input is positive, and its BP selects by that; the tables "
    "have no BP.",
    "max_pool": "The step's BP finds the largest of each window again, and adds there; the tables have no "
    "BP. XLA "
    "needs one comparison less for each window.",
    "global_pool": "The step's BP divides the gradient; the tables have no BP. XLA weighs a division 1.",
    "add": "The step's BP adds the gradients where an output has several consumers; the tables have no BP.",
    "softmax": "The step's loss is the cross entropy of the logarithm of the softmax with smoothed labels. "
    "XLA counts "
    "exp and log apart.",
    "update": "Per step, not per image. The tables have one MAC for each parameter of convolutions and "
    "dense layers; "
    "momentum takes a second one, and the parameters of batch norms are updated too.",
}


def add_flops(commands: Any) -> None:
    """Add `flops` to the subparsers."""
    flops = commands.add_parser(
        "flops", help="count the operations of a network by three methods (no MPI needed)"
    )
    network = flops.add_mutually_exclusive_group()
    network.add_argument(
        "--arch", metavar="FILE", help="architecture in its JSON form (docs/architecture-json.md)"
    )
    network.add_argument(
        "--preset", help="initial network and data of a preset (default: the paper's ResNet-50)"
    )
    flops.add_argument("--image-size", type=int, metavar="N", help="height and width of the images in pixels")
    flops.add_argument("--classes", type=int, metavar="N", help="number of classes")
    flops.add_argument(
        "--batch", type=int, default=1, metavar="N", help="images of the traced step (default 1)"
    )
    flops.add_argument("--per-layer", action="store_true", help="list every layer")
    flops.add_argument(
        "--analytical", action="store_true", help="the analytical count alone, without importing JAX"
    )
    flops.add_argument("--json", action="store_true", help="print one JSON object, integers per image")
    flops.set_defaults(handler=flops_command)


@dataclass(frozen=True)
class Request:
    """What is to be counted: a network, training and validation images of an epoch, and what the step depends
    on."""

    architecture: Architecture
    images: tuple[int, int]
    batch: int
    precision: str
    augment: bool
    stem: str

    @property
    def forms(self) -> tuple[str, ...]:
        """Faster forms that the step uses, names of `forms.FORMS`."""
        return STEMS[self.stem]


def read_request(arguments: argparse.Namespace) -> Request:
    """The request that the command line states; raises ValueError that says what is wrong with it."""
    if arguments.batch < 1:
        raise ValueError(f"--batch is {arguments.batch}, but a step takes at least 1 image")
    architecture, images = resnet50(), IMAGENET_IMAGES
    precision, augment, stem = "float32", False, "plain"
    if arguments.arch is not None:
        try:
            architecture = Architecture.from_json(Path(arguments.arch).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"--arch {arguments.arch}: {error}") from None
    elif arguments.preset is not None:
        from aiperf_mpi.config import load

        config = load(arguments.preset)
        architecture = Architecture(config.base)
        images = config.data.train_images, config.data.val_images
        precision, augment, stem = config.train.precision, config.data.augment, config.train.stem

    # What the command line says of the images holds for any network: morphs do not depend on it.
    given = {"image_size": arguments.image_size, "classes": arguments.classes}
    changes = {name: value for name, value in given.items() if value is not None}
    if changes:
        architecture = Architecture(replace(architecture.base, **changes), architecture.morphs)
    return Request(architecture, images, arguments.batch, precision, augment, stem)


def flops_command(arguments: argparse.Namespace) -> int:
    """`flops`: the operations of a network, without MPI; the analytical part without JAX."""
    try:
        return flops(arguments)
    except ValueError as error:
        return refuse(error)


def flops(arguments: argparse.Namespace) -> int:
    """`flops`: print the counts; returns 0, or 3 if the methods differ where they must agree.

    Raises ValueError for arguments that cannot be.
    """
    request = read_request(arguments)
    if arguments.json:
        return _print_json(request, arguments.analytical)

    # The tables first: they are there before JAX is imported.
    page = _Page()
    page.analytical(request)
    if arguments.per_layer:
        page.layers(request.architecture)
    if arguments.analytical:
        return 0
    analysis, wrong = measure(request)
    page.methods(request, analysis, wrong)
    for difference in wrong:
        print(f"aiperf_mpi: DIFFERENT {difference}", file=sys.stderr)
    return EXIT_INVALID if wrong else 0


def measure(request: Request) -> tuple[Analysis, tuple[Difference, ...]]:
    """The traced training step counted by JAX's and XLA's rules, and where it differs from the tables."""
    # The counts are the same on any backend, and no accelerator is to be taken for them.
    if "jax" not in sys.modules:
        os.environ["JAX_PLATFORMS"] = "cpu"
    from aiperf_mpi.crosscheck.check import compare
    from aiperf_mpi.crosscheck.trace import trace_eval
    from aiperf_mpi.crosscheck.xla import analyse
    from aiperf_mpi.training.steps.step import StepSettings

    # Tracing makes next to no garbage, and spends a tenth of its time looking for it.
    settings = StepSettings(request.batch, request.precision, augment=request.augment, stem=request.stem)
    gc.disable()
    try:
        analysis = analyse(request.architecture, settings)
        evaluate = trace_eval(request.architecture, settings).count()
    finally:
        gc.enable()
    return analysis, compare(request.architecture, request.batch, analysis.executed, evaluate, request.forms)


def _print_json(request: Request, analytical: bool) -> int:
    counts = count(request.architecture.layers())
    found: dict[str, Any] = {
        "rules": "paper",
        "analytical": as_counts(counts.kinds),
        "jaxpr": None,
        "xla": None,
    }
    wrong: tuple[Difference, ...] = ()
    if not analytical:
        analysis, wrong = measure(request)
        found["jaxpr"] = as_counts(per_image(analysis.executed.kinds(), request.batch))
        if analysis.agreement.agrees:
            found["xla"] = as_counts(per_image(analysis.modelled.kinds(), request.batch))
    print(json.dumps(found, indent=2))
    for difference in wrong:
        print(f"aiperf_mpi: DIFFERENT {difference}", file=sys.stderr)
    return EXIT_INVALID if wrong else 0


def per_image(kinds: dict[str, tuple[int, int]], batch: int) -> dict[str, tuple[int, int]]:
    """Counts of a step of `batch` images for one of them, rounded to integers (those of matrix products are
    exact)."""
    return {kind: (round(fp / batch), round(bp / batch)) for kind, (fp, bp) in kinds.items()}


class _Page:
    """The output for people: tables on standard output."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)
        if not self._console.is_terminal:
            self._console.width = WIDTH

    def analytical(self, request: Request) -> None:
        """Tables 3 and A1 by the analytical method."""
        architecture, images = request.architecture, request.images
        train, val = operations(architecture)
        executed = count(architecture.layers(), "executed")
        self._print(describe(architecture))
        self._print(
            f"Per image by the paper's rules, which are credited: training {train:,}, validation {val:,}"
        )
        self._print(
            f"Table 1 verbatim, update apart (rules `executed`): FP {executed.fp:,}, BP {executed.bp:,}, "
            f"update {executed.update:,} per step\n"
        )

        self._print("Operations per image (Table 3)")
        self._paper(
            ("Layer", "FP", "BP", "BP/FP", "Total"), table_3(architecture), is_the_papers(architecture)
        )
        self._print(
            f"Operations per epoch of {images[0]:,} training and {images[1]:,} validation images (Table A1)"
        )
        printed = is_the_papers(architecture) and images == IMAGENET_IMAGES
        self._paper(("Procedure", "Operations"), table_a1(architecture, images), printed)
        for note in footnotes(architecture):
            self._print(f"* {note}")
        self._print()

    def layers(self, architecture: Architecture) -> None:
        """Every layer with its shapes and operations."""
        rows = []
        for layer in architecture.layers():
            forward, backward, _ = count_layer(layer)
            shapes = ("x".join(map(str, shape)) for shape in (layer.in_shape, layer.out_shape))
            form = (
                f"{layer.kernel}x{layer.kernel}/{layer.stride}" if layer.kind in ("conv", "max_pool") else ""
            )
            rows.append((layer.name, layer.kind, *shapes, form, f"{forward:,}", f"{backward:,}"))
        self._print("Operations per image and layer")
        self._table(("Layer", "Kind", "Input", "Output", "Kernel", "FP", "BP"), rows)

    def methods(self, request: Request, analysis: Analysis, wrong: Sequence[Difference]) -> None:
        """The three methods beside each other, and why they differ."""
        tables = dict(count(request.architecture.layers()).kinds)
        executed = per_image(analysis.executed.kinds(), request.batch)
        modelled = per_image(analysis.modelled.kinds(), request.batch)
        methods = (tables, executed, modelled)
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
            + ("exactly, the update apart" if not wrong else f"EXCEPT {'; '.join(map(str, wrong))}")
        )
        self._step(request, analysis)

        self._print("\nWhy they differ:")
        for kind in (*reasons, "update"):
            self._print(f"* {kind}: {REASONS[kind]}")

    def _step(self, request: Request, analysis: Analysis) -> None:
        """What belongs to the step rather than to an image, and XLA's own number."""
        architecture, agreement = request.architecture, analysis.agreement
        stated = count(architecture.layers(), "executed").update
        update = analysis.executed.passes("update")[1]
        rest = sum(sum(analysis.executed.passes(kind)) for kind in ("all_reduce", "other"))
        self._print(
            f"update: {stated:,} per step by the tables; {update:,} in the step, where momentum and batch "
            f"norms "
            f"make it {update_operations(architecture):,}"
        )
        self._print(f"other: {rest:,} per step in no table: normalised images, metrics, biases, collectives")
        for name in request.forms:
            self._print(f"form {name}: {FORMS[name].reason}; the plain form is credited")
        if agreement.estimate is None or agreement.deviation is None:
            self._print("XLA: this backend gives no estimate; its column is the model of XLA's rules alone")
            return
        within = "within" if agreement.agrees else "OUTSIDE of"
        self._print(
            f"XLA: cost_analysis() of the lowered step says {agreement.estimate:,}, the model of its rules, "
            f"from "
            f"which its column is, {agreement.model:,} ({agreement.deviation:+.4%}, {within} the band of "
            f"0.1 %)"
        )

    def _paper(self, heads: tuple[str, ...], rows: tuple[Row, ...], printed: bool) -> None:
        """A table of the paper; beside it, if `printed`, what the paper prints where that is something
        else."""
        cells = []
        for row in rows:
            paper = " ".join(row.paper) + " *" if row.contradicted else "the same"
            cells.append((row.title, *row.cells, *((paper,) if printed else ())))
        self._table(heads + (("Paper prints",) if printed else ()), cells)

    def _table(self, heads: tuple[str, ...], rows: Sequence[tuple[str, ...]], left: int = 1) -> None:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for place, head in enumerate(heads):
            table.add_column(head, justify="left" if place < left else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row, style="bold" if row[0].lower() == "total" else "")
        self._console.print(table)

    def _print(self, text: str = "") -> None:
        self._console.print(text, markup=False)
