# SPDX-License-Identifier: Apache-2.0
"""The data set `cifar10`: CIFAR-10 in its published binary version (https://www.cs.toronto.edu/~kriz/cifar.html).

Six files of 10,000 records; a record is one byte of label and 3072 bytes of pixels, colour by colour, row by
row.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.config.paths import existing_folder, expanded, message, readable_file, reading
from aiperf_mpi.data.dataset import Dataset, in_memory
from aiperf_mpi.files import read_bytes

FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
VAL_FILE = "test_batch.bin"

_SIDE, _CHANNELS, _CLASSES, _RECORDS = 32, 3, 10, 10_000
_RECORD_BYTES = 1 + _CHANNELS * _SIDE * _SIDE
_FILE_BYTES = _RECORDS * _RECORD_BYTES
_SETTING = "data.path"
_FETCH = (
    "download the binary version, cifar-10-binary.tar.gz, from https://www.cs.toronto.edu/~kriz/cifar.html, "
    f"unpack it, and pass --set data.path=.../{FOLDER}"
)


def find_files(path: str) -> list[Path]:
    """Return the six files in `path`, or in its sub-folder of the published name, training files first.

    Raises ConfigError if a file is missing, cannot be read, or has the wrong size.
    """
    if not path:
        raise ConfigError(
            f"data.path: it is empty, but data.name = 'cifar10' needs the folder of CIFAR-10; {_FETCH}"
        )
    folder = existing_folder(_SETTING, expanded(_SETTING, path), _FETCH)
    if os.path.lexists(folder / FOLDER):
        folder = existing_folder(_SETTING, folder / FOLDER, _FETCH)

    files = [folder / name for name in (*TRAIN_FILES, VAL_FILE)]
    for file in files:
        _check_size(file, readable_file(_SETTING, file, _FETCH))
    return files


def _check_size(file: Path, size: int) -> None:
    """Raise ConfigError if a file of the data set does not have the published size."""
    if size != _FILE_BYTES:
        reason = f"has {size} bytes instead of {_FILE_BYTES}: it is damaged, or not the binary version"
        raise ConfigError(message(_SETTING, file, reason, _FETCH))


def check(config: Config) -> None:
    """Check that all files can be opened and have the right size. Raises ConfigError otherwise."""
    find_files(config.data.path)


def load(config: Config) -> Dataset:
    """Return the training images and, for validation, the test images, or the first of each."""
    digest = hashlib.sha256()
    images, labels = [], []
    for file in find_files(config.data.path):
        with reading(_SETTING, file, _FETCH):
            raw = read_bytes(file, _FILE_BYTES)
        # The file may have changed since its size was checked.
        _check_size(file, len(raw))
        digest.update(raw)
        records = np.frombuffer(raw, dtype=np.uint8).reshape(_RECORDS, _RECORD_BYTES)
        if (largest := records[:, 0].max()) >= _CLASSES:
            reason = f"has the label {largest}, but the labels of CIFAR-10 are 0 to {_CLASSES - 1}"
            raise ConfigError(message(_SETTING, file, reason, _FETCH))
        labels.append(records[:, 0].astype(np.int32))
        images.append(records[:, 1:].reshape(-1, _CHANNELS, _SIDE, _SIDE).transpose(0, 2, 3, 1))

    train, val = config.data.train_images, config.data.val_images
    return in_memory(
        "cifar10",
        (np.concatenate(images[:-1])[:train], np.concatenate(labels[:-1])[:train]),
        (np.ascontiguousarray(images[-1][:val]), labels[-1][:val]),
        _CLASSES,
        digest.hexdigest(),
    )
