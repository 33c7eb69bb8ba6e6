# SPDX-License-Identifier: Apache-2.0
"""The data set `synthetic`: made-up images of any shape, to measure a machine without real images.

Each class has a coarse random pattern; an image is half that pattern, half noise. A network can learn it, so
that everything behaves as in training, but its error has no meaning. A run on these images is at best a valid
trial.
"""

from __future__ import annotations

import hashlib

import numpy as np

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.data.dataset import Dataset, in_memory
from aiperf_mpi.machine.limits import available_bytes

#: Version of the recipe below; it is part of the hash.
_RECIPE = "synthetic/1"

#: Side of a class's pattern in cells, before it is stretched over the image.
_CELLS = 8

#: Images made at a time: bounds the memory in addition to the result.
_CHUNK = 256


def check(config: Config) -> None:
    """Do nothing: the images are made from the seed."""


def load(config: Config) -> Dataset:
    """Return the images and labels that `run.seed` and the shapes in `data` determine.

    Raises ConfigError if they do not fit into the memory that this host has left.
    """
    data = config.data
    needed = (data.train_images + data.val_images) * data.image_size**2 * data.channels
    if needed > (free := available_bytes()):
        raise ConfigError(
            f"data.train_images: {data.train_images} made-up images of {data.image_size} x "
            f"{data.image_size} x {data.channels} take {needed / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB "
            f"of memory are free; lower it"
        )

    shape = (data.image_size, data.image_size, data.channels)
    streams = np.random.SeedSequence(config.run.seed).spawn(3)
    patterns = np.random.default_rng(streams[0]).integers(
        0, 128, (data.classes, _CELLS, _CELLS, data.channels), dtype=np.uint8
    )
    train = _make(patterns, data.train_images, shape, np.random.default_rng(streams[1]))
    val = _make(patterns, data.val_images, shape, np.random.default_rng(streams[2]))
    recipe = f"{_RECIPE} {config.run.seed} {data.train_images} {data.val_images} {shape} {data.classes}"
    sha256 = hashlib.sha256(recipe.encode()).hexdigest()
    return in_memory("synthetic", train, val, data.classes, sha256)


def _make(
    patterns: np.ndarray, count: int, shape: tuple[int, int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Make `count` images (uint8) and their labels (int32), all classes equally often, in random order."""
    labels = rng.permutation(np.arange(count, dtype=np.int64) % len(patterns)).astype(np.int32)
    cells = np.arange(shape[0]) * _CELLS // shape[0]
    images = np.empty((count, *shape), dtype=np.uint8)
    for start in range(0, count, _CHUNK):
        part = images[start : start + _CHUNK]
        noise = np.frombuffer(rng.bytes(part.size), dtype=np.uint8).reshape(part.shape)
        np.right_shift(noise, 1, out=part)
        part += patterns[labels[start : start + _CHUNK]].take(cells, axis=2).take(cells, axis=1)
    return images, labels
