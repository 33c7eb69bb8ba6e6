# SPDX-License-Identifier: Apache-2.0
"""The tables of `training.py`: the rows of its parts as Markdown, failed rows with their reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from aiperf_mpi.network.architecture import OPS
from benchmarks.tables import markdown, number

Row = Mapping[str, Any]

MILLI, MEGA, GIGA, TERA = 1e3, 1e-6, 1e-9, 1e-12


def table(heads: Sequence[str], rows: Sequence[Row], cells: Callable[[Row], Sequence[object]]) -> str:
    """Return a Markdown table of the cells of each row; the first column is the row's name."""
    lines = [
        [
            row["name"],
            *(cells(row) if "failed" not in row else [f"failed: {row['failed']}", *[""] * (len(heads) - 2)]),
        ]
        for row in rows
    ]
    return markdown(heads, lines)


def ratio(row: Row) -> str:
    """Return a ratio with its 95 % interval."""
    limits = "" if row["low"] is None else f" ({row['low']:.3f} to {row['high']:.3f})"
    return f"{row['ratio']:.3f}{limits}"


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def throughput(rows: Sequence[Row]) -> str:
    """Return the table of images and operations per second, next to the ceilings of the same process."""
    tops = next((row for row in rows if row["name"] == "ceilings"), {"failed": "not measured"})
    text = "Ceilings of the same process: " + (
        tops["failed"]
        if "failed" in tops
        else f"products of matrices of {tops['matrix']:,} rows at {number(tops['bfloat16'] * TERA)} TOPS in "
        f"bfloat16 and {number(tops['float32'] * TERA)} TOPS in float32 (as the device multiplies it by "
        f"default); {number(tops['bytes_per_second'] * GIGA)} GB/s read and written over an array of "
        f"{tops['copy_mib']:,} MiB."
    )

    def cells(row: Row) -> list[object]:
        spread = (max(row["seconds"]) - min(row["seconds"])) / median(row["seconds"])
        return [
            row["batch"],
            row["precision"],
            number(row["images_per_second"], 4),
            f"{spread:.1%}",
            number(median(row["seconds"]) * MILLI),
            number(row["operations"] * GIGA),
            number(row["ops_per_second"] * TERA),
            share(row.get("of_matrix")),
            number(row["modelled_bytes"] * MEGA),
            share(row.get("of_memory")),
            share(row.get("of_memory_xla")),
            number((row["temporary_bytes"] or 0) * GIGA),
            f"{row['trace_s']:.1f} + {row['compile_s']:.1f}",
        ]

    heads = [
        "network",
        "batch",
        "multiplied in",
        "images/s",
        "spread",
        "ms a step",
        "GOP an image",
        "TOPS",
        "of matrix rate",
        "MB an image",
        "of memory roof",
        "same, XLA's bytes",
        "GB temporary",
        "trace + compile, s",
    ]
    title = "## Speed of morphs" if any(row["name"] in OPS for row in rows) else "## Speed"
    return "\n\n".join(
        [
            title,
            text,
            table(heads, [row for row in rows if row["name"] != "ceilings"], cells),
            "Operations are the paper's, of training an image; images/s is that of the median window, "
            "spread the range of all windows over it. The matrix rate is that of bfloat16 unless float32 is "
            "requested. Bytes are modelled: each kernel reads its inputs and writes its outputs once "
            "(`ceilings.py`); next to them the share by the compiled program's own estimate, which knows no "
            "cache. The compilation is of the training and the evaluation step, perhaps from the cache.",
        ]
    )


def mapped(rows: Sequence[Row]) -> str:
    """Return the table that compares pmap with plain jit."""
    return "\n\n".join(
        [
            "## pmap against plain jit",
            table(
                ["", "ms, pmap", "ms, jit", "pmap to jit"],
                rows,
                lambda row: [
                    number(median(row["pmap"]) * MILLI, 4),
                    number(median(row["jit"]) * MILLI, 4),
                    ratio(row),
                ],
            ),
        ]
    )


def fed(rows: Sequence[Row]) -> str:
    """Return the table that compares batches from a loader with one that stays on the device."""
    return "\n\n".join(
        [
            "## Fed against resident",
            table(
                ["", "ms, fed", "ms, resident", "fed to resident", "loader alone, images/s", "to demand"],
                rows,
                lambda row: [
                    number(median(row["fed"]) * MILLI, 4),
                    number(median(row["resident"]) * MILLI, 4),
                    ratio(row),
                    number(row["loader_images_per_second"]),
                    number(row["loader_to_demand"]),
                ],
            ),
            "Fed: made-up images in memory, read in a random order, transferred as uint8 by a thread.",
        ]
    )


def compilation(rows: Sequence[Row]) -> str:
    """Return the table of cold and warm compilation."""
    text = (
        "The training step alone, each time in a fresh process; cold with an empty cache, warm with the "
        "cache of the cold one."
    )
    good = {row["name"]: row for row in rows if "failed" not in row}
    if {"cold", "warm"} <= set(good):
        text += f" Warm to cold, of compiling: {good['warm']['compile_s'] / good['cold']['compile_s']:.3f}."
    return "\n\n".join(
        [
            "## Compilation",
            table(
                ["", "trace, s", "lower, s", "compile, s"],
                rows,
                lambda row: [f"{row[key]:.2f}" for key in ("trace_s", "lower_s", "compile_s")],
            ),
            text,
        ]
    )


def beside(rows: Sequence[Row]) -> str:
    """Return the table of steps during a compilation."""
    return "\n\n".join(
        [
            "## Steps during a compilation",
            table(
                [
                    "",
                    "ms alone, median",
                    "longest",
                    "ms during, median",
                    "longest",
                    "steps during",
                    "compilation, s",
                ],
                rows,
                lambda row: [
                    *(number(of(row[key]) * MILLI, 4) for key in ("alone", "beside") for of in (median, max)),
                    len(row["beside"]),
                    number(row["compile_s"]),
                ],
            ),
            "Single steps, each waited for; the compilation is of a morph, in a thread, without a cache.",
        ]
    )


def peer(rows: Sequence[Row]) -> str:
    """Return the table that compares PyTorch's step with ours."""

    def cells(row: Row) -> list[object]:
        losses = ", ".join(f"{loss:.3f}" for loss in row["losses"])
        if row["name"] == "ours":
            return [f"{row['parameters']:,}", losses, "", "", "", ""]
        return [
            f"{row['parameters']:,}",
            losses,
            number(row["ours_images_per_second"], 4),
            number(row["theirs_images_per_second"], 4),
            ratio(row),
            number(row["start_s"]),
        ]

    versions = next(
        (
            f"PyTorch {row['torch']} on {row['device']}, cuDNN {row['cudnn']}"
            for row in rows
            if "torch" in row
        ),
        "PyTorch did not run",
    )
    return "\n\n".join(
        [
            "## The same step in PyTorch",
            table(
                [
                    "",
                    "parameters",
                    "losses of the first steps",
                    "ours, images/s",
                    "PyTorch, images/s",
                    "ours to PyTorch",
                    "start, s",
                ],
                rows,
                cells,
            ),
            f"{versions}. Both: ResNet-50 v1, channels last, no augmentation, the same precision of "
            "activations, SGD with momentum 0.9, label smoothing 0.1, a batch of random uint8 images on the "
            "device, each its own random weights; windows in turn, in two processes.",
        ]
    )


def levers(rows: Sequence[Row]) -> str:
    """Return the table of changes of the step against the default, each pair in one process and in turn."""
    return "\n\n".join(
        [
            "## Levers",
            table(
                [
                    "change",
                    "default, images/s",
                    "changed, images/s",
                    "speed, changed to default",
                    "multiplied in",
                    "TOPS",
                    "executed more",
                    "GB temporary",
                    "compile, s",
                ],
                rows,
                lambda row: [
                    number(row["default_images_per_second"], 4),
                    number(row["changed_images_per_second"], 4),
                    ratio(row),
                    row["precision"],
                    number(row["ops_per_second"] * TERA),
                    f"{row['executed_more'] / row['operations']:.2%}",
                    number((row["temporary_bytes"] or 0) * GIGA),
                    number(row["compile_s"]),
                ],
            ),
            "One change at a time; speed in credited operations per second, so that other networks compare, "
            "with its 95 % interval. Executed more: operations beyond the plain form's, which is credited; "
            "checked without tolerance against the traced step.",
        ]
    )


def flags(rows: Sequence[Row]) -> str:
    """Return the table of XLA's flags, each in its own process."""
    base = [
        row["images_per_second"] for row in rows if row["name"].startswith("default") and "failed" not in row
    ]
    usual = sum(base) / len(base) if base else None
    return "\n\n".join(
        [
            "## Flags of XLA",
            table(
                ["flags", "images/s", "to default", "ms a step", "GB temporary", "compile, s"],
                rows,
                lambda row: [
                    number(row["images_per_second"], 4),
                    share(row["images_per_second"] / usual if usual else None),
                    number(median(row["seconds"]) * MILLI),
                    number((row["temporary_bytes"] or 0) * GIGA),
                    number(row["compile_s"]),
                ],
            ),
            "Each in its own process, next to the mean of the default before and after them all: the "
            "difference of those two is noise.",
        ]
    )


def profile(rows: Sequence[Row]) -> str:
    """Return the tables of the operations that take the time of a step."""
    parts = ["## Profile"]
    for row in rows:
        if "failed" in row:
            parts.append(f"failed: {row['failed']}")
            continue
        parts += [
            f"{row['steps']} steps, {number(row['total_ms'])} ms of operations on the device.",
            markdown(
                ["made from", "ms", "share"],
                [[kind["kind"], number(kind["ms"]), f"{kind['share']:.1%}"] for kind in row["kinds"][:15]],
            ),
            markdown(
                ["operation", "made from", "times", "ms", "share"],
                [
                    [op["operation"], op["origin"], op["times"], number(op["ms"]), f"{op['share']:.1%}"]
                    for op in row["operations"]
                ],
            ),
        ]
    return "\n\n".join(parts)


def run(rows: Sequence[Row]) -> str:
    """Return the table of candidates under mpirun."""
    parts = ["## Candidates one after the other"]
    for row in rows:
        if "failed" in row:
            parts.append(f"failed: {row['failed']}")
            continue
        parts += [
            f"{len(row['trials'])} candidates of {row['epochs']} epochs of {row['train_images']:,} images "
            f"under mpirun, {row['status']}. From the first to the last step {number(row['span_s'])} s, of "
            f"which epochs take {row['share']:.4f}; the trainer's phases in the whole run: {row['phases']}.",
            markdown(
                ["trial", "gap before it, s", "epochs", "images/s, training and validation", "TOPS"],
                [
                    [
                        trial["trial"],
                        number(trial["gap_s"]),
                        trial["epochs"],
                        number(trial["images_per_second"], 4),
                        number(trial["ops_per_second"] * TERA),
                    ]
                    for trial in row["trials"]
                ],
            ),
            "A gap is from the end of one candidate's last validation to the next one's first step.",
        ]
    return "\n\n".join(parts)


PAGES: Mapping[str, Callable[[Sequence[Row]], str]] = {
    page.__name__: page
    for page in (throughput, mapped, fed, compilation, beside, peer, levers, flags, profile, run)
} | {"morphs": throughput}
