#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Count the memory traffic of the project's steps, compiled for a described accelerator: no GPU is needed.

A training step of ResNets is bound by memory traffic. XLA compiles it for a GPU that is described, not
present, so the bytes of each kernel are known on any machine. The bytes are a model (`traffic_kernels.py`),
beside it stand the bytes of the layers by hand (`traffic_layers.py`) and XLA's own estimate. Nothing runs: a
bound in images per second is a bandwidth over these bytes.

Without `--table` one step is compiled and described; with it the steps of `ROWS`, one after the other.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["JAX_PLATFORMS"] = "cpu"

from aiperf_mpi.network.architecture import Architecture, Base, resnet50  # noqa: E402
from aiperf_mpi.opcount.forms import FORM_SETS, LEAN, MERGED, ROUNDED, STEMS  # noqa: E402
from aiperf_mpi.training.model.resnet import PRECISIONS  # noqa: E402
from aiperf_mpi.training.steps.step import StepSettings  # noqa: E402
from benchmarks.tables import described, machine, markdown, number, out_folder, write  # noqa: E402
from benchmarks.traffic_hlo import parse  # noqa: E402
from benchmarks.traffic_kernels import Kernel, kernels  # noqa: E402
from benchmarks.traffic_layers import layer_bytes, total  # noqa: E402
from benchmarks.traffic_numerics import compared  # noqa: E402
from benchmarks.traffic_summary import Summary, by_kind, kernel_table, kind_table, summarise  # noqa: E402
from benchmarks.traffic_targets import TARGETS, Compilation, Target, compile_for  # noqa: E402


@dataclass(frozen=True)
class Row:
    """A step of the table: its name, what differs from the default step, and which step it is."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    evaluate: bool = False
    devices: int = 1


#: What the columns of the table mean.
NOTE = """Bytes are read and written by the compiled kernels (a model, `benchmarks/traffic_kernels.py`).
By hand: the plain layers, each pass in a kernel of its own. By XLA: its own estimate. A bound
is in images per second: 90 % of the announced bandwidth over the bytes. Small kernels move
less than 4 MB. 4-byte: arrays of four-byte elements and an activation's size. Seconds are the
processor's, of XLA.""".replace("\n", " ")

#: What was tried for fewer kernels, with the tests' network of four blocks unless said: kernels, MB an image.
TRIED = (
    ("two sums of a batch norm, two kernels that finish them", 310, 82.3),
    ("sums over each image, then one of both; updates after barriers, for horizontal fusion", 345, 83.7),
    ("one operation for both sums from the start: masks are written", 293, 83.9),
    ("the same, and the gradient after the barrier of the mask", 301, 85.5),
    ("256 parts, then one operation for both sums: masks are written", 297, 83.7),
    ("as many parts as XLA takes, then one operation", 292, 82.3),
    ("twice as many parts, the norm's factor kept", 287, 81.6),
    ("+ two vectors for the input's gradient, beside the update", 278, 81.6),
    ("+ both sums of folded convolutions, their weights' product in bfloat16 (taken)", 271, 81.5),
    ("vectors as rows of one array for each length, so that updates are joined: they are not", 354, 81.6),
    ("ResNet-50 with 287 kernels of the small one", 845, 237.0),
    ("ResNet-50: other convolutions of 1x1 as matrix products (temporaries 8.85 GB, not 6.72)", 835, 254.5),
)

#: The forms of a training step, in the order of the table.
TRAINED = tuple(form for form in LEAN if form != MERGED)

#: The steps of the committed table.
ROWS = (
    Row("plain"),
    Row("plain, batch norms differentiated by JAX", {"fused": False}),
    *(Row(f"+ {TRAINED[last]}", {"forms": TRAINED[: last + 1]}) for last in range(len(TRAINED))),
    Row("plain, 448 images", {"batch_per_device": 448}),
    Row("all forms, 448 images", {"batch_per_device": 448, "forms": LEAN}),
    Row("plain, resized_crop", {"augmentation": "resized_crop", "stored_size": 256}),
    Row("all forms, resized_crop", {"augmentation": "resized_crop", "stored_size": 256, "forms": LEAN}),
    Row("plain, evaluation", evaluate=True),
    Row("+ rounded, evaluation", {"forms": (ROUNDED,)}, evaluate=True),
    Row("+ merged, evaluation", {"forms": (ROUNDED, MERGED)}, evaluate=True),
)

#: The network and the images of a step whose gradients are compared on this CPU: blocks of every kind.
NUMERICS = resnet50(Base(64, 3, 10, 16, (2, 1, 1, 1))), 16


@dataclass(frozen=True)
class Measured:
    """A compiled step, the sum of its kernels, and the two other numbers for its bytes.

    Attributes:
        hand, xla: bytes per image by the model of the layers, and by XLA's estimate with the library calls
            of our model added.
    """

    row: Row
    settings: StepSettings
    compilation: Compilation
    kernels: Sequence[Kernel]
    summary: Summary
    hand: float
    xla: float

    def bound(self, target: Target) -> float:
        """Images per second of a device whose memory alone limits the step."""
        return target.reached / self.summary.bytes_per_image

    def as_dict(self) -> dict[str, Any]:
        batch, made = self.settings.batch_per_device, self.compilation
        return {
            "name": self.row.name,
            "batch": batch,
            "evaluate": self.row.evaluate,
            **self.summary.as_dict(),
            "hand_bytes_per_image": self.hand,
            "xla_bytes_per_image": self.xla,
            "bound_images_per_second": {name: self.bound(target) for name, target in TARGETS.items()},
            "temporary_bytes": made.temporary,
            "argument_bytes": made.arguments,
            "trace_s": made.trace_seconds,
            "compile_s": made.compile_seconds,
            "by_kind": {
                kind: {"bytes_per_image": b / batch, "launches": times}
                for kind, (b, times) in by_kind(self.kernels).items()
            },
        }


def measure(row: Row, architecture: Architecture, options: argparse.Namespace) -> Measured:
    """Compile one step for the described target and count its bytes."""
    common = {
        "batch_per_device": options.batch,
        "precision": options.precision,
        "augmentation": options.augmentation,
        "stem": options.stem,
        "forms": FORM_SETS[options.forms],
        "fused": not options.apart,
        "synchronised": options.synchronised,
        "accumulate": options.accumulate,
    }
    settings = StepSettings(**{**common, **row.settings})
    compilation = compile_for(
        TARGETS[options.target],
        architecture,
        settings,
        devices=row.devices,
        form=options.dispatch,
        evaluate=row.evaluate,
        programs=options.programs,
    )
    found, layers, batch = kernels(parse(compilation.text)), architecture.layers(), settings.batch_per_device
    itemsize = 4 if settings.precision == "float32" else 2
    summary = summarise(found, layers, batch, settings.accumulate)
    hand = total(layer_bytes(layers, architecture.parameters, batch, itemsize, not row.evaluate))
    xla = compilation.xla_bytes / batch + summary.library_bytes_per_image
    return Measured(row, settings, compilation, found, summary, hand, xla)


def table(items: Sequence[Measured]) -> str:
    """Return the table of several steps."""
    heads = (
        *("Step", "batch", "MB an image", "by hand", "by XLA", "kernels", "small", "4-byte GB", "scatters"),
        *("temporaries GB", "bound H100", "bound H200", "compilation s"),
    )
    rows = [
        (
            item.row.name,
            item.settings.batch_per_device,
            f"{item.summary.bytes_per_image / 1e6:.1f}",
            f"{item.hand / 1e6:.1f}",
            f"{item.xla / 1e6:.1f}",
            item.summary.kernels,
            item.summary.small_kernels,
            f"{item.summary.wide_bytes / 1e9:.2f}",
            item.summary.scatters,
            f"{item.compilation.temporary / 1e9:.2f}",
            number(item.bound(TARGETS["h100"])),
            number(item.bound(TARGETS["h200"])),
            number(item.compilation.compile_seconds),
        )
        for item in items
    ]
    return markdown(heads, rows)


def numerics(items: Sequence[Measured]) -> list[dict[str, Any]]:
    """Return how far the gradients of each row's forms are from those of the plain form, on this CPU."""
    network, images = NUMERICS
    rows = []
    for forms in dict.fromkeys(item.settings.forms for item in items if not item.row.evaluate):
        wide, half = compared(network, StepSettings(images, augmentation="cifar"), forms)
        rows.append({"forms": forms, "float32": asdict(wide), "bfloat16": asdict(half)})
    return rows


def numerics_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the comparison of gradients as a table."""
    names = ("all", "worst tensor", "statistics", "loss")
    heads = ("Forms", *(f"float32: {name}" for name in names), "bfloat16: all", "statistics", "loss")
    columns = [("float32", name) for name in ("whole", "worst", "statistics", "loss")]
    columns += [("bfloat16", name) for name in ("whole", "statistics", "loss")]
    cells = ((", ".join(r["forms"]) or "plain", *(f"{r[a][b]:.1e}" for a, b in columns)) for r in rows)
    return markdown(heads, cells)


def page(
    items: Sequence[Measured],
    apart: Sequence[dict[str, Any]],
    options: argparse.Namespace,
    facts: dict[str, Any],
) -> str:
    """Return the whole page of the committed table."""
    head = (
        "# Memory traffic of the steps",
        f"ResNet-50, {options.precision}, images `{options.augmentation}`, compiled for a described "
        f"{TARGETS[options.target].name}; nothing ran. {described(facts)}",
        NOTE,
        table(items),
    )
    network, images = NUMERICS
    compared_there = (
        "## Gradients against the plain form in float32",
        f"Relative norms of one step on this CPU: {images} images of {network.base.image_size} x "
        f"{network.base.image_size} pixels, width {network.base.width}, blocks {network.base.blocks}. In "
        "bfloat16 an untrained network is far from float32 in any form, as its ReLUs are near 0. In float32 "
        "an activation that rounding moves across 0 shows as 1e-3; without one, all differ by 2e-6.",
        numerics_table(apart),
    )
    tried = (
        "## Ways to fewer kernels",
        "Tried one after the other on the way to `grouped`, compiled as above: the network with four blocks "
        "unless said. This XLA has no horizontal fusion any more.",
        markdown(("Way", "kernels", "MB an image"), TRIED),
    )
    kinds = (
        f"## {item.row.name}\n\n{kind_table(item.kernels, item.settings.batch_per_device)}" for item in items
    )
    return "\n\n".join((*head, *(compared_there if apart else ()), *tried, *kinds))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one step or all of the table; return the exit code."""
    options = parse_arguments(arguments)
    architecture = resnet50(Base(options.image, 3, options.classes, options.width, options.blocks))
    if options.architecture:
        architecture = Architecture.from_json(options.architecture.read_text())

    if not options.table:
        item = measure(Row("step", {}, options.evaluate, options.devices), architecture, options)
        batch = item.settings.batch_per_device
        of_kernels = kernel_table(item.kernels, batch, options.largest)
        shown = (table([item]), kind_table(item.kernels, batch), of_kernels)
        write(options.out, "traffic_step", "\n\n".join(shown), data([item], options, machine()))
        return 0

    # The tables are written after each row, so that a long run that is ended leaves what it has.
    facts, items, apart = machine(), [], []
    for row in ROWS:
        items.append(measure(row, architecture, options))
        if options.numerics and row is ROWS[-1]:
            apart = numerics(items)
        found = data(items, options, facts) | {"gradients": apart}
        write(options.out, "traffic", page(items, apart, options, facts), found, quiet=True)
    print(table(items))
    return 0


def data(items: Sequence[Measured], options: argparse.Namespace, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a table."""
    return {"machine": facts, "target": options.target, "rows": [item.as_dict() for item in items]}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", choices=TARGETS, default="h100", help="the accelerator")
    parser.add_argument("--table", action="store_true", help="compile all steps of the committed table")
    parser.add_argument("--numerics", action="store_true", help="with --table: compare gradients on this CPU")
    parser.add_argument("--batch", type=int, default=256, help="images of a step on a device")
    parser.add_argument("--devices", type=int, default=1, help="number of devices")
    parser.add_argument("--image", type=int, default=224, help="pixels of a side")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--width", type=int, default=64, help="channels of the first convolution")
    parser.add_argument("--blocks", type=numbers, default=(3, 4, 6, 3), help="blocks of each stage")
    parser.add_argument("--architecture", type=Path, help="JSON file of a network")
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16")
    parser.add_argument("--augmentation", default="cifar", help="none, or a form of cropping and mirroring")
    parser.add_argument("--stem", choices=STEMS, default="plain")
    parser.add_argument("--forms", choices=FORM_SETS, default="plain", help="forms of the other layers")
    parser.add_argument("--apart", action="store_true", help="batch norms differentiated by JAX")
    parser.add_argument("--synchronised", action="store_true", help="statistics of all devices' images")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches of a step")
    parser.add_argument("--dispatch", choices=("pmap", "shard_map"), default="shard_map")
    parser.add_argument("--evaluate", action="store_true", help="the evaluation step")
    parser.add_argument("--largest", type=int, default=30, help="number of kernels to list")
    parser.add_argument("--programs", type=Path, help="folder that keeps compiled programs")
    parser.add_argument("--out", type=out_folder, help="folder for the table")
    return parser.parse_args(arguments)


def numbers(text: str) -> tuple[int, ...]:
    """Read numbers that are separated by commas."""
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    raise SystemExit(main())
