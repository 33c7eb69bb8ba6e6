# SPDX-License-Identifier: Apache-2.0
"""The data set `images`: any pictures that `pack` has packed. A run on them is a trial."""

from __future__ import annotations

from aiperf_mpi.config import Config
from aiperf_mpi.data.dataset import Dataset
from aiperf_mpi.data.manifest import TRAIN, VAL
from aiperf_mpi.data.packed import check_fits, check_shards, manifest_of, open_packed


def resolve(config: Config) -> dict[str, int]:
    """Return the settings of section `data` that the manifest decides: counts, classes, stored size."""
    _, manifest = manifest_of(config)
    return {
        "classes": len(manifest.classes),
        "train_images": min(config.data.train_images, manifest.images(TRAIN)),
        "val_images": min(config.data.val_images, manifest.images(VAL)),
        "stored_size": manifest.side,
    }


def check(config: Config) -> None:
    """Check that manifest and shards are there, without reading pictures. Raises ConfigError."""
    folder, manifest = manifest_of(config)
    check_fits(config, folder, manifest)
    check_shards(config, folder, manifest)


def load(config: Config) -> Dataset:
    """Return the packed pictures, the first `data.train_images` and `data.val_images` of them."""
    folder, manifest = manifest_of(config)
    check_fits(config, folder, manifest)
    return open_packed(config, folder, manifest)
