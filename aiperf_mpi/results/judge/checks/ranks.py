# SPDX-License-Identifier: Apache-2.0
"""The check of the ranks: all of them reported, and no two drove the same device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from aiperf_mpi.results.evidence.ceiling import CPU, NO_UUIDS, driven
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.evidence.segments import parts
from aiperf_mpi.results.judge.checks.registry import check, rows_where, short

#: How NVIDIA's UUIDs begin: those of whole devices, and of their slices.
_NVIDIA, _UUIDS = ("NVIDIA", "Tesla"), ("GPU-", "MIG-")


@check(
    "V11",
    "one row for each rank; replicas, nodes, generators and devices as in the attributes; a node on one "
    "host; every device of a host driven by one rank",
    why=("Ranks that did not report may have done anything; a device must not count twice."),
)
def ranks(e: Evidence) -> Iterator[str]:
    """Every rank reported, and no two trainers shared a device."""
    known = np.isin(e.column("ranks", "segment"), e.column("segments", "segment"))
    yield from rows_where("ranks", ~known, "segment does not exist")
    for part in parts(e):
        if part.proven:
            yield from _ranks(part.evidence)

    # Every replica has its share of the devices, and each of them a batch.
    batches = [e.column("trials", name).astype(np.int64) for name in ("batch_global", "batch_per_device")]
    odd = batches[0] * e.attribute("n_replicas") != batches[1] * e.attribute("n_devices")
    yield from rows_where(
        "trials", odd, "batch_global is not batch_per_device times the devices of a replica"
    )


def _ranks(e: Evidence) -> Iterator[str]:
    """Check the ranks of one segment."""
    rows, count = e.table("ranks"), e.attribute("n_ranks")
    yield f"= {len(rows['rank'])} of {count} ranks"
    if not np.array_equal(rows["rank"], np.arange(count if count < len(rows["rank"]) + 2 else 0)):
        yield f"/ranks has {len(rows['rank'])} rows, which are not ranks 0 to {count - 1} in order"
    role = rows["role"].astype(str)
    yield from rows_where("ranks", ~np.isin(role, ("coordinator", "trainer", "generator")), "role is unknown")
    for column, of, attribute in (
        ("replica", role == "trainer", "n_replicas"),
        ("node", role != "coordinator", "n_nodes"),
    ):
        numbers, expected = np.unique(rows[column][of]), e.attribute(attribute)
        if not np.array_equal(numbers, np.arange(min(expected, len(numbers) + 1))):
            yield f"/ranks/{column} does not have the {expected} of attribute {attribute}"
    if (generators := int((role == "generator").sum())) != e.attribute("n_generators"):
        yield (
            f"attribute n_generators is {e.attribute('n_generators')}, but {generators} ranks are generators"
        )

    # The ranks of a node are on one host.
    nodes, first, own = np.unique(rows["node"], return_index=True, return_inverse=True)
    elsewhere = rows["hostname"] != rows["hostname"][first][own] if len(nodes) else np.zeros(0, bool)
    yield from rows_where("ranks", elsewhere, "its node has ranks of another host")

    yield from _devices(e, role == "trainer")


def _devices(e: Evidence, trains: np.ndarray) -> Iterator[str]:
    """Check that trainers share the devices of the run evenly, and that no device has two trainers.

    Devices without UUIDs are only counted.
    """
    rows, n_devices = e.table("ranks"), e.attribute("n_devices")
    named = np.array([not text.startswith(NO_UUIDS) for text in rows["device_uuid"].tolist()], bool)
    yield from rows_where(
        "ranks", ~trains & ((rows["device"] != "") | named), "it trains nothing, but drives devices"
    )
    trainers = np.flatnonzero(trains).tolist()
    each = n_devices // len(trainers) if trainers else 0
    if each * len(trainers) != n_devices:
        yield f"{n_devices} devices do not divide among {len(trainers)} trainers"

    owners: dict[tuple[str, str], int] = {}
    for rank in trainers:
        host, text = str(rows["hostname"][rank]), str(rows["device_uuid"][rank])
        count, kind = driven(str(rows["device"][rank]))
        if count != each:
            yield f"rank {rank} drives {count} devices, but each trainer has {each}"
        if not named[rank]:
            if e.attribute("class") == "official" and kind != CPU:
                yield (
                    f"rank {rank}: an official run names its accelerators, but device_uuid is {short(text)!r}"
                )
            continue
        uuids = text.split(",")
        if len(uuids) != count:
            yield f"rank {rank} names {len(uuids)} UUIDs of {count} devices"
        twice = {uuid for uuid, times in Counter(uuids).items() if times > 1}
        for uuid in uuids:
            if not uuid.strip() or (kind.startswith(_NVIDIA) and not uuid.startswith(_UUIDS)):
                yield f"rank {rank}: {short(uuid)!r} is not a UUID"
            if (other := owners.setdefault((host, uuid), rank)) != rank or uuid in twice:
                yield f"ranks {other} and {rank} drive the same device of {short(host)}: {short(uuid)}"
    yield f"= {len(owners)} of {n_devices} devices by UUID"
