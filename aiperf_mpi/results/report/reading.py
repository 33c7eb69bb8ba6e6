# SPDX-License-Identifier: Apache-2.0
"""Section of the report: the data set, its staging, and what each node read of it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from rich.console import RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from aiperf_mpi.data.manifest import SPLITS, Manifest
from aiperf_mpi.printable import counted, plain
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.evidence.reading import Reading, reading
from aiperf_mpi.results.judge.judge import Verdict
from aiperf_mpi.results.report.details import columns_of

#: Most nodes that are listed.
MAX_NODES = 40


def compared(e: Evidence) -> dict[str, float | str]:
    """Return what a comparison says of a packed set and of its reading; nothing for other data sets."""
    if e.packed is None:
        return {}
    manifest, found = e.packed.manifest, reading(e)
    standin = " (stand-in)" if manifest.standin else ""
    return {
        "set": f"{manifest.name}{standin}, side {manifest.side}",
        "encoding": manifest.encoding,
        "bytes_per_second_node": float(found.rates.mean()) if len(found.rates) else math.nan,
        "data_share": found.data_share,
    }


def data(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """Show the data set: what it is, how it came to the nodes, what they read, how long trainers waited."""
    table = Table.grid(padding=(0, 2))
    table.add_row("  data set", str(e.attribute("dataset")))
    table.add_row(
        "  images", f"{e.attribute('train_images'):,} to train, {e.attribute('val_images'):,} to validate"
    )
    packed, found = e.packed, reading(e)
    if packed is not None:
        for name, value in _packed(packed.manifest, packed.rejected):
            table.add_row(f"  {name}", plain(value))
    table.add_row("  hash of the content", str(e.attribute("dataset_sha256")))
    if packed is not None:
        for name, value in _prepared(e):
            table.add_row(f"  {name}", value)
    in_memory = packed is None and not found.bytes
    read = "nothing: the images are in memory, or made on the devices" if in_memory else None
    table.add_row("  read by each node", read or rates_text(found, verdict))
    share = (
        "not known"
        if math.isnan(found.data_share)
        else f"{found.data_share:.2%} of the trainers' time, with staging"
    )
    table.add_row("  waiting for data", share)
    yield table
    if packed is not None and len(found.nodes):
        yield from _nodes(found, verdict)


def _packed(manifest: Manifest, rejected: int) -> Iterator[tuple[str, str]]:
    """Yield what a manifest says of its set."""
    standin = ", a stand-in with made-up pictures" if manifest.standin else ""
    yield "packed set", f"{manifest.name}{standin}"
    yield (
        "pictures",
        f"{manifest.encoding}, {manifest.side} x {manifest.side}, {len(manifest.classes):,} classes",
    )
    counts = " + ".join(f"{manifest.images(split):,}" for split in SPLITS)
    shards = sum(len(manifest.splits[split]) for split in SPLITS)
    yield "shards", f"{counts} pictures in {counted(shards, 'shard')}, {decimal(manifest.bytes)}"
    yield "not in the set", counted(rejected, "picture")
    yield "source", "; ".join(f"{key}: {value}" for key, value in manifest.source.items()) or "not known"


def _prepared(e: Evidence) -> Iterator[tuple[str, str]]:
    """Yield what was done with a packed set before the core time."""
    seconds, copied = e.attribute("staging_seconds"), e.attribute("staged_bytes")
    copy = f"{decimal(int(copied))} over all nodes, in {seconds:.1f} s on the slowest"
    yield "copied to the nodes", copy if seconds > 0 else "no"
    hashed = e.attribute("hash_seconds")
    yield (
        "hashes checked",
        f"in {hashed:.1f} s on the slowest node" if hashed > 0 else "not apart from copying",
    )


def rates_text(found: Reading, verdict: Verdict) -> str:
    """Return the rates at which the nodes read: their mean, the least and the largest."""
    if not len(found.nodes) or not verdict.core_seconds > 0:
        return "not known"
    rates = found.rates / 1e6
    least, most = int(np.argmin(rates)), int(np.argmax(rates))
    mean = f"{rates.mean():,.3f} MB/s in the core time"
    if len(rates) == 1:
        return mean
    return (
        f"{mean} (mean; least {rates[least]:,.3f} on node {found.nodes[least]}, largest {rates[most]:,.3f} "
        f"on node {found.nodes[most]})"
    )


def _nodes(found: Reading, verdict: Verdict) -> Iterator[RenderableType]:
    """Show what each node read; of many nodes, those that read least."""
    order = np.arange(len(found.nodes))
    if len(order) > MAX_NODES:
        yield Text(f"  the {MAX_NODES} nodes of {len(order)} that read least")
        order = np.argsort(found.rates, kind="stable")[:MAX_NODES]
    table = columns_of("node", "read", "MB/s")
    for place in order.tolist():
        rate = float(found.rates[place])
        total = decimal(round(rate * verdict.core_seconds))
        table.add_row(str(found.nodes[place]), total, f"{rate / 1e6:,.3f}")
    yield table
