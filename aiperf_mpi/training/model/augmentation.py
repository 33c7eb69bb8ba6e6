# SPDX-License-Identifier: Apache-2.0
"""Crop and mirror training images at random, on the devices, inside a step.

Each image has a random stream of its own, from the key of the step and the image's number in the global
batch. So the same key makes the same images, however many devices and micro-batches share them. Only slices
and gathers move pixels: a matrix product in a step would be counted, and reject its candidate.
docs/augmentation.md has the forms, their sources and their cost.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from aiperf_mpi.opcount.tally import AUGMENTATION
from aiperf_mpi.training.model.images import centre

#: The forms of augmentation; see `augment`. Without one, the centre of each image is trained.
RESIZED_CROP, CROP, CIFAR, NONE = "resized_crop", "crop", "cifar", "none"

#: Pixels of padding on each side of an image before a random crop (He et al., 2016, section 4.2).
CROP_PADDING = 4

#: Smallest part of an image's area in a resized crop. The crop itself is that of Szegedy et al. (2015,
#: section 6), who take 0.08 for networks that train longer.
LEAST_AREA = 0.25

#: Largest quotient of a resized crop's sides (Szegedy et al., 2015, section 6: 3/4 to 4/3).
MOST_ASPECT = 4 / 3

#: Bits after the point of a position in pixels. With at most 12 bits before it, positions fit into int32.
POSITION_BITS = 16

#: Bits of the weight of a neighbouring pixel. Products of a value (8 bits) and two weights have 24 bits,
#: which float32 holds: the interpolation is exact, on any device and in any order.
WEIGHT_BITS = 8

#: Random numbers of an image: area, aspect, vertical and horizontal place, mirrored or not.
DRAWS = 5


class Boxes(NamedTuple):
    """The crops of B images of S x S pixels, in units of 2^-POSITION_BITS pixels.

    Attributes:
        top, left: int32 [B], of the upper left corner, 0 at the edge of the image.
        down, right: int32 [B], distances of the pixels of the result; the crop is `size` times as large.
        mirrored: bool [B].
    """

    top: jax.Array
    left: jax.Array
    down: jax.Array
    right: jax.Array
    mirrored: jax.Array


def augment(images: jax.Array, key: jax.Array, numbers: jax.Array, form: str, size: int) -> jax.Array:
    """Return the images as they are trained in this step: [B, size, size, C], values 0 to 255.

    Arguments:
        images: uint8 [B, S, S, C], S >= size.
        key: random key of the step.
        numbers: int32 [B], the place of each image in the global batch.
        form: RESIZED_CROP: a part of random area and aspect, scaled to `size` (float32); CROP: `size` x
            `size` pixels; CIFAR: as many of the centre, padded by CROP_PADDING zeros.

    Half of the images are mirrored.

    The operations count as augmentation, see `opcount.tally`; they are never credited.
    """
    with jax.named_scope(AUGMENTATION):
        draws = draw(key, numbers)
        if form == RESIZED_CROP:
            return resample(images, boxes(draws, images.shape[1], size), size)
        if form == CIFAR:
            border = (CROP_PADDING, CROP_PADDING)
            images = jnp.pad(centre(images, size), ((0, 0), border, border, (0, 0)))
        elif form != CROP:
            raise ValueError(f"augmentation {form!r} is none of {RESIZED_CROP}, {CROP}, {CIFAR}")
        return _crop(images, draws, size)


def draw(key: jax.Array, numbers: jax.Array) -> jax.Array:
    """Return random numbers float32 [B, DRAWS], uniform in 0..1 without 1, from each image's own stream."""
    return jax.vmap(lambda number: jax.random.uniform(jax.random.fold_in(key, number), (DRAWS,)))(numbers)


def _crop(images: jax.Array, draws: jax.Array, size: int) -> jax.Array:
    """Return `size` x `size` pixels of each image, from a random place, half of them mirrored."""
    places = (draws[:, 2:4] * (images.shape[1] - size + 1)).astype(jnp.int32)

    def crop(image: jax.Array, place: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (place[0], place[1], 0), (size, size, image.shape[-1]))

    crops = jax.vmap(crop)(images, places)
    return jnp.where(_mirrored(draws)[:, None, None, None], crops[:, :, ::-1], crops)


def _mirrored(draws: jax.Array) -> jax.Array:
    return draws[:, 4] < 0.5


# -- resized crops ---------------------------------------------------------------------------------


def boxes(draws: jax.Array, side: int, size: int) -> Boxes:
    """Return random crops of images of `side` x `side` pixels, to be scaled to `size` x `size`.

    The area is uniform in LEAST_AREA to 1. The logarithm of the aspect is uniform in the range that fits into
    the image with this area: all of 3/4 to 4/3 up to an area of 3/4, less above, and 1 for the whole image.
    So no crop is drawn a second time. The place is uniform, and not in whole pixels.

    Arguments:
        draws: float32 [B, DRAWS], uniform in 0..1.
    """
    area = LEAST_AREA + (1 - LEAST_AREA) * draws[:, 0]
    widest = jnp.minimum(math.log(MOST_ASPECT), -jnp.log(area))
    stretch = jnp.exp(0.5 * widest * (2 * draws[:, 1] - 1))
    edge = jnp.sqrt(area)
    down, top = _interval(edge / stretch, draws[:, 2], side, size)
    right, left = _interval(edge * stretch, draws[:, 3], side, size)
    return Boxes(top, left, down, right, _mirrored(draws))


def _interval(part: jax.Array, place: jax.Array, side: int, size: int) -> tuple[jax.Array, jax.Array]:
    """Return (distance of pixels, begin) int32 [B] of a crop of `part` of the side, at the random `place`.

    The crop is inside of the image whatever the rounding of the floats.
    """
    whole = side << POSITION_BITS
    step = jnp.minimum((part * (whole // size)).astype(jnp.int32), whole // size)
    room = whole - step * size
    return step, jnp.minimum((place * room.astype(jnp.float32)).astype(jnp.int32), room)


def resample(images: jax.Array, crops: Boxes, size: int) -> jax.Array:
    """Return the crops of uint8 [B, S, S, C] scaled to float32 [B, size, size, C] by bilinear interpolation.

    A result is the mean of the four pixels around its centre, with weights in steps of 2^-WEIGHT_BITS. There
    is no antialiasing: a crop shrinks by S / size at most, 256 / 224 for ImageNet. At the edge of a crop a
    pixel next to it may have a weight; outside of the image the nearest pixel counts.
    """
    side, places = images.shape[1], jnp.arange(size, dtype=jnp.int32)
    across = jnp.where(crops.mirrored[:, None], size - 1 - places, places)
    rows = _neighbours(crops.top, crops.down, jnp.broadcast_to(places, across.shape), side)
    columns = _neighbours(crops.left, crops.right, across, side)

    # The pixels are gathered as bytes: first whole rows, then the columns of these.
    (low_row, high_row, down), (low, high, right) = rows, columns
    upper, lower = _take_rows(images, low_row), _take_rows(images, high_row)
    right = right[:, None, :, None]
    above = _between(_take_columns(upper, low), _take_columns(upper, high), right)
    below = _between(_take_columns(lower, low), _take_columns(lower, high), right)
    return _between(above, below, down[:, :, None, None]) * 0.5 ** (2 * WEIGHT_BITS)


def _neighbours(
    begin: jax.Array, step: jax.Array, places: jax.Array, side: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the pixels before and after the centres of the result's pixels `places`, and a weight.

    All are [B, size]. The weight is that of the pixel after, a whole number below 2^WEIGHT_BITS as float32.
    """
    half = 1 << (POSITION_BITS - 1)
    centres = begin[:, None] + step[:, None] * places + (step[:, None] >> 1) - half
    centres = jnp.clip(centres, 0, (side - 1) << POSITION_BITS)
    low = centres >> POSITION_BITS
    weight = (centres >> (POSITION_BITS - WEIGHT_BITS)) & ((1 << WEIGHT_BITS) - 1)
    return low, jnp.minimum(low + 1, side - 1), weight.astype(jnp.float32)


def _between(low: jax.Array, high: jax.Array, weight: jax.Array) -> jax.Array:
    """Return 2^WEIGHT_BITS times the weighted mean, in float32."""
    low, high = low.astype(jnp.float32), high.astype(jnp.float32)
    return low * (1 << WEIGHT_BITS) + (high - low) * weight


def _take_rows(images: jax.Array, rows: jax.Array) -> jax.Array:
    """Return images[b, rows[b]]; all rows exist."""
    return jax.vmap(
        lambda image, row: image.at[row].get(mode="promise_in_bounds", wrap_negative_indices=False)
    )(images, rows)


def _take_columns(images: jax.Array, columns: jax.Array) -> jax.Array:
    """Return images[b, :, columns[b]]; all columns exist."""
    return jax.vmap(
        lambda image, column: image.at[:, column].get(mode="promise_in_bounds", wrap_negative_indices=False)
    )(images, columns)
