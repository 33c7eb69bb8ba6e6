# SPDX-License-Identifier: Apache-2.0
"""Made-up images: any shape, from the seed alone, and such that a network could learn them."""

from __future__ import annotations

import numpy as np
import pytest

from aiperf_mpi.config import Config, ConfigError, load
from aiperf_mpi.data.catalogue import open_dataset
from aiperf_mpi.data.dataset import Dataset

SMALL = (
    "data.image_size=24",
    "data.train_images=600",
    "data.val_images=100",
    "data.classes=7",
    "data.channels=2",
)


def small(*sets: str, seed: int = 1) -> Config:
    return load("imagenet-synthetic", sets=[*SMALL, "train.batch_per_device=50", *sets], seed=seed)


def test_shapes_types_and_even_classes() -> None:
    dataset = open_dataset(small())
    assert dataset.train.images.shape == (600, 24, 24, 2) and dataset.val.images.shape == (100, 24, 24, 2)
    assert dataset.train.images.dtype == np.uint8 and dataset.train.labels.dtype == np.int32

    # 600 = 7 * 85 + 5: five classes have 86 images, two have 85.
    assert sorted(np.bincount(dataset.train.labels)) == [85, 85, 86, 86, 86, 86, 86]


def test_the_seed_decides() -> None:
    def parts(dataset: Dataset) -> list[bytes]:
        return [array.tobytes() for array in (dataset.train.images, dataset.val.images, dataset.train.labels)]

    first, again, other = open_dataset(small()), open_dataset(small()), open_dataset(small(seed=2))
    assert parts(first) == parts(again) and first.sha256 == again.sha256
    assert first.sha256 != other.sha256
    assert all(a != b for a, b in zip(parts(first), parts(other), strict=True))
    assert first.train.images[:100].tobytes() != first.val.images.tobytes()


def test_a_class_can_be_recognised_by_its_images() -> None:
    """The nearest mean of the training images of a class finds the class of every validation image."""
    dataset = open_dataset(small())
    means = np.stack([dataset.train.images[dataset.train.labels == label].mean(axis=0) for label in range(7)])
    distances = ((dataset.val.images[:, None] - means[None]) ** 2).sum(axis=(2, 3, 4))
    np.testing.assert_array_equal(distances.argmin(axis=1), dataset.val.labels)


def test_images_that_do_not_fit_into_memory_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"data.train_images: 1073741824 .* GiB of memory are free; lower it"
    ):
        open_dataset(small("data.train_images=1073741824", "data.image_size=224"))
