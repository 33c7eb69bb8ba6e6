# SPDX-License-Identifier: Apache-2.0
"""The data set `imagenet`: ImageNet (ILSVRC 2012), packed; the data set of an official run.

Its counts and its classes are checked. Pixels differ between decoders, so they cannot be compared with those
of a reference: the hash of the content says only whether two runs had the same pictures.
"""

from __future__ import annotations

import re
from pathlib import Path

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.data.dataset import Dataset
from aiperf_mpi.data.manifest import TRAIN, VAL, Manifest
from aiperf_mpi.data.packed import SETTING, check_fits, check_shards, manifest_of, open_packed
from aiperf_mpi.paper import IMAGENET_CLASSES, IMAGENET_IMAGES

#: The name of a class: a noun of WordNet by its offset (https://www.image-net.org/challenges/LSVRC/2012/).
_SYNSET = re.compile(r"n\d{8}")


def resolve(config: Config) -> dict[str, int]:
    """Return the setting of section `data` that the manifest decides: the stored size."""
    _, manifest = manifest_of(config)
    return {"stored_size": manifest.side}


def check(config: Config) -> None:
    """Check that the folder holds all of ImageNet, without reading pictures. Raises ConfigError."""
    folder, manifest = _manifest(config)
    check_shards(config, folder, manifest)


def load(config: Config) -> Dataset:
    """Return ImageNet, or the first `data.train_images` and `data.val_images` of its pictures."""
    return open_packed(config, *_manifest(config))


def _manifest(config: Config) -> tuple[Path, Manifest]:
    """Return folder and manifest of ImageNet. Raises ConfigError for another or an incomplete set."""
    folder, manifest = manifest_of(config)
    counts = manifest.images(TRAIN), manifest.images(VAL)
    if counts != IMAGENET_IMAGES:
        raise ConfigError(
            f"{SETTING}: {folder} has {counts[0]} and {counts[1]} pictures, but ImageNet has "
            f'{IMAGENET_IMAGES[0]} and {IMAGENET_IMAGES[1]}; pack the whole set, or set data.name = "images"'
        )
    classes = manifest.classes
    if len(classes) != IMAGENET_CLASSES or any(not _SYNSET.fullmatch(name) for name in classes):
        raise ConfigError(
            f"{SETTING}: the {len(classes)} classes of {folder} are not the 1000 synsets of ImageNet; "
            'set data.name = "images"'
        )
    if list(classes) != sorted(classes):
        raise ConfigError(
            f"{SETTING}: the classes of {folder} are not in the order of their names; pack it again"
        )
    check_fits(config, folder, manifest)
    return folder, manifest
