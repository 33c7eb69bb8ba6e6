# SPDX-License-Identifier: Apache-2.0
"""A shard of a packed data set: an HDF5 file of one contiguous array of pixels, or of JPEG files.

    raw     `images`   uint8 [n, side, side, 3]
    jpeg    `jpeg`     uint8 [bytes], the files one after the other
            `offsets`  uint64 [n + 1], where each begins
    both    `labels`   int32 [n]
            `names`    name of each picture in the source, UTF-8 with backslash escapes
            attributes `split`, `index`, `encoding`, `side`, `version`

The array is read at its offset in the file, without HDF5: fancy indexing through h5py is slower by far.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from aiperf_mpi import hdf5
from aiperf_mpi.data.manifest import JPEG, RAW, VERSION, Manifest, Shard
from aiperf_mpi.files import FileError, open_regular

#: Names of the datasets.
IMAGES, FILES, OFFSETS, LABELS, NAMES = "images", "jpeg", "offsets", "labels", "names"


@dataclass(frozen=True, slots=True, eq=False)
class OpenShard:
    """A shard that is open for reading by several threads.

    Attributes:
        path: the file.
        descriptor: of the open file; :meth:`close` ends it.
        offset: where the array of pixels or files begins in the file, in bytes.
        starts: where each picture begins in that array, and where the last one ends: int64 [n + 1].
        labels: int32 [n].
    """

    path: Path
    descriptor: int
    offset: int
    starts: np.ndarray
    labels: np.ndarray

    def size(self, place: int) -> int:
        """Return the bytes of a picture in the file."""
        return int(self.starts[place + 1] - self.starts[place])

    def read(self, place: int, buffer: memoryview) -> None:
        """Read the bytes of a picture into `buffer`, which has exactly their size. Raises FileError."""
        position, done = self.offset + int(self.starts[place]), 0
        while done < len(buffer):
            try:
                count = os.preadv(self.descriptor, [buffer[done:]], position + done)
            except OSError as error:
                reason = f"offset {position + done}: {error.strerror}; look at its file system"
                raise FileError(self.path, reason, error.errno or 0) from None
            if not count:
                reason = f"offset {position + done}: the file ends here, too early; copy it again"
                raise FileError(self.path, reason)
            done += count

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)


def open_shard(folder: Path, shard: Shard, manifest: Manifest) -> OpenShard:
    """Open a shard and check its form: size, array, labels. Its hash is not checked.

    Raises FileError where it is not what the manifest says.
    """
    path = folder / shard.file
    with open_regular(path) as raw:
        if (size := os.fstat(raw.fileno()).st_size) != shard.bytes:
            raise FileError(path, f"has {size} bytes, but the manifest says {shard.bytes}; copy it again")
        descriptor = os.dup(raw.fileno())
    try:
        try:
            # Nothing writes to a shard, and many file systems have no locks.
            with h5py.File(path, "r", locking=False) as file:
                offset, starts, labels = _layout(path, file, shard, manifest)
        except OSError as error:
            raise FileError(path, f"is not HDF5 ({str(error)[:100]}); copy it again") from None
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, FileError):
                raise
            raise FileError(path, f"has another form ({str(error)[:100]}); pack the set again") from None
    except BaseException:
        os.close(descriptor)
        raise
    return OpenShard(path, descriptor, offset, starts, labels)


def names_of(path: Path) -> list[str]:
    """Return the names of the pictures of a shard. Raises FileError where they cannot be read."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            return file[NAMES].asstr(errors="surrogateescape")[...].tolist()
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise FileError(path, f"its names cannot be read ({str(error)[:100]}); copy it again") from None


def _layout(
    path: Path, file: h5py.File, shard: Shard, manifest: Manifest
) -> tuple[int, np.ndarray, np.ndarray]:
    """Return offset, starts and labels of an open shard. Raises FileError where they are wrong."""

    def refuse(reason: str) -> FileError:
        return FileError(path, f"{reason}; pack the set again")

    stated = {"encoding": manifest.encoding, "side": manifest.side}
    for key, value in stated.items():
        if file.attrs[key] != value:
            raise refuse(f"has {key} {file.attrs[key]}, but the manifest says {value}")
    if file.attrs["version"] > VERSION:
        raise refuse(f"has version {file.attrs['version']}, but this program reads versions up to {VERSION}")

    count, side = shard.images, manifest.side
    labels = _array(refuse, file, LABELS, np.int32, (count,))[...]
    if len(wrong := np.flatnonzero((labels < 0) | (labels >= len(manifest.classes)))):
        place = int(wrong[0])
        raise refuse(
            f"picture {place} has the label {labels[place]}, but the labels are 0 to "
            f"{len(manifest.classes) - 1}"
        )
    if manifest.encoding == RAW:
        pixels = _array(refuse, file, IMAGES, np.uint8, (count, side, side, 3))
        starts = np.arange(count + 1, dtype=np.int64) * (side * side * 3)
        return _offset(refuse, pixels, shard), starts, labels
    assert manifest.encoding == JPEG
    files = _array(refuse, file, FILES, np.uint8, None)
    starts = _array(refuse, file, OFFSETS, np.uint64, (count + 1,))[...]
    if starts[0] or starts[-1] != files.size or (starts[1:] <= starts[:-1]).any():
        raise refuse("has a table of offsets that does not rise from 0 to the size of the array")
    return _offset(refuse, files, shard), starts.astype(np.int64), labels


def _array(
    refuse: Any, file: h5py.File, name: str, dtype: Any, shape: tuple[int, ...] | None
) -> h5py.Dataset:
    """Return a dataset of the file itself if it has this type and shape; None allows any length.

    A link or a dataset that leads to another file would be read from there, or be waited for without end.
    """
    array = hdf5.own(file, name)
    if not isinstance(array, h5py.Dataset) or array.dtype != np.dtype(dtype):
        raise refuse(f"{array.name} is not an array of {np.dtype(dtype).name}")
    if array.shape != (shape or array.shape[:1]):
        raise refuse(f"{array.name} has the shape {array.shape}, not {shape or 'of a list'}")
    if problem := hdf5.wrong_storage(array, array.dtype.itemsize):
        raise refuse(f"{array.name} {problem}")
    return array


def _offset(refuse: Any, array: h5py.Dataset, shard: Shard) -> int:
    """Return where a contiguous array begins in its file, in bytes."""
    offset = array.id.get_offset()
    if offset is None:
        raise refuse(f"{array.name} is not one contiguous array")
    if offset + array.nbytes > shard.bytes:
        raise refuse(f"{array.name} ends after the end of the file")
    return int(offset)
