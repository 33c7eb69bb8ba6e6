# SPDX-License-Identifier: Apache-2.0
"""Children compute the function of their parents: random chains, and each morph alone."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from aiperf_mpi.network.architecture import OPS, Base, Morph, MorphError, resnet50
from aiperf_mpi.network.morphism import eligible_morphs
from aiperf_mpi.training.model.inheritance import inherited_variables
from aiperf_mpi.training.model.resnet import expected_shapes
from tests.helpers.training.cases import ties_units
from tests.helpers.training.families import (
    ONE,
    ROUNDING,
    TOLERANCE,
    TWO,
    difference,
    edge_kind,
    inherit,
    plain_difference,
    random_family,
    random_variables,
)

CHAINS = 200

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

        # Count the morphs in the set.
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


@pytest.mark.parametrize("part", [pytest.param(i, marks=[pytest.mark.full] if i else []) for i in range(8)])
def test_200_random_chains_in_the_flax_network(part):
    """Measure 25 chains, or all with --full, as the benchmark does before it trains a child."""
    differences = []
    for number in range(part * CHAINS // 8, (part + 1) * CHAINS // 8):
        parent, own, rng = random_family(number)
        variables = random_variables(parent, rng)
        inherited = inherited_variables(parent, variables, own, rng)
        differences.append(difference(parent, variables, parent.apply(*own), inherited))
    print(f"largest difference of {len(differences)} chains: {max(differences):.2e}")
    assert max(differences) <= TOLERANCE
    assert len(set(differences)) > len(differences) / 2, (
        "a difference that is always the same measures nothing"
    )


@pytest.mark.parametrize("seed", [pytest.param(i, marks=[pytest.mark.full] if i else []) for i in range(3)])
def test_chains_of_eight_morphs_on_resnet50_at_64_pixels(seed):
    rng = np.random.default_rng((64, seed))
    parent = child = resnet50(Base(64, 3, 1000))
    for op in rng.permutation(OPS * 2):
        morphs = eligible_morphs(child, (str(op),))
        child = child.apply(morphs[rng.integers(len(morphs))])
    variables = random_variables(parent, rng)
    inherited = inherited_variables(parent, variables, child.morphs, rng)
    measured = difference(parent, variables, child, inherited)
    print(f"difference of {[str(morph) for morph in child.morphs]}: {measured:.2e}")
    assert measured <= TOLERANCE


# -- each morph alone, in difficult places -------------------------------------------------------------


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
        pytest.param(ONE, Morph("deeper", 6, 0, 3), id="deeper, after the last unit"),
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
def test_morphs_of_units_that_the_same_chain_added(own):
    variables, child, inherited = inherit(ONE, *own)
    assert plain_difference(ONE, variables, child, inherited) <= ROUNDING


# -- arguments and streams ----------------------------------------------------------------------------


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
