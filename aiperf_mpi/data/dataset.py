# SPDX-License-Identifier: Apache-2.0
"""The form of every data set: images and labels in memory, and a hash of the content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

#: Pixels used for mean and deviation: enough for three digits, and fast with large images.
_MOMENT_PIXELS = 2**22


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Images and labels for training and for validation; no image is in both.

    Attributes:
        name: name of the data set, as in `data.name`.
        train_images, val_images: uint8 [images, height, width, channels].
        train_labels, val_labels: int32 [images], 0 <= label < classes.
        classes: number of classes.
        sha256: hash of the content (of the recipe, for made-up images), in hexadecimal digits.
        mean, deviation: mean and deviation of each channel, scaled to 0..1; see :func:`moments`.

    Raises ValueError if an array has another dtype or shape, or a label is out of range.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    val_images: np.ndarray
    val_labels: np.ndarray
    classes: int
    sha256: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __post_init__(self) -> None:
        for split, images, labels in (
            ("training", self.train_images, self.train_labels),
            ("validation", self.val_images, self.val_labels),
        ):
            if images.dtype != np.uint8 or images.ndim != 4:
                raise ValueError(
                    f"{self.name}: {split} images are {images.dtype} {images.shape}, not uint8 [N,H,W,C]"
                )
            if labels.dtype != np.int32 or labels.shape != images.shape[:1] or not len(labels):
                raise ValueError(
                    f"{self.name}: {split} labels are {labels.dtype} {labels.shape}, not int32 [N]"
                )
            if labels.min() < 0 or labels.max() >= self.classes:
                raise ValueError(f"{self.name}: a {split} label is outside of 0..{self.classes - 1}")
        if self.train_images.shape[1:] != self.val_images.shape[1:]:
            raise ValueError(f"{self.name}: training and validation images differ in shape")


def moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of the first images (uint8 [N, H, W, C]), in 0..1.

    A channel that never changes gets the deviation 1, so that dividing by it is safe.
    """
    count = max(1, _MOMENT_PIXELS // (images.shape[1] * images.shape[2]))
    sample = images[:count].reshape(-1, images.shape[-1])
    mean, deviation = sample.mean(axis=0) / 255, sample.std(axis=0) / 255
    return tuple(mean.tolist()), tuple(np.where(deviation > 0, deviation, 1.0).tolist())


def content_sha256(*arrays: np.ndarray) -> str:
    """Return the SHA-256 of dtype, shape and bytes of the arrays in order, in hexadecimal digits."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
