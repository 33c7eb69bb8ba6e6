# SPDX-License-Identifier: Apache-2.0
import math

import jax
import numpy as np

from aiperf_mpi.network.architecture import Base, Morph, resnet50
from aiperf_mpi.training.model.initial import closing_norms, initial_variables
from aiperf_mpi.training.model.resnet import build_shapes
from tests.helpers.training.cases import SHALLOW, TINY


def test_one_seed_gives_one_set_of_arrays():
    one, again, other = (initial_variables(resnet50(TINY), np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(again), strict=True)
    )
    assert not np.array_equal(one["params"]["dense"]["kernel"], other["params"]["dense"]["kernel"])


def test_weights_are_he_normal_and_the_rest_is_neutral():
    variables = initial_variables(resnet50(Base(32, 3, 10, 32, (1, 1))), np.random.default_rng(0))
    for module, tensors in variables["params"].items():
        if "kernel" in tensors:
            # Standard deviation sqrt(2 / fan-in); of n normal samples it is known to about 1 / sqrt(2 n).
            kernel = tensors["kernel"]
            expected = math.sqrt(2 / math.prod(kernel.shape[:-1]))
            assert abs(kernel.std() / expected - 1) < 5 / math.sqrt(2 * kernel.size), module
            assert abs(kernel.mean()) < 5 * expected / math.sqrt(kernel.size), module
        if "scale" in tensors:
            assert np.all(tensors["scale"] == 1)
        if "bias" in tensors:
            assert np.all(tensors["bias"] == 0)
    for statistics in variables["batch_stats"].values():
        assert np.all(statistics["mean"] == 0) and np.all(statistics["var"] == 1)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype("float32")}


def test_the_tree_is_the_one_that_flax_builds():
    architecture = resnet50(SHALLOW).apply(Morph("skip", 1, 8), Morph("deeper", 3, 0, 5))
    variables = initial_variables(architecture, np.random.default_rng(0))
    shapes = {
        kind: {module: {name: x.shape for name, x in tensors.items()} for module, tensors in modules.items()}
        for kind, modules in variables.items()
    }
    assert shapes == build_shapes(architecture)[0]


def test_zero_gamma_closes_only_blocks_of_the_base_network():
    # Blocks (2, 1): units 1-3, 4-6, 7-9 after the stem 0; the last of each closes its block. The skip into
    # unit 5 and the new unit 10 after unit 3 close none.
    architecture = resnet50(TINY).apply(Morph("skip", 2, 5), Morph("deeper", 3, 0, 3))
    assert closing_norms(architecture) == {"unit003_norm", "unit006_norm", "unit009_norm"}

    params = initial_variables(architecture, np.random.default_rng(0), zero_gamma=True)["params"]
    zero = {name for name, tensors in params.items() if "scale" in tensors and not tensors["scale"].any()}
    assert zero == {"unit003_norm", "unit006_norm", "unit009_norm"}
