# SPDX-License-Identifier: Apache-2.0
"""What a packed data set asks of a machine: bytes per second, memory of the loader, staging, storage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aiperf_mpi.config import Config
from aiperf_mpi.config.datasets import DATASETS
from aiperf_mpi.config.paths import reading
from aiperf_mpi.data.manifest import RAW, TRAIN, VAL, read_manifest
from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.opcount.analytical import operations
from aiperf_mpi.planning.estimate.machine import Machine, devices_of_replica, steps
from aiperf_mpi.planning.estimate.number import Number
from aiperf_mpi.printable import counted

#: The form of a set that is not there: that of `pack` by default.
DEFAULT_SIDE = 256

#: What the loader holds in memory: so many batches of the trainer's own devices, and so many bytes.
LOADER_BATCHES, LOADER_BYTES = 4, 256 << 20

#: What is summed over the shards of a split.
_SUMMED = ("images", "bytes")


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed set: encoding, side, images and bytes of each split, and where this is known from."""

    encoding: str
    side: int
    images: tuple[int, int]
    bytes: tuple[int, int]
    source: str

    def per_image(self, split: int) -> float:
        """Return the bytes of an image of a split (0 training, 1 validation), on average."""
        return self.bytes[split] / self.images[split]


def read_packed(config: Config) -> Packed | None:
    """Return the packed set in `data.path`, or the one that `pack` writes by default if no path is given.

    None for a data set of another form. Raises ConfigError for a folder without a readable manifest.
    """
    data = config.data
    if not DATASETS[data.name].packed:
        return None
    if not data.path:
        images = data.train_images, data.val_images
        pixels = DEFAULT_SIDE**2 * 3
        side = f"{DEFAULT_SIDE} x {DEFAULT_SIDE}"
        source = f"no data.path is given: {RAW} pictures of {side} pixels, which pack writes by default"
        return Packed(RAW, DEFAULT_SIDE, images, (images[0] * pixels, images[1] * pixels), source)
    with reading("data.path", data.path, "name the folder that pack has written"):
        manifest = read_manifest(Path(data.path))
    splits = [manifest.splits[split] for split in (TRAIN, VAL)]
    counts, sizes = [[sum(getattr(one, name) for one in shards) for shards in splits] for name in _SUMMED]
    made_up = "; made-up pictures: always a trial" if manifest.standin else ""
    side = f"{manifest.side} x {manifest.side}"
    source = f"from its manifest: {manifest.name}, {manifest.encoding} of {side} pixels{made_up}"
    return Packed(manifest.encoding, manifest.side, (counts[0], counts[1]), (sizes[0], sizes[1]), source)


def feed_numbers(config: Config, machine: Machine) -> Iterator[Number]:
    """Estimate what reading a packed set takes; nothing for a data set of another form."""
    if (packed := read_packed(config)) is None:
        return
    images = steps(config, machine, config.train.batch_per_device) * config.train.batch_per_device
    images *= devices_of_replica(config, machine)
    each = packed.per_image(0), packed.per_image(1)
    yield Number(
        "data",
        "read by a replica in an epoch",
        round(images * each[0] + config.data.val_images * each[1]),
        "byte",
        f"{images} training images of {each[0]:.6g} bytes on average, and {config.data.val_images} "
        f"validation images of {each[1]:.6g}; {packed.source}",
    )
    if machine.ops_per_device is not None:
        yield from _rates(config, machine, each, machine.ops_per_device)
    yield _loader_memory(config, machine, packed)
    yield from _staging(machine, packed)


def _rates(config: Config, machine: Machine, each: tuple[float, float], rate: float) -> Iterator[Number]:
    """Estimate images and bytes per second while devices train and validate at `rate` op/s."""
    devices, kinds = machine.devices_per_node, operations(Architecture(config.base))
    images = [devices * rate / each_operations for each_operations in kinds]
    read = [number * size for number, size in zip(images, each, strict=True)]
    while_ = f"of {counted(devices, 'device')}: while training, and while validating"
    yield Number("data", "images for a node", (images[0], images[1]), "images/s", while_)
    yield Number(
        "data", "read by a node", (read[0], read[1]), "byte/s", f"the bytes of these images, {while_}"
    )
    yield Number(
        "data",
        "read by all nodes",
        (machine.nodes * read[0], machine.nodes * read[1]),
        "byte/s",
        "from a shared file system, if the set is not staged to the nodes",
    )


def _loader_memory(config: Config, machine: Machine, packed: Packed) -> Number:
    """Bound the memory of a node's loaders."""
    trainers = config.parallel.trainers_per_node
    own = machine.devices_per_node // trainers
    batch = max(config.train.batch_per_device, *(config.hpo.batches if config.hpo.enabled else (0,)))
    size = LOADER_BATCHES * own * batch * packed.side**2 * config.data.channels + LOADER_BYTES
    return Number(
        "data",
        "memory of a node's loader",
        trainers * size,
        "byte",
        f"at most, for each of {counted(trainers, 'trainer')}: {LOADER_BATCHES} batches of {batch} images "
        f"for each of {counted(own, 'device')}, and {LOADER_BYTES >> 20} MiB, whatever the size of the set",
    )


def _staging(machine: Machine, packed: Packed) -> Iterator[Number]:
    """Estimate the space and the time that staging takes."""
    size = sum(packed.bytes)
    yield Number("data", "storage of the packed set", size, "byte", f"all shards; {packed.source}")
    yield Number(
        "data",
        "space for staging on a node",
        size,
        "byte",
        "each node has a whole copy, on a disk or in memory",
    )
    yield Number(
        "data",
        "time of staging",
        size / machine.staging_rate,
        "s",
        f"before the core time, at {machine.staging_rate:.4g} bytes/s into each node (--staging-rate), so "
        f"{machine.nodes * machine.staging_rate:.4g} bytes/s from the shared file system",
    )
