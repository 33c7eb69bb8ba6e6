# SPDX-License-Identifier: Apache-2.0
"""Made-up images: any shape, from the seed and a number alone, and such that a network could learn them."""

from __future__ import annotations

import resource

import numpy as np
import pytest

from aiperf_mpi.config import Config, ConfigError, load
from aiperf_mpi.data.catalogue import open_dataset
from aiperf_mpi.data.dataset import Dataset, Images
from aiperf_mpi.data.synthetic import FIRST_VALIDATION, MadeImages, classes_of, pixels
from aiperf_mpi.paper import IMAGENET_IMAGES

SMALL = (
    "data.image_size=24",
    "data.train_images=600",
    "data.val_images=100",
    "data.classes=7",
    "data.channels=2",
)
SHAPE = (24, 24, 2)


def small(*sets: str, seed: int = 1) -> Config:
    return load("imagenet-synthetic", sets=[*SMALL, "train.batch_per_device=50", *sets], seed=seed)


def numbers_of(images: Images) -> np.ndarray:
    numbers = np.empty(len(images.labels), np.uint32)
    images.read(np.arange(len(numbers)), numbers)
    return numbers


def pictures(dataset: Dataset, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of both splits."""
    train, val = (
        pixels(numbers_of(images), MadeImages(seed), SHAPE, 7) for images in (dataset.train, dataset.val)
    )
    return train, val


def test_shapes_types_and_even_classes() -> None:
    dataset = open_dataset(small())
    for images in (dataset.train, dataset.val):
        assert images.shape == () and images.dtype == np.uint32 and images.labels.dtype == np.int32
        assert np.array_equal(images.labels, classes_of(numbers_of(images), 7))
    train, val = pictures(dataset)
    assert train.shape == (600, *SHAPE) and val.shape == (100, *SHAPE) and train.dtype == np.uint8

    # 600 = 7 * 85 + 5: five classes have 86 images, two have 85.
    assert sorted(np.bincount(dataset.train.labels)) == [85, 85, 86, 86, 86, 86, 86]


def test_an_image_follows_from_the_seed_and_its_number() -> None:
    first, again, other = open_dataset(small()), open_dataset(small()), open_dataset(small(seed=2))
    assert first.sha256 == again.sha256 != other.sha256
    numbers = np.array([0, 1, 7, 599, FIRST_VALIDATION], np.uint32)
    made = pixels(numbers, MadeImages(1), SHAPE, 7)
    for place, number in enumerate(numbers):
        assert np.array_equal(pixels(number.reshape(1), MadeImages(1), SHAPE, 7)[0], made[place])
    assert not (pixels(numbers, MadeImages(2), SHAPE, 7) == made).all(axis=(1, 2, 3)).any()


def test_no_two_images_are_alike_in_either_split() -> None:
    train, val = pictures(open_dataset(small()))
    assert len({image.tobytes() for image in (*train, *val)}) == 700

    # Of one class they share the pattern, and the noise of two images is independent: the deviation of a
    # correlation of 1,152 pairs is 0.03, that of the largest of 4,950 pairs some 4 deviations.
    alike = train[:700:7].reshape(86, -1).astype(float)
    noise = alike - alike.mean(axis=0)
    apart = np.corrcoef(noise) - np.eye(86)
    assert np.abs(apart).max() < 0.16


def test_the_pixels_have_the_stated_mean_and_deviation() -> None:
    # 691,200 pixels have a deviation of 0.2. The patterns of 7 classes have 896 cells: 0.145 / 30 = 0.005.
    dataset = open_dataset(small())
    train = pictures(dataset)[0] / 255
    assert abs(train.mean() - dataset.mean[0]) < 0.02 and abs(train.std() - dataset.deviation[0]) < 0.01


def test_a_class_can_be_recognised_by_its_images() -> None:
    """The nearest mean of the training images of a class finds the class of every validation image."""
    dataset = open_dataset(small())
    train, val = pictures(dataset)
    means = np.stack([train[dataset.train.labels == label].mean(axis=0) for label in range(7)])
    distances = ((val[:, None] - means[None]) ** 2).sum(axis=(2, 3, 4))
    np.testing.assert_array_equal(distances.argmin(axis=1), dataset.val.labels)


@pytest.mark.parametrize("size", [8, 9, 45])
def test_each_cell_of_a_pattern_covers_a_square(size: int) -> None:
    # The largest of many images of one class is the pattern plus nearly all of the noise: equal in a cell.
    numbers = np.arange(0, 3 * 400, 3, dtype=np.uint32)
    largest = pixels(numbers, MadeImages(5), (size, size, 1), 3).max(axis=0)[:, :, 0].astype(int)
    side = -(-size // 8)
    for y in range(0, size, side):
        for x in range(0, size, side):
            cell = largest[y : y + side, x : x + side]
            assert cell.max() - cell.min() <= 5


def test_imagenets_counts_take_no_memory_but_their_labels() -> None:
    config = load("imagenet-synthetic")
    assert (config.data.train_images, config.data.val_images) == IMAGENET_IMAGES
    dataset = open_dataset(config)
    assert dataset.train.labels.nbytes == 4 * 1_281_167 and len(dataset.val.labels) == 50_000
    assert np.bincount(dataset.train.labels).min() == 1281


def test_images_without_a_number_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"data.train_images: 2147483649 is more than the 2147483648 images"
    ):
        small("data.train_images=2147483649")


def test_labels_that_do_not_fit_into_memory_are_refused() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        # Less than the 4 GiB of the labels is left.
        resource.setrlimit(resource.RLIMIT_DATA, (4 * 2**30, hard))
        with pytest.raises(
            ConfigError,
            match=r"data.train_images: the labels of 1073741824 .* GiB of memory are free; lower it",
        ):
            open_dataset(small("data.train_images=1073741824"))
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
