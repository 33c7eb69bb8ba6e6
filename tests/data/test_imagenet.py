# SPDX-License-Identifier: Apache-2.0
"""ImageNet is compared with what is public of it, by the labels and names that its shards have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aiperf_mpi.config import Config, ConfigError, load
from aiperf_mpi.config.ilsvrc import (
    ILSVRC2012,
    MD5_KEY,
    Reference,
    differences,
    hash_of_labels,
    hash_of_lines,
)
from aiperf_mpi.data.catalogue import check_dataset, open_dataset, resolved
from aiperf_mpi.data.manifest import LabelFacts, from_record, labels_from_record
from tests.helpers.packed import numbered_pictures, rewrite, write_packed

#: Made-up synsets; two training pictures of each, and one for validation but none of the last and two of the
#: first.
CLASSES = tuple(f"n{number:08d}" for number in range(1000))
TRAIN, VAL = (2,) * 1000, (2, *(1,) * 998, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed set of these classes; the shards are of 600 pictures."""
    folder = tmp_path_factory.mktemp("imagenet")
    labels = {"train": np.arange(2000) % 1000, "val": np.arange(999, -1, -1) % 999}
    splits = {
        split: (numbered_pictures(0, len(its), 8), its.astype(np.int32)) for split, its in labels.items()
    }
    rewrite(folder, write_packed(folder, splits, 1000, shard_images=600), classes=CLASSES)
    return folder


def config(folder: Path, train: int = 2000, val: int = 1000) -> Config:
    """A configuration for so many pictures of the set."""
    sets = [f"data.path='{folder}'", "data.image_size=8", f"data.train_images={train}"]
    return resolved(load("imagenet", sets=[*sets, f"data.val_images={val}", "train.batch_per_device=8"]))


def test_the_labels_are_those_of_the_shards(folder: Path) -> None:
    # The helper names the pictures SPLIT/SHARD/PLACE, without an ending.
    dataset = open_dataset(config(folder))
    classes = [CLASSES[label] for label in (np.arange(999, -1, -1) % 999).tolist()]
    names = [f"val/{place // 600}/{place % 600}" for place in range(1000)]
    assert dataset.labels == LabelFacts(TRAIN, VAL, hash_of_labels(names, classes))

    # A result stores them with the manifest, and older results have none.
    assert labels_from_record(dataset.record) == dataset.labels
    assert dataset.manifest is not None and from_record(dataset.record) == (dataset.manifest, 0)
    assert labels_from_record(dataset.manifest.to_record()) is None


def test_of_a_part_of_the_set_only_its_labels_count(folder: Path) -> None:
    labels = open_dataset(config(folder, train=1000, val=10)).labels
    # The first validation pictures have the labels 999 % 999 = 0, 998, 997, ..., 990.
    assert labels is not None and labels.train == (1,) * 1000
    assert [label for label, count in enumerate(labels.val) if count] == [0, *range(990, 999)]


def test_the_set_has_the_counts_of_the_reference(folder: Path) -> None:
    with pytest.raises(ConfigError, match="has 2000 and 1000 pictures, but ImageNet has 1281167 and 50000"):
        check_dataset(config(folder))
    check_dataset(config(folder), replace(ILSVRC2012, images=(2000, 1000)))


def test_the_hash_of_labels_has_names_and_classes_in_any_order() -> None:
    first = hash_of_labels(["n1/a.JPEG", "b.jpg"], ["n1", "n2"])
    assert first == hash_of_labels(["val/b.JPEG", "a.png"], ["n2", "n1"]) == hash_of_lines(["a n1", "b n2"])
    assert first != hash_of_labels(["a.JPEG", "b.JPEG"], ["n2", "n1"])


#: A small reference: two classes of 3 to 5 pictures, 8 in all, and two validation pictures.
SMALL = Reference(
    name="set",
    images=(8, 2),
    classes=2,
    classes_sha256=hash_of_lines(["n1", "n2"]),
    of_a_class=((3, 5), (1, 1)),
    labels_sha256=hash_of_lines(["a n1", "b n2"]),
    side=256,
    md5={"set.tar": "a" * 32},
)


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        ({}, []),
        ({"source": {f"{MD5_KEY}set.tar": "a" * 32}}, []),
        ({"classes": ["n1"]}, ["it has 1 classes, but set has 2"]),
        ({"classes": ["n2", "n1"]}, ["its classes are not the sorted ones of set"]),
        ({"counts": ((4, 3), (1, 1))}, ["it has 7 training pictures, but set has 8"]),
        ({"counts": ((6, 2), (1, 1))}, ["class 0 and 1 more have 6 training pictures instead of 3 to 5"]),
        (
            {"counts": ((4, 4), (2, 1))},
            ["it has 3 validation pictures, but set has 2", "class 0 has 2 validation pictures instead of 1"],
        ),
        ({"labels_sha256": "0"}, ["names and classes of its validation pictures are not those of set"]),
        (
            {"source": {f"{MD5_KEY}set.tar": "b" * 32}},
            ["set.tar has the MD5 " + "b" * 32 + ", but the published one is " + "a" * 32],
        ),
    ],
)
def test_each_difference_to_the_reference_is_told(change: dict[str, object], texts: list[str]) -> None:
    own: dict[str, object] = {
        "classes": ["n1", "n2"],
        "counts": ((5, 3), (1, 1)),
        "labels_sha256": SMALL.labels_sha256,
        "source": {},
    }
    assert list(differences(SMALL, **own | change)) == texts  # type: ignore[arg-type]


def test_the_public_facts_agree_with_one_another() -> None:
    (train, val), classes = ILSVRC2012.images, ILSVRC2012.classes
    (least, most), each = ILSVRC2012.of_a_class
    assert least * classes < train < most * classes and each == (val // classes,) * 2
    digests = (ILSVRC2012.classes_sha256, ILSVRC2012.labels_sha256)
    assert [len(digest) for digest in (*digests, *ILSVRC2012.md5.values())] == [64, 64, 32, 32, 32]
