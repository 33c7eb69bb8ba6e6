# SPDX-License-Identifier: Apache-2.0
"""The data set `synthetic`: made-up images of any shape and number, to measure a machine without real images.

The host gives each image a number, and the device makes its pixels inside the step, so that they cost neither
memory nor time of the host. An image follows from the run's seed and its number alone, on any machine. Each
class has a coarse pattern, and an image is half that pattern, half noise. A network can learn it, so that
everything behaves as in training, but its error has no meaning. Such a run is at best a valid trial.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.config.datasets import DATASETS, LABEL_BYTES
from aiperf_mpi.data.dataset import Dataset
from aiperf_mpi.machine.limits import available_bytes

#: Version of the recipe below; it is part of the hash.
RECIPE = "synthetic/2"

#: Side of a class's pattern in cells, each of which covers a square of the image.
CELLS = 8

#: Number of the first validation image; those of training images are less.
FIRST_VALIDATION = 2**31

#: Bits of the pattern and of the noise in a pixel, which is their sum: 0 to 254.
BITS = 7

#: Mean and deviation of a pixel, scaled to 0..1: of the sum of two numbers, each uniform in 0 to 2^BITS - 1.
MEAN = (2**BITS - 1) / 255
DEVIATION = math.sqrt(2 * (4**BITS - 1) / 12) / 255

#: An odd number near 2^32 times the golden ratio: its multiples are far apart (Knuth, TAOCP 3, section 6.4).
_SPREAD = np.uint32(0x9E3779B9)


@dataclass(frozen=True, slots=True)
class MadeImages:
    """The images of one seed, which a step makes from their numbers."""

    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class NumberedImages:
    """Images that a device makes: what goes to it is the number of each, uint32, from `first` on.

    Attributes:
        labels: int32 [N], all classes in turn: that of an image follows from its number, see `classes_of`.
    """

    labels: np.ndarray
    first: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a number."""
        return ()

    @property
    def dtype(self) -> np.dtype:
        """The type of a number."""
        return np.dtype(np.uint32)

    def read(self, places: np.ndarray, out: np.ndarray) -> int:
        """Write the numbers of the images at `places` to `out`; no file is read."""
        np.add(places, self.first, out=out, casting="unsafe")
        return 0


def check(config: Config) -> None:
    """Do nothing: the images are made from the seed."""


def load(config: Config) -> Dataset:
    """Return the numbers and labels of the images that `run.seed` and the shapes in `data` determine.

    Raises ConfigError if they do not fit into the memory that this host has left.
    """
    data = config.data
    needed = (data.train_images + data.val_images) * LABEL_BYTES
    if needed > (free := available_bytes()):
        raise ConfigError(
            f"data.train_images: the labels of {data.train_images} made-up images take {needed / 2**30:.1f} "
            f"GiB, but {free / 2**30:.1f} GiB of memory are free; lower it"
        )

    shape = (data.stored_side, data.stored_side, data.channels)
    recipe = f"{RECIPE} {config.run.seed} {data.train_images} {data.val_images} {shape} {data.classes}"
    train, val = (
        NumberedImages(np.resize(np.arange(min(data.classes, count), dtype=np.int32), count), first)
        for count, first in ((data.train_images, 0), (data.val_images, FIRST_VALIDATION))
    )
    sha256 = hashlib.sha256(recipe.encode()).hexdigest()
    return Dataset("synthetic", train, val, data.classes, sha256, (MEAN,), (DEVIATION,))


def made_images(config: Config) -> MadeImages | None:
    """Return what a step needs to make its images; None if they come from the host."""
    return MadeImages(config.run.seed) if DATASETS[config.data.name].made else None


# -- the recipe: the same integers by numpy and by JAX -----------------------------------------------


def pixels(numbers: Any, made: MadeImages, shape: tuple[int, int, int], classes: int, xp: Any = np) -> Any:
    """Return the images uint8 [N, height, width, channels] of the numbers uint32 [N].

    A pixel is a hash of its class and cell plus a hash of its image and place, BITS bits of each.

    Arguments:
        shape: height, width and channels of an image.
        xp: the module that computes, numpy or jax.numpy.
    """
    height, width, channels = shape
    first, second = _seeds(made.seed)

    # The pattern: cells, each of which covers a rectangle of pixels; the last may be cut off.
    of_class = _mixed(classes_of(numbers, classes, xp) ^ first)
    cell = xp.arange(CELLS * CELLS * channels, dtype=xp.uint32).reshape(CELLS, 1, CELLS, 1, channels)
    pattern = _mixed(cell * _SPREAD + of_class.reshape(-1, 1, 1, 1, 1, 1)) >> np.uint32(32 - BITS)
    high, wide = -(-height // CELLS), -(-width // CELLS)
    pattern = xp.broadcast_to(pattern, (len(numbers), CELLS, high, CELLS, wide, channels))
    pattern = pattern.reshape(len(numbers), CELLS * high, CELLS * wide, channels)[:, :height, :width]

    place = xp.arange(height * width * channels, dtype=xp.uint32).reshape(shape)
    of_image = _mixed(numbers ^ second).reshape(-1, 1, 1, 1)
    noise = _mixed(place * _SPREAD + of_image) >> np.uint32(32 - BITS)
    return (pattern + noise).astype(xp.uint8)


def classes_of(numbers: Any, classes: int, xp: Any = np) -> Any:
    """Return the classes uint32 [N] of images by their numbers: all in turn, in either split."""
    return (numbers & np.uint32(FIRST_VALIDATION - 1)) % xp.uint32(classes)


def _mixed(words: Any) -> Any:
    """Return uint32 words of which each bit depends on each bit of `words` (the last step of MurmurHash3)."""
    words = (words ^ (words >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    words = (words ^ (words >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return words ^ (words >> np.uint32(16))


def _seeds(seed: int) -> tuple[np.uint32, np.uint32]:
    """Return the words of a run's seed for the patterns and for the noise."""
    words = np.random.SeedSequence(seed).generate_state(2)
    return words[0], words[1]
