# SPDX-License-Identifier: Apache-2.0
"""Single primitives against numbers derived by hand; convolutions with strides, groups and both gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from aiperf_mpi.crosscheck.jaxpr import count
from aiperf_mpi.crosscheck.primitives import RULES, CountError, conv_macs

NHWC = ("NHWC", "HWIO", "NHWC")


def array(*shape: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def operations(function: Callable[..., Any], *shapes: Any) -> int:
    """All operations of a function of arrays of these shapes."""
    return count(jax.make_jaxpr(function)(*shapes)).total


def equations(function: Callable[..., Any], *shapes: Any) -> dict[str, Any]:
    """The last equation of each primitive that a function makes, outside of inner jaxprs."""
    return {eqn.primitive.name: eqn for eqn in jax.make_jaxpr(function)(*shapes).jaxpr.eqns}


def conv(stride: int = 1, before: int = 1, after: int = 1, groups: int = 1) -> Callable[..., Any]:
    """A two-dimensional convolution of x [N, H, W, C] with w [K, K, C / groups, O]."""

    def apply(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x, w, (stride, stride), ((before, after),) * 2, dimension_numbers=NHWC, feature_group_count=groups
        )

    return apply


def three_products(function: Callable[..., Any], x: Any, w: Any) -> list[int]:
    """Multiply-accumulates of a convolution and its two gradients, without the operations around them."""

    def step(x: jax.Array, w: jax.Array, y: jax.Array) -> Any:
        return jax.vjp(function, x, w)[1](y)

    out = jax.eval_shape(function, x, w)
    forward = jax.make_jaxpr(function)(x, w).jaxpr.eqns
    backward = jax.make_jaxpr(step)(x, w, out).jaxpr.eqns
    macs = [conv_macs(eqn) for eqn in (*forward, *backward) if eqn.primitive.name == "conv_general_dilated"]
    # A vjp of a linear function does not need its value: JAX may leave the forward pass out, or in.
    return macs if len(macs) == 3 else macs[1:]


# -- convolutions ----------------------------------------------------------------------------------


def test_a_convolution() -> None:
    # 2 images, 5x5 out, 3x3 kernel, 3 -> 4 features: 2 * 25 * 9 * 3 * 4 = 5400 MACs of weight 2.
    assert operations(conv(), array(2, 5, 5, 3), array(3, 3, 3, 4)) == 10_800


@pytest.mark.parametrize("size", [8, 7])
def test_a_strided_convolution_and_its_input_gradient(size: int) -> None:
    # 8x8 (or 7x7) -> 4x4 with stride 2, 3x3, 3 -> 4: 16 * 9 * 3 * 4 = 1728 MACs, and as many for each
    # gradient. By results times taps the input gradient would be 64 * 9 * 4 * 3 = 6912, four times too much:
    # three of four taps meet a zero that the dilation inserted. On 7x7 a quarter of 49 * 9 * 4 * 3 would be
    # 1323, not the 1728 that the forward pass has.
    assert three_products(conv(stride=2), array(1, size, size, 3), array(3, 3, 3, 4)) == [1728] * 3


def test_a_strided_pointwise_convolution() -> None:
    # As in the first block of a stage: 1x1 with stride 2 on 6x6, 5 -> 7: 9 * 5 * 7 = 315.
    assert three_products(conv(2, 0, 0), array(1, 6, 6, 5), array(1, 1, 5, 7)) == [315] * 3


def test_an_even_kernel() -> None:
    # 4x4 pads 1 before and 2 after: 6x6 -> 6x6, 2 -> 3: 36 * 16 * 2 * 3 = 3456.
    assert three_products(conv(1, 1, 2), array(1, 6, 6, 2), array(4, 4, 2, 3)) == [3456] * 3


@pytest.mark.parametrize(("stride", "macs"), [(1, 2700), (2, 972)])
def test_a_grouped_convolution(stride: int, macs: int) -> None:
    # 4 -> 6 features in 2 groups: each result takes 3x3 taps of 4 / 2 = 2 features. 5x5 out: 25 * 6 * 9 * 2 =
    # 2700; with stride 2 3x3 out: 9 * 6 * 9 * 2 = 972.
    assert three_products(conv(stride, groups=2), array(1, 5, 5, 4), array(3, 3, 2, 6)) == [macs] * 3


@pytest.mark.parametrize(("stride", "macs"), [(1, 3600), (2, 1296)])
def test_a_depthwise_convolution(stride: int, macs: int) -> None:
    # Two images, 4 features, each with 2 results of its own: 2 * 25 * 8 * 9 * 1 = 3600; stride 2: 2 * 9 * 8 *
    # 9 = 1296.
    assert three_products(conv(stride, groups=4), array(2, 5, 5, 4), array(3, 3, 1, 8)) == [macs] * 3


def test_batch_groups() -> None:
    # 4 images in 2 groups, 6 kernels: the first 3 are applied to the first 2 images, the others to the last
    # 2. The result is 2 x 3x3 x 6, each of 3x3 taps of 5 features: 2 * 9 * 6 * 45 = 4860 MACs.
    def grouped(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=NHWC, batch_group_count=2)

    eqn = equations(grouped, array(4, 5, 5, 5), array(3, 3, 5, 6))["conv_general_dilated"]
    assert eqn.outvars[0].aval.shape == (2, 3, 3, 6)
    assert conv_macs(eqn) == 4860


def test_random_convolutions_take_equal_products_forward_and_backward() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        batch, size, kernel, stride, groups, c, o = (
            int(rng.integers(1, high)) for high in (4, 12, 8, 4, 4, 4, 4)
        )
        out = -(-size // stride)
        macs = batch * out * out * kernel * kernel * c * (o * groups)
        before = (kernel - 1) // 2
        function = conv(stride, before, kernel - 1 - before, groups)
        shapes = array(batch, size, size, c * groups), array(kernel, kernel, c, o * groups)
        assert three_products(function, *shapes) == [macs] * 3, (shapes, stride, groups)


def test_a_dilated_operand_with_strides_needs_whole_numbers() -> None:
    def dilated(size: int, kernel: int) -> int:
        def apply(x: jax.Array, w: jax.Array) -> jax.Array:
            return lax.conv_general_dilated(
                x, w, (3, 3), ((0, 0),) * 2, lhs_dilation=(2, 2), dimension_numbers=NHWC
            )

        return operations(apply, array(1, size, size, 1), array(kernel, kernel, 1, 1))

    # 6 places become 11, which have (11 - 2) // 3 + 1 = 4 results a side of 2x2 taps; a quarter is real: 16
    # MACs.
    assert dilated(6, 2) == 32
    # 3 places become 5, which have 1 result of 3x3 taps; a quarter of 9 is not a whole number of MACs.
    with pytest.raises(CountError, match="9 products are not a multiple of 4 .*test_primitives.py"):
        dilated(3, 3)


# -- matrix products and the rest ------------------------------------------------------------------


def two_sums(a: Any, b: Any) -> tuple[Any, Any]:
    return a[0] + b[0], a[1] + b[1]


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        # (4 x 5) (5 x 6): 4 * 6 results of 5 MACs, weight 2.
        (jnp.dot, [(4, 5), (5, 6)], 240),
        # 3 products of (4 x 5) (5 x 6).
        (jnp.matmul, [(3, 4, 5), (3, 5, 6)], 720),
        # Two contracted dimensions: 4 * 6 results of 15 MACs.
        (lambda a, b: jnp.einsum("ijk,jkl->il", a, b), [(4, 3, 5), (3, 5, 6)], 720),
        # 20 elements: an addition weighs 1, a division and a root 4, exp 8, rsqrt 4 + 4.
        (lambda a: a + a, [(4, 5)], 20),
        (lambda a: a / 3, [(4, 5)], 80),
        (lax.sqrt, [(4, 5)], 80),
        (lax.rsqrt, [(4, 5)], 160),
        (lax.exp, [(4, 5)], 160),
        (lax.tanh, [(4, 5)], 160),
        (lambda a: lax.max(a, 0.0), [(4, 5)], 20),
        # x^5 = ((x^2)^2) x: 3 multiplications; x^-2: 1 and a division of 4.
        (lambda a: lax.integer_pow(a, 5), [(4, 5)], 60),
        (lambda a: lax.integer_pow(a, -2), [(4, 5)], 100),
        # 20 terms in 5 sums: 15 additions. All 20 in one: 19.
        (lambda a: lax.reduce_sum(a, (0,)), [(4, 5)], 15),
        (lambda a: lax.reduce_max(a, (0, 1)), [(4, 5)], 19),
        # Two sums in one operation: 15 additions each.
        (lambda a, b: lax.reduce((a, b), (0.0, 0.0), two_sums, (0,)), [(4, 5), (4, 5)], 30),
        (lambda a: lax.argmax(a, 1, np.int32), [(4, 5)], 16),
        (lambda a: lax.cumsum(a, 1), [(4, 5)], 20),
        # Moving things costs nothing.
        (lambda a: jnp.broadcast_to(a.T[::-1].reshape(2, 10), (3, 2, 10)), [(4, 5)], 0),
        # 2 rows of 4 sorted: 4 log2 4 comparisons each.
        (lambda a: lax.sort(a, dimension=1), [(2, 4)], 16),
    ],
)
def test_by_hand(function: Callable[..., Any], shapes: list[tuple[int, ...]], expected: int) -> None:
    assert operations(function, *(array(*shape) for shape in shapes)) == expected


def test_max_pooling_and_its_gradient() -> None:
    def pool(x: jax.Array) -> jax.Array:
        padding = ((0, 0), (1, 1), (1, 1), (0, 0))
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)

    # 4x4 results of 2 features and 9 comparisons: Table 1 of the paper.
    assert operations(pool, array(1, 8, 8, 2)) == 288
    # Backward each of the 32 gradients looks at 9 places, and is added to one: 320.
    eqn = equations(lambda x, y: jax.vjp(pool, x)[1](y), array(1, 8, 8, 2), array(1, 4, 4, 2))
    assert RULES["select_and_scatter_add"](eqn["select_and_scatter_add"]) == 320


def test_random_numbers_count_as_the_generators_rounds() -> None:
    # 8 words are 4 blocks of 20 rounds of 5, 2 + 5 * 3 additions of keys, 2 xor: 119 operations each.
    key = jax.eval_shape(lambda: jax.random.key(0))
    eqn = equations(lambda key: jax.random.bits(key, (8,)), key)["random_bits"]
    assert RULES["random_bits"](eqn) == 476


def test_an_unknown_primitive_raises_with_its_name_and_line() -> None:
    # No layer of the networks is a triangular solve.
    with pytest.raises(
        CountError, match=r"primitive 'triangular_solve' has no rule \(.*test_primitives\.py:\d+"
    ):
        operations(lambda a, b: lax.linalg.triangular_solve(a, b, left_side=True), array(3, 3), array(3, 2))
