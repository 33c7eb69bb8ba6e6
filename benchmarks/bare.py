# SPDX-License-Identifier: Apache-2.0
"""What `loading.py` compares with: the libraries alone, on the same files, pictures and threads."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import simplejpeg
from PIL import Image

from aiperf_mpi.data.packed import PackedImages

#: Height and width of the packed pictures.
SIDE = 256

#: Pictures that a thread takes at a time.
CHUNK = 8


def by_threads(work: Callable[[Sequence[Any]], object], items: Sequence[Any], threads: int) -> int:
    """Do the work on all items, CHUNK at a time; return their number."""
    parts = [items[begin : begin + CHUNK] for begin in range(0, len(items), CHUNK)]
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, parts):
            pass
    return len(items)


def decode_and_resize(files: Sequence[bytes]) -> None:
    """Do to files what packing must do at least."""
    for data in files:
        pixels = simplejpeg.decode_jpeg(data, "RGB")
        height, width = pixels.shape[:2]
        short = min(height, width)
        left, top = (width - short) / 2, (height - short) / 2
        box = (left, top, left + short, top + short)
        Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)


def decode_only(files: Sequence[bytes]) -> None:
    """Decode files, and drop the pixels."""
    for data in files:
        simplejpeg.decode_jpeg(data, "RGB")


def decode_into(array: np.ndarray, files: Sequence[tuple[int, bytes]]) -> None:
    """Decode numbered files, each to its place in the array of a batch, uint8 [batch, SIDE, SIDE, 3]."""
    for number, data in files:
        simplejpeg.decode_jpeg(data, "RGB", buffer=array[number % len(array)])


class Preadv:
    """Reads the same pictures of raw shards as the loader, by preadv alone."""

    def __init__(self, images: PackedImages, batch: int, threads: int) -> None:
        self._images, self._threads = images, threads
        sizes = [len(shard.labels) for shard in images.shards]
        self._first = np.cumsum([0, *sizes])
        self._array = np.empty((batch, *images.shape), np.uint8)
        self._rows = [memoryview(one).cast("B") for one in self._array]

    def read(self, places: Sequence[tuple[int, int, int]]) -> None:
        """Read pictures: row of the array, descriptor, offset in the file."""
        for row, descriptor, offset in places:
            assert os.preadv(descriptor, [self._rows[row]], offset) == SIDE * SIDE * 3

    def read_all(self, batches: Iterable[np.ndarray]) -> int:
        """Read batches, each whole before the next one; return the number of pictures."""
        done = 0
        with ThreadPoolExecutor(self._threads) as pool:
            for places in batches:
                work = self._work(places)
                if self._threads == 1:
                    self.read(work)
                else:
                    list(pool.map(self.read, [work[part :: self._threads] for part in range(self._threads)]))
                done += len(places)
        return done

    def _work(self, places: np.ndarray) -> list[tuple[int, int, int]]:
        numbers = np.searchsorted(self._first, places, side="right") - 1
        shards = self._images.shards
        return [
            (
                row,
                shards[one].descriptor,
                shards[one].offset + int(place - self._first[one]) * SIDE * SIDE * 3,
            )
            for row, (one, place) in enumerate(zip(numbers.tolist(), places.tolist(), strict=True))
        ]


def fancy(images: PackedImages, batches: Iterable[np.ndarray]) -> int:
    """Read batches by h5py's fancy indexing, the places of each shard in their order; return the number."""
    first, done = np.cumsum([0, *(len(shard.labels) for shard in images.shards)]), 0
    for places in batches:
        numbers = np.searchsorted(first, places, side="right") - 1
        for one in np.unique(numbers):
            with h5py.File(images.shards[one].path) as file:
                done += len(file["images"][np.sort(places[numbers == one] - first[one])])
    return done


def as_tar(packed: Path) -> Path:
    """Return a tar of the training pictures of a packed set and their labels, next to the set."""
    path, count = packed.with_suffix(".tar"), 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for shard in sorted(packed.glob("train-*.h5")):
            with h5py.File(shard) as file:
                data, ends, labels = file["jpeg"][...].tobytes(), file["offsets"][...], file["labels"][...]
            for begin, end, label in zip(ends[:-1].tolist(), ends[1:].tolist(), labels.tolist(), strict=True):
                for name, content in (("jpg", data[begin:end]), ("cls", str(label).encode())):
                    info = tarfile.TarInfo(f"{count:06d}.{name}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                count += 1
    return path
