# SPDX-License-Identifier: Apache-2.0
"""Images that a step makes are those of the recipe, pixel by pixel, in training and in validation."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest

from aiperf_mpi.data.synthetic import FIRST_VALIDATION, MadeImages, classes_of, pixels
from aiperf_mpi.training.model.images import make
from tests.helpers.training.cases import TINY, compiled_tiny, started

NUMBERS = np.array([0, 1, 2, 1_281_166, FIRST_VALIDATION - 1, FIRST_VALIDATION, 2**32 - 1, 5], np.uint32)


@pytest.mark.parametrize("shape", [(8, 8, 1), (45, 45, 3)])
def test_devices_make_the_pixels_of_the_recipe(shape: tuple[int, int, int]) -> None:
    made = MadeImages(2**40 + 3)
    on_device = jax.jit(partial(make, made=made, shape=shape, classes=1000))(NUMBERS)
    assert on_device.dtype == np.uint8
    assert np.array_equal(on_device, pixels(NUMBERS, made, shape, 1000))


def test_a_step_that_makes_its_images_computes_what_it_does_with_theirs() -> None:
    made = MadeImages(7)
    images = pixels(NUMBERS, made, (12, 12, TINY.channels), TINY.classes)[None]
    labels = classes_of(NUMBERS, TINY.classes).astype(np.int32)[None]
    results = []
    for arriving, which in ((NUMBERS[None], made), (images, None)):
        compiled = compiled_tiny(batch_per_device=8, stored_size=12, augmentation="resized_crop", made=which)
        state = started(compiled)
        valid = np.arange(8)[None] < 6
        checked = compiled.evaluate(state.params, state.batch_stats, arriving, labels, valid)
        state, metrics = compiled.train(state, arriving, labels, compiled.scalar(0.1))
        results.append([float(checked.loss), int(checked.correct), float(metrics.loss), int(metrics.correct)])
    # The same pixels, but other programs: their additions may be in another order.
    assert results[0] == pytest.approx(results[1], rel=1e-5)
