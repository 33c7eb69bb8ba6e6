# SPDX-License-Identifier: Apache-2.0
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aiperf_mpi.network.architecture import Base, Layer, Morph, resnet50
from aiperf_mpi.opcount.forms import STEMS
from aiperf_mpi.training.model.initial import initial_variables
from aiperf_mpi.training.model.resnet import build_shapes, check_shapes, expected_shapes, module_name, network
from tests.helpers.training.cases import TINY, random_chains, ties_units
from tests.helpers.training.plain_network import plain_logits

#: A morph of each kind on the tiny base network; the skip from 1 to 8 crosses the change of stage (stride 2).
MORPHED = resnet50(TINY).apply(
    Morph("deeper", 2, 0, 5),
    Morph("wider", 3),
    Morph("skip", 1, 8),
    Morph("skip", 2, 5),
    Morph("kernel", 4, 0, 3),
)


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.full)])
def test_shapes_of_morph_chains_equal_the_list_of_layers(count):
    kinds, strided, across_additions = [], 0, 0
    for architecture in random_chains(count):
        check_shapes(architecture)
        parent = resnet50(architecture.base)
        for morph in architecture.morphs:
            across_additions += morph.op == "wider" and ties_units(parent, morph.a)
            parent = parent.apply(morph)
            if morph.op == "skip":
                edge = next(unit for unit in parent.units if unit.id == morph.b).edges[-1]
                kinds.append(edge.kind)
                strided += edge.stride > 1

    # The set is worth its name only if it holds the difficult cases too.
    assert strided >= len(kinds) / 4 >= count / 4
    assert kinds.count("norm") >= count / 4
    assert across_additions >= count / 4


@pytest.mark.parametrize("size", [1, 7, 29, 33, 48])
def test_sizes_that_strides_do_not_divide(size):
    check_shapes(
        resnet50(Base(size, 3, 5, 2, (1, 1, 1))).apply(Morph("skip", 1, 9), Morph("deeper", 0, 0, 4))
    )


def test_resnet50_has_the_published_number_of_parameters():
    # He et al. (2016): 25.6 million; torchvision's ResNet-50 (v1.5: the same shapes) has 25,557,032.
    variables, outputs = build_shapes(resnet50(), batch=2)
    tensors = [shape for module in variables["params"].values() for shape in module.values()]
    assert sum(math.prod(shape) for shape in tensors) == 25_557_032
    assert outputs["pool"] == (2, 56, 56, 64)
    assert outputs["softmax"] == (2, 1000)


def test_a_list_of_layers_that_flax_contradicts_is_refused(monkeypatch):
    layers = tuple(
        Layer(x.kind, x.name, x.inputs, x.in_shape, (9, 9, 9), x.kernel, x.stride) if x.name == "pool" else x
        for x in MORPHED.layers()
    )
    monkeypatch.setitem(MORPHED.__dict__, "_layers", layers)
    with pytest.raises(ValueError, match=r"layer pool: Flax computes \(1, 2, 2, 2\)"):
        check_shapes(MORPHED)


def test_bfloat16_is_for_activations_only():
    model = network(MORPHED, "bfloat16")
    images = jnp.zeros((2, TINY.image_size, TINY.image_size, TINY.channels))
    key = jax.random.key(0)
    logits, variables = jax.eval_shape(
        lambda: model.init_with_output(key, images, train=True, mutable=["params", "batch_stats", "outputs"])
    )
    assert {x.dtype for x in jax.tree.leaves((variables["params"], variables["batch_stats"]))} == {
        jnp.dtype("float32")
    }
    assert logits.dtype == jnp.float32
    outputs = variables["outputs"]["layers"]
    assert outputs["unit000.conv"].dtype == outputs["unit008.relu"].dtype == jnp.bfloat16


@pytest.mark.parametrize("stem", STEMS)
def test_kernels_are_never_drawn_by_flax(stem):
    # Flax traces a module's initial kernel in each candidate, and to draw one takes a quarter of that time.
    # A normal number is the inverse of the error function of a uniform one.
    images = jnp.zeros((1, TINY.image_size, TINY.image_size, TINY.channels))
    model = network(MORPHED, stem=stem)
    traced = jax.make_jaxpr(lambda key: model.init(key, images, train=True))(jax.random.key(0))
    assert "conv_general_dilated" in str(traced) and "erf_inv" not in str(traced)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="'float8' is not one of float32, bfloat16, float16"):
        network(MORPHED, "float8")


def test_batch_norms_keep_a_tenth_of_the_new_statistics():
    # The running mean starts at 0, so after one batch it is 0.1 times that batch's mean.
    architecture = resnet50(TINY)
    variables = initial_variables(architecture, np.random.default_rng(0))
    images = np.random.default_rng(1).normal(size=(4, 8, 8, 1)).astype(np.float32)
    _, changed = network(architecture).apply(
        variables, images, train=True, mutable=["batch_stats", "outputs"]
    )
    batch_mean = np.mean(changed["outputs"]["layers"]["unit000.conv"], axis=(0, 1, 2))
    np.testing.assert_allclose(
        changed["batch_stats"]["unit000_norm"]["mean"], 0.1 * batch_mean, rtol=1e-5, atol=1e-7
    )


def test_logits_equal_those_of_a_plain_computation():
    variables = initial_variables(MORPHED, np.random.default_rng(3))
    rng = np.random.default_rng(4)
    for name, statistics in variables["batch_stats"].items():
        statistics["mean"] = rng.normal(size=statistics["mean"].shape).astype(np.float32)
        statistics["var"] = rng.uniform(0.5, 2, statistics["var"].shape).astype(np.float32)
        variables["params"][name]["bias"] = rng.normal(size=statistics["mean"].shape).astype(np.float32)
    images = rng.normal(size=(3, 8, 8, 1)).astype(np.float32)

    logits = network(MORPHED).apply(variables, images, train=False)
    np.testing.assert_allclose(logits, plain_logits(MORPHED, variables, images), rtol=2e-4, atol=2e-4)


def test_expected_shapes_name_every_module_once():
    shapes = expected_shapes(MORPHED)
    parametric = [x.name for x in MORPHED.layers() if x.kind in ("conv", "batch_norm", "dense")]
    assert len(shapes["params"]) == len(parametric) == len({module_name(name) for name in parametric})
    tensors = [shape for module in shapes["params"].values() for shape in module.values()]
    assert sum(math.prod(shape) for shape in tensors) == MORPHED.parameters
