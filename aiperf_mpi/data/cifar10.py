# SPDX-License-Identifier: Apache-2.0
"""The data set `cifar10`: CIFAR-10 in its published binary version (https://www.cs.toronto.edu/~kriz/cifar.html).

Six files of 10,000 records; a record is one byte of label and 3072 bytes of pixels, colour by colour, row by
row.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.data.dataset import Dataset, moments

FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
VAL_FILE = "test_batch.bin"

_SIDE, _CHANNELS, _CLASSES, _RECORDS = 32, 3, 10, 10_000
_RECORD_BYTES = 1 + _CHANNELS * _SIDE * _SIDE
_FETCH = (
    "download the binary version, cifar-10-binary.tar.gz, from https://www.cs.toronto.edu/~kriz/cifar.html, "
    f"unpack it, and pass --set data.path=.../{FOLDER}"
)


def find_files(path: str) -> list[Path]:
    """Return the six files in `path`, or in its sub-folder of the published name, training files first.

    Raises ConfigError if a file is missing or has the wrong size.
    """
    if not path:
        raise ConfigError(
            f"data.path: it is empty, but data.name = 'cifar10' needs the folder of CIFAR-10; {_FETCH}"
        )
    folder = Path(path)
    if (folder / FOLDER).is_dir():
        folder = folder / FOLDER
    if not folder.is_dir():
        raise ConfigError(f"data.path: {folder} is not a folder; {_FETCH}")

    files = [folder / name for name in (*TRAIN_FILES, VAL_FILE)]
    for file in files:
        if not file.is_file():
            raise ConfigError(f"data.path: {file} is missing; {_FETCH}")
        if (size := file.stat().st_size) != _RECORDS * _RECORD_BYTES:
            raise ConfigError(
                f"data.path: {file} has {size} bytes instead of {_RECORDS * _RECORD_BYTES}: it is damaged, "
                f"or not the binary version; {_FETCH}"
            )
    return files


def check(config: Config) -> None:
    """Check that all files are there and have the right size. Raises ConfigError otherwise."""
    find_files(config.data.path)


def load(config: Config) -> Dataset:
    """Return the training images and, for validation, the test images, or the first of each."""
    digest = hashlib.sha256()
    images, labels = [], []
    for file in find_files(config.data.path):
        raw = file.read_bytes()
        digest.update(raw)
        records = np.frombuffer(raw, dtype=np.uint8).reshape(_RECORDS, _RECORD_BYTES)
        if records[:, 0].max() >= _CLASSES:
            raise ConfigError(
                f"data.path: {file} holds the label {records[:, 0].max()}, but CIFAR-10 has {_CLASSES}"
            )
        labels.append(records[:, 0].astype(np.int32))
        images.append(records[:, 1:].reshape(-1, _CHANNELS, _SIDE, _SIDE).transpose(0, 2, 3, 1))

    train, val = config.data.train_images, config.data.val_images
    parts = (
        np.concatenate(images[:-1])[:train],
        np.concatenate(labels[:-1])[:train],
        np.ascontiguousarray(images[-1][:val]),
        labels[-1][:val],
    )
    return Dataset("cifar10", *parts, _CLASSES, digest.hexdigest(), *moments(parts[0]))
