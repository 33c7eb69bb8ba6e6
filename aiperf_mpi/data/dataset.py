# SPDX-License-Identifier: Apache-2.0
"""The form of every data set: images and labels, in memory or read as needed, and a hash of the content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from aiperf_mpi.data.manifest import LabelFacts, Manifest

#: Pixels used for mean and deviation: enough for three digits, and fast with large images.
_MOMENT_PIXELS = 2**22


class Images(Protocol):
    """The images of one split, wherever they are.

    Attributes:
        labels: int32 [N].
        shape, dtype: of one image as it goes to a device: uint8 [height, width, channels], or for pictures
            that the device makes, their numbers: uint32 [].
    """

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def read(self, places: np.ndarray, out: np.ndarray) -> int:
        """Write the images at `places` (int64 [n]) to `out` [n, *shape]; several threads may do so.

        Return the number of bytes that were read from files.
        """


@dataclass(frozen=True, slots=True, eq=False)
class ArrayImages:
    """Images in memory, uint8 [N, height, width, channels], and their labels, int32 [N].

    Raises ValueError if an array has another dtype or shape.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(f"images are {self.images.dtype} {self.images.shape}, not uint8 [N,H,W,C]")
        if (
            self.labels.dtype != np.int32
            or self.labels.shape != self.images.shape[:1]
            or not len(self.labels)
        ):
            raise ValueError(f"labels are {self.labels.dtype} {self.labels.shape}, not int32 [N]")

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width and channels."""
        return self.images.shape[1:]

    @property
    def dtype(self) -> np.dtype:
        """The type of a pixel."""
        return self.images.dtype

    def read(self, places: np.ndarray, out: np.ndarray) -> int:
        """Copy the images at `places` to `out`. Raises IndexError for a place outside of the set."""
        # Without `clip`, numpy copies twice; it would hide a wrong place, however.
        if len(places) and not 0 <= places.min() <= places.max() < len(self.labels):
            raise IndexError(f"a place is outside of the {len(self.labels)} images")
        np.take(self.images, places, axis=0, out=out, mode="clip")
        return 0


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Images and labels for training and for validation; no image is in both.

    Attributes:
        name: name of the data set, as in `data.name`.
        train, val: images and labels of the two splits, 0 <= label < classes.
        classes: number of classes.
        sha256: hash of the content (of the recipe, for made-up images), in hexadecimal digits.
        mean, deviation: mean and deviation of each channel, scaled to 0..1; see :func:`moments`.
        manifest: of a packed set; else None.
        labels: of a packed set that has a reference; else None.

    Raises ValueError if the splits differ in shape or type, or a label is out of range.
    """

    name: str
    train: Images
    val: Images
    classes: int
    sha256: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    manifest: Manifest | None = None
    labels: LabelFacts | None = None

    def __post_init__(self) -> None:
        for split, images in (("training", self.train), ("validation", self.val)):
            if images.labels.min() < 0 or images.labels.max() >= self.classes:
                raise ValueError(f"{self.name}: a {split} label is outside of 0..{self.classes - 1}")
        if (self.train.shape, self.train.dtype) != (self.val.shape, self.val.dtype):
            raise ValueError(f"{self.name}: training and validation images differ in shape")

    @property
    def record(self) -> str:
        """The manifest and the labels of a packed set as a result stores them; `{}` for any other set."""
        return self.manifest.to_record(self.labels) if self.manifest is not None else "{}"

    def val_sample(self, count: int) -> np.ndarray:
        """Return the first validation images, at most `count`, as they go to a device."""
        places = np.arange(min(count, len(self.val.labels)))
        images = np.empty((len(places), *self.val.shape), self.val.dtype)
        self.val.read(places, images)
        return images


def in_memory(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    classes: int,
    sha256: str,
) -> Dataset:
    """Return the data set of images in memory; `train` and `val` are images (uint8) and labels (int32)."""
    return Dataset(name, ArrayImages(*train), ArrayImages(*val), classes, sha256, *moments(train[0]))


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
