# SPDX-License-Identifier: Apache-2.0
"""Batches: every image where and as often as it should be, whatever the sizes."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiperf_mpi.data.dataset import ArrayImages, Dataset
from aiperf_mpi.data.loader import Reader, epoch_order, train_batches, train_steps, val_batches


def numbered(train: int, val: int) -> Dataset:
    """Images whose four bytes hold their own number, labels that are the number, so that any mix-up shows."""

    def split(count: int, first: int) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.arange(first, first + count, dtype=np.int32)
        return numbers.view(np.uint8).reshape(count, 2, 2, 1).copy(), numbers

    train_part, val_part = ArrayImages(*split(train, 1)), ArrayImages(*split(val, 1 + train))
    return Dataset("numbered", train_part, val_part, train + val + 1, "", (0.0,), (1.0,))


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
    np.testing.assert_array_equal(seen, dataset.val.labels)


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


# -- the threads that read --------------------------------------------------------------------------

#: Pixels of a side for which a batch of ten is cut into several parts.
SIDE = 256


class Marked:
    """Pictures of 196,608 bytes, all of them the picture's number, made as they are read."""

    shape, dtype = (SIDE, SIDE, 3), np.dtype(np.uint8)

    def __init__(self, count: int, broken: int = -1, delay: float = 0.0) -> None:
        self.labels = np.arange(count, dtype=np.int32)
        self.broken, self.delay = broken, delay
        self.threads: set[str] = set()
        self.reading = 0

    def read(self, places: np.ndarray, out: np.ndarray) -> int:
        self.reading += 1
        self.threads.add(threading.current_thread().name)
        time.sleep(self.delay)
        if self.broken in places:
            raise OSError("shard 7 cannot be read")
        out[:] = places[:, None, None, None]
        self.reading -= 1
        return out.nbytes


def marked(images: Marked) -> Dataset:
    return Dataset("marked", images, images, len(images.labels), "", (0.5,) * 3, (1.0,) * 3)


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
def test_threads_read_the_parts_of_a_batch(workers: int, reuse: bool) -> None:
    """The reader serves one trial after the other, with batches of other sizes, and a padded last one."""
    images = Marked(50)
    with closing(Reader(workers, reuse)) as reader:
        for batch in (5, 3):
            for pictures, labels, _ in train_batches(marked(images), 7, 0, 2, batch, reader=reader):
                np.testing.assert_array_equal(pictures[..., 100, 200, 1], labels)
                assert (pictures == pictures[..., :1, :1, :1]).all()
            seen = [
                number
                for pictures, _, valid in val_batches(marked(images), 2, 7, reader=reader)
                for number in pictures[valid][:, 0, 0, 0].tolist()
            ]
            assert seen == list(range(50))
    assert len(images.threads) == workers and threading.current_thread().name not in images.threads


def test_arrays_are_written_again_only_with_reuse() -> None:
    for reuse, most in ((True, 3), (False, 10)):
        with closing(Reader(2, reuse)) as reader:
            kept = [batch.images for batch in train_batches(marked(Marked(50)), 7, 0, 1, 5, reader=reader)]
        assert len({array.ctypes.data for array in kept}) <= most
        different = len({int(array[0, 0, 0, 0, 0]) for array in kept})
        assert (different == 10) is not reuse


def test_arrays_of_trials_that_overlap_are_not_mixed_up() -> None:
    """The next trial's first batches, of another size, are read while this one trains."""
    images = marked(Marked(50))
    with closing(Reader(2, reuse=True)) as reader:
        large = train_batches(images, 7, 0, 1, 5, reader=reader)
        next(large)
        for _ in range(2):
            for pictures, labels, _ in train_batches(images, 7, 0, 1, 3, reader=reader):
                assert pictures.shape[:2] == labels.shape == (1, 3)
                np.testing.assert_array_equal(pictures[..., 100, 200, 1], labels)
            large.close()  # type: ignore[attr-defined]


def test_only_the_devices_of_this_process_are_read() -> None:
    images = Marked(64)
    read = np.zeros(64, int)
    original = images.read

    def counted(places: np.ndarray, out: np.ndarray) -> int:
        np.add.at(read, places, 1)
        return original(places, out)

    images.read = counted  # type: ignore[method-assign]
    with closing(Reader(1)) as reader:
        halves = [
            [b.labels for b in train_batches(marked(images), 3, 1, 4, 4, mine, reader)]
            for mine in (slice(0, 2), slice(2, 4))
        ]
    assert [len(half) for half in halves] == [4, 4] and halves[0][0].shape == (2, 4)
    assert read.tolist() == [1] * 64
    whole = [b.labels for b in train_batches(marked(images), 3, 1, 4, 4)]
    for step, (first, second) in enumerate(zip(*halves, strict=True)):
        np.testing.assert_array_equal(np.concatenate([first, second]), whole[step])


@pytest.mark.parametrize("workers", [1, 3])
def test_bytes_read_from_files_are_counted(workers: int) -> None:
    images = Marked(50)
    with closing(Reader(workers)) as reader:
        # 50 pictures of the validation, and 4 batches of 2 x 6 in training; padding is not read.
        for _ in val_batches(marked(images), 2, 7, reader=reader):
            pass
        assert reader.bytes_read == 50 * SIDE * SIDE * 3
        for _ in train_batches(marked(images), 7, 0, 2, 6, reader=reader):
            pass
        assert reader.bytes_read == (50 + 48) * SIDE * SIDE * 3


def test_images_in_memory_are_not_read_from_files() -> None:
    with closing(Reader(2)) as reader:
        assert len(list(val_batches(numbered(1, 40), 1, 10, reader=reader))) == 4
        assert reader.bytes_read == 0


def test_an_error_of_a_thread_reaches_the_reader_of_the_batch() -> None:
    images = Marked(40, broken=33)
    with closing(Reader(3)) as reader, pytest.raises(OSError, match="shard 7 cannot be read"):
        list(val_batches(marked(images), 1, 10, reader=reader))


def test_nothing_is_read_after_batches_are_closed() -> None:
    """The next trial takes the arrays: no thread may write to them any more."""
    images = Marked(60, delay=0.02)
    with closing(Reader(2, reuse=True)) as reader:
        batches = train_batches(marked(images), 7, 0, 1, 10, reader=reader)
        next(batches)
        batches.close()  # type: ignore[attr-defined]
        assert images.reading == 0
        begun = len(images.threads)
        assert begun and len(list(train_batches(marked(images), 7, 1, 1, 10, reader=reader))) == 6
