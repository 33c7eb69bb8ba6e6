# SPDX-License-Identifier: Apache-2.0
"""The data set `digits`: 1,797 handwritten digits that come with scikit-learn; nothing is downloaded."""

from __future__ import annotations

import numpy as np

from aiperf_mpi.config import Config
from aiperf_mpi.config.datasets import DATASETS
from aiperf_mpi.data.dataset import Dataset, content_sha256, in_memory

#: scikit-learn's digits have grey values from 0 to 16.
_WHITE = 16


def check(config: Config) -> None:
    """Do nothing: the digits come with scikit-learn."""


def load(config: Config) -> Dataset:
    """Return the digits, enlarged to `data.image_size`, in a fixed split into training and validation."""
    # scikit-learn takes a second to import.
    from sklearn.datasets import load_digits as sklearn_digits

    data = config.data
    bunch = sklearn_digits()
    labels = bunch.target.astype(np.int32)
    images = enlarge(bunch.images * (255 / _WHITE), data.image_size, data.channels)

    chosen = validation_split(labels, DATASETS["digits"].images[1])
    train_rows, val_rows = (
        np.flatnonzero(~chosen)[: data.train_images],
        np.flatnonzero(chosen)[: data.val_images],
    )
    train, val = (images[train_rows], labels[train_rows]), (images[val_rows], labels[val_rows])
    return in_memory("digits", train, val, data.classes, content_sha256(*train, *val))


def validation_split(labels: np.ndarray, count: int) -> np.ndarray:
    """Return a mask (bool [N]) that selects `count` images for validation.

    Each class gives its share, evenly spaced in the file's order. No random numbers are used, so that the
    split is the same with every version of every library.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    shares = sizes * count / len(labels)
    quota = np.floor(shares).astype(int)
    largest_remainders = np.argsort(quota - shares, kind="stable")[: count - quota.sum()]
    quota[largest_remainders] += 1

    mask = np.zeros(len(labels), dtype=bool)
    for label, size, wanted in zip(classes, sizes, quota, strict=True):
        places = ((np.arange(wanted) + 0.5) * size / wanted).astype(int)
        mask[np.flatnonzero(labels == label)[places]] = True
    return mask


def enlarge(images: np.ndarray, size: int, channels: int) -> np.ndarray:
    """Resize square grey images (float [N, S, S], 0 to 255) linearly to uint8 [N, size, size, channels]."""
    weights = _interpolation(images.shape[1], size)
    larger = np.einsum("ai,nij,bj->nab", weights, images, weights, optimize=True)
    grey = np.clip(np.rint(larger), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], channels, axis=-1)


def _interpolation(old: int, new: int) -> np.ndarray:
    """Return the matrix [new, old] of linear interpolation between pixel centres.

    Outside of the outermost centres, the outermost pixel is repeated.
    """
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    left = np.minimum(centres.astype(int), old - 2)
    weights = np.zeros((new, old))
    rows = np.arange(new)
    weights[rows, left] = 1 - (centres - left)
    weights[rows, left + 1] = centres - left
    return weights
