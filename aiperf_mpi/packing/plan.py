# SPDX-License-Identifier: Apache-2.0
"""What is packed where: which pictures of the source each shard has, before any is decoded.

A shard has fixed pictures of the source; a rejected one is missing in it. So shards depend neither on one
another nor on the number of ranks and threads, and a killed packing goes on where it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import h5py
import numpy as np

from aiperf_mpi.data import jpeg
from aiperf_mpi.data.manifest import SPLITS, TRAIN, VERSION
from aiperf_mpi.packing.shard import Layout
from aiperf_mpi.packing.sources.pictures import Pictures

#: Seed of the order of the pictures. Sorted by class, a shard would hold few classes.
_SEED = 2012

#: Training pictures, the first in this order, of which the manifest has mean and deviation: a sample of this
#: size leaves an error of some 0.001 of the mean, and the histogram of a picture takes 4 % of packing it.
MEASURED = 16384


@dataclass(frozen=True, slots=True)
class Plan:
    """What determines the content of a packed set; two packings with the same plan give the same bytes.

    Attributes:
        name, encoding, side: as in the manifest.
        shard_images: pictures of the source that a shard has, except the last one.
        pictures: number of the source's pictures of each split.
        listing: SHA-256 over the classes and the names and labels of all pictures of the source.
        versions: versions of the libraries that decode and write, and of the format.
        standin: as in the manifest.
    """

    name: str
    encoding: str
    side: int
    shard_images: int
    pictures: Mapping[str, int]
    listing: str
    versions: Mapping[str, str]
    standin: bool = False

    @property
    def layout(self) -> Layout:
        """What all shards have alike."""
        return Layout(self.encoding, self.side)

    def tasks(self) -> list[Task]:
        """Return the shards to write, those of the training pictures first."""
        return [
            Task(
                split,
                index,
                tuple(positions.tolist()),
                split == TRAIN and index * self.shard_images < MEASURED,
            )
            for split in SPLITS
            for index, positions in enumerate(_cut(self.pictures[split], self.shard_images))
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Task:
    """One shard: its split, its number, and the positions of its pictures in the source.

    Of a `measured` shard the pictures count for mean and deviation.
    """

    split: str
    index: int
    positions: tuple[int, ...]
    measured: bool = False

    @property
    def file(self) -> str:
        """Name of the shard's file."""
        return f"{self.split}-{self.index:05d}.h5"


def versions() -> dict[str, str]:
    """Return the versions of all that decides about the bytes of a shard."""
    return {
        "format": str(VERSION),
        **jpeg.versions(),
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
    }


def listing_of(classes: tuple[str, ...], pictures: Mapping[str, Pictures]) -> str:
    """Return the hash by which a source is known again: of its classes, names and labels."""
    digest = hashlib.sha256("\n".join(classes).encode())
    for split in SPLITS:
        digest.update(f"\n\n{split}\n".encode())
        for picture in pictures[split]:
            digest.update(f"{picture.name}\t{picture.label}\n".encode())
    return digest.hexdigest()


def order(count: int) -> np.ndarray:
    """Return the fixed order in which the pictures of a source are packed, int64 [count].

    The old generator of numpy draws it: its numbers are the same in every version.
    """
    return np.random.RandomState(_SEED).permutation(count)


def _cut(count: int, most: int) -> list[np.ndarray]:
    """Return the positions of `count` pictures in parts of `most`."""
    positions = order(count)
    return [positions[begin : begin + most] for begin in range(0, count, most)]
