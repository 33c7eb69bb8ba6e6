# SPDX-License-Identifier: Apache-2.0
"""Batches on the host: the order of the images, split over the devices of a replica.

The order depends only on the trial's seed and the epoch, so that a trial can be repeated anywhere.
:class:`aiperf_mpi.training.steps.devices.Feed` prepares batches ahead and copies them to the devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from aiperf_mpi.data.dataset import Dataset
from aiperf_mpi.streams import DATA, stream


class Batch(NamedTuple):
    """One batch: images uint8 [devices, batch, H, W, C], labels int32 and `valid` bool [devices, batch].

    `valid` is false for zeros that fill up the last batch of a validation.
    """

    images: np.ndarray
    labels: np.ndarray
    valid: np.ndarray


def train_steps(dataset: Dataset, devices: int, batch: int) -> int:
    """Return the number of whole batches in an epoch; the remaining images are not used in this epoch.

    Raises ValueError if there is not even one whole batch.
    """
    steps = len(dataset.train_labels) // (devices * batch)
    if not steps:
        raise ValueError(
            f"{dataset.name}: {len(dataset.train_labels)} training images are fewer than one batch of "
            f"{batch} on each of {devices} devices; lower train.batch_per_device"
        )
    return steps


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return a permutation (int64 [count]) of the training images for one epoch of a trial."""
    return stream(DATA, seed, length=epoch).permutation(count)


#: All devices of a replica.
ALL = slice(None)


def train_batches(
    dataset: Dataset, seed: int, epoch: int, devices: int, batch: int, mine: slice = ALL
) -> Iterator[Batch]:
    """Yield the batches of one epoch: `batch` images on each of `devices`, each at most once, all valid.

    Arguments:
        seed: seed of the trial (`Candidate.seed`).
        epoch: number of the epoch, from 0.
        mine: the devices whose images this process reads; other trainers read the rest.

    Raises ValueError, before the first batch is made, if the data set has no whole batch.
    """
    steps = train_steps(dataset, devices, batch)
    order = epoch_order(len(dataset.train_labels), seed, epoch)[: steps * devices * batch]
    return _train_batches(dataset, order.reshape(steps, devices, batch)[:, mine])


def _train_batches(dataset: Dataset, rows: np.ndarray) -> Iterator[Batch]:
    valid = np.ones(rows.shape[1:], dtype=bool)
    for places in rows:
        yield Batch(dataset.train_images[places], dataset.train_labels[places], valid)


def val_batches(dataset: Dataset, devices: int, batch: int, mine: slice = ALL) -> Iterator[Batch]:
    """Yield the validation images in their order, each once; invalid zeros fill up the last batch.

    `mine` is as in :func:`train_batches`.
    """
    images, labels, size = dataset.val_images, dataset.val_labels, devices * batch
    for start in range(0, len(labels), size):
        valid = np.arange(start, start + size) < len(labels)
        yield Batch(
            _padded(images[start : start + size], size, devices)[mine],
            _padded(labels[start : start + size], size, devices)[mine],
            valid.reshape(devices, batch)[mine],
        )


def _padded(array: np.ndarray, size: int, devices: int) -> np.ndarray:
    """Fill `array` up to `size` rows with zeros and reshape it to [devices, size / devices, ...].

    A full array is not copied.
    """
    if len(array) < size:
        array = np.concatenate([array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)])
    return array.reshape(devices, size // devices, *array.shape[1:])
