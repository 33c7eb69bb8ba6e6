# SPDX-License-Identifier: Apache-2.0
"""Batches on the host: the order of the images, split over the devices of a replica, read by threads.

The order depends only on the trial's seed and the epoch, so that a trial can be repeated anywhere.
:class:`aiperf_mpi.training.steps.devices.Feed` takes batches ahead and copies them to the devices.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from aiperf_mpi.data.dataset import Dataset, Images
from aiperf_mpi.streams import DATA, stream

#: Batches that are read while the one before them is used.
BATCHES_AHEAD = 1

#: Bytes of a batch that one thread reads at a time, at least: handing over costs as much as 10 kB.
_PART_BYTES = 1 << 19

#: All devices of a replica.
ALL = slice(None)


class Batch(NamedTuple):
    """One batch: images [devices, batch, *shape], labels int32 and `valid` bool [devices, batch].

    `valid` is false for zeros that fill up the last batch of a validation.
    """

    images: np.ndarray
    labels: np.ndarray
    valid: np.ndarray


class Rows(NamedTuple):
    """What a batch will hold: places of its images int64 [devices, batch], and `valid` as in Batch."""

    places: np.ndarray
    valid: np.ndarray


# -- the order of the images -----------------------------------------------------------------------


def train_steps(dataset: Dataset, devices: int, batch: int) -> int:
    """Return the number of whole batches in an epoch; the remaining images are not used in this epoch.

    Raises ValueError if there is not even one whole batch.
    """
    steps = len(dataset.train.labels) // (devices * batch)
    if not steps:
        raise ValueError(
            f"{dataset.name}: {len(dataset.train.labels)} training images are fewer than one batch of "
            f"{batch} on each of {devices} devices; lower train.batch_per_device"
        )
    return steps


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return a permutation (int64 [count]) of the training images for one epoch of a trial."""
    return stream(DATA, seed, length=epoch).permutation(count)


def train_rows(
    dataset: Dataset, seed: int, epoch: int, devices: int, batch: int, mine: slice = ALL
) -> Iterator[Rows]:
    """Return the rows of each batch of one epoch, see :func:`train_batches`."""
    steps = train_steps(dataset, devices, batch)
    order = epoch_order(len(dataset.train.labels), seed, epoch)[: steps * devices * batch]
    places = order.reshape(steps, devices, batch)[:, mine]
    valid = np.ones(places.shape[1:], dtype=bool)
    return (Rows(one, valid) for one in places)


def val_rows(dataset: Dataset, devices: int, batch: int, mine: slice = ALL) -> Iterator[Rows]:
    """Yield the rows of each batch of a validation, see :func:`val_batches`."""
    count, size = len(dataset.val.labels), devices * batch
    for start in range(0, count, size):
        places = np.arange(start, start + size).reshape(devices, batch)[mine]
        yield Rows(places, places < count)


# -- reading ---------------------------------------------------------------------------------------


@dataclass
class Reader:
    """Threads that read the images of batches, one batch ahead of its use. It serves all trials of a trainer.

    Arguments:
        workers: number of threads.
        reuse: whether the arrays of a batch are written again once the next one is asked for. It saves the
            kernel from clearing new memory for each batch. A CPU device keeps using the host's memory.

    Attributes:
        bytes_read: bytes read from files for the batches that were handed over.
    """

    workers: int
    reuse: bool = False
    _pool: ThreadPoolExecutor = field(init=False, repr=False)
    bytes_read: int = field(default=0, init=False)
    _free: list[np.ndarray] = field(default_factory=list, init=False, repr=False)
    #: Batches of training and of validation, and of the next trial, may be read at the same time.
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="images")

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def batches(self, images: Images, rows: Iterable[Rows]) -> Iterator[Batch]:
        """Yield the batch of each of `rows`. It raises the error of a thread that could not read."""
        begun: deque[_Begun] = deque()
        try:
            for one in rows:
                begun.append(self._begin(images, one))
                if len(begun) > BATCHES_AHEAD:
                    yield from self._finish(begun)
            while begun:
                yield from self._finish(begun)
        finally:
            # No thread writes to an array that is given back.
            for batch in begun:
                batch.cancel()
                self._give_back(batch.batch.images)

    def _begin(self, images: Images, rows: Rows) -> _Begun:
        """Start to read a batch."""
        shape, dtype = (*rows.places.shape, *images.shape), images.dtype
        array = self._take(shape, dtype)
        flat, valid = array.reshape(-1, *images.shape), rows.valid.ravel()
        # Only the end of a batch can be padding.
        count = int(valid.sum())
        flat[count:] = 0
        labels = np.zeros(rows.places.shape, np.int32)
        labels.ravel()[:count] = images.labels[rows.places.ravel()[:count]]

        batch, places = Batch(array, labels, rows.valid), rows.places.ravel()[:count]
        parts = min(2 * self.workers, count, flat[:count].nbytes // _PART_BYTES)
        if parts < 2 and flat.nbytes < _PART_BYTES:
            return _Begun(batch, (), images.read(places, flat[:count]))
        cuts = np.linspace(0, count, max(1, parts) + 1).astype(int)
        futures = [
            self._pool.submit(images.read, places[begin:end], flat[begin:end])
            for begin, end in zip(cuts[:-1], cuts[1:], strict=True)
        ]
        return _Begun(batch, tuple(futures))

    def _finish(self, begun: deque[_Begun]) -> Iterator[Batch]:
        """Yield the oldest batch once it is read; take its array back after its use."""
        read = begun[0].read + sum(future.result() for future in begun[0].futures)
        batch = begun.popleft().batch
        with self._lock:
            self.bytes_read += read
        try:
            yield batch
        finally:
            self._give_back(batch.images)

    def _take(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return an array of this form; the free ones of another form are forgotten."""
        with self._lock:
            self._free = [array for array in self._free if (array.shape, array.dtype) == (shape, dtype)]
            return self._free.pop() if self._free else np.empty(shape, dtype)

    def _give_back(self, array: np.ndarray) -> None:
        if self.reuse:
            with self._lock:
                self._free.append(array)


@dataclass(frozen=True, slots=True)
class _Begun:
    """A batch that is being read, the threads' parts of it, and bytes that were read without a thread."""

    batch: Batch
    futures: tuple[Future[int], ...]
    read: int = 0

    def cancel(self) -> None:
        """Return once no thread reads it any more."""
        for future in self.futures:
            if not future.cancel():
                future.exception()


def train_batches(
    dataset: Dataset,
    seed: int,
    epoch: int,
    devices: int,
    batch: int,
    mine: slice = ALL,
    reader: Reader | None = None,
) -> Iterator[Batch]:
    """Return the batches of one epoch: `batch` images on each of `devices`, each at most once, all valid.

    Arguments:
        seed: seed of the trial (`Candidate.seed`).
        epoch: number of the epoch, from 0.
        mine: the devices whose images this process reads; other trainers read the rest.
        reader: reads the images; without one, a thread that lives as long as the batches does.

    Raises ValueError, before the first batch is made, if the data set has no whole batch.
    """
    return _batches(dataset.train, train_rows(dataset, seed, epoch, devices, batch, mine), reader)


def val_batches(
    dataset: Dataset, devices: int, batch: int, mine: slice = ALL, reader: Reader | None = None
) -> Iterator[Batch]:
    """Return the validation images in their order, each once; invalid zeros fill up the last batch.

    `mine` and `reader` are as in :func:`train_batches`.
    """
    return _batches(dataset.val, val_rows(dataset, devices, batch, mine), reader)


def _batches(images: Images, rows: Iterator[Rows], reader: Reader | None) -> Iterator[Batch]:
    if reader is not None:
        return reader.batches(images, rows)
    return _read_alone(images, rows)


def _read_alone(images: Images, rows: Iterator[Rows]) -> Iterator[Batch]:
    with closing(Reader(1)) as reader:
        yield from reader.batches(images, rows)
