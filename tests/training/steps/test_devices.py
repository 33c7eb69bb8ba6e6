# SPDX-License-Identifier: Apache-2.0
import threading
import time

import jax
import numpy as np
import pytest

from aiperf_mpi.training.model.images import normalise
from aiperf_mpi.training.steps.devices import Feed, device_sharding, first, replicate


@pytest.fixture(scope="module")
def sharding():
    return device_sharding(jax.devices()[:1])


def batch(value: int, valid: bool = True) -> tuple[np.ndarray, ...]:
    return np.full((1, 2, 4, 4, 1), value, np.uint8), np.full((1, 2), value, np.int32), np.full((1, 2), valid)


def taken(feed: Feed) -> list[int]:
    values = []
    while not feed.ended:
        if (item := feed.take(1.0)) is not None:
            values.append(int(item.labels[0, 0]))
    return values


def test_a_feed_keeps_the_order_and_ends(sharding):
    with Feed((batch(i) for i in range(7)), sharding) as feed:
        assert taken(feed) == list(range(7))
        assert feed.ended and feed.take(1.0) is None


def test_a_feed_reads_ahead_but_not_without_limit(sharding):
    read = []

    def batches():
        for i in range(50):
            read.append(i)
            yield batch(i)

    with Feed(batches(), sharding, ahead=2) as feed:
        time.sleep(0.3)
        # Two wait in the queue, a third one is on the way into it.
        assert read == [0, 1, 2]
        assert feed.take(1.0) is not None
    assert len(read) <= 5


def test_a_feed_waits_no_longer_than_its_timeout(sharding):
    release = threading.Event()

    def batches():
        yield batch(1)
        release.wait(10)
        yield batch(2)

    with Feed(batches(), sharding) as feed:
        assert feed.take(5.0) is not None
        begin = time.monotonic()
        assert feed.take() is None and feed.take(0.05) is None and not feed.ended
        assert time.monotonic() - begin < 1
        release.set()
        assert taken(feed) == [2]


def test_take_raises_the_errors_of_the_source(sharding):
    def batches():
        yield batch(1)
        raise OSError("shard 3 cannot be read")

    with Feed(batches(), sharding) as feed:
        assert feed.take(5.0) is not None
        with pytest.raises(OSError, match="shard 3"):
            feed.take(5.0)
        assert feed.ended


def test_a_closed_feed_closes_source_and_thread(sharding):
    closed = []

    def batches():
        try:
            while True:
                yield batch(0)
        finally:
            closed.append(True)

    before = threading.active_count()
    with Feed(batches(), sharding) as feed:
        feed.take(5.0)
    assert closed == [True] and threading.active_count() == before


def test_training_refuses_padding_images(sharding):
    with Feed([batch(1), batch(2, valid=False)], sharding, whole=True) as feed:
        feed.take(5.0)
        with pytest.raises(ValueError, match="has 2 images that are not valid"):
            feed.take(5.0)


def test_replicated_arrays_come_back(sharding):
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.int32(4)}
    placed = replicate(tree, sharding)
    assert placed["a"].shape == (1, 2, 3) and placed["b"].shape == (1,)
    back = first(placed)
    assert np.array_equal(back["a"], tree["a"]) and back["b"] == 4


def test_normalised_images_are_shifted_by_mean_and_scaled():
    # (51 / 255 - 0.1) / 0.5 = 0.2 and (255 / 255 - 0.2) / 0.4 = 2.
    images = np.array([51, 255], np.uint8).reshape(1, 1, 1, 2)
    np.testing.assert_allclose(normalise(images, (0.1, 0.2), (0.5, 0.4)).ravel(), [0.2, 2.0], rtol=1e-6)
    assert normalise(images, (0.5,), (0.25,)).dtype == np.float32
