# SPDX-License-Identifier: Apache-2.0
"""Packed pictures: opened from the shards of a folder, read and decoded as batches need them.

The data sets `imagenet` and `images` are such folders; :mod:`aiperf_mpi.packing` makes them.
"""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.config.paths import existing_folder, expanded, message, reading
from aiperf_mpi.data.dataset import Dataset
from aiperf_mpi.data.jpeg import PictureError, decode_square
from aiperf_mpi.data.manifest import FILE, JPEG, TRAIN, VAL, Manifest, Shard, read_manifest
from aiperf_mpi.data.shard import OpenShard, open_shard
from aiperf_mpi.files import FileError, open_regular
from aiperf_mpi.printable import counted

SETTING = "data.path"
#: What to do without a packed set, and without ImageNet.
WITHOUT = (
    "pack it once with `python -m aiperf_mpi pack SOURCE FOLDER` (docs/data.md), and add `--set "
    "data.path=FOLDER`; without ImageNet use `--preset imagenet-synthetic`, for a first run `--preset demo`"
)
REMEDY = "name the folder that `python -m aiperf_mpi pack SOURCE FOLDER` has made"

_AGAIN = "copy it again, or pack the set again"

#: Files that a trainer may have open besides its shards: libraries, devices and connections.
_OTHER_FILES = 64

#: Channels of a packed picture.
CHANNELS = 3


class DataError(RuntimeError):
    """A picture cannot be read during a run; the text names host, shard, picture and reason."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedImages:
    """The pictures of a split, uint8 [N, side, side, 3], in the order of the shards.

    Arguments:
        shards: the open shards.
        side: height and width of a picture.
        encoding: of the shards, one of `manifest.ENCODINGS`.
        count: the first so many pictures are used.
    """

    shards: Sequence[OpenShard]
    side: int
    encoding: str
    count: int
    labels: np.ndarray = field(init=False)
    _first: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        labels = np.concatenate([shard.labels for shard in self.shards])[: self.count]
        sizes = [len(shard.labels) for shard in self.shards]
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "_first", np.cumsum([0, *sizes[:-1]]))

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width and channels."""
        return self.side, self.side, CHANNELS

    @property
    def dtype(self) -> np.dtype:
        """The type of a pixel."""
        return np.dtype(np.uint8)

    def read(self, places: np.ndarray, out: np.ndarray) -> int:
        """Read the pictures at `places` into `out`; return the bytes that were read. Raises DataError."""
        if len(places) and not 0 <= places.min() <= places.max() < self.count:
            raise IndexError(f"a place is outside of the {self.count} images")
        numbers = np.searchsorted(self._first, places, side="right") - 1
        within = places - self._first[numbers]
        total = 0
        for number, place, pixels in zip(numbers.tolist(), within.tolist(), out, strict=True):
            shard = self.shards[number]
            try:
                if self.encoding == JPEG:
                    _decode(shard, place, pixels)
                else:
                    shard.read(place, memoryview(pixels).cast("B"))
            except FileError as error:
                raise DataError(f"host {platform.node()}: {error}") from None
            total += shard.size(place)
        return total

    def close(self) -> None:
        """Close the shards."""
        for shard in self.shards:
            shard.close()


def _decode(shard: OpenShard, place: int, pixels: np.ndarray) -> None:
    """Read a picture of a shard of JPEG files as a square into `pixels`. Raises FileError."""
    data = bytearray(shard.size(place))
    shard.read(place, memoryview(data))
    try:
        decode_square(memoryview(data), pixels)
    except PictureError as error:
        where = f"picture {place} at offset {shard.offset + int(shard.starts[place])}"
        raise FileError(shard.path, f"{where}: {error}; copy the shard again") from None


# -- opening ---------------------------------------------------------------------------------------


def folder_of(config: Config) -> Path:
    """Return the folder of a packed set. Raises ConfigError where `data.path` does not name one."""
    path, name = config.data.path, config.data.name
    if not path:
        raise ConfigError(
            f"{SETTING}: it is empty, but data.name = {name!r} needs the folder of a packed set; "
            f"{WITHOUT if name == 'imagenet' else REMEDY}"
        )
    return existing_folder(SETTING, expanded(SETTING, path), REMEDY)


def manifest_of(config: Config) -> tuple[Path, Manifest]:
    """Return the folder and the manifest of a packed set. Raises ConfigError where they do not fit the
    configuration."""
    folder = folder_of(config)
    with reading(SETTING, folder / FILE, REMEDY):
        return folder, read_manifest(folder)


def check_fits(config: Config, folder: Path, manifest: Manifest) -> None:
    """Raise ConfigError where a manifest is not that of the set which the configuration describes."""
    data = config.data
    for key, value, found in (
        ("classes", data.classes, len(manifest.classes)),
        ("channels", data.channels, CHANNELS),
        ("stored_size", data.stored_side, manifest.side),
    ):
        if value != found:
            raise ConfigError(
                f"data.{key}: it is {value}, but the packed pictures in {folder} have {found}; "
                f"set data.{key} = {found}, or pack them so"
            )
    for key, value, split in (
        ("train_images", data.train_images, TRAIN),
        ("val_images", data.val_images, VAL),
    ):
        if value > (found := manifest.images(split)):
            raise ConfigError(
                f"data.{key}: it is {value}, but {folder} has {counted(found, 'picture')} of the split "
                f"{split}; lower it, or pack the whole set"
            )


def check_shards(config: Config, folder: Path, manifest: Manifest) -> None:
    """Check that each shard exists, may be read and has its size, and that those that the run needs can be
    open at the same time. Raises ConfigError.
    """
    used = len(needed_shards(manifest, config.data.train_images, config.data.val_images))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit not in (resource.RLIM_INFINITY, -1) and used + _OTHER_FILES > limit:
        reason = (
            f"the run keeps {counted(used, 'shard')} open and may need {_OTHER_FILES} other files, but a "
            f"process may open {limit}"
        )
        remedy = f"raise the limit: ulimit -n {used + _OTHER_FILES}, or pack with a larger --shard-images"
        raise ConfigError(message(SETTING, folder, reason, remedy))
    for shard in (one for shards in manifest.splits.values() for one in shards):
        path = folder / shard.file
        with reading(SETTING, path, _AGAIN), open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
        if size != shard.bytes:
            reason = f"has {size} bytes, but the manifest says {shard.bytes}"
            raise ConfigError(message(SETTING, path, reason, _AGAIN))


def open_packed(config: Config, folder: Path, manifest: Manifest) -> Dataset:
    """Return the data set of a packed folder. Raises ConfigError naming the shard that is not whole."""
    train, val = (
        _open_split(folder, manifest, split, count)
        for split, count in ((TRAIN, config.data.train_images), (VAL, config.data.val_images))
    )
    moments = manifest.mean, manifest.deviation
    return Dataset(
        config.data.name, train, val, len(manifest.classes), manifest.sha256, *moments, manifest=manifest
    )


def _open_split(folder: Path, manifest: Manifest, split: str, count: int) -> PackedImages:
    """Open the shards of a split that hold its first `count` pictures. Raises ConfigError."""
    with ExitStack() as opened:
        shards = []
        for shard in needed(manifest.splits[split], count):
            with reading(SETTING, folder / shard.file, _AGAIN):
                shards.append(open_shard(folder, shard, manifest))
            opened.callback(shards[-1].close)
        opened.pop_all()
    return PackedImages(shards, manifest.side, manifest.encoding, count)


def needed_shards(manifest: Manifest, train: int, val: int) -> list[Shard]:
    """Return the shards that hold the first so many training and validation pictures."""
    return [*needed(manifest.splits[TRAIN], train), *needed(manifest.splits[VAL], val)]


def needed(shards: Iterable[Shard], count: int) -> list[Shard]:
    """Return the first shards, which hold `count` pictures."""
    needed, images = list[Shard](), 0
    for shard in shards:
        if images >= count:
            break
        needed.append(shard)
        images += shard.images
    return needed
