# SPDX-License-Identifier: Apache-2.0
"""Batches: every image where and as often as it should be, whatever the sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiperf_mpi.data.dataset import Dataset
from aiperf_mpi.data.loader import epoch_order, train_batches, train_steps, val_batches


def numbered(train: int, val: int) -> Dataset:
    """Images whose four bytes hold their own number, labels that are the number, so that any mix-up shows."""

    def split(count: int, first: int) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.arange(first, first + count, dtype=np.int32)
        return numbers.view(np.uint8).reshape(count, 2, 2, 1).copy(), numbers

    return Dataset("numbered", *split(train, 1), *split(val, 1 + train), train + val + 1, "", (0.0,), (1.0,))


def number_of(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images).reshape(*images.shape[:-3], 4).view(np.int32)[..., 0]


sizes = st.integers(1, 70), st.integers(1, 70), st.integers(1, 4), st.integers(1, 9)


@given(*sizes, st.integers(0, 2**64 - 1), st.integers(0, 99))
def test_training_uses_each_image_at_most_once(
    train: int, val: int, devices: int, batch: int, seed: int, epoch: int
) -> None:
    dataset = numbered(train, val)
    if train < devices * batch:
        with pytest.raises(ValueError, match="fewer than one batch"):
            train_batches(dataset, seed, epoch, devices, batch)
        return

    batches = list(train_batches(dataset, seed, epoch, devices, batch))
    assert len(batches) == train_steps(dataset, devices, batch) == train // (devices * batch)
    seen = []
    for images, labels, valid in batches:
        assert images.shape == (devices, batch, 2, 2, 1) and images.dtype == np.uint8
        assert labels.shape == (devices, batch) and labels.dtype == np.int32
        assert valid.shape == (devices, batch) and valid.dtype == bool and valid.all()
        np.testing.assert_array_equal(number_of(images), labels)
        seen += labels.ravel().tolist()

    # No image twice, none of the validation, and of the remainder fewer than a batch are left out.
    assert len(set(seen)) == len(seen) and set(seen) <= set(range(1, train + 1))
    assert train - len(seen) < devices * batch


@given(*sizes)
def test_validation_uses_each_image_once_and_pads_the_last_batch(
    train: int, val: int, devices: int, batch: int
) -> None:
    dataset = numbered(train, val)
    batches = list(val_batches(dataset, devices, batch))
    assert len(batches) == -(-val // (devices * batch))
    for images, labels, valid in batches:
        assert images.shape == (devices, batch, 2, 2, 1) and labels.shape == valid.shape == (devices, batch)
        assert images.dtype == np.uint8 and labels.dtype == np.int32 and valid.dtype == bool
        np.testing.assert_array_equal(number_of(images), labels)
        assert not images[~valid].any() and not labels[~valid].any()

    seen = np.concatenate([labels[valid] for _, labels, valid in batches])
    np.testing.assert_array_equal(seen, dataset.val_labels)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    np.testing.assert_array_equal(epoch_order(100, 7, 3), epoch_order(100, 7, 3))
    orders = [epoch_order(100, seed, epoch).tobytes() for seed in (7, 8) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert sorted(epoch_order(100, 7, 3)) == list(range(100))

    # Two devices with half of the batch see, step by step, the images that one device sees.
    dataset = numbered(100, 1)
    one, two = (list(train_batches(dataset, 7, 3, n, 24 // n)) for n in (1, 2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.labels.ravel(), b.labels.ravel())


def test_too_few_images_say_so_before_the_first_batch() -> None:
    with pytest.raises(
        ValueError, match="70 training images are fewer than one batch of 40 on each of 2 devices"
    ):
        train_batches(numbered(70, 1), 0, 0, 2, 40)
