# SPDX-License-Identifier: Apache-2.0
"""The digits: the real images, enlarged, in a split that never changes."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits as sklearn_digits

from aiperf_mpi.config import load
from aiperf_mpi.data.catalogue import open_dataset
from aiperf_mpi.data.dataset import Dataset, content_sha256, moments
from aiperf_mpi.data.digits import enlarge, validation_split


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return open_dataset(load("demo"))


def test_shapes_and_types(digits: Dataset) -> None:
    assert digits.train_images.shape == (1437, 32, 32, 1) and digits.val_images.shape == (360, 32, 32, 1)
    assert digits.train_images.dtype == np.uint8 and digits.train_labels.dtype == np.int32
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
    np.testing.assert_array_equal(dataset.val_images[..., 0], np.rint(bunch.images[mask] * 255 / 16))
    np.testing.assert_array_equal(dataset.train_labels, bunch.target[~mask])


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
    assert dataset.train_images.shape == (200, 32, 32, 3) and len(dataset.val_labels) == 50
    np.testing.assert_array_equal(dataset.train_images[..., 0], dataset.train_images[..., 2])
    assert set(dataset.train_labels.tolist()) == set(range(10))


# -- what every data set promises ------------------------------------------------------------------


def test_a_wrong_dtype_shape_or_label_is_refused(digits: Dataset) -> None:
    good = dict(
        name="x",
        train_images=digits.train_images,
        train_labels=digits.train_labels,
        val_images=digits.val_images,
        val_labels=digits.val_labels,
        classes=10,
        sha256="",
        mean=(0.5,),
        deviation=(1.0,),
    )
    Dataset(**good)
    for change, part in (
        ({"train_images": digits.train_images.astype(np.float32)}, "float32"),
        ({"val_labels": digits.val_labels.astype(np.int64)}, "int64"),
        ({"val_labels": digits.val_labels[:-1]}, "labels"),
        ({"train_images": digits.train_images[..., 0]}, "training images"),
        ({"classes": 9}, "outside of 0..8"),
        ({"val_images": digits.val_images[:, ::2]}, "differ in shape"),
    ):
        with pytest.raises(ValueError, match=part):
            Dataset(**{**good, **change})


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
