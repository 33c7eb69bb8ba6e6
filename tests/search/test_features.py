# SPDX-License-Identifier: Apache-2.0
"""Features of architectures: counts by hand, incremental and from scratch, sums at coarser resolutions."""

from __future__ import annotations

import numpy as np
import pytest

from aiperf_mpi.network.architecture import Architecture, Base, Morph
from aiperf_mpi.network.morphism import random_chain
from aiperf_mpi.search.features import (
    CHANNELS,
    INSERTED,
    INSERTED_KERNEL,
    INSERTED_WIDTH,
    KERNEL,
    SKIP_IN,
    SKIP_OUT,
    WIDTH,
    child_features,
    features,
    plan_of,
    resolutions,
)

RESNET50 = Base()
SMALL = Base(image_size=32, channels=1, classes=10, width=4, blocks=(2, 1, 3))
TINY = Base(image_size=16, channels=2, classes=3, width=2, blocks=(1,))
BASES = (RESNET50, SMALL, TINY)


def chains(base: Base, count: int, longest: int, seed: int = 0) -> list[Architecture]:
    rng, initial = np.random.default_rng(seed), Architecture(base)
    return [random_chain(initial, rng, int(rng.integers(1, longest + 1)))[0] for _ in range(count)]


# -- counts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", BASES)
def test_the_initial_architecture_is_all_zeros(base: Base) -> None:
    row = features(Architecture(base))
    assert row.slots.shape == (7, 1 + 3 * sum(base.blocks)) and row.slots.dtype == np.int16
    assert not row.slots.any()


def test_each_morph_counts_where_it_was_made() -> None:
    # Unit 5 is the 3x3 of the second block (units 4, 5, 6; 64 filters): wider doubles it alone, as no
    # addition ties it. Unit 49, inserted after it, starts with its 128 filters; a kernel morph grows it from
    # 3 to 5 (2 steps over 1x1). Unit 50 is inserted after 49, so it is in slot 5 too. The skip starts in slot
    # 5 and ends in slot 20.
    initial = Architecture(RESNET50)
    child = initial.apply(
        Morph("wider", 5),
        Morph("deeper", 5, 0, 3),
        Morph("kernel", 49, 0, 5),
        Morph("deeper", 49, 0, 1),
        Morph("kernel", 12, 0, 3),
        Morph("skip", 50, 20),
    )
    row = features(child).slots
    expected = np.zeros_like(row)
    expected[WIDTH, 5] = 1
    expected[INSERTED, 5], expected[INSERTED_WIDTH, 5], expected[INSERTED_KERNEL, 5] = 2, 2, 2
    expected[KERNEL, 12] = 1
    expected[SKIP_OUT, 5] = expected[SKIP_IN, 20] = 1
    assert np.array_equal(row, expected)


def test_wider_counts_at_every_unit_that_it_doubles() -> None:
    # The three blocks of the first stage end in units 3, 6, 9, whose sums are tied; their shortcut has a
    # projection.
    row = features(Architecture(RESNET50).apply(Morph("wider", 6))).slots
    assert {int(slot) for slot in np.flatnonzero(row[WIDTH])} == {3, 6, 9} and row.sum() == 3


def test_a_moved_shortcut_is_not_a_new_edge() -> None:
    # `deeper` after unit 3 takes over its consumers, among them the next block's shortcut; after unit 0, the
    # pooling.
    for after in (0, 3):
        row = features(Architecture(RESNET50).apply(Morph("deeper", after, 0, 3))).slots
        assert row[INSERTED, after] == 1 and not row[[SKIP_OUT, SKIP_IN]].any()


@pytest.mark.parametrize("base", BASES)
def test_incremental_features_equal_features_from_scratch(base: Base) -> None:
    rng = np.random.default_rng(3)
    for _ in range(12):
        architecture = Architecture(base)
        row = features(architecture)
        for _ in range(25):
            child, morphs = random_chain(architecture, rng, 1)
            if morphs:
                row = child_features(row, architecture, morphs[0], child)
                architecture = child
        whole = features(architecture)
        assert np.array_equal(row.slots, whole.slots)
        assert (row.macs, row.parameters) == (whole.macs, whole.parameters)
        assert (row.slots >= 0).all()


@pytest.mark.parametrize("base", BASES)
def test_multiply_accumulates_are_those_of_the_layers(base: Base) -> None:
    for architecture in (Architecture(base), *chains(base, 10, 12)):
        total = sum(
            layer.kernel**2 * layer.in_shape[2] * layer.out_shape[0] * layer.out_shape[1] * layer.out_shape[2]
            for layer in architecture.layers()
            if layer.kind == "conv"
        )
        assert architecture.macs == total


def test_the_multiply_accumulates_of_resnet50_are_the_papers() -> None:
    # Table 3 of the paper: 7.712e9 forward operations of convolutions, two for each.
    assert 2 * Architecture(RESNET50).macs == pytest.approx(7.712e9, rel=1e-3)


@pytest.mark.parametrize("base", BASES)
def test_coarser_resolutions_are_sums(base: Base) -> None:
    plan, rows = plan_of(base), [features(a) for a in chains(base, 20, 10)]
    levels = resolutions(rows, plan)
    slots = np.stack([row.slots for row in rows]).astype(int)
    assert np.array_equal(levels["slot"], slots.reshape(20, -1))
    assert np.array_equal(levels["total"], slots.sum(axis=2))
    # Blocks are the stem alone, then three units each; a stage is the sum of its blocks.
    edges = np.cumsum([0, 1, *[3] * sum(base.blocks)])
    blocks = np.stack(
        [slots[:, :, a:b].sum(axis=2) for a, b in zip(edges[:-1], edges[1:], strict=True)], axis=2
    )
    assert np.array_equal(levels["block"], blocks.reshape(20, -1))
    edges = np.cumsum([0, 1, *(3 * count for count in base.blocks)])
    stages = np.stack(
        [slots[:, :, a:b].sum(axis=2) for a, b in zip(edges[:-1], edges[1:], strict=True)], axis=2
    )
    assert np.array_equal(levels["stage"], stages.reshape(20, -1))
    assert np.allclose(levels["size"], np.log2([[row.macs, row.parameters] for row in rows]))
    assert levels["slot"].shape[1] == len(CHANNELS) * (1 + 3 * sum(base.blocks))
