# SPDX-License-Identifier: Apache-2.0
"""A stand-in for CIFAR-10: files in the published layout, of random pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from aiperf_mpi.data import cifar10


def write_batches(folder: Path) -> np.ndarray:
    """Write the binary version (https://www.cs.toronto.edu/~kriz/cifar.html) into a new folder.

    Return its records uint8 [60000, 3073]: a label, and 1024 values of each colour; validation comes last.
    """
    folder.mkdir()
    records = np.random.default_rng(0).integers(0, 256, (60_000, 3073), dtype=np.uint8)
    records[:, 0] %= 10
    for number, name in enumerate([*cifar10.TRAIN_FILES, cifar10.VAL_FILE]):
        (folder / name).write_bytes(records[number * 10_000 : (number + 1) * 10_000].tobytes())
    return records
