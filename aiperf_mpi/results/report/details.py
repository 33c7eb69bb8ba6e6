# SPDX-License-Identifier: Apache-2.0
"""Sections of the report about what the best network consists of, how it was counted, the machine, and its
energy."""

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
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.evidence.printable import plain
from aiperf_mpi.results.judge.judge import Verdict

#: Most lines about the machine, and characters of one of them.
MAX_FACTS, MAX_TEXT = 150, 200

#: Stands where there is no best network.
NO_BEST = "  no trial has a validation error"


def columns_of(*names: str, left: tuple[str, ...] = ()) -> Table:
    """An empty table with these columns; numbers stand at the right."""
    table = Table(box=None, pad_edge=True, header_style="")
    for name in names:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold")
    return table


def best_of(e: Evidence, verdict: Verdict) -> Architecture | None:
    """The best network; None where no trial has an error. Raises ValueError where it cannot be replayed."""
    if verdict.best_trial not in e.index:
        return None
    architecture = e.architectures[e.index[verdict.best_trial]]
    if isinstance(architecture, str):
        raise ValueError(architecture)
    return architecture


def network(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """What the best network is, and its units."""
    architecture = best_of(e, verdict)
    if architecture is None:
        yield Text(NO_BEST)
        return
    train_ops, val_ops = e.counts[e.index[verdict.best_trial]]
    facts = Table.grid(padding=(0, 2))
    facts.add_row("  trial", f"{verdict.best_trial}, by way of {e.lineage(verdict.best_trial)}")
    facts.add_row("  hash", architecture.hash)
    facts.add_row("  parameters", f"{architecture.parameters:,}")
    facts.add_row("  operations per image", f"{train_ops:,} to train, {val_ops:,} to validate")
    yield facts
    yield _units(architecture)


def _units(architecture: Architecture) -> RenderableType:
    """The units of a network: each a convolution, batch norm, additions, ReLU."""
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
    """The best network layer by layer, with the operations of each by the paper's tables."""
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
    """Operations per image: by the tables, which are credited, and what is stored of the two other
    methods."""
    yield Text(
        f"  analytical ({METHOD_VERSIONS['analytical']}, the paper's Tables 1 and 2): credited, recomputed "
        f"here "
        "for every trial from its network"
    )
    yield Text(
        f"  jaxpr ({METHOD_VERSIONS['jaxpr']}, of the traced step): its products of matrices must be those "
        f"of "
        "the tables to the last operation, or a trial is rejected before it is trained"
    )
    yield Text(
        f"  XLA ({METHOD_VERSIONS['xla']}, of the lowered step): beside a model of its rules; `python -m "
        "aiperf_mpi flops --arch FILE` shows all three for any network"
    )
    yield from steps(e, verdict)
    best = best_of(e, verdict)
    initial = e.architectures[0] if e.architectures else None
    networks = {"initial": initial, "best": best}
    counts = {
        name: count(found.layers()) for name, found in networks.items() if isinstance(found, Architecture)
    }
    heads = [f"{name} network, {part}" for name in counts for part in ("forward", "backward")]
    table = columns_of("kind (op/image)", *heads, left=("kind (op/image)",))
    for kind in (*KINDS, "total"):
        cells = []
        for found in counts.values():
            own = found.kinds.values() if kind == "total" else [found.kinds[kind]]
            cells += [f"{sum(pair[place] for pair in own):,}" for place in (0, 1)]
        table.add_row(kind, *cells)
    yield table


def steps(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """The stored counts of a training step on one device, of the first and of the best trial."""
    names = ("jaxpr_ops", "xla_ops", "xla_model_ops")
    heads = ("convolutions and dense by the tables", "by the jaxpr", "whole step by XLA", "by its model")
    table = columns_of("trial", "images", *heads, left=("trial",))
    chosen = {"initial": 0, "best": e.index.get(verdict.best_trial, -1)}
    for name, row in chosen.items():
        if not 0 <= row < len(e.products):
            continue
        batch = int(e.column("trials", "batch_per_device")[row])
        found = (int(e.column("trials", column)[row]) for column in names)
        table.add_row(
            name, str(batch), f"{e.products[row] * batch:,}", *(f"{n:,}" if n else "none" for n in found)
        )
    if table.row_count:
        yield table


def efficiency(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """Model FLOPS utilisation (MFU) of a valid run: credited operations over what its devices could do in the
    core time, and executed ones over what they could do while epochs ran."""
    if math.isnan(verdict.mfu):
        yield Text(
            f"  The peak rate of the devices is not known ({verdict.peak_source}), so there is no MFU."
        )
        return
    epochs = e.table("epochs")
    peaks = e.ceiling.replicas[e.column("trials", "replica")[e.of_trial]]
    possible = float((peaks * (epochs["t_end"] - epochs["t_start"])).sum())
    while_training = f"; {sum(e.epoch_ops) / possible:.2%} while epochs ran" if possible > 0 else ""
    yield Text(
        f"  MFU: credited operations are {verdict.mfu:.2%} of what the devices can do in the core time"
        f"{while_training}. Their peak at {e.attribute('precision')} is {verdict.peak_ops:.4e} op/s "
        f"({verdict.peak_source})."
    )


def energy(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """Energy of the core time, and credited operations per joule of a valid run."""
    table = Table.grid(padding=(0, 2))
    joules = verdict.energy_joules
    table.add_row("  energy of the core time", "not known" if math.isnan(joules) else f"{joules:,.0f} J")
    if not math.isnan(joules) and verdict.core_seconds > 0:
        table.add_row("  mean power", f"{joules / verdict.core_seconds:,.1f} W")
    if not math.isnan(verdict.ops_per_watt):
        table.add_row("  operations per joule (op/s per W)", f"{verdict.ops_per_watt:.6e}")
    table.add_row("  level of the measurement", verdict.energy_level)
    yield table


def system(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """The machine and the programs on it, as the run recorded them."""
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
            table.add_row(f"    {plain(key)}", plain(value)[:MAX_TEXT])
        if facts:
            yield table
        if len(facts) > MAX_FACTS:
            yield Text(f"    and {len(facts) - MAX_FACTS} more: h5dump -d /{name} FILE")


def _facts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of a JSON value with their paths; lists of plain values are one leaf."""
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
