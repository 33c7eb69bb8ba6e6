# SPDX-License-Identifier: Apache-2.0
"""Which morphs an architecture can take, and the random ones."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiperf_mpi.network.architecture import OPS, Architecture, Base, Morph, MorphError, resnet50
from aiperf_mpi.network.morphism import PAPER_LIMITS, Limits, eligible_morphs, next_kernel, random_chain

SMALL = Architecture(Base(image_size=32, channels=1, classes=10, width=4))
TINY = Architecture(Base(image_size=16, channels=1, classes=4, width=2, blocks=(1,)))


def random_morph(
    architecture: Architecture, rng: np.random.Generator, ops=OPS, limits: Limits = PAPER_LIMITS
) -> Morph | None:
    """Return the morph of a random chain of length 1, or None if there is none."""
    _, chain = random_chain(architecture, rng, 1, ops, limits)
    return chain[0] if chain else None


def test_eligible_morphs_of_resnet50() -> None:
    # 49 ReLUs; all 49 convolutions but the last; pairs of the 48 units after the stem, 48 * 47 / 2 = 1128,
    # less the 15 that a block's shortcut joins already (16 blocks, the first one's starts at the pooling); 48
    # convolutions below 7x7 (the stem has 7x7).
    counts = {op: len(eligible_morphs(resnet50(), (op,))) for op in OPS}
    assert counts == {"deeper": 49, "wider": 48, "skip": 1113, "kernel": 48}


@pytest.mark.parametrize(
    ("kernel", "grown"), [(1, 3), (2, 3), (3, 5), (4, 5), (5, 7), (6, 7), (7, None), (9, None)]
)
def test_kernels_grow_to_the_next_of_3_5_7(kernel: int, grown: int | None) -> None:
    assert next_kernel(kernel) == grown


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_eligible_is_exactly_what_can_be_applied(seed: int) -> None:
    # Every morph that names units of the network, tried one by one.
    parent, _ = random_chain(TINY, np.random.default_rng(seed), 4)
    ids = range(-1, parent.unit_count + 1)
    tried = [Morph("deeper", a, 0, 3) for a in ids] + [Morph("wider", a) for a in ids]
    tried += [Morph("skip", a, b) for a in ids for b in ids]
    tried += [Morph("kernel", u.id, 0, size) for u in parent.units if (size := next_kernel(u.kernel))]
    applicable = set()
    for morph in tried:
        try:
            parent.apply(morph)
        except MorphError:
            continue
        applicable.add(morph)
    assert set(eligible_morphs(parent)) == applicable


def test_a_random_morph_is_uniform_over_operations_then_places() -> None:
    # 6,000 draws over 4 operations: 1,500 each, standard deviation 34; within an operation its places are
    # equally likely. A chi-squared statistic over 4 + 3 + 3 + 3 places of TINY (4 units): far below 100
    # unless it is wrong.
    rng = np.random.default_rng(0)
    drawn = Counter(random_morph(TINY, rng) for _ in range(6000))
    pools = {op: eligible_morphs(TINY, (op,)) for op in OPS}
    assert set(drawn) == {morph for pool in pools.values() for morph in pool}
    expected = {morph: 1500 / len(pool) for pool in pools.values() for morph in pool}
    chi_squared = sum((drawn[morph] - n) ** 2 / n for morph, n in expected.items())
    assert chi_squared < 40, drawn


def test_only_the_operations_in_use_are_drawn() -> None:
    rng = np.random.default_rng(1)
    for op in OPS:
        _, chain = random_chain(SMALL, rng, 8, (op,))
        assert len(chain) == 8 and {morph.op for morph in chain} == {op}


def test_the_same_stream_gives_the_same_chain() -> None:
    first, second = (random_chain(SMALL, np.random.default_rng(5), 8) for _ in range(2))
    assert first == second
    assert random_chain(SMALL, np.random.default_rng(6), 8) != first


def test_limits_hold_on_every_chain() -> None:
    limits = Limits(units=52, parameters=2 * SMALL.parameters)
    for seed in range(30):
        child, chain = random_chain(SMALL, np.random.default_rng(seed), 12, limits=limits)
        assert child.unit_count <= 52 and child.parameters <= limits.parameters
        assert child == SMALL.apply(*chain)


def test_no_room_means_no_morph() -> None:
    assert random_morph(SMALL, np.random.default_rng(0), ("deeper",), Limits(units=49)) is None
    assert random_chain(SMALL, np.random.default_rng(0), 5, OPS, Limits(parameters=1)) == (SMALL, ())
    # Nothing left to grow: every kernel at 7; no pair left to join.
    grown = TINY.apply(*[Morph("kernel", unit, 0, 7) for unit in (1, 2, 3)])
    assert random_morph(grown, np.random.default_rng(0), ("kernel",)) is None
    joined = TINY.apply(*eligible_morphs(TINY, ("skip",)))
    assert random_morph(joined, np.random.default_rng(0), ("skip",)) is None


def test_the_papers_limits_are_far_below_those_of_ids() -> None:
    child, _ = random_chain(resnet50(), np.random.default_rng(3), 150)
    assert child.unit_count <= 300 and child.parameters <= 1 << 30
