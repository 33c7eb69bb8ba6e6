# SPDX-License-Identifier: Apache-2.0
"""The traversal: loops, branches, calls, and the classes of matrix products by the marks of inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from aiperf_mpi.crosscheck.jaxpr import IMAGES, LABELS, MOMENTA, PARAMETERS, RATE, count
from aiperf_mpi.crosscheck.primitives import CountError
from aiperf_mpi.opcount.tally import Tally

MATRIX = jax.ShapeDtypeStruct((4, 4), np.float32)

#: (4 x 4) (4 x 4): 64 MACs of weight 2.
PRODUCT = 128


def tally(function: Callable[..., Any], *shapes: Any, marks: list[int] | None = None) -> Tally:
    return count(jax.make_jaxpr(function)(*shapes), marks)


def products(function: Callable[..., Any], *shapes: Any) -> float:
    """How many products of MATRIX a function counts."""
    return tally(function, *shapes)["dense", "forward"] / PRODUCT


# -- loops -----------------------------------------------------------------------------------------


def test_a_product_in_a_scan_counts_length_times() -> None:
    assert (
        products(lambda x, w: lax.scan(lambda c, _: (c @ w, None), x, None, length=10)[0], MATRIX, MATRIX)
        == 10
    )


def test_scans_multiply() -> None:
    def nested(x: jax.Array, w: jax.Array) -> jax.Array:
        inner = lambda c: lax.scan(lambda c, _: (c @ w, None), c, None, length=3)[0]  # noqa: E731
        return lax.scan(lambda c, _: (inner(c) @ w, None), x, None, length=5)[0]

    # 5 times (3 + 1).
    assert products(nested, MATRIX, MATRIX) == 20


def test_the_gradient_of_a_scan() -> None:
    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return lax.scan(lambda c, _: (c @ w, None), x, None, length=10)[0].sum()

    # 10 forward, 10 weight gradients, 10 input gradients: the first of them, of x, is not needed,
    # but the body of the loop is the same for all.
    assert products(jax.grad(loss), MATRIX, MATRIX) == 30


def test_a_fori_loop_with_known_bounds() -> None:
    assert products(lambda x, w: lax.fori_loop(2, 9, lambda i, c: c @ w, x), MATRIX, MATRIX) == 7


@pytest.mark.parametrize(
    ("start", "bound", "step", "trips"), [(0, 10, 1, 10), (3, 10, 4, 2), (5, 5, 1, 0), (9, 2, 1, 0)]
)
def test_a_while_loop_that_counts(start: int, bound: int, step: int, trips: int) -> None:
    def loop(x: jax.Array, w: jax.Array) -> Any:
        return lax.while_loop(lambda c: c[0] < bound, lambda c: (c[0] + step, c[1] @ w), (start, x))[1]

    # The counter costs an addition a trip, and one comparison more than there are trips.
    assert tally(loop, MATRIX, MATRIX).total == trips * (PRODUCT + 1) + trips + 1


def test_a_while_loop_whose_bound_is_carried_through_a_jit() -> None:
    @jax.jit
    def loop(x: jax.Array, w: jax.Array, start: int, bound: int) -> jax.Array:
        carry = (start, bound, x)
        return lax.while_loop(lambda c: c[0] < c[1], lambda c: (c[0] + 1, c[1], c[2] @ w), carry)[2]

    assert products(lambda x, w: loop(x, w, 0, 6), MATRIX, MATRIX) == 6


@pytest.mark.parametrize(
    "loop",
    [
        lambda x, w, n: lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] @ w), (0, x)),
        lambda x, w, n: lax.while_loop(lambda c: c[1][0, 0] < 3, lambda c: (c[0] + 1, c[1] @ w), (0, x)),
        lambda x, w, n: lax.while_loop(lambda c: c[0] < 9, lambda c: (c[0] * 2, c[1] @ w), (1, x)),
        lambda x, w, n: lax.while_loop(
            lambda c: c[0] < c[2], lambda c: (c[0] + 1, c[1] @ w, c[2] - 1), (0, x, 9)
        ),
    ],
    ids=["bound-is-an-input", "test-of-a-value", "counter-is-doubled", "bound-moves"],
)
def test_a_loop_of_unknown_length_raises(loop: Callable[..., Any]) -> None:
    with pytest.raises(CountError, match=r"number of trips is not known \(.*test_jaxpr\.py:\d+"):
        tally(loop, MATRIX, MATRIX, jax.ShapeDtypeStruct((), np.int32))


# -- branches and calls ----------------------------------------------------------------------------


def test_branches_with_the_same_products_count_as_the_largest() -> None:
    def step(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: w @ x + 1)

    # One product; 16 additions of the larger branch; the comparison that chooses.
    assert tally(step, MATRIX, MATRIX).total == PRODUCT + 16 + 1


def test_branches_with_different_products_raise() -> None:
    with pytest.raises(CountError, match="branches of a cond have different matrix products"):
        tally(lambda x, w: lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x), MATRIX, MATRIX)


@jax.custom_jvp
def _jvp_product(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ w


_jvp_product.defjvp(lambda primals, tangents: (primals[0] @ primals[1], tangents[0] @ primals[1]))


@jax.custom_vjp
def _vjp_product(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ w


_vjp_product.defvjp(lambda x, w: (x @ w, w), lambda w, y: (y @ w.T, y))


@pytest.mark.parametrize(
    ("function", "times"),
    [
        (jax.jit(jnp.matmul), 1),
        (jax.checkpoint(jnp.matmul), 1),
        (_jvp_product, 1),
        (_vjp_product, 1),
        # Forward, recomputed where there is a reason to, and the input gradient.
        (jax.grad(lambda x, w: _vjp_product(x, w).sum()), 2),
        (jax.grad(lambda x, w: jnp.sin(x @ w).sum()), 2),
        (jax.grad(jax.checkpoint(lambda x, w: jnp.sin(x @ w).sum())), 3),
        (jax.vmap(jnp.matmul, (None, 0)), 4),
    ],
    ids=["jit", "remat", "custom_jvp", "custom_vjp", "custom_vjp-grad", "grad", "remat-grad", "vmap"],
)
def test_calls_are_descended(function: Callable[..., Any], times: int) -> None:
    second = jax.ShapeDtypeStruct((4, 4, 4), np.float32) if times == 4 else MATRIX
    assert products(function, MATRIX, second) == times


def test_pmap_and_shard_map_count_one_device() -> None:
    devices = jax.devices()[:1]
    mesh = jax.sharding.Mesh(np.array(devices), ("d",))
    across, same = PartitionSpec("d"), PartitionSpec()
    shard = jax.shard_map(lambda x, w: lax.psum(x[0] @ w[0], "d"), mesh=mesh, in_specs=across, out_specs=same)
    mapped = jax.pmap(lambda x, w: lax.psum(x @ w, "d"), "d", devices=devices)
    one = jax.ShapeDtypeStruct((1, 4, 4), np.float32)
    for function in (shard, mapped):
        counted = tally(function, one, one)
        assert counted["dense", "forward"] == PRODUCT
        assert counted["all_reduce", "step"] == 16


# -- marks -----------------------------------------------------------------------------------------


def _regression(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    hidden = jnp.tanh(x @ w[0])
    return ((hidden @ w[1] - y) ** 2).sum()


def test_products_are_classified_by_their_inputs() -> None:
    def step(w: Any, momenta: Any, rate: Any, x: jax.Array, y: jax.Array) -> Any:
        gradients = jax.grad(_regression)(w, x, y)
        momenta = [0.9 * m + g for m, g in zip(momenta, gradients, strict=True)]
        return [p - rate * m for p, m in zip(w, momenta, strict=True)]

    pair = [MATRIX, MATRIX]
    marks = [PARAMETERS] * 2 + [MOMENTA] * 2 + [RATE, IMAGES, LABELS]
    counted = tally(step, pair, pair, jax.ShapeDtypeStruct((), np.float32), MATRIX, MATRIX, marks=marks)

    # Two products forward, two weight gradients, and the input gradient of the second alone: the data need
    # none.
    assert counted["dense", "forward"] == 2 * PRODUCT
    assert counted["dense", "weight gradient"] == 2 * PRODUCT
    assert counted["dense", "input gradient"] == PRODUCT
    # Two multiplications, an addition and a subtraction for each of 32 parameters.
    assert counted["update", "step"] == 4 * 32


def test_marks_follow_a_loop_until_they_no_longer_change() -> None:
    # The labels reach x by y in the second trip only; then x @ w is an input gradient.
    def loop(w: jax.Array, x: jax.Array, y: jax.Array) -> Any:
        return lax.scan(lambda c, _: ((c[1], c[2], c[0] @ w), None), (x, x, y), None, length=6)[0]

    counted = tally(loop, MATRIX, MATRIX, MATRIX, marks=[PARAMETERS, IMAGES, LABELS])
    assert counted["dense", "input gradient"] == 6 * PRODUCT and counted["dense", "forward"] == 0


def test_an_all_reduce_of_many_values_keeps_their_marks_apart() -> None:
    def step(w: jax.Array, x: jax.Array, y: jax.Array) -> Any:
        w, x, y = lax.psum((w, x, y), "d")
        return x @ w, y @ w

    program = jax.make_jaxpr(step, axis_env=[("d", 8)])(MATRIX, MATRIX, MATRIX)
    counted = count(program, [PARAMETERS, IMAGES, LABELS])
    assert counted["dense", "forward"] == PRODUCT and counted["dense", "input gradient"] == PRODUCT


def test_marks_must_fit_the_program() -> None:
    with pytest.raises(ValueError, match="1 marks for a program of 2 inputs"):
        tally(jnp.matmul, MATRIX, MATRIX, marks=[0])


# -- tallies ---------------------------------------------------------------------------------------


def test_tallies_add_up_and_repeat() -> None:
    first, second = Tally({("conv", "forward"): 3, ("add", "backward"): 1}), Tally({("conv", "forward"): 4})
    both = first + second
    assert both == Tally({("conv", "forward"): 7, ("add", "backward"): 1}) and both.total == 8
    assert (first * 3).total == 12 and first["dense", "forward"] == 0
    assert both.kinds()["conv"] == (7, 0) and both.kinds()["add"] == (0, 1)
