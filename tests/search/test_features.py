# SPDX-License-Identifier: Apache-2.0
"""Architectures as numbers: counts by hand, in step with the morphs, at every resolution; the edit distance
against the alignment that it does without.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

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
    edit_distance,
    features,
    plan_of,
    resolutions,
)
from tests.helpers.search.alignment import aligned_distance, assigned_distance

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
    # addition ties it. The unit 49 behind it starts with its 128 filters; a kernel morph grows it from 3 to 5
    # (2 steps over 1x1). Unit 50 stands behind 49, so in slot 5, too. The skip starts in slot 5 and ends in
    # slot 20.
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


def test_a_moved_shortcut_is_no_new_edge() -> None:
    # `deeper` behind unit 3 takes over its consumers, the next block's shortcut among them; behind unit 0 the
    # pooling.
    for after in (0, 3):
        row = features(Architecture(RESNET50).apply(Morph("deeper", after, 0, 3))).slots
        assert row[INSERTED, after] == 1 and not row[[SKIP_OUT, SKIP_IN]].any()


@pytest.mark.parametrize("base", BASES)
def test_a_child_in_step_is_the_child_from_scratch(base: Base) -> None:
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
    # The stem alone, then three units for each block; a stage is its blocks.
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


# -- the edit distance -----------------------------------------------------------------------------


def test_the_edit_distance_by_hand() -> None:
    initial = Architecture(RESNET50)
    assert edit_distance(initial, initial) == 0.0
    assert edit_distance(initial, initial.apply(Morph("deeper", 5, 0, 3))) == 1.0
    # 64 against 128 filters: |dw| / max = 1/2, a third of it; 1x1 against 3x3: 2/3, a third of it.
    assert edit_distance(initial, initial.apply(Morph("wider", 5))) == pytest.approx(1 / 6)
    assert edit_distance(initial, initial.apply(Morph("kernel", 4, 0, 3))) == pytest.approx(2 / 9)
    # A skip that the other has not: 1, and its two ends, which all later slots see: (49 - 3 + 49 - 7) / 49.
    assert edit_distance(initial, initial.apply(Morph("skip", 3, 7))) == pytest.approx(1 + 88 / 49)
    with pytest.raises(ValueError, match="different bases"):
        edit_distance(initial, Architecture(SMALL))


@pytest.mark.parametrize("base", [RESNET50, SMALL])
def test_the_edit_distance_is_a_metric(base: Base) -> None:
    few = chains(base, 14, 12)
    d = np.array([[edit_distance(a, b) for b in few] for a in few])
    assert np.allclose(d, d.T) and not np.diag(d).any()
    assert (d[:, None, :] <= d[:, :, None] + d[None, :, :] + 1e-9).all()


def pairs(longest: int, count: int, ops: tuple[str, ...]) -> list[tuple[Architecture, Architecture]]:
    rng, initial, found = np.random.default_rng(longest), Architecture(RESNET50), []
    for _ in range(count):
        both = [random_chain(initial, rng, int(rng.integers(1, longest + 1)), ops)[0] for _ in range(2)]
        found.append((both[0], both[1]))
    return found


# Measured over these 60 pairs: 0.924 and 0.926 for chains of 1 to 8 morphs, 0.851 and 0.934 for up to 54,
# where the search for an alignment may shift many units at once (over 100 pairs 0.94, 0.94, 0.80, 0.93).
@pytest.mark.parametrize(
    ("longest", "ops", "least"),
    [
        (8, ("deeper", "wider", "kernel"), 0.9),
        (8, ("deeper", "wider", "skip", "kernel"), 0.9),
        (54, ("deeper", "wider", "kernel"), 0.8),
        (54, ("deeper", "wider", "skip", "kernel"), 0.9),
    ],
)
def test_the_closed_form_follows_the_alignment_and_is_never_below_it(
    longest: int, ops: tuple[str, ...], least: float
) -> None:
    closed, searched = [], []
    for first, second in pairs(longest, 60, ops):
        alignment = aligned_distance(first, second)
        closed.append(edit_distance(first, second))
        searched.append(alignment + assigned_distance(first, second))
        assert closed[-1] >= alignment - 1e-9
    assert spearmanr(closed, searched).statistic > least
