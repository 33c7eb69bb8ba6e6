# SPDX-License-Identifier: Apache-2.0
"""Write a shard: pictures one after the other to their place in the file, and around them what makes it HDF5.

How many pictures a shard has is known at its end, when some were rejected. HDF5 wants it at the beginning. So
the array is written first, from the offset that HDF5 will give it. Then HDF5 writes the rest of the file
around it, through an object that passes its writes on: no byte of the array is written twice.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from aiperf_mpi.data.manifest import RAW, VERSION, Shard
from aiperf_mpi.data.shard import FILES, IMAGES, LABELS, NAMES, OFFSETS

#: All that HDF5 puts into the file begins at a multiple of it: a page, for direct reads. The place of the
#: array then depends on nothing else.
_ALIGNMENT = 4096

_CHUNK = 8 << 20


@dataclass(frozen=True, slots=True)
class Layout:
    """What every shard of a set has alike: its encoding, and the side of its pictures in pixels."""

    encoding: str
    side: int

    @property
    def picture_bytes(self) -> int:
        """Size of a raw picture."""
        return 3 * self.side**2


@dataclass(slots=True)
class ShardWriter:
    """A shard that is being written.

    Attributes:
        path: where the file is until it is finished; the caller renames it.
        split, index: the shard's place in the set.
        layout: of all shards of the set.
        labels, names, ends: of the pictures so far: label, name, and end of the bytes.
    """

    path: Path
    split: str
    index: int
    layout: Layout
    labels: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    ends: list[int] = field(default_factory=lambda: [0])
    _descriptor: int = -1

    def __post_init__(self) -> None:
        """Create the file. Raises OSError."""
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)

    def add(self, data: bytes, label: int, name: str) -> None:
        """Write the next picture. Raises OSError."""
        _write(self._descriptor, memoryview(data), _array_offset(self.layout) + self.ends[-1])
        self.ends.append(self.ends[-1] + len(data))
        self.labels.append(label)
        self.names.append(name)

    def finish(self, file: str) -> Shard | None:
        """Complete and sync the file, and return what the manifest says of it; None without a picture.

        `file` is the name that it will have. Raises OSError.
        """
        try:
            if not self.labels:
                return None
            _write_around(self, self._descriptor)
            os.fsync(self._descriptor)
            digest, size = hash_of(self._descriptor)
            return Shard(file, len(self.labels), size, digest)
        finally:
            self.close()

    def close(self) -> None:
        """Close the file as it is; closing twice is allowed."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def hash_of(descriptor: int, report: Callable[[int], None] = lambda count: None) -> tuple[str, int]:
    """Return SHA-256 and size of an open file, read from its beginning; `report` gets the bytes of each read.

    Raises OSError.
    """
    digest, size = hashlib.sha256(), 0
    buffer = memoryview(bytearray(_CHUNK))
    while count := os.preadv(descriptor, [buffer], size):
        digest.update(buffer[:count])
        size += count
        report(count)
    return digest.hexdigest(), size


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all bytes of `data` at an offset of an open file. Raises OSError."""
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


# -- HDF5 around the array ---------------------------------------------------------------------------


class _Around:
    """A file as HDF5 sees it while it creates one: empty, though the array is there already.

    HDF5 tells the reason of an error badly, so the first one is kept, and HDF5 does not learn of it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._at, self._size = descriptor, 0, 0
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position, and return it."""
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = begin + offset
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def read(self, count: int = -1) -> bytes:
        """Return nothing: h5py knows a file by this method, and reads by the next one."""
        return b""

    def readinto(self, buffer: memoryview) -> int:
        """Read what HDF5 has written; return the number of bytes."""
        count = os.preadv(self._descriptor, [buffer], self._at)
        self._at += count
        return count

    def write(self, data: bytes | memoryview) -> int:
        """Write bytes at the position; return how many."""
        try:
            if self.error is None:
                _write(self._descriptor, memoryview(data), self._at)
        except OSError as error:
            self.error = error
        self._at += len(data)
        self._size = max(self._size, self._at)
        return len(data)

    def truncate(self, size: int) -> int:
        """Set the size of the file, and return it."""
        try:
            if self.error is None:
                os.ftruncate(self._descriptor, size)
        except OSError as error:
            self.error = error
        self._size = size
        return size

    def flush(self) -> None:
        """Do nothing: the shard is synced at its end."""


def _write_around(shard: ShardWriter, descriptor: int) -> None:
    """Make an HDF5 file of a file that has the array at its place. Raises OSError."""
    around, layout = _Around(descriptor), shard.layout
    with _hdf5(around) as file:
        array = _first_array(file, layout, len(shard.labels), shard.ends[-1])
        begin = int(array.id.get_offset())
        if layout.encoding != RAW:
            file.create_dataset(OFFSETS, data=np.array(shard.ends, np.uint64))
        file.create_dataset(LABELS, data=np.array(shard.labels, np.int32))
        file.create_dataset(NAMES, data=shard.names, dtype=h5py.string_dtype())
        file.attrs["split"], file.attrs["index"] = shard.split, shard.index
        file.attrs["encoding"], file.attrs["side"] = layout.encoding, layout.side
        file.attrs["version"] = VERSION
    if around.error is not None:
        raise around.error
    if begin != _array_offset(layout):
        raise RuntimeError(f"HDF5 puts the array at {begin}, not at {_array_offset(layout)}")


@cache
def _array_offset(layout: Layout) -> int:
    """Return where HDF5 puts the array of a shard: it does so in memory."""
    with _hdf5("offset", driver="core", backing_store=False) as file:
        return int(_first_array(file, layout, 1, layout.picture_bytes).id.get_offset())


def _hdf5(path: _Around | str, **options: Any) -> h5py.File:
    """Create an HDF5 file in which every object begins at a multiple of _ALIGNMENT."""
    return h5py.File(
        path,
        "w",
        libver=("earliest", "v108"),
        alignment_threshold=1,
        alignment_interval=_ALIGNMENT,
        **options,
    )


def _first_array(file: h5py.File, layout: Layout, count: int, size: int) -> h5py.Dataset:
    """Create the array of `count` pictures, or of `size` bytes of files, as the first object of a shard.

    It takes its place in the file at once, without content.
    """
    side = layout.side
    shape = (count, side, side, 3) if layout.encoding == RAW else (size,)
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)
    name = (IMAGES if layout.encoding == RAW else FILES).encode()
    space, kind = h5py.h5s.create_simple(shape), h5py.h5t.STD_U8LE
    return h5py.Dataset(h5py.h5d.create(file.id, name, kind, space, properties))
