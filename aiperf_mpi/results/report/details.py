# SPDX-License-Identifier: Apache-2.0
"""Sections of the report: the best network, its operation counts, efficiency, energy, and the machine."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from aiperf_mpi.network.architecture import POOL, Architecture
from aiperf_mpi.opcount import METHOD_VERSIONS
from aiperf_mpi.opcount.analytical import KINDS, count, count_layer
from aiperf_mpi.opcount.rates import rate_text
from aiperf_mpi.planning.precision import PRECISION
from aiperf_mpi.printable import plain
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.judge.judge import Verdict

#: Most lines of each kind of facts about the machine, and most characters of a line.
MAX_FACTS, MAX_TEXT = 150, 200

#: Most warnings that are shown, and most characters of one.
MAX_WARNINGS, MAX_WARNING = 20, 600

#: Text shown if there is no best network.
NO_BEST = "  no trial has a validation error"


def columns_of(*names: str, left: tuple[str, ...] = ()) -> Table:
    """Return an empty table with these columns; those in `left` are left-aligned."""
    table = Table(box=None, pad_edge=True, header_style="")
    for name in names:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold")
    return table


def best_of(e: Evidence, verdict: Verdict) -> Architecture | None:
    """Return the best network, None without one. Raises ValueError if it cannot be replayed."""
    if verdict.best_trial not in e.index:
        return None
    architecture = e.architectures[e.index[verdict.best_trial]]
    if isinstance(architecture, str):
        raise ValueError(architecture)
    return architecture


def network(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """Show the best network: its trial, hash, parameters, operations and units."""
    architecture = best_of(e, verdict)
    if architecture is None:
        yield Text(NO_BEST)
        return
    train_ops, val_ops = e.counts[e.index[verdict.best_trial]]
    facts = Table.grid(padding=(0, 2))
    facts.add_row("  trial", f"{verdict.best_trial}, lineage {e.lineage(verdict.best_trial)}")
    facts.add_row("  hash", architecture.hash)
    facts.add_row("  parameters", f"{architecture.parameters:,}")
    facts.add_row("  operations per image", f"{train_ops:,} to train, {val_ops:,} to validate")
    yield facts
    yield _units(architecture)


def _units(architecture: Architecture) -> RenderableType:
    """Return one row for each unit of a network (convolution, batch norm, additions and ReLU)."""
    shapes = {layer.unit: layer.out_shape for layer in architecture.layers() if layer.kind == "relu"}
    table = columns_of("unit", "kernel", "stride", "filters", "output", "adds", left=("adds",))
    for unit in architecture.units:
        sources = ("pool" if edge.source == POOL else str(edge.source) for edge in unit.edges)
        adds = ", ".join(f"{source} ({edge.kind})" for source, edge in zip(sources, unit.edges, strict=True))
        height, width, _ = shapes[unit.id]
        table.add_row(
            str(unit.id),
            f"{unit.kernel}x{unit.kernel}",
            str(unit.stride),
            str(unit.filters),
            f"{height}x{width}",
            adds,
        )
    return table


def layers(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """List the layers of the best network, with the operations of each by the paper's tables."""
    architecture = best_of(e, verdict)
    if architecture is None:
        yield Text(NO_BEST)
        return
    table = columns_of(
        "layer",
        "kind",
        "takes",
        "kernel",
        "stride",
        "output",
        "forward (op)",
        "backward (op)",
        left=("layer", "kind", "takes"),
    )
    for layer in architecture.layers():
        forward, backward, _ = count_layer(layer)
        size = f"{layer.kernel}x{layer.kernel}" if layer.kernel > 1 or layer.kind == "conv" else ""
        stride = str(layer.stride) if layer.kind in ("conv", "max_pool") else ""
        table.add_row(
            layer.name,
            layer.kind,
            ", ".join(layer.inputs),
            size,
            stride,
            "x".join(map(str, layer.out_shape)),
            f"{forward:,}",
            f"{backward:,}",
        )
    yield table


def operations(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """Show operations per image by the credited tables, and the stored counts of the two other methods."""
    yield Text(
        f"  analytical ({METHOD_VERSIONS['analytical']}, the paper's Tables 1 and 2): credited, and "
        "recomputed here for every trial from its network"
    )
    yield Text(
        f"  jaxpr ({METHOD_VERSIONS['jaxpr']}, of the traced step): its matrix products must equal the "
        "tables exactly, or the trial is rejected before it is trained"
    )
    yield Text(
        f"  XLA ({METHOD_VERSIONS['xla']}, of the lowered step): shown with a model of its rules; `python -m "
        "aiperf_mpi flops --arch FILE` shows all three methods for any network"
    )
    yield from steps(e, verdict)
    best = best_of(e, verdict)
    initial = e.architectures[0] if e.architectures else None
    networks = {"initial": initial, "best": best}
    counts = {
        name: count(architecture.layers())
        for name, architecture in networks.items()
        if isinstance(architecture, Architecture)
    }
    heads = [f"{name} network, {part}" for name in counts for part in ("forward", "backward")]
    table = columns_of("kind (op/image)", *heads, left=("kind (op/image)",))
    for kind in (*KINDS, "total"):
        cells = []
        for counted in counts.values():
            pairs = counted.kinds.values() if kind == "total" else [counted.kinds[kind]]
            cells += [f"{sum(pair[place] for pair in pairs):,}" for place in (0, 1)]
        table.add_row(kind, *cells)
    yield table


def steps(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """Show the stored counts of a training step on one device, for the first and for the best trial."""
    names = ("jaxpr_ops", "xla_ops", "xla_model_ops")
    heads = ("convolutions and dense by the tables", "by the jaxpr", "whole step by XLA", "by its model")
    table = columns_of("trial", "images", *heads, left=("trial",))
    chosen = {"initial": 0, "best": e.index.get(verdict.best_trial, -1)}
    for name, row in chosen.items():
        if not 0 <= row < len(e.products):
            continue
        batch = int(e.column("trials", "batch_per_device")[row])
        stored = (int(e.column("trials", column)[row]) for column in names)
        table.add_row(name, str(batch), f"{e.products[row]:,}", *(f"{n:,}" if n else "none" for n in stored))
    if table.row_count:
        yield table


def efficiency(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """Show the model FLOPS utilisation (MFU) of a valid run.

    The MFU is the credited operations over what the devices can do in the core time. A second value is the
    executed operations over what the devices can do while epochs ran.
    """
    if math.isnan(verdict.mfu):
        yield Text(
            f"  The MFU is not known, because the peak rate of the devices is not ({verdict.peak_source})."
        )
        return
    epochs = e.table("epochs")
    peaks = e.ceiling.peaks[e.column("trials", "replica")[e.of_trial]]
    possible = float((peaks * (epochs["t_end"] - epochs["t_start"])).sum())
    while_training = f"; {sum(e.epoch_ops) / possible:.2%} while epochs ran" if possible > 0 else ""
    yield Text(
        f"  MFU: credited operations are {verdict.mfu:.2%} of what the devices can do in the core "
        f"time{while_training}. Their peak at {e.attribute('precision')} is {rate_text(verdict.peak_ops)} "
        f"({verdict.peak_source})."
    )


def energy(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """Show the energy of the core time, and credited operations per joule of a valid run."""
    table = Table.grid(padding=(0, 2))
    joules = verdict.energy_joules
    table.add_row("  energy of the core time", "not known" if math.isnan(joules) else f"{joules:,.0f} J")
    if not math.isnan(joules) and verdict.core_seconds > 0:
        table.add_row("  mean power", f"{joules / verdict.core_seconds:,.1f} W")
    if not math.isnan(verdict.ops_per_watt):
        table.add_row("  operations per joule (op/s per W)", f"{verdict.ops_per_watt:.6e}")
    table.add_row("  level of the measurement", verdict.energy_level)
    yield table


def reason_of(e: Evidence) -> str:
    """Return why a run has its precision, in brackets; "" where an earlier version recorded no reason."""
    inventory = json.loads(e.result.documents["system/inventory_json"])
    why = inventory.get(PRECISION, "") if isinstance(inventory, dict) else ""
    return f" ({plain(str(why))[:MAX_WARNING]})" if why else ""


def warnings_of(e: Evidence) -> list[str]:
    """Return what the run warned of before its core time: cores, memory, variables; a line each."""
    inventory = json.loads(e.result.documents["system/inventory_json"])
    found = inventory.get("findings", []) if isinstance(inventory, dict) else []
    return [
        plain("; ".join(str(one[key]) for key in ("text", "remedy") if one.get(key)))[:MAX_WARNING]
        for one in (found if isinstance(found, list) else [])[:MAX_WARNINGS]
        if isinstance(one, dict)
    ]


def _cut(text: str) -> str:
    """Return at most MAX_TEXT characters of a text; an ellipsis shows that more follows."""
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


def system(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """Show the machine, its environment and the command line, as the run recorded them."""
    for name, title in (
        ("system/inventory_json", "inventory"),
        ("config/departures_json", "departures from the rules"),
        ("config/env_json", "environment"),
        ("config/argv", "command line"),
    ):
        facts = list(_facts(json.loads(e.result.documents[name])))
        yield Text(f"  {title}" + ("" if facts else ": none"))
        table = Table.grid(padding=(0, 2))
        for key, value in facts[:MAX_FACTS]:
            table.add_row(f"    {plain(key)}", _cut(plain(value)))
        if facts:
            yield table
        if len(facts) > MAX_FACTS:
            yield Text(f"    and {len(facts) - MAX_FACTS} more: h5dump -d /{name} FILE")


def _facts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of a JSON value with their paths; a list of plain values is one leaf."""
    match value:
        case dict():
            for key, entry in value.items():
                yield from _facts(entry, f"{path}.{key}" if path else str(key))
        case list() if any(isinstance(entry, dict | list) for entry in value):
            for number, entry in enumerate(value):
                yield from _facts(entry, f"{path}[{number}]")
        case list():
            if value:
                yield path, ", ".join(map(str, value))
        case _:
            yield path, str(value)
