# SPDX-License-Identifier: Apache-2.0
"""Random crops against a reference in numpy: the same pixels, inside the image, as often as stated."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiperf_mpi.training.model.augmentation import (
    CROP_PADDING,
    DRAWS,
    LEAST_AREA,
    MOST_ASPECT,
    POSITION_BITS,
    WEIGHT_BITS,
    Boxes,
    augment,
    boxes,
    draw,
    resample,
)
from aiperf_mpi.training.model.images import centre

FORMS = ("resized_crop", "crop", "cifar")
KEY = jax.random.key(5)


def pictures(count: int, side: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), np.uint8)


def numbers(count: int, first: int = 0) -> jax.Array:
    return jnp.arange(first, first + count, dtype=jnp.int32)


def augmented(images: np.ndarray, form: str, size: int, key: jax.Array = KEY, first: int = 0) -> np.ndarray:
    step = jax.jit(partial(augment, form=form, size=size))
    return np.asarray(step(images, key, numbers(len(images), first)))


def drawn(count: int, key: jax.Array = KEY) -> np.ndarray:
    return np.asarray(jax.jit(draw)(key, numbers(count)))


# -- references ------------------------------------------------------------------------------------


def cut(image: np.ndarray, draws: np.ndarray, size: int) -> np.ndarray:
    """Cut `size` x `size` pixels at the place that the draws give, and mirror them."""
    top, left = (int(np.float32(x) * np.float32(len(image) - size + 1)) for x in draws[2:4])
    crop = image[top : top + size, left : left + size]
    return crop[:, ::-1] if draws[4] < 0.5 else crop


def scaled(image: np.ndarray, box: Boxes, size: int) -> np.ndarray:
    """Scale one crop pixel by pixel, in integers; the only division is that of the whole result."""
    side, one = len(image), 1 << WEIGHT_BITS

    def neighbours(begin: int, step: int, place: int) -> tuple[int, int, int]:
        at = begin + step * place + step // 2 - (1 << (POSITION_BITS - 1))
        at = min(max(at, 0), (side - 1) << POSITION_BITS)
        low = at >> POSITION_BITS
        return low, min(low + 1, side - 1), (at >> (POSITION_BITS - WEIGHT_BITS)) % one

    result = np.empty((size, size, image.shape[-1]), np.float32)
    for y in range(size):
        upper, lower, down = neighbours(int(box.top), int(box.down), y)
        for x in range(size):
            place = size - 1 - x if box.mirrored else x
            low, high, right = neighbours(int(box.left), int(box.right), place)
            values = image.astype(np.int64)
            above = values[upper, low] * (one - right) + values[upper, high] * right
            below = values[lower, low] * (one - right) + values[lower, high] * right
            result[y, x] = (above * (one - down) + below * down) / one**2
    return result


def crops_of(count: int, side: int, size: int, key: jax.Array = KEY) -> list[Boxes]:
    """Return the boxes of the images one by one."""
    all_boxes = jax.jit(lambda k, n: boxes(draw(k, n), side, size))(key, numbers(count))
    return [Boxes(*(np.asarray(part)[i] for part in all_boxes)) for i in range(count)]


# -- pixels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "size", "channels"), [(8, 8, 1), (13, 8, 3), (40, 10, 3)])
def test_each_form_makes_exactly_the_pixels_of_the_reference(side: int, size: int, channels: int) -> None:
    images, draws = pictures(6, side, channels), drawn(6)
    edge = (side - size) // 2
    middle = images[:, edge : edge + size, edge : edge + size]
    border = ((CROP_PADDING, CROP_PADDING), (CROP_PADDING, CROP_PADDING), (0, 0))

    assert np.array_equal(
        augmented(images, "crop", size), [cut(x, d, size) for x, d in zip(images, draws, strict=True)]
    )
    assert np.array_equal(
        augmented(images, "cifar", size),
        [cut(np.pad(x, border), d, size) for x, d in zip(middle, draws, strict=True)],
    )
    expected = [scaled(x, box, size) for x, box in zip(images, crops_of(6, side, size), strict=True)]
    assert np.array_equal(augmented(images, "resized_crop", size), expected)


def test_a_resized_crop_of_a_ramp_has_the_positions_of_its_box() -> None:
    # Each pixel has its own column as value, so a result is the column at its centre: 0.5 pixels off the edge
    # of the crop, within a step of the weights (1/256) and of the positions.
    side, size = 64, 24
    ramp = np.broadcast_to(np.arange(side, dtype=np.uint8)[None, None, :, None], (8, side, side, 1))
    results = augmented(ramp, "resized_crop", size)
    for result, box in zip(results, crops_of(8, side, size), strict=True):
        one = 2.0**POSITION_BITS
        expected = box.left / one + (np.arange(size) + 0.5) * box.right / one - 0.5
        expected = np.clip(expected, 0, side - 1)
        row = result[0, ::-1, 0] if box.mirrored else result[0, :, 0]
        assert np.array_equal(result, np.broadcast_to(result[:1], result.shape))
        assert np.abs(row - expected).max() <= 1 / 256 + 1e-3


def test_a_whole_image_in_its_own_size_is_unchanged() -> None:
    # An area of 1 has an aspect of 1 and one place. The largest draw below 1 is 1 - 2^-24 or 1 - 2^-23.
    images = pictures(2, 16)
    whole = jnp.broadcast_to(jnp.array([1.0, 0.3, 0.6, 0.9, 0.7], jnp.float32), (2, DRAWS))
    assert np.array_equal(resample(images, boxes(whole, 16, 16), 16), images)


def test_the_centre_has_its_wider_border_at_the_end() -> None:
    image = np.arange(25, dtype=np.uint8).reshape(1, 5, 5, 1)
    assert centre(image, 2)[0, :, :, 0].tolist() == [[6, 7], [11, 12]]
    assert centre(image, 5) is not None and np.array_equal(centre(image, 5), image)


# -- which image, which numbers ----------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_each_image_stays_in_its_place(form: str) -> None:
    # Image i has the colour i everywhere, so its crop has no other colour but the padding's.
    images = np.broadcast_to(np.arange(1, 201, dtype=np.uint8)[:, None, None, None], (200, 20, 20, 3))
    results = augmented(images, form, 16)
    colours = [set(np.unique(result)) - {0} for result in results]
    assert colours == [{i} for i in range(1, 201)]


@pytest.mark.parametrize("form", FORMS)
def test_images_are_the_same_however_a_batch_is_divided(form: str) -> None:
    images = pictures(12, 20)
    whole = augmented(images, form, 16)
    for count in (4, 6):
        again = [augmented(images[i : i + count], form, 16, first=i) for i in range(0, 12, count)]
        assert np.array_equal(np.concatenate(again), whole)


@pytest.mark.parametrize("form", FORMS)
def test_images_and_steps_have_numbers_of_their_own(form: str) -> None:
    # Of 162 views or more (81 places of a padded crop, mirrored or not), 32 draws meet 29 on average, with a
    # deviation of 1.6.
    same = np.broadcast_to(pictures(1, 40), (16, 40, 40, 3))
    first, other = augmented(same, form, 16), augmented(same, form, 16, jax.random.key(6))
    assert len({x.tobytes() for x in first} | {x.tobytes() for x in other}) > 23


def test_an_unknown_form_is_an_error() -> None:
    with pytest.raises(ValueError, match="augmentation 'flip' is none of resized_crop, crop, cifar"):
        augmented(pictures(1, 8), "flip", 8)


# -- distributions -----------------------------------------------------------------------------------

COUNT = 20_000


def uniform_distance(values: np.ndarray) -> float:
    """Return the Kolmogorov-Smirnov distance of values in 0..1 from the uniform distribution."""
    ordered = np.sort(values)
    return float(np.abs(ordered - (np.arange(len(ordered)) + 0.5) / len(ordered)).max())


def test_areas_and_aspects_are_uniform() -> None:
    # The distance of 20,000 uniform numbers exceeds 1.95 / sqrt(20,000) = 0.0138 once in a thousand times;
    # the seed is fixed.
    side, one = 256, 2.0**POSITION_BITS
    crops = jax.jit(lambda d: boxes(d, side, 224))(drawn(COUNT))
    height, width = (np.asarray(x, float) * 224 / one / side for x in (crops.down, crops.right))
    area, aspect = height * width, np.log(width / height)
    assert uniform_distance((area - LEAST_AREA) / (1 - LEAST_AREA)) < 0.0138
    widest = np.minimum(math.log(MOST_ASPECT), -np.log(area))
    assert uniform_distance((aspect / widest + 1) / 2) < 0.0138
    assert np.abs(aspect).max() <= math.log(4 / 3) + 1e-4 and area.min() >= 0.25 - 1e-4

    # The aspect does not depend on the area, nor the place on the height: correlations of independent numbers
    # have the deviation 1 / sqrt(20,000) = 0.007.
    room = side * one - np.asarray(crops.down, float) * 224
    place = np.asarray(crops.top, float) / room
    assert uniform_distance(place) < 0.0138
    for one_of, other in ((area, aspect / widest), (place, height), (place, width)):
        assert abs(np.corrcoef(one_of, other)[0, 1]) < 4 * 0.0071


def test_places_of_crops_are_uniform_and_half_are_mirrored() -> None:
    # Pixels have their own number, 0 to 80, so the first and last pixel of a crop tell its place. 25 places,
    # 4,000 crops: 160 each, with a deviation of 12.4. Half are mirrored, with a deviation of 32.
    image = np.arange(81, dtype=np.uint8).reshape(1, 9, 9, 1)
    crops = augmented(np.broadcast_to(image, (4000, 9, 9, 1)), "crop", 5)
    left = np.minimum(crops[:, 0, 0, 0], crops[:, 0, -1, 0]).astype(int)
    places = np.bincount(left // 9 * 5 + left % 9, minlength=25)
    assert len(places) == 25 and places.min() > 160 - 4.5 * 12.4 and places.max() < 160 + 4.5 * 12.4
    mirrored = int((crops[:, 0, 0, 0] > crops[:, 0, -1, 0]).sum())
    assert abs(mirrored - 2000) < 4 * 32


def test_padded_crops_reach_all_places() -> None:
    size, pad = 6, CROP_PADDING
    image = np.arange(1, size * size * 2 + 1, dtype=np.uint8).reshape(size, size, 2)
    crops = augmented(np.broadcast_to(image, (400, size, size, 2)), "cifar", size)
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    views = {}
    for i in range(2 * pad + 1):
        for j in range(2 * pad + 1):
            view = padded[i : i + size, j : j + size]
            views[view.tobytes()] = (i, j, False)
            views[np.ascontiguousarray(view[:, ::-1]).tobytes()] = (i, j, True)
    found = [views[crop.tobytes()] for crop in crops]

    # 400 draws from 81 shifts (p = 0.007 each that one is missed), half of them mirrored (standard deviation
    # 10).
    assert len({(i, j) for i, j, _ in found}) > 70
    assert 150 < sum(mirrored for *_, mirrored in found) < 250


EXTREME = st.sampled_from([0.0, 2.0**-24, 0.5, 1 - 2.0**-23, 1 - 2.0**-24])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(EXTREME, min_size=DRAWS, max_size=DRAWS), min_size=8, max_size=8),
    st.sampled_from([(8, 8), (9, 8), (64, 8), (256, 224), (320, 224), (4096, 8), (4096, 225), (4096, 4096)]),
)
def test_every_box_is_inside_of_the_image(draws: list[list[float]], sizes: tuple[int, int]) -> None:
    side, size = sizes
    crops = boxes(jnp.array(draws, jnp.float32), side, size)
    for begin, step in ((crops.top, crops.down), (crops.left, crops.right)):
        begin, step = np.asarray(begin, np.int64), np.asarray(step, np.int64)
        assert (step > 0).all() and (begin >= 0).all()
        assert (begin + step * size <= side << POSITION_BITS).all()
    area = np.asarray(crops.down, float) * np.asarray(crops.right, float) * (size / side) ** 2
    assert (area / 4.0**POSITION_BITS > LEAST_AREA * 0.999).all()
