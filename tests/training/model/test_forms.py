# SPDX-License-Identifier: Apache-2.0
"""The forms of layers that read and write less memory compute what the plain layers compute."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aiperf_mpi.crosscheck.trace import trace_train
from aiperf_mpi.network.architecture import Architecture, Base, Morph, resnet50
from aiperf_mpi.opcount.forms import KEPT, LEAN, MERGED, expansions
from aiperf_mpi.training.model.folding import normalise_product
from aiperf_mpi.training.model.fusions import fusions
from aiperf_mpi.training.model.layers import Tail, normalise_batch
from aiperf_mpi.training.model.pooling import max_pool, normalise_pool
from aiperf_mpi.training.steps.compile import lower_train
from aiperf_mpi.training.steps.devices import AXIS
from aiperf_mpi.training.steps.step import StepSettings, eval_step
from benchmarks.traffic_numerics import compared, varied_variables
from tests.helpers.training.cases import TINY, random_chains

#: The smallest network with a first block and a strided one, both with projections, and an identity block.
SMALL = resnet50(Base(image_size=16, channels=1, classes=10, width=4, blocks=(2, 1)))

#: Sums of some hundred float32 numbers differ by their order: 2^-24 x sqrt(500) = 1.3e-6 of the largest.
TIGHT = 3e-6


def numbers(shape, seed=0, shift=0.0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(shift, 1, shape), dtype)


def largest(actual, expected):
    """Return the largest difference, as a share of the largest expected number."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30)


def with_gradients(function, weights, *arguments):
    """Return a function's results, and its arguments' gradients for these weights, by one program."""

    def run(*arguments):
        results, back = jax.vjp(function, *arguments)
        return results, back(weights)

    return jax.jit(run)(*arguments)


def plain_pool(x):
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


@pytest.mark.parametrize("side", [8, 7, 1])
def test_max_pooling_without_a_scatter(side: int) -> None:
    # Small integers, so that most windows have several maxima: the gradient goes to the first of each.
    x = jnp.asarray(np.random.default_rng(1).integers(0, 3, (2, side, side + 1, 3)), jnp.float32)
    weights = numbers(jax.eval_shape(plain_pool, x).shape, 2)
    expected, gradients = with_gradients(plain_pool, weights, x)
    actual, ours = with_gradients(max_pool, weights, x)
    assert (actual == expected).all() and largest(ours[0], gradients[0]) <= TIGHT
    assert "scatter" not in str(jax.make_jaxpr(lambda x: jax.vjp(max_pool, x)[1](weights))(x))


@pytest.mark.parametrize("shortcut", [False, True])
def test_a_batch_norm_that_shares_nothing_and_sums_by_images(shortcut: bool) -> None:
    arguments = (numbers((4, 3, 5, 6), 15, 0.7), numbers(6, 16), numbers(6, 17))
    arguments += (numbers((4, 3, 5, 6), 18),) if shortcut else ()

    def norm(tail):
        return lambda x, scale, bias, added=None: normalise_batch(x, scale, bias, added, tail, jnp.float32)

    add = "add" if shortcut else ""
    compare(norm(Tail(add, "relu")), norm(Tail(add, "relu", again=True, grouped=True)), arguments)


@pytest.mark.parametrize(("side", "grouped"), [(8, False), (7, True)])
def test_batch_norm_and_max_pooling_as_one(side: int, grouped: bool) -> None:
    x, scale, bias = numbers((4, side, side, 5), 3, 0.7), numbers(5, 4), numbers(5, 5)

    def apart(x, scale, bias):
        y, mean, var = normalise_batch(x, scale, bias, None, Tail("", "relu"), jnp.float32)
        return plain_pool(y), mean, var

    compare(apart, lambda *a: normalise_pool(*a, jnp.float32, None, grouped), (x, scale, bias))


@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("relu", ["", "relu"])
def test_an_expanding_convolution_and_its_batch_norm_as_one(shortcut: bool, relu: str) -> None:
    x, kernel = numbers((4, 3, 3, 4), 6, 0.7), numbers((4, 10), 7)
    scale, bias = numbers(10, 8), numbers(10, 9)
    arguments = (x, kernel, scale, bias) + ((numbers((4, 3, 3, 10), 10),) if shortcut else ())
    tail = Tail("add" if shortcut else "", relu)

    def apart(x, kernel, scale, bias, added=None):
        return normalise_batch(jnp.dot(x, kernel), scale, bias, added, tail, jnp.float32)

    def together(x, kernel, scale, bias, added=None):
        return normalise_product(x, kernel, scale, bias, added, tail)

    compare(apart, together, arguments)


def pooled_on(axis):
    return lambda x, scale, bias: normalise_pool(x, scale, bias, jnp.float32, axis)[0]


def product_on(axis):
    return lambda x, kernel, *norm: normalise_product(x, kernel, *norm, None, Tail("", "relu"), axis)[0]


@pytest.mark.parametrize(
    ("function", "shapes"), [(pooled_on, [(5,), (5,)]), (product_on, [(5, 12), (12,), (12,)])]
)
def test_two_devices_with_common_statistics_equal_one_with_the_whole_batch(function, shapes) -> None:
    x, parameters = numbers((4, 6, 6, 5), 13, 0.7), [numbers(shape, n) for n, shape in enumerate(shapes)]
    weights = numbers(jax.eval_shape(function(None), x, *parameters).shape, 14)
    y, (of_x, *of_parameters) = with_gradients(function(None), weights, x, *parameters)

    def device(x, weights):
        y, back = jax.vjp(function("devices"), x, *parameters)
        return y, back(weights)

    cut = [array.reshape(2, 2, *array.shape[1:]) for array in (x, weights)]
    own_y, (own_x, *own) = jax.jit(jax.vmap(device, axis_name="devices"))(*cut)
    assert largest(own_y.reshape(y.shape), y) <= TIGHT and largest(own_x.reshape(x.shape), of_x) <= TIGHT
    # Each device has the share of its own images.
    for share, whole in zip(own, of_parameters, strict=True):
        assert largest(share.sum(0), whole) <= TIGHT


def compare(apart, together, arguments) -> None:
    """Check output, statistics and all gradients."""
    y, mean, var = jax.eval_shape(apart, *arguments)
    weights = (numbers(y.shape, 11), jnp.zeros(mean.shape), jnp.zeros(var.shape))
    expected, gradients = with_gradients(apart, weights, *arguments)
    actual, ours = with_gradients(together, weights, *arguments)
    for found, right in zip((*actual, *ours), (*expected, *gradients), strict=True):
        assert found.dtype == right.dtype and largest(found, right) <= TIGHT


def test_every_layer_of_resnet50_has_its_form() -> None:
    layers = resnet50().layers()
    fused, taken = fusions(layers, [form for form in LEAN if form != MERGED])
    # 16 blocks end with an expanding convolution, and 4 begin with an expanding projection.
    assert len(expansions(layers)) == sum(found.conv is not None for found in fused.values()) == 20
    assert [name for name, found in fused.items() if found.pool] == ["pool"]
    others = {layer.name for layer in layers if layer.kind in ("batch_norm", "relu", "add")}
    assert others <= {*taken, *fused}


def test_in_evaluation_every_batch_norm_is_merged() -> None:
    layers = resnet50().layers()
    fused, taken = fusions(layers, (MERGED,))
    assert sum(found.conv is not None for found in fused.values()) == 53
    assert {layer.name for layer in layers if layer.kind == "conv"} <= taken
    # A first convolution with a form of its own stays.
    fused, _ = fusions(layers, (MERGED,), {"unit000.conv"})
    assert sum(found.conv is not None for found in fused.values()) == 52


def test_a_pooling_whose_input_is_read_elsewhere_has_no_scatter_either() -> None:
    # A new unit before the pooling, whose output a later unit adds too.
    network = SMALL.apply(Morph("deeper", 0, 0, 3), Morph("skip", 10, 4))
    fused, _ = fusions(network.layers(), LEAN)
    assert not any(found.pool for found in fused.values())
    trace = trace_train(network, StepSettings(2, forms=LEAN))
    assert "scatter" not in str(trace.program)
    assert "scatter" in str(trace_train(network, StepSettings(2)).program)


def within(network: Architecture) -> None:
    """Check the gradients of a whole step against those of the plain form.

    Rounding moves no activation of these images across a ReLU's 0, which would change a gradient by 1e-3.
    """
    (wide,) = compared(network, StepSettings(24, augmentation="cifar"), LEAN, ("float32",))
    assert wide.worst <= 1e-5 and wide.statistics <= 1e-6 and wide.loss <= 1e-6, wide


def test_gradients_of_a_whole_step_are_those_of_the_plain_form() -> None:
    within(SMALL)


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("network", random_chains(20))
def test_gradients_of_morphed_networks_are_those_of_the_plain_form(network: Architecture) -> None:
    within(network)


@pytest.mark.parametrize("stem", ["plain", "space_to_depth"])
def test_an_evaluation_with_merged_batch_norms_is_that_of_the_plain_form(stem: str) -> None:
    variables = varied_variables(SMALL)
    rng = np.random.default_rng(12)
    for tensors in variables["batch_stats"].values():
        tensors["mean"] = rng.normal(0, 0.3, tensors["mean"].shape).astype(np.float32)
        tensors["var"] = rng.uniform(0.5, 2, tensors["var"].shape).astype(np.float32)
    images = rng.integers(0, 256, (8, 16, 16, 1), dtype=np.uint8)
    labels = rng.integers(0, 10, 8, dtype=np.int32)

    def both(*arguments):
        steps = (eval_step(SMALL, StepSettings(8, stem=stem, forms=forms)) for forms in ((), (MERGED,)))
        return [jax.vmap(step, in_axes=(None, None, 0, 0, 0), axis_name=AXIS)(*arguments) for step in steps]

    batch = images[None], labels[None], np.ones((1, 8), bool)
    plain, merged = jax.jit(both)(variables["params"], variables["batch_stats"], *batch)
    assert largest(merged.loss, plain.loss) <= TIGHT
    assert int(merged.correct[0]) == int(plain.correct[0]) and int(merged.images[0]) == 8


def test_a_kept_state_is_not_given_away() -> None:
    devices = jax.devices()[:1]
    for forms, given in (((), True), ((KEPT,), False)):
        text = lower_train(resnet50(TINY), StepSettings(2, forms=forms), devices, "shard_map").as_text()
        assert ("tf.aliasing_output" in text) == given
