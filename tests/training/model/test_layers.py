# SPDX-License-Identifier: Apache-2.0
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aiperf_mpi.network.architecture import Layer, Morph, resnet50
from aiperf_mpi.training.model.fusions import fusions
from aiperf_mpi.training.model.initial import initial_variables
from aiperf_mpi.training.model.layers import NORM_EPSILON, NORM_MOMENTUM, BatchNorm, Tail
from aiperf_mpi.training.model.resnet import module_name, network
from tests.helpers.training.cases import TINY, random_batch

#: A morph of each kind: shortcuts by identity and by convolution, additions after additions, a change of
#: stage.
MORPHED = resnet50(TINY).apply(
    Morph("deeper", 2, 0, 5),
    Morph("wider", 3),
    Morph("skip", 1, 8),
    Morph("skip", 2, 5),
    Morph("kernel", 4, 0, 3),
)

#: Layers after the batch norm: none, a ReLU, an addition, both; and a batch norm that starts at zero
#: gamma.
TAILS = [(False, False, 1.0), (False, True, 1.0), (True, False, 1.0), (True, True, 1.0), (True, True, 0.0)]


def case(dtype, shape=(8, 6, 6, 5), gamma=1.0):
    """Return inputs (not of mean 0 and variance 1) in `dtype`, parameters, and a weight for each output."""
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(0.7, 2.0, shape), dtype)
    shortcut = jnp.asarray(rng.normal(0.1, 1.0, shape), dtype)
    weights = jnp.asarray(rng.normal(0, 1, shape), dtype)
    scale = jnp.asarray(gamma * rng.uniform(0.5, 1.5, shape[-1]), jnp.float32)
    bias = jnp.asarray(rng.normal(0.2, 0.5, shape[-1]), jnp.float32)
    return x, shortcut, weights, {"scale": scale, "bias": bias}


def statistics(channels):
    return {"mean": jnp.full(channels, 0.3), "var": jnp.full(channels, 1.7)}


def fused(x, shortcut, params, tail, dtype, train=True):
    """Return output and changed statistics of the layer under test."""
    variables = {"params": params, "batch_stats": statistics(x.shape[-1])}
    return BatchNorm(dtype).apply(variables, x, train, shortcut, tail, mutable=["batch_stats"])


def plain(x, shortcut, params, add, relu, train=True):
    """Return the same from Flax's own layer in float32, differentiated by JAX."""
    norm = nn.BatchNorm(not train, momentum=NORM_MOMENTUM, epsilon=NORM_EPSILON, dtype=jnp.float32)
    variables = {"params": params, "batch_stats": statistics(x.shape[-1])}
    y, changed = norm.apply(variables, x.astype(jnp.float32), mutable=["batch_stats"])
    y = y + shortcut.astype(jnp.float32) if add else y
    return nn.relu(y) if relu else y, changed


def gradients(function, weights, x, shortcut, params):
    def weighted(x, shortcut, params):
        y, changed = function(x, shortcut, params)
        return jnp.sum(y.astype(jnp.float32) * weights.astype(jnp.float32)), (y, changed)

    return jax.grad(weighted, (0, 1, 2), has_aux=True)(x, shortcut, params)


def largest(actual, expected):
    """Return the largest difference, as a share of the largest expected number."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30)


@pytest.mark.parametrize(("add", "relu", "gamma"), TAILS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_output_and_gradients_equal_autodiff(dtype, add, relu, gamma):
    x, shortcut, weights, params = case(dtype, gamma=gamma)
    tail = Tail("add" if add else "", "relu" if relu else "")
    actual, (y, changed) = gradients(
        lambda x, s, p: fused(x, s if add else None, p, tail, dtype), weights, x, shortcut, params
    )
    wide = [array.astype(jnp.float32) for array in (x, shortcut)]
    expected, (expected_y, expected_changed) = gradients(
        lambda x, s, p: plain(x, s, p, add, relu), weights, *wide, params
    )

    # Both are float32 inside, and sums of 288 terms differ in their order only: some 2^-24 x sqrt(288) =
    # 1e-6. Arrays in the activations' precision are rounded once at the end: half of the last of 8 bits is
    # 2^-8 of the number.
    tight = 2e-6
    rounded = tight if dtype == jnp.float32 else 2.0**-8
    assert y.dtype == actual[0].dtype == actual[1].dtype == dtype
    assert largest(y, expected_y) <= rounded
    assert largest(actual[0], expected[0]) <= rounded
    assert largest(actual[1], expected[1]) <= (0 if add or dtype == jnp.float32 else tight)
    for name in ("scale", "bias"):
        assert actual[2][name].dtype == jnp.float32
        assert largest(actual[2][name], expected[2][name]) <= tight
    for name in ("mean", "var"):
        assert largest(changed["batch_stats"][name], expected_changed["batch_stats"][name]) <= tight


@pytest.mark.parametrize(("add", "relu", "gamma"), TAILS)
def test_evaluation_uses_the_running_statistics(add, relu, gamma):
    x, shortcut, _, params = case(jnp.float32, gamma=gamma)
    tail = Tail("add" if add else "", "relu" if relu else "")
    y, changed = fused(x, shortcut if add else None, params, tail, jnp.float32, train=False)
    assert largest(y, plain(x, shortcut, params, add, relu, train=False)[0]) <= 1e-6
    assert all((changed["batch_stats"][name] == value).all() for name, value in statistics(5).items())


@pytest.mark.parametrize(("add", "kept"), [(False, 1), (True, 2)])
def test_only_arrays_of_the_activations_precision_are_kept(add, kept):
    """Only the input is kept; after an addition also the output, which the next convolution keeps anyway."""
    x, shortcut, _, params = case(jnp.bfloat16)
    tail = Tail("add" if add else "", "relu")
    _, backward = jax.vjp(
        lambda x, s, p: fused(x, s if add else None, p, tail, jnp.bfloat16)[0], x, shortcut, params
    )
    residuals = {id(leaf): leaf for leaf in jax.tree.leaves(backward)}.values()
    whole = [leaf for leaf in residuals if leaf.size == x.size]
    assert [leaf.dtype for leaf in whole] == [jnp.bfloat16] * kept
    assert all(leaf.size <= 5 for leaf in residuals if leaf.size != x.size)

    # The plain form keeps more than one float32 array of that size, or this test says nothing.
    def apart(x, s, p):
        y = nn.BatchNorm(False, dtype=jnp.bfloat16).apply(
            {"params": p, "batch_stats": statistics(5)}, x, mutable=["batch_stats"]
        )[0]
        return nn.relu(y + s if add else y)

    leaves = jax.tree.leaves(jax.vjp(apart, x, shortcut, params)[1])
    assert any(leaf.size == x.size and leaf.dtype == jnp.float32 for leaf in leaves)


@pytest.mark.full
def test_a_network_learns_the_same_with_and_without_fusions():
    architecture = MORPHED
    images, labels = random_batch(TINY, 1, 16)
    inputs = images[0].astype(np.float32) / 255 - 0.5
    variables = initial_variables(architecture, np.random.default_rng(0), zero_gamma=False)

    def loss(params, fused):
        logits, changed = network(architecture, fused=fused).apply(
            {"params": params, "batch_stats": variables["batch_stats"]},
            inputs,
            train=True,
            mutable=["batch_stats"],
        )
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[0][:, None], 1).mean(), changed

    results = [jax.value_and_grad(loss, has_aux=True)(variables["params"], fused) for fused in (True, False)]
    (value, changed), gradient = results[0]
    (expected_value, expected_changed), expected_gradient = results[1]
    assert float(value) == pytest.approx(float(expected_value), rel=1e-5)

    # Float32 through some 20 layers, the last of which normalise 64 values: a few 1e-5 in either.
    trees = ((gradient, expected_gradient), (changed, expected_changed))
    for actual, expected in trees:
        assert jax.tree.structure(actual) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            assert largest(a, b) <= 2e-4 or np.abs(np.asarray(a) - np.asarray(b)).max() <= 1e-6


def test_every_relu_of_resnet50_is_fused_with_its_batch_norm():
    layers = resnet50().layers()
    by_relu, taken = fusions(layers)
    kinds = [layer.kind for layer in layers if layer.name in taken]
    # 1 + 16 x 3 ReLUs, one batch norm each (the 4 projections' are left), and the additions of the 16 blocks.
    assert len(by_relu) == kinds.count("batch_norm") == 49 and kinds.count("add") == 16
    assert {module_name(item.norm.name) for item in by_relu.values()}.isdisjoint(
        module_name(item.shortcut) for item in by_relu.values()
    )


def test_layers_that_another_layer_reads_are_not_fused():
    def layer(name, kind, *inputs):
        return Layer(kind, name, inputs, in_shape=(4, 4, 2), out_shape=(4, 4, 2))

    norm, relu = layer("norm", "batch_norm", "input"), layer("relu", "relu", "norm")
    assert fusions([norm, relu])[1] == {"norm"}
    assert fusions([norm, relu, layer("add", "add", "relu", "norm")])[1] == set()
    add, last = layer("add", "add", "norm", "input"), layer("last", "relu", "add")
    assert fusions([norm, add, last])[1] == {"norm", "add"}
    assert fusions([norm, add, last, layer("more", "add", "last", "add")])[1] == set()
    assert fusions([norm, layer("add", "add", "norm", "norm"), last])[1] == set()
