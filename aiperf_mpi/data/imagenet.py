# SPDX-License-Identifier: Apache-2.0
"""The data set `imagenet`: ImageNet (ILSVRC 2012), packed; the data set of an official run.

It is compared with what is public of it (:mod:`aiperf_mpi.config.ilsvrc`). Pixels differ between decoders,
so they cannot be compared with those of a reference: the hash of the content says only whether two runs had
the same pictures.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.config.ilsvrc import ILSVRC2012, Reference, hash_of_labels
from aiperf_mpi.config.paths import reading
from aiperf_mpi.data.dataset import Dataset
from aiperf_mpi.data.manifest import TRAIN, VAL, LabelFacts, Manifest
from aiperf_mpi.data.packed import SETTING, check_fits, check_shards, manifest_of, needed, open_packed
from aiperf_mpi.data.shard import names_of
from aiperf_mpi.paper import IMAGENET_CLASSES

#: The name of a class: a noun of WordNet by its offset (https://www.image-net.org/challenges/LSVRC/2012/).
_SYNSET = re.compile(r"n\d{8}")


def resolve(config: Config) -> dict[str, int]:
    """Return the setting of section `data` that the manifest decides: the stored size."""
    _, manifest = manifest_of(config)
    return {"stored_size": manifest.side}


def check(config: Config) -> None:
    """Check that the folder holds ImageNet's classes, without reading pictures. Raises ConfigError."""
    folder, manifest = _manifest(config)
    check_shards(config, folder, manifest)


def load(config: Config) -> Dataset:
    """Return ImageNet, or the first `data.train_images` and `data.val_images` of its pictures."""
    folder, manifest = _manifest(config)
    dataset = open_packed(config, folder, manifest)
    return replace(dataset, labels=_labels(folder, manifest, dataset))


def check_whole(config: Config, reference: Reference = ILSVRC2012) -> None:
    """Raise ConfigError unless the set has as many pictures as the reference."""
    folder, manifest = manifest_of(config)
    counts, whole = (manifest.images(TRAIN), manifest.images(VAL)), reference.images
    if counts != whole:
        raise ConfigError(
            f"{SETTING}: {folder} has {counts[0]} and {counts[1]} pictures, but ImageNet has "
            f'{whole[0]} and {whole[1]}; pack the whole set, or set data.name = "images"'
        )


def _labels(folder: Path, manifest: Manifest, dataset: Dataset) -> LabelFacts:
    """Return the labels of the pictures that are used, from the shards. Raises ConfigError."""
    classes = manifest.classes
    train, val = (
        tuple(np.bincount(images.labels, minlength=len(classes)).tolist())
        for images in (dataset.train, dataset.val)
    )
    names: list[str] = []
    for shard in needed(manifest.splits[VAL], len(dataset.val.labels)):
        with reading(SETTING, folder / shard.file, "copy it again, or pack the set again"):
            names += names_of(folder / shard.file)
    labels = dataset.val.labels.tolist()
    return LabelFacts(train, val, hash_of_labels(names[: len(labels)], map(classes.__getitem__, labels)))


def _manifest(config: Config) -> tuple[Path, Manifest]:
    """Return folder and manifest of ImageNet. Raises ConfigError for a set of other classes."""
    folder, manifest = manifest_of(config)
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
