# SPDX-License-Identifier: Apache-2.0
"""Children compute the function of their parents. All variables of the parents here are random, running
statistics and the scales of norms among them, so that no term is trivially 0 and none is forgotten unseen."""

from __future__ import annotations

import math

import jax
import numpy as np
import optax
import pytest

from aiperf_mpi.network.architecture import OPS, Architecture, Base, Morph, MorphError, resnet50
from aiperf_mpi.network.morphism import eligible_morphs
from aiperf_mpi.training.model import inheritance
from aiperf_mpi.training.model.inheritance import function_difference, inherited_variables
from aiperf_mpi.training.model.initial import Variables, initial_variables
from aiperf_mpi.training.model.resnet import expected_shapes, network
from tests.helpers.training.cases import ties_units
from tests.training.model.test_resnet import plain_logits

#: The stated tolerance, relative to the largest logit, in float32.
TOLERANCE = 1e-4

#: The same sums in float64: what is left is the rounding of float32 weights (2^-24 of each) over some dozen
#: layers.
ROUNDING = 2e-6

#: Blocks (1, 2): the identity shortcut of unit 9 ties it, the last one, to unit 6; sizes that strides do not
#: divide.
BASES = (Base(9, 1, 3, 2, (2, 1)), Base(16, 2, 4, 3, (1, 2)), Base(13, 3, 5, 2, (1, 1, 1)))

CHAINS = 200


def random_variables(architecture: Architecture, rng: np.random.Generator) -> Variables:
    """He weights; scales, biases, running means and variances at random, some scales negative."""
    variables = initial_variables(architecture, rng)
    for module, statistics in variables["batch_stats"].items():
        shape, params = statistics["mean"].shape, variables["params"][module]
        params["scale"] = rng.normal(1, 0.7, shape).astype(np.float32)
        params["bias"] = rng.normal(0, 0.7, shape).astype(np.float32)
        statistics["mean"] = rng.normal(0, 0.7, shape).astype(np.float32)
        statistics["var"] = rng.uniform(0.2, 3, shape).astype(np.float32)
    dense = variables["params"]["dense"]
    dense["bias"] = rng.normal(size=dense["bias"].shape).astype(np.float32)
    return variables


def random_images(base: Base, seed: int = 0, count: int = 3) -> np.ndarray:
    shape = (count, base.image_size, base.image_size, base.channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def edge_kind(architecture: Architecture, morph: Morph) -> str:
    return next(unit for unit in architecture.units if unit.id == morph.b).edges[-1].kind


def random_morph(architecture: Architecture, rng: np.random.Generator) -> Morph:
    """A morph of a random operation: kernels of 1 to 9, even ones too; half of the skips without a
    projection, and half of the `wider` on units that additions tie, which uniform picks rarely meet."""
    while True:
        op = OPS[rng.integers(len(OPS))]
        unit = architecture.units[rng.integers(architecture.unit_count)]
        if op == "deeper":
            return Morph("deeper", unit.id, 0, int(rng.integers(1, 8)))
        if op == "kernel":
            return Morph("kernel", unit.id, 0, unit.kernel + int(rng.integers(1, 4)))
        found = list(eligible_morphs(architecture, (op,)))
        if op == "skip" and rng.random() < 0.5:
            found = [m for m in found if edge_kind(architecture.apply(m), m) == "norm"]
        if op == "wider" and rng.random() < 0.5:
            found = [m for m in found if ties_units(architecture, m.a)]
        if op == "wider" and architecture.parameters > 1 << 18:
            found = []
        if found:
            return found[rng.integers(len(found))]


def random_family(number: int) -> tuple[Architecture, tuple[Morph, ...], np.random.Generator]:
    """A parent (0 to 3 morphs old) and a chain of 1 to 8 morphs for its child; family i is the same in every
    test."""
    rng = np.random.default_rng((11, number))
    architecture = resnet50(BASES[number % len(BASES)])
    for _ in range(number % 4):
        architecture = architecture.apply(random_morph(architecture, rng))
    parent = architecture
    for _ in range(1 + number % 8):
        architecture = architecture.apply(random_morph(architecture, rng))
    own = architecture.morphs[len(parent.morphs) :]

    # Hyperparameter optimisation may have set the kernel of the chain's own new convolutions.
    if number % 3 == 0:
        tuned = architecture.with_own_kernel(len(own), (3, 5, 7, 4)[number % 4])
        own = tuned.morphs[len(parent.morphs) :]
    return parent, own, rng


def plain_difference(
    parent: Architecture, variables: Variables, child: Architecture, inherited: Variables
) -> float:
    """What `function_difference` measures, by the loops in float64 that know nothing of Flax and layers()."""
    images = random_images(parent.base) / 255
    one, other = plain_logits(parent, variables, images), plain_logits(child, inherited, images)
    return float(np.abs(other - one).max() / np.abs(one).max())


def difference(
    parent: Architecture, variables: Variables, child: Architecture, inherited: Variables
) -> float:
    images = random_images(parent.base)
    return function_difference(parent, variables, child, inherited, images, (0.5,), (0.25,))


def inherit(parent: Architecture, *morphs: Morph, seed: int = 0) -> tuple[Variables, Architecture, Variables]:
    """Random variables of the parent, the child, and what it inherits."""
    rng = np.random.default_rng((3, seed))
    variables = random_variables(parent, rng)
    return variables, parent.apply(*morphs), inherited_variables(parent, variables, morphs, rng)


# -- chains ----------------------------------------------------------------------------------------


def test_200_random_chains_in_float64():
    ops, kinds, lengths, strided, even, ties, dense = [], [], set(), 0, 0, 0, 0
    worst = 0.0
    for number in range(CHAINS):
        parent, own, rng = random_family(number)
        variables = random_variables(parent, rng)
        child = parent.apply(*own)
        inherited = inherited_variables(parent, variables, own, rng)
        worst = max(worst, plain_difference(parent, variables, child, inherited))

        # What the set holds.
        lengths.add(len(own))
        before = parent
        for morph in own:
            after = before.apply(morph)
            ops.append(morph.op)
            if morph.op == "skip":
                kinds.append(edge_kind(after, morph))
                strided += next(unit for unit in after.units if unit.id == morph.b).edges[-1].stride > 1
            even += morph.op in ("deeper", "kernel") and morph.kernel % 2 == 0
            ties += morph.op == "wider" and ties_units(before, morph.a)
            dense += morph.op == "wider" and after.units[-1].filters != before.units[-1].filters
            before = after
    print(f"largest difference of {CHAINS} chains: {worst:.2e}")
    assert worst <= ROUNDING
    assert lengths == set(range(1, 9))
    assert min(ops.count(op) for op in OPS) >= 100
    assert min(kinds.count("norm"), kinds.count("conv"), strided, even, ties) >= 40 and dense >= 10


@pytest.mark.parametrize("part", [pytest.param(i, marks=[pytest.mark.full] if i else []) for i in range(5)])
def test_200_random_chains_in_the_flax_network(part):
    """Forty of them by default, all with --full: what the benchmark measures of every child before it is
    trained."""
    found = []
    for number in range(part * CHAINS // 5, (part + 1) * CHAINS // 5):
        parent, own, rng = random_family(number)
        variables = random_variables(parent, rng)
        inherited = inherited_variables(parent, variables, own, rng)
        found.append(difference(parent, variables, parent.apply(*own), inherited))
    print(f"largest difference of {len(found)} chains: {max(found):.2e}")
    assert max(found) <= TOLERANCE
    assert len(set(found)) > len(found) / 2, "a difference that is always the same measures nothing"


@pytest.mark.parametrize("seed", [pytest.param(i, marks=[pytest.mark.full] if i else []) for i in range(3)])
def test_chains_of_eight_morphs_on_resnet50_at_64_pixels(seed):
    rng = np.random.default_rng((64, seed))
    parent = child = resnet50(Base(64, 3, 1000))
    for op in rng.permutation(OPS * 2):
        found = [m for m in eligible_morphs(child, (str(op),))]
        child = child.apply(found[rng.integers(len(found))])
    variables = random_variables(parent, rng)
    inherited = inherited_variables(parent, variables, child.morphs, rng)
    found = difference(parent, variables, child, inherited)
    print(f"difference of {[str(morph) for morph in child.morphs]}: {found:.2e}")
    assert found <= TOLERANCE


# -- each morph alone, where it is difficult -------------------------------------------------------

#: Two stages: 1-3 and 4-6, the second with stride 2 in unit 4; identity shortcuts only where a stage has two
#: blocks.
ONE, TWO = resnet50(Base(16, 1, 4, 3, (1, 1))), resnet50(Base(16, 1, 4, 3, (2, 2)))


@pytest.mark.parametrize(
    "parent, morph",
    [
        # The stem feeds the pool, which feeds the first convolution and the first projection.
        pytest.param(ONE, Morph("wider", 0), id="wider, stem before the pool"),
        pytest.param(ONE, Morph("wider", 1), id="wider, inside of a block"),
        pytest.param(ONE, Morph("wider", 3), id="wider, source of a strided projection"),
        # Units 3 and 6 are added, as are 9 and 12, the last one.
        pytest.param(TWO, Morph("wider", 3), id="wider, tied to the next block"),
        pytest.param(TWO, Morph("wider", 6), id="wider, tied to the block before"),
        pytest.param(TWO, Morph("wider", 9), id="wider, tied to the last unit and its dense layer"),
        pytest.param(
            TWO.apply(Morph("skip", 1, 2)), Morph("wider", 1), id="wider, source of a same-shape skip"
        ),
        pytest.param(TWO.apply(Morph("skip", 2, 6)), Morph("wider", 6), id="wider, target of two additions"),
        pytest.param(TWO.apply(Morph("skip", 2, 9)), Morph("wider", 2), id="wider, source of a strided skip"),
        pytest.param(ONE, Morph("deeper", 0, 0, 3), id="deeper, between stem and pool"),
        pytest.param(ONE, Morph("deeper", 6, 0, 3), id="deeper, behind the last unit"),
        pytest.param(TWO, Morph("deeper", 3, 0, 3), id="deeper, source of an identity shortcut"),
        pytest.param(ONE, Morph("deeper", 3, 0, 3), id="deeper, source of a strided projection"),
        pytest.param(
            TWO.apply(Morph("skip", 1, 5), Morph("skip", 1, 9)), Morph("deeper", 1, 0, 5), id="deeper, skips"
        ),
        *(pytest.param(ONE, Morph("deeper", 4, 0, k), id=f"deeper, kernel {k}") for k in (1, 2, 4, 6, 7)),
        *(
            pytest.param(ONE, Morph("kernel", 4, 0, k), id=f"kernel, strided 1 to {k}")
            for k in (2, 3, 4, 5, 7)
        ),
        *(pytest.param(ONE, Morph("kernel", 2, 0, k), id=f"kernel, 3 to {k}") for k in (4, 5, 6, 7)),
        *(pytest.param(ONE, Morph("kernel", 0, 0, k), id=f"kernel, strided 7 to {k}") for k in (8, 9, 10)),
        pytest.param(ONE.apply(Morph("kernel", 2, 0, 4)), Morph("kernel", 2, 0, 5), id="kernel, even to odd"),
        pytest.param(
            ONE.apply(Morph("kernel", 2, 0, 4)), Morph("kernel", 2, 0, 6), id="kernel, even to even"
        ),
        pytest.param(ONE, Morph("skip", 1, 2), id="skip, same shape"),
        pytest.param(ONE, Morph("skip", 1, 3), id="skip, more filters"),
        pytest.param(ONE, Morph("skip", 1, 6), id="skip, across a stride"),
        pytest.param(
            ONE.apply(Morph("deeper", 0, 0, 3)), Morph("skip", 7, 5), id="skip, across the pool and a stride"
        ),
    ],
)
def test_each_morph_alone(parent, morph):
    variables, child, inherited = inherit(parent, morph)
    assert plain_difference(parent, variables, child, inherited) <= ROUNDING
    assert difference(parent, variables, child, inherited) <= TOLERANCE
    shapes = jax.tree.map(np.shape, inherited)
    assert shapes == expected_shapes(child)
    assert {x.dtype for x in jax.tree.leaves(inherited)} == {np.dtype("float32")}


@pytest.mark.parametrize(
    "own",
    [
        (Morph("deeper", 2, 0, 3), Morph("wider", 2), Morph("wider", 7)),
        (Morph("deeper", 2, 0, 3), Morph("deeper", 2, 0, 5), Morph("deeper", 7, 0, 2)),
        (Morph("deeper", 1, 0, 5), Morph("kernel", 7, 0, 7), Morph("skip", 1, 2), Morph("skip", 7, 2)),
        (Morph("skip", 1, 2), Morph("wider", 2), Morph("deeper", 1, 0, 3), Morph("wider", 1)),
        (
            Morph("skip", 1, 6),
            Morph("wider", 1),
            Morph("wider", 5),
            Morph("deeper", 1, 0, 4),
            Morph("wider", 1),
        ),
        (
            Morph("deeper", 0, 0, 2),
            Morph("skip", 7, 4),
            Morph("wider", 0),
            Morph("wider", 7),
            Morph("kernel", 0, 0, 8),
        ),
    ],
)
def test_morphs_of_what_the_same_chain_added(own):
    variables, child, inherited = inherit(ONE, *own)
    assert plain_difference(ONE, variables, child, inherited) <= ROUNDING


# -- transformations that are wrong ----------------------------------------------------------------


def _break_shares(monkeypatch):
    def whole(tensors, rng):
        kernel = tensors["params", "kernel"]
        return tensors | {("params", "kernel"): np.concatenate([kernel, kernel], axis=-2)}

    monkeypatch.setattr(inheritance, "_divide_weights", whole)


def _break_norm(monkeypatch, **changes):
    right = inheritance._norm

    def wrong(scale, bias, mean, variance):
        given = {"scale": scale, "bias": bias, "mean": mean, "variance": variance}
        return right(**{name: changes.get(name, lambda x: x)(value) for name, value in given.items()})

    monkeypatch.setattr(inheritance, "_norm", wrong)


def _break(monkeypatch, op, change):
    """Lets `change` alter what the transformation of `op` returns."""
    right = inheritance._TRANSFORMATIONS[op]

    def wrong(before, after, morph, modules, rng):
        return change(right(before, after, morph, modules, rng), morph)

    monkeypatch.setitem(inheritance._TRANSFORMATIONS, op, wrong)


def _changed(modules, name, key, change):
    return modules | {name: modules[name] | {key: change(modules[name][key])}}


MEAN, VAR, KERNEL = ("batch_stats", "mean"), ("batch_stats", "var"), ("params", "kernel")

WRONG = {
    "consumers not rescaled": (Morph("wider", 2), lambda m: _break_shares(m)),
    "channels of one tied norm in another order": (
        Morph("wider", 3),
        lambda m: _break(
            m, "wider", lambda x, _: _changed(x, "unit006_norm", MEAN, lambda a: np.repeat(a[:12], 2))
        ),
    ),
    "running variance of a projection's norm left out": (
        Morph("wider", 3),
        lambda m: _break(
            m,
            "wider",
            lambda x, _: _changed(
                x, "unit003_frompool_norm", VAR, lambda a: np.concatenate([a[:12], np.ones(12, np.float32)])
            ),
        ),
    ),
    "norm's epsilon scaled away": (
        Morph("deeper", 2, 0, 3),
        lambda m: _break_norm(m, scale=lambda x: 1.01 * x),
    ),
    "identity of a norm shifted": (
        Morph("deeper", 2, 0, 3),
        lambda m: _break_norm(m, bias=lambda x: x + 0.1),
    ),
    "an even kernel centred behind": (
        Morph("deeper", 2, 0, 4),
        lambda m: _break(
            m, "deeper", lambda x, _: _changed(x, "unit013_conv", KERNEL, lambda a: np.roll(a, 1, (0, 1)))
        ),
    ),
    "a kernel padded on one side": (
        Morph("kernel", 2, 0, 5),
        lambda m: _break(
            m, "kernel", lambda x, _: _changed(x, "unit002_conv", KERNEL, lambda a: np.roll(a, 1, 0))
        ),
    ),
    "a strided kernel padded as if its stride moved it": (
        Morph("kernel", 7, 0, 2),
        lambda m: _break(
            m, "kernel", lambda x, _: _changed(x, "unit007_conv", KERNEL, lambda a: np.roll(a, 1, 1))
        ),
    ),
    "a skip that adds at once": (Morph("skip", 1, 5), lambda m: _break_norm(m, scale=lambda x: x + 1)),
    "a projected skip that adds at once": (
        Morph("skip", 2, 8),
        lambda m: _break_norm(m, scale=lambda x: x + 1),
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_broken_transformation_is_caught(wrong, monkeypatch):
    morph, break_it = WRONG[wrong]
    variables, child, inherited = inherit(TWO, morph)
    assert plain_difference(TWO, variables, child, inherited) <= ROUNDING
    break_it(monkeypatch)
    variables, child, inherited = inherit(TWO, morph)
    assert plain_difference(TWO, variables, child, inherited) > 10 * TOLERANCE
    assert difference(TWO, variables, child, inherited) > 10 * TOLERANCE


def test_networks_that_are_no_numbers_differ_infinitely():
    variables, child, inherited = inherit(ONE, Morph("wider", 2))
    inherited["params"]["dense"]["bias"] = np.array([0, np.nan, 0, 0], np.float32)
    assert difference(ONE, variables, child, inherited) == math.inf
    assert difference(ONE, variables, ONE, variables) == 0


# -- what else is promised -------------------------------------------------------------------------


def test_the_parents_arrays_are_never_written():
    parent, own, rng = random_family(39)
    assert len(own) == 8
    variables = random_variables(parent, rng)
    for array in jax.tree.leaves(variables):
        array.flags.writeable = False
    before = jax.tree.map(np.copy, variables)
    inherited_variables(parent, variables, own, rng)
    assert all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(variables), strict=True)
    )


def test_one_stream_gives_one_child():
    own = (Morph("wider", 2), Morph("skip", 1, 8))
    variables = random_variables(TWO, np.random.default_rng(0))
    one, again, other = (
        inherited_variables(TWO, variables, own, np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(again), jax.tree.leaves(other), strict=True))
    assert all(np.array_equal(a, b) for a, b, _ in pairs)
    assert not all(np.array_equal(a, c) for a, _, c in pairs)


def test_variables_of_another_architecture_are_refused():
    variables = random_variables(ONE, np.random.default_rng(0))
    with pytest.raises(ValueError, match="unit007"):
        inherited_variables(TWO, variables, (), np.random.default_rng(0))
    wider = ONE.apply(Morph("wider", 2))
    with pytest.raises(
        ValueError, match=r"params of unit002_conv have the shapes .*3, 3, 3, 3.* needs .*3, 3, 3, 6"
    ):
        inherited_variables(wider, variables, (), np.random.default_rng(0))
    with pytest.raises(MorphError):
        inherited_variables(ONE, variables, (Morph("wider", 99),), np.random.default_rng(0))


def test_new_branches_add_nothing_but_can_learn():
    """Scale 0 hides a branch from the output, but not from its own gradient; its projection begins as
    He's."""
    own = (Morph("skip", 1, 5), Morph("skip", 2, 8))
    variables, child, inherited = inherit(TWO, *own)
    for module in ("unit005_from001_norm", "unit008_from002_norm"):
        assert (
            not inherited["params"][module]["scale"].any() and not inherited["params"][module]["bias"].any()
        )
    kernel = inherited["params"]["unit008_from002_conv"]["kernel"]
    assert kernel.shape == (1, 1, 3, 6)
    # 18 normal samples of variance 2/3: their standard deviation is within a factor of 2 with near certainty.
    assert 0.5 < kernel.std() / math.sqrt(2 / 3) < 2
    gradient = gradient_of(child, inherited)
    for module in ("unit005_from001_norm", "unit008_from002_norm"):
        assert np.abs(gradient[module]["scale"]).min() > 0


def test_copies_of_a_channel_learn_differently():
    """With equal shares of their consumers both copies would get equal gradients, and stay copies for
    ever."""
    variables, child, inherited = inherit(TWO, Morph("wider", 2))
    kernel = inherited["params"]["unit002_conv"]["kernel"]
    assert np.array_equal(kernel[..., :3], kernel[..., 3:])
    gradient = gradient_of(child, inherited)["unit002_conv"]["kernel"]
    one, other = gradient[..., :3], gradient[..., 3:]
    assert np.abs(one - other).max() > 0.01 * np.abs(one).max() > 0
    consumer = inherited["params"]["unit003_conv"]["kernel"]
    shares = consumer[:, :, :3] / variables["params"]["unit003_conv"]["kernel"]
    assert 0.25 <= shares.min() and shares.max() <= 0.75


def gradient_of(architecture: Architecture, variables: Variables) -> dict:
    """The gradient of the loss in training mode, on random images and labels."""
    images = random_images(architecture.base, count=8).astype(np.float32) / 255
    labels = np.arange(8) % architecture.base.classes

    def loss(params):
        logits, _ = network(architecture).apply(
            variables | {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return jax.tree.map(np.asarray, jax.grad(loss)(variables["params"]))


def test_a_training_step_finds_the_parents_function_too(monkeypatch):
    """With the statistics of a batch, a new identity whose norm took no notice of its input would standardise
    it, and its ReLU would cut off what is below the mean: the norm takes the moments that the parent's norms
    tell."""
    parent = resnet50(Base(16, 1, 4, 8, (2, 2)))
    rng = np.random.default_rng(5)
    variables = initial_variables(parent, rng)
    images = rng.normal(size=(32, 16, 16, 1)).astype(np.float32)
    own = tuple(Morph("deeper", unit, 0, 3) for unit in (2, 5, 10))

    def trained(architecture, weights):
        return np.asarray(
            network(architecture).apply(weights, images, train=True, mutable=["batch_stats"])[0]
        )

    def distance():
        child = inherited_variables(parent, variables, own, np.random.default_rng(0))
        return np.abs(trained(parent.apply(*own), child) - expected).mean() / np.abs(expected).mean()

    expected = trained(parent, variables)
    told = distance()
    monkeypatch.setattr(
        inheritance,
        "_output_moments",
        lambda architecture, modules: {
            unit.id: (np.zeros(unit.filters), np.ones(unit.filters)) for unit in architecture.units
        },
    )
    assert told < distance() / 2


def test_moments_behind_a_relu():
    """Closed form against a million samples: a deviation of 1 leaves the mean known to 1e-3, so 5e-3 is five
    of it."""
    mean, deviation = np.array([-1.0, 0.0, 0.5, 3.0]), np.array([1.0, 2.0, 0.5, 1.0])
    samples = np.maximum(np.random.default_rng(0).normal(mean, deviation, (10**6, 4)), 0)
    first, variance = inheritance._rectified(mean, deviation**2)
    np.testing.assert_allclose(first, samples.mean(0), atol=0.01)
    np.testing.assert_allclose(variance, samples.var(0), atol=0.02)
    constant = inheritance._rectified(np.array([2.0, -2.0]), np.zeros(2))
    np.testing.assert_allclose(constant, [[2, 0], [0, 0]], atol=1e-5)
