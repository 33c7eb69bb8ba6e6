# SPDX-License-Identifier: Apache-2.0
"""The first convolution on blocks of pixels is the plain one: outputs, gradients, and the same weights."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aiperf_mpi.network.architecture import Architecture, Base, Morph, resnet50
from aiperf_mpi.training.model.initial import initial_variables
from aiperf_mpi.training.model.resnet import network
from aiperf_mpi.training.model.stem import BlockConv, blocks_of, to_blocks
from tests.helpers.training.cases import SHALLOW, TINY


def plain(filters: int, kernel: int, dtype: object = jnp.float32) -> nn.Conv:
    before = (kernel - 1) // 2
    return nn.Conv(
        filters, (kernel, kernel), 2, ((before, kernel - 1 - before),) * 2, use_bias=False, dtype=dtype
    )


def norm_of_difference(actual: jax.Array, expected: jax.Array) -> float:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    "kernel", [7, 8, *(pytest.param(size, marks=pytest.mark.full) for size in (1, 3, 5, 9, 11))]
)
def test_outputs_and_gradients_equal_the_plain_convolution(kernel):
    rng = np.random.default_rng(kernel)
    images = rng.normal(size=(2, 10, 14, 3)).astype(np.float32)
    variables = {"params": {"kernel": rng.normal(size=(kernel, kernel, 3, 5)).astype(np.float32)}}
    weights = rng.normal(size=(2, 5, 7, 5)).astype(np.float32)

    def loss(variables, images, module):
        output = module.apply(variables, images)
        return jnp.sum(weights * output), output

    blocks, whole = (
        jax.value_and_grad(loss, (0, 1), has_aux=True)(variables, images, module)
        for module in (BlockConv(5, kernel), plain(5, kernel))
    )
    # Sums of at most 11 * 11 * 3 products in float32, whatever their order.
    assert norm_of_difference(blocks[0][1], whole[0][1]) < 1e-6
    for actual, expected in zip(jax.tree.leaves(blocks[1]), jax.tree.leaves(whole[1]), strict=True):
        assert norm_of_difference(actual, expected) < 1e-6


def test_in_bfloat16_both_forms_are_equally_far_from_float32():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 32, 32, 3)).astype(np.float32)
    variables = {"params": {"kernel": rng.normal(size=(7, 7, 3, 8)).astype(np.float32)}}
    exact = plain(8, 7).apply(variables, images)
    blocks, whole = (
        module.apply(variables, images)
        for module in (BlockConv(8, 7, jnp.bfloat16), plain(8, 7, jnp.bfloat16))
    )
    assert blocks.dtype == whole.dtype == jnp.bfloat16
    # Operands and result are rounded to 8 bits, each by at most 2^-9 of itself.
    assert norm_of_difference(blocks, exact) < 3 * 2**-9
    assert norm_of_difference(blocks, exact) == pytest.approx(norm_of_difference(whole, exact), rel=0.1)


def test_blocks_by_hand():
    # Pixel (row, column) of a 4x4 image is 4 row + column; the second block of the first row holds 2, 3, 6,
    # 7.
    blocks = to_blocks(jnp.arange(16).reshape(1, 4, 4, 1))
    assert blocks.shape == (1, 2, 2, 4) and blocks[0, 0, 1].tolist() == [2, 3, 6, 7]
    # A kernel of 7 pads 3 before, so its first block begins a pixel earlier: 8 pixels. A kernel of 9 pads 4:
    # 9 pixels.
    assert [blocks_of(kernel) for kernel in (1, 3, 7, 9)] == [1, 2, 4, 5]


MORPHED = resnet50(SHALLOW).apply(Morph("deeper", 0, 0, 3), Morph("wider", 0), Morph("skip", 1, 4))


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(resnet50(TINY), id="tiny"), pytest.param(MORPHED, id="morphed", marks=pytest.mark.full)],
)
def test_both_stems_have_the_same_variables_loss_and_gradients(architecture: Architecture):
    base = architecture.base
    images = (
        np.random.default_rng(1).normal(size=(16, base.image_size, base.image_size, 1)).astype(np.float32)
    )
    variables = initial_variables(architecture, np.random.default_rng(0))

    def loss(params, stem):
        logits, changed = network(architecture, stem=stem).apply(
            {"params": params, "batch_stats": variables["batch_stats"]},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        return jnp.mean(jax.nn.logsumexp(logits, 1)), changed

    compute = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (actual, changed), gradient = compute(variables["params"], "space_to_depth")
    (expected, expected_changed), expected_gradient = compute(variables["params"], "plain")
    assert float(actual) == pytest.approx(float(expected), rel=1e-5)
    for a, b in zip(
        jax.tree.leaves((gradient, changed)),
        jax.tree.leaves((expected_gradient, expected_changed)),
        strict=True,
    ):
        assert a.shape == b.shape
        assert norm_of_difference(a, b) < 1e-3 or np.abs(np.asarray(a) - np.asarray(b)).max() < 1e-6


def test_invalid_stems_are_errors_with_a_reason():
    odd = resnet50(Base(image_size=33, channels=3, classes=10, width=4, blocks=(1,)))
    with pytest.raises(ValueError, match="33x33 pixels has no blocks"):
        network(odd, stem="space_to_depth").init(
            jax.random.key(0), np.zeros((1, 33, 33, 3), np.float32), train=True
        )
    with pytest.raises(ValueError, match="'winograd' is not one of plain, space_to_depth"):
        network(odd, stem="winograd")
