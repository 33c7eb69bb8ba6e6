# SPDX-License-Identifier: Apache-2.0
"""Batches on the host: which image comes when, split over the devices of a replica.

The order of an epoch depends on the trial's seed and the epoch alone, so that a trial can be repeated
anywhere. What runs ahead, and the way to the devices, is :class:`aiperf_mpi.training.steps.devices.Feed`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from aiperf_mpi.data.dataset import Dataset
from aiperf_mpi.streams import DATA, stream


class Batch(NamedTuple):
    """Images uint8 [devices, batch, H, W, C], labels int32 [devices, batch], and `valid` bool [devices,
    batch]: false for images that only fill up the last batch of a validation."""

    images: np.ndarray
    labels: np.ndarray
    valid: np.ndarray


def train_steps(dataset: Dataset, devices: int, batch: int) -> int:
    """Whole batches of an epoch; the images left over wait for another epoch's order.

    Raises ValueError where there is not even one.
    """
    steps = len(dataset.train_labels) // (devices * batch)
    if not steps:
        raise ValueError(
            f"{dataset.name}: {len(dataset.train_labels)} training images are fewer than one batch of "
            f"{batch} on each "
            f"of {devices} devices; lower train.batch_per_device"
        )
    return steps


def val_steps(dataset: Dataset, devices: int, batch: int) -> int:
    """Batches of a validation, the last of them padded."""
    return -(-len(dataset.val_labels) // (devices * batch))


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation (int64 [count]) of the training images for one epoch of the trial with this seed."""
    return stream(DATA, seed, length=epoch).permutation(count)


#: All devices of a replica.
ALL = slice(None)


def train_batches(
    dataset: Dataset, seed: int, epoch: int, devices: int, batch: int, mine: slice = ALL
) -> Iterator[Batch]:
    """The batches of one epoch: `batch` images on each of `devices`, every image at most once, all valid.

    Arguments:
        seed: of the trial (`Candidate.seed`).
        epoch: from 0.
        mine: which of the devices' images are read, where others read the rest.

    Raises ValueError, before the first batch is made, where the data set has no whole batch.
    """
    steps = train_steps(dataset, devices, batch)
    order = epoch_order(len(dataset.train_labels), seed, epoch)[: steps * devices * batch]
    return _train_batches(dataset, order.reshape(steps, devices, batch)[:, mine])


def _train_batches(dataset: Dataset, rows: np.ndarray) -> Iterator[Batch]:
    valid = np.ones(rows.shape[1:], dtype=bool)
    for places in rows:
        yield Batch(dataset.train_images[places], dataset.train_labels[places], valid)


def val_batches(dataset: Dataset, devices: int, batch: int, mine: slice = ALL) -> Iterator[Batch]:
    """The validation images in their order, each once and valid; zeros that are not valid fill up the last
    batch. `mine` as in `train_batches`."""
    images, labels, size = dataset.val_images, dataset.val_labels, devices * batch
    for start in range(0, len(labels), size):
        valid = np.arange(start, start + size) < len(labels)
        yield Batch(
            _padded(images[start : start + size], size, devices)[mine],
            _padded(labels[start : start + size], size, devices)[mine],
            valid.reshape(devices, batch)[mine],
        )


def _padded(array: np.ndarray, size: int, devices: int) -> np.ndarray:
    """`array` with zeros behind it up to `size` rows, as [devices, size / devices, ...]; no copy if it is
    whole."""
    if len(array) < size:
        array = np.concatenate([array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)])
    return array.reshape(devices, size // devices, *array.shape[1:])
