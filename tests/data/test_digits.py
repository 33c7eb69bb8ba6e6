# SPDX-License-Identifier: Apache-2.0
"""The digits: the real images, enlarged, in a split that never changes."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits as sklearn_digits

from aiperf_mpi.config import load
from aiperf_mpi.data.catalogue import open_dataset
from aiperf_mpi.data.dataset import ArrayImages, Dataset, content_sha256, moments
from aiperf_mpi.data.digits import enlarge, validation_split


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return open_dataset(load("demo"))


def test_shapes_and_types(digits: Dataset) -> None:
    assert digits.train.images.shape == (1437, 32, 32, 1) and digits.val.images.shape == (360, 32, 32, 1)
    assert digits.train.images.dtype == np.uint8 and digits.train.labels.dtype == np.int32
    assert digits.classes == 10


def test_the_split_never_changes(digits: Dataset) -> None:
    """The hash of 32 pixel images was computed once, with numpy 2.4 and scikit-learn 1.9; it holds for all
    versions."""
    assert digits.sha256 == "d887b026937c204d826340c4757bb1bda28885fbfa68b4af77e476171b6ec443"


def test_the_split_is_disjoint_whole_and_stratified() -> None:
    labels = sklearn_digits().target.astype(np.int32)
    mask = validation_split(labels, 360)
    assert mask.sum() == 360 and len(mask) == 1797

    # Each class gives its share, rounded: between 34.86 (174 images of 1797) and 36.66 (183).
    for label in range(10):
        share = (labels == label).sum() * 360 / 1797
        assert abs((mask & (labels == label)).sum() - share) < 1


def test_images_are_those_of_scikit_learn() -> None:
    """At 8 pixels nothing is interpolated: grey values of 0..16 become 0..255."""
    config = load("demo", sets=["data.image_size=8"])
    dataset = open_dataset(config)
    bunch = sklearn_digits()
    mask = validation_split(bunch.target.astype(np.int32), 360)
    np.testing.assert_array_equal(dataset.val.images[..., 0], np.rint(bunch.images[mask] * 255 / 16))
    np.testing.assert_array_equal(dataset.train.labels, bunch.target[~mask])


def test_enlarging_keeps_a_flat_image_and_a_gradient() -> None:
    flat = np.full((1, 8, 8), 100.0)
    np.testing.assert_array_equal(enlarge(flat, 30, 3), np.full((1, 30, 30, 3), 100))

    # A horizontal ramp 0, 10, ..., 70 at pixel centres (i + 0.5): doubled, the centres are a quarter pixel
    # next to them, so the values are 2.5 below or above, and the outermost repeat the border: rint(2.5) = 2,
    # rint(7.5) = 8.
    ramp = np.tile(np.arange(8) * 10.0, (8, 1))[None]
    row = enlarge(ramp, 16, 1)[0, 5, :, 0]
    np.testing.assert_array_equal(row[:5], [0, 2, 8, 12, 18])
    assert row[-1] == 70


def test_fewer_images_and_three_channels() -> None:
    dataset = open_dataset(
        load("demo", sets=["data.train_images=200", "data.val_images=50", "data.channels=3"])
    )
    assert dataset.train.images.shape == (200, 32, 32, 3) and len(dataset.val.labels) == 50
    np.testing.assert_array_equal(dataset.train.images[..., 0], dataset.train.images[..., 2])
    assert set(dataset.train.labels.tolist()) == set(range(10))


# -- what every data set promises ------------------------------------------------------------------


def test_a_wrong_dtype_shape_or_label_is_refused(digits: Dataset) -> None:
    images, labels = digits.train.images, digits.train.labels
    for wrong, part in (
        ((images.astype(np.float32), labels), "float32"),
        ((images, labels.astype(np.int64)), "int64"),
        ((images, labels[:-1]), "labels"),
        ((images[..., 0], labels), "images are uint8 .*, not uint8"),
        ((images[:0], labels[:0]), "labels"),
    ):
        with pytest.raises(ValueError, match=part):
            ArrayImages(*wrong)

    val = digits.val
    Dataset("x", digits.train, val, 10, "", (0.5,), (1.0,))
    with pytest.raises(ValueError, match="a training label is outside of 0..8"):
        Dataset("x", digits.train, val, 9, "", (0.5,), (1.0,))
    with pytest.raises(ValueError, match="differ in shape"):
        Dataset("x", digits.train, ArrayImages(val.images[:, ::2], val.labels), 10, "", (0.5,), (1.0,))


def test_a_place_outside_of_the_images_is_refused(digits: Dataset) -> None:
    out = np.empty((1, 32, 32, 1), np.uint8)
    for place in (-1, 1437):
        with pytest.raises(IndexError, match="outside of the 1437 images"):
            digits.train.read(np.array([place]), out)


def test_the_hash_follows_content_type_and_shape() -> None:
    array = np.arange(6, dtype=np.int32)
    assert content_sha256(array) == content_sha256(array.copy())
    others = (array[::-1], array.reshape(2, 3), array.astype(np.int64), array.view(np.uint32))
    assert len({content_sha256(array), *(content_sha256(other) for other in others)}) == 5


def test_moments_of_known_images() -> None:
    """Half of the pixels 0, half 255: mean 1/2 and deviation 1/2; a constant channel gets the deviation 1."""
    images = np.zeros((4, 8, 8, 2), dtype=np.uint8)
    images[::2, ..., 0] = 255
    mean, deviation = moments(images)
    assert mean == (0.5, 0.0) and deviation == (0.5, 1.0)
